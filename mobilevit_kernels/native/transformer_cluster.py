"""Transformer stage in CUDA on thread-block clusters: packing and call.

Short sequences go to csrc/transformer_cluster.cuh, where a block owns columns of every product, long ones to
csrc/transformer_cluster_long.cuh, where it owns rows of most.
"""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from mobilevit_kernels import native
from mobilevit_kernels.canonical import TransformerWeights
from mobilevit_kernels.native.fragments import pad_heads, pad_to, to_b_tiles
from mobilevit_kernels.native.launches import Launch, Slot, map_slot
from mobilevit_kernels.native.transformer_fold import Product, fold
from mobilevit_kernels.native.transformer_plan import (
    CLUSTER_BLOCKS,
    DEFAULT_HEADS,
    ClusterInstance,
    ClusterPlan,
    cluster_instances_for,
    lay_out_clusters,
    most_sequences,
    plan_clusters,
)
from mobilevit_kernels.ops import _dispatch
from mobilevit_kernels.packed import Packed

__all__ = ["STREAMS", "launch", "pack", "pack_long_stream", "pack_stream", "planned", "plans", "variant"]

STREAMS = 4  # tensors of pack()


def _fragments_and_ends(matrix: Tensor, bias: Tensor, tiles: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(K, N) and (N,), zero-padded → (k-steps, tiles, bytes) and (tiles, 64 bytes): biases and sums of 8 columns.

    The sums are those of the rounded weights, for the product behind a LayerNorm.
    """
    matrix = pad_to(matrix, -(-matrix.shape[0] // 16) * 16, 8 * tiles).to(dtype)
    fragments = to_b_tiles(matrix).flatten(2).contiguous().view(torch.uint8)
    ends = [pad_to(bias, 8 * tiles).reshape(tiles, 8), matrix.double().sum(0).float().reshape(tiles, 8)]
    return fragments, torch.stack(ends, dim=1).flatten(1).contiguous().view(torch.uint8)


def _tiles(matrix: Tensor, bias: Tensor, tiles: int, dtype: torch.dtype) -> Tensor:
    """(K, N) and (N,), zero-padded → (tiles, bytes): 8 columns each, their biases and their sums."""
    fragments, ends = _fragments_and_ends(matrix, bias, tiles, dtype)
    return torch.cat([fragments.transpose(0, 1).flatten(1), ends], dim=1)


def _in_tiles(output: Product, instance: ClusterInstance) -> Product:
    """W_o with each head's rows zero-padded to whole tiles, as the heads' results lie."""
    matrix, bias = output
    return pad_heads(matrix, DEFAULT_HEADS, instance.head_tiles).flatten(0, 1), bias


def pack_stream(weights: TransformerWeights, dtype: torch.dtype, instance: ClusterInstance) -> Tensor:
    """Packs the weights for an instance that takes short sequences, on the CPU. A pure function.

    A column block's stream is W_in, then a layer's [W_k | W_v | W_q] of its head, W_o, W_1 and W_2, then W_out: of each
    the columns that it computes, in tiles of 8.

    Returns:
        (column blocks, bytes) uint8.
    """
    blocks = instance.column_blocks
    in_product, layers, out_product = fold(weights, DEFAULT_HEADS, instance.head_tiles)

    def deal(product: Product, tiles: int) -> Tensor:
        return _tiles(*product, tiles * blocks, dtype).reshape(blocks, -1)

    parts = [deal(in_product, instance.dim_slice)]
    for layer in layers:
        tiles = instance.attention_slice * blocks // DEFAULT_HEADS
        parts.append(torch.stack([_tiles(*head, tiles, dtype) for head in layer.attention]).reshape(blocks, -1))
        parts.append(deal(_in_tiles(layer.output, instance), instance.dim_slice))
        parts.append(deal(layer.expand, instance.hidden_slice))
        parts.append(deal(layer.reduce, instance.dim_slice))
    parts.append(deal(out_product, -(-(out_product[1].shape[0] // 8) // blocks)))
    return torch.cat(parts, dim=1)


def pack_long_stream(
    weights: TransformerWeights, dtype: torch.dtype, instance: ClusterInstance
) -> tuple[Tensor, Tensor]:
    """Packs the weights for an instance that takes long sequences, on the CPU. A pure function.

    A chunk is some k-steps of 16 of all columns of a product; its biases and sums lie behind the last one.

    Returns:
        The chunks one after the other, uint8, and (heads, chunks, 2) int32: where each begins and how long it is, in
        units of 16 bytes, in the order in which the blocks of a head take them. A head has its own [W_k | W_v | W_q].
    """
    in_product, layers, out_product = fold(weights, DEFAULT_HEADS, instance.head_tiles)
    parts: list[Tensor] = []
    end = 0

    def add(product: Product, chunk_steps: int) -> list[tuple[int, int]]:
        nonlocal end
        fragments, ends = _fragments_and_ends(*product, -(-product[0].shape[1] // 8), dtype)
        chunks = [chunk.flatten() for chunk in fragments.split(chunk_steps)]
        chunks[-1] = torch.cat([chunks[-1], ends.flatten()])
        places = []
        for chunk in chunks:
            parts.append(chunk)
            places.append((end, chunk.numel() // 16))
            end += chunk.numel() // 16
        return places

    steps = instance.chunk_steps
    first = add(in_product, steps)
    table = [list(first) for _ in range(DEFAULT_HEADS)]
    for layer in layers:
        for head, product in enumerate(layer.attention):
            table[head] += add(product, instance.dim // 16)
        shared = (
            add(_in_tiles(layer.output, instance), steps) + add(layer.expand, steps // 2) + add(layer.reduce, steps)
        )
        for places in table:
            places += shared
    last = add(out_product, steps // 2)
    return torch.cat(parts), torch.tensor([places + last for places in table], dtype=torch.int32)


def _instances(weights_sizes: tuple[int, ...], num_heads: int) -> tuple[ClusterInstance, ...]:
    """The instances that serve weights of these sizes: channels in, dim, MLP, layers, channels out."""
    in_channels, dim, mlp_dim, _, out_channels = weights_sizes
    return tuple(
        instance
        for instance in cluster_instances_for(dim, num_heads, mlp_dim)
        if in_channels <= instance.max_in_channels and out_channels <= instance.max_out_channels
    )


def pack(weights: TransformerWeights, dtype: torch.dtype, device: torch.device, num_heads: int) -> tuple[Tensor, ...]:
    """Streams for eight column blocks, for four and for long sequences, and the last one's table.

    Empty where no instance takes it or the device has no clusters.
    """
    served = device.type == "cpu" or torch.cuda.get_device_capability(device) >= (9, 0)
    instances = _instances(_dispatch.sizes_of(weights), num_heads) if served else ()
    packed = [torch.empty(0, dtype=torch.uint8) for _ in range(3)]
    table = torch.empty(0, dtype=torch.int32)
    for instance in instances:
        place = _place(instance)
        if packed[place].numel() > 0:
            continue
        if instance.long:
            packed[place], table = pack_long_stream(weights, dtype, instance)
        else:
            packed[place] = pack_stream(weights, dtype, instance).flatten()
    return (*(stream.view(dtype).to(device) for stream in packed), table.to(device))


def _place(instance: ClusterInstance) -> int:
    """Which of the streams of :func:`pack` an instance takes."""
    return 2 if instance.long else (8, 4).index(instance.column_blocks)


@functools.lru_cache(maxsize=256)
def _fitting_into(backend: str, sizes: tuple[int, ...], num_heads: int, limit: int) -> tuple[ClusterInstance, ...]:
    library = native.library(backend)
    return tuple(
        i
        for i in _instances(sizes, num_heads)
        if library.shared_bytes("transformer_cluster", i.dim, i.rows, False) <= limit
    )


def _fitting(packed: Packed, num_heads: int, device: torch.device) -> tuple[ClusterInstance, ...]:
    """The instances that serve on the device."""
    library = native.library(packed.backend)
    if not library.has_clusters(device):
        return ()
    return _fitting_into(packed.backend, packed.sizes, num_heads, library.shared_limit(device))


def planned(packed: Packed, num_heads: int, tokens: int, sequences: int, multiprocessors: int) -> ClusterPlan | None:
    """What :func:`plan_clusters` takes of the instances that serve on the device."""
    return plan_clusters(_fitting(packed, num_heads, packed.device), tokens, sequences, multiprocessors)


def plans(packed: Packed, num_heads: int, tokens: int, sequences: int, multiprocessors: int) -> list[ClusterPlan]:
    """Every instance that takes such sequences, up to twice as many as :func:`plan_clusters` would give it.

    Each in two forms, of which the rules take the first.
    """
    found = []
    library = native.library(packed.backend)
    for instance in _fitting(packed, num_heads, packed.device):
        most, rows = most_sequences(instance, tokens, multiprocessors)
        if sequences > 2 * most:
            continue
        laid_out = lay_out_clusters(instance, rows, sequences)
        found.append(laid_out)
        needed = library.shared_bytes("transformer_cluster", instance.dim, instance.rows, True)
        if needed <= library.shared_limit(packed.device):
            found.append(dataclasses.replace(laid_out, sends=True))
    return found


def launch(
    x: Slot,
    packed: Packed,
    streams: tuple[Tensor, ...],
    patch_size: tuple[int, int],
    activation: bool,
    chosen: ClusterPlan,
) -> Launch:
    """The launch of the kernel on a map of whole patches."""
    in_channels, dim, _, num_layers, out_channels = packed.sizes
    batch, _, height, width = x.shape
    patch_height, patch_width = patch_size
    stream, table = streams[_place(chosen.instance)], streams[-1]
    inputs: dict[str, Tensor | Slot] = {"x": x, "weights": stream}
    if chosen.instance.long:
        inputs["table"] = table
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
        "cluster_rows": chosen.instance.rows,
        "sequence_rows": chosen.sequence_rows,
        "chunks": table.shape[1] if chosen.instance.long else 0,
        "weight_units": stream.numel() // 8,
        "epsilon": packed.eps,
        "sends": chosen.sends,
        "activation": activation,
    }
    y = map_slot(batch, out_channels, height, width, x.dtype)
    return Launch("transformer_cluster", inputs, y, sizes, x.dtype)


def variant(packed: Packed, num_heads: int) -> str:
    """The sequences that clusters take, by their tokens, to stand before what takes the others; empty: none."""
    fitting = _fitting(packed, num_heads, packed.device)
    multiprocessors = native.library(packed.backend).multiprocessors(packed.device)
    texts = []
    for least, most in ((1, 16), (17, 32), (33, 64), (129, 256)):
        sequences = max((most_sequences(instance, most, multiprocessors)[0] for instance in fitting), default=0)
        if sequences > 0:
            texts.append(f"up to {sequences} sequences of {least} to {most} tokens")
    return f"one launch on clusters of {CLUSTER_BLOCKS} blocks for {', '.join(texts)}; else " if texts else ""
