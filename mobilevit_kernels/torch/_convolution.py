"""Convolution with a float32 bias on 16-bit maps, which oneDNN has and ``torch.nn.functional.conv2d`` refuses.

A bias that is rounded to 16 bits errs in the same way at every pixel, and nothing averages that out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["conv2d", "pack_conv"]


def pack_conv(weight: Tensor, bias: Tensor, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Weight (C_out, C_in, K, K), NHWC in memory, and bias, as :func:`conv2d` takes them."""
    return weight.to(device, dtype, memory_format=torch.channels_last), bias.to(device, _bias_dtype(dtype, device))


def _bias_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """float32 on CPUs whose oneDNN computes in this 16-bit dtype."""
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        if dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return torch.float32
        if dtype == torch.float16 and torch.ops.mkldnn._is_mkldnn_fp16_supported():
            return torch.float32
    return dtype


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor, *, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1
) -> Tensor:
    """:func:`torch.nn.functional.conv2d`; weight and bias are :func:`pack_conv`'s."""
    if bias.dtype == x.dtype:
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    if torch.compiler.is_compiling():  # compilers know conv2d and fuse it
        return F.conv2d(x, weight, bias.to(x.dtype), stride, padding, dilation, groups)
    result: Tensor = torch.ops.aten.mkldnn_convolution(
        x, weight, bias, [padding] * 2, [stride] * 2, [dilation] * 2, groups
    )
    return result
