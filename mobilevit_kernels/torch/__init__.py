"""The ``torch`` backend: every stage in plain PyTorch on folded weights, NHWC in memory; runs anywhere.

It is the reference that the kernel backends are compared with in speed, the fallback that ``"auto"`` records, and what
runs on a CPU. Under torch.compile it is transparent: inductor sees the PyTorch ops.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

from mobilevit_kernels.canonical import StageWeights
from mobilevit_kernels.registry import Status

__all__ = ["refusal", "stage_module", "status"]


def status() -> Status:
    """Always available."""
    return Status(True, f"PyTorch {torch.__version__}")


def refusal(
    stage: str,
    weights: StageWeights | None,
    dtype: torch.dtype,
    device: torch.device,
    num_heads: int | None = None,
) -> str | None:
    """None: this backend serves every stage, dtype and device."""
    return None


def stage_module(stage: str) -> ModuleType:
    """The module of one stage."""
    return importlib.import_module(f"mobilevit_kernels.torch.{stage}")
