"""Head in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilevit_kernels.canonical import HeadWeights, named_tensors
from mobilevit_kernels.packed import Packed

__all__ = ["pack", "run", "variant"]


def pack(weights: HeadWeights, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """The canonical tensors in declaration order, the convolution's NHWC in memory."""
    return tuple(
        tensor.to(device, dtype, memory_format=torch.channels_last if tensor.dim() == 4 else torch.preserve_format)
        for _, tensor in named_tensors(weights)
    )


def run(x: Tensor, packed: Packed, *, pool: bool) -> Tensor:
    """Convolution, SiLU, mean, linear; see :func:`mobilevit_kernels.ops.head`."""
    conv_weight, conv_bias, *classifier = packed.tensors
    y = F.silu(F.conv2d(x, conv_weight, conv_bias), inplace=True)
    if not pool:
        return y
    pooled = y.mean((2, 3))
    return F.linear(pooled, *classifier) if classifier else pooled


def variant(packed: Packed) -> str:
    """One variant for all shapes."""
    return "conv2d"
