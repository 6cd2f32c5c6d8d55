"""Inverted residual in CUDA (csrc/inverted_residual.cuh): packing and call."""

from __future__ import annotations

import torch
from torch import Tensor

from mobilevit_kernels import native
from mobilevit_kernels.canonical import InvertedResidualWeights
from mobilevit_kernels.native.fragments import pad_to, to_b_fragments
from mobilevit_kernels.ops import _dispatch
from mobilevit_kernels.packed import Packed

__all__ = ["LARGE_CHUNK", "SMALL_CHUNK", "pack", "pack_chunks", "run", "variant"]

# Hidden channels that a block takes at a time; the tile of pixels goes with it (InvertedResidualConfig).
LARGE_CHUNK = 64
SMALL_CHUNK = 32
_PASS_CHANNELS = 160  # output channels a block accumulates at most


def _bytes(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8).flatten()


def pack_chunks(weights: InvertedResidualWeights, dtype: torch.dtype, chunk: int) -> Tensor:
    """The records [pass][chunk] of csrc/inverted_residual.cuh, flat, on the CPU.

    Expand and depthwise weights and biases are halved: the kernel computes ``silu(x)`` from ``x / 2``.
    """
    hidden_channels, in_channels = weights.expand_weight.shape[:2]
    out_channels = weights.project_weight.shape[0]
    chunks = -(-hidden_channels // chunk)
    hidden = chunks * chunk
    expand = pad_to(0.5 * weights.expand_weight.flatten(1).cpu().float(), hidden, in_channels)
    expand_bias = pad_to(0.5 * weights.expand_bias.cpu().float(), hidden)
    depthwise = pad_to(0.5 * weights.depthwise_weight.flatten(1).cpu().float(), hidden, 10)
    depthwise_bias = pad_to(0.5 * weights.depthwise_bias.cpu().float(), hidden)
    project = pad_to(weights.project_weight.flatten(1).cpu().float(), out_channels, hidden)
    pass_channels = min(out_channels, _PASS_CHANNELS)

    records = []
    for first_out in range(0, out_channels, pass_channels):
        rows = pad_to(project[first_out : first_out + pass_channels], pass_channels, hidden)
        for first in range(0, hidden, chunk):
            part = slice(first, first + chunk)
            # (16 channels, q, t, h, 10) → (16 channels, t, q, 10, h): the ten pairs of a lane's two channels.
            taps = depthwise[part].reshape(chunk // 16, 2, 4, 2, 10).permute(0, 2, 1, 4, 3)
            records += [
                _bytes(to_b_fragments(expand[part].t()).to(dtype)),
                _bytes(taps.to(dtype)),
                _bytes(expand_bias[part]),
                _bytes(depthwise_bias[part]),
                _bytes(to_b_fragments(rows[:, part].t()).to(dtype)),
            ]
    return torch.cat(records).view(dtype)


def _chunk(backend: str, in_channels: int, out_channels: int, device: torch.device) -> int:
    """The large chunk where its tile fits into the device's shared memory at both strides, else the small one."""
    library = native.library(backend)
    needed = max(library.shared_bytes("inverted_residual", in_channels, out_channels, s, LARGE_CHUNK) for s in (1, 2))
    return LARGE_CHUNK if needed <= library.shared_limit(device) else SMALL_CHUNK


def pack(
    weights: InvertedResidualWeights, dtype: torch.dtype, device: torch.device, backend: str | None = None
) -> tuple[Tensor, ...]:
    """The records, the projection's bias in float32, and the chunk they are packed for (an int32 on the CPU)."""
    if backend is None:
        backend = "cuda" if device.type == "cuda" else "simt"
    chunk = _chunk(backend, weights.expand_weight.shape[1], weights.project_weight.shape[0], device)
    return (
        pack_chunks(weights, dtype, chunk).to(device),
        weights.project_bias.float().to(device),
        torch.tensor(chunk, dtype=torch.int32),
    )


def run(x: Tensor, packed: Packed, *, stride: int, dilation: int, residual: bool) -> Tensor:
    """Launches the kernel; see :func:`mobilevit_kernels.ops.inverted_residual`."""
    records, bias, chunk = packed.tensors
    in_channels, hidden_channels, out_channels = packed.sizes
    if x.data_ptr() % 16 != 0:  # a slice of a larger tensor: the kernel copies 16 bytes at a time
        x = x.clone(memory_format=torch.channels_last)
    batch, _, height, width = x.shape
    y = _dispatch.empty_nhwc(x, out_channels, (height - 1) // stride + 1, (width - 1) // stride + 1, x.dtype)
    native.library(packed.backend).launch(
        "inverted_residual",
        {"x": x, "weights": records, "bias": bias},
        y,
        {
            "batch": batch,
            "height": height,
            "width": width,
            "in_channels": in_channels,
            "hidden_channels": hidden_channels,
            "out_channels": out_channels,
            "stride": stride,
            "dilation": dilation,
            "chunk": int(chunk),
            "residual": residual,
        },
        x.dtype == torch.bfloat16,
    )
    return y


def variant(packed: Packed) -> str:
    """Full fusion; the tile depends on the channels alone."""
    chunk = int(packed.tensors[2])
    return f"fused, {'large' if chunk == LARGE_CHUNK else 'small'} tile, {chunk} hidden channels a step"
