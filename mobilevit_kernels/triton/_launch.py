"""From a stage's ``run`` to the GPU: device, architecture, matrix precision, and a record of launches on request.

Recording serves the ahead-of-time compiles and the launch counts: on tensors of the meta device a stage plans exactly
what it would launch, and nothing runs.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mobilevit_kernels.triton.launch_table import FALLBACK_L2_BYTES, Launch

__all__ = ["COMPILE_OPTIONS", "Recorded", "architecture", "l2_bytes", "launch", "precision", "recording"]

# Multiply and add become one instruction, as they do by default up to Triton 3.9 and no longer in 3.10.
COMPILE_OPTIONS = {"enable_fp_fusion": True}
_DEFAULT_ARCH = 90


@dataclass(frozen=True)
class Recorded:
    """One launch: the kernel, its grid, its arguments by name, and its configuration."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    config: Launch


_RECORD: ContextVar[tuple[list[Recorded], int] | None] = ContextVar("mobilevit_kernels_triton_record", default=None)


@contextlib.contextmanager
def recording(arch: int = _DEFAULT_ARCH) -> Iterator[list[Recorded]]:
    """Yields a list that fills with the launches made inside; on meta tensors they are planned for ``arch``."""
    record: list[Recorded] = []
    token = _RECORD.set((record, arch))
    try:
        yield record
    finally:
        _RECORD.reset(token)


@functools.cache
def _properties(index: int) -> tuple[int, int]:
    properties = torch.cuda.get_device_properties(index)
    return properties.major * 10 + properties.minor, properties.L2_cache_size


def architecture(x: Tensor) -> int:
    """Compute capability of ``x``'s device as one number (90 for 9.0); off the GPU that of the recording."""
    if x.is_cuda:
        return _properties(x.get_device())[0]
    record = _RECORD.get()
    return _DEFAULT_ARCH if record is None else record[1]


def l2_bytes(x: Tensor) -> int:
    """Size of the L2 of ``x``'s device."""
    return _properties(x.get_device())[1] if x.is_cuda else FALLBACK_L2_BYTES


def precision(dtype: torch.dtype) -> str:
    """How float32 products are made: exactly, unless PyTorch is allowed tf32 for its own."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"


def launch(kernel: Any, grid: tuple[int, ...], tensors: Sequence[Any], config: Launch, **constants: Any) -> None:
    """Launches a kernel on the device of its first argument, on the current stream.

    Args:
        kernel: the jitted function.
        grid: number of programs along each axis.
        tensors: its positional arguments, the first one a tensor.
        config: tile sizes, warps and stages.
        constants: its compile-time constants other than the tile sizes.
    """
    constants.update(config.blocks)
    device = tensors[0].device
    record = _RECORD.get()
    if record is not None:
        record[0].append(
            Recorded(kernel, grid, {**dict(zip(kernel.arg_names, tensors, strict=False)), **constants}, config)
        )
    if device.type == "meta":
        return
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](*tensors, **constants, num_warps=config.num_warps, num_stages=config.num_stages, **COMPILE_OPTIONS)
