"""Random networks, images and options for tests/test_fuzz.py, the same for a seed on every machine."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from stock import NAMES, TRANSFORMERS_SIZES
from torch import Tensor, nn

import mobilevit_kernels as mvk
import python_ref
from mobilevit_kernels.verify import relative_error

LAYOUTS = ("contiguous", "channels_last", "strided", "flipped", "slice")
STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Widths:
    """A MobileViT of any widths; the published ones are too slow for a simulator."""

    stem: int
    layers: tuple[int, int, int, int, int]
    expand_ratio: int
    dims: tuple[int, int, int]
    head: int
    heads: int
    depths: tuple[int, int, int] = (2, 4, 3)  # only timm's can have others


@dataclass(frozen=True)
class Draw:
    """One network with one batch of images.

    Attributes:
        source: "timm", "transformers" or "python_ref".
        network: a published name or widths.
        output: what is asked of the network.
        num_classes: 0: no classifier.
        output_stride: 8, 16 or 32.
        batch, height, width, layout, image: of the images; ``image`` is their dtype.
        dtype: compute dtype.
        seed: of weights and images.
    """

    source: str
    network: str | Widths
    output: str
    num_classes: int
    output_stride: int
    batch: int
    height: int
    width: int
    layout: str
    image: torch.dtype
    dtype: torch.dtype
    seed: int


def draw(seed: int, dtypes: tuple[torch.dtype, ...], published: bool, largest: int, batches: tuple[int, ...]) -> Draw:
    """A draw from a seed.

    Args:
        seed: of everything.
        dtypes: that the backend computes in.
        published: also networks of the published widths.
        largest: sides of the images are at most so many pixels.
        batches: to choose from.
    """
    choose = random.Random(seed)
    source = choose.choice(("timm", "timm", "transformers", "transformers", "python_ref"))
    outputs = {
        "timm": ("logits", "logits", "features_only", "forward_features", "pre_logits"),
        "transformers": ("logits", "logits", "features", "hidden states", "segmentation"),
        "python_ref": ("logits", "logits", "forward_features"),
    }
    output = choose.choice(outputs[source])
    num_classes = choose.choice((1, 3, 7, 21, 100, 1000))
    if source != "transformers" and output == "logits" and choose.random() < 0.2:
        num_classes = 0
    network: str | Widths = choose.choice(NAMES)
    if not published or choose.random() < 0.3:
        network = _widths(choose, source)
    dtype = choose.choice(dtypes)
    return Draw(
        source=source,
        network=network,
        output=output,
        num_classes=num_classes,
        output_stride=32 if source == "python_ref" else choose.choice((32, 32, 32, 16, 8)),
        batch=choose.choice(batches),
        height=_side(choose, largest),
        width=_side(choose, largest),
        layout=choose.choice(LAYOUTS),
        image=choose.choice((torch.float32, dtype, torch.float16, torch.bfloat16, torch.uint8)),
        dtype=dtype,
        seed=seed,
    )


def _side(choose: random.Random, largest: int) -> int:
    return choose.choice((choose.randint(32, largest), choose.randrange(32, largest + 1, 32)))


def _widths(choose: random.Random, source: str) -> Widths:
    """Narrow networks; multiples of 8 channels, as the CUDA kernels need, and a few unusual numbers of heads."""
    channels = [8 * choose.randint(1, 4) for _ in range(5)]
    heads = choose.choice((4, 4, 2, 1)) if source == "transformers" else 4
    return Widths(
        stem=choose.choice((8, 16)),
        layers=(channels[0], channels[1], channels[2], channels[3], channels[4]),
        expand_ratio=choose.choice((1, 2, 4)),
        dims=tuple(8 * choose.randint(2, 6) for _ in range(3)),  # type: ignore[arg-type]
        head=8 * choose.randint(2, 10),
        heads=heads,
        depths=tuple(choose.randint(1, 2) for _ in range(3)) if source == "timm" else (2, 4, 3),  # type: ignore[arg-type]
    )


# --- networks --------------------------------------------------------------------------------------------------------


def build(case: Draw) -> nn.Module:
    """The stock model of a draw, in float32 and eval mode, with random weights."""
    make = {"timm": _timm, "transformers": _transformers, "python_ref": _python_ref}[case.source]
    return python_ref.randomize_weights(make(case).eval(), case.seed)


def _timm(case: Draw) -> nn.Module:
    timm = pytest.importorskip("timm")
    options: dict[str, Any] = {"output_stride": case.output_stride}
    options |= {"features_only": True} if case.output == "features_only" else {"num_classes": case.num_classes}
    if isinstance(case.network, str):
        return timm.create_model(case.network, **options)
    from timm.models import mobilevit
    from timm.models.byobnet import ByoModelCfg

    widths = case.network
    ratio = float(widths.expand_ratio)
    plain = [
        mobilevit._inverted_residual_block(d=depth, c=channels, s=stride, br=ratio)
        for depth, channels, stride in zip((1, 3), widths.layers[:2], (1, 2), strict=True)
    ]
    mixed = [
        mobilevit._mobilevit_block(
            d=1, c=channels, s=2, transformer_dim=dim, transformer_depth=depth, patch_size=2, br=ratio
        )
        for channels, dim, depth in zip(widths.layers[2:], widths.dims, widths.depths, strict=True)
    ]
    config = ByoModelCfg(
        blocks=(*plain, *mixed), stem_chs=widths.stem, stem_type="3x3", stem_pool="", downsample="",
        act_layer="silu", num_features=widths.head,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:  # timm has the published widths alone, in a table
        patch.setitem(mobilevit.model_cfgs, "mobilevit_xxs", config)
        return timm.create_model("mobilevit_xxs", **options)


def _transformers(case: Draw) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config: dict[str, Any] = {"output_stride": case.output_stride, "num_labels": max(case.num_classes, 1)}
    widths = case.network
    if isinstance(widths, str):
        config |= TRANSFORMERS_SIZES[widths]
    else:
        config |= {
            "hidden_sizes": list(widths.dims),
            "neck_hidden_sizes": [widths.stem, *widths.layers, widths.head],
            "expand_ratio": float(widths.expand_ratio),
            "num_attention_heads": widths.heads,
            "aspp_out_channels": 16,
        }
    if case.output == "segmentation":
        config["num_labels"] = min(config["num_labels"], 21)
        config["output_stride"] = min(config["output_stride"], 16)
    task = {"logits": "ForImageClassification", "segmentation": "ForSemanticSegmentation"}.get(case.output, "Model")
    return getattr(transformers, f"MobileViT{task}")(transformers.MobileViTConfig(**config))


def _python_ref(case: Draw) -> nn.Module:
    if isinstance(case.network, str):
        return python_ref.MobileViT(case.network, case.num_classes)
    from python_ref import mobilevit

    widths = case.network
    with pytest.MonkeyPatch.context() as patch:  # the reference has the published widths alone, in a table
        row = mobilevit._Widths(widths.layers, widths.expand_ratio, widths.dims, widths.head)
        patch.setitem(mobilevit._WIDTHS, "drawn", row)
        patch.setattr(mobilevit, "_STEM_CHANNELS", widths.stem)
        patch.setattr(mobilevit, "_TRANSFORMER_DEPTHS", widths.depths)
        return python_ref.MobileViT("drawn", case.num_classes)


# --- images ----------------------------------------------------------------------------------------------------------


def make_images(case: Draw, seed: int, device: str) -> Tensor:
    """The images of a draw in its dtype and memory layout."""
    generator = torch.Generator().manual_seed(seed)
    if case.image == torch.uint8:
        shape = (case.batch, case.height, case.width, 3)
        x = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    else:
        x = torch.rand((case.batch, 3, case.height, case.width), generator=generator).to(case.image)
    x = x.to(device)
    if case.layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if case.layout == "strided":
        return torch.stack([x, x], dim=-1)[..., 0]
    if case.layout == "flipped":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if case.layout == "slice":  # starts in the middle of a larger tensor
        larger = x.new_zeros(x.shape[0] + 1, x.shape[1] + 1, x.shape[2] + 3, x.shape[3] + 1)
        view = larger[1:, 1:, 3:, 1:]
        view.copy_(x)
        return view
    return x


def floats(case: Draw, x: Tensor) -> Tensor:
    """Images as the stock model takes them, in float64."""
    if x.dtype != torch.uint8:
        return x.double()
    mean, std = (torch.tensor(values, dtype=torch.float64, device=x.device).reshape(-1, 1, 1) for values in STATISTICS)
    return (x.permute(0, 3, 1, 2).double() / 255 - mean) / std


# --- comparison ------------------------------------------------------------------------------------------------------


def call(case: Draw, model: nn.Module, x: Tensor) -> list[Tensor]:
    """What the draw asks of a model."""
    if case.output == "pre_logits":
        return [model.forward_head(model.forward_features(x), pre_logits=True)]  # type: ignore[operator]
    if case.output == "forward_features":
        return [model.forward_features(x)]  # type: ignore[operator]
    result = model(x, output_hidden_states=True) if case.output == "hidden states" else model(x)
    return list(_tensors(result))


def _tensors(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    else:
        for part in result.values() if hasattr(result, "values") else result:
            yield from _tensors(part)


@dataclass(frozen=True)
class Errors:
    """Relative L2 errors of one output against float64.

    Attributes:
        error: of the backend.
        stock_error: of the stock model in the compute dtype on the same images, its result rounded to the dtype that
            the backend's comes back in.
        norm: L2 norm of the output.
        count: values of the output.
    """

    error: float
    stock_error: float
    norm: float
    count: int


def returned_dtype(case: Draw) -> torch.dtype:
    """The dtype of a draw's results: the images', for uint8 images the compute dtype."""
    return case.dtype if case.image == torch.uint8 else case.image


def run(case: Draw, backend: str, device: str, seed: int | None = None) -> list[Errors]:
    """Runs a draw on a backend.

    Args:
        case: the draw.
        backend, device: where.
        seed: other weights and images than the draw's own.
    """
    case = case if seed is None else dataclasses.replace(case, seed=seed)
    stock = build(case).to(device)
    normalize = STATISTICS if case.image == torch.uint8 else None
    fast = mvk.optimize(stock, dtype=case.dtype, backend=backend, normalize=normalize)
    assert {row.backend for row in mvk.report(fast).rows} <= {backend, "stock"}
    x = make_images(case, case.seed, device)
    with torch.inference_mode():
        result = call(case, fast, x)
        low = call(case, copy.deepcopy(stock).to(case.dtype), floats(case, x).to(case.dtype))
        truth = call(case, stock.double(), floats(case, x))
    returned = returned_dtype(case)
    assert len(result) == len(truth)
    errors = []
    for ours, theirs, exact in zip(result, low, truth, strict=True):
        assert ours.shape == exact.shape
        assert ours.dtype == returned, (ours.dtype, returned)
        pair = [relative_error(result, exact) for result in (ours, theirs.to(returned))]
        errors.append(Errors(*pair, exact.norm().item(), exact.numel()))
    return errors
