"""``optimize``, ``replace_blocks``, ``restore``, ``report`` and ``load``."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from mobilevit_kernels import convert
from mobilevit_kernels.accuracy import Images, check_batches, compare, compute_dtypes, normalize_of
from mobilevit_kernels.adapters import TransformersMobileViT, adapt
from mobilevit_kernels.canonical import InvertedResidualSpec
from mobilevit_kernels.models import InvertedResidual, MobileViT, MobileViTBlock, Normalize, on_device, own_dtype_of
from mobilevit_kernels.registry import check_name
from mobilevit_kernels.report import Report, Row
from mobilevit_kernels.stages import Stage

__all__ = ["load", "optimize", "replace_blocks", "report", "restore"]


def check_dtype(dtype: object) -> None:
    """Raises unless ``dtype`` is None or one the backends compute in."""
    allowed = (None, torch.float16, torch.bfloat16, torch.float32, torch.float64)
    if dtype not in allowed:
        raise ValueError(f"dtype: expected torch.float16, bfloat16, float32, float64 or None, got {dtype!r}")


def check_module(model: object) -> None:
    """Raises unless ``model`` is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")


def optimize(
    model: nn.Module,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
    graph: bool = False,
    normalize: Normalize | None = None,
    accuracy_check: Images | None = None,
) -> nn.Module:
    """Makes a fast copy of a MobileViT for inference.

    Args:
        model: a timm ``mobilevit_{xxs,xs,s}`` (also ``features_only``, ``num_classes=0``, any ``output_stride``), a
            transformers ``MobileViTModel``, ``MobileViTForImageClassification`` or
            ``MobileViTForSemanticSegmentation``, ml-cvnets' MobileViT, ``python_ref.MobileViT`` or
            :class:`mobilevit_kernels.MobileViT`; or what this function returned. It is not changed.
        dtype: compute dtype; None: float16 while on a GPU, the model's own elsewhere. Results come back in the input's
            dtype.
        backend: "auto", "cuda", "triton", "torch" or "simt".
        graph: capture a CUDA graph for each new input shape.
        normalize: ``(mean, std)`` in units of 0…1, applied to the images in the stem; with it the model also takes
            uint8 (B, H, W, C) images. Channels stay in the order that ``model`` takes. None: what ``model`` itself has,
            where it is this library's.
        accuracy_check: images of your own, as :func:`mobilevit_kernels.accuracy` takes them: both models run on them,
            and the Report of the result has the errors and agreements.

    Returns:
        A new module with the call signature and return type of ``model``, in eval mode, on ``model``'s device.

    Raises:
        TypeError: ``model`` is not an nn.Module; ``accuracy_check`` is not images.
        ValueError: a bad option.
        Unsupported: a ValueError: a model that is not a MobileViT, a MobileViTv2 or v3, a module with hooks,
            parametrisations or adapters; the message names the module.
        BackendUnavailable: ``backend`` was named and cannot serve.
        RuntimeError: ``graph`` where there is no CUDA.
    """
    check_module(model)
    check_dtype(dtype)
    check_name(backend)
    if graph and not torch.cuda.is_available():
        raise RuntimeError("graph: CUDA graphs need a CUDA device, and torch.cuda.is_available() is False")
    if normalize is None:
        normalize = normalize_of(model)
    if accuracy_check is not None:
        check_batches("accuracy_check", accuracy_check, normalize)
    kwargs: dict[str, Any] = {
        "dtype": dtype,
        "backend": backend,
        "graph": graph,
        "normalize": normalize,
        "own_dtype": own_dtype_of(model),
    }
    with torch.no_grad():
        if isinstance(model, MobileViT | TransformersMobileViT):
            again = copy.deepcopy(model).eval()
            again.__dict__.pop("_accuracy", None)
            again.configure(**kwargs)
            fast: nn.Module = again
        else:
            fast = adapt(model, convert.read_network(model), **kwargs)
    if accuracy_check is not None:
        fast.__dict__["_accuracy"] = compare(model, fast, accuracy_check, "accuracy_check")
    return fast


def load(
    name: str,
    checkpoint: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
    normalize: Normalize | None = None,
    device: torch.device | str | None = None,
) -> MobileViT:
    """Builds a MobileViT from a checkpoint file of timm, transformers, ml-cvnets or python_ref.

    The format is told by the tensors' names, the number of classes by their shapes. The model takes RGB images in 0…1:
    the stem of a transformers or ml-cvnets checkpoint, which takes BGR, is flipped.

    Args:
        name: "mobilevit_xxs", "mobilevit_xs" or "mobilevit_s".
        checkpoint: a .safetensors, .pt, .pth or .bin file; pickles are read with ``weights_only=True``.
        dtype, backend, normalize: as for :func:`optimize`.
        device: where the model goes; None: the CPU.

    The file of an optimized network's own ``state_dict()`` is read too, where the network has the published strides and
    classifier, which are not in it; the images that it takes stay in the channel order that they had.

    Raises:
        TypeError: ``checkpoint`` is not a path.
        FileNotFoundError: there is no such file.
        ValueError: an unknown name or backend; a file that is no checkpoint; missing, extra or wrongly shaped tensors,
            by name.
        BackendUnavailable: ``backend`` was named and cannot serve there.
    """
    check_dtype(dtype)
    check_name(backend)
    network = on_device(convert.load_network(name, checkpoint), device)
    return MobileViT(network, dtype=dtype, backend=backend, normalize=normalize)


def replace_blocks(model: nn.Module, dtype: torch.dtype | None = None, backend: str = "auto") -> Report:
    """Replaces the MobileViT blocks and inverted residuals inside any network, in place.

    Args:
        model: a network with blocks of timm, transformers, ml-cvnets or python_ref anywhere below it.
        dtype: compute dtype of the blocks; None: float16 while on a GPU, each block's own elsewhere. A block
            returns its input's dtype.
        backend: "auto", "cuda", "triton", "torch" or "simt".

    Returns:
        A Report with every block that was replaced, and every block of the family that was not, with the reason.

    Raises:
        TypeError: ``model`` is not an nn.Module.
        ValueError: a bad option; ``model`` is itself a block (there is no parent to put the new one into).
        BackendUnavailable: ``backend`` was named and cannot serve; nothing has been replaced then.
    """
    check_module(model)
    check_dtype(dtype)
    check_name(backend)
    before = sum(isinstance(module, InvertedResidual | MobileViTBlock) for module in model.modules())
    rows: list[Row] = []
    fresh: dict[nn.Module, nn.Module] = {}  # a block that stands in two places stays one block
    places: list[tuple[nn.Module, str, nn.Module]] = []
    for path, parent, child_name, block in _blocks(model):
        if block not in fresh:
            try:
                spec = convert.read_block(block)
            except convert.Unsupported as refusal:
                rows.append(Row(path, type(block).__name__, "stock", "", str(refusal)))
                continue
            if parent is None:
                raise ValueError(
                    f"model: expected a network with blocks inside, got a single block ({type(block).__name__}); "
                    f"use mobilevit_kernels.{_module_class(spec).__name__}.from_module(model)"
                )
            with torch.no_grad():
                replacement = _module_class(spec)(spec, dtype=dtype, backend=backend, own_dtype=own_dtype_of(block))
            replacement.train(block.training)
            replacement.__dict__["_original"] = block  # past nn.Module: the original is no part of the network now
            replacement.__dict__["_was_training"] = block.training
            fresh[block] = replacement
        assert parent is not None
        places.append((parent, child_name, fresh[block]))
        rows.extend(_rows(fresh[block], path))
    for parent, child_name, replacement in places:
        setattr(parent, child_name, replacement)
    notes = [f"{len(fresh)} blocks replaced"]
    if before:
        notes.append(f"{before} blocks were replaced already; mobilevit_kernels.report(model) lists them")
    if not rows and not before:
        notes.append(
            "none of MobileViT's blocks or inverted residuals was found, as timm (byobnet), transformers, ml-cvnets or "
            "python_ref build them; other networks' inverted residuals compute something else"
        )
    return Report(rows, notes)


def _module_class(spec: Any) -> Any:
    return InvertedResidual if isinstance(spec, InvertedResidualSpec) else MobileViTBlock


def _blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module | None, str, nn.Module]]:
    """Blocks of the family below ``model``, outermost first: (path, parent, name in the parent, block)."""

    def walk(path: str, parent: nn.Module | None, name: str, module: nn.Module) -> Any:
        if isinstance(module, InvertedResidual | MobileViTBlock | MobileViT):
            return
        try:
            known = convert.read_block(module) is not None
        except convert.Unsupported:
            known = True
        if known:
            yield path, parent, name, module
            return
        for child_name, child in list(module._modules.items()):  # named_children would skip a module's second place
            if child is not None:
                yield from walk(f"{path}.{child_name}" if path else child_name, module, child_name, child)

    return walk("", None, "", model)  # type: ignore[no-any-return]


def restore(model: nn.Module) -> int:
    """Undoes :func:`replace_blocks`: puts the original blocks back.

    They go to the device of the new ones, and to the dtype that the network was cast to meanwhile, if it was.

    Returns:
        How many places were restored.

    Raises:
        TypeError: ``model`` is not an nn.Module.
    """
    check_module(model)
    restored = 0
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            original = None if child is None else child.__dict__.get("_original")
            if child is not None and original is not None:
                stage = next(stage for stage in child.modules() if isinstance(stage, Stage))
                original.to(device=stage.device, dtype=stage.cast_to)
                if child.training != child.__dict__["_was_training"]:  # else each module inside keeps its own flag
                    original.train(child.training)
                setattr(parent, name, original)
                restored += 1
    return restored


def report(model: nn.Module) -> Report:
    """What runs where in an optimized model, or in a network with replaced blocks.

    With ``optimize(…, accuracy_check=…)`` it also has what was measured then, as long as the compute dtype is the same.

    Args:
        model: what :func:`optimize`, :func:`load` or :func:`create_model` returned, or a network that
            :func:`replace_blocks` was called on.

    Raises:
        TypeError: ``model`` is not an nn.Module.
        ValueError: nothing in ``model`` is served by this library.
    """
    check_module(model)
    rows = _rows(model, "")
    if not rows:
        raise ValueError(f"model: expected an optimized model or one with replaced blocks, got {type(model).__name__}")
    dtypes = ", ".join(compute_dtypes(model))
    for name, module in model.named_children():
        if name in ("stock_head", "segmentation_head"):
            rows.append(Row(name, type(module).__name__, "stock", "", "not a stage of MobileViT: copied as it is"))
    notes = [f"compute dtype: {dtypes}"]
    for module in model.modules():
        if isinstance(module, MobileViT):
            notes += module.engine.notes()
    accuracy = model.__dict__.get("_accuracy")
    if accuracy is not None and accuracy.dtype != dtypes:
        notes.append(f"accuracy: checked in {accuracy.dtype}, not in {dtypes}")
        accuracy = None
    return Report(rows, notes, accuracy)


def _rows(module: nn.Module, prefix: str) -> list[Row]:
    return [
        Row(
            ".".join(part for part in (prefix, name) if part),
            stage.shape,
            stage.packed.backend,
            stage.variant,
            stage.choice.reason,
        )
        for name, stage in module.named_modules()
        if isinstance(stage, Stage)
    ]
