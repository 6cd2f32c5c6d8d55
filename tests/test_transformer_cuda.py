"""transformer's CUDA kernel: packing, every published shape, odd sizes, schedules; on the simulator and on a GPU."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import backend_params, blocks, skip_unless_available

import mobilevit_kernels as mvk
from mobilevit_kernels import native, registry, simt, verify
from mobilevit_kernels.native import transformer
from mobilevit_kernels.native.launches import Slot
from mobilevit_kernels.native.transformer_plan import INSTANCES, Instance, instances_for, lay_out, plan
from mobilevit_kernels.simt import SimulatorFault
from mobilevit_kernels.verify import StageCase

on_kernels = pytest.mark.parametrize(("backend", "device"), backend_params("simt", "cuda"))
dtypes = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])


def case_of(
    dim: int,
    size: tuple[int, int],
    *,
    batch: int = 1,
    layers: int = 2,
    channels: int = 32,
    heads: int = 4,
    patch: tuple[int, int] = (2, 2),
) -> StageCase:
    """A stage between narrow 1×1 convolutions, which cost the simulator least."""
    sizes = (channels, dim, 2 * dim, layers, channels)
    return StageCase("transformer", sizes, (batch, channels, *size), {"num_heads": heads, "patch_size": patch})


PUBLISHED = sorted({(case.sizes, case.x_shape) for _, _, case in verify.network_cases() if case.stage == "transformer"})
GENERAL = [
    case_of(64, (28, 28), layers=1),  # 196 tokens in 224 rows
    case_of(96, (14, 14), batch=3),  # 49 tokens in 64 rows
    case_of(144, (6, 6), batch=5),  # 9 tokens in 16 rows: a warp's rows belong to two sequences
    case_of(120, (12, 8), batch=2),  # 24 tokens in 32 rows
    case_of(72, (6, 4), layers=1),  # padded channels, odd tiles
    case_of(8, (4, 4), heads=1, layers=1),
    case_of(200, (4, 6), heads=5, layers=1),
    case_of(256, (6, 6), heads=2, layers=1),  # heads of 128 channels
    case_of(128, (8, 6), heads=8, layers=1),
    case_of(64, (6, 6), layers=0),
    case_of(64, (4, 4), batch=2, channels=8, layers=1),
    case_of(80, (6, 9), patch=(2, 3), layers=1, channels=40),
]
SPLIT = [
    case_of(64, (34, 32)),  # 272 tokens: two blocks a sequence, the second nearly empty
    case_of(192, (24, 24), layers=1),  # 144 tokens, 128 rows a block
    case_of(240, (17, 16), batch=2, layers=1, patch=(1, 2)),
    case_of(40, (9, 15), heads=5, patch=(1, 1), layers=3),  # 135 tokens, padded channels
]


sizes_of_blocks = pytest.mark.parametrize("size", ["small", "large"])


def check(case: StageCase, backend: str, dtype: torch.dtype, device: str, size: str = "large") -> None:
    skip_unless_available(backend)
    with blocks(backend, size):
        result = verify.check_stage(case, backend, dtype, device)
    assert result.passed, f"error {result.error:.2e}, stock {result.stock_error:.2e}, ratio {result.ratio:.2f}"


# --- plan and packing ------------------------------------------------------------------------------------------------


def test_every_size_has_instances() -> None:
    for dim in range(8, 257, 8):
        for heads in range(1, 9):
            if dim % heads == 0 and dim // heads <= 128:
                found = instances_for(dim, heads)
                assert found
                assert all(i.dim >= dim and 8 * i.head_tiles * heads >= dim for i in found)
                assert len({(i.dim, i.head_tiles, i.panels) for i in found}) == 1, "one packing serves them"
    assert instances_for(136, 1) == ()
    for _, _, case in verify.network_cases():
        if case.stage == "transformer":
            assert [i.padded for i in instances_for(case.sizes[1], 4)] == [False, False]


@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_every_row_has_a_place(instance: Instance) -> None:
    for tokens in (1, 15, 16, 17, 49, 64, 100, 128, 196, 256, 257, 1024, 4096):
        for sequences in (1, 4, 5, 64):
            chosen = lay_out(instance, tokens, sequences, 2)
            assert chosen.sequence_rows >= tokens
            assert chosen.block_rows <= instance.rows
            assert chosen.blocks * chosen.block_rows >= sequences * chosen.sequence_rows
            assert (chosen.blocks - 1) * chosen.block_rows < sequences * chosen.sequence_rows
            if chosen.split:
                assert chosen.sequence_rows % chosen.block_rows == 0
                assert chosen.launches == 3
            else:
                assert chosen.sequence_rows == 16 or chosen.sequence_rows % 32 == 0
                assert chosen.block_rows % chosen.sequence_rows == 0


def test_the_batch_decides_between_small_and_large_blocks() -> None:
    candidates = instances_for(144, 4)
    assert [i.rows for i in candidates] == [256, 64]
    for batch, rows, launches in ((1, 64, 3), (16, 64, 3), (17, 256, 1), (256, 256, 1)):
        chosen = plan(candidates, 256, 4 * batch, 2, multiprocessors=132)
        assert (chosen.instance.rows, chosen.launches) == (rows, launches)
    for batch, rows in ((1, 64), (256, 64), (264, 64), (265, 256)):  # 16 tokens: a block an image
        assert plan(candidates, 16, 4 * batch, 3, multiprocessors=132).instance.rows == rows
    assert plan(candidates[1:], 256, 1024, 2, multiprocessors=132).instance.rows == 64
    candidates = instances_for(240, 4)
    assert [i.rows for i in candidates] == [128, 64]
    for batch, rows in ((132, 64), (133, 128)):
        assert plan(candidates, 16, 4 * batch, 3, multiprocessors=132).instance.rows == rows
    for batch, rows in ((33, 64), (34, 128)):  # two small blocks a sequence
        assert plan(candidates, 128, 4 * batch, 3, multiprocessors=132).instance.rows == rows


def panel_columns(panel: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A packed panel's (rows, 16) matrix, 16 biases and 16 column sums, from the fragment layouts of the PTX ISA."""
    values = panel[: rows * 32].view(torch.float16).float()
    matrix = torch.zeros(rows, 16)
    for step in range(rows // 16):
        for lane in range(32):
            for word in range(4):
                for half in range(2):
                    k = 16 * step + lane % 4 * 2 + 8 * (word % 2) + half
                    matrix[k, word // 2 * 8 + lane // 4] = values[((step * 32 + lane) * 4 + word) * 2 + half]
    if rows % 16:
        for lane in range(32):
            for word in range(2):
                for half in range(2):
                    k = rows // 16 * 16 + lane % 4 * 2 + half
                    matrix[k, word * 8 + lane // 4] = values[rows // 16 * 256 + (lane * 2 + word) * 2 + half]
    ends = panel[rows * 32 :].view(torch.float32)
    return matrix, ends[:16], ends[16:32]


def test_packing_folds_norms_scale_and_halves() -> None:
    dim, heads, head_dim = 120, 4, 30
    generator = torch.Generator().manual_seed(0)
    weights = verify.random_weights("transformer", (24, dim, 40, 1, 24), generator)
    assert isinstance(weights, mvk.canonical.TransformerWeights)
    stream = transformer.pack_stream(weights, torch.float16, heads, instances_for(dim, heads)[0])
    chunks = [stream.weights[16 * begin : 16 * (begin + units)] for begin, units in stream.table.tolist()]
    one_launch = chunks[: len(chunks) // 2]
    layer = weights.layers[0]
    # In: one chunk of two slabs. Then, a head: K and V in one chunk of four panels, Q in one of two.
    panel_bytes = (128 * 15 + 64) * 2
    for head in range(heads):
        key_value, query = one_launch[1 + 2 * head], one_launch[2 + 2 * head]
        assert key_value.numel() == 2 * query.numel() == 4 * panel_bytes
        first, second = key_value.chunk(2)
        scale = head_dim**-0.5 * math.log2(math.e)
        expected_matrix = layer.qkv_weight * layer.norm1_weight
        expected_bias = layer.qkv_bias + layer.qkv_weight @ layer.norm1_bias
        for chunk, begin, factor in ((query, 0, scale), (first, dim, 1.0), (second, 2 * dim, 1.0)):
            panels = [panel_columns(chunk[i * panel_bytes : (i + 1) * panel_bytes], dim) for i in (0, 1)]
            matrix, bias, sums = (torch.cat(parts, dim=-1) for parts in zip(*panels, strict=True))
            rows = slice(begin + head * head_dim, begin + (head + 1) * head_dim)
            torch.testing.assert_close(matrix[:, :30], factor * expected_matrix[rows].t(), rtol=2**-10, atol=1e-6)
            torch.testing.assert_close(bias[:30], factor * expected_bias[rows])
            torch.testing.assert_close(sums, matrix.sum(0), rtol=1e-5, atol=1e-5)
            assert not matrix[:, 30:].any()
            assert not bias[30:].any()
    mlp = one_launch[1 + 2 * heads + 2]
    matrix, bias, _ = panel_columns(mlp[:panel_bytes], dim)
    torch.testing.assert_close(matrix, (0.5 * layer.fc1_weight * layer.norm2_weight)[:16].t(), rtol=2**-10, atol=1e-6)
    torch.testing.assert_close(bias, 0.5 * (layer.fc1_bias + layer.fc1_weight @ layer.norm2_bias)[:16])


def test_packing_joins_the_last_channels_of_keys_and_values() -> None:
    """Heads of 20: K and V have two whole tiles each and share the last, and Q's last panel has four columns."""
    dim, heads, head_dim = 80, 4, 20
    weights = verify.random_weights("transformer", (16, dim, 32, 1, 16), torch.Generator().manual_seed(0))
    stream = transformer.pack_stream(weights, torch.float16, heads, instances_for(dim, heads)[0])
    chunks = [stream.weights[16 * begin : 16 * (begin + units)] for begin, units in stream.table.tolist()]
    layer = weights.layers[0]
    matrix = (layer.qkv_weight * layer.norm1_weight).t().reshape(dim, 3, heads, head_dim)
    whole, half, quarter = 256 * dim // 8 + 128, 128 * dim // 8 + 64, 64 * dim // 8 + 64
    close = {"rtol": 2**-10, "atol": 1e-6}
    for head in range(heads):
        keys_values, query = chunks[1 + 2 * head], chunks[2 + 2 * head]
        assert keys_values.numel() == 2 * whole + half
        assert query.numel() == whole + quarter
        for i, tensor in ((0, 1), (1, 2)):
            got = panel_columns(keys_values[i * whole : (i + 1) * whole], dim)[0]
            torch.testing.assert_close(got, matrix[:, tensor, head, :16], **close)
        values = keys_values[2 * whole :][: 128 * dim // 8].view(torch.float16).float().reshape(dim // 16, 32, 2, 2)
        last = values.reshape(dim // 16, 8, 4, 2, 2).permute(0, 3, 2, 4, 1).reshape(dim, 8)
        expected = torch.cat([matrix[:, 1, head, 16:], matrix[:, 2, head, 16:]], dim=1)
        torch.testing.assert_close(last, expected, **close)
        sums = keys_values[2 * whole + 128 * dim // 8 :].view(torch.float32)[8:]
        torch.testing.assert_close(sums, last.sum(0), rtol=1e-5, atol=1e-5)
        values = query[whole:][: 64 * dim // 8].view(torch.float16).float()
        last = values.reshape(dim // 16, 4, 4, 2, 2).permute(0, 3, 2, 4, 1).reshape(dim, 4)
        torch.testing.assert_close(last, head_dim**-0.5 * math.log2(math.e) * matrix[:, 0, head, 16:], **close)


def test_packing_is_pure() -> None:
    weights = case_of(64, (4, 4)).build()[1]
    first, second = (mvk.pack(weights, torch.float16, backend="simt") for _ in range(2))
    for a, b in zip(first.tensors[:3], second.tensors[:3], strict=True):
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def test_packed_for_another_number_of_heads() -> None:
    skip_unless_available("simt")
    case = case_of(64, (4, 6), layers=1, heads=8)
    x, weights, _ = case.build()
    x = x.half()
    for_any = mvk.pack(weights, torch.float16, backend="simt")
    for_eight = mvk.pack(weights, torch.float16, backend="simt", num_heads=8)
    result = mvk.ops.transformer(x, for_eight, num_heads=8)
    assert torch.equal(mvk.ops.transformer(x, for_any, num_heads=8), result)
    assert torch.equal(mvk.ops.transformer(x, weights, num_heads=8, backend="simt"), result)
    with pytest.raises(ValueError, match=r"num_heads: the weights are packed for 8, got 4"):
        mvk.ops.transformer(x, for_eight, num_heads=4)


# --- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sizes", "x_shape"), PUBLISHED, ids=str)
@sizes_of_blocks
@on_kernels
def test_published_shapes(sizes, x_shape, size, backend, device) -> None:
    case = StageCase("transformer", (*sizes[:3], min(sizes[3], 2), sizes[4]), x_shape, {"num_heads": 4})
    check(case, backend, torch.float16, device, size)


@pytest.mark.parametrize("case", [*GENERAL, *SPLIT], ids=str)
@dtypes
@on_kernels
def test_general_shapes(case, dtype, backend, device) -> None:
    check(case, backend, dtype, device)


@pytest.mark.parametrize("batch", [0, 1, 3, 5])
@sizes_of_blocks
@on_kernels
def test_any_batch(batch, size, backend, device) -> None:
    """35 tokens in 64 rows."""
    skip_unless_available(backend)
    case = case_of(80, (14, 10), batch=batch, layers=1, channels=24)
    if batch > 0:
        check(case, backend, torch.float16, device, size)
    else:
        x, weights, options = case.build()
        packed = mvk.pack(weights, torch.float16, device, backend)
        assert mvk.ops.transformer(x.to(device, torch.float16), packed, **options).shape == (0, 24, 14, 10)


@pytest.mark.parametrize(
    ("map_size", "size"), [((8, 12), "large"), ((16, 20), "small")], ids=["one launch", "split"]
)  # fmt: skip
@dtypes
@on_kernels
def test_large_logits(map_size, size, dtype, backend, device) -> None:
    """Scores of thousands: softmax stays finite, and is an argmax."""
    skip_unless_available(backend)
    case = case_of(64, map_size, layers=1)
    x, weights, options = case.build()
    layer = weights.layers[0]
    big = torch.cat([layer.qkv_weight[:128] * 40, layer.qkv_weight[128:]])
    weights = mvk.canonical.TransformerWeights(
        **{**weights.__dict__, "layers": (type(layer)(**{**layer.__dict__, "qkv_weight": big}),)}
    )
    x = x.to(device, dtype)
    with blocks(backend, size):
        result = mvk.ops.transformer(x, mvk.pack(weights, dtype, device, backend), **options)
    truth = verify.reference("transformer", x, weights, **options)
    stock = verify.reference("transformer", x, weights, dtype=dtype, **options)
    assert result.isfinite().all()
    assert verify.relative_error(result, truth) <= 2 * verify.relative_error(stock, truth)


@pytest.mark.parametrize("case", [case_of(96, (6, 6), batch=3), SPLIT[0]], ids=["one launch", "split"])
@on_kernels
def test_a_neighbours_nan_leaves_no_trace(case, backend, device) -> None:
    """A NaN image in the same block makes itself NaN, and changes no bit of another."""
    skip_unless_available(backend)
    x, weights, options = case.build()
    x = torch.cat([x, x])[:3].to(device, torch.float16) if case.x_shape[0] == 1 else x.to(device, torch.float16)
    packed = mvk.pack(weights, torch.float16, device, backend)
    with blocks(backend, "large"):
        clean = mvk.ops.transformer(x, packed, **options)
        x[1, 3, 2, 2] = float("nan")
        result = mvk.ops.transformer(x, packed, **options)
    assert torch.equal(result[0], clean[0])
    assert torch.equal(result[2:], clean[2:])
    assert result[1, :, ::2, ::2].isnan().all()  # every token of the sequence
    assert torch.equal(result[1, :, 1::2], clean[1, :, 1::2])


@pytest.mark.parametrize("map_size", [(6, 6), (8, 10)], ids=["9 tokens", "20 tokens"])
@sizes_of_blocks
@on_kernels
def test_batch_invariance_and_unaligned_slices(map_size, size, backend, device) -> None:
    skip_unless_available(backend)
    case = case_of(144, map_size, batch=5, channels=24, layers=1)
    x, weights, options = case.build()
    x = x.to(device, torch.float16)
    packed = mvk.pack(weights, torch.float16, device, backend)
    with blocks(backend, size):
        whole = mvk.ops.transformer(x, packed, **options)
        for i in (0, 2, 4):
            assert torch.equal(mvk.ops.transformer(x[i : i + 1], packed, **options), whole[i : i + 1])
        assert torch.equal(mvk.ops.transformer(x[3:], packed, **options), whole[3:])


@pytest.mark.parametrize(
    "case",
    [
        case_of(80, (8, 10), batch=3),  # 20 tokens in 32 rows
        case_of(96, (12, 12), batch=2, layers=1),  # 36 tokens in 64 rows, three sequences in the large block
        case_of(144, (16, 20), layers=1),  # 80 tokens: two small blocks a sequence
        case_of(192, (14, 14), batch=3, layers=1),
    ],
    ids=str,
)
@on_kernels
def test_small_and_large_blocks_agree_bit_for_bit(case, backend, device) -> None:
    skip_unless_available(backend)
    x, weights, options = case.build()
    x = x.to(device, torch.float16)
    packed = mvk.pack(weights, torch.float16, device, backend)
    results = []
    for size in ("small", "large"):
        with blocks(backend, size):
            results.append(mvk.ops.transformer(x, packed, **options))
    assert torch.equal(*results)


# --- what only the simulator sees ------------------------------------------------------------------------------------


def one_block(tokens: int, dim: int, patch: tuple[int, int]) -> StageCase:
    """A published number of tokens and width: sequences that fill one large block, two layers, all else narrow."""
    side = math.isqrt(tokens)
    sequences = instances_for(dim, 4)[0].rows // tokens
    batch = sequences // (patch[0] * patch[1])
    sizes = (16, dim, 48, 2, 16)
    x_shape = (batch, 16, side * patch[0], side * patch[1])
    return StageCase("transformer", sizes, x_shape, {"num_heads": 4, "patch_size": patch})


@pytest.mark.parametrize(
    "case",
    [
        one_block(256, 64, (1, 1)),
        one_block(64, 80, (2, 2)),
        one_block(16, 96, (2, 2)),
        one_block(256, 96, (1, 1)),
        one_block(64, 120, (2, 2)),
        one_block(16, 144, (2, 2)),
        one_block(256, 144, (1, 1)),
        one_block(64, 192, (1, 2)),
        one_block(16, 240, (2, 2)),
        case_of(64, (9, 11), layers=2, patch=(1, 1), channels=16),  # 99 tokens: the last small block is half empty
    ],
    ids=str,
)
@sizes_of_blocks
def test_silent_under_many_schedules(case: StageCase, size: str, schedules: range) -> None:
    """All nine published pairs of tokens and width: no report, the same bits and the same counts in every order."""
    skip_unless_available("simt")
    library = simt.library()
    x, weights, options = case.build()
    x = x.half()
    packed = mvk.pack(weights, torch.float16, backend="simt")
    results = []
    try:
        with blocks("simt", size):
            for seed in schedules:
                library.set_seed(seed)
                library.reset_counters()
                results.append((mvk.ops.transformer(x, packed, **options), library.counters()))
    finally:
        library.set_seed(0)
    for result, counted in results[1:]:
        assert torch.equal(result, results[0][0])
        assert counted == results[0][1]


def test_the_schedules_are_of_all_published_pairs() -> None:
    published = {(x_shape[2] * x_shape[3] // 4, sizes[1]) for sizes, x_shape in PUBLISHED}
    (parameters,) = (
        mark.args[1] for mark in test_silent_under_many_schedules.pytestmark if mark.args[0] == "case"
    )  # fmt: skip
    pairs = set()
    for case in parameters:
        patch = case.options["patch_size"]
        pairs.add((case.x_shape[2] * case.x_shape[3] // (patch[0] * patch[1]), case.sizes[1]))
    assert len(published) == 9
    assert published < pairs


def test_a_table_too_long_is_reported() -> None:
    skip_unless_available("simt")
    case = case_of(64, (4, 4), layers=1, channels=16)
    x, weights, options = case.build()
    packed = mvk.pack(weights, torch.float16, backend="simt", num_heads=4)
    stream, *others = packed.tensors
    short = mvk.packed.Packed(
        "transformer", "simt", torch.float16, packed.device, (stream[:-8].clone(), *others), packed.sizes
    )
    with pytest.raises(SimulatorFault, match="global buffer 'weights' out of bounds"):
        mvk.ops.transformer(x.half(), short, **options)


def test_nothing_is_written_outside_of_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_unless_available("simt")
    case = case_of(64, (6, 6), batch=2, channels=24, layers=1)
    x, weights, options = case.build()
    margin, size = 64, 2 * 24 * 36
    around = torch.full((size + 2 * margin,), float("nan"), dtype=torch.float16)
    output = around[margin : margin + size].reshape(2, 6, 6, 24).permute(0, 3, 1, 2)
    monkeypatch.setattr(Slot, "allocate", lambda *_: output)
    mvk.ops.transformer(x.half(), mvk.pack(weights, torch.float16, backend="simt"), **options)
    assert output.isfinite().all()
    assert around[:margin].isnan().all()
    assert around[margin + size :].isnan().all()


def test_refusals() -> None:
    skip_unless_available("simt")
    for sizes, message in (
        ((20, 64, 128, 1, 24), "in_channels: expected a multiple of 8, got 20"),
        ((16, 100, 128, 1, 24), "dim: expected a multiple of 8, got 100"),
        ((16, 264, 128, 1, 24), "dim: expected at most 256, got 264"),
        ((16, 64, 128, 1, 20), "out_channels: expected a multiple of 8, got 20"),
    ):
        weights = StageCase("transformer", sizes, (1, sizes[0], 4, 4)).build()[1]
        with pytest.raises(mvk.BackendUnavailable, match=message):
            mvk.pack(weights, torch.float16, backend="simt")
    wide = case_of(256, (4, 4), heads=1, layers=1)
    x, weights, options = wide.build()
    with pytest.raises(mvk.BackendUnavailable, match="heads of up to 128 channels, got 256 channels in 1 heads"):
        mvk.ops.transformer(x.half(), mvk.pack(weights, torch.float16, backend="simt"), **options)


def test_auto_passes_over_the_kernels_for_heads_that_they_do_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_unless_available("simt")
    weights = case_of(144, (4, 4), layers=1).build()[1]
    cuda, cpu = registry.load("cuda"), torch.device("cpu")
    monkeypatch.setattr(cuda, "status", lambda: registry.Status(True, ""))
    monkeypatch.setattr(
        cuda,
        "refusal",
        lambda stage, weights, dtype, device, heads: native.refusal("simt", stage, weights, dtype, cpu, heads),
    )
    monkeypatch.setattr(registry.load("triton"), "status", lambda: registry.Status(False, "absent"))
    for heads, backend in ((None, "cuda"), (4, "cuda"), (1, "torch")):
        choice = registry.choose("auto", "transformer", weights, torch.float16, torch.device("cuda"), heads)
        assert choice.backend == backend
    assert choice.reason == (
        "cuda: the CUDA kernels take heads of up to 128 channels, got 144 channels in 1 heads; triton: absent"
    )


@pytest.mark.parametrize("limit", [166912, 101376])
def test_smaller_shared_memory(limit: int) -> None:
    """163 KB (sm_80) and 99 KB (sm_86, sm_89, sm_120) a block: every published width is served."""
    skip_unless_available("simt")
    library = simt.library()
    library.set_shared_limit(limit)
    try:
        for dim in (64, 80, 96, 120, 144, 192, 240):
            check(case_of(dim, (4, 4), layers=1, channels=16), "simt", torch.float16, "cpu")
        library.set_shared_limit(49152)
        weights = case_of(144, (4, 4)).build()[1]
        refusal = native.refusal("simt", "transformer", weights, torch.float16, torch.device("cpu"))
        assert refusal is not None
        assert "144 channels need" in refusal
        assert "cpu has 49152" in refusal
    finally:
        library.set_shared_limit()
