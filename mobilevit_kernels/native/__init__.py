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

from mobilevit_kernels.canonical import Conv3x3Weights, HeadWeights, InvertedResidualWeights, StageWeights, StemWeights

__all__ = ["DTYPES", "STAGES", "Library", "aligned", "library", "refusal", "source_folder", "stage_module"]

DTYPES = (torch.float16, torch.bfloat16)
STAGES = ("conv3x3", "head", "inverted_residual", "stem")


class Library(Protocol):
    """The launchers of one backend."""

    def launch(
        self, stage: str, inputs: Mapping[str, Tensor], output: Tensor, sizes: Mapping[str, float], bfloat16: bool
    ) -> None:
        """Launches a stage.

        Args:
            stage: the launcher's name.
            inputs: every tensor that it reads, by the launcher's name for it.
            output: the tensor that it writes.
            sizes: its numbers and flags, by name.
            bfloat16: the compute dtype is bfloat16, else float16.
        """

    def shared_bytes(self, stage: str, *sizes: int) -> int:
        """Shared memory of a block in bytes."""

    def shared_limit(self, device: torch.device) -> int:
        """Shared memory that a block may have, in bytes."""


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


def refusal(backend: str, stage: str, weights: StageWeights | None, dtype: torch.dtype) -> str | None:
    """Why the CUDA kernels cannot serve these weights; None: they can."""
    if stage not in STAGES:
        return f"it has no CUDA kernel in this version (CUDA kernels: {', '.join(STAGES)})"
    if dtype not in DTYPES:
        return f"the CUDA kernels compute in float16 and bfloat16, not in {str(dtype).removeprefix('torch.')}"
    if isinstance(weights, StemWeights) and weights.weight.shape[1] != 3:
        return f"in_channels: the stem's CUDA kernel takes images of 3 channels, got {weights.weight.shape[1]}"
    for name, channels in _channels(weights):
        if channels % 8 != 0:
            return f"{name}: expected a multiple of 8, got {channels}"
    return None


def _channels(weights: StageWeights | None) -> tuple[tuple[str, int], ...]:
    """The channels that 16-byte accesses have to divide, by name."""
    if isinstance(weights, InvertedResidualWeights):
        hidden_channels, in_channels = weights.expand_weight.shape[:2]
        out_channels = weights.project_weight.shape[0]
        return ("in_channels", in_channels), ("hidden_channels", hidden_channels), ("out_channels", out_channels)
    if isinstance(weights, Conv3x3Weights):
        return ("in_channels", weights.weight.shape[1]), ("out_channels", weights.weight.shape[0])
    if isinstance(weights, HeadWeights):
        return ("in_channels", weights.conv_weight.shape[1]), ("hidden_channels", weights.conv_weight.shape[0])
    if isinstance(weights, StemWeights):
        return (("out_channels", weights.weight.shape[0]),)
    return ()


def aligned(x: Tensor) -> Tensor:
    """``x``, copied where it is a slice that does not start at a multiple of the 16 bytes that the kernels copy."""
    return x if x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.channels_last)


def stage_module(stage: str) -> ModuleType:
    """The module of one stage."""
    return importlib.import_module(f"mobilevit_kernels.native.{stage}")
