"""What the classifying examples share: options, the network, class names, rows of results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import torch
from torch import Tensor

import mobilevit_kernels as mvk
from mobilevit_kernels.images import IMAGE_SIZE, imagenet_names, read_image

__all__ = [
    "BACKENDS",
    "MODELS",
    "best_classes",
    "build_network",
    "class_names",
    "columns",
    "device_option",
    "network_options",
    "pick_device",
    "read_or_black",
    "result_row",
    "weights_label",
]

F = TypeVar("F", bound=Callable[..., Any])

MODELS = ("mobilevit_xxs", "mobilevit_xs", "mobilevit_s")
BACKENDS = ("auto", "cuda", "triton", "torch", "simt")
UNIT_RANGE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # mean and std: the published networks take images in 0…1 as they are


def network_options(function: F) -> F:
    """--model, --checkpoint, --backend and --top."""
    checkpoint = click.Path(exists=True, dir_okay=False, path_type=Path)
    for option in (
        click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Classes an image."),
        click.option(
            "--backend", type=click.Choice(BACKENDS), default="auto", show_default=True,
            help="Which kernels."
        ),
        click.option(
            "--checkpoint", type=checkpoint, default=None,
            help="timm, transformers or ml-cvnets weights [default: random weights]."
        ),
        click.option("--model", type=click.Choice(MODELS), default="mobilevit_s", show_default=True),
    ):  # fmt: skip
        function = option(function)
    return function


def device_option(function: F) -> F:
    """--device, a torch device."""
    return click.option("--device", default=None, help="torch device [default: cuda if there is one, else cpu].")(
        function
    )


def pick_device(name: str | None) -> torch.device:
    """The torch device called ``name``, which must be usable; None: the GPU where there is one."""
    try:
        return torch.empty(0, device=name or ("cuda" if torch.cuda.is_available() else "cpu")).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: PyTorch was built without CUDA
        raise click.UsageError(f"--device: {name!r} cannot be used ({str(error).splitlines()[0]})") from error


def read_or_black(folder: Path, path: str) -> tuple[Tensor, str]:
    """The image ``path`` below ``folder``, and ""; where it cannot be read, a black one and the error."""
    try:
        return read_image(folder / path), ""
    except ValueError as error:
        black = torch.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), dtype=torch.uint8)
        return black, str(error).removeprefix(f"{folder / path}: ")


def build_network(
    model: str, checkpoint: Path | None, device: torch.device, backend: str = "auto", capture: Sequence[int] = ()
) -> mvk.MobileViT:
    """A network on uint8 images (B, H, W, 3).

    Args:
        model: its name.
        checkpoint: its weights; None: random ones from a fixed seed.
        device: where it runs.
        backend: which kernels.
        capture: batch sizes to capture a CUDA graph for.

    Raises:
        click.UsageError: there is no such network here; the message says why.
    """
    try:
        if checkpoint is not None:
            network = mvk.load(model, checkpoint)
        else:
            torch.manual_seed(0)
            network = mvk.create_model(model)
        if network.num_classes == 0:
            raise ValueError(f"--checkpoint: expected a network with a classifier, {checkpoint} has none")
        fast = mvk.optimize(network.to(device), backend=backend, normalize=UNIT_RANGE)
        assert isinstance(fast, mvk.MobileViT)
        for batch_size in capture:
            fast.capture(batch_size, dtype=torch.uint8)
        return fast
    except (ValueError, OSError, RuntimeError) as error:
        raise click.UsageError(str(error)) from error


def weights_label(model: str, checkpoint: Path | None) -> str:
    """A few words that say which weights a result came from."""
    return f"{model}, {'random weights' if checkpoint is None else checkpoint}"


def class_names(checkpoint: Path | None, num_classes: int) -> list[str] | None:
    """ImageNet's class names for a checkpoint with its 1000 classes; classes of random weights mean nothing."""
    return imagenet_names() if checkpoint is not None and num_classes == 1000 else None


def best_classes(logits: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The ``top`` probabilities of each image, largest first, float32 (B, top), and their classes, int64 (B, top)."""
    best = logits.float().softmax(-1).topk(min(top, logits.shape[-1]))
    return best.values, best.indices


def columns(top: int, named: bool) -> list[str]:
    """The columns of a table of results."""
    each = ("class", "probability", "name") if named else ("class", "probability")
    return ["path", *(f"{column}_{i}" for i in range(1, top + 1) for column in each), "error", "weights"]


def result_row(
    path: str,
    error: str,
    probabilities: Sequence[float],
    classes: Sequence[int],
    names: list[str] | None,
    weights: str,
) -> list[str]:
    """One row of such a table; an image that could not be read has its ``error`` and no classes."""
    cells = []
    for probability, index in zip(probabilities, classes, strict=True):
        if error:
            cells += ["", ""]
        else:
            cells += [str(index), f"{probability:.6f}"]
        if names is not None:
            cells.append("" if error else names[index])
    return [path, *cells, error, weights]
