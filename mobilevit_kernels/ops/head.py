"""The head: 1×1 convolution + SiLU → global average pool → linear."""

from __future__ import annotations

from torch import Tensor

from mobilevit_kernels.canonical import HeadWeights
from mobilevit_kernels.ops import _checks, _dispatch
from mobilevit_kernels.packed import Packed

__all__ = ["head"]


def head(x: Tensor, weights: HeadWeights | Packed, *, pool: bool = True, backend: str = "auto") -> Tensor:
    """Computes the network's head.

    The plain-PyTorch equivalent::

        y = F.silu(F.conv2d(x, conv_weight, conv_bias))
        return F.linear(y.mean((2, 3)), fc_weight, fc_bias) if pool else y      # without fc_weight: y.mean((2, 3))

    Args:
        x: (B, C, H, W), floating point.
        weights: canonical or packed. Plain weights are packed on each call.
        pool: False: stop before the pool and return the map.
        backend: "auto", "cuda", "triton", "torch" or "simt".

    Returns:
        In ``x``'s dtype: (B, num_classes); (B, hidden_channels) where the weights have no classifier; with
        ``pool=False`` (B, hidden_channels, H, W), channels_last in memory.

    Raises:
        TypeError: not a floating-point tensor, weights of another stage or dtype.
        ValueError: another number of axes or channels, an unknown backend.
        RuntimeError: ``x`` requires grad while grad mode is on.
        BackendUnavailable: the named backend cannot serve.
    """
    _checks.check_map("x", x, "(B, C, H, W)")
    _checks.check_float("x", x)
    _checks.check_inference("x", x)
    packed = _dispatch.prepare("head", x, weights, backend)
    _checks.check_channels("x", x, packed.sizes[0])
    return _launch(x, list(packed.tensors), list(packed.sizes), bool(pool), packed.backend)


def _run(x: Tensor, tensors: list[Tensor], sizes: list[int], pool: bool, backend: str) -> Tensor:
    packed = Packed("head", backend, x.dtype, x.device, tuple(tensors), tuple(sizes))
    result: Tensor = _dispatch.stage_module(backend, "head").run(_dispatch.nhwc(x), packed, pool=pool)
    return result


def _fake(x: Tensor, tensors: list[Tensor], sizes: list[int], pool: bool, backend: str) -> Tensor:
    _, hidden_channels, num_classes = sizes
    if not pool:
        return _dispatch.empty_nhwc(x, hidden_channels, x.shape[2], x.shape[3], x.dtype)
    return x.new_empty((x.shape[0], num_classes or hidden_channels))


_launch = _dispatch.register(
    "head", "(Tensor x, Tensor[] weights, int[] sizes, bool pool, str backend) -> Tensor", _run, _fake
)
