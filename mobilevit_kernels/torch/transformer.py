"""Transformer stage in plain PyTorch.

The tokens are put in sequence order once, on the way in (where a pixel has C < D channels), and back in map order once,
on the way out; linear layers and LayerNorms don't care about the order, and attention sees its heads as views.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilevit_kernels.canonical import TransformerWeights, named_tensors
from mobilevit_kernels.ops._resize import on_whole_patches
from mobilevit_kernels.packed import Packed
from mobilevit_kernels.torch.unfold_attention_fold import attention, fold, unfold

__all__ = ["pack", "run", "variant"]

_TENSORS_PER_LAYER = 12


def pack(weights: TransformerWeights, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """The canonical tensors in declaration order, the 1×1 convolutions as matrices."""
    return tuple(
        (tensor.flatten(1) if tensor.dim() == 4 else tensor).to(device, dtype) for _, tensor in named_tensors(weights)
    )


def run(x: Tensor, packed: Packed, *, num_heads: int, patch_size: tuple[int, int]) -> Tensor:
    """Unfold, encode, fold; see :func:`mobilevit_kernels.ops.transformer`."""
    return on_whole_patches(x, patch_size, lambda whole, silu: _run(whole, packed, num_heads, patch_size, silu))


def _run(x: Tensor, packed: Packed, num_heads: int, patch_size: tuple[int, int], activation: bool) -> Tensor:
    in_weight, *layers, norm_weight, norm_bias, out_weight, out_bias = packed.tensors
    dim, eps = packed.sizes[1], packed.eps
    scale = (dim // num_heads) ** -0.5
    tokens = F.linear(unfold(x, patch_size), in_weight)
    for i in range(0, len(layers), _TENSORS_PER_LAYER):
        (
            norm1_weight, norm1_bias, qkv_weight, qkv_bias, proj_weight, proj_bias,
            norm2_weight, norm2_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias,
        ) = layers[i : i + _TENSORS_PER_LAYER]  # fmt: skip
        qkv = F.linear(F.layer_norm(tokens, (dim,), norm1_weight, norm1_bias, eps), qkv_weight, qkv_bias)
        tokens = tokens + F.linear(attention(qkv, num_heads, scale), proj_weight, proj_bias)
        hidden = F.linear(F.layer_norm(tokens, (dim,), norm2_weight, norm2_bias, eps), fc1_weight, fc1_bias)
        tokens = tokens + F.linear(F.silu(hidden, inplace=True), fc2_weight, fc2_bias)
    tokens = F.layer_norm(tokens, (dim,), norm_weight, norm_bias, eps)
    tokens = F.linear(tokens, out_weight, out_bias)
    if activation:
        tokens = F.silu(tokens, inplace=True)
    height, width = x.shape[2:]
    return fold(tokens, patch_size, (height, width)).contiguous(memory_format=torch.channels_last)


def variant(packed: Packed) -> str:
    """One variant for all shapes."""
    return "scaled_dot_product_attention"
