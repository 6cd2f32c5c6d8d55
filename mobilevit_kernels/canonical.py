"""The canonical description of a network: what every converter writes and every backend packs.

Plain dataclasses of float32 tensors in PyTorch's own layouts, BatchNorm folded into the convolution before it (in
float64, rounded once). Axes: C channels, D transformer width, N tokens a sequence, P pixels a patch.

Data goes one way: foreign model → this description → packed weights of one backend → launches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

__all__ = [
    "AttentionShape",
    "Conv3x3Weights",
    "EncoderLayerWeights",
    "HeadWeights",
    "InvertedResidualSpec",
    "InvertedResidualWeights",
    "MobileViTBlockSpec",
    "NetworkSpec",
    "StageWeights",
    "StemWeights",
    "TransformerWeights",
    "fold_batch_norm",
    "from_tensors",
    "named_tensors",
    "to_device",
]


@dataclass(frozen=True, eq=False)
class StemWeights:
    """Convolution 3×3, stride 2, padding 1, BatchNorm folded, SiLU: (B, C_in, H, W) → (B, C_out, ⌈H/2⌉, ⌈W/2⌉)."""

    weight: Tensor  # (C_out, C_in, 3, 3); C_in is 3 in every published network
    bias: Tensor  # (C_out,)


@dataclass(frozen=True, eq=False)
class Conv3x3Weights:
    """Dense convolution 3×3, stride 1, padding = dilation, BatchNorm folded, SiLU."""

    weight: Tensor  # (C_out, C_in, 3, 3); for a fusion convolution C_in counts both inputs, the block's input first
    bias: Tensor  # (C_out,)


@dataclass(frozen=True, eq=False)
class InvertedResidualWeights:
    """MobileNetV2 block: 1×1 expand + SiLU → 3×3 depthwise + SiLU → 1×1 project; BatchNorm folded into all three."""

    expand_weight: Tensor  # (hidden, C_in, 1, 1)
    expand_bias: Tensor  # (hidden,)
    depthwise_weight: Tensor  # (hidden, 1, 3, 3)
    depthwise_bias: Tensor  # (hidden,)
    project_weight: Tensor  # (C_out, hidden, 1, 1)
    project_bias: Tensor  # (C_out,)


@dataclass(frozen=True, eq=False)
class EncoderLayerWeights:
    """Pre-norm encoder layer: x += proj(MHA(LN1(x))); x += fc2(SiLU(fc1(LN2(x))))."""

    norm1_weight: Tensor  # (D,)
    norm1_bias: Tensor  # (D,)
    qkv_weight: Tensor  # (3·D, D): rows q, k, v, each (heads, head_dim)
    qkv_bias: Tensor  # (3·D,)
    proj_weight: Tensor  # (D, D)
    proj_bias: Tensor  # (D,)
    norm2_weight: Tensor  # (D,)
    norm2_bias: Tensor  # (D,)
    fc1_weight: Tensor  # (mlp, D)
    fc1_bias: Tensor  # (mlp,)
    fc2_weight: Tensor  # (D, mlp)
    fc2_bias: Tensor  # (D,)


@dataclass(frozen=True, eq=False)
class TransformerWeights:
    """1×1 in → unfold → encoder layers → LayerNorm → fold → 1×1 out (BatchNorm folded) + SiLU."""

    in_weight: Tensor  # (D, C, 1, 1), no bias
    layers: tuple[EncoderLayerWeights, ...]
    norm_weight: Tensor  # (D,)
    norm_bias: Tensor  # (D,)
    out_weight: Tensor  # (C_out, D, 1, 1)
    out_bias: Tensor  # (C_out,)
    eps: float = 1e-5  # of every LayerNorm


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """Convolution 1×1 (BatchNorm folded) + SiLU → global average pool → linear."""

    conv_weight: Tensor  # (hidden, C, 1, 1)
    conv_bias: Tensor  # (hidden,)
    fc_weight: Tensor | None = None  # (classes, hidden); None: the pooled features are the output
    fc_bias: Tensor | None = None  # (classes,); None: zeros


@dataclass(frozen=True)
class AttentionShape:
    """Stands for weights where a backend is asked about ``unfold_attention_fold``, which has none."""

    head_dim: int


StageWeights: TypeAlias = StemWeights | Conv3x3Weights | InvertedResidualWeights | TransformerWeights | HeadWeights


@dataclass(frozen=True, eq=False)
class InvertedResidualSpec:
    """One inverted residual in a network."""

    weights: InvertedResidualWeights
    stride: int = 1  # of the depthwise convolution, 1 or 2
    dilation: int = 1  # of the depthwise convolution; padding is the same
    residual: bool = False  # add the input to the output


@dataclass(frozen=True, eq=False)
class MobileViTBlockSpec:
    """One MobileViT block: [inverted residual →] 3×3 convolution → transformer stage → 3×3 fusion convolution."""

    local: Conv3x3Weights
    transformer: TransformerWeights
    fusion: Conv3x3Weights | None  # None: a block without fusion, whose output is the transformer stage's
    num_heads: int = 4
    patch_size: tuple[int, int] = (2, 2)  # (height, width)
    dilation: int = 1  # of `local` alone
    downsampling: InvertedResidualSpec | None = None  # where the code base keeps it inside the same module


@dataclass(frozen=True, eq=False)
class NetworkSpec:
    """A whole network: stem, layers of blocks, head (None: the last layer's map is the output)."""

    stem: StemWeights
    layers: tuple[tuple[InvertedResidualSpec | MobileViTBlockSpec, ...], ...]
    head: HeadWeights | None


def fold_batch_norm(
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Folds an inference-mode BatchNorm into the convolution before it.

    ``BN(Wx + b) = (γ/√(σ²+ε)·W) x + (b − μ)·γ/√(σ²+ε) + β``, computed in float64 and rounded to float32 once.

    Args:
        weight: (C_out, C_in/groups, kh, kw).
        bias: (C_out,) or None.
        running_mean, running_var: (C_out,).
        gamma, beta: the affine part, (C_out,) each, or None for a BatchNorm without one.
        eps: added to the variance.

    Returns:
        The folded weight and bias, float32, detached, on ``weight``'s device.
    """
    scale = torch.rsqrt(running_var.double() + eps)
    if gamma is not None:
        scale = scale * gamma.double()
    shift = -running_mean.double() if bias is None else bias.double() - running_mean.double()
    folded_bias = shift * scale
    if beta is not None:
        folded_bias = folded_bias + beta.double()
    folded_weight = weight.double() * scale.reshape(-1, *[1] * (weight.dim() - 1))
    return folded_weight.float().detach(), folded_bias.float().detach()


def named_tensors(weights: StageWeights | EncoderLayerWeights, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Walks the tensors of a weights dataclass in declaration order, with dotted names (``layers.0.qkv_weight``)."""
    for field in dataclasses.fields(weights):
        value = getattr(weights, field.name)
        if isinstance(value, Tensor):
            yield prefix + field.name, value
        elif isinstance(value, tuple):
            for i, layer in enumerate(value):
                yield from named_tensors(layer, f"{prefix}{field.name}.{i}.")


W = TypeVar("W")


def to_device(value: W, device: torch.device) -> W:
    """A description with its tensors on another device."""
    moved: Any = value
    if isinstance(value, Tensor):
        moved = value.to(device)
    elif isinstance(value, tuple):
        moved = tuple(to_device(item, device) for item in value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: to_device(getattr(value, field.name), device) for field in dataclasses.fields(value)}
        moved = dataclasses.replace(value, **fields)
    return moved  # type: ignore[no-any-return]


def from_tensors(cls: type[W], tensors: Mapping[str, Tensor], **others: Any) -> W:
    """The inverse of :func:`named_tensors`: builds ``cls`` from tensors under their dotted names.

    Args:
        cls: a weights dataclass.
        tensors: every tensor of it; an optional one may be absent.
        others: the fields that are no tensors.
    """
    values: dict[str, Any] = dict(others)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.name in tensors:
            values[field.name] = tensors[field.name]
        elif field.name == "layers":
            by_layer: dict[int, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                if name.startswith("layers."):
                    _, index, rest = name.split(".", 2)
                    by_layer.setdefault(int(index), {})[rest] = tensor
            values["layers"] = tuple(from_tensors(EncoderLayerWeights, by_layer[i]) for i in sorted(by_layer))
    return cls(**values)
