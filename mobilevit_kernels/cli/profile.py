"""``profile``: the kernels of a stage or network, with their times or hardware counters."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from mobilevit_kernels.bench import profile as profiling
from mobilevit_kernels.bench.profile import Target
from mobilevit_kernels.cli import _common

__all__ = ["profile"]

STAGES = tuple(dict.fromkeys(profiling.stage_paths("mobilevit_s").values()))
NAME_WIDTH = 80  # of a kernel's name in a table; --json has it whole


@click.command()
@click.option(
    "--stage",
    type=click.Choice(STAGES),
    default=None,
    help="The first stage of this name in the network [default: the whole network].",
)
@click.option("--path", default=None, help="A stage by its dotted name, e.g. layers.2.1.transformer.")
@_common.model_option
@click.option(
    "--batch", type=click.IntRange(1, 4096), default=None, help="Images a batch [default: 32 on a GPU, 1 elsewhere]."
)
@click.option("--size", type=click.IntRange(32, 1024), default=256, show_default=True, help="Image height and width.")
@click.option("--calls", type=click.IntRange(1, 1000), default=10, show_default=True, help="Calls in the trace.")
@click.option("--output", type=click.Path(dir_okay=False), default=None, help="File for a trace, as Perfetto shows it.")
@click.option("--ncu", "with_ncu", is_flag=True, help="ncu's key counters of every launch of one call.")
@_common.backend_option
@_common.dtype_option
@_common.device_option
@_common.json_option
def profile(
    stage: str | None,
    path: str | None,
    model: str,
    batch: int | None,
    size: int,
    calls: int,
    output: str | None,
    with_ncu: bool,
    backend: str,
    dtype: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Show the kernels of a stage or of a whole network: calls, time, share.

    Weights are random. On a CPU, operators and their own time. With --ncu, hardware counters instead; exits 2 where ncu
    is missing, 1 where it cannot read counters.
    """
    where = _common.pick_device(device)
    on_gpu = where.type == "cuda"
    if with_ncu and not on_gpu:
        raise click.UsageError(f"--ncu: expected a GPU, got {where}")
    if with_ncu and output is not None:
        raise click.UsageError("--output: --ncu writes no trace")
    if output is not None and not Path(output).resolve().parent.is_dir():
        raise click.UsageError(f"--output: {Path(output).resolve().parent} is no folder")
    target = Target(
        model=model,
        path=_find_path(model, stage, path),
        batch=batch or (32 if on_gpu else 1),
        size=size,
        dtype=dtype or ("float16" if on_gpu else "float32"),
        backend=backend,
        device=str(where),
    )
    title = f"{model} {target.path or 'whole network'}: {target.case()}, {target.dtype} on {where}"
    if with_ncu:
        _show_counters(target, title, as_json)
        return
    call, served_by = profiling.prepare(target)
    kernels = profiling.trace(call, where, calls, output)
    if as_json:
        described = {**dataclasses.asdict(target), "served_by": served_by, "calls": calls}
        _common.print_json({"target": described, "kernels": [dataclasses.asdict(kernel) for kernel in kernels]})
        return
    total = sum(kernel.total_us for kernel in kernels)
    noun = "kernel" if on_gpu else "operator"
    click.echo(f"{title}, {served_by}: {total:,.1f} µs in {noun}s, mean of {calls} calls")
    _common.print_table(
        "",
        [noun, "calls", "total µs", "mean µs", "share"],
        [
            (
                kernel.name[:NAME_WIDTH],
                f"{kernel.calls:g}",
                f"{kernel.total_us:.1f}",
                f"{kernel.mean_us:.1f}",
                f"{kernel.share:.1%}",
            )
            for kernel in kernels
        ],
    )
    if output is not None:
        click.echo(f"trace: {output}")


def _find_path(model: str, stage: str | None, path: str | None) -> str | None:
    """The dotted name of the stage asked for; None: the whole network."""
    paths = profiling.stage_paths(model)
    wanted = [name for name, its_stage in paths.items() if stage in (None, its_stage)]
    if path is not None and path not in wanted:
        of_stage = f" with stage {stage}" if stage else ""
        raise click.UsageError(f"--path: expected one of {model}{of_stage}: {', '.join(wanted)}; got {path}")
    return path or (wanted[0] if stage else None)


def _show_counters(target: Target, title: str, as_json: bool) -> None:
    ncu = profiling.find_ncu()
    if ncu is None:
        raise click.UsageError("--ncu: no ncu on the PATH, in /usr/local/cuda or in /opt/nvidia/nsight-compute")
    try:
        launches = profiling.count(target, ncu)
    except profiling.NcuError as error:
        click.echo(" ".join(str(error).split()), err=True)
        raise SystemExit(1) from None
    if as_json:
        rows = [
            {
                **dataclasses.asdict(launch),
                "values": {
                    column: {"metric": profiling.COUNTERS[column], "value": value, "unit": unit}
                    for column, (value, unit) in launch.values.items()
                },
            }
            for launch in launches
        ]
        _common.print_json({"target": dataclasses.asdict(target), "launches": rows})
        return
    click.echo(f"{title}: {len(launches)} launches, caches flushed before each")
    _common.print_table(
        "",
        ["kernel", "grid", "block", *profiling.COUNTERS],
        [
            (
                launch.kernel[: NAME_WIDTH // 2],
                launch.grid,
                launch.block,
                *(_readable(*launch.values[c]) if c in launch.values else "" for c in profiling.COUNTERS),
            )
            for launch in launches
        ],
    )


def _readable(value: float, unit: str) -> str:
    """A counter with its unit, in µs and MB where it is a time or a size."""
    if unit in ("ns", "nsecond"):
        return f"{value / 1e3:,.1f} µs"
    if unit == "byte":
        return f"{value / 1e6:,.2f} MB"
    return f"{value:,.1f} %" if unit == "%" else f"{value:,.0f}"
