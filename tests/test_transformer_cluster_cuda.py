"""transformer's CUDA kernel on clusters: plan, packing, every published shape, schedules; simulator and GPU."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import backend_params, clusters, skip_unless_available

import mobilevit_kernels as mvk
from mobilevit_kernels import native, simt, verify
from mobilevit_kernels.native import transformer_cluster
from mobilevit_kernels.native.clusters import clusters_at_once
from mobilevit_kernels.native.launches import Slot
from mobilevit_kernels.native.transformer_plan import (
    CLUSTER_INSTANCES,
    ClusterInstance,
    cluster_instances_for,
    plan_clusters,
)
from mobilevit_kernels.verify import StageCase

on_kernels = pytest.mark.parametrize(("backend", "device"), backend_params("simt", "cuda"))
dtypes = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
forms = pytest.mark.parametrize("sends", [False, True], ids=["stores", "sends"])


def case_of(
    dim: int,
    size: tuple[int, int],
    *,
    batch: int = 1,
    layers: int = 1,
    channels: int = 16,
    patch: tuple[int, int] = (2, 2),
) -> StageCase:
    """A stage between narrow 1×1 convolutions, which cost the simulator least."""
    sizes = (channels, dim, 2 * dim, layers, channels)
    return StageCase("transformer", sizes, (batch, channels, *size), {"num_heads": 4, "patch_size": patch})


PUBLISHED = sorted({(case.sizes, case.x_shape) for _, _, case in verify.network_cases() if case.stage == "transformer"})
# Beside clusters that run at once: rows of a cluster.
GENERAL = [
    (case_of(64, (28, 28)), 1_000_000),  # 196 tokens in 256 rows
    (case_of(144, (20, 26), channels=40), 1_000_000),  # 130 tokens
    (case_of(192, (14, 14), batch=2), 1_000_000),  # 49 tokens in 64 rows
    (case_of(120, (12, 8), batch=2, layers=2), 1_000_000),  # two sequences of 24 tokens in a cluster
    (case_of(80, (9, 7), patch=(1, 1), layers=3), 1_000_000),  # one sequence of 63 tokens
    (case_of(80, (4, 6), layers=1, channels=8), 1_000_000),  # 6 tokens: four sequences a cluster
    (case_of(240, (7, 7), channels=32), 1_000_000),  # resized to 8 × 8
    (case_of(144, (6, 6), batch=3, layers=2), 1_000_000),  # 9 tokens in clusters of 16 rows
    (case_of(144, (6, 6), batch=3, layers=2), 3),  # … of 64
    (case_of(96, (8, 12), batch=1, patch=(1, 2)), 1_000_000),  # 48 tokens
    (case_of(240, (8, 8), batch=2, patch=(1, 2)), 2),  # 32 tokens: two sequences in 64 rows
]


def check(case: StageCase, backend: str, dtype: torch.dtype, device: str, at_once: int = 1_000_000) -> None:
    skip_unless_available(backend)
    with clusters(backend, device, at_once):
        assert runs_on_clusters(case, backend, device), case
        result = verify.check_stage(case, backend, dtype, device)
    assert result.passed, f"error {result.error:.2e}, stock {result.stock_error:.2e}, ratio {result.ratio:.2f}"


def runs_on_clusters(case: StageCase, backend: str, device: str) -> bool:
    height, width = case.x_shape[2:]
    patch_height, patch_width = case.options.get("patch_size", (2, 2))
    tokens = -(-height // patch_height) * -(-width // patch_width)
    instances = cluster_instances_for(case.sizes[1], case.options["num_heads"], case.sizes[2])
    multiprocessors = native.library(backend).multiprocessors(torch.device(device))
    return plan_clusters(instances, tokens, case.x_shape[0] * patch_height * patch_width, multiprocessors) is not None


# --- plan and packing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("instance", CLUSTER_INSTANCES, ids=str)
def test_instances_are_compiled_and_fit(instance: ClusterInstance) -> None:
    skip_unless_available("simt")
    for sends in (False, True):
        assert 0 < simt.library().shared_bytes("transformer_cluster", instance.dim, instance.rows, sends) <= 232448
    assert 8 * instance.dim_slice * instance.column_blocks >= instance.dim
    assert 8 * instance.hidden_slice * instance.column_blocks >= 2 * instance.dim
    assert instance.attention_slice * instance.column_blocks >= 4 * 3 * instance.head_tiles


def test_every_published_shape_runs_on_clusters_at_small_batches() -> None:
    for _, _, case in verify.network_cases():
        if case.stage != "transformer":
            continue
        tokens = case.x_shape[2] * case.x_shape[3] // 4
        instances = cluster_instances_for(case.sizes[1], 4, case.sizes[2])
        most = {256: 7, 64: 7, 16: 28}[tokens]
        for batch in range(1, 33):
            chosen = plan_clusters(instances, tokens, 4 * batch, multiprocessors=132)
            assert (chosen is not None) == (batch <= most), (case, batch)
            if chosen is not None:
                assert chosen.sequence_rows == tokens
                assert chosen.instance.rows == (64 if tokens == 16 and batch > 3 else tokens)
                assert chosen.clusters * chosen.instance.rows == 4 * batch * tokens


def test_clusters_at_once() -> None:
    """Never more than an H200 showed: 15 of eight blocks, 30 or 31 of four."""
    for blocks, at_once in ((2, 66), (3, 44), (4, 29), (5, 22), (6, 22), (7, 14), (8, 14)):
        assert clusters_at_once(132, blocks) == at_once
    assert [clusters_at_once(count, 8) for count in (0, 7, 8, 18, 26, 114)] == [0, 0, 1, 2, 3, 12]


def test_other_sizes_keep_the_other_kernels() -> None:
    assert cluster_instances_for(144, 3, 288) == ()
    assert cluster_instances_for(144, 4, 144) == ()
    assert cluster_instances_for(128, 4, 256) == ()
    instances = cluster_instances_for(144, 4, 288)
    assert [i.rows for i in instances] == [16, 64, 256]
    for tokens, rows in ((1, 16), (16, 16), (17, 64), (64, 64), (65, None), (128, None), (129, 256), (257, None)):
        chosen = plan_clusters(instances, tokens, 4, multiprocessors=132)
        assert (chosen and chosen.instance.rows) == rows, tokens
    assert plan_clusters(instances, 16, 4, multiprocessors=7) is None


def tile_columns(tile: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A packed tile's (rows, 8) matrix, 8 biases and 8 column sums, from the fragment layout of the PTX ISA."""
    values = tile[: rows * 16].view(torch.float16).float().reshape(rows // 16, 32, 2, 2)
    matrix = torch.zeros(rows, 8)
    for step in range(rows // 16):
        for lane in range(32):
            for register in range(2):
                for half in range(2):
                    k = 16 * step + lane % 4 * 2 + 8 * register + half
                    matrix[k, lane // 4] = values[step, lane, register, half]
    ends = tile[rows * 16 :].view(torch.float32)
    return matrix, ends[:8], ends[8:]


@pytest.mark.parametrize("instance", [ClusterInstance(120, 64, 2), ClusterInstance(96, 16, 1)], ids=str)
def test_packing_deals_columns_to_blocks(instance: ClusterInstance) -> None:
    dim, blocks = instance.dim, instance.column_blocks
    sizes = (24, dim, 2 * dim, 1, 40)
    weights = verify.random_weights("transformer", sizes, torch.Generator().manual_seed(0))
    assert isinstance(weights, mvk.canonical.TransformerWeights)
    stream = transformer_cluster.pack_stream(weights, torch.float16, instance)
    assert stream.shape[0] == blocks
    assert torch.equal(stream, transformer_cluster.pack_stream(weights, torch.float16, instance))
    place = 0

    def take(depth: int, tiles: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The next product of all blocks: (depth, columns), biases and sums of the columns."""
        nonlocal place
        size = depth * 16 + 64
        records = stream[:, place : place + tiles * size].reshape(blocks * tiles, size)
        place += tiles * size
        parts = zip(*(tile_columns(record, depth) for record in records), strict=True)
        matrix, bias, sums = (torch.cat(part, dim=-1) for part in parts)
        torch.testing.assert_close(sums, matrix.sum(0), rtol=1e-5, atol=1e-5)
        return matrix, bias, sums

    def close(matrix: torch.Tensor, expected: torch.Tensor) -> None:
        """``expected`` in the upper left corner, zeros around it."""
        rows, columns = expected.shape
        torch.testing.assert_close(matrix[:rows, :columns], expected, rtol=2**-10, atol=1e-6)
        assert not matrix[rows:].any()
        assert not matrix[:, columns:].any()

    layer = weights.layers[0]
    depth = -(-dim // 16) * 16
    matrix, bias, _ = take(32, instance.dim_slice)
    close(matrix, weights.in_weight.flatten(1).t())
    assert not bias.any()

    matrix, bias, _ = take(depth, instance.attention_slice)
    head_dim, padded = dim // 4, 8 * instance.head_tiles
    expected_matrix = layer.qkv_weight * layer.norm1_weight
    expected_bias = layer.qkv_bias + layer.qkv_weight @ layer.norm1_bias
    a_head = matrix.shape[1] // 4
    for head in range(4):
        for place_in_head, part, factor in ((0, 1, 1.0), (1, 2, 1.0), (2, 0, head_dim**-0.5 * math.log2(math.e))):
            columns = slice(head * a_head + place_in_head * padded, head * a_head + (place_in_head + 1) * padded)
            rows = slice(part * dim + head * head_dim, part * dim + (head + 1) * head_dim)
            close(matrix[:, columns], factor * expected_matrix[rows].t())
            torch.testing.assert_close(bias[columns][:head_dim], factor * expected_bias[rows])
            assert not bias[columns][head_dim:].any()

    matrix, bias, _ = take(4 * padded, instance.dim_slice)
    close(matrix.reshape(4, padded, -1)[:, :head_dim].flatten(0, 1), layer.proj_weight.t())
    assert not matrix.reshape(4, padded, -1)[:, head_dim:].any()
    torch.testing.assert_close(bias[:dim], layer.proj_bias)

    matrix, bias, _ = take(depth, instance.hidden_slice)
    close(matrix, 0.5 * (layer.fc1_weight * layer.norm2_weight).t())
    torch.testing.assert_close(bias[: 2 * dim], 0.5 * (layer.fc1_bias + layer.fc1_weight @ layer.norm2_bias))

    matrix, bias, _ = take(2 * dim, instance.dim_slice)
    close(matrix, layer.fc2_weight.t())
    torch.testing.assert_close(bias[:dim], layer.fc2_bias)

    matrix, bias, _ = take(depth, -(-5 // blocks))
    close(matrix, 0.5 * (weights.out_weight.flatten(1) * weights.norm_weight).t())
    torch.testing.assert_close(
        bias[:40], 0.5 * (weights.out_bias + weights.out_weight.flatten(1) @ weights.norm_bias), rtol=1e-5, atol=1e-6
    )
    assert place == stream.shape[1]


def test_packing_of_long_sequences_cuts_products_into_chunks() -> None:
    instance = ClusterInstance(96, 256, 2)
    weights = verify.random_weights("transformer", (40, 96, 192, 1, 24), torch.Generator().manual_seed(0))
    assert isinstance(weights, mvk.canonical.TransformerWeights)
    stream, table = transformer_cluster.pack_long_stream(weights, torch.float16, instance)
    layer = weights.layers[0]
    for head, places in enumerate(table.tolist()):
        chunks = [stream[16 * begin : 16 * (begin + units)] for begin, units in places]

        def take(steps: int, tiles: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
            """The next product, which comes in ``count`` chunks: (16 · steps, 8 · tiles) and its biases."""
            whole = torch.cat([chunks.pop(0) for _ in range(count)])  # noqa: B023
            size = steps * tiles * 256
            fragments = whole[:size].reshape(steps, tiles, 256).transpose(0, 1).flatten(1)
            assert whole.numel() == size + 64 * tiles
            records = torch.cat([fragments, whole[size:].reshape(tiles, 64)], dim=1)
            matrix, bias, sums = zip(*(tile_columns(record, 16 * steps) for record in records), strict=True)
            torch.testing.assert_close(torch.cat(sums), torch.cat(matrix, 1).sum(0), rtol=1e-5, atol=1e-5)
            return torch.cat(matrix, dim=1), torch.cat(bias)

        def close(matrix: torch.Tensor, expected: torch.Tensor) -> None:
            torch.testing.assert_close(matrix, expected, rtol=2**-10, atol=1e-6)

        matrix, bias = take(3, 12, 1)
        close(matrix[:40], weights.in_weight.flatten(1).t())
        assert not matrix[40:].any()
        assert not bias.any()
        matrix, bias = take(6, 9, 1)
        for i, part in enumerate((1, 2)):  # K and V
            rows = slice(part * 96 + 24 * head, part * 96 + 24 * (head + 1))
            close(matrix[:, 24 * i : 24 * (i + 1)], (layer.qkv_weight * layer.norm1_weight)[rows].t())
            expected_bias = (layer.qkv_bias + layer.qkv_weight @ layer.norm1_bias)[rows]
            torch.testing.assert_close(bias[24 * i : 24 * (i + 1)], expected_bias)
        rows = slice(24 * head, 24 * (head + 1))
        scale = 24**-0.5 * math.log2(math.e)
        close(matrix[:, 48:], scale * (layer.qkv_weight * layer.norm1_weight)[rows].t())
        matrix, bias = take(6, 12, 1)
        close(matrix, layer.proj_weight.t())
        torch.testing.assert_close(bias, layer.proj_bias)
        matrix, bias = take(6, 24, 2)
        close(matrix, 0.5 * (layer.fc1_weight * layer.norm2_weight).t())
        matrix, bias = take(12, 12, 2)
        close(matrix, layer.fc2_weight.t())
        torch.testing.assert_close(bias, layer.fc2_bias)
        matrix, bias = take(6, 3, 2)
        close(matrix, 0.5 * (weights.out_weight.flatten(1) * weights.norm_weight).t())
        assert not chunks


# --- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sizes", "x_shape"), PUBLISHED, ids=str)
@dtypes
@on_kernels
def test_published_shapes(sizes, x_shape, dtype, backend, device) -> None:
    layers = min(sizes[3], 2) if backend == "simt" else sizes[3]
    case = StageCase("transformer", (*sizes[:3], layers, sizes[4]), x_shape, {"num_heads": 4})
    check(case, backend, dtype, device)


@pytest.mark.parametrize(("case", "at_once"), GENERAL, ids=str)
@on_kernels
def test_general_shapes(case, at_once, backend, device) -> None:
    check(case, backend, torch.float16, device, at_once)


@pytest.mark.parametrize(
    ("case", "at_once"),
    [
        *GENERAL,
        *((case_of(dim, (16, 16), layers=3, patch=(1, 1)), 1_000_000) for dim in (64, 96, 144)),
        *((case_of(dim, (16, 16), layers=3), 1_000_000) for dim in (80, 120, 192)),
        *((case_of(dim, (8, 8), layers=3), at_once) for dim in (96, 144, 240) for at_once in (1_000_000, 1)),
    ],
    ids=str,
)
@dtypes
@on_kernels
def test_blocks_that_send_give_the_same_bits(case, at_once, dtype, backend, device) -> None:
    skip_unless_available(backend)
    x, weights, options = case.build()
    x = x.to(device, dtype)
    packed = mvk.pack(weights, dtype, device, backend)
    with clusters(backend, device, at_once):
        expected = mvk.ops.transformer(x, packed, **options)
    with clusters(backend, device, at_once, sends=True):
        for _ in range(1 if backend == "simt" else 20):
            assert torch.equal(mvk.ops.transformer(x, packed, **options), expected)


def test_sending_is_an_alternative() -> None:
    skip_unless_available("simt")
    for dim, size, names in ((144, (8, 8), ["16", "64"]), (192, (16, 16), ["64"]), (144, (32, 32), ["256"])):
        x, weights, options = case_of(dim, size).build()
        packed = mvk.pack(weights, torch.float16, backend="simt")
        with clusters("simt", "cpu"):
            ways = native.stage_module("transformer").alternatives(Slot.like(x), packed, **options)
        assert [name for name in ways if "sends" in name] == [f"clusters of {rows} rows, sends" for rows in names]
        assert next(iter(ways)) == f"clusters of {names[0]} rows"


@pytest.mark.parametrize("dim", [96, 144, 240])
@on_kernels
def test_larger_clusters_give_the_same_bits(dim, backend, device) -> None:
    """One sequence of 16 tokens a cluster, and four; every place in the batch."""
    skip_unless_available(backend)
    case = case_of(dim, (8, 8), batch=3)
    x, weights, options = case.build()
    x = x.to(device, torch.float16)
    packed = mvk.pack(weights, torch.float16, device, backend)
    with clusters(backend, device):
        whole = mvk.ops.transformer(x, packed, **options)
        assert torch.equal(mvk.ops.transformer(x[1:2], packed, **options), whole[1:2])
    with clusters(backend, device, at_once=3):
        assert torch.equal(mvk.ops.transformer(x, packed, **options), whole)


@pytest.mark.parametrize(
    "case",
    [case_of(80, (14, 12), batch=3), case_of(120, (8, 6), batch=3), case_of(64, (16, 18), patch=(2, 1), batch=2)],
    ids=str,
)
@on_kernels
def test_batch_invariance_and_unaligned_slices(case, backend, device) -> None:
    skip_unless_available(backend)
    x, weights, options = case.build()
    x = x.to(device, torch.float16)
    packed = mvk.pack(weights, torch.float16, device, backend)
    with clusters(backend, device):
        whole = mvk.ops.transformer(x, packed, **options)
        for i in range(x.shape[0]):
            assert torch.equal(mvk.ops.transformer(x[i : i + 1], packed, **options), whole[i : i + 1])
        assert torch.equal(mvk.ops.transformer(x[1:], packed, **options), whole[1:])


@pytest.mark.parametrize(
    ("case", "at_once"),
    [(case_of(96, (6, 6), batch=3), 3), (case_of(120, (8, 12), batch=3), 1_000_000)],
    ids=["four sequences a cluster", "two sequences a cluster"],
)
@on_kernels
def test_a_neighbours_nan_leaves_no_trace(case, at_once, backend, device) -> None:
    """A NaN image in the same cluster makes itself NaN, and changes no bit of another."""
    skip_unless_available(backend)
    x, weights, options = case.build()
    x = x.to(device, torch.float16)
    packed = mvk.pack(weights, torch.float16, device, backend)
    with clusters(backend, device, at_once):
        clean = mvk.ops.transformer(x, packed, **options)
        x[1, 3, 2, 2] = float("nan")
        result = mvk.ops.transformer(x, packed, **options)
    assert torch.equal(result[0], clean[0])
    assert torch.equal(result[2:], clean[2:])
    assert result[1, :, ::2, ::2].isnan().all()  # every token of the sequence
    assert torch.equal(result[1, :, 1::2], clean[1, :, 1::2])


@on_kernels
def test_deterministic(backend, device) -> None:
    skip_unless_available(backend)
    x, weights, options = case_of(192, (8, 8)).build()
    x = x.to(device, torch.bfloat16)
    packed = mvk.pack(weights, torch.bfloat16, device, backend)
    with clusters(backend, device):
        first = mvk.ops.transformer(x, packed, **options)
        for _ in range(2 if backend == "simt" else 50):
            assert torch.equal(mvk.ops.transformer(x, packed, **options), first)


def test_the_report_names_the_boundaries() -> None:
    skip_unless_available("simt")
    weights = case_of(144, (4, 4)).build()[1]
    text = native.stage_module("transformer").variant(mvk.pack(weights, torch.float16, backend="simt"))
    assert text.startswith("one launch on clusters of 8 blocks for up to 112 sequences of 1 to 16 tokens, ")
    assert "up to 28 sequences of 33 to 64 tokens, up to 28 sequences of 129 to 256 tokens; else one launch on" in text
    other = case_of(72, (4, 4)).build()[1]
    assert "cluster" not in native.stage_module("transformer").variant(mvk.pack(other, torch.float16, backend="simt"))


# --- what only the simulator sees ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "at_once"),
    [
        # All nine published pairs of tokens and width, of 256 tokens one sequence.
        *((case_of(dim, (16, 16), patch=(1, 1)), 1_000_000) for dim in (64, 96, 144)),
        *((case_of(dim, (8, 8), patch=(1, 1)), 1_000_000) for dim in (80, 120, 192)),
        *((case_of(dim, (4, 4), patch=(1, 1)), 1_000_000) for dim in (96, 144, 240)),
        (case_of(80, (10, 8)), 1_000_000),
        (case_of(96, (4, 4), layers=2), 1_000_000),
        (case_of(96, (4, 6)), 1),
    ],
    ids=str,
)
@forms
def test_silent_under_many_schedules(case: StageCase, at_once: int, sends: bool, schedules: range) -> None:
    skip_unless_available("simt")
    library = simt.library()
    x, weights, options = case.build()
    x = x.half()
    packed = mvk.pack(weights, torch.float16, backend="simt")
    results = []
    try:
        with clusters("simt", "cpu", at_once, sends=sends):
            for seed in schedules:
                library.set_seed(seed)
                library.reset_counters()
                results.append((mvk.ops.transformer(x, packed, **options), library.counters()))
    finally:
        library.set_seed(0)
    counted = results[0][1]
    assert (counted.cluster_barriers == counted.blocks // 8) == sends
    for result, counted in results[1:]:
        assert torch.equal(result, results[0][0])
        assert counted == results[0][1]


def test_wrong_sizes_are_refused() -> None:
    skip_unless_available("simt")
    x, weights, options = case_of(96, (4, 4)).build()
    packed = mvk.pack(weights, torch.float16, backend="simt")
    tensors = list(packed.tensors)
    tensors[5] = tensors[5][:-8].clone()  # for sequences of 16 tokens, after the one for wgmma
    short = mvk.packed.Packed("transformer", "simt", torch.float16, packed.device, tuple(tensors), packed.sizes)
    with clusters("simt", "cpu"), pytest.raises(ValueError, match=r"weights: expected \d+ units of 16 bytes"):
        mvk.ops.transformer(x.half(), short, **options)


def test_nothing_is_written_outside_of_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_unless_available("simt")
    x, weights, options = case_of(144, (6, 6), batch=2, channels=24).build()
    margin, size = 64, 2 * 24 * 36
    around = torch.full((size + 2 * margin,), float("nan"), dtype=torch.float16)
    output = around[margin : margin + size].reshape(2, 6, 6, 24).permute(0, 3, 1, 2)
    monkeypatch.setattr(Slot, "allocate", lambda *_: output)
    with clusters("simt", "cpu"):
        mvk.ops.transformer(x.half(), mvk.pack(weights, torch.float16, backend="simt"), **options)
    assert simt.library().counters().cluster_barriers > 0
    assert output.isfinite().all()
    assert around[:margin].isnan().all()
    assert around[margin + size :].isnan().all()


def test_smaller_shared_memory_keeps_the_other_kernels() -> None:
    """99 KB a block (sm_120 has clusters too): what does not fit is not chosen."""
    skip_unless_available("simt")
    library = simt.library()
    x, weights, options = case_of(240, (4, 4)).build()
    packed = mvk.pack(weights, torch.float16, backend="simt")
    library.set_shared_limit(101376)
    library.reset_counters()
    try:
        mvk.ops.transformer(x.half(), packed, **options)
    finally:
        library.set_shared_limit()
    assert library.counters().cluster_barriers == 0
