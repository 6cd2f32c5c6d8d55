"""What the ``cuda`` and ``simt`` backends share: the packing and the calls of the kernels in csrc/.

Both backends run the same sources on the same packed weights; they differ in the library that is called, which takes
the name of a stage's launcher, its tensors and its sizes (:class:`Library`).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor

from mobilevit_kernels.canonical import AttentionShape, StageWeights

__all__ = [
    "DTYPES",
    "STAGES",
    "Library",
    "aligned",
    "library",
    "multiples_of_eight",
    "refusal",
    "source_folder",
    "stage_module",
]

DTYPES = (torch.float16, torch.bfloat16)
STAGES = ("conv3x3", "head", "inverted_residual", "stem", "transformer", "unfold_attention_fold")


class Library(Protocol):
    """The launchers of one backend."""

    def launch(
        self,
        stage: str,
        inputs: Mapping[str, Tensor],
        output: Tensor,
        sizes: Mapping[str, float],
        bfloat16: bool,
        workspace: Tensor | None = None,
    ) -> None:
        """Launches a stage.

        Args:
            stage: the launcher's name.
            inputs: every tensor that it reads, by the launcher's name for it.
            output: the tensor that it writes.
            sizes: its numbers and flags, by name.
            bfloat16: the compute dtype is bfloat16, else float16.
            workspace: memory that it may use as it likes; None: it takes none.
        """

    def shared_bytes(self, stage: str, *sizes: int) -> int:
        """Shared memory of a block in bytes."""

    def shared_limit(self, device: torch.device) -> int:
        """Shared memory that a block may have, in bytes."""

    def multiprocessors(self, device: torch.device) -> int:
        """Streaming multiprocessors of the device."""

    def has_clusters(self, device: torch.device) -> bool:
        """Whether blocks of the device form thread-block clusters."""


def library(backend: str) -> Library:
    """The loaded library of ``"cuda"`` or ``"simt"``."""
    loaded: Library = importlib.import_module(f"mobilevit_kernels.{backend}").library()
    return loaded


def source_folder() -> Path | None:
    """csrc/ of this installation or checkout; None where it is not there."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "csrc", package.parent / "csrc"):
        if (folder / "launchers.h").is_file():
            return folder
    return None


def refusal(
    backend: str, stage: str, weights: StageWeights | AttentionShape | None, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Why the CUDA kernels cannot serve these weights on this device; None: they can."""
    if stage not in STAGES:
        return f"it has no CUDA kernel in this version (CUDA kernels: {', '.join(STAGES)})"
    if dtype not in DTYPES:
        return f"the CUDA kernels compute in float16 and bfloat16, not in {str(dtype).removeprefix('torch.')}"
    if weights is not None:
        reason: str | None = stage_module(stage).refusal(backend, weights, device)
        return reason
    return None


def multiples_of_eight(**channels: int) -> str | None:
    """Why 16-byte accesses do not fit some of the channels, given by name; None: they do."""
    for name, count in channels.items():
        if count % 8 != 0:
            return f"{name}: expected a multiple of 8, got {count}"
    return None


def aligned(x: Tensor) -> Tensor:
    """``x``, copied where it is a slice that does not start at a multiple of the 16 bytes that the kernels copy."""
    return x if x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.channels_last)


def stage_module(stage: str) -> ModuleType:
    """The module of one stage."""
    return importlib.import_module(f"mobilevit_kernels.native.{stage}")
