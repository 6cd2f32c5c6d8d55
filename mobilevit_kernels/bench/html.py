"""The HTML report: one file that stands alone, without requests, in light and dark mode."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mobilevit_kernels.bench import plots, tables
from mobilevit_kernels.bench.results import OK, STATUSES, Record, Results
from mobilevit_kernels.cache import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_report"]

CAPTIONS = {
    "throughput": "Throughput by batch against the peers.",
    "image-size": "Cost of an image by its size.",
    "latency": "Latency at batch 1: median, with the range from p20 to p99.",
    "roofline": "Roofline: a point for each case of a stage, ours and the fastest peer. A dash is what that stage can "
    "reach at most, special functions included.",
    "stages": "Where the time goes: the stages of each network at the fastest peer of each, ours, and the floor.",
}


class Cell(NamedTuple):
    """What a cell shows, and the value to sort it by."""

    text: str
    value: float | str


def write_report(results: Results, path: str | Path, *, work: plots.Work, breakdown: plots.Breakdown) -> None:
    """Writes the report of a run, in one step.

    It has the run's meta data and ceilings, the tables, the plots as inline SVG, the method, what was not measured and
    why, and every record in a table that can be sorted. Without matplotlib it says so in the place of the plots.

    Args:
        results: the run.
        path: of the HTML file; its folder is made where it is not there.
        work, breakdown: as :func:`mobilevit_kernels.bench.plots.draw` takes them.
    """
    try:
        drawn = plots.draw(results, work=work, breakdown=breakdown)
        figures = {name: figure if isinstance(figure, str) else _inline(name, figure) for name, figure in drawn.items()}
    except ImportError as error:
        figures = dict.fromkeys(CAPTIONS, f"not drawn: {error}")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("report.html.jinja").render(
        meta=results.meta,
        ceilings=_ceilings(results),
        counts=tables.status_counts(results),
        statuses=STATUSES,
        tables=_tables(results),
        figures=[(name, CAPTIONS[name], figure, isinstance(figure, Markup)) for name, figure in figures.items()],
        left_out=[record for record in results.records if record.status != OK],
        job_name=tables.job_name,
        why=tables.why,
        columns=list(COLUMNS),
        rows=[[cell(record) for cell in COLUMNS.values()] for record in results.records],
    )
    write_text(path, text)


def _tables(results: Results) -> list[tuple[str, tables.Table]]:
    """The tables by their titles, the headline dtype first; those without rows are left out."""
    headline = tables.served_dtype(results)
    others = sorted({record.dtype for record in results.records} - {headline})
    titled = []
    for dtype in [headline, *others]:
        suites = {suite for record in results.select(dtype=dtype) for suite in record.suites}
        if "models" in suites or dtype == headline:
            size = f"{tables.SIZE}×{tables.SIZE}, {dtype}"
            titled.append((f"Networks, images a second, {size}", tables.models_table(results, dtype)))
            titled.append(
                (f"Networks, latency in ms at batch 1, p50 / p99, {size}", tables.latency_table(results, dtype))
            )
        if "neighbours" in suites or dtype == headline:
            title = f"Other networks, images a second in their best mode, {dtype}"
            titled.append((title, tables.neighbours_table(results, dtype)))
        if (stages := tables.stages_table(results, dtype)).rows:
            titled.append((f"Stages, {dtype}", stages))
    return titled


def _ceilings(results: Results) -> list[tuple[str, str]]:
    ceilings = results.meta["ceilings"]

    def rate(value: float | None, scale: float, unit: str) -> str:
        return f"{value / scale:,.1f} {unit}" if value else tables.NOT_MEASURED

    matrix = ceilings.get("matrix_flops") or {}
    return [
        ("copy bandwidth", rate(ceilings.get("bandwidth"), 1e9, "GB/s")),
        *((f"matrix products, {dtype}", rate(value, 1e12, "TFLOP/s")) for dtype, value in matrix.items()),
        *([] if matrix else [("matrix products", tables.NOT_MEASURED)]),
        ("special functions", rate(ceilings.get("special"), 1e9, "G/s")),
    ]


def _inline(name: str, figure: Figure) -> Markup:
    """A figure's SVG as an element of the page: in the page's colours, its ids told apart from other figures'."""
    svg = plots.to_svg(figure)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg)  # HTML knows these elements without
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for colour, variable in ((plots.INK, "currentColor"), (plots.GRID, "var(--line)"), (plots.PAPER, "var(--page)")):
        svg = svg.replace(colour, variable)
    return Markup(svg)  # matplotlib escapes all text in it


def _number(field: str, form: str, *, derived: bool = False) -> Callable[[Record], Cell]:
    """A column of figures.

    Args:
        field: of the record.
        form: format of the figure.
        derived: withheld where the record failed its check against float64.
    """

    def cell(record: Record) -> Cell:
        value = getattr(record, field)
        if derived and record.status == tables.PARITY_FAILED:
            return Cell("withheld", "")
        return Cell("", "") if value is None else Cell(format(value, form), value)

    return cell


def _words(text: Callable[[Record], str]) -> Callable[[Record], Cell]:
    return lambda record: Cell(text(record), text(record))


COLUMNS: dict[str, Callable[[Record], Cell]] = {
    "job": _words(tables.job_name),
    "suites": _words(lambda record: ", ".join(record.suites)),
    "batch": _number("batch", "d"),
    "height": _number("height", "d"),
    "width": _number("width", "d"),
    "dtype": _words(lambda record: record.dtype),
    "implementation": _words(lambda record: record.label),
    "status": _words(lambda record: record.status),
    "median ms": _number("ms", ".4f"),
    "p20 ms": _number("ms_p20", ".4f"),
    "p80 ms": _number("ms_p80", ".4f"),
    "p99 ms": _number("ms_p99", ".4f"),
    "rounds": _number("rounds", "d"),
    "settled": _words(lambda record: {True: "yes", False: "no", None: ""}[record.stable]),
    "images/s": _number("images_per_s", ",.1f", derived=True),
    "× eager": _number("speedup", ".3f", derived=True),
    "floor ms": _number("floor_ms", ".4f"),
    "bound by": _words(lambda record: record.floor_bound or ""),
    "of the floor": _number("floor_fraction", ".1%", derived=True),
    "latency ms": _number("latency_ms", ".4f"),
    "latency p99 ms": _number("latency_ms_p99", ".4f"),
    "host µs": _number("host_us", ".1f"),
    "first call s": _number("first_call_s", ".2f"),
    "peak MB": _number("peak_mb", ".1f"),
    "error": _number("rel_l2_err", ".2e"),
    "stock's error": _number("stock_rel_l2_err", ".2e"),
    "reason": _words(tables.why),
}
