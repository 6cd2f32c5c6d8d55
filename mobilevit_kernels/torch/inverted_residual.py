"""Inverted residual in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilevit_kernels.canonical import InvertedResidualWeights
from mobilevit_kernels.packed import Packed

__all__ = ["pack", "run", "variant"]


def pack(weights: InvertedResidualWeights, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Expand, depthwise and project weight and bias, in that order, convolution layouts, NHWC in memory."""
    return tuple(
        tensor.to(device, dtype, memory_format=torch.channels_last if tensor.dim() == 4 else torch.preserve_format)
        for tensor in (
            weights.expand_weight,
            weights.expand_bias,
            weights.depthwise_weight,
            weights.depthwise_bias,
            weights.project_weight,
            weights.project_bias,
        )
    )


def run(x: Tensor, packed: Packed, *, stride: int, dilation: int, residual: bool) -> Tensor:
    """Expand, depthwise, project; see :func:`mobilevit_kernels.ops.inverted_residual`."""
    expand_weight, expand_bias, depthwise_weight, depthwise_bias, project_weight, project_bias = packed.tensors
    hidden = F.silu(F.conv2d(x, expand_weight, expand_bias), inplace=True)
    hidden = F.silu(
        F.conv2d(hidden, depthwise_weight, depthwise_bias, stride, dilation, dilation, groups=packed.sizes[1]),
        inplace=True,
    )
    y = F.conv2d(hidden, project_weight, project_bias)
    return y.add_(x) if residual else y


def variant(packed: Packed) -> str:
    """One variant for all shapes."""
    return "conv2d"
