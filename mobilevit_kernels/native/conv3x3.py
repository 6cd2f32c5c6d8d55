"""Dense 3×3 convolution in CUDA (csrc/conv3x3.cuh): packing and call."""

from __future__ import annotations

import torch
from torch import Tensor

from mobilevit_kernels import native
from mobilevit_kernels.canonical import Conv3x3Weights
from mobilevit_kernels.native import conv3x3_tiling
from mobilevit_kernels.native.fragments import deal_channels, pad_to, to_b_tiles
from mobilevit_kernels.ops import _dispatch
from mobilevit_kernels.packed import Packed

__all__ = ["launch", "pack", "pack_fragments", "refusal", "run", "variant"]


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


def run(x: Tensor, packed: Packed, *, x2: Tensor | None, dilation: int, activation: str) -> Tensor:
    """Launches the kernel; see :func:`mobilevit_kernels.ops.conv3x3`.

    Two inputs whose first has a number of channels that is no multiple of 8 are concatenated before.
    """
    batch, _, height, width = x.shape
    count = conv3x3_tiling.sub_tiles(batch, height, width, dilation)
    return launch(x, x2, packed, dilation, activation == "silu", conv3x3_tiling.choose(count, *packed.sizes))


def launch(x: Tensor, x2: Tensor | None, packed: Packed, dilation: int, silu: bool, tile: int) -> Tensor:
    """The same with a tile of one's choice, a number of :data:`conv3x3_tiling.TILES`."""
    weights, bias = packed.tensors
    if x2 is not None and x.shape[1] % 8 != 0:
        x, x2 = torch.cat([x, x2], dim=1).contiguous(memory_format=torch.channels_last), None
    inputs = {"x": native.aligned(x), "weights": weights, "bias": bias}
    if x2 is not None:
        inputs["x2"] = native.aligned(x2)
    batch, first_channels, height, width = x.shape
    out_channels = packed.sizes[1]
    y = _dispatch.empty_nhwc(x, out_channels, height, width, x.dtype)
    sizes = {
        "batch": batch,
        "height": height,
        "width": width,
        "first_channels": first_channels,
        "second_channels": 0 if x2 is None else x2.shape[1],
        "out_channels": out_channels,
        "dilation": dilation,
        "tile": tile,
        "silu": silu,
    }
    native.library(packed.backend).launch("conv3x3", inputs, y, sizes, x.dtype == torch.bfloat16)
    return y


def variant(packed: Packed) -> str:
    """Implicit GEMM; the tile changes at numbers of 8×8-pixel tiles of the whole batch."""
    parts = [
        f"{64 * tile.sub_tiles} pixels × {conv3x3_tiling.block_channels(tile, packed.sizes[1])} channels a block"
        + (f" from {count} tiles of 8×8 pixels" if count > 1 else "")
        for count, tile in conv3x3_tiling.boundaries(*packed.sizes)
    ]
    return "implicit GEMM; " + ", ".join(parts)
