"""Stem in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilevit_kernels.canonical import StemWeights
from mobilevit_kernels.packed import Packed
from mobilevit_kernels.torch._convolution import conv2d, pack_conv

__all__ = ["pack", "run", "variant"]


def pack(weights: StemWeights, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Weight (C_out, C_in, 3, 3), NHWC in memory, and bias."""
    return pack_conv(weights.weight, weights.bias, dtype, device)


def run(x: Tensor, packed: Packed, *, mean: list[float], std: list[float]) -> Tensor:
    """``silu(conv2d((x − mean) / std, stride=2, padding=1))``; see :func:`mobilevit_kernels.ops.stem`."""
    weight, bias = packed.tensors
    if x.dtype == torch.uint8:
        x = x.permute(0, 3, 1, 2).float() / 255
    if mean:
        # In float32 at least: a half-precision image would lose the difference to the mean.
        x = x if x.dtype == torch.float64 else x.float()
        x = (x - x.new_tensor(mean).reshape(-1, 1, 1)) / x.new_tensor(std).reshape(-1, 1, 1)
    x = x.to(packed.dtype, memory_format=torch.channels_last)
    return F.silu(conv2d(x, weight, bias, stride=2, padding=1), inplace=True)


def variant(packed: Packed) -> str:
    """One variant for all shapes."""
    return "conv2d"
