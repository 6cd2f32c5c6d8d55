"""``evaluate``: the stock and the fused network on a labelled folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mobilevit_kernels import verify as contract
from mobilevit_kernels.accuracy import TOP, Comparison
from mobilevit_kernels.cli import _common
from mobilevit_kernels.cli.classify import PLAIN, make_network
from mobilevit_kernels.images import SUFFIXES, find_images

__all__ = ["evaluate"]


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--checkpoint",
    type=click.Path(),
    default=None,
    help="timm, transformers or ml-cvnets weights; without it the weights are random.",
)
@click.option("--batch", type=click.IntRange(1, 4096), default=8, show_default=True, help="Images a batch.")
@click.option(
    "--workers",
    type=click.IntRange(0, 256),
    default=None,
    help="Processes that decode images; 0: none but this one [default: one a CPU core, 4 at most].",
)
@_common.model_option
@_common.backend_option
@_common.dtype_option
@_common.device_option
@_common.json_option
def evaluate(
    folder: Path,
    checkpoint: str | None,
    batch: int,
    workers: int | None,
    model: str,
    backend: str,
    dtype: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Accuracy of the stock and the fused network on an image folder, and how far one is from the other.

    FOLDER has a subfolder a class, in the classes' order by name: as many as the network has classes, or ImageNet
    synset folders (n01440764 …), of which there may be fewer. The stock network is the same weights in plain PyTorch in
    float32, layer by layer.

    Besides top-1 and top-5 accuracy of both: max and mean absolute error and relative L2 error of the fused logits
    against the stock's; top-1 agreement, the share of images with the same highest class; top-5 agreement, the share of
    the stock network's five highest classes that are among the fused network's five highest, averaged over the images.

    Images that cannot be read are named and left out. Exits 2 where none can be read.
    """
    where = _common.pick_device(device)
    network = make_network(model, checkpoint, backend, dtype, where)
    samples = find_samples(folder, network.num_classes)
    comparison = Comparison("float32", str(network.compute_dtype).removeprefix("torch."), where)
    hits = {"stock": [0, 0], "fused": [0, 0]}
    unreadable: list[dict[str, str]] = []
    loader = _loader(samples, batch, workers)
    for pixels, classes, failures in _common.track(loader, "evaluating", total=len(loader)):
        unreadable += failures
        if not len(classes):
            continue
        images = torch.from_numpy(pixels).to(where)
        labels = torch.from_numpy(classes).to(where).unsqueeze(1)
        with torch.inference_mode():
            fused = network(images).float()
            stock = contract.reference_network(network.spec, images, dtype=torch.float32, normalize=PLAIN)
            comparison.update({"logits": stock}, {"logits": fused}, "logits")
        for name, logits in (("stock", stock), ("fused", fused)):
            best = logits.topk(min(TOP, network.num_classes)).indices == labels
            hits[name][0] += int(best[:, 0].sum())
            hits[name][1] += int(best.any(-1).sum())
    for failure in unreadable:
        click.echo(f"left out: {failure['reason']}", err=True)
    if len(unreadable) == len(samples):
        raise ValueError(f"FOLDER: none of the {len(samples)} images below {folder} can be read")
    accuracy = comparison.result()
    data: dict[str, Any] = {
        "model": model,
        "weights": checkpoint or "random weights",
        **accuracy.to_dict(),
        "unreadable": unreadable,
        **{
            name: {"top1": top1 / accuracy.images, "top5": top5 / accuracy.images}
            for name, (top1, top5) in hits.items()
        },
    }
    if as_json:
        _common.print_json(data)
        return
    if checkpoint is None:
        click.echo("random weights: the accuracies mean nothing, the agreement does")
    _common.print_table(
        f"{model} on {accuracy.images} images of {folder}",
        ["network", "dtype", "top-1", "top-5"],
        [
            (name, shown, f"{100 * data[name]['top1']:.2f} %", f"{100 * data[name]['top5']:.2f} %")
            for name, shown in (("stock", accuracy.stock_dtype), ("fused", accuracy.dtype))
        ],
    )
    click.echo(str(accuracy))
    if unreadable:
        click.echo(f"{len(unreadable)} of {len(samples)} images could not be read and were left out")


Batch = tuple[np.ndarray, np.ndarray, list[dict[str, str]]]


class _Images(Dataset[tuple[Any, int, dict[str, str] | None]]):
    """Decoded images with their labels; in place of one that cannot be read, its name and the reason."""

    def __init__(self, samples: list[tuple[Path, int]]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int, dict[str, str] | None]:
        path, label = self.samples[index]
        try:
            return _common.read_image(path).numpy(), label, None
        except ValueError as error:
            return None, label, {"image": str(path), "reason": str(error)}


def _collate(items: list[tuple[Any, int, dict[str, str] | None]]) -> Batch:
    """(B, H, W, 3) uint8, (B,) labels, and what could not be read.

    Arrays, not tensors: a worker sends tensors through /dev/shm, of which a container often has only 64 MB.
    """
    images = [image for image, _, _ in items if image is not None]
    labels = [label for image, label, _ in items if image is not None]
    pixels = np.stack(images) if images else np.empty((0, 0, 0, 3), np.uint8)
    return pixels, np.array(labels, np.int64), [failure for _, _, failure in items if failure is not None]


def _loader(samples: list[tuple[Path, int]], batch: int, workers: int | None) -> DataLoader[Any]:
    if workers is None:
        workers = min(4, os.cpu_count() or 1)
    batches = -(-len(samples) // batch)
    return DataLoader(_Images(samples), batch, num_workers=min(workers, batches), collate_fn=_collate)


def find_samples(folder: Path, num_classes: int) -> list[tuple[Path, int]]:
    """Images with their class indices.

    Raises:
        ValueError: no such folder, no images, or subfolders that do not tell the classes.
    """
    if not folder.is_dir():
        raise ValueError(f"FOLDER: expected a folder with a subfolder a class, got {folder}")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    indices = {name: i for i, name in enumerate(names)}
    if len(names) != num_classes:
        synsets = _imagenet_indices() if num_classes == 1000 else {}
        unknown = [name for name in names if name not in synsets]
        if not names or unknown:
            raise ValueError(
                f"FOLDER: expected {num_classes} subfolders, one a class"
                + (", or ImageNet synset folders" if num_classes == 1000 else "")
                + f"; {folder} has {len(names)}"
                + (f", among them {unknown[0]!r}" if unknown else "")
            )
        indices = {name: synsets[name] for name in names}
    samples = [(path, indices[name]) for name in names for path in find_images(folder / name)]
    if not samples:
        raise ValueError(f"FOLDER: expected images below {folder}, found none ({', '.join(sorted(SUFFIXES))})")
    return samples


def _imagenet_indices() -> dict[str, int]:
    try:
        from timm.data import ImageNetInfo
    except ImportError:
        return {}
    return {name: i for i, name in enumerate(ImageNetInfo().label_names())}
