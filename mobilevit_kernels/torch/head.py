"""Head in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilevit_kernels.canonical import HeadWeights
from mobilevit_kernels.packed import Packed
from mobilevit_kernels.torch._convolution import conv2d, pack_conv

__all__ = ["pack", "run", "variant"]


def pack(weights: HeadWeights, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Weight and bias of the convolution, NHWC in memory, then of the classifier where there is one."""
    convolution = pack_conv(weights.conv_weight, weights.conv_bias, dtype, device)
    if weights.fc_weight is None:
        return convolution
    assert weights.fc_bias is not None
    return (*convolution, weights.fc_weight.to(device, dtype), weights.fc_bias.to(device, dtype))


def run(x: Tensor, packed: Packed, *, pool: bool) -> Tensor:
    """Convolution, SiLU, mean, linear; see :func:`mobilevit_kernels.ops.head`."""
    conv_weight, conv_bias, *classifier = packed.tensors
    y = F.silu(conv2d(x, conv_weight, conv_bias), inplace=True)
    if not pool:
        return y
    pooled = y.mean((2, 3))
    return F.linear(pooled, *classifier) if classifier else pooled


def variant(packed: Packed) -> str:
    """One variant for all shapes."""
    return "conv2d"
