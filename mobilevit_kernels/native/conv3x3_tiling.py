"""Which tile a dense 3×3 convolution is cut into: a pure function of its sizes.

A block of csrc/conv3x3.cuh takes a few sub-tiles of 8×8 pixels and a few output channels. Large blocks read each
weight and each pixel for the fewest times; small ones are many, so that a small map fills the GPU. The choice is the
least of a modelled time: a block's clocks, times the blocks that each processor has to run one after the other. A
block's clocks are those of its begin and end, for each sub-tile, and the largest of

- its matrix instructions at the rate of mma.sync;
- its bytes, pixels with halo and weights, at the rate at which L2 feeds one processor;
- its chain of dependent steps, each a barrier, an ldmatrix and three mma at least.

Where there is wgmma, two more tiles compete, those of csrc/conv3x3_wgmma.cuh. Of them a processor runs two blocks at
once. A block alone waits in every step for the pixels and the weights of a later one; two leave what their products
take, and the work between them.

The rates are fitted to the times of the 18 published shapes at batches of 1 to 256 on an H200, float16: all six tiles,
108 problems, within 8 % in the mean, less the 3 µs that a launch takes. By the choices all problems together take 0.3 %
longer than by the best tile of each. bfloat16 was not measured and goes by the same model. The rates are constants and
not read from the device, so that every GPU of one kind, with wgmma or without, takes the same variant and gives the
same bits. At batch 1 and 256×256, MobileViT-S's maps of 32×32, 16×16 and 8×8 pixels make 96, 64 and 20 blocks of 8
warps: where a map gives few tiles of pixels the split is over output channels. What then binds is the bytes of a block,
70 to 94 KB. Half of those are pixels, which every block of other channels reads again: that is why there is no tile
below 8 channels.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

__all__ = ["TILES", "WGMMA_TILES", "Tile", "block_channels", "boundaries", "choose", "numbered", "sub_tiles"]

SIDE = 8  # pixels of a sub-tile

# Clocks are of 1.7 GHz.
_PROCESSORS = 132
_CLOCKS_PER_SUB_TILE = 600.0  # at a block's begin and end
_MMA_PER_CLOCK = 0.36
_L2_BYTES_PER_CLOCK = 17.0
_CLOCKS_PER_STEP = 530.0
# A step of a block on wgmma, 16 input channels and a column of taps: alone, for each sub-tile and each output channel;
# of two at once, and for each m16n8k16 of work.
_WGMMA_CLOCKS_PER_SUB_TILE = 125.0
_WGMMA_CLOCKS_PER_CHANNEL = 3.0
_WGMMA_CLOCKS_PER_STEP = 190.0
_WGMMA_CLOCKS_PER_MMA = 1.15


@dataclass(frozen=True)
class Tile:
    """What a block takes.

    Attributes:
        name: for the Report.
        sub_tiles: of 8×8 pixels.
        max_channels: output channels at most.
        depth_groups: warps that share the input channels of an output.
        wgmma: of csrc/conv3x3_wgmma.cuh.
    """

    name: str
    sub_tiles: int
    max_channels: int
    depth_groups: int
    wgmma: bool = False


# The launcher's numbers: of these tiles their places, and those on wgmma follow.
TILES = (
    Tile("tiny", 1, 8, 8),
    Tile("small", 1, 16, 4),
    Tile("medium", 2, 32, 2),
    Tile("large", 4, 96, 1),
)
WGMMA_TILES = {
    4: Tile("wgmma, 128 pixels", 2, 96, 1, wgmma=True),
    5: Tile("wgmma, 256 pixels", 4, 96, 1, wgmma=True),
}


def _ceil_div(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)


def sub_tiles(batch: int, height: int, width: int, dilation: int) -> int:
    """Sub-tiles of a batch of maps; dilation d cuts a map into d² maps first."""
    rows, columns = (_ceil_div(_ceil_div(size, dilation), SIDE) for size in (height, width))
    return batch * dilation**2 * rows * columns


def block_channels(tile: Tile, out_channels: int) -> int:
    """Output channels of a block: tiles of up to 96 make their passes over the pixels alike, the others are fixed."""
    if tile.max_channels <= 32:
        return tile.max_channels
    tiles = 2 * _ceil_div(out_channels, 16)
    passes = _ceil_div(tiles * 8, tile.max_channels)
    return max(48, 16 * _ceil_div(tiles, 2 * passes))


def _clocks(tile: Tile, count: float, in_channels: int, out_channels: int) -> float:
    """Modelled clocks of ``count`` sub-tiles."""
    channels = block_channels(tile, out_channels)
    steps = _ceil_div(in_channels, 16)
    blocks = count / tile.sub_tiles * _ceil_div(out_channels, channels)
    ends = _CLOCKS_PER_SUB_TILE * tile.sub_tiles
    if tile.wgmma:
        waits = _WGMMA_CLOCKS_PER_SUB_TILE * tile.sub_tiles + _WGMMA_CLOCKS_PER_CHANNEL * channels
        works = _WGMMA_CLOCKS_PER_STEP + _WGMMA_CLOCKS_PER_MMA * 12 * tile.sub_tiles * channels / 8
        return max(ends + 3 * steps * waits, (ends + 3 * steps * works) * max(1.0, blocks / _PROCESSORS))
    mma = 9 * steps * 4 * tile.sub_tiles * min(channels, out_channels) / 8
    moved = 2 * in_channels * (100 * tile.sub_tiles + 9 * min(channels, out_channels))
    chain = 3 * _ceil_div(steps, tile.depth_groups)
    block = ends + max(mma / _MMA_PER_CLOCK, moved / _L2_BYTES_PER_CLOCK, chain * _CLOCKS_PER_STEP)
    return block * max(1.0, blocks / _PROCESSORS)


def numbered(wgmma: bool) -> dict[int, Tile]:
    """The tiles of a device by the launcher's number."""
    return dict(enumerate(TILES)) | (WGMMA_TILES if wgmma else {})


@functools.lru_cache(maxsize=4096)
def choose(count: int, in_channels: int, out_channels: int, wgmma: bool) -> int:
    """The number of the tile for ``count`` sub-tiles: the least modelled time, the larger tile where they are equal.

    Args:
        count, in_channels, out_channels: of the convolution.
        wgmma: whether the device has it.
    """
    times = {i: _clocks(tile, count, in_channels, out_channels) for i, tile in numbered(wgmma).items()}
    return max(i for i, time in times.items() if time == min(times.values()))


@functools.lru_cache(maxsize=256)
def boundaries(in_channels: int, out_channels: int, wgmma: bool) -> tuple[tuple[int, Tile], ...]:
    """The tiles in use, each with the number of sub-tiles that it is used from."""
    found: list[tuple[int, Tile]] = []
    last = -1
    for count in range(1, 16 * _PROCESSORS):
        number = choose(count, in_channels, out_channels, wgmma)
        if number != last:
            found.append((count, numbered(wgmma)[number]))
            last = number
    return tuple(found)
