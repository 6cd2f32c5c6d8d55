"""Inverted residual in CUDA: packing and call of its two kernels.

The row kernel (csrc/inverted_residual_rows.cuh) serves the channel counts of its table at dilation 1, where its weights
fit into the device's shared memory; the tile kernel (csrc/inverted_residual.cuh) serves everything. Weights know
neither stride nor dilation, so they are packed for both. Where tiles are few and the device has clusters, the blocks of
a cluster split the hidden channels of a tile.
"""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from mobilevit_kernels import native
from mobilevit_kernels.canonical import InvertedResidualWeights
from mobilevit_kernels.native.clusters import clusters_at_once
from mobilevit_kernels.native.fragments import lane_channels, pad_to, to_b_fragments, to_b_tiles
from mobilevit_kernels.native.launches import Alternatives, Launch, Slot, execute, map_slot
from mobilevit_kernels.packed import Packed

__all__ = [
    "LARGE_CHUNK",
    "SMALL_CHUNK",
    "alternatives",
    "launches",
    "pack",
    "pack_chunks",
    "pack_rows",
    "refusal",
    "row_strides",
    "run",
    "split",
    "variant",
]

# Hidden channels that a block of the tile kernel takes at a time; the tile of pixels goes with it
# (InvertedResidualConfig).
LARGE_CHUNK = 64
SMALL_CHUNK = 32
# Which kernel, in which form.
ROWS, DEALT, TILES = "sliding rows", "sliding rows, hidden channels dealt to the warps of a block", "tiles"
_TILE_PIXELS = {LARGE_CHUNK: 8 * 16, SMALL_CHUNK: 4 * 16}  # output pixels of a tile at stride 1, by its chunk
_SPLIT_PIXELS = 4, 8  # rows and columns of output pixels of a split tile
_MOST_CLUSTER_BLOCKS = 8
# Loading the tile and adding up the sums take a split block about as long as two of its chunks. With it, all 18 cases
# that were measured (an H200, float16, the three published shapes at batches 1 to 256) take the form that was fastest.
_SPLIT_ENDS = 2
_ROW_CHUNK = 16  # hidden channels that a warp of the row kernel takes at a time
# Output pixels a multiprocessor up to which tiles take less time than the row kernel's two passes, by input channels:
# one and two rounds of large tiles, as measured on an H200 in float16 (µs, tiles and two passes). 80 → 320 → 96 on
# 16×16 pixels: 38.5 and 24.3 at 32 images (but 13.2 split over clusters), 75.6 and 52.9 at 256. 96 → 384 → 128 on
# 32×32: 33.4 and 44.3 at 32, 63.1 and 67.9 at 64, 119.6 and 98.5 at 128, 235.6 and 154.3 at 256.
_PIXELS_BEFORE_PASSES = {80: 64, 96: 128}
_PASS_CHANNELS = 160  # output channels a block of the tile kernel accumulates at most


def _bytes(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8).flatten()


def pack_chunks(weights: InvertedResidualWeights, dtype: torch.dtype, chunk: int, *, rows: bool = False) -> Tensor:
    """The records of csrc/inverted_residual_record.cuh, on the CPU; ``rows``: those of the row kernel.

    Expand and depthwise weights and biases are halved: the kernels compute ``silu(x)`` from ``x / 2``.

    Returns:
        (pass, chunk, hidden channel of the chunk, elements a hidden channel); a record mixes its hidden channels, so
        the last two axes only say how large it is.
    """
    hidden_channels, in_channels = weights.expand_weight.shape[:2]
    out_channels = weights.project_weight.shape[0]
    chunks = -(-hidden_channels // chunk)
    hidden = chunks * chunk
    expand = pad_to(0.5 * weights.expand_weight.flatten(1).cpu().float(), hidden, in_channels)
    expand_bias = pad_to(0.5 * weights.expand_bias.cpu().float(), hidden)
    depthwise_bias = pad_to(0.5 * weights.depthwise_bias.cpu().float(), hidden)
    depthwise = pad_to(0.5 * weights.depthwise_weight.flatten(1).cpu().float(), hidden, 9)
    depthwise = torch.cat([depthwise, depthwise_bias[:, None]], 1)
    project = pad_to(weights.project_weight.flatten(1).cpu().float(), out_channels, hidden)
    pass_channels = min(out_channels, _PASS_CHANNELS)

    records = []
    for first_out in range(0, out_channels, pass_channels):
        outputs = pad_to(project[first_out : first_out + pass_channels], pass_channels, hidden)
        for first in range(0, hidden, chunk):
            part = slice(first, first + chunk)
            # (16 channels, q, t, h, 10) → (16 channels, t, q, 10, h): the ten pairs of a lane's two channels.
            taps = depthwise[part].reshape(chunk // 16, 2, 4, 2, 10).permute(0, 2, 1, 4, 3)
            biases = [_bytes(expand_bias[part]), _bytes(depthwise_bias[part])]
            if rows:
                biases = [_bytes(expand_bias[part].reshape(-1, 1, 2).expand(-1, 2, -1))]
            records += [
                _bytes((_by_tiles if rows else to_b_fragments)(expand[part].t()).to(dtype)),
                _bytes(taps.to(dtype)),
                *biases,
                _bytes(to_b_fragments(outputs[:, part].t()).to(dtype)),
            ]
    return torch.cat(records).view(dtype).reshape(-(-out_channels // pass_channels), chunks, chunk, -1)


def _by_tiles(matrix: Tensor) -> Tensor:
    """Reorders a (K, 16) matrix, K zero-padded to a multiple of 16: tile by tile, a lane's words of two k-steps a load.

    Of an odd number of k-steps the last one is alone. Flat: of each of the two n8 tiles its pairs of k-steps
    (pair, 32 lanes, 2 k-steps, 4 values), then (32, 4) of the last.
    """
    tiles = to_b_tiles(pad_to(matrix, -(-matrix.shape[0] // 16) * 16, 16)).transpose(0, 1)  # tile, k-step, lane, values
    paired = tiles.shape[1] // 2 * 2
    pairs = tiles[:, :paired].reshape(2, -1, 2, 32, 4).transpose(2, 3)
    return torch.cat([pairs.flatten(1), tiles[:, paired:].flatten(1)], 1)


def pack_rows(weights: InvertedResidualWeights, dtype: torch.dtype) -> Tensor:
    """The records of the row kernel, on the CPU: channels in the order in which its lanes load and store them."""
    in_order, out_order = (
        lane_channels(weight.shape[0]) for weight in (weights.expand_weight[0], weights.project_weight)
    )
    reordered = dataclasses.replace(
        weights, expand_weight=weights.expand_weight[:, in_order], project_weight=weights.project_weight[out_order]
    )
    return pack_chunks(reordered, dtype, _ROW_CHUNK, rows=True)


def _needed(backend: str, in_channels: int, out_channels: int, chunk: int) -> int:
    """Shared memory of a block of the tile kernel at the stride that needs more, in bytes."""
    library = native.library(backend)
    return max(library.shared_bytes("inverted_residual", in_channels, out_channels, s, chunk) for s in (1, 2))


def refusal(backend: str, weights: InvertedResidualWeights, device: torch.device) -> str | None:
    """Why the kernels cannot serve these weights on this device; None: they can."""
    hidden_channels, in_channels = weights.expand_weight.shape[:2]
    out_channels = weights.project_weight.shape[0]
    if reason := native.multiples_of_eight(
        in_channels=in_channels, hidden_channels=hidden_channels, out_channels=out_channels
    ):
        return reason
    needed = _needed(backend, in_channels, out_channels, SMALL_CHUNK)
    limit = native.library(backend).shared_limit(device)
    if needed > limit:
        return (
            f"{in_channels} → {hidden_channels} → {out_channels} channels need {needed} bytes of shared memory a "
            f"block, this device has {limit}"
        )
    return None


def row_strides(backend: str, sizes: tuple[int, ...], device: torch.device) -> tuple[int, ...]:
    """The strides at which the row kernel serves (in, hidden, out) channels on this device."""
    return _row_strides(backend, sizes, native.library(backend).shared_limit(device))


@functools.lru_cache(maxsize=256)
def _row_strides(backend: str, sizes: tuple[int, ...], limit: int) -> tuple[int, ...]:
    library = native.library(backend)
    return tuple(s for s in (1, 2) if library.shared_bytes("inverted_residual_rows", *sizes, s, limit) > 0)


def pack(
    weights: InvertedResidualWeights, dtype: torch.dtype, device: torch.device, backend: str | None = None
) -> tuple[Tensor, ...]:
    """The tile kernel's records, the projection's bias in float32, the row kernel's records (empty: not served).

    The tile kernel takes its large chunk where that fits into the device's shared memory at both strides.
    """
    if backend is None:
        backend = "cuda" if device.type == "cuda" else "simt"
    hidden_channels, in_channels = weights.expand_weight.shape[:2]
    out_channels = weights.project_weight.shape[0]
    limit = native.library(backend).shared_limit(device)
    chunk = LARGE_CHUNK if _needed(backend, in_channels, out_channels, LARGE_CHUNK) <= limit else SMALL_CHUNK
    rows = torch.empty(0, dtype=dtype)
    if row_strides(backend, (in_channels, hidden_channels, out_channels), device):
        rows = pack_rows(weights, dtype)
    records = pack_chunks(weights, dtype, chunk)
    # A copy of the bias: the kernels load 16 bytes at a time, and it may be a slice of something larger.
    bias = weights.project_bias.to(device, torch.float32, copy=True)
    return records.to(device), bias, rows.to(device)


def split(blocks: int) -> str:
    """The form of the tile kernel in which ``blocks`` blocks share a tile."""
    return f"tiles of 4 × 8 pixels, hidden channels split over clusters of {blocks} blocks"


_SPLIT = {split(blocks): blocks for blocks in range(2, _MOST_CLUSTER_BLOCKS + 1)}


def _clusters(packed: Packed, stride: int) -> tuple[int, ...]:
    """The clusters that may share a tile on this device, by their blocks: no two with as many chunks a block."""
    library = native.library(packed.backend)
    if not library.has_clusters(packed.device):
        return ()
    chunk = packed.tensors[0].shape[2]
    return _fitting_clusters(packed.backend, packed.sizes, stride, chunk, library.shared_limit(packed.device))


@functools.lru_cache(maxsize=256)
def _fitting_clusters(backend: str, sizes: tuple[int, ...], stride: int, chunk: int, limit: int) -> tuple[int, ...]:
    in_channels, hidden_channels, out_channels = sizes
    library, chunks = native.library(backend), -(-hidden_channels // chunk)
    even = {-(-chunks // -(-chunks // blocks)) for blocks in _SPLIT.values()}
    return tuple(
        blocks
        for blocks in sorted(even - {1})
        if library.shared_bytes("inverted_residual_cluster", in_channels, out_channels, stride, chunk, blocks) <= limit
    )


def cluster_blocks(packed: Packed, stride: int, tiles: int) -> int:
    """Blocks that share each of ``tiles`` tiles of 4 × 8 output pixels; 0: none, one block takes a larger tile.

    The least time, in chunks of such a tile: what runs at once is one block a multiprocessor, and a cluster's blocks in
    one group of them. A larger tile's chunk takes as often as long as it has more pixels. Only while there are no more
    tiles than multiprocessors: then larger tiles leave at least half of them idle.
    """
    multiprocessors = native.library(packed.backend).multiprocessors(packed.device)
    if not 0 < tiles <= multiprocessors:
        return 0
    chunk = packed.tensors[0].shape[2]
    chunks = -(-packed.sizes[1] // chunk)
    rows, columns = _SPLIT_PIXELS
    larger = _TILE_PIXELS[chunk] // stride // (rows * columns)
    # No more tiles than multiprocessors: unsplit ones all run at once.
    best, least = 0, _SPLIT_ENDS + larger * chunks
    for blocks in _clusters(packed, stride):
        if (at_once := clusters_at_once(multiprocessors, blocks)) > 0:
            time = -(-tiles // at_once) * (_SPLIT_ENDS - (-chunks // blocks))
            if time < least:
                best, least = blocks, time
    return best


def _split_tiles(x: Slot, stride: int, dilation: int) -> int:
    """Tiles of a split block."""
    batch, _, height, width = x.shape
    tiles = batch * dilation**2
    for size, of_tile in zip((height, width), _SPLIT_PIXELS, strict=True):
        of_phase = -(-((size - 1) // stride + 1) // dilation)
        tiles *= -(-of_phase // of_tile)
    return tiles


def _rows_serve(packed: Packed, stride: int, dilation: int) -> bool:
    """Whether the row kernel does."""
    if dilation != 1 or packed.tensors[2].numel() == 0:
        return False
    return stride in row_strides(packed.backend, packed.sizes, packed.device)


def most_split_before_dealt(packed: Packed, stride: int) -> int:
    """Tiles of 4 × 8 output pixels up to which clusters share them where the row kernel would deal hidden channels.

    At stride 2, as long as four blocks for each tile run at once. Measured on an H200, float16, one image: 7.6 µs split
    and 8.4 dealt for 64 → 256 → 80 on 32×32 pixels, in clusters of four; where only two or three blocks can share a
    tile, 10.6 and 8.7 for 64 → 256 → 96 on 64×64, 7.4 and 7.0 for 48 → 192 → 64. At stride 1 dealt: 9.6 and 15.4 split
    for 64 → 256 → 64.
    """
    if stride != 2 or dealt_pixels(packed, stride) == 0 or not _clusters(packed, stride):
        return 0
    return clusters_at_once(native.library(packed.backend).multiprocessors(packed.device), 4)


def _takes_two_passes(packed: Packed, stride: int) -> bool:
    """Whether the row kernel has room for only half of the hidden channels' weights."""
    in_channels, _, out_channels = packed.sizes
    return native.library(packed.backend).rows_workspace_bytes(in_channels, out_channels, stride, 1, 1, 1) > 0


def most_before_rows(packed: Packed, stride: int) -> int:
    """Output pixels of a batch up to which another form than the row kernel, each warp for itself, serves.

    Where channels are not dealt, at stride 1, that is as long as all tiles run at once. Measured on an H200, float16,
    one image: 6.3 µs by tiles and 7.0 by rows for 16 → 64 → 32 on 128×128 pixels, 6.1 and 6.7 for 24 → 48 → 24 on
    64×64.
    """
    multiprocessors = native.library(packed.backend).multiprocessors(packed.device)
    if _takes_two_passes(packed, stride):
        return _PIXELS_BEFORE_PASSES[packed.sizes[0]] * multiprocessors
    dealt = dealt_pixels(packed, stride)
    return dealt if dealt or stride != 1 else _TILE_PIXELS[packed.tensors[0].shape[2]] * multiprocessors


def _form(x: Slot, packed: Packed, stride: int, dilation: int) -> str:
    """Which kernel serves, in which form: by the rules of :func:`variant`."""
    rows_serve = _rows_serve(packed, stride, dilation)
    batch, _, height, width = x.shape
    out_pixels = ((height - 1) // stride + 1) * ((width - 1) // stride + 1) * batch
    if rows_serve and out_pixels > most_before_rows(packed, stride):
        return ROWS
    tiles = _split_tiles(x, stride, dilation)
    deals = rows_serve and dealt_pixels(packed, stride) > 0
    if deals and tiles > most_split_before_dealt(packed, stride):
        return DEALT
    if blocks := cluster_blocks(packed, stride, tiles):
        return split(blocks)
    return DEALT if deals else TILES


def alternatives(x: Slot, packed: Packed, *, stride: int, dilation: int, residual: bool) -> Alternatives:
    """Both kernels in all of their forms, where they serve; the one that the rules take first."""
    form = _form(x, packed, stride, dilation)
    forms = [form]
    if _rows_serve(packed, stride, dilation):
        forms += [ROWS] if dealt_pixels(packed, stride) == 0 else [ROWS, DEALT]
    forms += [TILES, *map(split, _clusters(packed, stride))]
    return {
        form: launches(x, packed, stride=stride, dilation=dilation, residual=residual, form=form)
        for form in dict.fromkeys(forms)
    }


def launches(
    x: Slot, packed: Packed, *, stride: int, dilation: int, residual: bool, form: str | None = None
) -> list[Launch]:
    """The launch of the kernel; see :func:`mobilevit_kernels.ops.inverted_residual`.

    Args:
        x, packed, stride, dilation, residual: as for the op.
        form: ``ROWS``, ``DEALT``, ``TILES`` or one of :func:`split`; None: by the rules.
    """
    records, bias, row_records = packed.tensors
    if form is None:
        form = _form(x, packed, stride, dilation)
    if form not in (ROWS, DEALT):
        row_records = row_records[:0]  # the launcher takes the row kernel where it is given its weights
    in_channels, hidden_channels, out_channels = packed.sizes
    batch, _, height, width = x.shape
    out_height, out_width = (height - 1) // stride + 1, (width - 1) // stride + 1
    sizes = {
        "batch": batch,
        "height": height,
        "width": width,
        "in_channels": in_channels,
        "hidden_channels": hidden_channels,
        "out_channels": out_channels,
        "stride": stride,
        "dilation": dilation,
        "chunk": records.shape[2],
        "cluster_blocks": _SPLIT.get(form, 0),
        "residual": residual,
        "dealt": form == DEALT,
    }
    inputs: dict[str, Tensor | Slot] = {"x": x, "weights": records, "row_weights": row_records, "bias": bias}
    y = map_slot(batch, out_channels, out_height, out_width, x.dtype)
    workspace = 0
    if row_records.numel():
        library = native.library(packed.backend)
        workspace = library.rows_workspace_bytes(in_channels, out_channels, stride, batch, height, width)
    return [Launch("inverted_residual", inputs, y, sizes, x.dtype, workspace, 2 if workspace else 1)]


def run(x: Tensor, packed: Packed, *, stride: int, dilation: int, residual: bool) -> Tensor:
    """Launches the kernel."""
    slot = Slot.like(x)
    calls = launches(slot, packed, stride=stride, dilation=dilation, residual=residual)
    return execute(packed.backend, calls, {slot: native.aligned(x)})


@functools.lru_cache(maxsize=256)
def _dealt_pixels(backend: str, sizes: tuple[int, ...], stride: int, limit: int) -> int:
    return native.library(backend).dealt_pixels(*sizes, stride, limit)


def dealt_pixels(packed: Packed, stride: int) -> int:
    """Output pixels of a batch up to which the row kernel deals the hidden channels to the warps of a block.

    Up to there less than a quarter of the GPU's warps would have a strip of their own, and each would walk over all
    hidden channels alone. Measured at one image on an H200: 12.8 µs dealt and 15.7 not for 64 → 256 → 64 on 64×64
    pixels, 10.3 and 14.2 for 64 → 256 → 96 at stride 2; but 12.4 and 7.8 for 32 → 128 → 64 on 128×128, so fewer than
    192 hidden channels are not dealt.
    """
    if packed.tensors[2].numel() == 0:  # not served by the row kernel
        return 0
    library = native.library(packed.backend)
    pixels = _dealt_pixels(packed.backend, packed.sizes, stride, library.shared_limit(packed.device))
    return pixels * library.multiprocessors(packed.device)


def _most_split_tiles(packed: Packed, stride: int) -> int:
    """Up to how many tiles of 4 × 8 output pixels clusters share them."""
    tiles = native.library(packed.backend).multiprocessors(packed.device)
    while tiles and cluster_blocks(packed, stride, tiles) == 0:
        tiles -= 1
    return tiles


def variant(packed: Packed) -> str:
    """Which kernel serves: by channels, stride and dilation (short of 2³¹ pixels), its form by the pixels too."""
    chunk = packed.tensors[0].shape[2]
    tiles = f"{'large' if chunk == LARGE_CHUNK else 'small'} tiles, {chunk} hidden channels a step"
    if texts := [f"{most} at stride {stride}" for stride in (1, 2) if (most := _most_split_tiles(packed, stride))]:
        tiles += f" (hidden channels split over clusters up to so many tiles of 4 × 8 pixels: {', '.join(texts)})"
    strides = row_strides(packed.backend, packed.sizes, packed.device) if packed.tensors[2].numel() else ()
    if not strides:
        return f"fused, {tiles}"
    rows = f"sliding rows at stride {' and '.join(map(str, strides))} without dilation"
    for stride in strides:
        if dealt_pixels(packed, stride) == 0 and (most := most_before_rows(packed, stride)):
            passes = "in two passes " if _takes_two_passes(packed, stride) else ""
            rows += f", {passes}from more than {most} output pixels on at stride {stride}"
    dealt = [(stride, dealt_pixels(packed, stride)) for stride in strides]
    texts = [f"{pixels} output pixels at stride {stride}" for stride, pixels in dealt if pixels]
    if texts:
        rows += f" (hidden channels dealt to the warps of a block up to {', '.join(texts)}"
        most = max(most_split_before_dealt(packed, stride) for stride in strides)
        rows += f", but split over clusters up to {most} tiles of 4 × 8 pixels at stride 2)" if most else ")"
    return f"fused, {rows}; else {tiles}"
