"""Dense 3×3 convolution in CUDA (csrc/conv3x3.cuh): packing and call."""

from __future__ import annotations

import torch
from torch import Tensor

from mobilevit_kernels import native
from mobilevit_kernels.canonical import Conv3x3Weights
from mobilevit_kernels.native import conv3x3_tiling
from mobilevit_kernels.native.fragments import deal_channels, pad_to, to_b_tiles
from mobilevit_kernels.native.launches import Launch, Slot, execute, map_slot
from mobilevit_kernels.packed import Packed

__all__ = ["launches", "pack", "pack_fragments", "refusal", "run", "variant"]


def pack_fragments(weight: Tensor) -> Tensor:
    """B fragments [16 input channels][dx][dy][8-channel tile][lane][4] of a (C_out, C_in, 3, 3) weight, flat.

    Both channel axes are padded with zeros to multiples of 16; output channels are dealt as the kernel stores them.
    """
    out_channels, in_channels = weight.shape[:2]
    padded = pad_to(weight, -(-out_channels // 16) * 16, -(-in_channels // 16) * 16, 3, 3)
    tiles = to_b_tiles(deal_channels(padded.permute(3, 2, 1, 0)))  # dx, dy, 16 input channels, tile, lane, 4
    return tiles.permute(2, 0, 1, 3, 4, 5).flatten()


def refusal(backend: str, weights: Conv3x3Weights, device: torch.device) -> str | None:
    """Why the kernels cannot serve these weights; None: they can."""
    return native.multiples_of_eight(in_channels=weights.weight.shape[1], out_channels=weights.weight.shape[0])


def pack(weights: Conv3x3Weights, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """The fragments, one form for every tile and every split into two inputs, and the bias in float32."""
    return pack_fragments(weights.weight.cpu().float()).to(device, dtype), weights.bias.to(device, torch.float32)


def launches(
    x: Slot, packed: Packed, *, x2: Slot | None = None, dilation: int, activation: str, tile: int | None = None
) -> list[Launch]:
    """The launch of the kernel; see :func:`mobilevit_kernels.ops.conv3x3`.

    Args:
        x, packed, x2, dilation, activation: as for the op; of two inputs the first has a multiple of 8 channels.
        tile: a number of :data:`conv3x3_tiling.TILES`; None: the best one by the model.
    """
    weights, bias = packed.tensors
    batch, first_channels, height, width = x.shape
    if tile is None:
        count = conv3x3_tiling.sub_tiles(batch, height, width, dilation)
        tile = conv3x3_tiling.choose(count, *packed.sizes)
    inputs: dict[str, Tensor | Slot] = {"x": x, "weights": weights, "bias": bias}
    if x2 is not None:
        inputs["x2"] = x2
    out_channels = packed.sizes[1]
    sizes = {
        "batch": batch,
        "height": height,
        "width": width,
        "first_channels": first_channels,
        "second_channels": 0 if x2 is None else x2.shape[1],
        "out_channels": out_channels,
        "dilation": dilation,
        "tile": tile,
        "silu": activation == "silu",
    }
    y = map_slot(batch, out_channels, height, width, x.dtype)
    return [Launch("conv3x3", inputs, y, sizes, x.dtype)]


def run(
    x: Tensor, packed: Packed, *, x2: Tensor | None, dilation: int, activation: str, tile: int | None = None
) -> Tensor:
    """Launches the kernel; of two inputs, those whose first has no multiple of 8 channels are
    concatenated before."""
    if x2 is not None and x.shape[1] % 8 != 0:
        x, x2 = torch.cat([x, x2], dim=1).contiguous(memory_format=torch.channels_last), None
    slot = Slot.like(x)
    tensors = {slot: native.aligned(x)}
    slot2 = None
    if x2 is not None:
        slot2 = Slot.like(x2)
        tensors[slot2] = native.aligned(x2)
    calls = launches(slot, packed, x2=slot2, dilation=dilation, activation=activation, tile=tile)
    return execute(packed.backend, calls, tensors)


def variant(packed: Packed) -> str:
    """Implicit GEMM; the tile changes at numbers of 8×8-pixel tiles of the whole batch."""
    parts = [
        f"{64 * tile.sub_tiles} pixels × {conv3x3_tiling.block_channels(tile, packed.sizes[1])} channels a block"
        + (f" from {count} tiles of 8×8 pixels" if count > 1 else "")
        for count, tile in conv3x3_tiling.boundaries(*packed.sizes)
    ]
    return "implicit GEMM; " + ", ".join(parts)
