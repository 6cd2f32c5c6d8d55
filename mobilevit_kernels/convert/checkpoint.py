"""Checkpoint files: which code base wrote it, by its keys; which architecture it fits, by its shapes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mobilevit_kernels.canonical import InvertedResidualSpec, MobileViTBlockSpec, NetworkSpec
from mobilevit_kernels.config import CONFIGS, MobileViTConfig, get_config
from mobilevit_kernels.convert import _naming, cvnets, timm, transformers
from mobilevit_kernels.convert._leaf import Unsupported, join
from mobilevit_kernels.convert._naming import Naming

__all__ = ["load_network"]


@dataclass(frozen=True)
class _Format:
    """A code base's checkpoints."""

    name: str
    naming: Naming
    bgr: bool  # whether its published weights take BGR images
    backbone_prefix: str = ""  # in front of everything but the classifier, under a task head

    @property
    def signature(self) -> str:
        """A key that every checkpoint of this code base has, and none of another."""
        return join(self.naming.stem, self.naming.convolution, "weight")


_FORMATS = (
    _Format("timm", timm.NAMING, bgr=False),
    _Format("transformers", transformers.NAMING, bgr=True, backbone_prefix="mobilevit."),
    _Format("ml-cvnets", cvnets.NAMING, bgr=True),
)

# Where a training script put the state dict, the averaged weights first, as timm prefers them.
_WRAPPERS = ("state_dict_ema", "model_ema", "ema_state_dict", "state_dict", "model_state_dict", "model")
# What DistributedDataParallel, torch.compile and Lightning put in front of every key.
_PREFIXES = ("module.", "_orig_mod.", "model.")
# Parts of MobileViTv2's keys, of timm, transformers and ml-cvnets in this order.
_V2_MARKS = (".attn.qkv_proj.", ".attention.qkv_proj.", ".pre_norm_attn.")
_EPS = 1e-5  # of every BatchNorm and LayerNorm in the published networks; a checkpoint does not hold it


def load_network(name: str, checkpoint: str | os.PathLike[str]) -> NetworkSpec:
    """Reads a checkpoint of timm, transformers, ml-cvnets or python_ref, or the state dict of an optimized network.

    The format is told by the keys. The number of classes is the classifier's; without one, the head ends at the pooled
    features. The architecture's other facts (strides, 4 heads, patches of 2 × 2) come from ``name``.

    Args:
        name: "mobilevit_xxs", "mobilevit_xs" or "mobilevit_s".
        checkpoint: a file: ``.safetensors``, or anything ``torch.load(weights_only=True)`` reads. The state dict may
            lie inside a dictionary under ``state_dict``, ``model``, ``model_state_dict``, ``model_ema`` or the like
            (averaged weights win over others), and its keys behind ``module.``, ``_orig_mod.`` or ``model.``.
            float16, bfloat16 and float64 tensors are read exactly, and rounded to float32 once, after folding.

    Returns:
        The network, on the CPU, for RGB images whichever order the file's code base takes. An optimized network's own
        state dict does not tell: it keeps its order.

    Raises:
        TypeError: ``checkpoint`` is not a path.
        FileNotFoundError: there is no such file.
        Unsupported: the weights of a MobileViTv2 or of a segmentation network.
        ValueError: another name; a file that is no checkpoint, is damaged, or needs code to be run; a checkpoint of
            another network. Missing, unexpected and wrongly shaped tensors are named in one error, which also says
            which of the three architectures fits, if one does.
    """
    config = get_config(name)
    if not isinstance(checkpoint, str | os.PathLike):
        raise TypeError(f"checkpoint: expected a path, got {type(checkpoint).__name__}")
    path = Path(checkpoint)
    state = _state_dict(_read_file(path), path)
    if (own := _own_network(name, state, path)) is not None:
        return own
    fmt, tensors = _recognise(state, path)
    plan = _FilePlan.read(fmt, tensors, config)
    if plan.problems:
        fitting = [other for other, c in CONFIGS.items() if not _FilePlan.read(fmt, tensors, c).problems]
        hint = f"; its shapes are those of {fitting[0]}" if fitting else ""
        raise ValueError(f"{path}: {fmt.name} weights that do not fit {name}: {'; '.join(plan.problems)}{hint}")
    network = plan.network
    if fmt.bgr:
        stem = replace(network.stem, weight=network.stem.weight.flip(1))
        network = replace(network, stem=stem)
    return network


def _read_file(path: Path) -> Any:
    """What the file holds; ValueError, naming it, where that cannot be read."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    if path.is_dir():
        raise ValueError(f"{path}: is a directory, expected a checkpoint file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: is empty, expected a checkpoint file")
    if path.suffix.lower() == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: is no safetensors file, or is damaged: {error}") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch.load raises whatever its parsers do: pickle's, zip's, Unicode and key errors
        needed = re.search(r"(?:GLOBAL|global:?|class:?) ([\w.]*\.[\w.]+)", str(error))
        if needed:
            raise ValueError(
                f"{path}: needs {needed.group(1)} to be run, and only files of plain tensors are read; save the "
                f"state_dict alone, as .safetensors or with torch.save"
            ) from error
        # torch's own text recommends weights_only=False, so it stays in the cause.
        raise ValueError(
            f"{path}: is damaged, incomplete, or no file of plain tensors that torch.load(weights_only=True) reads"
        ) from error


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors in what a file holds, by key, out of wrappers and prefixes."""
    while isinstance(content, Mapping):
        wrapper = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if wrapper is None:
            break
        content = content[wrapper]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path}: expected a state dict, a dictionary of tensors, got {type(content).__name__}")
    state = {str(key): value for key, value in content.items()}
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), ""):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _recognise(state: dict[str, Tensor], path: Path) -> tuple[_Format, dict[str, Tensor]]:
    """The format of a state dict, and the state dict with bare keys."""
    if any(mark in key for mark in _V2_MARKS for key in state):
        raise Unsupported(f"{path}: weights of a MobileViTv2, which is not supported; expected MobileViT (version 1)")
    for fmt in _FORMATS:
        prefix = fmt.backbone_prefix
        if prefix and prefix + fmt.signature in state:
            state = {key.removeprefix(prefix): value for key, value in state.items()}
        if fmt.signature not in state:
            continue
        segmentation = next((key for key in state if key.startswith(("segmentation_head.", "seg_head."))), None)
        if segmentation:
            raise Unsupported(
                f"{path}: weights of a segmentation network ({segmentation}, …), which are not loaded by themselves; "
                f"build the model with {fmt.name} and pass it to mobilevit_kernels.optimize"
            )
        return fmt, state
    signatures = ", ".join(f"{fmt.signature} ({fmt.name})" for fmt in _FORMATS)
    raise ValueError(
        f"{path}: not a MobileViT checkpoint of timm, transformers or ml-cvnets: none of {signatures} among its "
        f"{len(state)} keys ({_some(list(state))})"
    )


def _own_network(name: str, state: Mapping[str, Tensor], path: Path) -> NetworkSpec | None:
    """The network of a state dict that an optimized model saved; None: it is another format."""
    state = {key.removeprefix(_FORMATS[1].backbone_prefix): tensor for key, tensor in state.items()}
    if "stem.weight" not in state or "layers.0.0.stage.expand_weight" not in state:
        return None
    from mobilevit_kernels.models import create_model

    classifier = state.get("head.fc_weight")
    model = create_model(name, 0 if classifier is None else classifier.shape[0], dtype=torch.float32, backend="torch")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{path}: weights of an optimized network that do not fit {name}: {said[:500]}") from error
    return model.spec


def _some(names: list[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")


@dataclass
class _FileTensors:
    """The tensors of a file, with account kept of what was asked for and not found."""

    state: Mapping[str, Tensor]
    optional: tuple[str, ...]  # ends of keys that may be absent, and stand for zeros then
    taken: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    unfit: list[str] = field(default_factory=list)

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        tensor = self.state.get(name)
        self.taken.add(name)
        if tensor is None:
            if not name.endswith(self.optional):
                self.missing.append(name)
        elif not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            self.unfit.append(f"{name} (expected a floating-point tensor, got {got})")
        elif tuple(tensor.shape) != shape:
            self.unfit.append(f"{name} (expected {shape}, got {tuple(tensor.shape)})")
        else:
            return tensor.detach()
        return torch.zeros(shape)  # a stand-in: reading goes on, so that one error can name everything

    def eps(self, name: str) -> float:
        return _EPS


@dataclass(frozen=True)
class _FilePlan:
    """A file read as one architecture: the network, and what does not fit."""

    network: NetworkSpec
    problems: list[str]

    @classmethod
    def read(cls, fmt: _Format, state: Mapping[str, Tensor], config: MobileViTConfig) -> _FilePlan:
        naming = fmt.naming
        optional = [f".{naming.convolution}.bias"]  # BatchNorm's shift takes its place in every published network
        if not any(key.endswith(f".{name}.bias") for key in state for name in naming.qkv):
            optional += [f".{name}.bias" for name in naming.qkv if len(naming.qkv) > 1]  # qkv_bias=False
        tensors = _FileTensors(state, tuple(optional))
        network = _read_network(tensors, naming, config, _num_classes(state, naming))

        extra = [key for key in state if key not in tensors.taken and not key.endswith("num_batches_tracked")]
        problems = [
            f"{len(names)} {what}: {_some(names)}"
            for what, names in (
                ("missing", tensors.missing),
                ("of another shape", tensors.unfit),
                ("unexpected", extra),
            )
            if names
        ]
        return cls(network, problems)


def _num_classes(state: Mapping[str, Tensor], naming: Naming) -> int | None:
    """The classifier's outputs; None without a classifier."""
    for attribute in ("weight", "bias"):
        tensor = state.get(join(naming.classifier, attribute))
        if isinstance(tensor, Tensor) and tensor.dim():
            return tensor.shape[0]
    return None


def _read_network(
    tensors: _FileTensors, naming: Naming, config: MobileViTConfig, num_classes: int | None
) -> NetworkSpec:
    """The network called for by ``config``, from ``tensors``."""
    layers = []
    in_channels = config.stem_channels
    for layer, out_channels in enumerate(config.layer_channels):
        transformer = layer - (len(config.layer_channels) - len(config.transformer_dims))
        blocks: list[InvertedResidualSpec | MobileViTBlockSpec] = []
        for block in range(config.inverted_residuals_per_layer[layer]):
            place = naming.mobilenet_block if transformer < 0 else naming.downsampling
            prefix = place.format(layer=layer, number=layer + 1, block=block)
            hidden_channels = in_channels * config.expand_ratio
            weights = _naming.read_inverted_residual(
                tensors, naming, prefix, in_channels, hidden_channels, out_channels
            )
            stride = config.layer_strides[layer] if block == 0 else 1
            blocks.append(
                InvertedResidualSpec(weights, stride=stride, residual=stride == 1 and in_channels == out_channels)
            )
            in_channels = out_channels
        if transformer >= 0:
            dim = config.transformer_dims[transformer]
            prefix = naming.mobilevit_block.format(layer=layer, number=layer + 1)
            mlp_channels = [dim * config.mlp_ratio] * config.transformer_depths[transformer]
            blocks.append(
                MobileViTBlockSpec(
                    local=_naming.read_conv3x3(tensors, naming, join(prefix, naming.local), out_channels, out_channels),
                    transformer=_naming.read_transformer(
                        tensors, naming, prefix, out_channels, dim, mlp_channels, out_channels
                    ),
                    fusion=_naming.read_conv3x3(
                        tensors, naming, join(prefix, naming.fusion), 2 * out_channels, out_channels
                    ),
                    num_heads=config.num_heads,
                    patch_size=config.patch_size,
                )
            )
        layers.append(tuple(blocks))
    classifier = None if num_classes is None else naming.classifier
    return NetworkSpec(
        stem=_naming.read_stem(tensors, naming, naming.stem, 3, config.stem_channels),
        layers=tuple(layers),
        head=_naming.read_head(
            tensors, naming, naming.head_conv, classifier, in_channels, config.head_channels, num_classes or 0
        ),
    )
