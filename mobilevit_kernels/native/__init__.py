"""What the ``cuda`` and ``simt`` backends share: the packing and the calls of the kernels in csrc/.

Both backends run the same sources on the same packed weights; they differ in the library that is called, which takes
the name of a launcher, its tensors and its sizes (``launches.Library``).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mobilevit_kernels.canonical import AttentionShape, StageWeights
from mobilevit_kernels.native.launches import Alternatives, Slot, library
from mobilevit_kernels.packed import Packed

__all__ = [
    "DTYPES",
    "STAGES",
    "aligned",
    "alternatives",
    "library",
    "multiples_of_eight",
    "refusal",
    "source_folder",
    "stage_module",
]

DTYPES = (torch.float16, torch.bfloat16)
STAGES = ("conv3x3", "head", "inverted_residual", "stem", "transformer", "unfold_attention_fold")


def source_folder() -> Path | None:
    """csrc/ of this installation or checkout; None where it is not there."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "csrc", package.parent / "csrc"):
        if (folder / "launchers.h").is_file():
            return folder
    return None


def refusal(
    backend: str,
    stage: str,
    weights: StageWeights | AttentionShape | None,
    dtype: torch.dtype,
    device: torch.device,
    num_heads: int | None = None,
) -> str | None:
    """Why the CUDA kernels cannot serve these weights on this device; None: they can."""
    if stage not in STAGES:
        return f"it has no CUDA kernel in this version (CUDA kernels: {', '.join(STAGES)})"
    if dtype not in DTYPES:
        return f"the CUDA kernels compute in float16 and bfloat16, not in {str(dtype).removeprefix('torch.')}"
    if weights is not None:
        options = {"num_heads": num_heads} if stage == "transformer" else {}
        reason: str | None = stage_module(stage).refusal(backend, weights, device, **options)
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


def alternatives(x: Slot, packed: Packed, **options: Any) -> Alternatives:
    """Every way to launch a stage on ``x``, with the options that its ``launches`` takes; the default first."""
    module = stage_module(packed.stage)
    if hasattr(module, "alternatives"):
        found: Alternatives = module.alternatives(x, packed, **options)
        return found
    return {"default": module.launches(x, packed, **options)}
