"""The ``triton`` backend: every stage as Triton kernels, on any GPU that Triton serves; needs no compiler.

Without a GPU the kernels run on CPU tensors in Triton's interpreter, where TRITON_INTERPRET=1 was set before triton was
imported: slow, for tests. Importing this package does not import triton; asking for :func:`status` does.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

import torch

from mobilevit_kernels.canonical import AttentionShape, StageWeights
from mobilevit_kernels.registry import Status

__all__ = ["DTYPES", "refusal", "stage_module", "status"]

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def status() -> Status:
    """Available with a CUDA device, or in Triton's interpreter."""
    if importlib.util.find_spec("triton") is None:
        return Status(False, "the package triton is not installed; `pip install triton` gets it on Linux")
    triton = importlib.import_module("triton")
    if importlib.import_module("mobilevit_kernels.triton._device").INTERPRETED:
        return Status(True, f"Triton {triton.__version__}, in its interpreter (TRITON_INTERPRET=1)")
    if torch.cuda.is_available():
        return Status(True, f"Triton {triton.__version__} on {torch.cuda.get_device_name()}")
    return Status(
        False,
        "torch.cuda.is_available() is False, and TRITON_INTERPRET=1, with which kernels run in Triton's interpreter, "
        "was not set before triton was imported",
    )


def refusal(
    stage: str,
    weights: StageWeights | AttentionShape | None,
    dtype: torch.dtype,
    device: torch.device,
    num_heads: int | None = None,
) -> str | None:
    """Why this backend cannot serve a stage: another dtype, or tensors where the kernels cannot run.

    Raises:
        ValueError: ``MVK_LAUNCH_TABLE`` names a launch table that does not fit the device.
    """
    if dtype not in DTYPES:
        return f"it computes in float16, bfloat16 or float32, not in {str(dtype).removeprefix('torch.')}"
    interpreted = importlib.import_module("mobilevit_kernels.triton._device").INTERPRETED
    if device.type != "cuda" and not (device.type == "cpu" and interpreted):
        return f"the tensors are on {device.type}, and its kernels run on CUDA devices"
    importlib.import_module("mobilevit_kernels.triton.tuned").origin(device)
    return None


def stage_module(stage: str) -> ModuleType:
    """The module of one stage."""
    return importlib.import_module(f"mobilevit_kernels.triton.{stage}")
