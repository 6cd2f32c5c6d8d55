"""Classify every image below a folder into a CSV file, and go on after an interruption where it stopped.

    python examples/classify_folder.py photos results.csv --checkpoint mobilevit_s.safetensors

Worker processes decode and resize, images travel as uint8, and on a GPU the next batch is copied and the last results
are fetched while a batch is computed. Each batch's rows are written in one piece, in the order of the paths. The next
run with the same file skips the images that it holds; an image that cannot be read is a row with its error.
"""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import click
import torch
from _shared import (
    best_classes,
    build_network,
    class_names,
    columns,
    device_option,
    network_options,
    pick_device,
    read_or_black,
    result_row,
    weights_label,
)
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mobilevit_kernels import MobileViT
from mobilevit_kernels.images import SUFFIXES, find_images

Batch: TypeAlias = "tuple[list[str], Tensor, list[str]]"  # paths, uint8 images (B, 256, 256, 3), errors ("": none)


class Images(Dataset[Any]):
    """Decoded images by number; one that cannot be read is black and comes with its error."""

    def __init__(self, folder: Path, paths: list[str]) -> None:
        self.folder = folder
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[str, Tensor, str]:
        path = self.paths[index]
        return path, *read_or_black(self.folder, path)


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches with their images on ``device``; on a GPU each is copied while the one before it is computed."""
    if device.type != "cuda":
        yield from batches
        return
    copying = torch.cuda.Stream(device)
    ahead = None
    for paths, images, errors in batches:
        with torch.cuda.stream(copying):
            copied = images.to(device, non_blocking=True)
            done = copying.record_event()
        if ahead is not None:
            yield _ready(*ahead)
        ahead = ((paths, copied, errors), done)
    if ahead is not None:
        yield _ready(*ahead)


def _ready(batch: Batch, done: torch.cuda.Event) -> Batch:
    computing = torch.cuda.current_stream(batch[1].device)
    computing.wait_event(done)
    batch[1].record_stream(computing)  # allocated on the copying stream: not to be reused before it was read here
    return batch


def classify(
    network: MobileViT, batches: Iterable[Batch], device: torch.device, top: int
) -> Iterator[tuple[list[str], list[str], Tensor, Tensor]]:
    """Paths, errors, best probabilities (B, top) and their classes (B, top) of each batch, on the CPU.

    A batch's results are handed out when the next batch is queued, so that a GPU always has work.
    """
    waiting = None
    for paths, images, errors in on_device(batches, device):
        with torch.inference_mode():
            best = [tensor.to("cpu", non_blocking=True) for tensor in best_classes(network(images), top)]
        done = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
        if waiting is not None:
            yield _fetched(*waiting)
        waiting = ((paths, errors, best[0], best[1]), done)
    if waiting is not None:
        yield _fetched(*waiting)


def _fetched(
    results: tuple[list[str], list[str], Tensor, Tensor], done: torch.cuda.Event | None
) -> tuple[list[str], list[str], Tensor, Tensor]:
    if done is not None:
        done.synchronize()
    return results


def finished_paths(output: Path, header: list[str], weights: str) -> set[str]:
    """The paths that ``output`` has rows for; a torn row at its end, left by a kill, is cut off.

    Raises:
        click.UsageError: the file is not one of these tables, or holds results of other weights or columns.
    """
    if not output.exists():
        return set()
    first = _encode([header])
    rows = []
    intact = read = 0  # bytes up to the end of the last whole row, and of the last line that was read
    with output.open("rb") as file:
        if not first.startswith(file.read(len(first))):
            raise click.UsageError(f"OUTPUT: {output} has other columns than {','.join(header)}; choose another file")
        file.seek(0)

        def lines() -> Iterator[str]:
            nonlocal read
            for line in file:
                read += len(line)
                if not line.endswith(b"\n"):
                    return  # torn
                yield line.decode("utf-8", "surrogateescape")

        for row in csv.reader(lines()):
            if len(row) != len(header):
                break
            rows.append(row)
            intact = read
    if read < output.stat().st_size:
        raise click.UsageError(
            f"OUTPUT: row {len(rows)} of {output} has not {len(header)} columns; choose another file"
        )
    for row in rows[1:]:
        if row[-1] != weights:
            raise click.UsageError(f"OUTPUT: {output} has results of {row[-1]}, not of {weights}; choose another file")
    os.truncate(output, intact)
    return {row[0] for row in rows[1:]}


def _encode(rows: list[list[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")  # file names need not be UTF-8


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Images a batch.")
@click.option(
    "--workers", type=click.IntRange(0), default=min(8, os.cpu_count() or 1), show_default=True,
    help="Processes that decode; 0: the main process does."
)  # fmt: skip
@click.option("--graph", is_flag=True, help="Run full batches as a CUDA graph.")
@device_option
@network_options
def main(
    folder: Path,
    output: Path,
    batch: int,
    workers: int,
    graph: bool,
    device: str | None,
    model: str,
    checkpoint: Path | None,
    backend: str,
    top: int,
) -> None:
    """Classify the images below FOLDER into OUTPUT, a CSV file; images that it holds already are skipped."""
    where = pick_device(device)
    if graph and where.type != "cuda":
        raise click.UsageError(f"--graph: CUDA graphs need a CUDA device, got {where}")
    network = build_network(model, checkpoint, where, backend, capture=[batch] if graph else ())
    top = min(top, network.num_classes)
    names = class_names(checkpoint, network.num_classes)
    weights = weights_label(model, checkpoint)
    header = columns(top, names is not None)

    paths = [path.relative_to(folder).as_posix() for path in find_images(folder)]
    if not paths:
        raise click.UsageError(f"FOLDER: expected images below {folder}, found none ({', '.join(sorted(SUFFIXES))})")
    finished = finished_paths(output, header, weights)
    todo = [path for path in paths if path not in finished]
    loader = DataLoader(Images(folder, todo), batch_size=batch, num_workers=workers, pin_memory=where.type == "cuda")

    click.echo(f"{weights}, on {where}; {len(todo)} of {len(paths)} images to do", err=True)
    console = Console(stderr=True)
    progress = Progress(
        BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]:.1f} images/s"), TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal
    )  # fmt: skip
    failed = 0
    begin = time.perf_counter()
    output.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    try:
        with progress, output.open("ab") as file:
            task = progress.add_task("", total=len(paths), completed=len(paths) - len(todo), rate=0.0)
            if file.tell() == 0:
                file.write(_encode([header]))
            for done, errors, probabilities, classes in classify(network, loader, where, top):
                results = zip(done, errors, probabilities.tolist(), classes.tolist(), strict=True)
                file.write(_encode([result_row(*result, names, weights) for result in results]))
                file.flush()
                count += len(done)
                failed += sum(map(bool, errors))
                progress.update(task, advance=len(done), rate=count / (time.perf_counter() - begin))
    except KeyboardInterrupt:
        click.echo(f"interrupted: {output} has {count} images more; the same command goes on with the rest", err=True)
        raise SystemExit(130) from None
    rate = len(todo) / (time.perf_counter() - begin)
    click.echo(f"{output}: {len(todo)} images, {failed} of them unreadable, {rate:.1f} images/s", err=True)


if __name__ == "__main__":
    main()
