"""Dense 3×3 convolution in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilevit_kernels.canonical import Conv3x3Weights
from mobilevit_kernels.packed import Packed
from mobilevit_kernels.torch._convolution import conv2d, pack_conv

__all__ = ["pack", "run", "variant"]


def pack(weights: Conv3x3Weights, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Weight (C_out, C_in, 3, 3), NHWC in memory, and bias."""
    return pack_conv(weights.weight, weights.bias, dtype, device)


def run(x: Tensor, packed: Packed, *, x2: Tensor | None, dilation: int, activation: str) -> Tensor:
    """``silu(conv2d(cat([x, x2], 1)))``; see :func:`mobilevit_kernels.ops.conv3x3`."""
    weight, bias = packed.tensors
    if x2 is not None:
        x = torch.cat([x, x2], dim=1)
    y = conv2d(x, weight, bias, padding=dilation, dilation=dilation)
    return F.silu(y, inplace=True) if activation == "silu" else y


def variant(packed: Packed) -> str:
    """One variant for all shapes."""
    return "conv2d"
