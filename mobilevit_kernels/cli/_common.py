"""What the commands share: options, JSON output, progress bars, images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click
import torch

from mobilevit_kernels import machine
from mobilevit_kernels.config import CONFIGS
from mobilevit_kernels.images import read_image
from mobilevit_kernels.registry import BACKENDS

__all__ = [
    "DTYPES",
    "backend_option",
    "console",
    "device_option",
    "dtype_option",
    "json_option",
    "model_option",
    "pick_device",
    "print_json",
    "print_table",
    "read_image",
    "track",
]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}


def json_option(function: F) -> F:
    """--json: machine-readable output on stdout."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")(function)


def device_option(function: F) -> F:
    """--device, a torch device; by default the GPU where there is one."""
    help_text = "torch device, e.g. cuda:0 [default: cuda if there is one, else cpu]"
    return click.option("--device", default=None, help=help_text)(function)


def backend_option(function: F) -> F:
    """--backend."""
    choice = click.Choice(["auto", *BACKENDS])
    return click.option("--backend", type=choice, default="auto", show_default=True, help="Which kernels.")(function)


def dtype_option(function: F) -> F:
    """--dtype."""
    help_text = "Compute dtype [default: float16 on a GPU, float32 elsewhere]"
    return click.option("--dtype", type=click.Choice(list(DTYPES)), default=None, help=help_text)(function)


def model_option(function: F) -> F:
    """--model, one of the three names."""
    choice = click.Choice(list(CONFIGS))
    return click.option("--model", type=choice, default="mobilevit_s", show_default=True)(function)


def pick_device(name: str | None) -> torch.device:
    """The torch device called ``name``; ValueError for one that is not there."""
    if name is None:
        return machine.indexed("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = machine.indexed(name)
    except RuntimeError as error:
        raise ValueError(f"--device: expected a torch device such as cpu or cuda:0, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device: expected cpu or a CUDA device, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device: expected a device of this machine, got {name!r}, but there is no CUDA device")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device: this machine has {torch.cuda.device_count()} CUDA devices, got {name!r}")
    return device


def console(stderr: bool = False) -> Any:
    """A rich console."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False)
    # Into a pipe or file there is no width to fit: tables keep one line a row.
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, width=200)


def print_json(data: Any) -> None:
    """Prints ``data`` as indented JSON; NaN and infinities, which JSON has not, become null."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [clean(item) for item in value]
        if isinstance(value, float) and value - value != 0:
            return None
        return value

    click.echo(json.dumps(clean(data), indent=2, ensure_ascii=False))


def print_table(title: str, columns: list[str], rows: Iterable[Iterable[str]]) -> None:
    """Prints a table; columns after the first that hold figures are right-aligned."""
    from rich.table import Table

    cells = [list(row) for row in rows]
    console().print(title, markup=False, soft_wrap=True)  # a file's name in it stays in one piece
    table = Table(box=None, pad_edge=False)
    for i, column in enumerate(columns):
        numeric = bool(cells) and all(row[i][:1].isdigit() or not row[i] for row in cells)
        table.add_column(column, justify="right" if numeric and i else "left", overflow="fold")
    for row in cells:
        table.add_row(*row)
    console().print(table, markup=False)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """``items`` with a progress bar on stderr, which disappears when it is done; none where stderr is no terminal."""
    from rich.progress import track as rich_track

    stderr = console(stderr=True)
    return rich_track(
        items, description=description, total=total, console=stderr, transient=True, disable=not stderr.is_terminal
    )
