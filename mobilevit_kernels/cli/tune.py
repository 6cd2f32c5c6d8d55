"""``tune``: launch configurations of the Triton kernels, measured on the GPU at hand."""

from __future__ import annotations

import time
from pathlib import Path

import click
import torch

from mobilevit_kernels import registry
from mobilevit_kernels.cli import _common
from mobilevit_kernels.config import CONFIGS

__all__ = ["tune"]

_STAGES = ("stem", "conv3x3", "inverted_residual", "transformer", "head")


@click.command()
@click.option(
    "--model", "models", type=click.Choice(list(CONFIGS)), multiple=True, help="Only these models [default: all three]."
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
    help="Compute dtypes [default: float16].",
)
@click.option("--quick", is_flag=True, help="One step from the static configuration, one turn a measurement.")
@click.option("--budget", type=click.FloatRange(min=0), default=None, help="Seconds; what is tuned by then stays.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="The table's file [default: where the library looks for it, in the cache folder].",
)
@_common.device_option
@_common.json_option
def tune(
    models: tuple[str, ...],
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
    """Measure launch configurations of the Triton kernels on this machine's GPU, and write them to a table.

    The library prefers that table over its static one; without --output it finds it by itself, with --output through
    MVK_LAUNCH_TABLE. Entries of an earlier run for the same GPU and Triton stay. The file is written as it goes: an
    interrupted run keeps what it has.
    """
    where = _common.pick_device(device)
    if where.type != "cuda":
        raise click.UsageError("tune needs a CUDA device" + (f", got {device}" if device else ", and there is none"))
    status = registry.backends()["triton"]
    if not status.available or "TRITON_INTERPRET" in status.reason:
        raise click.UsageError(f"tune needs Triton on a GPU: {status.reason}")
    from mobilevit_kernels.triton import tune as tuning
    from mobilevit_kernels.triton import tuned

    path = tuned.default_path(tuned.identity(where)[0]) if output is None else output
    plan = tuning.jobs(
        models or tuple(CONFIGS),
        stages,
        batches or (1, 256),
        [_common.DTYPES[name] for name in dtypes] or [torch.float16],
        size,
    )
    start = time.monotonic()
    steps = tuning.tune(plan, where, path, quick=quick, budget=budget)
    outcomes = [outcome for step in _common.track(steps, "tuning", total=len(plan)) for outcome in step]
    seconds = time.monotonic() - start
    if as_json:
        entries = [outcome.to_dict() for outcome in outcomes]
        _common.print_json({"path": str(path), "seconds": seconds, "entries": entries})
        return
    _common.print_table(
        f"{len(outcomes)} problems in {seconds:.0f} s, {path}",
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
