"""A stand-in for ml-cvnets' MobileViT, because ml-cvnets is on no package registry.

The same class names, module structure, attribute names and state-dict keys as apple/ml-cvnets (``cvnets/models/
classification/mobilevit.py``, ``cvnets/modules/{mobilevit_block,mobilenetv2,transformer}.py``, ``cvnets/layers``),
written anew and cut down to inference. Images are BGR.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilevit_kernels.config import get_config


class Conv2d(nn.Conv2d):
    pass


class BatchNorm2d(nn.BatchNorm2d):
    pass


class Swish(nn.SiLU):
    pass


class Dropout(nn.Dropout):
    pass


class ConvLayer2d(nn.Module):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        use_norm: bool = True,
        use_act: bool = True,
    ) -> None:
        super().__init__()
        padding = (kernel_size - 1) // 2 * dilation
        block = nn.Sequential()
        block.add_module(
            "conv", Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False)
        )
        if use_norm:
            block.add_module("norm", BatchNorm2d(out_channels))
        if use_act:
            block.add_module("act", Swish())
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class LinearLayer(nn.Module):
    def __init__(self, in_features: int, out_features: int, bias: bool = True, channel_first: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        nn.init.xavier_uniform_(self.weight)
        self.in_features = in_features
        self.out_features = out_features
        self.channel_first = channel_first

    def forward(self, x: Tensor) -> Tensor:
        assert not self.channel_first
        return F.linear(x, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        if x.shape[1] == self.normalized_shape[0] and x.ndim > 2:  # taken for channel-first
            std, mean = torch.std_mean(x, dim=1, keepdim=True, unbiased=False)
            shape = [1, -1] + [1] * (x.ndim - 2)
            return (x - mean) / (std + self.eps) * self.weight.reshape(shape) + self.bias.reshape(shape)
        return super().forward(x)


class GlobalPool(nn.Module):
    def __init__(self, pool_type: str = "mean", keep_dim: bool = False) -> None:
        super().__init__()
        self.pool_type = pool_type
        self.keep_dim = keep_dim

    def forward(self, x: Tensor) -> Tensor:
        x = x.abs() if self.pool_type == "abs" else x
        return x.mean(dim=(-2, -1), keepdim=self.keep_dim)


class MultiHeadAttention(nn.Module):
    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.qkv_proj = LinearLayer(embed_dim, 3 * embed_dim)
        self.attn_dropout = Dropout(0.1)
        self.out_proj = LinearLayer(embed_dim, embed_dim)
        self.head_dim = embed_dim // num_heads
        self.scaling = self.head_dim**-0.5
        self.softmax = nn.Softmax(dim=-1)
        self.num_heads = num_heads
        self.embed_dim = embed_dim
        self.coreml_compatible = False

    def forward_default(self, x_q: Tensor) -> Tensor:
        batch, tokens, _ = x_q.shape
        qkv = self.qkv_proj(x_q).reshape(batch, tokens, 3, self.num_heads, -1).transpose(1, 3)
        query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        attention = self.softmax((query * self.scaling) @ key.transpose(-1, -2))
        out = self.attn_dropout(attention) @ value
        return self.out_proj(out.transpose(1, 2).reshape(batch, tokens, -1))

    def forward(self, x_q: Tensor) -> Tensor:
        return self.forward_default(x_q)


class TransformerEncoder(nn.Module):
    def __init__(self, embed_dim: int, ffn_latent_dim: int, num_heads: int) -> None:
        super().__init__()
        self.pre_norm_mha = nn.Sequential(LayerNorm(embed_dim), MultiHeadAttention(embed_dim, num_heads), Dropout(0.1))
        self.pre_norm_ffn = nn.Sequential(
            LayerNorm(embed_dim),
            LinearLayer(embed_dim, ffn_latent_dim),
            Swish(),
            Dropout(0.0),
            LinearLayer(ffn_latent_dim, embed_dim),
            Dropout(0.1),
        )
        self.drop_path = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.pre_norm_mha[2](self.pre_norm_mha[1](x_q=self.pre_norm_mha[0](x))))
        return x + self.drop_path(self.pre_norm_ffn(x))


class InvertedResidual(nn.Module):
    def __init__(
        self, in_channels: int, out_channels: int, stride: int, expand_ratio: float, dilation: int = 1
    ) -> None:
        super().__init__()
        hidden = round(in_channels * expand_ratio)
        block = nn.Sequential()
        if expand_ratio != 1:
            block.add_module("exp_1x1", ConvLayer2d(in_channels, hidden, 1))
        block.add_module("conv_3x3", ConvLayer2d(hidden, hidden, 3, stride, dilation, groups=hidden))
        block.add_module("red_1x1", ConvLayer2d(hidden, out_channels, 1, use_act=False))
        self.block = block
        self.stride = stride
        self.dilation = dilation
        self.use_res_connect = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x + self.block(x) if self.use_res_connect else self.block(x)


class MobileViTBlock(nn.Module):
    def __init__(
        self,
        in_channels: int,
        transformer_dim: int,
        ffn_dim: int,
        n_transformer_blocks: int = 2,
        head_dim: int = 32,
        patch_h: int = 2,
        patch_w: int = 2,
        conv_ksize: int = 3,
        dilation: int = 1,
        no_fusion: bool = False,
    ) -> None:
        super().__init__()
        self.local_rep = nn.Sequential()
        self.local_rep.add_module("conv_3x3", ConvLayer2d(in_channels, in_channels, conv_ksize, dilation=dilation))
        self.local_rep.add_module(
            "conv_1x1", ConvLayer2d(in_channels, transformer_dim, 1, use_norm=False, use_act=False)
        )
        heads = transformer_dim // head_dim
        encoder = [TransformerEncoder(transformer_dim, ffn_dim, heads) for _ in range(n_transformer_blocks)]
        self.global_rep = nn.Sequential(*encoder, LayerNorm(transformer_dim))
        self.conv_proj = ConvLayer2d(transformer_dim, in_channels, 1)
        self.fusion = None if no_fusion else ConvLayer2d(2 * in_channels, in_channels, conv_ksize)
        self.patch_h = patch_h
        self.patch_w = patch_w
        self.patch_area = patch_h * patch_w

    def unfolding(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        batch, channels, height, width = x.shape
        rows, columns = math.ceil(height / self.patch_h), math.ceil(width / self.patch_w)
        size = (rows * self.patch_h, columns * self.patch_w)
        resized = size != (height, width)
        if resized:
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        x = x.reshape(batch * channels * rows, self.patch_h, columns, self.patch_w).transpose(1, 2)
        x = x.reshape(batch, channels, rows * columns, self.patch_area).transpose(1, 3)
        info = {"orig_size": (height, width), "batch": batch, "resized": resized, "rows": rows, "columns": columns}
        return x.reshape(batch * self.patch_area, rows * columns, channels), info

    def folding(self, patches: Tensor, info: dict[str, Any]) -> Tensor:
        batch, rows, columns = info["batch"], info["rows"], info["columns"]
        x = patches.reshape(batch, self.patch_area, rows * columns, -1).transpose(1, 3)
        channels = x.shape[1]
        x = x.reshape(batch * channels * rows, columns, self.patch_h, self.patch_w).transpose(1, 2)
        x = x.reshape(batch, channels, rows * self.patch_h, columns * self.patch_w)
        if info["resized"]:
            x = F.interpolate(x, size=info["orig_size"], mode="bilinear", align_corners=False)
        return x

    def forward_spatial(self, x: Tensor) -> Tensor:
        patches, info = self.unfolding(self.local_rep(x))
        for layer in self.global_rep:
            patches = layer(patches)
        y = self.conv_proj(self.folding(patches, info))
        return y if self.fusion is None else self.fusion(torch.cat((x, y), dim=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_spatial(x)


class MobileViT(nn.Module):
    """``name`` as in timm; with ``output_stride`` 8 or 16 the last strides become dilations, ml-cvnets' way."""

    def __init__(
        self, name: str, num_classes: int = 1000, output_stride: int = 32, pool_type: str = "mean", **block: Any
    ) -> None:
        super().__init__()
        config = get_config(name)
        channels = (config.stem_channels, *config.layer_channels)
        self.neural_augmentor = None
        self.dilation = 1
        self.conv_1 = ConvLayer2d(3, channels[0], 3, stride=2)
        self.layer_1 = nn.Sequential(InvertedResidual(channels[0], channels[1], 1, config.expand_ratio))
        self.layer_2 = nn.Sequential(
            InvertedResidual(channels[1], channels[2], 2, config.expand_ratio),
            *(InvertedResidual(channels[2], channels[2], 1, config.expand_ratio) for _ in range(2)),
        )
        for i, dilate in enumerate((False, output_stride == 8, output_stride in (8, 16))):
            dim, depth = config.transformer_dims[i], config.transformer_depths[i]
            previous_dilation = self.dilation
            self.dilation *= 2 if dilate else 1
            downsampling = InvertedResidual(
                channels[2 + i], channels[3 + i], 1 if dilate else 2, config.expand_ratio, previous_dilation
            )
            head_dim = dim // config.num_heads
            mobilevit = MobileViTBlock(channels[3 + i], dim, dim * config.mlp_ratio, depth, head_dim, **block)
            setattr(self, f"layer_{3 + i}", nn.Sequential(downsampling, mobilevit))
        self.conv_1x1_exp = ConvLayer2d(channels[5], config.head_channels, 1)
        self.classifier = nn.Sequential()
        self.classifier.add_module("global_pool", GlobalPool(pool_type))
        self.classifier.add_module("dropout", Dropout(0.1, inplace=True))
        self.classifier.add_module("fc", LinearLayer(config.head_channels, num_classes))

    def _forward_layer(self, layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x)

    def extract_features(self, x: Tensor) -> Tensor:
        for layer in (self.conv_1, self.layer_1, self.layer_2, self.layer_3, self.layer_4, self.layer_5):
            x = self._forward_layer(layer, x)
        return self._forward_layer(self.conv_1x1_exp, x)

    def forward_classifier(self, x: Tensor) -> Tensor:
        return self.classifier(self.extract_features(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_classifier(x)
