"""Weight matrices in the order in which the lanes of a warp take them as B fragments of mma.sync.m16n8k16."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "behind_norm",
    "deal_channels",
    "in_lane_order",
    "lane_channels",
    "pad_heads",
    "pad_to",
    "to_b_fragment_tail",
    "to_b_fragments",
    "to_b_tiles",
]


def pad_to(x: Tensor, *sizes: int) -> Tensor:
    """``x`` with zeros behind each axis up to ``sizes``."""
    padded = x.new_zeros(sizes)
    padded[tuple(slice(0, size) for size in x.shape)] = x
    return padded


def behind_norm(
    weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(N, K) behind a LayerNorm's affine → (K, N) and (N,) behind its normalisation alone, times ``scale``."""
    weight = weight.double()
    folded_bias = bias.double() + weight @ norm_bias.double()
    return (scale * weight * norm_weight.double()).t().float(), (scale * folded_bias).float()


def pad_heads(x: Tensor, num_heads: int, head_tiles: int) -> Tensor:
    """(heads · head_dim, …) → (heads, 8 · head_tiles, …), zero-padded."""
    heads = x.reshape(num_heads, -1, *x.shape[1:])
    return pad_to(heads, num_heads, 8 * head_tiles, *x.shape[1:])


def lane_channels(channels: int) -> list[int]:
    """An order of channels in which a lane's four of 16, in a fragment's rows or columns, are neighbours in memory.

    Lane t of a group of four holds places 2t, 2t+1, 2t+8 and 2t+9 of each 16; they get channels 4t … 4t+3. A last 8
    channels keep their order: there lane t holds 2t and 2t+1.

    Returns:
        The channel at each place.
    """
    full = channels // 16 * 16
    order = [place // 16 * 16 + 4 * (place % 8 // 2) + 2 * (place % 16 // 8) + place % 2 for place in range(full)]
    return order + list(range(full, channels))


# A lane takes channels 4t … 4t + 3 of 16 with one access: place 8·r + 2·t + h of a fragment is channel 4·t + 2·r + h.
_LANE_ORDER = torch.tensor([4 * t + 2 * r + h for r in range(2) for t in range(4) for h in range(2)])


def in_lane_order(x: Tensor) -> Tensor:
    """The rows of ``x``, zero-padded to a multiple of 16, in the order in which lanes hold channels in memory."""
    rows = -(-x.shape[0] // 16) * 16
    padded = pad_to(x, rows, *x.shape[1:])
    return padded.reshape(rows // 16, 16, *x.shape[1:])[:, _LANE_ORDER].reshape(padded.shape)


def to_b_fragments(matrix: Tensor) -> Tensor:
    """Reorders a (K, N) matrix, zero-padded to multiples of 16, so that one 16-byte load gives a lane two n8 tiles.

    With g = lane // 4 and t = lane % 4, lane's eight values of k-step s and column pair p are
    ``matrix[16·s + 2·t + 8·r + h, 16·p + 8·j + g]`` for (j, r, h) in lexicographic order.

    Returns:
        (K/16, N/16, 32, 8): k-step, pair of n-tiles, lane, the eight values.
    """
    depth, columns = (-(-size // 16) * 16 for size in matrix.shape)
    tiles = pad_to(matrix, depth, columns).reshape(depth // 16, 2, 4, 2, columns // 16, 2, 8)  # s, r, t, h, p, j, g
    return tiles.permute(0, 4, 6, 2, 5, 1, 3).reshape(depth // 16, columns // 16, 32, 8)


def to_b_fragment_tail(matrix: Tensor) -> Tensor:
    """Reorders the last eight rows of a matrix, (8, N), for mma.sync.m16n8k8: an 8-byte load gives two n8 tiles.

    lane's four values of column pair p are ``matrix[2·t + h, 16·p + 8·j + g]`` for (j, h) in lexicographic order.

    Returns:
        (N/16, 32, 4): pair of n-tiles, lane, the four values.
    """
    columns = -(-matrix.shape[1] // 16) * 16
    tiles = pad_to(matrix, 8, columns).reshape(4, 2, columns // 16, 2, 8)  # t, h, p, j, g
    return tiles.permute(2, 4, 0, 3, 1).reshape(columns // 16, 32, 4)


def to_b_tiles(matrix: Tensor) -> Tensor:
    """Reorders a (…, K, N) matrix, K a multiple of 16 and N of 8, into single n8 tiles.

    With g = lane // 4 and t = lane % 4, lane's four values of k-step s and tile n are
    ``matrix[16·s + 2·t + 8·r + h, 8·n + g]`` for (r, h) in lexicographic order.

    Returns:
        (…, K/16, N/8, 32, 4): k-step, tile, lane, the four values.
    """
    *batch, depth, columns = matrix.shape
    tiles = matrix.reshape(*batch, depth // 16, 2, 4, 2, columns // 8, 8)  # s, r, t, h, n, g
    order = [len(batch) + axis for axis in (0, 4, 5, 2, 1, 3)]
    return tiles.permute(*range(len(batch)), *order).reshape(*batch, depth // 16, columns // 8, 32, 4)


def deal_channels(matrix: Tensor) -> Tensor:
    """Reorders the columns of a (…, N) matrix, N a multiple of 16, so that a lane ends with four neighbours.

    Column ``8·j + 2·t + h`` of each 16 receives channel ``4·t + 2·j + h``: of the two n8 tiles j, lane t holds the
    accumulators of channels 4t … 4t + 3, one 8-byte store.
    """
    *batch, columns = matrix.shape
    dealt = matrix.reshape(*batch, columns // 16, 4, 2, 2)  # 16 channels, t, j, h
    return dealt.transpose(-3, -2).reshape(*batch, columns)
