"""``counters``: exact counts of the CUDA kernels' work on the host simulator, beside each stage's floor."""

from __future__ import annotations

import click

from mobilevit_kernels import counters as counting
from mobilevit_kernels import native, registry
from mobilevit_kernels.cli import _common
from mobilevit_kernels.config import CONFIGS

__all__ = ["counters"]


@click.command()
@click.option(
    "--model",
    "models",
    type=click.Choice(list(CONFIGS)),
    multiple=True,
    help="Only these networks [default: mobilevit_s]. May be given more than once.",
)
@click.option(
    "--stage",
    type=click.Choice([stage for stage in native.STAGES if stage != "unfold_attention_fold"]),
    default=None,
    help="Only this stage [default: all].",
)
@click.option("--size", type=click.IntRange(1, 4096), default=256, show_default=True, help="Image height and width.")
@click.option("--batch", type=click.IntRange(1, 256), default=counting.BATCH, show_default=True, help="Images.")
@click.option(
    "--dtype",
    "dtype_name",
    type=click.Choice(["float16", "bfloat16"]),
    default="float16",
    show_default=True,
    help="Compute dtype.",
)
@_common.json_option
def counters(models: tuple[str, ...], stage: str | None, size: int, batch: int, dtype_name: str, as_json: bool) -> None:
    """Count what the CUDA kernels do, on the host simulator, beside the least that the mathematics needs.

    Each shape once, on a GPU of one multiprocessor; a transformer stage at the least batch that fills a block. Bytes
    are those that device memory sees; re-reads (halos of neighbouring tiles or strips, and the weights by every block)
    come from the L2 cache. "B/mma" is what shared memory moves for a matrix instruction, at 128 bytes a cycle, shuffles
    included. The counts are exact and the same on every machine.
    """
    status = registry.backends()["simt"]
    if not status.available:
        raise registry.BackendUnavailable(f"counters needs the simulator: {status.reason}")
    plan = [
        (f"{model} {path}", case)
        for model in models or ("mobilevit_s",)
        for path, case in counting.cases(model, stage, size, batch)
    ]
    dtype = _common.DTYPES[dtype_name]
    rows = [counting.count(path, case, dtype) for path, case in _common.track(plan, "simulating", total=len(plan))]
    if as_json:
        _common.print_json({"dtype": dtype_name, "size": size, "batch": batch, "rows": [row.to_dict() for row in rows]})
        return
    _common.print_table(
        f"counters of the CUDA kernels, {dtype_name}, {size}×{size}, batch {batch}; × is the ratio to the floor",
        [
            "stage",
            "KB",
            "×",
            "halo KB",
            "weights KB",
            "mma",
            "×",
            "MUFU",
            "×",
            "B/mma",
            "ldmatrix conflicts",
            "other",
            "shared KB",
        ],
        [
            (
                row.path,
                f"{row.bytes / 1024:.0f}",
                f"{row.bytes_waste:.2f}",
                f"{row.reread_bytes / 1024:.0f}",
                f"{row.weight_reread_bytes / 1024:.0f}",
                f"{row.mma:.0f}",
                f"{row.mma_waste:.2f}",
                str(row.mufu),
                f"{row.mufu_waste:.2f}",
                f"{row.shared_bytes_per_mma:.0f}",
                str(row.matrix_conflicts),
                str(row.shared_conflicts),
                f"{row.shared_bytes / 1024:.0f}",
            )
            for row in rows
        ],
    )
