"""The products of a transformer stage, with all that can be folded into their weights.

The affine part of every LayerNorm goes into the weights behind it; the attention's scale and log2 e into W_q (softmax
is computed with powers of 2); 0.5 into W_1 and W_out (``silu(x)`` is computed from ``x / 2``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mobilevit_kernels.canonical import EncoderLayerWeights, TransformerWeights
from mobilevit_kernels.native.fragments import behind_norm, pad_heads

__all__ = ["Layer", "Product", "fold"]

Product = tuple[Tensor, Tensor]  # (K, N) and (N,)


@dataclass(frozen=True)
class Layer:
    """The products of an encoder layer, with what is folded in.

    Attributes:
        attention: [W_k | W_v | W_q] of each head, of 8 · head_tiles columns each.
        output: W_o; its rows are the heads' channels without gaps.
        expand: W_1.
        reduce: W_2.
    """

    attention: list[Product]
    output: Product
    expand: Product
    reduce: Product


def fold(weights: TransformerWeights, heads: int, head_tiles: int) -> tuple[Product, list[Layer], Product]:
    """W_in, the layers and W_out in float32 on the CPU, with what is folded in."""

    def on_cpu(x: Tensor) -> Tensor:
        return x.detach().cpu().float()

    def attention(layer: EncoderLayerWeights) -> list[Product]:
        scale = (layer.proj_bias.shape[0] / heads) ** -0.5 * math.log2(math.e)
        matrices, biases = [], []
        for i, factor in ((1, 1.0), (2, 1.0), (0, scale)):
            weight, bias = layer.qkv_weight.chunk(3)[i], layer.qkv_bias.chunk(3)[i]
            matrix, folded = behind_norm(
                on_cpu(weight), on_cpu(bias), on_cpu(layer.norm1_weight), on_cpu(layer.norm1_bias), factor
            )
            matrices.append(pad_heads(matrix.t(), heads, head_tiles))
            biases.append(pad_heads(folded, heads, head_tiles))
        matrix, bias = torch.cat(matrices, dim=1), torch.cat(biases, dim=1)
        return [(matrix[h].t(), bias[h]) for h in range(heads)]

    layers = []
    for layer in weights.layers:
        norm = on_cpu(layer.norm2_weight), on_cpu(layer.norm2_bias)
        layers.append(
            Layer(
                attention(layer),
                (on_cpu(layer.proj_weight).t(), on_cpu(layer.proj_bias)),
                behind_norm(on_cpu(layer.fc1_weight), on_cpu(layer.fc1_bias), *norm, 0.5),
                (on_cpu(layer.fc2_weight).t(), on_cpu(layer.fc2_bias)),
            )
        )
    in_matrix = on_cpu(weights.in_weight).flatten(1).t()
    norm = on_cpu(weights.norm_weight), on_cpu(weights.norm_bias)
    out = behind_norm(on_cpu(weights.out_weight).flatten(1), on_cpu(weights.out_bias), *norm, 0.5)
    return (in_matrix, torch.zeros(in_matrix.shape[1])), layers, out
