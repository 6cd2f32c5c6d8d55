"""Argument checks of the public ops: one clear error that names the argument, what was expected and what came."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "FLOAT_DTYPES",
    "check_channels",
    "check_divides",
    "check_float",
    "check_inference",
    "check_map",
    "check_one_of",
    "check_patch_size",
    "check_positive",
    "check_ratio",
    "describe",
]

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def describe(value: object) -> str:
    """A short description of an argument for an error message."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):  # an array: not all of its values
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 100 else text[:97] + '...'}"


def check_map(name: str, x: object, layout: str) -> None:
    """Raises unless ``x`` is a 4-D tensor with no empty axis but the batch."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor {layout}, got {describe(x)}")
    if x.dim() != 4:
        raise ValueError(f"{name}: expected a 4-D tensor {layout}, got {describe(x)}")
    if 0 in x.shape[1:]:
        raise ValueError(f"{name}: expected a tensor {layout} with no empty axis but the batch, got {describe(x)}")


def check_float(name: str, x: Tensor) -> None:
    """Raises unless ``x`` is floating point."""
    if x.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name}: expected float16, bfloat16, float32 or float64, got {describe(x)}")


def check_channels(name: str, x: Tensor, channels: int, *, axis: int = 1) -> None:
    """Raises unless axis ``axis`` of ``x`` has ``channels`` entries."""
    if x.shape[axis] != channels:
        raise ValueError(f"{name}: expected {channels} channels in axis {axis}, got {x.shape[axis]} ({describe(x)})")


def check_inference(name: str, x: Tensor) -> None:
    """Raises where autograd would have to record: the library computes no gradients."""
    if torch.is_grad_enabled() and x.requires_grad:
        raise RuntimeError(
            f"{name}: mobilevit_kernels is for inference only and computes no gradients, but {name} requires grad; "
            f"wrap the call in torch.inference_mode() or torch.no_grad(), or pass {name}.detach()"
        )


def check_positive(name: str, value: object) -> None:
    """Raises unless ``value`` is a positive int."""
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt) or value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {describe(value)}")


def check_ratio(name: str, value: object) -> None:
    """Raises unless ``value`` is a positive, finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a positive number, got {describe(value)}")


def check_one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raises unless ``value`` is one of ``allowed``."""
    if isinstance(value, bool | float) or value not in allowed:  # 1.0 and True equal 1
        raise ValueError(f"{name}: expected {' or '.join(map(repr, allowed))}, got {describe(value)}")


def check_divides(name: str, divisor: int, what: str, total: int) -> None:
    """Raises unless ``divisor`` divides ``total``."""
    if total % divisor != 0:
        raise ValueError(f"{name}: expected a divisor of {what} = {total}, got {divisor}")


def check_patch_size(patch_size: object) -> tuple[int, int]:
    """Returns a patch size as (height, width); an int stands for a square patch."""
    if isinstance(patch_size, int) and not isinstance(patch_size, bool):
        patch_size = (patch_size, patch_size)
    if not isinstance(patch_size, tuple | list) or len(patch_size) != 2:
        raise ValueError(f"patch_size: expected (height, width), got {describe(patch_size)}")
    for side in patch_size:
        check_positive("patch_size", side)
    return patch_size[0], patch_size[1]
