"""The ``simt`` backend: the CUDA kernels' own sources on the host SIMT simulator, on CPU tensors.

Slow and exact; for tests and counters, never chosen by "auto". The library is compiled with g++ on first use into the
cache folder (``MVK_CACHE_DIR``, default ``~/.cache/mobilevit_kernels``). docs/simulator.md tells what it models.
"""

from __future__ import annotations

import functools
from types import ModuleType

import torch

from mobilevit_kernels import native
from mobilevit_kernels.canonical import AttentionShape, StageWeights
from mobilevit_kernels.registry import Status
from mobilevit_kernels.simt import _build
from mobilevit_kernels.simt._library import Counters, SimtLibrary, SimulatorFault, Traffic

__all__ = [
    "Counters",
    "SimtLibrary",
    "SimulatorFault",
    "Traffic",
    "library",
    "refusal",
    "stage_module",
    "status",
]


def status() -> Status:
    """Whether the simulator can be compiled here."""
    if native.source_folder() is None:
        return Status(False, "the kernels' sources (csrc/) are not part of this installation")
    compiler = _build.find_compiler()
    if compiler is None:
        return Status(False, "no g++ on the PATH (CXX names another C++17 compiler with the GNU extensions)")
    when = "is compiled" if _build.is_built() else "to be compiled on first use, in a minute or two,"
    return Status(True, f"host simulator, {when} with {compiler}")


def refusal(
    stage: str,
    weights: StageWeights | AttentionShape | None,
    dtype: torch.dtype,
    device: torch.device,
    num_heads: int | None = None,
) -> str | None:
    """Why the simulator cannot serve these weights; None: it can."""
    if device.type != "cpu":
        return f"the simulator takes CPU tensors, not tensors on {device}"
    return native.refusal("simt", stage, weights, dtype, device, num_heads)


def stage_module(stage: str) -> ModuleType:
    """The module of one stage."""
    return native.stage_module(stage)


@functools.lru_cache(maxsize=1)
def library() -> SimtLibrary:
    """The simulator, compiled on first use."""
    return SimtLibrary(_build.build())
