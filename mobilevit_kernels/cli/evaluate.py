"""``evaluate``: accuracy of the stock and the fused network on a labelled folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch

from mobilevit_kernels import verify as contract
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
@_common.model_option
@_common.backend_option
@_common.dtype_option
@_common.device_option
@_common.json_option
def evaluate(
    folder: Path,
    checkpoint: str | None,
    batch: int,
    model: str,
    backend: str,
    dtype: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Top-1 and top-5 accuracy of the stock and the fused network on an image folder.

    FOLDER has a subfolder a class, in the classes' order by name: as many as the network has classes, or ImageNet
    synset folders (n01440764 …), of which there may be fewer. The stock network is the same weights in plain PyTorch in
    float32, layer by layer.
    """
    where = _common.pick_device(device)
    network = make_network(model, checkpoint, backend, dtype, where)
    samples = find_samples(folder, network.num_classes)
    hits = {"stock": [0, 0], "fused": [0, 0]}
    agreeing = 0
    starts = range(0, len(samples), batch)
    for start in _common.track(starts, "evaluating", total=len(starts)):
        part = samples[start : start + batch]
        images = torch.stack([_common.read_image(path) for path, _ in part]).to(where)
        labels = torch.tensor([label for _, label in part], device=where).unsqueeze(1)
        with torch.inference_mode():
            fused = network(images).float()
            stock = contract.reference_network(network.spec, images, dtype=torch.float32, normalize=PLAIN)
        agreeing += int((fused.argmax(-1) == stock.argmax(-1)).sum())
        for name, logits in (("stock", stock), ("fused", fused)):
            best = logits.topk(min(5, network.num_classes)).indices == labels
            hits[name][0] += int(best[:, 0].sum())
            hits[name][1] += int(best.any(-1).sum())
    count = len(samples)
    data: dict[str, Any] = {
        "model": model,
        "weights": checkpoint or "random weights",
        "images": count,
        "dtype": str(network.compute_dtype).removeprefix("torch."),
        "stock": {"top1": hits["stock"][0] / count, "top5": hits["stock"][1] / count},
        "fused": {"top1": hits["fused"][0] / count, "top5": hits["fused"][1] / count},
        "top1_agreement": agreeing / count,
    }
    if as_json:
        _common.print_json(data)
        return
    if checkpoint is None:
        click.echo("random weights: the accuracies mean nothing, the agreement does")
    _common.print_table(
        f"{model} on {count} images of {folder}",
        ["network", "dtype", "top-1", "top-5"],
        [
            ("stock", "float32", f"{100 * data['stock']['top1']:.2f} %", f"{100 * data['stock']['top5']:.2f} %"),
            ("fused", data["dtype"], f"{100 * data['fused']['top1']:.2f} %", f"{100 * data['fused']['top5']:.2f} %"),
        ],
    )
    click.echo(f"the same top-1 class on {agreeing} of {count} images")


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
