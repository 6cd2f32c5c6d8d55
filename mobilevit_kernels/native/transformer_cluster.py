"""Transformer stage in CUDA on thread-block clusters (csrc/transformer_cluster.cuh): packing and call."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from mobilevit_kernels import native
from mobilevit_kernels.canonical import EncoderLayerWeights, TransformerWeights
from mobilevit_kernels.native.fragments import behind_norm, pad_heads, pad_to, to_b_tiles
from mobilevit_kernels.native.transformer_plan import (
    CLUSTER_BLOCKS,
    DEFAULT_HEADS,
    ClusterInstance,
    cluster_instances_for,
    most_sequences,
    plan_clusters,
)
from mobilevit_kernels.ops import _dispatch
from mobilevit_kernels.packed import Packed

__all__ = ["STREAMS", "pack", "pack_stream", "run", "variant"]

_COLUMN_BLOCKS = (8, 4)  # how many blocks share the columns: of short sequences, of long ones
STREAMS = len(_COLUMN_BLOCKS)


def _tiles(matrix: Tensor, bias: Tensor | None, tiles: int, dtype: torch.dtype) -> Tensor:
    """(K, N) and (N,) → (tiles, bytes): 8 columns each, zero-padded, as B fragments, their biases and their sums.

    The sums are those of the rounded weights, for the product behind a LayerNorm.
    """
    depth = -(-matrix.shape[0] // 16) * 16
    matrix = pad_to(matrix, depth, 8 * tiles).to(dtype)
    bias = pad_to(bias if bias is not None else matrix.new_zeros(0, dtype=torch.float32), 8 * tiles)
    fragments = to_b_tiles(matrix).transpose(0, 1).flatten(1).contiguous().view(torch.uint8)
    ends = torch.stack([bias.reshape(tiles, 8), matrix.double().sum(0).float().reshape(tiles, 8)], dim=1)
    return torch.cat([fragments, ends.flatten(1).contiguous().view(torch.uint8)], dim=1)


def pack_stream(weights: TransformerWeights, dtype: torch.dtype, instance: ClusterInstance) -> Tensor:
    """Packs the weights for one instance of the kernel, on the CPU. A pure function.

    A column block's stream is W_in, then a layer's [W_k | W_v | W_q] of its head, W_o, W_1 and W_2, then W_out: of each
    the columns that it computes, in tiles of 8. Folded in: the affine part of every LayerNorm into the weights behind
    it; the attention's scale and log2 e into W_q; 0.5 into W_1 and W_out (``silu(x)`` is computed from ``x / 2``).

    Returns:
        (column blocks, bytes) uint8.
    """
    blocks, heads, head_tiles = instance.column_blocks, DEFAULT_HEADS, instance.head_tiles
    parts: list[Tensor] = []

    def on_cpu(x: Tensor) -> Tensor:
        return x.detach().cpu().float()

    def add(matrix: Tensor, bias: Tensor | None, tiles: int) -> None:
        parts.append(_tiles(matrix, bias, tiles * blocks, dtype).reshape(blocks, -1))

    def add_attention(layer: EncoderLayerWeights) -> None:
        scale = (instance.dim / heads) ** -0.5 * math.log2(math.e)
        matrices, biases = [], []
        for i, factor in ((1, 1.0), (2, 1.0), (0, scale)):
            weight, bias = layer.qkv_weight.chunk(3)[i], layer.qkv_bias.chunk(3)[i]
            matrix, folded = behind_norm(
                on_cpu(weight), on_cpu(bias), on_cpu(layer.norm1_weight), on_cpu(layer.norm1_bias), factor
            )
            matrices.append(pad_heads(matrix.t(), heads, head_tiles))
            biases.append(pad_heads(folded, heads, head_tiles))
        tiles = instance.attention_slice * blocks // heads
        matrix, bias = torch.cat(matrices, dim=1), torch.cat(biases, dim=1)
        records = [_tiles(matrix[h].t(), bias[h], tiles, dtype) for h in range(heads)]
        parts.append(torch.stack(records).reshape(blocks, -1))

    add(on_cpu(weights.in_weight).flatten(1).t(), None, instance.dim_slice)
    for layer in weights.layers:
        add_attention(layer)
        output = pad_heads(on_cpu(layer.proj_weight).t(), heads, head_tiles).flatten(0, 1)
        add(output, on_cpu(layer.proj_bias), instance.dim_slice)
        norm = on_cpu(layer.norm2_weight), on_cpu(layer.norm2_bias)
        add(*behind_norm(on_cpu(layer.fc1_weight), on_cpu(layer.fc1_bias), *norm, 0.5), instance.hidden_slice)
        add(on_cpu(layer.fc2_weight).t(), on_cpu(layer.fc2_bias), instance.dim_slice)
    norm = on_cpu(weights.norm_weight), on_cpu(weights.norm_bias)
    matrix, bias = behind_norm(on_cpu(weights.out_weight).flatten(1), on_cpu(weights.out_bias), *norm, 0.5)
    add(matrix, bias, -(-(matrix.shape[1] // 8) // blocks))
    return torch.cat(parts, dim=1)


def _instances(weights_sizes: tuple[int, ...], num_heads: int) -> tuple[ClusterInstance, ...]:
    """The instances that serve weights of these sizes: channels in, dim, MLP, layers, channels out."""
    in_channels, dim, mlp_dim, _, out_channels = weights_sizes
    return tuple(
        instance
        for instance in cluster_instances_for(dim, num_heads, mlp_dim)
        if in_channels <= instance.max_in_channels and out_channels <= instance.max_out_channels
    )


def pack(weights: TransformerWeights, dtype: torch.dtype, device: torch.device, num_heads: int) -> tuple[Tensor, ...]:
    """The streams for eight and for four column blocks; empty where no instance takes it or the device has no clusters."""
    streams = []
    served = device.type == "cpu" or torch.cuda.get_device_capability(device) >= (9, 0)
    serving = _instances(_dispatch.sizes_of(weights), num_heads) if served else ()
    for blocks in _COLUMN_BLOCKS:
        instances = [i for i in serving if i.column_blocks == blocks]
        stream = pack_stream(weights, dtype, instances[0]) if instances else torch.empty(0, dtype=torch.uint8)
        streams.append(stream.flatten().view(dtype).to(device))
    return tuple(streams)


@functools.lru_cache(maxsize=256)
def _fitting_into(backend: str, sizes: tuple[int, ...], num_heads: int, limit: int) -> tuple[ClusterInstance, ...]:
    library = native.library(backend)
    return tuple(
        i for i in _instances(sizes, num_heads) if library.shared_bytes("transformer_cluster", i.dim, i.rows) <= limit
    )


def _fitting(packed: Packed, num_heads: int, device: torch.device) -> tuple[ClusterInstance, ...]:
    """The instances that serve on the device."""
    library = native.library(packed.backend)
    if not library.has_clusters(device):
        return ()
    return _fitting_into(packed.backend, packed.sizes, num_heads, library.shared_limit(device))


def run(
    x: Tensor, packed: Packed, streams: tuple[Tensor, ...], num_heads: int, patch_size: tuple[int, int],
    activation: bool,
) -> Tensor | None:  # fmt: skip
    """Launches the kernel where clusters are the choice; None: they are not."""
    library = native.library(packed.backend)
    in_channels, dim, _, num_layers, out_channels = packed.sizes
    batch, _, height, width = x.shape
    patch_height, patch_width = patch_size
    tokens = (height // patch_height) * (width // patch_width)
    chosen = plan_clusters(
        _fitting(packed, num_heads, x.device), tokens, batch * patch_height * patch_width,
        library.multiprocessors(x.device),
    )  # fmt: skip
    if chosen is None:
        return None
    x = native.aligned(x)
    stream = streams[_COLUMN_BLOCKS.index(chosen.instance.column_blocks)]
    y = _dispatch.empty_nhwc(x, out_channels, height, width, x.dtype)
    library.launch(
        "transformer_cluster",
        {"x": x, "weights": stream},
        y,
        {
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
            "weight_units": stream.numel() // 8,
            "epsilon": packed.eps,
            "activation": activation,
        },
        x.dtype == torch.bfloat16,
    )
    return y


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
