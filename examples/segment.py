"""Segment a photograph with transformers' MobileViT: the stock model against its fused forms.

    python examples/segment.py --pretrained folder/of/deeplabv3-mobilevit-small --output out/segment.png

`optimize` makes a new model; `replace_blocks` puts fused blocks into the model at hand, which is how a network of your
own, with MobileViT blocks somewhere inside, is served. Both are compared with the stock model, class by class, timed,
and drawn. Without --pretrained the weights are random, and the map shows the network's texture, not things.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import click
import torch
from _shared import BACKENDS, MODELS, device_option, pick_device
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import mobilevit_kernels as mvk
import python_ref
from mobilevit_kernels.images import read_image

Models: TypeAlias = "dict[str, nn.Module]"

CONFIGS: dict[str, dict[str, Any]] = {
    "mobilevit_xxs": {
        "hidden_sizes": [64, 80, 96],
        "neck_hidden_sizes": [16, 16, 24, 48, 64, 80, 320],
        "expand_ratio": 2.0,
    },
    "mobilevit_xs": {"hidden_sizes": [96, 120, 144], "neck_hidden_sizes": [16, 32, 48, 64, 80, 96, 384]},
    "mobilevit_s": {},
}
NUM_CLASSES = 21  # Pascal VOC, which the published segmentation models were trained on
MIN_SAME_CLASS = 0.98  # share of pixels; float16 may decide otherwise where two classes are close


@dataclass(frozen=True)
class Comparison:
    """A fused model's answer beside the stock model's.

    Attributes:
        max_difference: of the logits, over the stock's largest magnitude.
        same_class: the share of pixels with the same class.
    """

    max_difference: float
    same_class: float


def stock_model(model: str, pretrained: Path | None) -> nn.Module:
    """transformers' segmentation model: from a local folder of `save_pretrained`, or with random weights."""
    from transformers import MobileViTConfig, MobileViTForSemanticSegmentation

    if pretrained is not None:
        loaded: nn.Module = MobileViTForSemanticSegmentation.from_pretrained(pretrained, local_files_only=True).eval()
        return loaded
    stock: nn.Module = MobileViTForSemanticSegmentation(
        MobileViTConfig(num_labels=NUM_CLASSES, **CONFIGS[model])
    ).eval()
    python_ref.randomize_weights(stock, seed=0)
    return stock


def balance_classes(stock: Any, pixels: Tensor) -> None:
    """Gives every class of a model with random weights the same mean logit: else one class wins everywhere."""
    logits, _ = segment(stock, pixels)
    with torch.no_grad():
        stock.segmentation_head.classifier.convolution.bias -= logits.mean((0, 2, 3))


def fused_models(stock: nn.Module, dtype: torch.dtype, backend: str) -> tuple[Models, mvk.Report]:
    """The stock model in ``dtype``, the two fused forms of it, and what `replace_blocks` has replaced."""
    in_dtype = copy.deepcopy(stock).to(dtype)
    optimized = mvk.optimize(stock, dtype=dtype, backend=backend)
    replaced = copy.deepcopy(stock)
    report = mvk.replace_blocks(replaced, dtype=dtype, backend=backend)
    replaced.to(dtype)  # what is not a block: the stem, the last convolution, the segmentation head
    return {"stock": in_dtype, "optimize": optimized, "replace_blocks": replaced}, report


def segment(model: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (1, classes, h, w), and each pixel's class (H, W) at the size of the image.

    Args:
        model: a segmentation model of transformers, stock or fused.
        pixels: (1, 3, H, W).
    """
    with torch.inference_mode():
        logits = model(pixel_values=pixels).logits.float()
    full = nn.functional.interpolate(logits, size=pixels.shape[-2:], mode="bilinear", align_corners=False)
    return logits, full.argmax(1)[0]


def compare(expected: tuple[Tensor, Tensor], result: tuple[Tensor, Tensor]) -> Comparison:
    """Two answers of :func:`segment`, the stock model's first."""
    difference = (expected[0] - result[0]).abs().max() / expected[0].abs().max()
    return Comparison(difference.item(), (expected[1] == result[1]).float().mean().item())


def time_in_turn(models: Models, pixels: Tensor, rounds: int) -> dict[str, float]:
    """The median milliseconds of a forward of each model; they take turns, so that all see the same machine."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for i in range(rounds + 2):  # the first two rounds warm up
        for name, model in models.items():
            begin = time.perf_counter()
            with torch.inference_mode():
                model(pixel_values=pixels)
            if pixels.is_cuda:
                torch.cuda.synchronize(pixels.device)
            if i >= 2:
                times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: statistics.median(samples) for name, samples in times.items()}


def draw(path: Path, photograph: Tensor, maps: Mapping[str, Tensor], names: dict[int, str] | None) -> None:
    """The photograph, then the label map of each model laid over it; ``names`` of the classes for a legend."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    colours = pyplot.get_cmap("tab20")
    figure, axes = pyplot.subplots(1, 1 + len(maps), figsize=(3.2 * (1 + len(maps)), 3.7), layout="constrained")
    for axis in axes:
        axis.imshow(photograph.numpy())
        axis.set_axis_off()
    axes[0].set_title("photograph")
    present = sorted({int(label) for labels in maps.values() for label in labels.unique()})
    for axis, (name, labels) in zip(axes[1:], maps.items(), strict=True):
        axis.imshow(labels.numpy() % 20, cmap=colours, vmin=0, vmax=19, alpha=0.6, interpolation="nearest")
        axis.set_title(name)
    if names is not None:
        patches = [Patch(color=colours(label % 20), label=names.get(label, str(label))) for label in present]
        figure.legend(handles=patches, loc="outside lower center", ncols=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


@click.command()
@click.option(
    "--image", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=None,
    help="Photograph [default: the portrait of Grace Hopper that ships with matplotlib]."
)  # fmt: skip
@click.option(
    "--pretrained", type=click.Path(exists=True, file_okay=False, path_type=Path), default=None,
    help="A local folder of save_pretrained [default: random weights]."
)  # fmt: skip
@click.option(
    "--model", type=click.Choice(MODELS), default="mobilevit_s", show_default=True, help="For random weights."
)
@click.option("--size", type=click.IntRange(32, 4096), default=512, show_default=True, help="Pixels of a side.")
@click.option("--rounds", type=click.IntRange(1, 1000), default=10, show_default=True, help="Timed forwards a model.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), default="out/segment.png", show_default=True)
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True, help="Which kernels.")
@device_option
def main(
    image: Path | None,
    pretrained: Path | None,
    model: str,
    size: int,
    rounds: int,
    output: Path,
    backend: str,
    device: str | None,
) -> None:
    """Segment a photograph with transformers' MobileViT, stock and fused. Exits 1 where the maps differ."""
    where = pick_device(device)
    dtype = torch.float16 if where.type == "cuda" else torch.float32
    try:
        if image is None:
            from matplotlib import cbook

            image = Path(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
        photograph = read_image(image, size=size, short_side=round(size * 544 / 512))  # as the published models' crop
        # These models take BGR in 0…1.
        pixels = (photograph.flip(-1).permute(2, 0, 1).unsqueeze(0) / 255).to(where)
        stock: Any = stock_model(model, pretrained).to(where)
        if pretrained is None:
            balance_classes(stock, pixels)
        models, report = fused_models(stock, dtype, backend)
    except (ValueError, OSError, RuntimeError) as error:
        raise click.UsageError(str(error)) from error
    pixels = pixels.to(dtype)

    answers = {name: segment(network, pixels) for name, network in models.items()}
    times = time_in_turn(models, pixels, rounds)
    table = Table(box=None, pad_edge=False)
    # Of the logits, over the largest of the stock model's.
    for column in ("model", "largest relative difference", "same class", "ms", "stock / this"):
        table.add_column(column, justify="left" if column == "model" else "right")
    comparisons = {name: compare(answers["stock"], answer) for name, answer in answers.items()}
    for name, comparison in comparisons.items():
        table.add_row(
            name,
            f"{comparison.max_difference:.1e}",
            f"{100 * comparison.same_class:.2f} %",
            f"{times[name]:.1f}",
            f"{times['stock'] / times[name]:.2f}×" if comparison.same_class >= MIN_SAME_CLASS else "withheld",
        )
    weights = "random weights" if pretrained is None else str(pretrained)
    click.echo(f"{weights}, {image.name} at {size}×{size}, {str(dtype).removeprefix('torch.')} on {where}")
    click.echo(f"replace_blocks: {', '.join(report.notes)}, {len(report.not_replaced)} left as they were\n")
    Console(highlight=False).print(table)
    draw(
        output,
        photograph,
        {name: answer[1].cpu() for name, answer in answers.items()},
        None if pretrained is None else stock.config.id2label,
    )
    click.echo(f"\nmaps: {output}")
    if min(comparison.same_class for comparison in comparisons.values()) < MIN_SAME_CLASS:
        click.echo(f"the maps differ: fewer than {MIN_SAME_CLASS:.0%} of the pixels have the stock's class", err=True)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
