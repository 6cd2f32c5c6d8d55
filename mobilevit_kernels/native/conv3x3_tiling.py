"""Which tile a dense 3×3 convolution is cut into: a pure function of its sizes.

A block of csrc/conv3x3.cuh takes a few sub-tiles of 8×8 pixels and a few output channels. Large blocks read each
weight and each pixel for the fewest times; small ones are many, so that a small map fills the GPU. The choice is the
least of a modelled time: a block's clocks, times the blocks that each processor has to run one after the other. A
block's clocks are the largest of

- its matrix instructions at the measured rate of mma.sync;
- its bytes, pixels with halo and weights, at the rate at which L2 feeds one processor;
- its chain of dependent steps, each a barrier, an ldmatrix and three mma at least.

The rates are estimates for an H200. They are constants and not read from the device, so that every GPU takes the same
variant and gives the same bits. At batch 1 and 256×256, MobileViT-S's maps of 32×32, 16×16 and 8×8 pixels make 96, 64
and 20 blocks of 8 warps: where a map gives few tiles of pixels the split is over output channels. What then binds is
the bytes of a block, 70 to 94 KB at 24 bytes a clock. Half of those are pixels, which every block of other channels
reads again: that is why there is no tile below 8 channels.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

__all__ = ["TILES", "WGMMA_TILES", "Tile", "block_channels", "boundaries", "choose", "sub_tiles"]

SIDE = 8  # pixels of a sub-tile

_PROCESSORS = 132
_MMA_PER_CLOCK = 0.62
_L2_BYTES_PER_CLOCK = 24.0
_CLOCKS_PER_STEP = 250.0


@dataclass(frozen=True)
class Tile:
    """What a block takes; the order of :data:`TILES` is the launcher's numbering.

    Attributes:
        name: for the Report.
        sub_tiles: of 8×8 pixels.
        max_channels: output channels at most.
        depth_groups: warps that share the input channels of an output.
    """

    name: str
    sub_tiles: int
    max_channels: int
    depth_groups: int


TILES = (
    Tile("tiny", 1, 8, 8),
    Tile("small", 1, 16, 4),
    Tile("medium", 2, 32, 2),
    Tile("large", 4, 96, 1),
)


# Tiles on wgmma, by the launcher's number. Not measured, so no rule chooses them.
WGMMA_TILES = {4: "wgmma, 128 pixels", 5: "wgmma, 256 pixels"}


def _ceil_div(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)


def sub_tiles(batch: int, height: int, width: int, dilation: int) -> int:
    """Sub-tiles of a batch of maps; dilation d cuts a map into d² maps first."""
    rows, columns = (_ceil_div(_ceil_div(size, dilation), SIDE) for size in (height, width))
    return batch * dilation**2 * rows * columns


def block_channels(tile: Tile, out_channels: int) -> int:
    """Output channels of a block: the large tile makes its passes over the pixels alike, the others are fixed."""
    if tile.max_channels <= 32:
        return tile.max_channels
    tiles = 2 * _ceil_div(out_channels, 16)
    passes = _ceil_div(tiles * 8, tile.max_channels)
    return max(48, 16 * _ceil_div(tiles, 2 * passes))


def _clocks(tile: Tile, count: float, in_channels: int, out_channels: int) -> float:
    """Modelled clocks of ``count`` sub-tiles."""
    channels = block_channels(tile, out_channels)
    steps = _ceil_div(in_channels, 16)
    mma = 9 * steps * 4 * tile.sub_tiles * min(channels, out_channels) / 8
    moved = 2 * in_channels * (100 * tile.sub_tiles + 9 * min(channels, out_channels))
    chain = 3 * _ceil_div(steps, tile.depth_groups)
    block = max(mma / _MMA_PER_CLOCK, moved / _L2_BYTES_PER_CLOCK, chain * _CLOCKS_PER_STEP)
    blocks = count / tile.sub_tiles * _ceil_div(out_channels, channels)
    return block * max(1.0, blocks / _PROCESSORS)


@functools.lru_cache(maxsize=4096)
def choose(count: int, in_channels: int, out_channels: int) -> int:
    """The number of the tile for ``count`` sub-tiles: the least modelled time, the larger tile where they are equal."""
    times = [_clocks(tile, count, in_channels, out_channels) for tile in TILES]
    return max(i for i, time in enumerate(times) if time == min(times))


@functools.lru_cache(maxsize=256)
def boundaries(in_channels: int, out_channels: int) -> tuple[tuple[int, Tile], ...]:
    """The tiles in use, each with the number of sub-tiles that it is used from."""
    found: list[tuple[int, Tile]] = []
    last = -1
    for count in range(1, 16 * _PROCESSORS):
        tile = choose(count, in_channels, out_channels)
        if tile != last:
            found.append((count, TILES[tile]))
            last = tile
    return tuple(found)
