"""Transformer stage: unfold → encoder → fold between two 1×1 convolutions (arXiv 2110.02178, section 3.1).

Axes: B images, C channels, H × W pixels, P pixels a patch, N patches a map, D transformer width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "Attention",
    "EncoderLayer",
    "Mlp",
    "TransformerEncoder",
    "as_pair",
    "fold",
    "resize_to_patches",
    "transformer_stage",
    "unfold",
]


def as_pair(patch_size: int | tuple[int, int]) -> tuple[int, int]:
    """``patch_size`` as (height, width), an int standing for a square; ValueError for anything else."""
    pair = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    if (
        not isinstance(pair, (tuple, list))
        or len(pair) != 2
        or not all(isinstance(side, int) and side > 0 for side in pair)
    ):
        raise ValueError(f"patch_size: expected a positive int or a pair (height, width) of them, got {patch_size!r}")
    return pair[0], pair[1]


def unfold(x: Tensor, patch_size: int | tuple[int, int]) -> Tensor:
    """Cuts a map into patches and gathers, for each pixel position within a patch, that pixel of every patch.

    (B, C, H, W) → (B·P, N, C), any dtype. With patches of h × w pixels, P = h·w and N = (H/h)·(W/w), the pixel at
    row h·i + r, column w·j + c of image b becomes token i·(W/w) + j of sequence b·P + r·w + c::

        4 × 4 map, 2 × 2 patches; each pixel marked with its sequence:

            0 1 | 0 1        sequence 0: the four pixels marked 0, in reading order,
            2 3 | 2 3        sequence 1: the four pixels marked 1, …
            ----+----
            0 1 | 0 1        A sequence's neighbours are as far apart as a patch is wide; together the P sequences
            2 3 | 2 3        hold every pixel once.

    Unlike the patch embedding of a ViT, nothing is averaged or projected: both the order of the patches and the order
    of the pixels within a patch can be read off the indices, so ``fold`` undoes it exactly.

    Raises:
        ValueError: where ``x`` has not four dimensions, ``patch_size`` is not positive, or H or W is no multiple of it.
    """
    patch_height, patch_width = as_pair(patch_size)
    if x.dim() != 4:
        raise ValueError(f"x: expected the four dimensions (B, C, H, W), got the shape {tuple(x.shape)}")
    batch, channels, height, width = x.shape
    if height % patch_height or width % patch_width:
        raise ValueError(
            f"x: expected a height and width divisible by patch_size {patch_height} × {patch_width}, "
            f"got {height} × {width}"
        )
    rows, columns = height // patch_height, width // patch_width
    x = x.reshape(batch, channels, rows, patch_height, columns, patch_width)
    x = x.permute(0, 3, 5, 2, 4, 1)  # (B, patch_height, patch_width, rows, columns, C)
    return x.reshape(batch * patch_height * patch_width, rows * columns, channels)


def fold(patches: Tensor, patch_size: int | tuple[int, int], output_size: tuple[int, int]) -> Tensor:
    """The inverse of ``unfold``: (B·P, N, C) → (B, C, H, W), with ``output_size`` = (H, W), any dtype.

    ``fold(unfold(x, patch_size), patch_size, x.shape[2:])`` is ``x``, bit for bit.

    Raises:
        ValueError: where ``patches`` has not three dimensions, its first is no multiple of P, its second is not N,
            ``patch_size`` is not positive, or ``output_size`` is no multiple of it.
    """
    patch_height, patch_width = as_pair(patch_size)
    height, width = output_size
    if height % patch_height or width % patch_width:
        raise ValueError(
            f"output_size: expected a height and width divisible by patch_size {patch_height} × {patch_width}, "
            f"got {height} × {width}"
        )
    rows, columns = height // patch_height, width // patch_width
    patch_area = patch_height * patch_width
    if patches.dim() != 3 or patches.shape[0] % patch_area or patches.shape[1] != rows * columns:
        raise ValueError(
            f"patches: expected the shape (B·{patch_area}, {rows * columns}, C) for patch_size {patch_height} × "
            f"{patch_width} and output_size {height} × {width}, got {tuple(patches.shape)}"
        )
    batch, channels = patches.shape[0] // patch_area, patches.shape[2]
    x = patches.reshape(batch, patch_height, patch_width, rows, columns, channels)
    x = x.permute(0, 5, 3, 1, 4, 2)  # (B, C, rows, patch_height, columns, patch_width)
    return x.reshape(batch, channels, height, width)


def resize_to_patches(x: Tensor, patch_size: int | tuple[int, int]) -> Tensor:
    """Enlarges (B, C, H, W) bilinearly to the next multiples of the patch; returns ``x`` where it already is one.

    ``align_corners=False``: the pixels keep their centres. A 7 × 7 map, for 2 × 2 patches, becomes 8 × 8.
    """
    patch_height, patch_width = as_pair(patch_size)
    height, width = x.shape[2:]
    new_size = (math.ceil(height / patch_height) * patch_height, math.ceil(width / patch_width) * patch_width)
    if new_size == (height, width):
        return x
    return F.interpolate(x, size=new_size, mode="bilinear", align_corners=False)


class Attention(nn.Module):
    """Multi-head self-attention on (S, N, D): S independent sequences of N tokens (arXiv 1706.03762, section 3.2).

    ::

        q, k, v = split(x Wᵀ + b)                      (S, heads, N, head_dim) each; rows of W: q, k, v, heads inside
        a = softmax(q kᵀ / √head_dim)                  (S, heads, N, N), over the last axis
        y = concat over heads(a v) W_projᵀ + b_proj    (S, N, D)

    Raises:
        ValueError: where ``dim`` is no multiple of ``num_heads``.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads: expected a divisor of the width {dim}, got {num_heads}")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        for linear in (self.qkv, self.proj):
            nn.init.kaiming_normal_(linear.weight, nonlinearity="linear")

    def forward(self, x: Tensor) -> Tensor:
        sequences, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(sequences, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (S, heads, N, head_dim) each
        attention = ((q * self.head_dim**-0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
        heads = attention @ v
        y: Tensor = self.proj(heads.transpose(1, 2).reshape(sequences, tokens, dim))
        return y


class Mlp(nn.Module):
    """``fc2(activation(fc1(x)))`` on each token: D → hidden_dim → D."""

    def __init__(self, dim: int, hidden_dim: int, activation: Callable[[Tensor], Tensor] = F.silu) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        for linear in (self.fc1, self.fc2):
            nn.init.kaiming_normal_(linear.weight, nonlinearity="linear")
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(self.activation(self.fc1(x)))
        return y


class EncoderLayer(nn.Module):
    """Pre-norm encoder layer, (S, N, D) → (S, N, D).

    ::

        x = x + MHA(LN₁(x))
        x = x + MLP(LN₂(x))

    Args:
        dim: D.
        num_heads: a divisor of D.
        mlp_ratio: the MLP's hidden width over D.
        activation: inside the MLP; SiLU in MobileViT, GELU in ViT.
        eps: of both LayerNorms.

    Raises:
        ValueError: where ``dim`` is no multiple of ``num_heads``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        mlp_ratio: float = 2,
        activation: Callable[[Tensor], Tensor] = F.silu,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), activation)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x


class TransformerEncoder(nn.Sequential):
    """``depth`` encoder layers, one after the other; the LayerNorm behind the last is its owner's.

    No positional embedding belongs to it: with the order of patches and of pixels kept by ``unfold``, MobileViT needs
    none. Arguments and errors are those of ``EncoderLayer``.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int = 4,
        mlp_ratio: float = 2,
        activation: Callable[[Tensor], Tensor] = F.silu,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(*(EncoderLayer(dim, num_heads, mlp_ratio, activation, eps) for _ in range(depth)))


def transformer_stage(
    x: Tensor,
    conv_1x1: Callable[[Tensor], Tensor],
    encoder: Callable[[Tensor], Tensor],
    norm: Callable[[Tensor], Tensor],
    conv_proj: Callable[[Tensor], Tensor],
    patch_size: int | tuple[int, int] = 2,
) -> Tensor:
    """The global half of a MobileViT block, (B, C, H, W) → (B, C_out, H, W), for any H and W.

    ::

        X   = conv1×1(x)                            (B, D, H, W), linear
        X_U = unfold(X)                             (B·P, N, D)
        X_G(p) = LN(encoder(X_U(p))), 1 ≤ p ≤ P     equation (1): each of the P sequences attends within itself
        y   = silu(BN(conv1×1(fold(X_G))))          (B, C_out, H, W)

    Where H or W is no multiple of the patch, X is resized bilinearly up to the next one, and fold(X_G) back to H × W.

    Args:
        x: (B, C, H, W).
        conv_1x1: C → D, without bias, BatchNorm or activation.
        encoder: the encoder layers, on (B·P, N, D).
        norm: the LayerNorm behind them.
        conv_proj: D → C_out with BatchNorm and SiLU.
        patch_size: h × w pixels; an int stands for a square.
    """
    x = conv_1x1(x)
    size = (x.shape[2], x.shape[3])
    x = resize_to_patches(x, patch_size)
    patches = norm(encoder(unfold(x, patch_size)))
    folded = fold(patches, patch_size, (x.shape[2], x.shape[3]))
    if folded.shape[2:] != size:
        folded = F.interpolate(folded, size=size, mode="bilinear", align_corners=False)
    return conv_proj(folded)
