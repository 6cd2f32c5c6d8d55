"""``demo``: the main job on a real photograph."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

import mobilevit_kernels as mvk
import python_ref
from mobilevit_kernels import verify as contract
from mobilevit_kernels.bench.timing import quantile, time_interleaved
from mobilevit_kernels.cli import _common
from mobilevit_kernels.convert import load_network

__all__ = ["demo"]


@click.command()
@click.option(
    "--image",
    type=click.Path(),
    default=None,
    help="Photograph [default: the portrait of Grace Hopper that ships with matplotlib].",
)
@click.option(
    "--checkpoint",
    type=click.Path(),
    default=None,
    help="timm weights for the stock model; without it they are random.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("out/demo.png"),
    show_default=True,
    help="Where the plot goes.",
)
@click.option(
    "--rounds", type=click.IntRange(3, 1000), default=15, show_default=True, help="Timed calls of each model."
)
@_common.model_option
@_common.backend_option
@_common.dtype_option
@_common.device_option
@_common.json_option
def demo(
    image: str | None,
    checkpoint: str | None,
    output: Path,
    rounds: int,
    model: str,
    backend: str,
    dtype: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Send a photograph through timm's MobileViT and through `optimize` of it: equal answers, how much faster.

    Prints the parity check and a timing table, and writes a plot. Exits 1 where the answers differ by more than the
    contract allows. Needs timm and matplotlib: pip install 'mobilevit-kernels[bench]'.
    """
    import timm
    from matplotlib import cbook

    where = _common.pick_device(device)
    compute = _common.DTYPES[dtype] if dtype else torch.float16 if where.type == "cuda" else torch.float32
    path = Path(image) if image else Path(cbook._get_data_path("sample_data/grace_hopper.jpg"))
    pixels = _common.read_image(path)
    x = (pixels.permute(2, 0, 1).unsqueeze(0) / 255).to(where, compute)

    if checkpoint is None:
        stock = timm.create_model(model).eval()
        python_ref.randomize_weights(stock, seed=0)
    else:
        stock = _load(model, checkpoint)
    stock = stock.to(where)
    fast = mvk.optimize(stock, dtype=compute, backend=backend)
    stock_in_dtype = copy.deepcopy(stock).to(compute)

    with torch.inference_mode():
        answers = {"stock": stock_in_dtype(x), "fused": fast(x)}
        truth = copy.deepcopy(stock).double()(x.double())
    result = contract.judge(
        model, backend, compute, answers["fused"], truth, answers["stock"], contract.MAX_NETWORK_RATIO
    )
    top5 = {name: logits.float().softmax(-1)[0].topk(5) for name, logits in answers.items()}
    rows = [_time(stock_in_dtype, fast, x.expand(batch, -1, -1, -1).contiguous(), rounds) for batch in (1, 8)]
    output.parent.mkdir(parents=True, exist_ok=True)
    _plot(output, pixels, rows, f"{model}, {str(compute).removeprefix('torch.')}, {where}")
    data = {
        "model": model,
        "image": path.name,
        "weights": checkpoint or "random weights",
        "device": str(where),
        "parity": result.to_dict(),
        "top5": {
            name: {"index": best.indices.tolist(), "probability": best.values.tolist()} for name, best in top5.items()
        },
        "timing": rows,
        "plot": str(output),
        "stages": mvk.report(fast).to_dict()["rows"],
    }
    if as_json:
        _common.print_json(data)
    else:
        _show(data, checkpoint, rounds)
    if not result.passed:
        raise SystemExit(1)


def _load(model: str, checkpoint: str) -> torch.nn.Module:
    """timm's model with the weights of a timm file.

    Raises:
        ValueError, FileNotFoundError: no such weights, in the words of :func:`mobilevit_kernels.load`.
    """
    import timm

    head = load_network(model, checkpoint).head
    classes = 0 if head is None or head.fc_weight is None else head.fc_weight.shape[0]
    try:
        return timm.create_model(model, num_classes=classes, checkpoint_path=checkpoint).eval()
    except RuntimeError:
        raise ValueError(
            f"--checkpoint: expected timm's weights, {checkpoint} has those of another code base"
        ) from None


def _show(data: dict[str, Any], checkpoint: str | None, rounds: int) -> None:
    parity = data["parity"]
    click.echo(f"{data['model']} from timm, {'random weights' if checkpoint is None else checkpoint}, {data['image']}")
    _common.print_table(
        "\ntop-5 classes",
        ["model", *(f"{i + 1}." for i in range(5))],
        [
            (name, *(f"{i} ({p:.4f})" for i, p in zip(best["index"], best["probability"], strict=True)))
            for name, best in data["top5"].items()
        ],
    )
    verdict = "equal answers" if parity["passed"] else "DIFFERENT ANSWERS"
    click.echo(
        f"\n{verdict}: relative L2 error against float64 {parity['rel_l2_err']:.1e} fused, "
        f"{parity['stock_rel_l2_err']:.1e} stock, in {parity['dtype']}"
    )
    _common.print_table(
        f"\nmedian of {rounds} interleaved runs on {data['device']}",
        ["batch", "stock eager, ms", "fused, ms", "ratio", "images/s fused"],
        [
            (
                str(row["batch"]),
                f"{row['stock_ms']:.1f}",
                f"{row['fused_ms']:.1f}",
                f"{row['ratio']:.2f}×" if parity["passed"] else "withheld",
                f"{row['batch'] / row['fused_ms'] * 1e3:.1f}",
            )
            for row in data["timing"]
        ],
    )
    click.echo(f"\nplot: {data['plot']}")


def _time(stock: nn.Module, fast: nn.Module, x: Tensor, rounds: int) -> dict[str, Any]:
    timings = time_interleaved({"stock": stock, "fused": fast}, [x], rounds)
    pairs = zip(timings["stock"].samples, timings["fused"].samples, strict=True)
    return {
        "batch": x.shape[0],
        "stock_ms": timings["stock"].ms,
        "fused_ms": timings["fused"].ms,
        "ratio": quantile([stock_ms / fused_ms for stock_ms, fused_ms in pairs], 0.5),
    }


def _plot(output: Path, pixels: Tensor, rows: list[dict[str, Any]], title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), width_ratios=(1, 1.6), layout="constrained")
    left.imshow(pixels.numpy())
    left.set_axis_off()
    left.set_title("input, 256×256")
    for offset, key, label, colour in (
        (-0.2, "stock_ms", "stock eager", "#9aa5b1"),
        (0.2, "fused_ms", "fused", "#0b7285"),
    ):
        rates = [row["batch"] / row[key] * 1e3 for row in rows]
        bars = right.bar([i + offset for i in range(len(rows))], rates, 0.38, label=label, color=colour)
        right.bar_label(bars, fmt="{:.0f}", padding=2)
    right.set_xticks(range(len(rows)), [f"batch {row['batch']}" for row in rows])
    right.set_ylabel("images per second")
    right.margins(y=0.15)
    right.spines[["top", "right"]].set_visible(False)
    right.legend(frameon=False, loc="upper left")
    figure.suptitle(title)
    figure.savefig(output, dpi=120)
    pyplot.close(figure)
