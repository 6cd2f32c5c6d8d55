"""The inverted residual (MobileNetV2): 1×1 expand → 3×3 depthwise → 1×1 project."""

from __future__ import annotations

from torch import Tensor

from mobilevit_kernels.canonical import InvertedResidualWeights
from mobilevit_kernels.ops import _checks, _dispatch
from mobilevit_kernels.packed import Packed

__all__ = ["inverted_residual"]


def inverted_residual(
    x: Tensor,
    weights: InvertedResidualWeights | Packed,
    *,
    stride: int = 1,
    dilation: int = 1,
    residual: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Computes a whole inverted residual; on the GPU backends the hidden tensor need not leave the chip.

    The plain-PyTorch equivalent::

        hidden = F.silu(F.conv2d(x, expand_weight, expand_bias))
        hidden = F.conv2d(hidden, depthwise_weight, depthwise_bias, stride, dilation, dilation, groups=hidden_channels)
        y = F.conv2d(F.silu(hidden), project_weight, project_bias)
        return x + y if residual else y

    Args:
        x: (B, C_in, H, W), floating point.
        weights: canonical or packed. Plain weights are packed on each call.
        stride: of the depthwise convolution, 1 or 2.
        dilation: of the depthwise convolution; its padding is the same.
        residual: add ``x`` to the result; needs stride 1 and C_out = C_in.
        backend: "auto", "cuda", "triton", "torch" or "simt".

    Returns:
        (B, C_out, ⌈H/stride⌉, ⌈W/stride⌉) in ``x``'s dtype, channels_last in memory.

    Raises:
        TypeError: not a floating-point tensor, weights of another stage or dtype.
        ValueError: another number of axes or channels, a bad option, an unknown backend.
        RuntimeError: ``x`` requires grad while grad mode is on.
        BackendUnavailable: the named backend cannot serve.
    """
    _checks.check_map("x", x, "(B, C, H, W)")
    _checks.check_float("x", x)
    _checks.check_inference("x", x)
    _checks.check_one_of("stride", stride, (1, 2))
    _checks.check_positive("dilation", dilation)
    packed = _dispatch.prepare("inverted_residual", x, weights, backend)
    in_channels, _, out_channels = packed.sizes
    _checks.check_channels("x", x, in_channels)
    if residual and (stride != 1 or in_channels != out_channels):
        raise ValueError(
            f"residual: expected False unless stride is 1 and the channels agree, got True with stride {stride} and "
            f"{in_channels} → {out_channels} channels"
        )
    return _launch(x, list(packed.tensors), list(packed.sizes), stride, dilation, bool(residual), packed.backend)


def _run(
    x: Tensor, tensors: list[Tensor], sizes: list[int], stride: int, dilation: int, residual: bool, backend: str
) -> Tensor:
    packed = Packed("inverted_residual", backend, x.dtype, x.device, tuple(tensors), tuple(sizes))
    module = _dispatch.stage_module(backend, "inverted_residual")
    result: Tensor = module.run(_dispatch.nhwc(x), packed, stride=stride, dilation=dilation, residual=residual)
    return result


def _fake(
    x: Tensor, tensors: list[Tensor], sizes: list[int], stride: int, dilation: int, residual: bool, backend: str
) -> Tensor:
    height, width = ((size - 1) // stride + 1 for size in x.shape[2:])
    return _dispatch.empty_nhwc(x, sizes[2], height, width, x.dtype)


_launch = _dispatch.register(
    "inverted_residual",
    "(Tensor x, Tensor[] weights, int[] sizes, int stride, int dilation, bool residual, str backend) -> Tensor",
    _run,
    _fake,
)
