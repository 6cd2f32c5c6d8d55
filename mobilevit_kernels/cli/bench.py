"""``bench``: the benchmark suite, and what is made of its result files."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
import torch

from mobilevit_kernels.bench import results, suite
from mobilevit_kernels.bench.results import Record, Results
from mobilevit_kernels.cli import _common
from mobilevit_kernels.cli.profile import profile
from mobilevit_kernels.config import CONFIGS
from mobilevit_kernels.registry import BACKENDS

__all__ = ["bench"]

RESULTS = "benchmarks/results"


@click.group(invoke_without_command=True)
@click.option("--quick", is_flag=True, help="Only the few jobs that say most, in order of worth.")
@click.option(
    "--suite", "suites", type=click.Choice(suite.SUITES), multiple=True, help="Only these parts of the suite."
)
@click.option(
    "--model",
    "models",
    type=click.Choice([*CONFIGS, *suite.NEIGHBOURS]),
    multiple=True,
    help="Only these networks, and their stages.",
)
@click.option("--stage", "stages", type=click.Choice(suite.STAGES), multiple=True, help="Only these stages.")
@click.option("--batch", "batches", type=click.IntRange(1, 4096), multiple=True, help="Batch sizes.")
@click.option("--size", "sizes", type=click.IntRange(32, 1024), multiple=True, help="Image height and width.")
@click.option("--dtype", "dtypes", type=click.Choice(list(_common.DTYPES)), multiple=True, help="Compute dtypes.")
@click.option("--impl", "impls", type=click.Choice(suite.IMPLS), multiple=True, help="Only these implementations.")
@click.option(
    "--backend", "backends", type=click.Choice(["auto", *BACKENDS]), multiple=True, help="Backends of `ours`."
)
@click.option("--only", multiple=True, help="Only jobs whose id matches a pattern such as 'model/*/b256/*'.")
@click.option("--rounds", type=click.IntRange(3, 10000), help="Timed calls of each [default: a second's worth].")
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads [default: torch's own].")
@click.option("--budget-s", type=click.FloatRange(min=1), help="Stop after so many seconds; the rest is left out.")
@click.option(
    "--prepare-s",
    type=click.FloatRange(min=1),
    default=900,
    show_default=True,
    help="Limit for building and compiling one implementation.",
)
@click.option(
    "--side-by-side",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Prepare so many jobs at once, each in a process of its own; all are timed alone.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"Result file [default: {RESULTS}/<gpu>/<date>-<commit>.json].",
)
@click.option("--resume", is_flag=True, help="Go on with the result file: jobs that it has are not run again.")
@click.option("--list", "as_list", is_flag=True, help="Print the jobs and run none.")
@_common.device_option
@_common.json_option
@click.pass_context
def bench(
    context: click.Context,
    /,
    quick: bool,
    rounds: int | None,
    threads: int | None,
    budget_s: float | None,
    prepare_s: float,
    side_by_side: int,
    output: Path | None,
    resume: bool,
    as_list: bool,
    device: str | None,
    as_json: bool,
    dtypes: tuple[str, ...],
    **chosen: tuple[Any, ...],
) -> None:
    """Time stock PyTorch, its compilers and ours on every stage and network.

    All implementations of a job take turns in one process. Each result is checked against float64 first; where that
    fails no speed-up is printed and the exit code is 1. Without a GPU the part of the suite that a CPU can do is run.
    Needs timm. Without a command, the suite is run.
    """
    if context.invoked_subcommand is not None:
        return
    where = _common.pick_device(device)
    choice = suite.Choice(quick=quick, dtypes=tuple(_common.DTYPES[name] for name in dtypes), **chosen)
    plan = suite.plan(where, choice)
    if as_list:
        for job in plan.jobs:
            click.echo(f"{job.id}  {', '.join(map(str, job.variants))}")
        return
    if threads is not None:
        torch.set_num_threads(threads)

    from mobilevit_kernels.bench import runner

    limits = runner.Limits(budget_s, prepare_s, target_s=0.3 if quick else 1.0, rounds=rounds)
    signal.signal(signal.SIGTERM, _stop)  # so that what runs on exit runs
    with _common.console(stderr=True).status("") as status:
        content, path = runner.run(
            plan,
            where,
            output,
            limits=limits,
            resume=resume,
            side_by_side=side_by_side,
            progress=status.update,
            finished=_log,
        )
    if as_json:
        _common.print_json({"meta": content.meta, "records": [record.to_dict() for record in content.records]})
    else:
        _print(content, path)
    if any(record.status == "parity failed" for record in content.records):
        raise SystemExit(1)


def _stop(*_: object) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)


def _log(records: Sequence[Record]) -> None:
    """A line a record on stderr, where it goes into a log: a run can take hours."""
    for record in records:
        outcome = f"{record.ms:.4f} ms" if record.ms is not None else f"{record.status}: {record.reason}"
        click.echo(f"{record.job}  {record.label}: {outcome}", err=True)


def _print(content: Results, path: Path) -> None:
    from mobilevit_kernels.bench import tables

    _common.print_table(f"{content.meta['device']}, {content.meta['date'][:10]}", *tables.summary(content))
    for sentence in content.meta["left_out"]:
        click.echo(f"left out: {sentence}")
    click.echo(f"\nwritten: {path}")


_file = click.Path(dir_okay=False, path_type=Path)


def _newest_or(path: Path | None) -> tuple[Path, Results]:
    if path is not None:
        return path, results.load(path)
    found = results.newest(RESULTS)
    if not found:
        raise ValueError(f"no result file is under {RESULTS}: run `bench` first, or name a file")
    return next(iter(found.values()))


def _for_plots(content: Results) -> dict[str, Any]:
    """Counts by job, and the stages of each network at the largest batch that they were measured with."""
    from mobilevit_kernels.bench import tables

    dtype = tables.served_dtype(content)
    batch = max((record.batch for record in content.select(dtype=dtype) if record.stage), default=1)
    return {
        "work": {r.job: (r.flops, r.bytes) for r in content.records if r.flops is not None},
        "breakdown": {name: suite.breakdown(name, batch, getattr(torch, dtype)) for name in CONFIGS},
    }


@bench.command()
@click.argument("before", type=_file)
@click.argument("after", type=_file)
@_common.json_option
def compare(before: Path, after: Path, as_json: bool) -> None:
    """Compare two result files: what got faster, what slower, by how much."""
    from mobilevit_kernels.bench import tables

    old, new = results.load(before), results.load(after)
    if as_json:
        rows = [
            {
                "job": record.job,
                "implementation": record.label,
                "before_ms": change.before.ms if change.before else None,
                "after_ms": change.after.ms if change.after else None,
                "ratio": change.ratio,
                "verdict": change.verdict,
            }
            for change in results.compare(old, new)
            if (record := change.after or change.before)
        ]
        _common.print_json(rows)
        return
    head, table = tables.comparison(old, new)
    click.echo(head + "\n")
    _common.print_table("", *table)


@bench.command()
@click.argument("file", type=_file, required=False)
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), default="plots", show_default=True)
def plot(file: Path | None, output: Path) -> None:
    """Draw the plots of a result file (default: the newest GPU's) as PNG and SVG."""
    from mobilevit_kernels.bench import plots

    _, content = _newest_or(file)
    for name, drawn in plots.draw_all(content, output, **_for_plots(content)).items():
        if isinstance(drawn, str):
            click.echo(f"{name}: left out: {drawn}")
        else:
            click.echo(f"{name}: {', '.join(map(str, drawn))}")


@bench.command()
@click.argument("file", type=_file, required=False)
@click.option("--output", type=_file, default="report.html", show_default=True)
def report(file: Path | None, output: Path) -> None:
    """Write an HTML report of a result file (default: the newest GPU's) that stands alone."""
    from mobilevit_kernels.bench import html

    _, content = _newest_or(file)
    html.write_report(content, output, **_for_plots(content))
    click.echo(f"written: {output}")


@bench.command()
@click.option("--check", is_flag=True, help="Change nothing; exit code 1 where the README is out of step.")
@click.option("--path", type=_file, default="README.md", show_default=True)
def readme(check: bool, path: Path) -> None:
    """Generate the README's tables from the newest result file of each GPU."""
    from mobilevit_kernels.bench import tables

    differed = tables.update_readme(path, tables.readme_section(results.newest(RESULTS)), check=check)
    click.echo(f"{path}: {('out of step' if check else 'updated') if differed else 'in step'}")
    if check and differed:
        raise SystemExit(1)


bench.add_command(profile)
