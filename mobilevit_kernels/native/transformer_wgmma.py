"""Transformer stage in CUDA on wgmma (csrc/transformer_wgmma.cuh): packing and call."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from mobilevit_kernels import native
from mobilevit_kernels.canonical import TransformerWeights
from mobilevit_kernels.native.fragments import in_lane_order, pad_to
from mobilevit_kernels.native.launches import Launch, Slot, map_slot
from mobilevit_kernels.native.transformer_fold import fold
from mobilevit_kernels.native.transformer_plan import (
    DEFAULT_HEADS,
    WgmmaInstance,
    WgmmaPlan,
    plan_wgmma,
    wgmma_instances_for,
)
from mobilevit_kernels.ops import _dispatch
from mobilevit_kernels.packed import Packed

__all__ = ["launch", "pack", "pack_stream", "planned", "plans", "variant"]


def _planes(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """(K, N), K a multiple of 8 → bytes of [K/8][N][8]: eight k of a column are neighbours."""
    depth, columns = matrix.shape
    return matrix.reshape(depth // 8, 8, columns).transpose(1, 2).to(dtype).flatten().view(torch.uint8)


def _behind_norm(matrix: Tensor, bias: Tensor, depth: int, chunk: int, dtype: torch.dtype) -> list[Tensor]:
    """(K, N) and (N,) → chunks of ``chunk`` of ``depth`` rows, then the biases and the sums of the rounded weights."""
    matrix = pad_to(matrix, depth, matrix.shape[1]).to(dtype)
    parts = [_planes(rows, dtype) for rows in matrix.split(chunk)]
    return [*parts, bias.float().view(torch.uint8), matrix.double().sum(0).float().view(torch.uint8)]


def pack_stream(weights: TransformerWeights, dtype: torch.dtype, instance: WgmmaInstance) -> Tensor:
    """Packs the weights for an instance, on the CPU. A pure function.

    Returns:
        The chunks in the order in which the kernel takes them, uint8.
    """
    dim, hidden, deep, depth = instance.dim, instance.hidden, 16 * instance.depth, 16 * instance.steps
    (in_matrix, _), layers, (out_matrix, out_bias) = fold(weights, DEFAULT_HEADS, instance.head_tiles)
    in_depth = -(-in_matrix.shape[0] // deep) * deep
    parts = [_planes(rows, dtype) for rows in pad_to(in_lane_order(in_matrix), in_depth, dim).split(deep)]
    for layer in layers:
        for matrix, bias in layer.attention:
            parts += _behind_norm(matrix, bias, depth, deep, dtype)
        parts += [_planes(rows, dtype) for rows in pad_to(layer.output[0], depth, dim).split(deep)]
        matrix, bias = layer.expand
        for first in range(0, 2 * dim, hidden):
            columns = slice(first, first + hidden)
            parts += _behind_norm(matrix[:, columns], bias[columns], depth, depth, dtype)
            parts.append(_planes(layer.reduce[0][columns], dtype))
    out_channels = -(-out_bias.shape[0] // hidden) * hidden
    matrix = pad_to(in_lane_order(out_matrix.t()), out_channels, dim).t()
    bias = pad_to(in_lane_order(out_bias), out_channels)
    for first in range(0, out_channels, hidden):
        columns = slice(first, first + hidden)
        parts += _behind_norm(matrix[:, columns], bias[columns], depth, depth, dtype)
    return torch.cat(parts)


def pack(weights: TransformerWeights, dtype: torch.dtype, device: torch.device, num_heads: int) -> Tensor:
    """The stream; empty where no instance takes it or the device has no wgmma."""
    served = device.type == "cpu" or torch.cuda.get_device_capability(device) == (9, 0)
    _, dim, mlp_dim, _, _ = _dispatch.sizes_of(weights)
    instances = wgmma_instances_for(dim, num_heads, mlp_dim) if served else ()
    if not instances:
        return torch.empty(0, dtype=dtype, device=device)
    return pack_stream(weights, dtype, instances[0]).view(dtype).to(device)


@functools.lru_cache(maxsize=256)
def _fitting_into(backend: str, dim: int, num_heads: int, mlp_dim: int, limit: int) -> tuple[WgmmaInstance, ...]:
    library = native.library(backend)
    return tuple(
        i
        for i in wgmma_instances_for(dim, num_heads, mlp_dim)
        if library.shared_bytes("transformer_wgmma", i.dim, i.tokens) <= limit
    )


def _fitting(packed: Packed, num_heads: int) -> tuple[WgmmaInstance, ...]:
    """The instances that serve on the device."""
    library = native.library(packed.backend)
    if not library.has_wgmma(packed.device):
        return ()
    _, dim, mlp_dim, _, _ = packed.sizes
    return _fitting_into(packed.backend, dim, num_heads, mlp_dim, library.shared_limit(packed.device))


def planned(packed: Packed, num_heads: int, tokens: int, sequences: int, multiprocessors: int) -> WgmmaPlan | None:
    """What :func:`plan_wgmma` takes of the instances that serve on the device."""
    return plan_wgmma(_fitting(packed, num_heads), tokens, sequences, multiprocessors)


def plans(packed: Packed, num_heads: int, tokens: int) -> list[WgmmaPlan]:
    """Every way to serve sequences of so many tokens on the device."""
    return [WgmmaPlan(instance) for instance in _fitting(packed, num_heads) if instance.tokens == tokens]


def variant(packed: Packed, num_heads: int) -> str:
    """The sequences that it takes, to stand before what takes the others; empty: none."""
    multiprocessors = native.library(packed.backend).multiprocessors(packed.device)
    texts = []
    for instance in sorted(_fitting(packed, num_heads), key=lambda i: i.tokens):
        most = instance.spread_rows * multiprocessors // instance.tokens
        texts.append(f"{f'more than {most} ' if most else ''}sequences of {instance.tokens} tokens")
    return f"one launch on wgmma for {', '.join(texts)}; else " if texts else ""


def launch(
    x: Slot, packed: Packed, stream: Tensor, biases: Tensor, patch_size: tuple[int, int], activation: bool
) -> Launch:
    """The launch of the kernel on a map of whole patches."""
    in_channels, dim, _, num_layers, out_channels = packed.sizes
    batch, _, height, width = x.shape
    patch_height, patch_width = patch_size
    inputs: dict[str, Tensor | Slot] = {"x": x, "weights": stream, "biases": biases}
    sizes = {
        "batch": batch,
        "height": height,
        "width": width,
        "in_channels": in_channels,
        "dim": dim,
        "num_layers": num_layers,
        "out_channels": out_channels,
        "patch_height": patch_height,
        "patch_width": patch_width,
        "weight_units": stream.numel() // 8,
        "epsilon": packed.eps,
        "activation": activation,
    }
    y = map_slot(batch, out_channels, height, width, x.dtype)
    return Launch("transformer_wgmma", inputs, y, sizes, x.dtype)
