"""From named tensors to the canonical description: written once, for live models and for checkpoint files.

A :class:`Naming` says how one code base calls its tensors; a :class:`Tensors` hands them out by name, from a live
module or from a file. What is not in the tensors (strides, residuals, numbers of heads) comes from the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mobilevit_kernels.canonical import (
    Conv3x3Weights,
    EncoderLayerWeights,
    HeadWeights,
    InvertedResidualWeights,
    StemWeights,
    TransformerWeights,
    fold_batch_norm,
)
from mobilevit_kernels.convert._leaf import join

__all__ = ["Naming", "Tensors", "read_conv3x3", "read_head", "read_inverted_residual", "read_stem", "read_transformer"]


@dataclass(frozen=True)
class Naming:
    """Dotted names in one code base, each relative to the module that owns it."""

    # a convolution with BatchNorm
    convolution: str
    batch_norm: str
    # inverted residual: three of those
    expand: str
    depthwise: str
    project: str
    # MobileViT block
    local: str
    in_projection: str  # the convolution itself
    encoder_layer: str  # with {layer}
    final_norm: str  # with {depth}, where the LayerNorm is numbered with the encoder layers
    out_projection: str
    fusion: str
    # encoder layer
    norm1: str
    qkv: tuple[str, ...]  # one Linear, or one each for q, k, v
    proj: str
    norm2: str
    fc1: str
    fc2: str
    # network, in a checkpoint: {layer} counts from 0, {number} from 1
    stem: str
    mobilenet_block: str  # with {block}: inverted residuals of layers 1 and 2
    downsampling: str  # the inverted residual that opens layers 3, 4 and 5
    mobilevit_block: str
    head_conv: str
    classifier: str


class Tensors(Protocol):
    """A source of tensors by name."""

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor called ``name``, of ``shape`` and a floating dtype, detached."""
        ...

    def eps(self, name: str) -> float:
        """What the normalisation layer called ``name`` adds to the variance."""
        ...


def read_stem(tensors: Tensors, naming: Naming, prefix: str, in_channels: int, out_channels: int) -> StemWeights:
    """Convolution 3×3 at ``prefix``, input channels as they are."""
    return StemWeights(*_fold(tensors, naming, prefix, (out_channels, in_channels, 3, 3)))


def read_conv3x3(tensors: Tensors, naming: Naming, prefix: str, in_channels: int, out_channels: int) -> Conv3x3Weights:
    """Dense convolution 3×3 at ``prefix``."""
    return Conv3x3Weights(*_fold(tensors, naming, prefix, (out_channels, in_channels, 3, 3)))


def read_inverted_residual(
    tensors: Tensors, naming: Naming, prefix: str, in_channels: int, hidden_channels: int, out_channels: int
) -> InvertedResidualWeights:
    """Inverted residual at ``prefix``."""
    return InvertedResidualWeights(
        *_fold(tensors, naming, join(prefix, naming.expand), (hidden_channels, in_channels, 1, 1)),
        *_fold(tensors, naming, join(prefix, naming.depthwise), (hidden_channels, 1, 3, 3)),
        *_fold(tensors, naming, join(prefix, naming.project), (out_channels, hidden_channels, 1, 1)),
    )


def read_transformer(
    tensors: Tensors,
    naming: Naming,
    prefix: str,
    in_channels: int,
    dim: int,
    mlp_channels: Sequence[int],
    out_channels: int,
) -> TransformerWeights:
    """Transformer stage of the MobileViT block at ``prefix``; ``mlp_channels`` has one entry an encoder layer."""
    depth = len(mlp_channels)
    in_weight = _own(tensors.take(join(prefix, naming.in_projection, "weight"), (dim, in_channels, 1, 1)))
    layers = tuple(
        _read_encoder_layer(tensors, naming, join(prefix, naming.encoder_layer.format(layer=layer)), dim, mlp)
        for layer, mlp in enumerate(mlp_channels)
    )
    final_norm = join(prefix, naming.final_norm.format(depth=depth))
    norm_weight, norm_bias = _read_norm(tensors, final_norm, dim)
    out_weight, out_bias = _fold(tensors, naming, join(prefix, naming.out_projection), (out_channels, dim, 1, 1))
    return TransformerWeights(
        in_weight, layers, norm_weight, norm_bias, out_weight, out_bias, eps=tensors.eps(final_norm)
    )


def read_head(
    tensors: Tensors,
    naming: Naming,
    conv: str,
    classifier: str | None,
    in_channels: int,
    hidden_channels: int,
    num_classes: int,
) -> HeadWeights:
    """Convolution 1×1 at ``conv``, and the classifier where there is one."""
    weight, bias = _fold(tensors, naming, conv, (hidden_channels, in_channels, 1, 1))
    if classifier is None:
        return HeadWeights(weight, bias)
    return HeadWeights(weight, bias, *_read_linear(tensors, classifier, num_classes, hidden_channels))


def _read_encoder_layer(tensors: Tensors, naming: Naming, prefix: str, dim: int, mlp: int) -> EncoderLayerWeights:
    parts = len(naming.qkv)
    qkv = [_read_linear(tensors, join(prefix, name), 3 * dim // parts, dim) for name in naming.qkv]
    return EncoderLayerWeights(
        *_read_norm(tensors, join(prefix, naming.norm1), dim),
        torch.cat([weight for weight, _ in qkv]),
        torch.cat([bias for _, bias in qkv]),
        *_read_linear(tensors, join(prefix, naming.proj), dim, dim),
        *_read_norm(tensors, join(prefix, naming.norm2), dim),
        *_read_linear(tensors, join(prefix, naming.fc1), mlp, dim),
        *_read_linear(tensors, join(prefix, naming.fc2), dim, mlp),
    )


def _read_linear(tensors: Tensors, name: str, out_features: int, in_features: int) -> tuple[Tensor, Tensor]:
    weight = tensors.take(join(name, "weight"), (out_features, in_features))
    return _own(weight), _own(tensors.take(join(name, "bias"), (out_features,)))


def _read_norm(tensors: Tensors, name: str, dim: int) -> tuple[Tensor, Tensor]:
    return _own(tensors.take(join(name, "weight"), (dim,))), _own(tensors.take(join(name, "bias"), (dim,)))


def _fold(tensors: Tensors, naming: Naming, prefix: str, shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """The convolution at ``prefix``, with a weight of ``shape``, and the BatchNorm behind it as one convolution."""
    conv, batch_norm = join(prefix, naming.convolution), join(prefix, naming.batch_norm)
    channels = shape[:1]
    weight, bias = fold_batch_norm(
        tensors.take(join(conv, "weight"), shape),
        tensors.take(join(conv, "bias"), channels),
        running_mean=tensors.take(join(batch_norm, "running_mean"), channels),
        running_var=tensors.take(join(batch_norm, "running_var"), channels),
        gamma=tensors.take(join(batch_norm, "weight"), channels),
        beta=tensors.take(join(batch_norm, "bias"), channels),
        eps=tensors.eps(batch_norm),
    )
    return weight.contiguous(), bias


def _own(tensor: Tensor) -> Tensor:
    """A contiguous float32 copy: the description shares no memory with a live model."""
    return tensor.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
