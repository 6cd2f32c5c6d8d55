"""Random canonical weights for networks and blocks that are not read from a stock model."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mobilevit_kernels.canonical import (
    Conv3x3Weights,
    EncoderLayerWeights,
    HeadWeights,
    InvertedResidualSpec,
    InvertedResidualWeights,
    MobileViTBlockSpec,
    NetworkSpec,
    StemWeights,
    TransformerWeights,
)
from mobilevit_kernels.config import MobileViTConfig

__all__ = ["inverted_residual", "mobilevit_block", "network"]


def _conv(out_channels: int, in_channels: int, kernel_size: int) -> Tensor:
    """Kaiming-normal by fan-in, which a BatchNorm at its initial statistics keeps close to unit variance."""
    fan_in = in_channels * kernel_size**2
    return torch.randn(out_channels, in_channels, kernel_size, kernel_size) * math.sqrt(2 / fan_in)


def _linear(out_features: int, in_features: int) -> Tensor:
    weight = torch.empty(out_features, in_features)
    return torch.nn.init.trunc_normal_(weight, std=0.02)


def inverted_residual(
    in_channels: int, out_channels: int, stride: int, expand_ratio: float, dilation: int = 1
) -> InvertedResidualSpec:
    """An inverted residual; hidden channels are rounded to a multiple of 8, never below 90 %, as MobileNetV2 does."""
    wanted = round(in_channels * expand_ratio)
    hidden_channels = max(8, (wanted + 4) // 8 * 8)
    if 10 * hidden_channels < 9 * wanted:
        hidden_channels += 8
    weights = InvertedResidualWeights(
        expand_weight=_conv(hidden_channels, in_channels, 1),
        expand_bias=torch.zeros(hidden_channels),
        depthwise_weight=_conv(hidden_channels, 1, 3),
        depthwise_bias=torch.zeros(hidden_channels),
        project_weight=_conv(out_channels, hidden_channels, 1),
        project_bias=torch.zeros(out_channels),
    )
    return InvertedResidualSpec(weights, stride, dilation, stride == 1 and in_channels == out_channels)


def mobilevit_block(
    channels: int,
    dim: int,
    depth: int,
    *,
    num_heads: int,
    mlp_ratio: float,
    patch_size: tuple[int, int],
    dilation: int = 1,
    fusion: bool = True,
) -> MobileViTBlockSpec:
    """A MobileViT block on maps of ``channels`` channels."""
    mlp_dim = int(dim * mlp_ratio)
    layers = tuple(
        EncoderLayerWeights(
            norm1_weight=torch.ones(dim),
            norm1_bias=torch.zeros(dim),
            qkv_weight=_linear(3 * dim, dim),
            qkv_bias=torch.zeros(3 * dim),
            proj_weight=_linear(dim, dim),
            proj_bias=torch.zeros(dim),
            norm2_weight=torch.ones(dim),
            norm2_bias=torch.zeros(dim),
            fc1_weight=_linear(mlp_dim, dim),
            fc1_bias=torch.zeros(mlp_dim),
            fc2_weight=_linear(dim, mlp_dim),
            fc2_bias=torch.zeros(dim),
        )
        for _ in range(depth)
    )
    return MobileViTBlockSpec(
        local=Conv3x3Weights(_conv(channels, channels, 3), torch.zeros(channels)),
        transformer=TransformerWeights(
            in_weight=_conv(dim, channels, 1),
            layers=layers,
            norm_weight=torch.ones(dim),
            norm_bias=torch.zeros(dim),
            out_weight=_conv(channels, dim, 1),
            out_bias=torch.zeros(channels),
        ),
        fusion=Conv3x3Weights(_conv(channels, 2 * channels, 3), torch.zeros(channels)) if fusion else None,
        num_heads=num_heads,
        patch_size=patch_size,
        dilation=dilation,
    )


def network(config: MobileViTConfig, num_classes: int) -> NetworkSpec:
    """A whole network; ``num_classes=0``: no classifier."""
    layers: list[tuple[InvertedResidualSpec | MobileViTBlockSpec, ...]] = []
    channels = config.stem_channels
    transformers = iter(zip(config.transformer_dims, config.transformer_depths, strict=True))
    for out_channels, count, first_stride in zip(
        config.layer_channels, config.inverted_residuals_per_layer, config.layer_strides, strict=True
    ):
        blocks: list[InvertedResidualSpec | MobileViTBlockSpec] = []
        for i in range(count):
            blocks.append(inverted_residual(channels, out_channels, first_stride if i == 0 else 1, config.expand_ratio))
            channels = out_channels
        if len(layers) >= 2:  # layers 3, 4, 5
            dim, depth = next(transformers)
            blocks.append(
                mobilevit_block(
                    channels,
                    dim,
                    depth,
                    num_heads=config.num_heads,
                    mlp_ratio=config.mlp_ratio,
                    patch_size=config.patch_size,
                )
            )
        layers.append(tuple(blocks))
    return NetworkSpec(
        stem=StemWeights(_conv(config.stem_channels, 3, 3), torch.zeros(config.stem_channels)),
        layers=tuple(layers),
        head=HeadWeights(
            conv_weight=_conv(config.head_channels, channels, 1),
            conv_bias=torch.zeros(config.head_channels),
            fc_weight=_linear(num_classes, config.head_channels) if num_classes else None,
            fc_bias=torch.zeros(num_classes) if num_classes else None,
        ),
    )
