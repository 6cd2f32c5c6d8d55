"""Check of canonical weights: kernels read them by the sizes of a few tensors, so every shape has to agree."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mobilevit_kernels.canonical import (
    Conv3x3Weights,
    EncoderLayerWeights,
    HeadWeights,
    InvertedResidualWeights,
    StageWeights,
    StemWeights,
    TransformerWeights,
)
from mobilevit_kernels.ops._checks import describe

__all__ = ["check_weights"]

Layout = tuple[int | str, ...]

_CONVOLUTION: dict[str, Layout] = {"weight": ("C_out", "C_in", 3, 3), "bias": ("C_out",)}

# Axes by name: the first tensor with a name sets its size. Of optional fields, those that are None are passed over.
_LAYOUTS: dict[type, dict[str, Layout]] = {
    StemWeights: _CONVOLUTION,
    Conv3x3Weights: _CONVOLUTION,
    InvertedResidualWeights: {
        "expand_weight": ("hidden", "C_in", 1, 1),
        "expand_bias": ("hidden",),
        "depthwise_weight": ("hidden", 1, 3, 3),
        "depthwise_bias": ("hidden",),
        "project_weight": ("C_out", "hidden", 1, 1),
        "project_bias": ("C_out",),
    },
    EncoderLayerWeights: {
        "norm1_weight": ("D",),
        "norm1_bias": ("D",),
        "qkv_weight": ("3·D", "D"),
        "qkv_bias": ("3·D",),
        "proj_weight": ("D", "D"),
        "proj_bias": ("D",),
        "norm2_weight": ("D",),
        "norm2_bias": ("D",),
        "fc1_weight": ("mlp", "D"),
        "fc1_bias": ("mlp",),
        "fc2_weight": ("D", "mlp"),
        "fc2_bias": ("D",),
    },
    TransformerWeights: {
        "in_weight": ("D", "C", 1, 1),
        "norm_weight": ("D",),
        "norm_bias": ("D",),
        "out_weight": ("C_out", "D", 1, 1),
        "out_bias": ("C_out",),
    },
    HeadWeights: {
        "conv_weight": ("hidden", "C", 1, 1),
        "conv_bias": ("hidden",),
        "fc_weight": ("classes", "hidden"),
        "fc_bias": ("classes",),
    },
}
_OPTIONAL = ("fc_weight", "fc_bias")


def check_weights(weights: StageWeights) -> None:
    """Raises unless every tensor of canonical weights has the layout that its dataclass declares.

    Raises:
        TypeError: a field that is not a floating-point tensor, or not an encoder layer.
        ValueError: a shape that does not fit the others.
    """
    sizes: dict[str, int] = {}
    _check_fields(weights, "weights", sizes)
    if isinstance(weights, TransformerWeights):
        sizes["3·D"] = 3 * sizes["D"]
        for i, layer in enumerate(weights.layers):
            if not isinstance(layer, EncoderLayerWeights):
                raise TypeError(f"weights.layers[{i}]: expected EncoderLayerWeights, got {type(layer).__name__}")
            _check_fields(layer, f"weights.layers[{i}]", sizes)


def _check_fields(weights: StageWeights | EncoderLayerWeights, path: str, sizes: dict[str, int]) -> None:
    for name, layout in _LAYOUTS[type(weights)].items():
        tensor = getattr(weights, name)
        if tensor is None and name in _OPTIONAL:
            continue
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise TypeError(f"{path}.{name}: expected a floating-point tensor {_text(layout, {})}, got "
                            f"{describe(tensor)}")  # fmt: skip
        if tensor.dim() != len(layout):
            raise ValueError(f"{path}.{name}: expected a tensor {_text(layout, sizes)}, got {describe(tensor)}")
        for axis, size in zip(layout, tensor.shape, strict=True):
            if size != (axis if isinstance(axis, int) else sizes.setdefault(axis, size)):
                raise ValueError(f"{path}.{name}: expected a tensor {_text(layout, sizes)}, got {describe(tensor)}")


def _text(layout: Layout, sizes: Mapping[str, int]) -> str:
    """A layout with the sizes that are known, such as (C_out = 8, 16, 3, 3)."""
    axes = [f"{axis} = {sizes[axis]}" if isinstance(axis, str) and axis in sizes else str(axis) for axis in layout]
    return f"({', '.join(axes)}{',' if len(axes) == 1 else ''})"
