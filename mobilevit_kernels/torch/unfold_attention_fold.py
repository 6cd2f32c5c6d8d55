"""Attention across patches in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["attention", "fold", "run", "unfold"]


def unfold(x: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """(B, C, H, W), NHWC in memory → sequences (B·P, N, C): one strided copy of whole pixels."""
    batch, channels, height, width = x.shape
    patch_height, patch_width = patch_size
    rows, columns = height // patch_height, width // patch_width
    pixels = x.permute(0, 2, 3, 1).reshape(batch, rows, patch_height, columns, patch_width, channels)
    return pixels.permute(0, 2, 4, 1, 3, 5).reshape(batch * patch_height * patch_width, rows * columns, channels)


def fold(sequences: Tensor, patch_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The inverse of :func:`unfold`: (B·P, N, C) → (B, C, H, W), NHWC in memory."""
    patch_height, patch_width = patch_size
    height, width = size
    rows, columns = height // patch_height, width // patch_width
    channels = sequences.shape[-1]
    pixels = sequences.reshape(-1, patch_height, patch_width, rows, columns, channels)
    return pixels.permute(0, 3, 1, 4, 2, 5).reshape(-1, height, width, channels).permute(0, 3, 1, 2)


def attention(qkv: Tensor, num_heads: int, scale: float) -> Tensor:
    """Sequences of projected tokens (S, N, 3·D), channels (q, k, v) × heads × head_dim → (S, N, D).

    The heads are views into ``qkv``.
    """
    sequences, tokens, channels = qkv.shape
    query, key, value = qkv.view(sequences, tokens, 3, num_heads, channels // (3 * num_heads)).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(query, key, value, scale=scale)
    return out.transpose(1, 2).reshape(sequences, tokens, channels // 3)


def run(qkv: Tensor, *, num_heads: int, patch_size: tuple[int, int], scale: float) -> Tensor:
    """Unfold, attend, fold; see :func:`mobilevit_kernels.ops.unfold_attention_fold`."""
    height, width = qkv.shape[2:]
    out = fold(attention(unfold(qkv, patch_size), num_heads, scale), patch_size, (height, width))
    return out.contiguous(memory_format=torch.channels_last)
