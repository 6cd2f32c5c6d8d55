"""Stem in CUDA (csrc/stem.cuh): packing and call."""

from __future__ import annotations

import torch
from torch import Tensor

from mobilevit_kernels import native
from mobilevit_kernels.canonical import StemWeights
from mobilevit_kernels.native.fragments import deal_channels, pad_to, to_b_tiles
from mobilevit_kernels.native.launches import Launch, Slot, execute, map_slot
from mobilevit_kernels.packed import Packed

__all__ = ["as_read", "launches", "normalization", "pack", "pack_fragments", "refusal", "run", "variant"]

# The launcher's numbers of image types.
_IMAGE_TYPES = {torch.uint8: 0, torch.float16: 1, torch.bfloat16: 2, torch.float32: 3}


def pack_fragments(weight: Tensor) -> Tensor:
    """B fragments [8-channel tile][lane][8] of a (C_out, 3, 3, 3) weight, flat: two k-steps of four values a lane.

    Of the nine values of a row of taps (pixel by pixel, channel by channel), k = 8·row … 8·row + 7 are the first
    eight and k = 24 + 2·row is the last. Halved, as the kernel computes ``silu(x)`` from ``x / 2``; output channels
    are dealt as it stores them.
    """
    rows = 0.5 * weight.permute(2, 3, 1, 0).reshape(3, 9, -1)  # tap row, (tap column, channel), C_out
    depth = rows.new_zeros(32, rows.shape[2])
    depth[:24] = rows[:, :8].flatten(0, 1)
    depth[24:30:2] = rows[:, 8]
    tiles = to_b_tiles(deal_channels(pad_to(depth, 32, -(-rows.shape[2] // 16) * 16)))  # k-step, tile, lane, 4
    return tiles.permute(1, 2, 0, 3).flatten()


def normalization(mean: list[float], std: list[float], is_bytes: bool) -> tuple[list[float], list[float]]:
    """Scale and shift of each channel: ``(v − mean) / std = v·scale + shift``, a byte v standing for v / 255."""
    mean, std = mean or [0.0] * 3, std or [1.0] * 3
    unit = 255.0 if is_bytes else 1.0
    return [1 / (unit * s) for s in std], [-m / s for m, s in zip(mean, std, strict=True)]


def refusal(backend: str, weights: StemWeights, device: torch.device) -> str | None:
    """Why the kernels cannot serve these weights; None: they can."""
    out_channels, in_channels = weights.weight.shape[:2]
    if in_channels != 3:
        return f"in_channels: the stem's CUDA kernel takes images of 3 channels, got {in_channels}"
    return native.multiples_of_eight(out_channels=out_channels)


def pack(weights: StemWeights, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """The fragments, and the bias in float32, halved."""
    fragments = pack_fragments(weights.weight.cpu().float())
    return fragments.to(device, dtype), (0.5 * weights.bias.cpu().float()).to(device)


def as_read(x: Tensor) -> Tensor:
    """Images as the kernel takes them, (B, 3, H, W): NCHW or NHWC in memory, of a type that it reads.

    What is so already stays where it is; other strides, and float64, are copied.
    """
    if x.dtype == torch.uint8:
        return x.contiguous().permute(0, 3, 1, 2)
    image = x if x.dtype in _IMAGE_TYPES else x.float()
    return image if image.is_contiguous(memory_format=torch.channels_last) else image.contiguous()


def launches(image: Slot, packed: Packed, *, mean: list[float], std: list[float]) -> list[Launch]:
    """The launch of the kernel on what :func:`as_read` returns; see :func:`mobilevit_kernels.ops.stem`."""
    weights, bias = packed.tensors
    out_channels = packed.sizes[1]
    batch, _, height, width = image.shape
    scale, shift = normalization(mean, std, image.dtype == torch.uint8)
    stride_image, stride_channel, stride_row, stride_column = image.stride
    sizes = {
        "stride_image": stride_image,
        "stride_channel": stride_channel,
        "stride_row": stride_row,
        "stride_column": stride_column,
        "batch": batch,
        "height": height,
        "width": width,
        "out_channels": out_channels,
        "image": _IMAGE_TYPES[image.dtype],
        **{f"scale{c}": scale[c] for c in range(3)},
        **{f"shift{c}": shift[c] for c in range(3)},
    }
    y = map_slot(batch, out_channels, (height + 1) // 2, (width + 1) // 2, packed.dtype)
    return [Launch("stem", {"x": image, "weights": weights, "bias": bias}, y, sizes, packed.dtype)]


def run(x: Tensor, packed: Packed, *, mean: list[float], std: list[float]) -> Tensor:
    """Launches the kernel."""
    image = as_read(x)
    slot = Slot.like(image)
    return execute(packed.backend, launches(slot, packed, mean=mean, std=std), {slot: image})


def variant(packed: Packed) -> str:
    """One variant for all shapes and image types."""
    return "implicit GEMM from the image's strides, 8×32 pixels a block"
