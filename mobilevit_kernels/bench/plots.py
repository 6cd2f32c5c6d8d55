"""Results as figures. Only what was measured and passed its check is drawn; a line below each figure names the rest.

A figure whose records are missing is a sentence that says so. matplotlib is imported when something is drawn.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilevit_kernels.bench.results import OK, Record, Results
from mobilevit_kernels.bench.tables import SIZE, fastest, job_name, milliseconds, served_dtype

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "GRID",
    "INK",
    "PAPER",
    "Breakdown",
    "Work",
    "draw",
    "draw_all",
    "to_svg",
]

Work = Mapping[str, tuple[float, float]]
"""Job → (floating-point operations, bytes)."""

Breakdown = Mapping[str, Sequence[tuple[str, str, str]]]
"""Model → (path in the model, stage, job of its case): a case that occurs twice is there twice."""

INK, GRID, PAPER = "#1b1f24", "#d5d9de", "#ffffff"

# Okabe and Ito's colours, and Tol's where those run out: told apart with any colour vision.
COLOURS = {
    "eager": "#8c8c8c",
    "eager-channels_last": "#56b4e9",
    "compile-default": "#e69f00",
    "compile-reduce-overhead": "#cc79a7",
    "compile-max-autotune": "#d55e00",
    "tensorrt": "#882255",
    "ours (torch)": "#6a4fb3",
    "ours (triton)": "#009e73",
    "ours (cuda)": "#0072b2",
}
MARKERS = dict(zip(COLOURS, "osv^DP<H*", strict=True))
STAGES = {
    "stem": ("#56b4e9", "v"),
    "inverted_residual": ("#0072b2", "o"),
    "conv3x3": ("#e69f00", "s"),
    "transformer": ("#d55e00", "D"),
    "unfold_attention_fold": ("#cc79a7", "P"),
    "head": ("#009e73", "^"),
}
OTHER = (INK, "X")

LEGEND_LINE_INCHES, CHARACTERS_PER_INCH = 0.21, 15  # at the font sizes below
MAX_TICK_LABELS = 6

RC = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.facecolor": PAPER,
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "mobilevit_kernels",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


def _throughput(results: Results) -> Figure | str:
    """Images a second over the batch, a panel a model: suites ``models`` and ``batch-sweep`` at 256×256."""
    records = _in_suites(results, {"models", "batch-sweep"}, lambda r: (r.height, r.width) == (SIZE, SIZE))
    drawn = _drawable(records, f"networks at {SIZE}×{SIZE}")
    if isinstance(drawn, str):
        return drawn
    figure, axes = _panels(drawn, lambda r: str(r.model))
    for panel, (_, group) in zip(axes, _grouped(drawn, lambda r: str(r.model)), strict=True):
        tried = [record for record in records if record.model == group[0].model]
        _lines(panel, tried, lambda r: r.batch, lambda r: r.batch / _ms(r) * 1e3)
        panel.set_xscale("log", base=2)
        _ticks(panel, {record.batch for record in group})
        _log_y(panel)
        panel.set_xlabel("batch")
    axes[0].set_ylabel("images/s")
    return _finished(figure, axes, results, f"Throughput by batch, {SIZE}×{SIZE}, {drawn[0].dtype}", _missing(records))


def _image_size(results: Results) -> Figure | str:
    """Milliseconds an image over the image's size, a panel a model and batch: the suite ``size-sweep``."""
    records = _in_suites(results, {"size-sweep"})
    drawn = _drawable(records, "networks over the image size (suite size-sweep)")
    if isinstance(drawn, str):
        return drawn

    def panel_of(record: Record) -> str:
        return f"{record.model}, batch {record.batch}"

    figure, axes = _panels(drawn, panel_of)
    for panel, (name, group) in zip(axes, _grouped(drawn, panel_of), strict=True):
        tried = [record for record in records if panel_of(record) == name]
        _lines(panel, tried, lambda r: r.height, lambda r: _ms(r) / r.batch)
        _ticks(panel, {record.height for record in group})
        _log_y(panel)
        panel.set_xlabel("height and width, pixels")
    axes[0].set_ylabel("ms per image")
    return _finished(figure, axes, results, f"Cost by image size, {drawn[0].dtype}", _missing(records))


def _latency(results: Results) -> Figure | str:
    """Latency of single calls at batch 1 with its p20…p99 range, a panel a model: the suite ``models`` at 256×256."""
    records = _in_suites(results, {"models"}, lambda r: r.batch == 1 and (r.height, r.width) == (SIZE, SIZE))
    drawn = _drawable(records, f"networks at batch 1 and {SIZE}×{SIZE}")
    if isinstance(drawn, str):
        return drawn
    order = sorted({record.label: record for record in drawn}.values(), key=_rank, reverse=True)
    rows = {record.label: i for i, record in enumerate(order)}
    figure, axes = _panels(drawn, lambda r: str(r.model), height=1.2 + 0.28 * len(rows))
    for panel, (_, group) in zip(axes, _grouped(drawn, lambda r: str(r.model)), strict=True):
        for record in group:
            middle = record.latency_ms or _ms(record)
            low, high = record.latency_ms_p20 or middle, record.latency_ms_p99 or middle
            look = _look(record) | {"linestyle": "none", "capsize": 3}
            panel.errorbar([middle], [rows[record.label]], xerr=[[middle - low], [high - middle]], **look)
            panel.annotate(
                milliseconds(middle), (high, rows[record.label]), (4, 0), textcoords="offset points", va="center"
            )
        panel.set_xlim(0, 1.25 * max(record.latency_ms_p99 or record.latency_ms or _ms(record) for record in group))
        panel.set_yticks(list(rows.values()), list(rows) if panel is axes[0] else [""] * len(rows))
        panel.set_ylim(-0.6, len(rows) - 0.4)
        panel.set_xlabel("ms: median, p20 to p99")
    title = f"Latency at batch 1, {SIZE}×{SIZE}, {drawn[0].dtype}"
    return _finished(figure, axes, results, title, _missing(records), legend=False)


def _roofline(results: Results, *, work: Work) -> Figure | str:
    """Achieved TFLOP/s over operations per byte, ours and the fastest peer, a point a stage's case.

    The roofs are the run's ceilings. A dash above a point is what the stage can reach at most, special functions
    included. The batch is the one with the most cases, the largest of those.
    """
    records = _in_suites(results, {"stages"})
    drawn = _drawable(records, "stages")
    if isinstance(drawn, str):
        return drawn
    dtype = drawn[0].dtype
    bandwidth = results.meta["ceilings"].get("bandwidth")
    matrix = (results.meta["ceilings"].get("matrix_flops") or {}).get(dtype)
    if not (bandwidth and matrix):
        lacking = ["the bandwidth"] * (not bandwidth) + [f"{dtype} matrix products"] * (not matrix)
        return f"not drawn: no ceiling was measured of {' and '.join(lacking)}"
    batch = _widest_batch(drawn)
    records = [record for record in records if record.batch == batch]
    unknown = sorted({record.job for record in records} - work.keys())
    jobs = [group for job, group in _grouped(records, lambda r: r.job) if job in work]
    if not any(fastest(group) for group in jobs):
        return f"not drawn: no operations and bytes are known of the stages at batch {batch}"
    figure, axes = _axes(1, 7.6, 5.2)
    panel = axes[0]
    intensities = []
    for group in jobs:
        flops, moved = work[group[0].job]
        colour, marker = STAGES.get(str(group[0].stage), OTHER)
        floor = _floor(group)
        for record in filter(None, (fastest(_peers(group)), fastest(_ours(group)))):
            own = record.impl == "ours"
            panel.plot(
                [flops / moved],
                [flops / _ms(record) / 1e9],
                marker=marker,
                color=colour,
                markersize=7 if own else 5,
                markerfacecolor=colour if own else "none",
                linestyle="none",
                label=record.stage,
            )
            intensities.append(flops / moved)
        if floor and fastest(group):
            panel.plot([flops / moved], [flops / floor / 1e9], "_", color=INK)
    span = [min(*intensities, matrix / bandwidth) / 2, max(*intensities, matrix / bandwidth) * 2]
    panel.plot(
        [span[0], matrix / bandwidth, span[1]],
        [span[0] * bandwidth / 1e12, matrix / 1e12, matrix / 1e12],
        color=INK,
        linewidth=1.2,
        label=f"roofs: {bandwidth / 1e9:,.0f} GB/s, {matrix / 1e12:,.1f} TFLOP/s",
    )
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("operations per byte")
    panel.set_ylabel("TFLOP/s (filled: ours, hollow: fastest peer)")
    notes = _missing(records)
    if unknown:
        notes.append(f"{len(unknown)} jobs whose operations and bytes are not known")
    return _finished(figure, axes, results, f"Roofline of the stages, batch {batch}, {dtype}", notes)


def _stages(results: Results, *, breakdown: Breakdown) -> Figure | str:
    """Where the time of each network goes: its stages stacked, for the fastest peers, ours and the floor.

    A bar is drawn only where every one of its stages was measured: a sum that lacks some would look fast.
    """
    jobs: dict[str, list[Record]] = {}
    for record in results.records:
        jobs.setdefault(record.job, []).append(record)
    wanted = dict.fromkeys(job for parts in breakdown.values() for *_, job in parts)
    named = [record for job in wanted for record in jobs.get(job, [])]
    bars: dict[str, Callable[[list[Record]], float | None]] = {
        "fastest peers": lambda group: _time(fastest(_peers(group))),
        "ours": lambda group: _time(fastest(_ours(group))),
        "floor": _floor,
    }
    times = {
        (model, bar): [time(jobs.get(job, [])) for *_, job in parts]
        for model, parts in breakdown.items()
        for bar, time in bars.items()
    }
    if not any(heights and None not in heights for heights in times.values()):
        return "not drawn: no network has a time for each of its stages"
    figure, axes = _axes(len(breakdown), 3.2 * len(breakdown) + 0.6, 4.4)
    notes = []
    for panel, (model, parts) in zip(axes, breakdown.items(), strict=True):
        panel.set_title(model)
        for x, bar in enumerate(bars):
            known = [height for height in times[model, bar] if height is not None]
            if not parts or len(known) < len(parts):
                notes.append(f"{model}, {bar}: no time for {len(parts) - len(known)} of {len(parts)} stages")
                panel.annotate("no time\nfor each stage", (x, 0), (0, 4), textcoords="offset points", ha="center")
                continue
            bottom = 0.0
            for height, (_, stage, _) in zip(known, parts, strict=True):
                colour = STAGES.get(stage, OTHER)[0]
                panel.bar(x, height, 0.7, bottom, color=colour, edgecolor=PAPER, linewidth=0.4, label=stage)
                bottom += height
            panel.annotate(
                milliseconds(bottom), (x, bottom), (0, 2), textcoords="offset points", ha="center", va="bottom"
            )
        panel.set_xticks(range(len(bars)), list(bars))
        panel.set_xlim(-0.6, len(bars) - 0.4)
        panel.margins(y=0.1)
        panel.grid(False, axis="x")
    axes[0].set_ylabel("ms, sum of the stages' medians")
    cases = ", ".join(dict.fromkeys(f"batch {record.batch}, {record.dtype}" for record in named))
    return _finished(figure, axes, results, f"Where the time goes, {cases}", [*notes, *_missing(named)])


def draw(results: Results, *, work: Work, breakdown: Breakdown) -> dict[str, Figure | str]:
    """All figures by name: ``throughput``, ``image-size``, ``latency``, ``roofline``, ``stages``.

    Args:
        work: what each stage's job does, for the roofline; a job that is not in it has no point.
        breakdown: the stages of each network, for the bars of where the time goes.

    Returns:
        Name → matplotlib's Figure, or a sentence on what there is nothing of to draw.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'mobilevit-kernels[bench]'") from error
    with rc_context(RC):
        return {
            "throughput": _throughput(results),
            "image-size": _image_size(results),
            "latency": _latency(results),
            "roofline": _roofline(results, work=work),
            "stages": _stages(results, breakdown=breakdown),
        }


def draw_all(results: Results, folder: str | Path, *, work: Work, breakdown: Breakdown) -> dict[str, list[Path] | str]:
    """Writes each figure to ``<folder>/<name>.png`` and ``.svg``.

    Args:
        folder: made where it is not there.
        work, breakdown: as :func:`draw` takes them.

    Returns:
        Name → the two files, or why there are none.

    Raises:
        ImportError: matplotlib is not installed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[str, list[Path] | str] = {}
    for name, figure in draw(results, work=work, breakdown=breakdown).items():
        if isinstance(figure, str):
            written[name] = figure
            continue
        png, svg = folder / f"{name}.png", folder / f"{name}.svg"
        figure.savefig(png, dpi=150, bbox_inches="tight")
        svg.write_text(to_svg(figure), encoding="utf-8")
        written[name] = [png, svg]
    return written


def to_svg(figure: Figure) -> str:
    """A figure as SVG, with its text as text; the same figure gives the same file."""
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context(RC):
        figure.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None})
    return file.getvalue()


def _in_suites(results: Results, suites: set[str], wanted: Callable[[Record], bool] = lambda _: True) -> list[Record]:
    """The records of the suites in one dtype: the device's headline dtype, or the first where it is not there."""
    records = [record for record in results.records if suites & set(record.suites) and wanted(record)]
    dtypes = [record.dtype for record in records if record.status == OK]
    dtype = served_dtype(results) if served_dtype(results) in dtypes or not dtypes else dtypes[0]
    return [record for record in records if record.dtype == dtype]


def _drawable(records: list[Record], what: str) -> list[Record] | str:
    """The records that were measured and passed, or the sentence that there are none."""
    if drawn := [record for record in records if record.status == OK]:
        return drawn
    if not records:
        return f"not drawn: the file has no records of {what}"
    counts = Counter(record.status for record in records)
    states = ", ".join(f"{count} {status}" for status, count in counts.items())
    return f"not drawn: nothing was measured of {what} ({states})"


def _missing(records: Iterable[Record]) -> list[str]:
    """What is not drawn of ``records``, a phrase an implementation and status."""
    counts: dict[tuple[str, str], list[str]] = {}
    for record in records:
        if record.status != OK:
            where = f"{job_name(record)} batch {record.batch} {record.height}×{record.width}"
            counts.setdefault((record.label, record.status), []).append(where)
    return [
        f"{label} {status} ({where[0]}{f' and {len(where) - 1} more' if where[1:] else ''})"
        for (label, status), where in counts.items()
    ]


def _grouped(records: Iterable[Record], key: Callable[[Record], str]) -> list[tuple[str, list[Record]]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return list(groups.items())


def _widest_batch(records: Iterable[Record]) -> int:
    counts = Counter(batch for _, batch in {(record.job, record.batch) for record in records})
    return max(counts, key=lambda batch: (counts[batch], batch))


def _peers(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record.impl != "ours"]


def _ours(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record.impl == "ours"]


def _ms(record: Record) -> float:
    """The time of a record whose status is ``ok``: the schema requires it."""
    assert record.ms
    return record.ms


def _time(record: Record | None) -> float | None:
    return record.ms if record else None


def _floor(records: Iterable[Record]) -> float | None:
    """The floor of a job, which all of its records share."""
    return next((record.floor_ms for record in records if record.floor_ms), None)


def _family(record: Record) -> str:
    return f"ours ({record.backend})" if record.impl == "ours" else record.impl


def _rank(record: Record) -> tuple[int, bool]:
    """Where an implementation stands in legends: the peers first."""
    names = list(COLOURS)
    return (names.index(_family(record)) if _family(record) in names else len(names), record.graph)


def _look(record: Record) -> dict[str, Any]:
    """Colour and marker of an implementation, the same in every figure; filled where a CUDA graph was replayed."""
    colour = COLOURS.get(_family(record), OTHER[0])
    return {
        "color": colour,
        "marker": MARKERS.get(_family(record), OTHER[1]),
        "markerfacecolor": colour if record.graph else PAPER,
        "markersize": 5,
        "linewidth": 2.0 if record.impl == "ours" else 1.2,
        "label": record.label,
    }


def _axes(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _panels(records: Sequence[Record], key: Callable[[Record], str], height: float = 3.4) -> tuple[Figure, list[Axes]]:
    names = [name for name, _ in _grouped(records, key)]
    figure, axes = _axes(len(names), max(3.4 * len(names), 6.0), height)
    for panel, name in zip(axes, names, strict=True):
        panel.set_title(name)
    return figure, axes


def _lines(panel: Axes, records: list[Record], x: Callable[[Record], float], y: Callable[[Record], float]) -> None:
    """A line an implementation, with a gap where it was tried and has no figure."""
    groups = [group for _, group in _grouped(records, lambda r: r.label) if fastest(group)]
    for group in sorted(groups, key=lambda g: _rank(g[0])):
        ordered = sorted(group, key=x)
        heights = [y(record) if record.status == OK else math.nan for record in ordered]
        panel.plot([x(record) for record in ordered], heights, **_look(group[0]))


def _ticks(panel: Axes, values: Iterable[int]) -> None:
    """A tick at each value, as many of them labelled as there is room for."""
    ordered = sorted(values)
    step = math.ceil(len(ordered) / MAX_TICK_LABELS)
    panel.set_xticks(ordered, [str(value) if i % step == 0 else "" for i, value in enumerate(ordered)])


def _log_y(panel: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def _finished(
    figure: Figure, axes: Sequence[Axes], results: Results, title: str, notes: Sequence[str], legend: bool = True
) -> Figure:
    """Title with device and date; below the figure one legend for all panels, and what is not shown."""
    meta = results.meta
    figure.suptitle(f"{title}\n{meta['device']}, {meta['date'][:10]}", fontsize="large")
    below = 0.0
    if legend:
        entries = {
            label: line for panel in axes for line, label in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        columns = 4 if len(axes) > 2 else 3
        figure.legend(
            entries.values(),
            entries.keys(),
            loc="upper center",
            bbox_to_anchor=(0.5, 0),
            borderaxespad=0,
            ncols=columns,
        )
        below = LEGEND_LINE_INCHES * math.ceil(len(entries) / columns)
    if notes:
        text = textwrap.fill(f"Not shown: {'; '.join(notes)}.", int(figure.get_figwidth() * CHARACTERS_PER_INCH))
        figure.text(0.01, -(below + 0.1) / figure.get_figheight(), text, va="top", fontsize="small")
    return figure
