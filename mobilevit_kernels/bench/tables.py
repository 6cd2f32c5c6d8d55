"""Results as tables of text: for the terminal, the README and the HTML report.

Nothing is computed from a result that failed its check against float64: it keeps its time and its error, and has no
images a second, no ratio and no fraction of the floor. What was not measured says so.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from mobilevit_kernels.bench.results import LEFT_OUT, OK, STATUSES, Record, Results, compare
from mobilevit_kernels.cache import write_text
from mobilevit_kernels.config import CONFIGS

__all__ = [
    "BEGIN",
    "END",
    "NOT_MEASURED",
    "PARITY_FAILED",
    "SIZE",
    "Table",
    "comparison",
    "fastest",
    "is_compile",
    "job_name",
    "latency_table",
    "milliseconds",
    "models_table",
    "neighbours_table",
    "readme_section",
    "served_dtype",
    "stages_table",
    "status_counts",
    "summary",
    "update_readme",
    "why",
]

SIZE = 256  # of the images in tables and in plots over the batch
PARITY_FAILED = "parity failed"
NOT_MEASURED = "not measured"
WITHHELD = "withheld"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
NEIGHBOURS = {"deit_tiny": "DeiT-Tiny", "resnet50": "ResNet-50", "mobilenetv2": "MobileNetV2"}  # by prefix of the model


class Table(NamedTuple):
    """Columns, and rows with a cell for each, all text."""

    columns: list[str]
    rows: list[list[str]]


def job_name(record: Record) -> str:
    """The network, or the stage with its case."""
    return record.model or f"{record.stage} {record.case}"


def why(record: Record) -> str:
    """Why a record is not ``ok``; "" where it is."""
    return "" if record.status == OK else record.reason or STATUSES[record.status]


def is_compile(record: Record) -> bool:
    """One of torch.compile's modes."""
    return record.impl.startswith("compile-")


def fastest(records: Iterable[Record], by: str = "ms") -> Record | None:
    """The record with the least ``by`` of those that were measured and passed their check, or None."""
    measured = (record for record in records if record.status == OK)
    return min(measured, key=lambda record: getattr(record, by) or math.inf, default=None)


def served_dtype(results: Results) -> str:
    """The dtype of the headline figures: float16 on GPUs, float32 on CPUs."""
    return "float16" if results.meta["gpu"] else "float32"


def status_counts(results: Results) -> str:
    """One sentence: how many records there are of each status."""
    counts = Counter(record.status for record in results.records)
    return ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status]) or "no records"


def milliseconds(value: float | None) -> str:
    """A time with two to five decimals, ``–`` for None."""
    return _text(value, lambda ms: f"{ms:.5f}" if ms < 0.1 else f"{ms:.3f}" if ms < 10 else f"{ms:.2f}")


def summary(results: Results) -> Table:
    """The table after a run: a line a record, in the file's order, none left out."""
    columns = ["job", "batch", "size", "dtype", "implementation", "median ms", "p20–p80 ms", "images/s", "× eager"]
    columns += ["% of floor", "error", "note"]
    return Table(columns, [_summary_row(record) for record in results.records])


def comparison(before: Results, after: Results) -> tuple[str, Table]:
    """Two runs side by side.

    Args:
        before, after: result files' contents.

    Returns:
        A head of one line or more: what is compared, warnings where GPU, torch or dtypes differ, and the sum of it;
        and a line a job and implementation, in the order of :func:`~mobilevit_kernels.bench.results.compare`.
    """
    changes = compare(before, after)
    verdicts = Counter(change.verdict for change in changes)
    ratios = [change.ratio for change in changes if change.ratio]
    lines = [
        f"before: {_origin(before)}",
        f"after:  {_origin(after)}",
        *_differences(before, after),
        ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()) or "no records",
    ]
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        lines.append(f"geometric mean of before/after over {len(ratios)} comparable: {mean:.3f}×")
    rows = []
    for change in changes:
        record = change.after or change.before
        assert record is not None, "a change has a record on one side at least"
        sides = {"before": change.before, "after": change.after}
        notes = [f"{name}: {why(side)}" for name, side in sides.items() if side and side.status != OK]
        rows.append(
            [
                *_head(record),
                *map(_side, sides.values()),
                _text(change.ratio, lambda ratio: f"{ratio:.3f}×"),
                change.verdict,
                "; ".join(notes),
            ]
        )
    columns = ["job", "batch", "size", "dtype", "implementation", "before ms", "after ms", "before/after", "verdict"]
    return "\n".join(lines), Table([*columns, "note"], rows)


def models_table(results: Results, dtype: str) -> Table:
    """Throughput of the networks at 256×256 in ``dtype``: a line a model and batch of the suite ``models``."""
    records = _suite(results, "models", dtype)
    batches = _batches(records)
    rows = []
    for model in _models(records):
        for batch in batches:
            mine = [record for record in records if record.model == model and record.batch == batch]
            eager = [record for record in mine if record.impl == "eager-channels_last"]
            compiled, ours = list(filter(is_compile, mine)), [record for record in mine if record.impl == "ours"]
            rows.append(
                [
                    model,
                    _any(batch),
                    _best(eager, _images),
                    _best(compiled, lambda r: f"{_images(r)} ({_variant(r)})"),
                    _best(ours, lambda r: f"{_images(r)} ({_variant(r)})"),
                    _ratio(compiled, ours),
                    _best(ours, lambda r: _text(r.speedup, lambda speedup: f"{speedup:.2f}×")),
                    _best(ours, lambda r: _percent(r, NOT_MEASURED)),
                ]
            )
    columns = ["model", "batch", "eager channels_last", "best torch.compile", "ours", "ours / best compile"]
    return Table([*columns, "ours / stock eager", "of the floor"], rows)


def latency_table(results: Results, dtype: str) -> Table:
    """Milliseconds of a single call, p50 / p99, of the networks at batch 1 and 256×256 in ``dtype``."""
    records = [record for record in _suite(results, "models", dtype) if record.batch == 1]

    def cell(record: Record) -> str:
        return f"{milliseconds(record.latency_ms)} / {milliseconds(record.latency_ms_p99)}"

    rows = []
    for model in _models(records):
        mine = [record for record in records if record.model == model]
        rows.append(
            [
                model,
                _best((r for r in mine if r.impl == "eager-channels_last"), cell),
                _best(filter(is_compile, mine), lambda r: f"{cell(r)} ({_variant(r)})", "latency_ms"),
                _best((r for r in mine if r.impl == "ours"), lambda r: f"{cell(r)} ({_variant(r)})", "latency_ms"),
            ]
        )
    return Table(["model", "eager channels_last", "best torch.compile", "ours"], rows)


def neighbours_table(results: Results, dtype: str) -> Table:
    """Images a second of the other networks, each in its best mode: a line a network and size, a column a batch."""
    records = [record for record in results.select(dtype=dtype) if "neighbours" in record.suites]
    batches = _batches(records)
    found = list(dict.fromkeys((_neighbour(record), f"{record.height}×{record.width}") for record in records))
    missing = [(name, NOT_MEASURED) for name in NEIGHBOURS.values() if name not in [name for name, _ in found]]
    rows = []
    for name, size in [*found, *missing]:
        row = [name, size]
        for batch in batches:
            mine = [r for r in records if (_neighbour(r), f"{r.height}×{r.width}", r.batch) == (name, size, batch)]
            row.append(_best(mine, lambda r: f"{_images(r)} ({r.label})"))
        rows.append(row)
    return Table(["network", "size", *(f"batch {_any(batch)}" for batch in batches)], rows)


def stages_table(results: Results, dtype: str) -> Table:
    """The stages in ``dtype``: a line a job, ours against the fastest of the others."""
    jobs: dict[str, list[Record]] = {}
    for record in results.select(dtype=dtype):
        if record.stage:
            jobs.setdefault(record.job, []).append(record)
    rows = []
    for records in jobs.values():
        peers, ours = [r for r in records if r.impl != "ours"], [r for r in records if r.impl == "ours"]
        rows.append(
            [
                job_name(records[0]),
                str(records[0].batch),
                _best((r for r in peers if r.impl in ("eager-channels_last", "cudnn")), lambda r: milliseconds(r.ms)),
                _best(peers, lambda r: f"{milliseconds(r.ms)} ({r.label})"),
                _best(ours, lambda r: f"{milliseconds(r.ms)} ({_variant(r)})"),
                _ratio(peers, ours),
                _best(ours, lambda r: _percent(r, NOT_MEASURED)),
            ]
        )
    columns = ["stage", "batch", "eager channels_last, ms", "best peer, ms", "ours, ms", "× best peer"]
    return Table([*columns, "of the floor"], rows)


def readme_section(newest: Mapping[str, tuple[Path, Results]], base: Path | None = None) -> str:
    """The Markdown between the README's markers, from the newest result file of each device.

    Args:
        newest: as :func:`~mobilevit_kernels.bench.results.newest` returns it.
        base: the folder that holds the README: the files' paths are written relative to it. None: as they are.

    Raises:
        ValueError: a file does not lie under ``base``.
    """
    parts: list[str] = []
    for kind in ("GPU", "CPU"):
        devices = [entry for entry in newest.values() if bool(entry[1].meta["gpu"]) == (kind == "GPU")]
        for path, results in devices:
            parts += _device_section(kind, (path.relative_to(base) if base else path).as_posix(), results)
        if not devices:
            parts += [f"### {kind}", _markdown(models_table(Results({}, ()), dtype=""))]
    return "\n\n".join(parts)


def update_readme(path: str | Path, section: str, check: bool = False) -> bool:
    """Puts ``section`` between the markers ``<!-- benchmarks:begin -->`` and ``<!-- benchmarks:end -->``, in one step.

    Args:
        path: of the README.
        section: Markdown, as :func:`readme_section` returns it.
        check: only compare.

    Returns:
        Whether the README differed from ``section``.

    Raises:
        ValueError: a marker is not there exactly once, or the end comes first.
    """
    text = Path(path).read_text(encoding="utf-8")
    for marker in (BEGIN, END):
        if (count := text.count(marker)) != 1:
            raise ValueError(f"{path}: expected the marker {marker} once, found it {count} times")
    if text.index(BEGIN) > text.index(END):
        raise ValueError(f"{path}: expected the marker {BEGIN} before {END}")
    head, rest = text.split(BEGIN)
    wanted = f"{head}{BEGIN}\n\n{section.strip()}\n\n{END}{rest.split(END)[1]}"
    if wanted != text and not check:
        write_text(path, wanted)
    return wanted != text


def _device_section(kind: str, path: str, results: Results) -> list[str]:
    meta, dtype = results.meta, served_dtype(results)
    commit = f"`{meta['commit'][:7]}`" + (" with uncommitted changes" if meta["dirty"] else "")
    wrong: dict[str, list[str]] = {}
    for record in results.select(dtype=dtype, status=PARITY_FAILED):
        if {"models", "neighbours"} & set(record.suites):
            wrong.setdefault(f"{record.label} of {record.model} at batch", []).append(str(record.batch))
    failed = "; ".join(f"{where} {', '.join(batches)}" for where, batches in wrong.items())
    return [
        _escaped(f"### {meta['device'] if kind == 'GPU' else 'CPU: ' + meta['device']}"),
        _escaped(f"{meta['date'][:10]}, torch {meta['torch']}, commit {commit}, [`{path}`]({path})."),
        f"Images a second, {SIZE}×{SIZE}, {dtype}:",
        _markdown(models_table(results, dtype)),
        f"Latency in ms, batch 1, {SIZE}×{SIZE}, {dtype}, p50 / p99:",
        _markdown(latency_table(results, dtype)),
        f"Other networks, images a second in their best mode, {dtype}:",
        _markdown(neighbours_table(results, dtype)),
        f"Records in the file: {status_counts(results)}."
        + (f" Failed the check against float64 and left out above: {_escaped(failed)}." if failed else ""),
    ]


def _markdown(table: Table) -> str:
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join(f"| {' | '.join(_escaped(cell) for cell in line)} |" for line in lines)


def _escaped(text: str) -> str:
    """One line of Markdown in which nothing opens a table cell or an HTML tag."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _suite(results: Results, suite: str, dtype: str) -> list[Record]:
    return [r for r in results.select(dtype=dtype, height=SIZE, width=SIZE) if suite in r.suites]


def _batches(records: Iterable[Record]) -> list[int | None]:
    """The batches of ``records``; [None] where there are none, for a line that says so."""
    return [*sorted({record.batch for record in records})] or [None]


def _any(batch: int | None) -> str:
    return "any" if batch is None else str(batch)


def _models(records: Iterable[Record]) -> list[str]:
    """Our three networks, and any other that ``records`` have."""
    return list(dict.fromkeys([*CONFIGS, *(record.model for record in records if record.model)]))


def _neighbour(record: Record) -> str:
    names = (name for prefix, name in NEIGHBOURS.items() if (record.model or "").startswith(prefix))
    return next(names, job_name(record))


def _text(value: float | None, form: Callable[[float], str]) -> str:
    return "–" if value is None else form(value)


def _images(record: Record) -> str:
    return _text(record.images_per_s, lambda rate: f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}")


def _percent(record: Record, missing: str = "–") -> str:
    fraction = record.floor_fraction
    return missing if fraction is None else f"{100 * fraction:.1f} %"


def _variant(record: Record) -> str:
    """Backend or torch.compile's mode, and whether a CUDA graph was replayed: the column names the rest."""
    name = record.backend if record.impl == "ours" else record.impl.removeprefix("compile-")
    return f"{name}, graph" if record.graph else name


def _best(records: Iterable[Record], form: Callable[[Record], str], by: str = "ms") -> str:
    """The fastest record in the form given; where none was measured, why."""
    records = list(records)
    if best := fastest(records, by):
        return form(best)
    statuses = dict.fromkeys(NOT_MEASURED if record.status == LEFT_OUT else record.status for record in records)
    return ", ".join(statuses) or NOT_MEASURED


def _ratio(peers: Sequence[Record], ours: Sequence[Record]) -> str:
    """How many times as fast the fastest of ours is as the fastest peer, in the same job."""
    peer, own = fastest(peers), fastest(ours)
    if peer and own and peer.ms and own.ms:
        return f"{peer.ms / own.ms:.2f}×"
    lacking = [records for records in (peers, ours) if fastest(records) is None]
    return WITHHELD if any(map(_wrong, chain(*lacking))) else NOT_MEASURED


def _wrong(record: Record) -> bool:
    return record.status == PARITY_FAILED


def _head(record: Record) -> list[str]:
    return [job_name(record), str(record.batch), f"{record.height}×{record.width}", record.dtype, record.label]


def _summary_row(record: Record) -> list[str]:
    times = [milliseconds(record.ms), f"{milliseconds(record.ms_p20)}–{milliseconds(record.ms_p80)}"]
    error = _text(record.rel_l2_err, lambda value: f"{value:.1e}")
    if record.status == OK:
        speedup = _text(record.speedup, lambda value: f"{value:.2f}")
        notes = ["times had not settled"] if record.stable is False else []
        if record.draws > 1:
            notes.append(f"error over {record.draws} draws of weights")
        if (record.floor_fraction or 0.0) > 1.0:
            notes.append("faster than the floor: the ceilings were measured on a busier machine, or it computes less")
        note = "; ".join(notes)
        return [*_head(record), *times, _images(record), speedup, _percent(record).removesuffix(" %"), error, note]
    if _wrong(record):
        return [*_head(record), *times, "", PARITY_FAILED, "", error, why(record)]
    return [*_head(record), record.status, "", "", "", "", "", why(record)]


def _side(record: Record | None) -> str:
    if record is None:
        return "not in the file"
    return milliseconds(record.ms) if record.status == OK else record.status


def _origin(results: Results) -> str:
    meta = results.meta
    return f"{meta['device']}, torch {meta['torch']}, commit {meta['commit'][:7]}, {meta['date'][:10]}"


def _differences(before: Results, after: Results) -> list[str]:
    """A warning for each thing that makes times of two runs hard to compare."""

    def dtypes(results: Results) -> str:
        return ", ".join(sorted({record.dtype for record in results.records})) or "none"

    pairs = {
        "device": (before.meta["device"], after.meta["device"]),
        "torch": (before.meta["torch"], after.meta["torch"]),
        "dtypes": (dtypes(before), dtypes(after)),
    }
    return [f"warning: not the same {name}: {a} before, {b} after" for name, (a, b) in pairs.items() if a != b]
