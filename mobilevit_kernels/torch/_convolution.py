"""Convolution with a float32 bias on 16-bit maps, which oneDNN has and ``torch.nn.functional.conv2d`` refuses.

A bias that is rounded to 16 bits errs in the same way at every pixel, and nothing averages that out.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count, flop_registry, register_flop_formula

__all__ = ["conv2d", "pack_conv"]

if torch.ops.aten.mkldnn_convolution not in flop_registry:

    @register_flop_formula(torch.ops.aten.mkldnn_convolution)
    def _flops(x_shape: Any, weight_shape: Any, *_: Any, out_shape: Any, **__: Any) -> int:
        """What PyTorch's FlopCounterMode counts for a convolution."""
        count: int = conv_flop_count(x_shape, weight_shape, out_shape)
        return count


def _dtypes_with_float32_bias() -> frozenset[torch.dtype]:
    """Those that oneDNN computes in on this CPU."""
    if not torch.backends.mkldnn.is_available():
        return frozenset()
    supported = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported(),
    }
    return frozenset(dtype for dtype, is_supported in supported.items() if is_supported)


_FLOAT32_BIAS = _dtypes_with_float32_bias()  # asked once: torch.compile does not trace the question


def pack_conv(weight: Tensor, bias: Tensor, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Weight (C_out, C_in, K, K), NHWC in memory, and bias, as :func:`conv2d` takes them."""
    return weight.to(device, dtype, memory_format=torch.channels_last), bias.to(device, _bias_dtype(dtype, device))


def _bias_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cpu" and dtype in _FLOAT32_BIAS else dtype


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor, *, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1
) -> Tensor:
    """:func:`torch.nn.functional.conv2d`; weight and bias are :func:`pack_conv`'s."""
    if bias.dtype == x.dtype:
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    # Compilers and tensors without data, as of a FakeTensorMode, know conv2d alone.
    if torch.compiler.is_compiling() or type(x) is not Tensor:
        return F.conv2d(x, weight, bias.to(x.dtype), stride, padding, dilation, groups)
    result: Tensor = torch.ops.aten.mkldnn_convolution(
        x, weight, bias, [padding] * 2, [stride] * 2, [dilation] * 2, groups
    )
    return result
