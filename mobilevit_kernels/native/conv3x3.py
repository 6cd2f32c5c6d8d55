"""Dense 3×3 convolution in CUDA (csrc/conv3x3.cuh): packing and call."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilevit_kernels import native
from mobilevit_kernels.canonical import Conv3x3Weights
from mobilevit_kernels.native import conv3x3_tiling
from mobilevit_kernels.native.fragments import deal_channels, pad_to, to_b_tiles
from mobilevit_kernels.native.launches import Alternatives, Launch, Slot, execute, map_slot
from mobilevit_kernels.packed import Packed

__all__ = [
    "PYTORCH",
    "alternatives",
    "launches",
    "pack",
    "pack_fragments",
    "pack_planes",
    "refusal",
    "run",
    "unpack_fragments",
    "variant",
]

PYTORCH = "PyTorch's convolution"

# What PyTorch's convolution reads, as long as the packed weights that it is made from: plans and CUDA graphs of all
# shapes share it, and a graph still reads it when the plan that it was captured from is gone.
_UNPACKED: weakref.WeakKeyDictionary[Packed, tuple[Tensor, Tensor]] = weakref.WeakKeyDictionary()
_UNPACKING = threading.Lock()


def pack_fragments(weight: Tensor) -> Tensor:
    """B fragments [16 input channels][dx][dy][8-channel tile][lane][4] of a (C_out, C_in, 3, 3) weight, flat.

    Both channel axes are padded with zeros to multiples of 16; output channels are dealt as the kernel stores them.
    """
    out_channels, in_channels = weight.shape[:2]
    padded = pad_to(weight, -(-out_channels // 16) * 16, -(-in_channels // 16) * 16, 3, 3)
    tiles = to_b_tiles(deal_channels(padded.permute(3, 2, 1, 0)))  # dx, dy, 16 input channels, tile, lane, 4
    return tiles.permute(2, 0, 1, 3, 4, 5).flatten()


def pack_planes(weight: Tensor) -> Tensor:
    """[16 input channels][dx][dy][8 input channels][output channel][8] of a (C_out, C_in, 3, 3) weight, flat.

    Padded and dealt as by :func:`pack_fragments`.
    """
    out_channels, in_channels = weight.shape[:2]
    columns, depth = -(-out_channels // 16) * 16, -(-in_channels // 16) * 16
    dealt = deal_channels(pad_to(weight, columns, depth, 3, 3).permute(3, 2, 1, 0))  # dx, dy, input, output
    return dealt.reshape(3, 3, depth // 16, 2, 8, columns).permute(2, 0, 1, 3, 5, 4).flatten()


def unpack_fragments(fragments: Tensor, in_channels: int, out_channels: int) -> Tensor:
    """The (C_out, C_in, 3, 3) weight of :func:`pack_fragments`, both on the CPU."""
    count = out_channels * in_channels * 9
    numbers = torch.arange(1, count + 1, device="cpu").reshape(out_channels, in_channels, 3, 3)
    places = pack_fragments(numbers)  # of each element its number; 0: padding
    held = places > 0
    weight = fragments.new_empty(count)
    weight[places[held] - 1] = fragments[held]
    return weight.reshape(numbers.shape)


def refusal(backend: str, weights: Conv3x3Weights, device: torch.device) -> str | None:
    """Why the kernels cannot serve these weights; None: they can."""
    return native.multiples_of_eight(in_channels=weights.weight.shape[1], out_channels=weights.weight.shape[0])


def pack(weights: Conv3x3Weights, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """The fragments, one form for every tile and every split into two inputs, the bias in float32, and the planes for
    wgmma; empty where the device has none."""
    weight = weights.weight.cpu().float()
    has_wgmma = device.type == "cpu" or torch.cuda.get_device_capability(device) == (9, 0)
    planes = pack_planes(weight) if has_wgmma else torch.empty(0)
    return (
        pack_fragments(weight).to(device, dtype),
        weights.bias.to(device, torch.float32),
        planes.to(device, dtype),
    )


def _has_wgmma(packed: Packed) -> bool:
    return native.library(packed.backend).has_wgmma(packed.device)


def launches(
    x: Slot, packed: Packed, *, x2: Slot | None = None, dilation: int, activation: str, tile: int | None = None
) -> list[Launch]:
    """The launch of the kernel; see :func:`mobilevit_kernels.ops.conv3x3`.

    Args:
        x, packed, x2, dilation, activation: as for the op; of two inputs the first has a multiple of 8 channels.
        tile: a number of :func:`conv3x3_tiling.numbered`; None: the best by the model.
    """
    weights, bias, planes = packed.tensors
    batch, first_channels, height, width = x.shape
    if tile is None:
        count = conv3x3_tiling.sub_tiles(batch, height, width, dilation)
        tile = conv3x3_tiling.choose(count, *packed.sizes, _has_wgmma(packed))
    on_wgmma = tile in conv3x3_tiling.WGMMA_TILES
    inputs: dict[str, Tensor | Slot] = {"x": x, "weights": planes if on_wgmma else weights, "bias": bias}
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


def alternatives(x: Slot, packed: Packed, *, x2: Slot | None = None, dilation: int, activation: str) -> Alternatives:
    """The kernel in each of its tiles, the best one by the model first, and PyTorch's convolution (cuDNN on a GPU)."""
    launches_in = functools.partial(launches, x, packed, x2=x2, dilation=dilation, activation=activation)
    default = launches_in()
    names = {
        number: tile.name if tile.wgmma else f"{tile.name} tiles"
        for number, tile in conv3x3_tiling.numbered(_has_wgmma(packed)).items()
    }
    found = {names[int(default[0].sizes["tile"])]: default}
    for number, name in names.items():
        found.setdefault(name, launches_in(tile=number))
    found[PYTORCH] = [_by_pytorch(x, packed, x2, dilation, activation)]
    return found


def _unpacked(packed: Packed) -> tuple[Tensor, Tensor]:
    """The weight, channels_last, and the bias, both in the compute dtype; made at the first call.

    Raises:
        RuntimeError: the first call is under the capture of a CUDA graph, which cannot take the copies.
    """
    with _UNPACKING:
        found = _UNPACKED.get(packed)
        if found is None:
            if packed.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    f"{PYTORCH}, which a choice table names, is not ready for the capture of a CUDA graph; call the "
                    f"model once before"
                )
            fragments, bias = (tensor.cpu() for tensor in packed.tensors[:2])
            weight = unpack_fragments(fragments, *packed.sizes).contiguous(memory_format=torch.channels_last)
            # Copies from the CPU end before they return: every stream may read them.
            found = _UNPACKED[packed] = weight.to(packed.device), bias.to(packed.dtype).to(packed.device)
    return found


def _by_pytorch(x: Slot, packed: Packed, x2: Slot | None, dilation: int, activation: str) -> Launch:
    """The same convolution by PyTorch, with the rounded weights that the kernel has."""

    def convolve(inputs: Mapping[str, Tensor], output: Tensor) -> None:
        maps = list(inputs.values())
        weight, bias = _unpacked(packed)
        with torch.autocast(output.device.type, enabled=False):  # the compute dtype is the packed weights'
            whole = maps[0] if len(maps) == 1 else torch.cat(maps, dim=1)
            y = F.conv2d(whole, weight, bias, padding=dilation, dilation=dilation)
            if activation == "silu":
                torch.ops.aten.silu.out(y, out=output)
            else:
                output.copy_(y)

    inputs = {"x": x} if x2 is None else {"x": x, "x2": x2}
    batch, _, height, width = x.shape
    y = map_slot(batch, packed.sizes[1], height, width, x.dtype)
    # The convolution, the SiLU, and the concatenation that the kernel does without.
    return Launch(PYTORCH, inputs, y, {}, x.dtype, kernels=1 + len(inputs), function=convolve)


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
        + (" on wgmma" if tile.wgmma else "")
        + (f" from {count} tiles of 8×8 pixels" if count > 1 else "")
        for count, tile in conv3x3_tiling.boundaries(*packed.sizes, _has_wgmma(packed))
    ]
    return "implicit GEMM; " + ", ".join(parts)
