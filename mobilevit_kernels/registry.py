"""Which backends there are, whether they can run here, and which one serves a stage.

A backend is a package or module with

* ``status() -> Status``: can it run on this machine at all;
* ``refusal(stage, weights, dtype, device, num_heads) -> str | None``: why it cannot serve these weights (None: it can);
  ``num_heads`` is that of a transformer stage, None where it is not known;
* ``stage_module(stage)``: the module of one stage, with

  - ``pack(weights, dtype, device) -> tuple of tensors``, a pure function,
  - ``run(x, …, packed, *, <the op's options>) -> Tensor``: x is checked, in the packed dtype (the stem: as the user
    gave it), NHWC in memory, with at least one image in the batch; the result is NHWC in memory too,
  - ``variant(packed) -> str``: the kernel variants that ``run`` chooses among, with the boundaries between them.

Nothing falls back in silence: an explicit backend that cannot serve raises with its reason, "auto" records the
reason of its choice.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

import torch

from mobilevit_kernels.canonical import AttentionShape, StageWeights

__all__ = ["BACKENDS", "BackendUnavailable", "Choice", "Status", "backends", "check_name", "choose", "load"]

BACKENDS = ("cuda", "triton", "torch", "simt")


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot serve; the message says why."""


@dataclass(frozen=True)
class Status:
    """Whether a backend can run on this machine.

    Attributes:
        available: True where it can.
        reason: what makes it available, or what is missing and how to get it.
    """

    available: bool
    reason: str


@dataclass(frozen=True)
class Choice:
    """The backend chosen for a stage and why."""

    backend: str
    reason: str


def load(name: str) -> ModuleType:
    """The module of the backend ``name``; imported on first use, so that triton costs nothing where it isn't used."""
    return importlib.import_module(f"mobilevit_kernels.{name}")


def backends() -> dict[str, Status]:
    """Every backend with its status on this machine.

    Returns:
        ``{"cuda": Status(available, reason), "triton": …, "torch": …, "simt": …}``
    """
    return {name: load(name).status() for name in BACKENDS}


def check_name(backend: str) -> str:
    """Returns ``backend``, or raises ValueError where it is neither "auto" nor a backend's name."""
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(f"backend: expected 'auto' or one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    return backend


def _obstacle(
    name: str,
    stage: str,
    weights: StageWeights | AttentionShape | None,
    dtype: torch.dtype,
    device: torch.device,
    num_heads: int | None,
) -> str | None:
    module = load(name)
    status: Status = module.status()
    if not status.available:
        return status.reason
    reason: str | None = module.refusal(stage, weights, dtype, device, num_heads)
    return reason


def choose(
    backend: str,
    stage: str,
    weights: StageWeights | AttentionShape | None,
    dtype: torch.dtype,
    device: torch.device,
    num_heads: int | None = None,
) -> Choice:
    """Picks the backend for a stage; ``num_heads`` is that of a transformer stage, where it is known.

    "auto" on a GPU takes the first of cuda, triton, torch that can serve; elsewhere torch.

    Raises:
        ValueError: unknown backend name.
        BackendUnavailable: ``backend`` was named and cannot serve this stage here.
    """
    check_name(backend)
    if backend != "auto":
        obstacle = _obstacle(backend, stage, weights, dtype, device, num_heads)
        if obstacle is not None:
            raise BackendUnavailable(f"backend={backend!r} cannot serve {stage}: {obstacle}")
        return Choice(backend, "asked for")
    if device.type != "cuda":
        return Choice("torch", f"the weights are on {device.type}")
    passed_over: list[str] = []
    for name in ("cuda", "triton"):
        obstacle = _obstacle(name, stage, weights, dtype, device, num_heads)
        if obstacle is None:
            return Choice(name, "; ".join(passed_over) or "first choice on a GPU")
        passed_over.append(f"{name}: {obstacle}")
    return Choice("torch", "; ".join(passed_over))
