"""Inverted residual in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilevit_kernels.canonical import InvertedResidualWeights
from mobilevit_kernels.packed import Packed
from mobilevit_kernels.torch._convolution import conv2d, pack_conv

__all__ = ["pack", "run", "variant"]


def pack(weights: InvertedResidualWeights, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Expand, depthwise and project weight and bias, in that order, convolution layouts, NHWC in memory."""
    return (
        *pack_conv(weights.expand_weight, weights.expand_bias, dtype, device),
        *pack_conv(weights.depthwise_weight, weights.depthwise_bias, dtype, device),
        *pack_conv(weights.project_weight, weights.project_bias, dtype, device),
    )


def run(x: Tensor, packed: Packed, *, stride: int, dilation: int, residual: bool) -> Tensor:
    """Expand, depthwise, project; see :func:`mobilevit_kernels.ops.inverted_residual`."""
    expand_weight, expand_bias, depthwise_weight, depthwise_bias, project_weight, project_bias = packed.tensors
    hidden = F.silu(conv2d(x, expand_weight, expand_bias), inplace=True)
    depthwise = {"stride": stride, "padding": dilation, "dilation": dilation, "groups": packed.sizes[1]}
    hidden = F.silu(conv2d(hidden, depthwise_weight, depthwise_bias, **depthwise), inplace=True)
    y = conv2d(hidden, project_weight, project_bias)
    return y.add_(x) if residual else y


def variant(packed: Packed) -> str:
    """One variant for all shapes."""
    return "conv2d"
