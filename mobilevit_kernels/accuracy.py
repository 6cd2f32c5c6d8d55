"""How far an optimized model is from the stock one, on images of one's own."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from mobilevit_kernels.adapters import TransformersMobileViT
from mobilevit_kernels.models import MobileViT, Normalize, own_dtype_of
from mobilevit_kernels.ops import _checks
from mobilevit_kernels.ops.stem import check_images
from mobilevit_kernels.stages import Stage

__all__ = [
    "Accuracy",
    "Comparison",
    "Images",
    "accuracy",
    "check_batches",
    "compare",
    "compute_dtypes",
    "normalize_of",
]

Images: TypeAlias = Tensor | Iterable[Tensor]

TOP = 5


@dataclass(frozen=True)
class Accuracy:
    """The results of a fused model beside those of the stock model on the same images.

    Errors are over all values of an output and all images; with several outputs (feature maps, hidden states) each
    figure is that of its worst output. A value that is not finite in the fused result alone makes them infinite. Where
    the stock model's value is not finite there is nothing to compare with: it is left out of the errors and counted.

    Attributes:
        images: how many were compared.
        device: where the stock model ran.
        stock_dtype, dtype: what the stock and the fused model computed in.
        max_abs_error: the largest absolute difference.
        mean_abs_error: the mean absolute difference.
        relative_l2_error: ``‖fused − stock‖ / ‖stock‖``.
        worst_output: the output with the largest relative error: "logits", "output", "output.3", "hidden_states.0", ….
        top1_agreement: share of images, for segmentation of pixels, whose highest class is the same; None where the
            result is not logits. An image or pixel with logits that are not finite does not agree.
        top5_agreement: of the stock model's five highest classes (of all, where there are fewer), the share that is
            among the fused model's five highest, averaged over the images; their order does not count, and equal
            logits rank as ``torch.topk`` ranks them. None where the result is not logits of images.
        non_finite: values of the fused results that are infinite or NaN, in all outputs.
        stock_non_finite: the same of the stock model's results.
    """

    images: int
    device: str
    stock_dtype: str
    dtype: str
    max_abs_error: float
    mean_abs_error: float
    relative_l2_error: float
    worst_output: str
    top1_agreement: float | None
    top5_agreement: float | None
    non_finite: int
    stock_non_finite: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON: None where a figure is not finite."""
        plain = asdict(self)
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in plain.items()}

    def __str__(self) -> str:
        count = "1 image" if self.images == 1 else f"{self.images} images"
        text = (
            f"{count}, {self.dtype} against the stock model in {self.stock_dtype} on {self.device}: "
            f"max error {self.max_abs_error:.1e}, mean error {self.mean_abs_error:.1e}, "
            f"relative L2 error {self.relative_l2_error:.1e}"
        )
        if self.worst_output not in ("output", "logits"):
            text += f" ({self.worst_output})"
        for name, share in (("top-1", self.top1_agreement), ("top-5", self.top5_agreement)):
            if share is not None:
                text += f", {name} agreement {100 * share:.2f} %"
        if self.non_finite or self.stock_non_finite:
            text += f"; NOT FINITE: {self.non_finite} values fused, {self.stock_non_finite} stock"
        return text


class _Sums:
    """Sums over one output, in float64 on its device."""

    def __init__(self, device: torch.device) -> None:
        self._largest = torch.zeros((), dtype=torch.float64, device=device)
        self._sums = torch.zeros(7, dtype=torch.float64, device=device)

    def add(self, stock: Tensor, fused: Tensor) -> None:
        stock_finite, fused_finite = stock.isfinite(), fused.isfinite()
        both = stock_finite & fused_finite
        error = torch.where(both, fused - stock, 0).abs()
        self._largest = torch.maximum(self._largest, error.amax().double())
        self._sums += torch.stack(
            [
                error.sum(dtype=torch.float64),
                torch.linalg.vector_norm(error, dtype=torch.float64).square(),
                torch.linalg.vector_norm(torch.where(both, stock, 0), dtype=torch.float64).square(),
                both.sum(),
                (~fused_finite).sum(),
                (~stock_finite).sum(),
                (stock_finite & ~fused_finite).sum(),
            ]
        )

    def figures(self) -> tuple[float, float, float, int, int]:
        """Max, mean and relative error, and the values that are not finite: fused, stock."""
        absolute, squared, stock_squared, compared, fused, stock, lost = self._sums.tolist()
        if lost:
            errors = (float("inf"),) * 3
        elif not compared:
            errors = (float("nan"),) * 3
        else:
            relative = (squared / stock_squared) ** 0.5 if stock_squared else float("inf") if squared else 0.0
            errors = (self._largest.item(), absolute / compared, relative)
        return *errors, int(fused), int(stock)


class Comparison:
    """Adds up what :class:`Accuracy` holds, batch by batch; no batch outlives its ``update``.

    Args:
        stock_dtype, dtype, device: as in :class:`Accuracy`.
    """

    def __init__(self, stock_dtype: str, dtype: str, device: torch.device | str) -> None:
        self._labels = {"stock_dtype": stock_dtype, "dtype": dtype, "device": str(device)}
        self._sums: dict[str, _Sums] = {}
        self._images = 0
        self._rows = 0
        self._top1: Tensor | None = None
        self._top5: Tensor | None = None

    def update(self, stock: Mapping[str, Tensor], fused: Mapping[str, Tensor], logits: str | None = None) -> None:
        """Adds a batch.

        Args:
            stock, fused: results by name, images along the first axis.
            logits: which of them is logits, (B, classes) or (B, classes, H, W).

        Raises:
            ValueError: the two do not have the same outputs of the same shapes.
        """
        shapes = [{name: tuple(value.shape) for name, value in results.items()} for results in (stock, fused)]
        if shapes[0] != shapes[1] or not shapes[0]:
            raise ValueError(f"expected the same outputs of both models, got {shapes[0]} stock, {shapes[1]} fused")
        for name, expected in stock.items():
            result = fused[name].to(expected.device)
            common = torch.promote_types(torch.promote_types(expected.dtype, result.dtype), torch.float32)
            expected, result = expected.to(common), result.to(common)
            if name not in self._sums:
                self._sums[name] = _Sums(expected.device)
            self._sums[name].add(expected, result)
            if name == logits:
                self._add_logits(expected, result)
        self._images += next(iter(stock.values())).shape[0]

    def _add_logits(self, stock: Tensor, fused: Tensor) -> None:
        finite = (stock.isfinite() & fused.isfinite()).all(1)
        agreeing = ((stock.argmax(1) == fused.argmax(1)) & finite).sum(dtype=torch.float64)
        self._top1 = agreeing if self._top1 is None else self._top1 + agreeing
        self._rows += finite.numel()
        if stock.dim() == 2:
            count = min(TOP, stock.shape[1])
            best, found = stock.topk(count).indices, fused.topk(count).indices
            shared = (best.unsqueeze(2) == found.unsqueeze(1)).any(2).double().mean(1)
            overlap = torch.where(finite, shared, 0).sum()
            self._top5 = overlap if self._top5 is None else self._top5 + overlap

    def result(self) -> Accuracy:
        """The figures so far.

        Raises:
            ValueError: nothing was compared.
        """
        if not self._images:
            raise ValueError("expected at least one image, got none")
        figures = {name: sums.figures() for name, sums in self._sums.items()}
        # NaN first: it stands for "nothing to compare", which no other output makes good.
        worst = max(figures, key=lambda name: (figures[name][2] != figures[name][2], figures[name][2]))
        by_kind = list(zip(*figures.values(), strict=True))
        largest = [next((value for value in kind if value != value), max(kind)) for kind in by_kind[:3]]
        return Accuracy(
            images=self._images,
            **self._labels,
            max_abs_error=largest[0],
            mean_abs_error=largest[1],
            relative_l2_error=largest[2],
            worst_output=worst,
            top1_agreement=None if self._top1 is None else self._top1.item() / self._rows,
            top5_agreement=None if self._top5 is None else self._top5.item() / self._rows,
            non_finite=int(sum(by_kind[3])),
            stock_non_finite=int(sum(by_kind[4])),
        )


def accuracy(stock: nn.Module, fast: nn.Module, images: Images) -> Accuracy:
    """Runs the stock and the fused model on images and compares their results.

    Both run in eval mode and under ``torch.inference_mode()``, each where it is and in its own dtype, one batch after
    the other; their training flags are as before afterwards.

    Args:
        stock: the model that ``fast`` was made from.
        fast: what :func:`~mobilevit_kernels.optimize` made of it; also a copy of ``stock`` in which
            :func:`~mobilevit_kernels.replace_blocks` has replaced blocks.
        images: one batch or an iterable of batches, on any device: floating point (B, 3, H, W). Where ``fast`` has a
            ``normalize``, batches are as ``fast`` takes them, uint8 (B, H, W, 3) too, and the stock model gets
            ``(image − mean) / std``.

    Returns:
        The errors of the fused results, and how often the classes agree where the results are logits.

    Raises:
        TypeError, ValueError: not such images, no image at all, or models with different outputs.
    """
    return compare(stock, fast, images, "images")


def compare(stock: nn.Module, fast: nn.Module, images: Images, name: str) -> Accuracy:
    """:func:`accuracy`, with the name that its argument ``images`` has in error messages."""
    for argument, model in (("stock", stock), ("fast", fast)):
        if not isinstance(model, nn.Module):
            raise TypeError(f"{argument}: expected a torch.nn.Module, got {type(model).__name__}")
    stem = _stem_of(fast)
    normalize, own_normalize = normalize_of(fast), normalize_of(stock)
    if own_normalize is not None and _plain(own_normalize) != _plain(normalize):
        raise ValueError(
            f"{name}: cannot compare, because the model normalizes its images with {own_normalize} and the fused one "
            f"with {normalize}"
        )
    device = _device_of(stock)
    dtype = own_dtype_of(stock)
    comparison = Comparison(_name(dtype), ", ".join(compute_dtypes(fast)) or _name(own_dtype_of(fast)), device or "cpu")
    options = {"return_dict": True} if isinstance(fast, TransformersMobileViT) else {}
    with torch.inference_mode(), _evaluating(stock), _evaluating(fast):
        for batch in _batches(name, images, normalize):
            if stem is not None:
                axis = 1 if batch.is_floating_point() else 3
                _checks.check_channels(name, batch, stem.packed.sizes[0], axis=axis)
            if batch.shape[0] == 0:
                continue
            x = batch.to(device or batch.device)
            if own_normalize is None:
                x = _normalized(x, normalize, dtype)
            expected = _flatten(stock(x, **options))
            result = _flatten(fast(batch.to(_device_of(fast) or batch.device), **options))
            try:
                comparison.update(expected, result, _logits(stock, fast, expected))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            del x, expected, result  # before the next batch is computed
    try:
        return comparison.result()
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def check_batches(name: str, images: object, normalize: Normalize | None) -> None:
    """Raises for what cannot be images: of an iterable, without taking anything from it.

    Raises:
        TypeError, ValueError: as :func:`accuracy`, with ``name`` for the argument.
    """
    if isinstance(images, Tensor):
        with torch.no_grad():  # images that require grad are fine: both models run without it
            check_images(name, images, normalize)
    elif isinstance(images, str | bytes | Mapping | nn.Module) or not isinstance(images, Iterable):
        raise TypeError(
            f"{name}: expected images (B, 3, H, W) or an iterable of such batches, got {type(images).__name__}"
        )


def compute_dtypes(model: nn.Module) -> list[str]:
    """The compute dtypes of the fused stages in a model, by name."""
    return sorted({_name(module.compute_dtype) for module in model.modules() if isinstance(module, Stage)})


def _batches(name: str, images: Images, normalize: Normalize | None) -> Iterator[Tensor]:
    check_batches(name, images, normalize)
    for i, batch in enumerate([images] if isinstance(images, Tensor) else images):
        if not isinstance(batch, Tensor):
            hint = "; of (images, labels) give the images alone" if isinstance(batch, list | tuple) else ""
            raise TypeError(f"{name}: expected batches that are tensors, batch {i} is a {type(batch).__name__}{hint}")
        check_images(name, batch, normalize)
        yield batch


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """``model`` in eval mode; every module's own flag is put back afterwards."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def _normalized(x: Tensor, normalize: Normalize | None, dtype: torch.dtype) -> Tensor:
    """Images as the stock model takes them, in its dtype."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    if not x.is_floating_point():
        x = x.permute(0, 3, 1, 2).to(wide) / 255
    if normalize is not None:
        mean, std = (torch.tensor(list(values), dtype=wide, device=x.device).reshape(-1, 1, 1) for values in normalize)
        x = (x.to(wide) - mean) / std
    return x.to(dtype)


def _flatten(output: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a model's output by name."""
    if isinstance(output, Tensor):
        return {prefix or "output": output}
    if isinstance(output, Mapping):
        parts = [(f"{prefix}.{key}" if prefix else str(key), value) for key, value in output.items()]
    elif isinstance(output, Sequence) and not isinstance(output, str):
        parts = [(f"{prefix or 'output'}.{i}", value) for i, value in enumerate(output)]
    else:
        parts = []
    return {name: tensor for key, value in parts for name, tensor in _flatten(value, key).items()}


def _logits(stock: nn.Module, fast: nn.Module, outputs: Mapping[str, Tensor]) -> str | None:
    """Which output is logits: what is called so, or what has as many columns as a model says that it has classes."""
    if "logits" in outputs:
        return "logits"
    output = outputs.get("output")
    if output is None or output.dim() != 2:
        return None
    classes = [getattr(model, "num_classes", None) for model in (stock, fast)]
    return "output" if output.shape[1] in classes else None


def _stem_of(model: nn.Module) -> Any:
    """The fused stem of an optimized model; None where it has none."""
    if isinstance(model, TransformersMobileViT):
        return model.mobilevit.stem
    return model.stem if isinstance(model, MobileViT) else None


def normalize_of(model: nn.Module) -> Normalize | None:
    """The normalisation of an optimized model; None where it has none, or is not one."""
    stem = _stem_of(model)
    return None if stem is None else stem.normalize


def _plain(normalize: Normalize | None) -> Any:
    """``normalize`` in a form that compares by its values."""
    return None if normalize is None else [[float(value) for value in values] for values in normalize]


def _device_of(model: nn.Module) -> torch.device | None:
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            return tensor.device
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
