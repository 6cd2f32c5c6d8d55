"""Result files: what a run writes, how it is checked, found and compared.

A file is ``{"schema": 1, "meta": {…}, "records": [{…}, …]}``. ``META`` and ``RECORD`` below are the whole schema. Units
are in the names: milliseconds, microseconds, seconds, megabytes of 2^20 bytes; ceilings are per second.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilevit_kernels.cache import slug, write_text

__all__ = [
    "LEFT_OUT",
    "OK",
    "SCHEMA",
    "STATUSES",
    "Change",
    "Record",
    "Results",
    "compare",
    "default_path",
    "load",
    "newest",
    "read",
    "write",
]

SCHEMA = 1

OK, LEFT_OUT = "ok", "left out"
STATUSES = {
    OK: "measured",
    "parity failed": "measured, but its result is outside the contract; no speed-up is given",
    "out of memory": "the device's memory does not hold it",
    "unsupported": "this implementation cannot do this job here",
    "failed": "it raised",
    LEFT_OUT: "not tried: the time budget, or not worth it on this device",
}


@dataclass(frozen=True)
class Record:
    """One implementation of one job.

    Attributes:
        job: the job's id, such as ``model/mobilevit_s/b256/256x256/float16``.
        model: timm's name of a network, or None.
        stage: a stage's name, or None.
        case: the stage's sizes and options, without its batch; None for a network.
        suites: what the job belongs to: ``models``, ``stages``, ``neighbours``, ``batch-sweep``, ``size-sweep``.
        shape: of the input, NCHW.
        impl: ``eager``, ``eager-channels_last``, ``compile-default``, ``compile-reduce-overhead``,
            ``compile-max-autotune``, ``sdpa``, ``cudnn``, ``tensorrt`` or ``ours``.
        backend: of ours: ``cuda``, ``triton``, ``torch``, or several joined by ``+``; ``torch`` or ``tensorrt`` else.
        dtype: of the computation.
        batch, height, width: of the input.
        graph: timed by replaying a CUDA graph.
        status: one of ``STATUSES``; reason: why it is not ``ok``, or "".
        ms, ms_p20, ms_p80, ms_p99: median and quantiles of a call's time on the device, behind a flush of its L2; None
            where not measured, like all below.
        latency_ms, latency_ms_p20, latency_ms_p99: of single calls on an idle device, from the call to the finished
            result, by the wall clock; no p99 from fewer than 100 calls.
        rounds: timed calls. stable: the warm-up ended because the time had settled.
        images_per_s: ``batch / ms``.
        host_us: time until a call returns, without waiting for the device; None on a CPU.
        first_call_s: the first call, with whatever it compiles: torch.compile from empty caches, ours with what
            Triton's cache on disk holds.
        peak_mb: device memory beyond what was there before the first call; None on a CPU.
        flops, bytes: the least that the work needs (``work.py``); None for networks that are not ours.
        floor_ms: the physical limit of this work on this device. floor_fraction: ``floor_ms / ms``.
        floor_bound: ``matrix``, ``bytes`` or ``special``: what the floor comes from.
        rel_l2_err: against float64. stock_rel_l2_err: of stock eager at the same dtype on the same inputs.
        draws: of weights, over which both errors are taken together: 1, or several where the first was above the bound.
        speedup: median over the rounds of stock eager's time over this one's; None where the result failed its check.
    """

    job: str
    model: str | None
    stage: str | None
    case: str | None
    suites: tuple[str, ...]
    shape: tuple[int, ...]
    impl: str
    backend: str
    dtype: str
    batch: int
    height: int
    width: int
    graph: bool
    status: str
    reason: str = ""
    ms: float | None = None
    ms_p20: float | None = None
    ms_p80: float | None = None
    ms_p99: float | None = None
    rounds: int | None = None
    stable: bool | None = None
    images_per_s: float | None = None
    host_us: float | None = None
    latency_ms: float | None = None
    latency_ms_p20: float | None = None
    latency_ms_p99: float | None = None
    first_call_s: float | None = None
    peak_mb: float | None = None
    flops: int | None = None
    bytes: int | None = None
    floor_ms: float | None = None
    floor_fraction: float | None = None
    floor_bound: str | None = None
    rel_l2_err: float | None = None
    stock_rel_l2_err: float | None = None
    draws: int = 1
    speedup: float | None = None

    @property
    def key(self) -> tuple[str, str, str, bool]:
        """What is unique in a file."""
        return (self.job, self.impl, self.backend, self.graph)

    @property
    def label(self) -> str:
        """The implementation as tables print it: ``ours (triton, graph)``, ``compile-default``, ``sdpa (graph)``."""
        details = [self.backend] * (self.impl == "ours") + ["graph"] * self.graph
        return f"{self.impl} ({', '.join(details)})" if details else self.impl

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return dataclasses.asdict(self)


META: dict[str, tuple[type, ...]] = {
    "gpu": (str, type(None)),  # the GPU's name; null on a CPU
    "device": (str,),  # what ran: the GPU's name, or the processor's and its number of cores
    "driver": (str, type(None)),
    "cuda": (str, type(None)),
    "torch": (str,),
    "triton": (str, type(None)),
    "timm": (str, type(None)),
    "python": (str,),
    "threads": (int,),  # torch's, which matter on a CPU
    "commit": (str,),
    "dirty": (bool, type(None)),
    "date": (str,),  # ISO 8601, UTC, when the run began
    "ceilings": (dict,),  # bandwidth, matrix_flops by dtype, special; per second, null where not measured
    "command": (str,),
    "tables": (list,),  # sentences: what was tuned beforehand, and where it is; [] where a file says nothing
    "left_out": (list,),  # sentences: what of the suite was not planned on this device, and why
}

_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "str | None": (str, type(None)),
    "int": (int,),
    "int | None": (int, type(None)),
    "bool": (bool,),
    "bool | None": (bool, type(None)),
    "float | None": (float, int, type(None)),
    "tuple[str, ...]": (list, tuple),
    "tuple[int, ...]": (list, tuple),
}
RECORD: dict[str, tuple[type, ...]] = {field.name: _TYPES[str(field.type)] for field in dataclasses.fields(Record)}


@dataclass(frozen=True)
class Results:
    """A result file's content."""

    meta: dict[str, Any]
    records: tuple[Record, ...]

    def select(self, **wanted: Any) -> Iterator[Record]:
        """The records whose attributes equal ``wanted``."""
        return (r for r in self.records if all(getattr(r, name) == value for name, value in wanted.items()))


def _checked(values: Any, fields: dict[str, tuple[type, ...]], where: str) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected an object, got {type(values).__name__}")
    if missing := sorted(fields.keys() - values.keys()):
        raise ValueError(f"{where}: lacks {', '.join(missing)}")
    if unknown := sorted(values.keys() - fields.keys()):
        raise ValueError(f"{where}: has unknown fields {', '.join(unknown)}")
    for name, types in fields.items():
        value = values[name]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            expected = " or ".join("null" if t is type(None) else t.__name__ for t in types)
            raise ValueError(f"{where}: {name}: expected {expected}, got {value!r}")


def read(data: Any, where: str = "results") -> Results:
    """Checks the content of a result file against the schema.

    Args:
        data: what the JSON holds.
        where: names the source in errors.

    Raises:
        ValueError: it is no result file of this schema, with the field that is wrong.
    """
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"{where}: expected a result file with schema {SCHEMA}, got {found}")
    meta: Any = data.get("meta")
    if isinstance(meta, dict):
        meta = {"tables": [], **meta}
    _checked(meta, META, f"{where}: meta")
    if not isinstance(data.get("records"), list):
        raise ValueError(f"{where}: records: expected a list, got {type(data.get('records')).__name__}")
    records = []
    for i, values in enumerate(data["records"]):
        if isinstance(values, dict):
            values = {"draws": 1, **values}  # files from before it was a field
        _checked(values, RECORD, f"{where}: records[{i}]")
        status, ms = values["status"], values["ms"]
        if status not in STATUSES:
            raise ValueError(f"{where}: records[{i}]: status: expected one of {list(STATUSES)}, got {status!r}")
        if status == OK and not ms:
            raise ValueError(f"{where}: records[{i}]: ms: expected a time, since status is {OK!r}, got {ms!r}")
        records.append(Record(**{**values, "shape": tuple(values["shape"]), "suites": tuple(values["suites"])}))
    keys = [record.key for record in records]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise ValueError(f"{where}: records: {twice} is there twice")
    return Results(meta, tuple(records))


def load(path: str | Path) -> Results:
    """Reads a result file.

    Raises:
        ValueError: it is not there, no JSON, or not of the schema; the message names the file.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected a result file, got one that is no text") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    return read(data, str(path))


def write(path: str | Path, meta: dict[str, Any], records: Iterable[Record]) -> None:
    """Writes a result file, as :func:`write_text` does."""
    data = {"schema": SCHEMA, "meta": meta, "records": [record.to_dict() for record in records]}
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def default_path(meta: dict[str, Any], root: str | Path = "benchmarks/results") -> Path:
    """``<root>/<gpu, or cpu>/<date>-<commit>.json``."""
    return Path(root) / slug(meta["gpu"] or "cpu") / f"{meta['date'][:10]}-{meta['commit'][:7]}.json"


def newest(root: str | Path = "benchmarks/results") -> dict[str, tuple[Path, Results]]:
    """The newest result file of each device's folder, by the date in its meta.

    Args:
        root: the folder of the devices' folders.

    Returns:
        Folder name → (path, content), GPUs first.

    Raises:
        ValueError: a file is not of the schema.
    """
    found: dict[str, tuple[Path, Results]] = {}
    for path in sorted(Path(root).glob("*/*.json")):
        content = load(path)
        best = found.get(path.parent.name)
        if best is None or content.meta["date"] >= best[1].meta["date"]:
            found[path.parent.name] = (path, content)
    return dict(sorted(found.items(), key=lambda item: (item[1][1].meta["gpu"] is None, item[0])))


@dataclass(frozen=True)
class Change:
    """One job and implementation in two result files.

    Attributes:
        before, after: None where a file lacks it.
        ratio: time before over time after; above 1 is faster. None where either has no time or failed its check.
        verdict: ``faster``, ``slower``, ``same`` (the p20…p80 ranges overlap), ``new``, ``gone`` or ``not comparable``.
    """

    before: Record | None
    after: Record | None
    ratio: float | None
    verdict: str


def compare(before: Results, after: Results) -> list[Change]:
    """Puts two result files side by side: our best of each job where another backend or variant is now the best, then
    every implementation in the order of ``after``, then what only ``before`` has.

    Two times count as different where their p20…p80 ranges do not overlap.
    """
    old = {record.key: record for record in before.records}
    best_before, best_after = _best_of_ours(before), _best_of_ours(after)
    changes = [
        _change(best_before[job], best)
        for job, best in best_after.items()
        if job in best_before and best_before[job].key != best.key
    ]
    for b in after.records:
        a = old.pop(b.key, None)
        if a is None:
            changes.append(Change(None, b, None, "new"))
        else:
            changes.append(_change(a, b))
    changes += [Change(a, None, None, "gone") for a in old.values()]
    return changes


def _best_of_ours(results: Results) -> dict[str, Record]:
    """The fastest correct implementation of ours of each job."""
    best: dict[str, Record] = {}
    for record in results.select(impl="ours", status=OK):
        if record.job not in best or (record.ms or 0) < (best[record.job].ms or 0):
            best[record.job] = record
    return best


def _change(a: Record, b: Record) -> Change:
    if not (a.status == b.status == OK and a.ms and b.ms and a.ms_p20 and a.ms_p80 and b.ms_p20 and b.ms_p80):
        return Change(a, b, None, "not comparable")
    apart = a.ms_p80 < b.ms_p20 or b.ms_p80 < a.ms_p20
    verdict = ("faster" if b.ms < a.ms else "slower") if apart else "same"
    return Change(a, b, a.ms / b.ms, verdict)
