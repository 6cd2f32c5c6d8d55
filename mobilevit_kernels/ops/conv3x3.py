"""The dense 3×3 convolutions of a MobileViT block: the local one, and the fusion one on two inputs."""

from __future__ import annotations

from torch import Tensor

from mobilevit_kernels.canonical import Conv3x3Weights
from mobilevit_kernels.ops import _checks, _dispatch
from mobilevit_kernels.packed import Packed

__all__ = ["conv3x3"]


def conv3x3(
    x: Tensor,
    weights: Conv3x3Weights | Packed,
    *,
    x2: Tensor | None = None,
    dilation: int = 1,
    activation: str = "silu",
    backend: str = "auto",
) -> Tensor:
    """Computes ``silu(conv2d(cat([x, x2], 1), weight, bias, padding=dilation, dilation=dilation))``.

    The GPU backends read both inputs where they are and never make the concatenation.

    Args:
        x: (B, C, H, W), floating point.
        weights: canonical or packed, with C_in = C + C2 input channels. Plain weights are packed on each call.
        x2: (B, C2, H, W), the channels behind ``x``'s; None: there is one input.
        dilation: of the taps; the padding is the same, so the map keeps its size.
        activation: "silu" or "none".
        backend: "auto", "cuda", "triton", "torch" or "simt".

    Returns:
        (B, C_out, H, W) in ``x``'s dtype, channels_last in memory.

    Raises:
        TypeError: not a floating-point tensor, weights of another stage or dtype.
        ValueError: shapes that do not fit each other, a bad option, an unknown backend.
        RuntimeError: an input requires grad while grad mode is on.
        BackendUnavailable: the named backend cannot serve.
    """
    for name, tensor in (("x", x), ("x2", x2)):
        if tensor is not None:
            _checks.check_map(name, tensor, "(B, C, H, W)")
            _checks.check_float(name, tensor)
            _checks.check_inference(name, tensor)
    _checks.check_positive("dilation", dilation)
    _checks.check_one_of("activation", activation, ("silu", "none"))
    packed = _dispatch.prepare("conv3x3", x, weights, backend)
    in_channels = packed.sizes[0]
    if x2 is None:
        _checks.check_channels("x", x, in_channels)
    else:
        if (x2.shape[0], *x2.shape[2:]) != (x.shape[0], *x.shape[2:]) or x2.dtype != x.dtype:
            raise ValueError(
                f"x2: expected x's batch, size and dtype, x is {_checks.describe(x)}, got {_checks.describe(x2)}"
            )
        if x2.device != x.device:
            raise ValueError(f"x2: expected a tensor on {x.device}, as x is, got one on {x2.device}")
        _checks.check_channels("x2", x2, in_channels - x.shape[1])
    return _launch(x, x2, list(packed.tensors), list(packed.sizes), dilation, activation, packed.backend)


def _run(
    x: Tensor,
    x2: Tensor | None,
    tensors: list[Tensor],
    sizes: list[int],
    dilation: int,
    activation: str,
    backend: str,
) -> Tensor:
    packed = Packed("conv3x3", backend, x.dtype, x.device, tuple(tensors), tuple(sizes))
    x, x2 = _dispatch.nhwc(x), None if x2 is None else _dispatch.nhwc(x2)
    module = _dispatch.stage_module(backend, "conv3x3")
    result: Tensor = module.run(x, packed, x2=x2, dilation=dilation, activation=activation)
    return result


def _fake(
    x: Tensor,
    x2: Tensor | None,
    tensors: list[Tensor],
    sizes: list[int],
    dilation: int,
    activation: str,
    backend: str,
) -> Tensor:
    return _dispatch.empty_nhwc(x, sizes[1], x.shape[2], x.shape[3], x.dtype)


_launch = _dispatch.register(
    "conv3x3",
    "(Tensor x, Tensor? x2, Tensor[] weights, int[] sizes, int dilation, str activation, str backend) -> Tensor",
    _run,
    _fake,
)
