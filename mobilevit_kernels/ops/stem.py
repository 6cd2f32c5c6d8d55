"""The stem: 3×3 convolution, stride 2, + BatchNorm + SiLU on images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mobilevit_kernels.canonical import StemWeights
from mobilevit_kernels.ops import _checks, _dispatch
from mobilevit_kernels.packed import Packed

__all__ = ["check_fit", "check_images", "stem"]


def stem(
    x: Tensor,
    weights: StemWeights | Packed,
    *,
    normalize: tuple[Sequence[float], Sequence[float]] | None = None,
    backend: str = "auto",
) -> Tensor:
    """Computes ``silu(conv2d(normalised x, weight, bias, stride=2, padding=1))``.

    The plain-PyTorch equivalent, ``mean`` and ``std`` in units of 0…1::

        image = x if x.is_floating_point() else x.permute(0, 3, 1, 2) / 255
        F.silu(F.conv2d((image - mean) / std, weights.weight, weights.bias, stride=2, padding=1))

    The zero padding comes after the normalisation, as in the stock pipeline, and is exact at the border.

    Args:
        x: images: floating point (B, C, H, W) of any memory layout, or uint8 NHWC (B, H, W, C) with ``normalize``.
        weights: canonical or packed. Plain weights are packed on each call, in ``x``'s dtype (uint8 on a CPU: float32).
        normalize: ``(mean, std)``, a value for each channel, in the channel order of ``x``; None: images are
            normalised already.
        backend: "auto", "cuda", "triton", "torch" or "simt".

    Returns:
        (B, C_out, ⌈H/2⌉, ⌈W/2⌉) in the weights' dtype, channels_last in memory.

    Raises:
        TypeError: a dtype that is not an image's, integer images without ``normalize``, weights of another stage.
        ValueError: another number of axes or channels, a bad ``normalize``, an unknown backend.
        RuntimeError: ``x`` requires grad while grad mode is on.
        BackendUnavailable: the named backend cannot serve.
    """
    mean, std = check_images("x", x, normalize)
    packed = _dispatch.prepare("stem", x, weights, backend)
    check_fit("x", x, packed, mean, std)
    return _launch(x, list(packed.tensors), list(packed.sizes), mean, std, packed.backend)


def check_images(
    name: str, x: Tensor, normalize: tuple[Sequence[float], Sequence[float]] | None
) -> tuple[list[float], list[float]]:
    """Checks an image batch and its normalisation; returns mean and std as lists, empty where there is none."""
    integer = isinstance(x, Tensor) and not x.is_floating_point() and not x.is_complex()
    _checks.check_map(name, x, "(B, H, W, C) of uint8" if integer else "(B, C, H, W)")
    if integer and normalize is None:
        raise TypeError(
            f"{name}: integer images need normalize=(mean, std) and uint8 (B, H, W, C), got {_checks.describe(x)} "
            f"without normalize"
        )
    if integer and x.dtype != torch.uint8:
        raise TypeError(f"{name}: expected uint8 or floating-point images, got {_checks.describe(x)}")
    if not integer:
        _checks.check_float(name, x)
    _checks.check_inference(name, x)
    return check_normalize(normalize)


def check_normalize(normalize: tuple[Sequence[float], Sequence[float]] | None) -> tuple[list[float], list[float]]:
    """Checks a normalisation; returns mean and std as lists, empty where there is none."""
    if normalize is None:
        return [], []
    if not isinstance(normalize, tuple | list) or len(normalize) != 2:
        raise ValueError(f"normalize: expected (mean, std), got {_checks.describe(normalize)}")
    try:
        mean, std = ([float(value) for value in values] for values in normalize)
    except (TypeError, ValueError):
        raise ValueError(
            f"normalize: expected (mean, std), a number for each channel in both, got {_checks.describe(normalize)}"
        ) from None
    if not all(math.isfinite(value) for value in mean):
        raise ValueError(f"normalize: expected a finite mean, got {mean}")
    if not all(0 < value < math.inf for value in std):
        raise ValueError(f"normalize: expected a positive std, got {std}")
    return mean, std


def check_fit(name: str, x: Tensor, packed: Packed, mean: Sequence[float], std: Sequence[float]) -> None:
    """Raises unless checked images and a normalisation have the channels of the weights."""
    channels = packed.sizes[0]
    if not x.is_floating_point() and x.shape[1] == channels != x.shape[3]:
        raise ValueError(
            f"{name}: expected uint8 images (B, H, W, {channels}), got {_checks.describe(x)}; "
            f"{name}.permute(0, 2, 3, 1) brings the channels last"
        )
    _checks.check_channels(name, x, channels, axis=1 if x.is_floating_point() else 3)
    for which, values in (("mean", mean), ("std", std)):
        if values and len(values) != channels:
            raise ValueError(f"normalize: expected {channels} values of {which}, got {len(values)}")


def _run(
    x: Tensor, tensors: list[Tensor], sizes: list[int], mean: list[float], std: list[float], backend: str
) -> Tensor:
    packed = Packed("stem", backend, tensors[0].dtype, x.device, tuple(tensors), tuple(sizes))
    result: Tensor = _dispatch.stage_module(backend, "stem").run(x, packed, mean=mean, std=std)
    return result


def _fake(
    x: Tensor, tensors: list[Tensor], sizes: list[int], mean: list[float], std: list[float], backend: str
) -> Tensor:
    height, width = x.shape[2:] if x.is_floating_point() else x.shape[1:3]
    return _dispatch.empty_nhwc(x, sizes[1], (height + 1) // 2, (width + 1) // 2, tensors[0].dtype)


_launch = _dispatch.register(
    "stem", "(Tensor x, Tensor[] weights, int[] sizes, float[] mean, float[] std, str backend) -> Tensor", _run, _fake
)
