"""Transformer stage in CUDA (csrc/transformer.cuh): packing and call."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mobilevit_kernels import canonical, native
from mobilevit_kernels.canonical import EncoderLayerWeights, TransformerWeights
from mobilevit_kernels.native import transformer_cluster, transformer_wgmma
from mobilevit_kernels.native.fragments import (
    behind_norm,
    in_lane_order,
    pad_heads,
    pad_to,
    to_b_fragment_tail,
    to_b_fragments,
    to_b_tiles,
)
from mobilevit_kernels.native.launches import Alternatives, Launch, Library, Slot, execute, map_slot
from mobilevit_kernels.native.transformer_plan import (
    DEFAULT_HEADS,
    MAX_DIM,
    MAX_HEAD_DIM,
    ClusterPlan,
    Instance,
    Plan,
    WgmmaPlan,
    instances_for,
    lay_out,
    plan,
    small_blocks,
    tiles_of,
)
from mobilevit_kernels.packed import Packed
from mobilevit_kernels.registry import BackendUnavailable

__all__ = ["Stream", "alternatives", "launches", "pack", "pack_stream", "refusal", "run", "shared_bytes", "variant"]


_PACKED = 5 + transformer_cluster.STREAMS  # tensors of pack() before the canonical ones


@dataclass(frozen=True)
class Stream:
    """Weights in the order in which the kernel takes them.

    Attributes:
        weights: chunks one after the other, uint8.
        table: (chunks, 2) int32, begin and length of each chunk in units of 16 bytes, in the order of one launch, then
            in that of a launch a layer.
        biases: (layers, 2, instance.dim) float32: b_o and b_2.
    """

    weights: Tensor
    table: Tensor
    biases: Tensor


def _slabs(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """(K, N) → (K/16, bytes): 16 rows and all columns each. N is a multiple of 8."""
    tiles = matrix.shape[1] // 8
    fragments = to_b_fragments(matrix).to(dtype)
    parts = [fragments[:, : tiles // 2].flatten(1)]
    if tiles % 2:
        parts.append(fragments[:, -1, :, :4].flatten(1))  # of the last pair its first tile
    return torch.cat(parts, dim=1).view(torch.uint8)


def _norm_panels(matrix: Tensor, bias: Tensor, dtype: torch.dtype, width: int = 16) -> Tensor:
    """(K, N) and (N,) → (N/width, bytes): ``width`` columns and all K rows, their biases, their sums of the rounded
    weights.

    K is a multiple of 8. Panels are 16 columns wide or, where K is a multiple of 16, 8 or 4.
    """
    panels = -(-matrix.shape[1] // width)
    matrix, bias = pad_to(matrix, matrix.shape[0], panels * width).to(dtype).float(), pad_to(bias, panels * width)
    sums = matrix.double().sum(0).float()
    if width == 4:  # half a tile: the lanes of the other half hold nothing
        matrix = pad_to(matrix.reshape(-1, panels, 4), matrix.shape[0], panels, 8).flatten(1)
    whole = matrix.shape[0] // 16 * 16
    fragments = to_b_fragments(matrix[:whole]) if width == 16 else to_b_tiles(matrix)[:, :, : 4 * width]
    parts = [fragments.transpose(0, 1).to(dtype).flatten(1).view(torch.uint8)]
    if whole < matrix.shape[0]:
        parts.append(to_b_fragment_tail(matrix[whole:]).to(dtype).flatten(1).view(torch.uint8))
    ends = torch.stack([bias.reshape(panels, width), sums.reshape(panels, width)], dim=1)
    parts.append(pad_to(ends, panels, 2, max(width, 8)).flatten(1).contiguous().view(torch.uint8))
    return torch.cat(parts, dim=1)


def _in_groups(records: list[Tensor], size: int) -> list[list[Tensor]]:
    return [records[i : i + size] for i in range(0, len(records), size)]


class _Builder:
    """Puts chunks one behind the other and remembers where they are."""

    def __init__(self, panels: int) -> None:
        self.panels = panels
        self.parts: list[Tensor] = []
        self.end = 0

    def add(self, records: Iterable[Tensor], a_chunk: int | None = None) -> list[tuple[int, int]]:
        """Adds records of bytes, up to ``a_chunk`` of them a chunk; the chunks' places."""
        places = []
        for chunk in _in_groups(list(records), a_chunk or self.panels):
            units = sum(record.numel() for record in chunk) // 16
            self.parts += chunk
            places.append((self.end, units))
            self.end += units
        return places


def pack_stream(weights: TransformerWeights, dtype: torch.dtype, num_heads: int, instance: Instance) -> Stream:
    """Packs the weights for one instance of the kernel, on the CPU. A pure function.

    Folded in: the affine part of every LayerNorm into the weights behind it; the attention's scale and log2 e into W_q
    (softmax is computed with powers of 2); 0.5 into W_1 and W_out (``silu(x)`` is computed from ``x / 2``).
    """
    dim = instance.dim
    builder = _Builder(instance.panels)
    head_dim = weights.in_weight.shape[0] // num_heads

    def on_cpu(x: Tensor) -> Tensor:
        return x.detach().cpu().float()

    in_matrix = on_cpu(weights.in_weight).flatten(1).t()
    in_places = builder.add(_slabs(in_lane_order(pad_to(in_matrix, in_matrix.shape[0], dim)), dtype))
    keys_values, queries, rest, biases = [], [], [], []
    for layer in weights.layers:
        tensors = {name: on_cpu(tensor) for name, tensor in canonical.named_tensors(layer)}
        layer_on_cpu = EncoderLayerWeights(**tensors)
        query, key_value = _attention_panels(layer_on_cpu, num_heads, head_dim, instance, dtype)
        keys_values.append([builder.add(panels) for panels in key_value])
        queries.append([builder.add(panels) for panels in query])
        output = pad_heads(layer_on_cpu.proj_weight.t(), num_heads, -(-head_dim // 8)).flatten(0, 1)
        places = builder.add(_slabs(pad_to(output, output.shape[0], dim), dtype))
        places += builder.add(_mlp_groups(layer_on_cpu, dim, dtype), instance.panels // 2)
        rest.append(places)
        biases.append(torch.stack([pad_to(layer_on_cpu.proj_bias, dim), pad_to(layer_on_cpu.fc2_bias, dim)]))
    matrix, bias = behind_norm(
        on_cpu(weights.out_weight).flatten(1), on_cpu(weights.out_bias), on_cpu(weights.norm_weight),
        on_cpu(weights.norm_bias), 0.5,
    )  # fmt: skip
    matrix = in_lane_order(pad_to(matrix, dim, matrix.shape[1]).t()).t()
    out_places = builder.add(_norm_panels(matrix, in_lane_order(bias), dtype))

    one_launch = list(in_places)
    launch_a_layer = list(in_places)
    heads = range(num_heads)
    for i in range(len(weights.layers)):
        launch_a_layer += [place for head in heads for place in keys_values[i][head]]
        launch_a_layer += [place for head in heads for place in queries[i][head]] + rest[i]
        one_launch += [place for head in heads for place in keys_values[i][head] + queries[i][head]] + rest[i]
    places = one_launch + out_places + launch_a_layer + out_places
    return Stream(
        torch.cat(builder.parts),
        torch.tensor(places, dtype=torch.int32),
        torch.stack(biases) if biases else torch.zeros(1, 2, dim),
    )


def _attention_panels(
    layer: EncoderLayerWeights, num_heads: int, head_dim: int, instance: Instance, dtype: torch.dtype
) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """The panels of W_q, and those of W_k and W_v together, of each head.

    The last panel of W_q has 8 columns where a head has an odd number of 8-channel tiles, or 4. Where the instance is
    ``joined``, the whole tiles of K and V come first, and a panel of 8 columns has the four last of each.
    """
    scales = (head_dim**-0.5 * math.log2(math.e), 1.0, 1.0)
    matrices, biases = [], []
    for weight, bias, scale in zip(layer.qkv_weight.chunk(3), layer.qkv_bias.chunk(3), scales, strict=True):
        matrix, folded = behind_norm(weight, bias, layer.norm1_weight, layer.norm1_bias, scale)
        matrix = pad_to(matrix, instance.dim, matrix.shape[1])
        matrices.append(pad_heads(matrix.t(), num_heads, instance.head_tiles).transpose(1, 2))
        biases.append(pad_heads(folded, num_heads, instance.head_tiles))
    query, key_value = [], []
    width = 8 * instance.head_tiles
    last = 4 if instance.joined else 8
    for head in range(num_heads):
        (q, k, v), (q_bias, k_bias, v_bias) = ([part[head] for part in parts] for parts in (matrices, biases))
        panels = [*_norm_panels(q[:, : width // 16 * 16], q_bias[: width // 16 * 16], dtype)]
        if instance.head_tiles % 2:
            panels += _norm_panels(q[:, width - 8 :][:, :last], q_bias[width - 8 :][:last], dtype, last)
        query.append(panels)
        whole = width - 8 if instance.joined else width
        kv, kv_bias = torch.cat([k[:, :whole], v[:, :whole]], dim=1), torch.cat([k_bias[:whole], v_bias[:whole]])
        panels = [*_norm_panels(kv, kv_bias, dtype)]
        if instance.joined:
            rest = slice(whole, whole + 4)
            kv, kv_bias = torch.cat([k[:, rest], v[:, rest]], dim=1), torch.cat([k_bias[rest], v_bias[rest]])
            panels += _norm_panels(kv, kv_bias, dtype, 8)
        key_value.append(panels)
    return query, key_value


def _mlp_groups(layer: EncoderLayerWeights, dim: int, dtype: torch.dtype) -> Tensor:
    """(hidden/16, bytes): a panel of W_1 and the slab of W_2 that follows it."""
    matrix, bias = behind_norm(layer.fc1_weight, layer.fc1_bias, layer.norm2_weight, layer.norm2_bias, 0.5)
    panels = _norm_panels(pad_to(matrix, dim, matrix.shape[1]), bias, dtype)
    slabs = _slabs(pad_to(layer.fc2_weight.t(), layer.fc2_weight.shape[1], dim), dtype)
    return torch.cat([panels, slabs], dim=1)


def pack(
    weights: TransformerWeights, dtype: torch.dtype, device: torch.device, num_heads: int | None = None
) -> tuple[Tensor, ...]:
    """The stream, its table and biases, the number of heads it is packed for (an int32 on the CPU), the stream of
    :func:`mobilevit_kernels.native.transformer_wgmma.pack`, and those of clusters of
    :func:`mobilevit_kernels.native.transformer_cluster.pack`.

    The streams depend on the number of heads. Where it is not given, they are packed for 4 (or 1) and the canonical
    tensors follow on the CPU, so that a call with another number can pack anew.
    """
    dim = weights.in_weight.shape[0]
    heads = num_heads or _usual_heads(dim)
    instances = instances_for(dim, heads)
    if not instances:
        raise BackendUnavailable(_too_wide(dim, heads))
    stream = pack_stream(weights, dtype, heads, instances[0])
    tensors = (
        stream.weights.view(dtype).to(device),
        stream.table.to(device),
        stream.biases.to(device),
        torch.tensor(heads, dtype=torch.int32),
        transformer_wgmma.pack(weights, dtype, device, heads),
        *transformer_cluster.pack(weights, dtype, device, heads),
    )
    if num_heads is not None:
        return tensors
    return (*tensors, *(tensor.detach().cpu() for tensor in _flat(weights)))


def _flat(weights: TransformerWeights) -> Iterator[Tensor]:
    for _, tensor in canonical.named_tensors(weights):
        yield tensor


def _too_wide(dim: int, num_heads: int) -> str:
    return f"the CUDA kernels take heads of up to {MAX_HEAD_DIM} channels, got {dim} channels in {num_heads} heads"


def _usual_heads(dim: int) -> int:
    return DEFAULT_HEADS if dim % DEFAULT_HEADS == 0 else 1


def shared_bytes(library: Library, instance: Instance, dim: int, num_heads: int) -> int:
    """Shared memory of a block, in bytes."""
    tiles = num_heads * tiles_of(dim, num_heads)
    return library.shared_bytes("transformer", instance.dim, instance.head_tiles, instance.rows, tiles)


@functools.lru_cache(maxsize=256)
def _fitting_into(backend: str, dim: int, num_heads: int, limit: int) -> tuple[Instance, ...]:
    library = native.library(backend)
    return tuple(i for i in instances_for(dim, num_heads) if shared_bytes(library, i, dim, num_heads) <= limit)


def _fitting(backend: str, dim: int, num_heads: int, device: torch.device) -> tuple[Instance, ...]:
    """The instances for a shape whose blocks fit into the device's shared memory."""
    return _fitting_into(backend, dim, num_heads, native.library(backend).shared_limit(device))


def refusal(
    backend: str, weights: TransformerWeights, device: torch.device, num_heads: int | None = None
) -> str | None:
    """Why the kernels cannot serve these weights on this device; None: they can.

    Without ``num_heads`` they can in the usual number of heads, or may in another.
    """
    dim, in_channels = weights.in_weight.shape[:2]
    out_channels = weights.out_weight.shape[0]
    if reason := native.multiples_of_eight(in_channels=in_channels, dim=dim, out_channels=out_channels):
        return reason
    if dim > MAX_DIM:
        return f"dim: expected at most {MAX_DIM}, got {dim}"
    heads = num_heads or _usual_heads(dim)
    instances = instances_for(dim, heads)
    if not instances:
        return _too_wide(dim, heads)
    if _fitting(backend, dim, heads, device):
        return None
    library = native.library(backend)
    needed = shared_bytes(library, instances[-1], dim, heads)
    return f"{dim} channels need {needed} bytes of shared memory a block, {device} has {library.shared_limit(device)}"


def _repacked(packed: Packed, num_heads: int) -> tuple[Tensor, ...]:
    """The tensors of ``packed`` for another number of heads, from its canonical tensors."""
    in_weight, *layers, norm_weight, norm_bias, out_weight, out_bias = packed.tensors[_PACKED:]
    weights = TransformerWeights(
        in_weight,
        tuple(EncoderLayerWeights(*layers[i : i + 12]) for i in range(0, len(layers), 12)),
        norm_weight, norm_bias, out_weight, out_bias, packed.eps,
    )  # fmt: skip
    return pack(weights, packed.dtype, packed.device, num_heads)


def launches(x: Slot, packed: Packed, *, num_heads: int, patch_size: tuple[int, int]) -> list[Launch]:
    """The launch of the stage, between two of the resize where a side is no multiple of the patch.

    See :func:`mobilevit_kernels.ops.transformer`. ``packed`` is packed for ``num_heads``.
    """
    return _resized(x, patch_size, lambda x, activation: _stage(x, packed, num_heads, patch_size, activation))


def alternatives(x: Slot, packed: Packed, *, num_heads: int, patch_size: tuple[int, int]) -> Alternatives:
    """Every instance that serves, on clusters, on wgmma or neither; the one that the rules take first."""
    tokens, sequences = _tokens(x, patch_size)
    library, num_layers = native.library(packed.backend), packed.sizes[3]
    multiprocessors = library.multiprocessors(packed.device)
    ways: list[ClusterPlan | WgmmaPlan | Plan] = [_planned(x, packed, num_heads, patch_size)]
    ways += transformer_cluster.plans(packed, num_heads, tokens, sequences, multiprocessors)
    ways += transformer_wgmma.plans(packed, num_heads, tokens)
    fitting = _fitting(packed.backend, packed.sizes[1], num_heads, packed.device)
    ways += [lay_out(instance, tokens, sequences, num_layers) for instance in fitting]

    def launch(way: ClusterPlan | WgmmaPlan | Plan) -> list[Launch]:
        return _resized(x, patch_size, lambda x, activation: _stage(x, packed, num_heads, patch_size, activation, way))

    return {way.name: launch(way) for way in dict.fromkeys(ways)}


def _resized(x: Slot, patch_size: tuple[int, int], stage: Callable[[Slot, bool], Launch]) -> list[Launch]:
    """``stage`` on a map of whole patches, with the activation inside or behind the second resize."""
    height, width = x.shape[2:]
    whole = _whole(x, patch_size)
    if whole == (height, width):
        return [stage(x, True)]
    before = _resize(x, whole, silu=False)
    inner = stage(before.output, False)
    return [before, inner, _resize(inner.output, (height, width), silu=True)]


def _whole(x: Slot, patch_size: tuple[int, int]) -> tuple[int, ...]:
    """Height and width, up to whole patches."""
    return tuple(-(-side // patch) * patch for side, patch in zip(x.shape[2:], patch_size, strict=True))


def _tokens(x: Slot, patch_size: tuple[int, int]) -> tuple[int, int]:
    """Tokens of a sequence, and sequences."""
    height, width = _whole(x, patch_size)
    patch_height, patch_width = patch_size
    return (height // patch_height) * (width // patch_width), x.shape[0] * patch_height * patch_width


def _planned(x: Slot, packed: Packed, num_heads: int, patch_size: tuple[int, int]) -> ClusterPlan | WgmmaPlan | Plan:
    """What the rules take: clusters for few sequences, wgmma where its blocks fill the GPU, else the third kernel.

    Raises:
        BackendUnavailable: no instance fits into shared memory.
    """
    tokens, sequences = _tokens(x, patch_size)
    library = native.library(packed.backend)
    multiprocessors = library.multiprocessors(packed.device)
    for kernel in (transformer_cluster, transformer_wgmma):
        planned = kernel.planned(packed, num_heads, tokens, sequences, multiprocessors)
        if planned is not None:
            return planned
    dim, num_layers = packed.sizes[1], packed.sizes[3]
    fitting = _fitting(packed.backend, dim, num_heads, packed.device)
    if not fitting:
        raise BackendUnavailable(
            f"backend={packed.backend!r} cannot serve transformer: {dim} channels in {num_heads} heads need more "
            f"shared memory than the {library.shared_limit(packed.device)} bytes that a block may have on "
            f"{packed.device}"
        )
    return plan(fitting, tokens, sequences, num_layers, multiprocessors)


def _resize(x: Slot, size: tuple[int, ...], silu: bool) -> Launch:
    batch, channels, height, width = x.shape
    sizes = {
        "batch": batch,
        "height": height,
        "width": width,
        "out_height": size[0],
        "out_width": size[1],
        "channels": channels,
        "silu": silu,
    }
    return Launch("resize", {"x": x}, map_slot(batch, channels, size[0], size[1], x.dtype), sizes, x.dtype)


def _stage(
    x: Slot,
    packed: Packed,
    num_heads: int,
    patch_size: tuple[int, int],
    activation: bool,
    chosen: ClusterPlan | WgmmaPlan | Plan | None = None,
) -> Launch:
    """The launch on a map of whole patches; ``chosen`` None: by the rules."""
    if chosen is None:
        chosen = _planned(x, packed, num_heads, patch_size)
    if isinstance(chosen, ClusterPlan):
        return transformer_cluster.launch(x, packed, packed.tensors[5:_PACKED], patch_size, activation, chosen)
    stream, table, biases = packed.tensors[:3]
    if isinstance(chosen, WgmmaPlan):
        return transformer_wgmma.launch(x, packed, packed.tensors[4], biases, patch_size, activation)
    in_channels, dim, mlp_dim, num_layers, out_channels = packed.sizes
    batch, _, height, width = x.shape
    patch_height, patch_width = patch_size
    instance = chosen.instance
    workspace = 0
    if chosen.split:
        rows = chosen.blocks * instance.rows
        key_values = rows * num_heads * 16 * instance.head_tiles  # of one layer; two layers' take turns
        row_values = rows * -(-instance.dim // 16) * 16
        workspace = (2 * key_values + row_values) * x.dtype.itemsize
    sizes = {
        "batch": batch,
        "height": height,
        "width": width,
        "in_channels": in_channels,
        "dim": dim,
        "hidden_channels": mlp_dim,
        "num_layers": num_layers,
        "out_channels": out_channels,
        "num_heads": num_heads,
        "patch_height": patch_height,
        "patch_width": patch_width,
        "instance_dim": instance.dim,
        "head_tiles": instance.head_tiles,
        "instance_rows": instance.rows,
        "sequence_rows": chosen.sequence_rows,
        "block_rows": chosen.block_rows,
        "blocks": chosen.blocks,
        "chunks": table.shape[0] // 2,
        "weight_units": stream.numel() // 8,
        "epsilon": packed.eps,
        "split": chosen.split,
        "activation": activation,
    }
    inputs: dict[str, Tensor | Slot] = {"x": x, "weights": stream, "table": table, "biases": biases}
    y = map_slot(batch, out_channels, height, width, x.dtype)
    return Launch("transformer", inputs, y, sizes, x.dtype, workspace, chosen.launches)


def run(x: Tensor, packed: Packed, *, num_heads: int, patch_size: tuple[int, int]) -> Tensor:
    """Launches the kernels."""
    if int(packed.tensors[3]) != num_heads:
        if len(packed.tensors) == _PACKED:
            raise ValueError(f"num_heads: the weights are packed for {int(packed.tensors[3])}, got {num_heads}")
        packed = dataclasses.replace(packed, tensors=_repacked(packed, num_heads))
    slot = Slot.like(x)
    calls = launches(slot, packed, num_heads=num_heads, patch_size=patch_size)
    return execute(packed.backend, calls, {slot: native.aligned(x)})


def variant(packed: Packed) -> str:
    """The rows of a block by the batch, and the launches by the tokens of a sequence; all with the same result.

    Clusters and wgmma, where they serve, round some sums in another order.
    """
    fitting = _fitting(packed.backend, packed.sizes[1], int(packed.tensors[3]), packed.device)
    if not fitting:
        return "none"
    multiprocessors = native.library(packed.backend).multiprocessors(packed.device)
    texts = [f"{i.rows} rows a block, one kernel up to {i.rows} tokens, {packed.sizes[3] + 1} above" for i in fitting]
    text = texts[0]
    if len(fitting) > 1:
        whole, split = (small_blocks(fitting[0], split) * multiprocessors for split in (False, True))
        most = f"{whole} blocks" + (f", or {split} above {fitting[-1].rows} tokens" if split > whole else "")
        text = f"{texts[-1]}, while these are at most {most}; else {text}"
    heads = int(packed.tensors[3])
    return transformer_cluster.variant(packed, heads) + transformer_wgmma.variant(packed, heads) + text
