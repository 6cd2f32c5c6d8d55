"""Classify a folder of images on all GPUs of a Ray cluster.

    python examples/ray_classify.py /shared/photos results.parquet --checkpoint /shared/mobilevit_s.safetensors

Ray Data decodes in tasks on every CPU and runs one copy of the network a GPU. Without GPUs, --actors copies run on
CPUs, and decode too.
Every machine needs mobilevit_kernels installed, and the folder and checkpoint under the same paths. The results come
to one file, CSV or Parquet by its suffix, in the order of the paths; it is complete, or it is not there.
"""

from __future__ import annotations

import contextlib
import csv
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _shared
import click
import numpy as np
import ray
import ray.data
import torch
from _shared import (
    best_classes,
    build_network,
    class_names,
    columns,
    network_options,
    pick_device,
    read_or_black,
    result_row,
    weights_label,
)

from mobilevit_kernels.images import SUFFIXES, find_images

Block = dict[str, Any]  # columns of NumPy arrays


def decode(block: Block, folder: Path) -> Block:
    """Adds uint8 images (B, 256, 256, 3) to a block of paths, and an error to those that cannot be read."""
    images, errors = zip(*(read_or_black(folder, path) for path in block["path"]), strict=True)
    return {"path": block["path"], "image": torch.stack(images).numpy(), "error": np.array(errors, dtype=object)}


class Classifier:
    """One copy of the network, in a process of its own.

    Args:
        model, checkpoint, backend: the network.
        device: "cuda", the one GPU that Ray shows this process, or "cpu".
        top: classes an image.
    """

    def __init__(self, model: str, checkpoint: Path | None, backend: str, device: str, top: int) -> None:
        self.device = pick_device(device)
        self.network = build_network(model, checkpoint, self.device, backend)
        self.top = top

    def __call__(self, block: Block) -> Block:
        images = torch.from_numpy(np.array(block["image"]))  # a copy: Ray's blocks are read-only
        if self.device.type == "cuda":
            images = images.pin_memory().to(self.device, non_blocking=True)
        with torch.inference_mode():
            probabilities, classes = best_classes(self.network(images), self.top)
        return {
            "path": block["path"],
            "error": block["error"],
            "probabilities": probabilities.cpu().numpy(),
            "classes": classes.cpu().numpy(),
        }


@contextlib.contextmanager
def written_whole(output: Path) -> Iterator[Path]:
    """A file beside ``output`` that takes its place when all went well."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.part")
    try:
        yield partial
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)


def write_csv(path: Path, header: list[str], blocks: Iterator[list[list[str]]]) -> None:
    """Rows of cells into a CSV file, as classify_folder writes them."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for rows in blocks:
            writer.writerows(rows)


def write_parquet(path: Path, header: list[str], blocks: Iterator[list[list[str]]]) -> None:
    """The same table as Parquet: classes as int64, probabilities as float64, null where an image has none."""
    import pyarrow
    from pyarrow import parquet

    kinds = {"class": (pyarrow.int64(), int), "probability": (pyarrow.float64(), float)}
    typed = [kinds.get(name.split("_")[0], (pyarrow.string(), str)) for name in header]
    schema = pyarrow.schema(list(zip(header, (kind for kind, _ in typed), strict=True)))
    with parquet.ParquetWriter(path, schema) as writer:
        for rows in blocks:
            cells = zip(*rows, strict=True)
            arrays = [
                pyarrow.array([convert(cell) if cell else None for cell in column], kind)
                for column, (kind, convert) in zip(cells, typed, strict=True)
            ]
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))


def start_ray(address: str | None, cpus: int | None, actors: int) -> tuple[int, int]:
    """Joins or starts a cluster: (copies of the network, GPUs a copy)."""
    # The functions of this file travel to the workers by value; so must those that they call in _shared.py.
    ray.cloudpickle.register_pickle_by_value(_shared)
    ray.init(address=address, num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    if gpus:
        return gpus, 1
    available = int(resources.get("CPU", 0))
    if actors > available:
        raise click.UsageError(f"--actors: expected at most the cluster's {available} CPUs, got {actors}")
    return actors, 0


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Images a batch.")
@click.option("--actors", type=click.IntRange(1), default=1, show_default=True, help="Copies, where there is no GPU.")
@click.option("--address", default=None, help='A cluster, or "local" [default: RAY_ADDRESS, a running one, or a new].')
@click.option("--cpus", type=click.IntRange(1), default=None, help="Of a new local Ray [default: the machine's].")
@network_options
def main(
    folder: Path,
    output: Path,
    batch: int,
    actors: int,
    address: str | None,
    cpus: int | None,
    model: str,
    checkpoint: Path | None,
    backend: str,
    top: int,
) -> None:
    """Classify the images below FOLDER into OUTPUT, a .csv or .parquet file, on a Ray cluster."""
    if output.suffix not in (".csv", ".parquet"):
        raise click.UsageError(f"OUTPUT: expected a file that ends in .csv or .parquet, got {output}")
    checked = build_network(model, checkpoint, torch.device("cpu"))  # a wrong checkpoint ends it here, not in an actor
    top = min(top, checked.num_classes)
    names = class_names(checkpoint, checked.num_classes)
    weights = weights_label(model, checkpoint)
    header = columns(top, names is not None)
    paths = [path.relative_to(folder).as_posix() for path in find_images(folder)]
    if not paths:
        raise click.UsageError(f"FOLDER: expected images below {folder}, found none ({', '.join(sorted(SUFFIXES))})")

    copies, gpus = start_ray(address, cpus, actors)
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    network = (model, None if checkpoint is None else checkpoint.resolve(), backend, "cuda" if gpus else "cpu", top)
    results = (
        ray.data.from_items([{"path": path} for path in paths], override_num_blocks=-(-len(paths) // batch))
        .map_batches(decode, batch_size=batch, fn_kwargs={"folder": folder.resolve()})
        .map_batches(
            Classifier,
            fn_constructor_args=network,
            batch_size=batch,
            compute=ray.data.ActorPoolStrategy(size=copies),
            num_gpus=gpus or None,
            num_cpus=None if gpus else 1,
        )
    )

    count = failed = 0

    def rows() -> Iterator[list[list[str]]]:
        nonlocal count, failed
        for block in results.iter_batches(batch_size=batch, batch_format="numpy"):
            part = zip(block["path"], block["error"], block["probabilities"], block["classes"], strict=True)
            count += len(block["path"])
            failed += sum(map(bool, block["error"]))
            yield [result_row(*result, names, weights) for result in part]

    with written_whole(output) as file:
        (write_csv if output.suffix == ".csv" else write_parquet)(file, header, rows())
    where = f"{copies} {'GPUs' if gpus else 'CPUs'}"
    click.echo(f"{output}: {count} images, {failed} of them unreadable; {weights}, on {where}", file=sys.stderr)
    ray.shutdown()


if __name__ == "__main__":
    main()
