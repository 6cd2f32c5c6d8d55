"""Launch configurations that ``mobilevit-kernels tune`` measured on this machine's GPU; they go before the static ones.

A table is a JSON file for one GPU model and one release of Triton, read once a process:

* ``MVK_LAUNCH_TABLE`` unset: :func:`default_path`, where ``tune`` writes. No file: the static table. A file that does
  not fit is passed over, and :func:`origin`, which the Report shows for every stage, says why.
* ``MVK_LAUNCH_TABLE=static``: the static table.
* ``MVK_LAUNCH_TABLE=FILE``: that file, and a ValueError where it does not fit.

In the interpreter the GPU model is "interpreter".
"""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mobilevit_kernels.cache import is_there, table_path, write_text
from mobilevit_kernels.triton.launch_table import (
    DEFAULT_ARCH,
    KERNELS,
    Launch,
    Problem,
    parameters,
    static,
)

__all__ = ["TUNABLE", "Table", "clear", "configuration", "default_path", "identity", "origin", "read", "write"]

FORMAT = 1
TUNABLE = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "BLOCK_H")  # the other tile sizes follow from the problem
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Table:
    """A tuned table.

    Attributes:
        path: its file.
        meta: "gpu", "capability", "triton", "torch", "date".
        entries: a dict a problem, as in the file, with every candidate that was measured.
        launches: the winners.
    """

    path: Path
    meta: dict[str, Any]
    entries: list[dict[str, Any]]
    launches: dict[Problem, Launch]


def identity(device: torch.device) -> tuple[str, int]:
    """The device's model and its compute capability as one number."""
    if device.type != "cuda":
        return "interpreter", DEFAULT_ARCH
    return _cuda_identity(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _cuda_identity(index: int) -> tuple[str, int]:
    major, minor = torch.cuda.get_device_capability(index)
    return torch.cuda.get_device_name(index), major * 10 + minor


def default_path(gpu: str) -> Path:
    """Where the table of a GPU model is: launch-tables/<model>.json in the cache folder (``MVK_CACHE_DIR``)."""
    return table_path("launch-tables", gpu)


def configuration(problem: Problem, device: torch.device) -> Launch:
    """The configuration for a problem on a device: the tuned one where there is one, else the static one.

    Raises:
        ValueError: ``MVK_LAUNCH_TABLE`` names a file that does not fit.
    """
    return _configuration(problem, *identity(device))


@functools.cache
def _configuration(problem: Problem, gpu: str, arch: int) -> Launch:
    table, _ = _resolve(gpu, arch)
    launch = None if table is None else table.launches.get(problem)
    return static(problem, arch) if launch is None else launch


def origin(device: torch.device) -> str:
    """Which table serves a device, in a few words, with the reason where a table is passed over.

    Raises:
        ValueError: ``MVK_LAUNCH_TABLE`` names a file that does not fit.
    """
    return _resolve(*identity(device))[1]


@functools.cache
def _resolve(gpu: str, arch: int) -> tuple[Table | None, str]:
    named = os.environ.get("MVK_LAUNCH_TABLE") or None
    if named == "static":
        return None, "static launch table (MVK_LAUNCH_TABLE)"
    path = default_path(gpu) if named is None else Path(named)
    if named is None and not is_there(path):
        return None, "static launch table"
    try:
        table = read(path)
        _check_fits(table, gpu, arch)
    except ValueError as error:
        if named is not None:
            raise ValueError(f"MVK_LAUNCH_TABLE: {error}") from error
        return None, f"static launch table (passed over: {error})"
    return table, f"launch table tuned {table.meta['date'][:10]} ({path})"


def _check_fits(table: Table, gpu: str, arch: int) -> None:
    import triton

    capability = f"{arch // 10}.{arch % 10}"
    ours = {"gpu": gpu, "capability": capability, "triton": triton.__version__}
    for name, value in ours.items():
        if table.meta[name] != value:
            raise ValueError(f"{table.path}: expected a table of {name} {value}, got one of {table.meta[name]}")


def clear() -> None:
    """Forgets what was read, so that tables and ``MVK_LAUNCH_TABLE`` are read anew."""
    _resolve.cache_clear()
    _configuration.cache_clear()


# --- files -----------------------------------------------------------------------------------------------------------


def read(path: Path) -> Table:
    """Reads a table.

    Raises:
        ValueError: no such file, or not a table; the message names the file and what is wrong.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(f'expected a launch table with "format": {FORMAT}')
        meta = {name: data[name] for name in ("gpu", "capability", "triton", "torch", "date")}
        if not all(isinstance(value, str) for value in meta.values()):
            raise ValueError("expected strings for gpu, capability, triton, torch and date")
        arch = int(meta["capability"].replace(".", ""))
        launches = dict(_parse(entry, arch) for entry in data["entries"])
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except KeyError as error:
        raise ValueError(f"{path}: not a launch table: {error} is missing") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a launch table: {error}") from error
    return Table(path, meta, data["entries"], launches)


def _parse(entry: dict[str, Any], arch: int) -> tuple[Problem, Launch]:
    kernel, sizes, config = entry["kernel"], entry["problem"], entry["config"]
    if kernel not in KERNELS:
        raise ValueError(f"expected a kernel of {', '.join(KERNELS)}, got {kernel!r}")
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"{kernel}: expected a dtype of {', '.join(_DTYPES)}, got {entry['dtype']!r}")
    if set(sizes) != set(parameters(kernel)):
        raise ValueError(f"{kernel}: expected a problem of {', '.join(parameters(kernel))}, got {', '.join(sizes)}")
    for name, value in sizes.items():
        if not (value in ("few", "many") if name == "rows" else type(value) is int):
            raise ValueError(f"{kernel}: problem {name}: got {value!r}")
    problem = Problem(kernel, _DTYPES[entry["dtype"]], tuple(sizes[name] for name in parameters(kernel)))
    default = static(problem, arch)
    blocks = config["blocks"]
    if list(blocks) != [name for name, _ in default.blocks]:
        raise ValueError(f"{problem}: expected tiles {', '.join(dict(default.blocks))}, got {', '.join(blocks)}")
    for name, value in blocks.items():
        free = name in TUNABLE and type(value) is int and 16 <= value <= 1024 and value & (value - 1) == 0
        if not free and value != default[name]:
            expected = "a power of two of 16…1024" if name in TUNABLE else default[name]
            raise ValueError(f"{problem}: {name}: expected {expected}, got {value!r}")
    if config["num_warps"] not in (1, 2, 4, 8, 16, 32) or config["num_stages"] not in range(1, 9):
        raise ValueError(
            f"{problem}: expected num_warps of 1, 2, 4, 8, 16 or 32 and num_stages of 1…8, "
            f"got {config['num_warps']!r} and {config['num_stages']!r}"
        )
    return problem, Launch(tuple(blocks.items()), config["num_warps"], config["num_stages"])


def write(path: Path, meta: dict[str, Any], entries: list[dict[str, Any]]) -> None:
    """Writes a table; a reader sees the old file or the new one, never a part."""
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    head = json.dumps({"format": FORMAT, **meta}, indent=1)[:-2]
    write_text(path, f'{head},\n "entries": [\n{lines}\n]}}\n')
