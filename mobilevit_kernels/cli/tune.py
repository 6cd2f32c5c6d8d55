"""``tune``: what serves each stage best on the GPU at hand, by measurement, for the CUDA and the Triton kernels."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import torch

import mobilevit_kernels
from mobilevit_kernels import machine, native, registry
from mobilevit_kernels.cli import _common
from mobilevit_kernels.config import CONFIGS
from mobilevit_kernels.native import choices

__all__ = ["tune"]

_STAGES = ("stem", "conv3x3", "inverted_residual", "transformer", "head")
_BACKENDS = ("cuda", "triton")


@dataclass(frozen=True)
class _Wanted:
    """What the user asked for; ``budget`` in seconds, ``output`` None: where the library looks."""

    models: Sequence[str]
    stages: Sequence[str]
    batches: Sequence[int]
    dtypes: Sequence[torch.dtype]
    size: int
    device: torch.device
    output: Path | None
    budget: float | None
    quick: bool
    as_json: bool


@click.command()
@click.option(
    "--model", "models", type=click.Choice(list(CONFIGS)), multiple=True, help="Only these models [default: all three]."
)
@click.option(
    "--backend",
    "backends",
    type=click.Choice(_BACKENDS),
    multiple=True,
    help="Only the kernels of this backend [default: those that can run here].",
)
@click.option("--stage", "stages", type=click.Choice(_STAGES), multiple=True, help="Only these stages [default: all].")
@click.option(
    "--batch", "batches", type=click.IntRange(1, 4096), multiple=True, help="Batch sizes [default: 1 and 256]."
)
@click.option("--size", type=click.IntRange(32, 1024), default=256, show_default=True, help="Image height and width.")
@click.option(
    "--dtype",
    "dtypes",
    type=click.Choice(list(_common.DTYPES)),
    multiple=True,
    help="Compute dtypes; the CUDA kernels have no float32 [default: float16].",
)
@click.option("--quick", is_flag=True, help="Triton: one step from the static configuration, one turn a measurement.")
@click.option(
    "--budget-s", "budget", type=click.FloatRange(min=0), default=None, help="Seconds; what is tuned by then stays."
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="The table's file, with one --backend [default: where the library looks for it, in the cache folder].",
)
@_common.device_option
@_common.json_option
def tune(
    models: tuple[str, ...],
    backends: tuple[str, ...],
    stages: tuple[str, ...],
    batches: tuple[int, ...],
    size: int,
    dtypes: tuple[str, ...],
    quick: bool,
    budget: float | None,
    output: Path | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Measure on this machine's GPU what the library otherwise decides by rules, and write it to a table.

    For the CUDA kernels that is which tile, form or block serves each stage of a network at each batch size, whether a
    3×3 convolution is PyTorch's, and into how many slices a large batch is cut; for the Triton kernels it is their
    launch configurations. The library prefers these tables over its rules; without --output it finds them by itself,
    with --output through MVK_CHOICE_TABLE (cuda) and MVK_LAUNCH_TABLE (triton). Entries of an earlier run for the same
    GPU and versions stay. The files are written as it goes: an interrupted run keeps what it has.
    """
    where = _common.pick_device(device)
    if where.type != "cuda":
        raise click.UsageError("tune needs a CUDA device" + (f", got {device}" if device else ", and there is none"))
    asked = [_common.DTYPES[dtype] for dtype in dtypes] or [torch.float16]
    served = {"cuda": [dtype for dtype in asked if dtype in native.DTYPES], "triton": asked}
    obstacles = {name: reason for name in _BACKENDS if (reason := _obstacle(name))}
    if served["cuda"] != asked and ("cuda" in backends or not served["cuda"]):
        obstacles.setdefault("cuda", "the CUDA kernels have --dtype float16 and bfloat16")
    for name in backends:
        if name in obstacles:
            raise click.UsageError(f"--backend {name}: {obstacles[name]}")
    wanted = [name for name in backends or _BACKENDS if name not in obstacles]
    if not wanted:
        raise click.UsageError("; ".join(f"{name}: {reason}" for name, reason in obstacles.items()))
    if output is not None and len(wanted) > 1:
        raise click.UsageError("--output: each backend has a table of its own; choose one with --backend")
    deadline = None if budget is None else time.monotonic() + budget
    shown = {}
    for name in wanted:
        seconds = None if deadline is None else max(0.0, deadline - time.monotonic())
        given = _Wanted(
            models or tuple(CONFIGS),
            stages,
            batches or (1, 256),
            served[name],
            size,
            where,
            output,
            seconds,
            quick,
            as_json,
        )
        shown[name] = _tune_choices(given) if name == "cuda" else _tune_launches(given)
    if as_json:
        _common.print_json(shown)


def _obstacle(backend: str) -> str | None:
    """Why a backend's kernels cannot be measured here; None: they can."""
    status = registry.backends()[backend]
    return None if status.available and "TRITON_INTERPRET" not in status.reason else status.reason


def _tune_choices(wanted: _Wanted) -> dict[str, object]:
    """Tunes the plans of whole networks for the CUDA kernels."""
    device = wanted.device
    path = wanted.output or choices.default_path(choices.gpu_name(device))
    start = time.monotonic()
    before = choices.kept(path, device)
    found: dict[str, choices.Outcome] = {}
    steps = [(model, batch, dtype) for dtype in wanted.dtypes for model in wanted.models for batch in wanted.batches]
    with choices.without_tables():  # MVK_CHOICE_TABLE may name the very file that is not there yet, or does not fit
        for model, batch, dtype in _common.track(iter(steps), "tuning", total=len(steps)):
            for outcome in _outcomes(model, batch, dtype, wanted.size, device, wanted.stages):
                found[outcome.problem] = outcome
                choices.write(path, _meta(device), list({**before, **found}.values()))
                if wanted.budget is not None and time.monotonic() - start > wanted.budget:
                    break
            else:
                continue
            break
    seconds = time.monotonic() - start
    if not wanted.as_json:
        _common.print_table(
            f"cuda: {len(found)} problems in {seconds:.0f} s, {path}",
            ["problem", "by rule", "µs", "best", "µs", "×", "rejected"],
            [
                (
                    o.problem,
                    o.default,
                    f"{o.us[o.default]:.1f}",
                    "" if o.best == o.default else o.best,
                    f"{o.us[o.best]:.1f}",
                    f"{o.us[o.default] / o.us[o.best]:.2f}",
                    str(len(o.rejected)),
                )
                for o in found.values()
            ],
        )
    return {"path": str(path), "seconds": seconds, "entries": [outcome.to_dict() for outcome in found.values()]}


def _outcomes(
    model: str, batch: int, dtype: torch.dtype, size: int, device: torch.device, stages: Sequence[str]
) -> Iterator[choices.Outcome]:
    """What one network at one batch size gives."""
    fast = mobilevit_kernels.create_model(model, dtype=dtype).to(device)
    fast.configure(dtype=dtype, backend="cuda")  # on a CPU no network may ask for it
    x = torch.zeros(batch, 3, size, size, dtype=dtype, device=device)
    with torch.inference_mode():
        yield from fast.engine.tune(fast, x, stages=stages, pool=True, taps=())


def _meta(device: torch.device) -> dict[str, str]:
    described = machine.describe(device)
    names = {"gpu": choices.gpu_name(device), "version": mobilevit_kernels.__version__}
    return {**names, "torch": described["torch"], "date": described["date"]}


def _tune_launches(wanted: _Wanted) -> dict[str, object]:
    """Tunes the launch configurations of the Triton kernels."""
    from mobilevit_kernels.triton import tune as tuning
    from mobilevit_kernels.triton import tuned

    path = wanted.output or tuned.default_path(tuned.identity(wanted.device)[0])
    plan = tuning.jobs(wanted.models, wanted.stages, wanted.batches, wanted.dtypes, wanted.size)
    start = time.monotonic()
    steps = tuning.tune(plan, wanted.device, path, quick=wanted.quick, budget=wanted.budget)
    outcomes = [outcome for step in _common.track(steps, "tuning", total=len(plan)) for outcome in step]
    seconds = time.monotonic() - start
    if not wanted.as_json:
        _common.print_table(
            f"triton: {len(outcomes)} problems in {seconds:.0f} s, {path}",
            ["problem", "static µs", "tuned µs", "×", "configuration", "tried", "rejected"],
            [
                (
                    str(outcome.problem),
                    f"{outcome.default.us:.1f}",
                    f"{outcome.best.us:.1f}",
                    f"{outcome.speedup:.2f}",
                    str(outcome.best.config),
                    str(len(outcome.candidates)),
                    str(sum(bool(candidate.rejected) for candidate in outcome.candidates)),
                )
                for outcome in outcomes
            ],
        )
    return {"path": str(path), "seconds": seconds, "entries": [outcome.to_dict() for outcome in outcomes]}
