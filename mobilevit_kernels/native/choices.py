"""Which of several kernels serves a shape: what ``mobilevit-kernels tune`` measured on this machine's GPU.

A plan takes a stage's first alternative, the one that the stage's own rules pick, unless a table names another one for
the same problem: the stage with its sizes and options, the dtype, the input's shape. A table is a JSON file for one GPU
model and one version of this package, read once a process:

* ``MVK_CHOICE_TABLE`` unset: :func:`default_path`, where ``tune`` writes. A file that does not fit is passed over, and
  :func:`origin`, which the Report shows, says why.
* ``MVK_CHOICE_TABLE=none``: the rules alone.
* ``MVK_CHOICE_TABLE=FILE``: that file, and a ValueError where it does not fit.

What :meth:`mobilevit_kernels.MobileViT.tune` measures is added for the process, and written nowhere.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import mobilevit_kernels
from mobilevit_kernels.cache import is_there, table_path, write_text
from mobilevit_kernels.native.launches import Slot
from mobilevit_kernels.packed import Packed

__all__ = [
    "Outcome",
    "add",
    "chosen",
    "clear",
    "default_path",
    "gpu_name",
    "kept",
    "origin",
    "problem",
    "read",
    "without_tables",
    "write",
]

FORMAT = 1

_without_tables = False


@dataclass
class Outcome:
    """What was measured for one problem.

    Attributes:
        problem: from :func:`problem`, or a whole forward.
        default: the alternative that serves without measurement.
        best: the fastest one, or ``default`` where none is faster by two percent.
        us: microseconds of each alternative that may serve.
        rejected: why the others may not.
    """

    problem: str
    default: str
    best: str
    us: dict[str, float]
    rejected: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """An entry of a table's file."""
        return dict(self.__dict__)


def problem(x: Slot, packed: Packed, **options: Any) -> str:
    """A stage on an input, in words that are the same in every process."""
    x2 = options.pop("x2", None)
    shape = "×".join(map(str, x.shape)) + ("" if x2 is None else f" and {x2.shape[1]} channels more")
    sizes = "-".join(map(str, packed.sizes))
    dtype = str(packed.dtype).removeprefix("torch.")
    said = "".join(f", {name} {value}" for name, value in options.items() if name not in ("mean", "std"))
    return f"{packed.stage} {sizes} {dtype} on {shape}{said}"


def gpu_name(device: torch.device) -> str:
    """The device's model."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "simulator"


def default_path(gpu: str) -> Path:
    """Where the table of a GPU model is: choice-tables/<model>.json in the cache folder (``MVK_CACHE_DIR``)."""
    return table_path("choice-tables", gpu)


def chosen(device: torch.device) -> Mapping[str, str]:
    """The alternative for every problem that was measured on such a device.

    Raises:
        ValueError: ``MVK_CHOICE_TABLE`` names a file that does not fit.
    """
    return _resolve(gpu_name(device))[0]


def origin(device: torch.device) -> str:
    """Where the choices come from, in a few words; "": there are none.

    Raises:
        ValueError: ``MVK_CHOICE_TABLE`` names a file that does not fit.
    """
    return _resolve(gpu_name(device))[1]


def add(device: torch.device, outcomes: Sequence[Outcome]) -> None:
    """Makes what was measured known to this process."""
    _resolve(gpu_name(device))[0].update({outcome.problem: outcome.best for outcome in outcomes})


@functools.cache
def _resolve(gpu: str) -> tuple[dict[str, str], str]:
    if _without_tables:
        return {}, ""
    named = os.environ.get("MVK_CHOICE_TABLE") or None
    if named == "none":
        return {}, "choice table: none (MVK_CHOICE_TABLE)"
    path = default_path(gpu) if named is None else Path(named)
    if named is None and not is_there(path):
        return {}, ""
    try:
        meta, outcomes = read(path)
        for name, ours in (("gpu", gpu), ("version", mobilevit_kernels.__version__)):
            if meta[name] != ours:
                raise ValueError(f"{path}: expected a table of {name} {ours}, got one of {meta[name]}")
    except ValueError as error:
        if named is not None:
            raise ValueError(f"MVK_CHOICE_TABLE: {error}") from error
        return {}, f"choice table passed over: {error}"
    return {o.problem: o.best for o in outcomes}, f"choice table of {meta['date'][:10]} ({path})"


@contextlib.contextmanager
def without_tables() -> Iterator[None]:
    """For making a table: the process goes by the rules and what is added, whatever ``MVK_CHOICE_TABLE`` names."""
    global _without_tables
    _without_tables = True
    clear()
    try:
        yield
    finally:
        _without_tables = False
        clear()


def clear() -> None:
    """Forgets what was read and added, so that tables and ``MVK_CHOICE_TABLE`` are read anew."""
    _resolve.cache_clear()


def read(path: Path) -> tuple[dict[str, str], list[Outcome]]:
    """A table: where and when it was measured ("gpu", "version", "torch", "date"), and its entries.

    Raises:
        ValueError: no such file, or not a table; the message names the file and what is wrong.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(f'expected "format": {FORMAT}')
        meta = {name: data[name] for name in ("gpu", "version", "torch", "date")}
        outcomes = [Outcome(**entry) for entry in data["entries"]]
        texts = [*meta.values(), *(t for o in outcomes for t in (o.problem, o.default, o.best))]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("expected strings for gpu, version, torch, date, problem, default and best")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except KeyError as error:
        raise ValueError(f"{path}: not a choice table: {error} is missing") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a choice table: {error}") from error
    return meta, outcomes


def kept(path: Path, device: torch.device) -> dict[str, Outcome]:
    """The entries of a table, by problem, that a new one for the device may keep; none where it does not fit."""
    try:
        meta, outcomes = read(path)
    except ValueError:
        return {}
    fits = (meta["gpu"], meta["version"]) == (gpu_name(device), mobilevit_kernels.__version__)
    return {outcome.problem: outcome for outcome in outcomes} if fits else {}


def write(path: Path, meta: Mapping[str, str], outcomes: Sequence[Outcome]) -> None:
    """Writes a table; a reader sees the old file or the new one, never a part."""
    entries = ",\n".join(json.dumps(outcome.to_dict(), ensure_ascii=False) for outcome in outcomes)
    head = json.dumps({"format": FORMAT, **meta}, indent=1)[:-2]
    write_text(path, f'{head},\n "entries": [\n{entries}\n]}}\n')
