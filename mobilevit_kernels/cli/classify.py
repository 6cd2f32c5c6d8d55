"""``classify``: images in, classes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch

from mobilevit_kernels import MobileViT, create_model, load
from mobilevit_kernels.cli import _common
from mobilevit_kernels.images import imagenet_names
from mobilevit_kernels.registry import BackendUnavailable

__all__ = ["classify"]

PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # the published networks take images in 0…1 as they are


@click.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--checkpoint",
    type=click.Path(),
    default=None,
    help="timm, transformers or ml-cvnets weights: .safetensors, .pt, .pth, .bin.",
)
@click.option(
    "--labels",
    type=click.Path(),
    default=None,
    help="Text file, a class name a line [default: with 1000 classes and timm, ImageNet's].",
)
@click.option("--top", type=click.IntRange(1, 1000), default=5, show_default=True, help="Classes to print an image.")
@_common.model_option
@_common.backend_option
@_common.dtype_option
@_common.device_option
@_common.json_option
def classify(
    images: tuple[str, ...],
    checkpoint: str | None,
    labels: str | None,
    top: int,
    model: str,
    backend: str,
    dtype: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Classify image files with a fused MobileViT.

    Each image is resized so that its shorter side has 284 pixels and cropped to the central 256×256, as the published
    accuracies were measured. Without --checkpoint the weights are random: then no class names are printed.
    """
    where = _common.pick_device(device)
    network = make_network(model, checkpoint, backend, dtype, where)
    names = class_names(labels, network.num_classes)
    if checkpoint is None:
        names = None
    rows: list[dict[str, Any]] = []
    for path in _common.track(images, "classifying", total=len(images)):
        image = _common.read_image(path).unsqueeze(0).to(where)
        with torch.inference_mode():
            probabilities = network(image).float().softmax(-1)[0]
        best = probabilities.topk(min(top, network.num_classes))
        rows.append(
            {
                "image": str(path),
                "classes": [
                    {"index": index, "probability": probability, **({"name": names[index]} if names else {})}
                    for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
                ],
            }
        )
    if as_json:
        _common.print_json({"model": model, "weights": checkpoint or "random weights", "images": rows})
        return
    if checkpoint is None:
        click.echo(f"random weights: {model} was given no --checkpoint, so the classes mean nothing")
    for row in rows:
        _common.print_table(
            row["image"],
            ["class", "probability", *(["name"] if names else [])],
            [(str(c["index"]), f"{c['probability']:.4f}", *([c["name"]] if names else [])) for c in row["classes"]],
        )


def make_network(
    model: str, checkpoint: str | None, backend: str, dtype: str | None, device: torch.device
) -> MobileViT:
    """The network of a command on uint8 images: from a checkpoint, or with random weights from a fixed seed."""
    kwargs: dict[str, Any] = {"normalize": PLAIN, "backend": backend, "device": device}
    kwargs["dtype"] = None if dtype is None else _common.DTYPES[dtype]
    try:
        if checkpoint is not None:
            network = load(model, checkpoint, **kwargs)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                network = create_model(model, **kwargs)
    except BackendUnavailable as error:
        half = "compute in float16" in str(error)
        raise ValueError(f"{error}{'; --dtype float16 chooses another' if half else ''}") from error
    if network.num_classes == 0:
        raise ValueError(f"--checkpoint: expected a network with a classifier, {checkpoint} has none")
    return network


def class_names(labels: str | None, num_classes: int) -> list[str] | None:
    """Class names from a file, or ImageNet's from timm; None where there are none for this number of classes."""
    if labels is not None:
        try:
            names = Path(labels).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--labels: {labels} cannot be read as text ({error})") from error
        if len(names) != num_classes:
            raise ValueError(f"--labels: expected {num_classes} lines, one a class, {labels} has {len(names)}")
        return names
    return imagenet_names() if num_classes == 1000 else None
