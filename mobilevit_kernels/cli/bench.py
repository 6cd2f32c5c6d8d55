"""``bench``: stock and fused models, timed in turn."""

from __future__ import annotations

import datetime
from typing import Any

import click
import torch

from mobilevit_kernels.cli import _common
from mobilevit_kernels.cli.info import cpu_name, gather
from mobilevit_kernels.config import CONFIGS

__all__ = ["bench", "print_records"]


@click.command()
@click.option(
    "--model", "models", type=click.Choice(list(CONFIGS)), multiple=True, help="Only these models [default: all three]."
)
@click.option("--batch", "batches", type=click.IntRange(1, 4096), multiple=True, help="Batch sizes [default: 1 and 8].")
@click.option("--size", type=click.IntRange(32, 1024), default=256, show_default=True, help="Image height and width.")
@click.option(
    "--rounds", type=click.IntRange(3, 1000), default=15, show_default=True, help="Timed calls of each implementation."
)
@click.option("--threads", type=click.IntRange(1, 1024), default=None, help="CPU threads [default: torch's own].")
@_common.backend_option
@_common.dtype_option
@_common.device_option
@_common.json_option
def bench(
    models: tuple[str, ...],
    batches: tuple[int, ...],
    size: int,
    rounds: int,
    threads: int | None,
    backend: str,
    dtype: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Time timm's models in eager mode against ours.

    The implementations take turns in one process. Ours is checked against float64 first; where the check fails no ratio
    is printed and the exit code is 1. A ratio is the median over the rounds of eager time over this time. Needs timm.
    """
    from mobilevit_kernels.bench import bench_model

    where = _common.pick_device(device)
    compute = _common.DTYPES[dtype] if dtype else torch.float16 if where.type == "cuda" else torch.float32
    if threads is not None:
        torch.set_num_threads(threads)
    jobs = [(name, batch) for name in models or CONFIGS for batch in batches or (1, 8)]
    records: list[dict[str, Any]] = []
    for name, batch in _common.track(jobs, "timing", total=len(jobs)):
        records += bench_model(name, batch, size=size, dtype=compute, device=where, backend=backend, rounds=rounds)
    if as_json:
        versions = gather()["versions"]
        meta = {
            "device": torch.cuda.get_device_name(where) if where.type == "cuda" else cpu_name(),
            "threads": torch.get_num_threads(),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "versions": versions,
        }
        _common.print_json({"meta": meta, "records": records})
    else:
        print_records(f"{where}, {size}×{size}, {rounds} rounds, times in ms", records)
    if not all(record["parity"] for record in records):
        raise SystemExit(1)


def print_records(title: str, records: list[dict[str, Any]]) -> None:
    """Prints records as a table, with each implementation's ratio to stock eager mode."""
    _common.print_table(
        title,
        ["model", "batch", "implementation", "dtype", "median", "p20", "p80", "images/s", "× eager", "error"],
        [
            (
                record["model"],
                str(record["batch"]),
                f"{record['impl']} ({record['backend']})" if record["impl"] == "ours" else record["impl"],
                record["dtype"],
                f"{record['ms']:.2f}",
                f"{record['ms_p20']:.2f}",
                f"{record['ms_p80']:.2f}",
                f"{record['images_per_s']:.1f}",
                "parity failed" if record["ratio"] is None else f"{record['ratio']:.2f}",
                f"{record['rel_l2_err']:.1e}",
            )
            for record in records
        ],
    )
