"""From a stage's ``run`` to the GPU: configuration, device, matrix precision, and a record of launches on request.

Recording serves the ahead-of-time compiles and the launch counts: on tensors of the meta device a stage plans exactly
what it would launch, and nothing runs.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mobilevit_kernels.triton import tuned
from mobilevit_kernels.triton.launch_table import DEFAULT_ARCH, FALLBACK_L2_BYTES, Launch, Problem, static

__all__ = ["COMPILE_OPTIONS", "Recorded", "configuration", "l2_bytes", "launch", "precision", "recording", "tiles"]

# Multiply and add become one instruction, as they do by default up to Triton 3.9 and no longer in 3.10.
COMPILE_OPTIONS = {"enable_fp_fusion": True}
Grid = Callable[[Launch], tuple[int, ...]]


@dataclass(frozen=True)
class Recorded:
    """One launch.

    Attributes:
        kernel: the jitted function.
        problem: what its configuration was chosen by.
        config: the configuration.
        grid: the number of programs along each axis, by configuration.
        tensors: positional arguments.
        constants: compile-time constants other than the tile sizes.
    """

    kernel: Any
    problem: Problem
    config: Launch
    grid: Grid
    tensors: Sequence[Any]
    constants: dict[str, Any]

    @property
    def arguments(self) -> dict[str, Any]:
        """All arguments by name, tile sizes included."""
        positional = dict(zip(self.kernel.arg_names, self.tensors, strict=False))
        return {**positional, **self.constants, **dict(self.config.blocks)}

    def run(self, config: Launch) -> Any:
        """Launches it again, in another configuration; returns the compiled kernel (in the interpreter None)."""
        return _run(self.kernel, self.grid(config), self.tensors, config, self.constants)

    def compile(self, config: Launch) -> None:
        """Compiles it in another configuration, without launching it; not in the interpreter."""
        self.kernel.warmup(*self.tensors, grid=self.grid(config), **_keywords(config, self.constants))


def _keywords(config: Launch, constants: dict[str, Any]) -> dict[str, Any]:
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, **COMPILE_OPTIONS}
    return {**constants, **dict(config.blocks), **options}


_RECORD: ContextVar[tuple[list[Recorded], int] | None] = ContextVar("mobilevit_kernels_triton_record", default=None)


@contextlib.contextmanager
def recording(arch: int = DEFAULT_ARCH) -> Iterator[list[Recorded]]:
    """Yields a list that fills with the launches made inside; on meta tensors they are planned for ``arch``."""
    record: list[Recorded] = []
    token = _RECORD.set((record, arch))
    try:
        yield record
    finally:
        _RECORD.reset(token)


@functools.cache
def _l2_bytes(index: int) -> int:
    return torch.cuda.get_device_properties(index).L2_cache_size


def l2_bytes(x: Tensor) -> int:
    """Size of the L2 of ``x``'s device."""
    return _l2_bytes(x.get_device()) if x.is_cuda else FALLBACK_L2_BYTES


def precision(dtype: torch.dtype) -> str:
    """How float32 products are made: exactly, unless PyTorch is allowed tf32 for its own."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"


def configuration(problem: Problem, device: torch.device) -> Launch:
    """The configuration of a launch: from the tuned table of the device, else from the static one.

    On the meta device it is the static one, for the architecture of the recording.
    """
    if device.type == "meta":
        record = _RECORD.get()
        return static(problem, DEFAULT_ARCH if record is None else record[1])
    return tuned.configuration(problem, device)


def tiles(rows: int, columns: int) -> Grid:
    """A program for each tile of BLOCK_M rows × BLOCK_N columns."""
    return lambda config: (-(-rows // config["BLOCK_M"]) * -(-columns // config["BLOCK_N"]),)


def launch(kernel: Any, grid: Grid, tensors: Sequence[Any], problem: Problem, **constants: Any) -> None:
    """Launches a kernel on the device of its first argument, on the current stream.

    Args:
        kernel: the jitted function.
        grid: number of programs along each axis, by configuration.
        tensors: its positional arguments, the first one a tensor.
        problem: what its tile sizes, warps and stages are chosen by.
        constants: its compile-time constants other than the tile sizes.
    """
    device = tensors[0].device
    config = configuration(problem, device)
    record = _RECORD.get()
    if record is not None:
        record[0].append(Recorded(kernel, problem, config, grid, tensors, constants))
    if device.type != "meta":
        _run(kernel, grid(config), tensors, config, constants)


def _run(kernel: Any, grid: tuple[int, ...], tensors: Sequence[Any], config: Launch, constants: dict[str, Any]) -> Any:
    device = tensors[0].device
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        return kernel[grid](*tensors, **_keywords(config, constants))
