"""transformer's CUDA kernel on wgmma: packing, every published shape, schedules; simulator and GPU."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import backend_params, judge, skip_unless_available

import mobilevit_kernels as mvk
from mobilevit_kernels import native, simt, verify
from mobilevit_kernels.native import transformer, transformer_wgmma
from mobilevit_kernels.native.launches import Slot, execute, map_slot
from mobilevit_kernels.native.transformer_plan import (
    WGMMA_INSTANCES,
    WgmmaInstance,
    plan_wgmma,
    wgmma_instances_for,
)
from mobilevit_kernels.simt import SimulatorFault
from mobilevit_kernels.verify import StageCase

on_kernels = pytest.mark.parametrize(("backend", "device"), backend_params("simt", "cuda"))
dtypes = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
instances = pytest.mark.parametrize("instance", WGMMA_INSTANCES, ids=lambda i: f"{i.dim} channels, {i.tokens} tokens")

SIDE = {256: 32, 64: 16, 16: 8}  # of a map whose sequences have so many tokens


def case_of(
    instance: WgmmaInstance, *, batch: int = 1, layers: int = 1, channels: tuple[int, int] = (16, 16)
) -> StageCase:
    """A stage of an instance between narrow 1×1 convolutions, which cost the simulator least."""
    sizes = (channels[0], instance.dim, 2 * instance.dim, layers, channels[1])
    side = SIDE[instance.tokens]
    return StageCase("transformer", sizes, (batch, channels[0], side, side), {"num_heads": 4, "patch_size": (2, 2)})


def launch(
    case: StageCase, dtype: torch.dtype, x: torch.Tensor | None = None, backend: str = "simt", device: str = "cpu"
) -> torch.Tensor:
    """The stage by the kernel on wgmma; skips where there is none."""
    skip_unless_available(backend)
    if not native.library(backend).has_wgmma(torch.device(device)):
        pytest.skip("no wgmma: it is of compute capability 9.0, and of a build for sm_90a")
    own, weights, options = case.build()
    x = (own if x is None else x).to(device, dtype).contiguous(memory_format=torch.channels_last)
    packed = mvk.pack(weights, dtype, device, backend)
    slot = Slot.like(x)
    (way,) = (way for name, way in native.alternatives(slot, packed, **options).items() if name.startswith("wgmma"))
    return execute(backend, way, {slot: native.aligned(x)}).cpu()


# --- instances and packing -------------------------------------------------------------------------------------------


def test_every_published_shape_has_an_instance_that_fits() -> None:
    skip_unless_available("simt")
    for _, _, case in verify.network_cases():
        if case.stage == "transformer":
            tokens = case.x_shape[2] * case.x_shape[3] // 4
            assert tokens in [i.tokens for i in wgmma_instances_for(case.sizes[1], 4, case.sizes[2])]
    for instance in WGMMA_INSTANCES:
        assert 0 < simt.library().shared_bytes("transformer_wgmma", instance.dim, instance.tokens) <= 232448
        same = [i for i in WGMMA_INSTANCES if i.dim == instance.dim]  # packed once for all of them
        assert {(i.hidden, i.depth) for i in same} == {(instance.hidden, instance.depth)}
    assert wgmma_instances_for(144, 3, 288) == ()
    assert wgmma_instances_for(144, 4, 144) == ()


def rule_and_others(dim: int, size: tuple[int, int], batch: int) -> list[str]:
    """The alternatives of a stage on a simulated H200, the one that the rules take first."""
    sizes = (16, dim, 2 * dim, 1, 16)
    case = StageCase("transformer", sizes, (1, 16, *size), {"num_heads": 4, "patch_size": (2, 2)})
    _, weights, options = case.build()
    packed = mvk.pack(weights, torch.float16, "cpu", "simt")
    return [*native.alternatives(map_slot(batch, 16, *size, torch.float16), packed, **options)]


def test_other_shapes_do_not_have_it() -> None:
    skip_unless_available("simt")
    for size, present in (((32, 32), True), ((32, 30), False), ((16, 16), False), ((8, 8), True)):
        names = rule_and_others(144, size, 256)
        assert names[0].startswith("wgmma") == present, size
        assert any(name.startswith("wgmma") for name in names) == present, size


CLUSTERS, SMALL, WGMMA = "clusters of {} rows", "64 rows a block", "wgmma, {} rows a block"
SPLIT = "64 rows a block, a launch a layer"


@pytest.mark.parametrize(
    ("dim", "side", "batch", "us"),  # of a whole stage, on an H200, float16
    [
        (64, 32, 1, {CLUSTERS.format(256): 23.8, SPLIT: 61.5, "256 rows a block": 73.2, WGMMA.format(256): 58.6}),
        (64, 32, 8, {WGMMA.format(256): 59.1, SPLIT: 61.7, CLUSTERS.format(256): 69.1, "256 rows a block": 72.2}),
        (80, 16, 1, {CLUSTERS.format(64): 36.4, SMALL: 65.6, WGMMA.format(256): 86.8}),
        (80, 16, 8, {SMALL: 65.6, WGMMA.format(256): 85.0, CLUSTERS.format(64): 92.8, "256 rows a block": 104.7}),
        (80, 16, 64, {SMALL: 75.8, WGMMA.format(256): 86.0, "256 rows a block": 104.4}),
        (80, 16, 256, {WGMMA.format(256): 166.4, SMALL: 199.9, "256 rows a block": 199.0}),
        (96, 8, 16, {CLUSTERS.format(64): 55.6, SMALL: 58.7, WGMMA.format(256): 65.5, CLUSTERS.format(16): 87.9}),
        (96, 8, 64, {SMALL: 58.4, WGMMA.format(256): 66.3, "256 rows a block": 92.5}),
        (120, 16, 8, {SMALL: 99.4, CLUSTERS.format(64): 125.6, WGMMA.format(256): 128.8}),
        (144, 8, 256, {WGMMA.format(256): 111.5, SMALL: 122.3, "256 rows a block": 172.9}),
        (144, 32, 16, {WGMMA.format(256): 109.5, SPLIT: 139.6, "256 rows a block": 158.7}),
        (192, 16, 8, {WGMMA.format(128): 140.8, CLUSTERS.format(64): 165.0, SMALL: 181.6, "128 rows a block": 209.2}),
        (240, 8, 16, {CLUSTERS.format(64): 134.8, WGMMA.format(128): 155.3, SMALL: 207.5}),
        (240, 8, 32, {WGMMA.format(128): 152.6, CLUSTERS.format(64): 203.5, SMALL: 205.7, "128 rows a block": 243.1}),
    ],
    ids=str,
)  # fmt: skip
def test_the_rules_take_what_was_measured_fastest(dim: int, side: int, batch: int, us: dict[str, float]) -> None:
    """Without wgmma the rules come within 11 % of the fastest of the others."""
    skip_unless_available("simt")
    library = simt.library()
    try:
        for wgmma in (True, False):
            library.set_wgmma(wgmma)
            names = rule_and_others(dim, (side, side), batch)
            least = min(time for name, time in us.items() if wgmma or not name.startswith("wgmma"))
            assert us[names[0]] <= (1.0 if wgmma else 1.11) * least
    finally:
        library.set_wgmma()


def test_from_which_batch_on() -> None:
    """On 132 multiprocessors; another number moves the boundaries with it."""
    for tokens, dim, most in ((256, 64, 0), (64, 80, 264), (64, 192, 0), (16, 96, 528), (16, 240, 0)):
        found = wgmma_instances_for(dim, 4, 2 * dim)
        assert plan_wgmma(found, tokens, most, multiprocessors=132) is None
        chosen = plan_wgmma(found, tokens, most + 1, multiprocessors=132)
        assert chosen is not None
        assert (chosen.instance.dim, chosen.instance.tokens) == (dim, tokens)
        if most > 0:
            assert plan_wgmma(found, tokens, most + 1, multiprocessors=133) is None
        assert plan_wgmma(found, tokens + 1, most + 1, multiprocessors=132) is None
    assert plan_wgmma((), 256, 1024, multiprocessors=132) is None


def test_the_report_names_the_boundaries() -> None:
    skip_unless_available("simt")
    weights = case_of(WGMMA_INSTANCES[2]).build()[1]
    packed = mvk.pack(weights, torch.float16, "cpu", "simt")
    text = "; else one launch on wgmma for more than 528 sequences of 16 tokens, sequences of 256 tokens; else 64 "
    assert text in transformer.variant(packed)
    simt.library().set_wgmma(False)
    try:
        assert "wgmma" not in transformer.variant(packed)
    finally:
        simt.library().set_wgmma()


def test_wgmma_is_of_one_architecture() -> None:
    from mobilevit_kernels import cuda

    assert cuda.knows_wgmma("80/90a/120-ptx", (9, 0))
    assert cuda.knows_wgmma("90a-ptx", (9, 0))
    assert not cuda.knows_wgmma("80/90a", (10, 0))
    assert not cuda.knows_wgmma("80/90", (9, 0))
    assert not cuda.knows_wgmma("80-ptx", (9, 0))


@pytest.mark.parametrize("instance", [WgmmaInstance(120, 64, 256, 48, 4), WgmmaInstance(96, 16, 256, 64, 6)], ids=str)
def test_packing(instance: WgmmaInstance) -> None:
    """The chunks in the order of csrc/transformer_wgmma.cuh, each in planes of eight k."""
    dim, hidden, deep, steps = instance.dim, instance.hidden, 16 * instance.depth, instance.steps
    in_channels, out_channels = 24, 40
    sizes = (in_channels, dim, 2 * dim, 1, out_channels)
    weights = verify.random_weights("transformer", sizes, torch.Generator().manual_seed(0))
    assert isinstance(weights, mvk.canonical.TransformerWeights)
    stream = transformer_wgmma.pack_stream(weights, torch.float16, instance)
    layer = weights.layers[0]
    place = 0

    def take(count: int, dtype: torch.dtype) -> torch.Tensor:
        nonlocal place
        size = count * dtype.itemsize
        place += size
        return stream[place - size : place].view(dtype).float()

    def planes(depth: int, columns: int) -> torch.Tensor:
        """The next (depth, columns)."""
        values = take(depth * columns, torch.float16)
        matrix = torch.zeros(depth, columns)
        for k in range(depth):
            matrix[k] = values[k // 8 * 8 * columns :][: 8 * columns].reshape(columns, 8)[:, k % 8]
        return matrix

    def ends(matrix: torch.Tensor) -> torch.Tensor:
        """The biases; behind them are the sums of the columns."""
        bias, sums = take(matrix.shape[1], torch.float32), take(matrix.shape[1], torch.float32)
        torch.testing.assert_close(sums, matrix.sum(0), rtol=1e-5, atol=1e-5)
        return bias

    def close(matrix: torch.Tensor, expected: torch.Tensor) -> None:
        """``expected`` in the upper left corner, zeros around it."""
        rows, columns = expected.shape
        torch.testing.assert_close(matrix[:rows, :columns], expected, rtol=2**-10, atol=1e-6)
        assert not matrix[rows:].any()
        assert not matrix[:, columns:].any()

    def memory_order(channels: int) -> list[int]:
        """The channel at each place where lane t holds channels 4t … 4t + 3 of 16."""
        order = [4 * t + 2 * r + h for r in range(2) for t in range(4) for h in range(2)]
        return [16 * block + c for block in range(-(-channels // 16)) for c in order]

    order = memory_order(in_channels)
    padded = torch.zeros(len(order), dim)
    padded[:in_channels] = weights.in_weight.flatten(1).t()
    close(torch.cat([planes(deep, dim) for _ in range(-(-in_channels // deep))]), padded[order])

    head_dim, head_columns = dim // 4, 8 * instance.head_tiles
    for head in range(4):
        matrix = torch.cat([planes(deep, 3 * head_columns) for _ in range(16 * steps // deep)])
        bias = ends(matrix)
        for i, (part, factor) in enumerate(((1, 1.0), (2, 1.0), (0, head_dim**-0.5 * math.log2(math.e)))):
            rows = slice(part * dim + head * head_dim, part * dim + (head + 1) * head_dim)
            columns = slice(i * head_columns, (i + 1) * head_columns)
            close(matrix[:, columns], factor * (layer.qkv_weight * layer.norm1_weight)[rows].t())
            expected = factor * (layer.qkv_bias + layer.qkv_weight @ layer.norm1_bias)[rows]
            torch.testing.assert_close(bias[columns][:head_dim], expected)
            assert not bias[columns][head_dim:].any()
    close(torch.cat([planes(deep, dim) for _ in range(16 * steps // deep)]), layer.proj_weight.t())
    for first in range(0, 2 * dim, hidden):
        rows = slice(first, first + hidden)
        matrix = planes(16 * steps, hidden)
        close(matrix, 0.5 * (layer.fc1_weight * layer.norm2_weight)[rows].t())
        expected = 0.5 * (layer.fc1_bias + layer.fc1_weight @ layer.norm2_bias)[rows]
        torch.testing.assert_close(ends(matrix), expected)
        close(planes(hidden, dim), layer.fc2_weight.t()[rows])
    order = memory_order(out_channels)
    panels = [planes(16 * steps, hidden)]
    bias = ends(panels[0])
    assert -(-out_channels // hidden) == 1
    padded = torch.zeros(dim, len(order))
    padded[:, :out_channels] = 0.5 * (weights.out_weight.flatten(1) * weights.norm_weight).t()
    close(panels[0], padded[:, order])
    padded_bias = torch.zeros(len(order))
    padded_bias[:out_channels] = 0.5 * (weights.out_bias + weights.out_weight.flatten(1) @ weights.norm_bias)
    torch.testing.assert_close(bias[: len(order)], padded_bias[order], rtol=1e-5, atol=1e-6)
    assert place == stream.numel()


# --- results ---------------------------------------------------------------------------------------------------------


@instances
@dtypes
@on_kernels
def test_published_shapes(instance, dtype, backend, device) -> None:
    case = case_of(instance, layers=2)
    result = judge(case, launch(case, dtype, backend=backend, device=device), case.build()[0].to(dtype), dtype)
    assert result.passed, f"error {result.error:.2e}, stock {result.stock_error:.2e}, ratio {result.ratio:.2f}"


@pytest.mark.parametrize("channels", [(8, 136), (104, 24)], ids=["8 to 136 channels", "104 to 24 channels"])
@pytest.mark.parametrize("instance", [WGMMA_INSTANCES[4], WGMMA_INSTANCES[8]], ids=["120", "240"])
@on_kernels
def test_channels_in_and_out(instance, channels, backend, device) -> None:
    """Chunks of W_in and W_out that are not full."""
    case = case_of(instance, channels=channels)
    y = launch(case, torch.float16, backend=backend, device=device)
    result = judge(case, y, case.build()[0].half(), torch.float16)
    assert result.passed, f"error {result.error:.2e}, stock {result.stock_error:.2e}, ratio {result.ratio:.2f}"


@instances
@on_kernels
def test_every_place_in_a_batch_gives_the_same_bits(instance, backend, device) -> None:
    """A NaN image beside it changes nothing either."""
    batch = 2 if instance.tokens > 16 else 5
    case = case_of(instance, batch=batch)
    x = case.build()[0].half()
    whole = launch(case, torch.float16, x, backend, device)
    assert torch.equal(launch(case, torch.float16, x[1:], backend, device), whole[1:])
    x[0, 3, 2, 2] = float("nan")
    beside = launch(case, torch.float16, x, backend, device)
    assert torch.equal(beside[1:], whole[1:])
    assert beside[0, :, ::2, ::2].isnan().all()  # every token of the sequence
    assert torch.equal(beside[0, :, 1::2], whole[0, :, 1::2])


@pytest.mark.parametrize("instance", [WGMMA_INSTANCES[2], WGMMA_INSTANCES[5], WGMMA_INSTANCES[8]], ids=str)
def test_schedules(instance: WgmmaInstance) -> None:
    """Any interleaving of warps: no fault, the same bits."""
    case = case_of(instance)
    first = launch(case, torch.float16)
    try:
        for seed in range(1, 4):
            simt.library().set_seed(seed)
            assert torch.equal(launch(case, torch.float16), first)
    finally:
        simt.library().set_seed(0)


@instances
def test_counts(instance: WgmmaInstance) -> None:
    """Of a full block: products near the fewest, no bank conflicts, weights once a block."""
    skip_unless_available("simt")
    per_image = 4 * instance.tokens
    case = case_of(instance, batch=-(-instance.rows // per_image), layers=2, channels=(64, 64))
    library = simt.library()
    weights = case.build()[1]
    library.reset_counters()
    launch(case, torch.float16)
    counted = library.counters()
    rows, dim, tokens = case.x_shape[0] * per_image, instance.dim, instance.tokens
    layer = 8 * dim * dim + 2 * tokens * dim
    least = rows * (2 * 64 * dim + 2 * layer) / 2048
    products = counted.wgmma_m16n8k16 + counted.mma_m16n8k16 + counted.mma_m16n8k8 / 2
    assert products <= MOST_PRODUCTS[dim, tokens] * least, products / least
    assert counted.wgmma_shared_bytes <= 108 * counted.wgmma_m16n8k16
    for conflicts in (counted.shared_load_conflicts, counted.shared_store_conflicts, counted.matrix_load_conflicts):
        assert conflicts == 0
    packed = transformer_wgmma.pack_stream(weights, torch.float16, instance)
    moved = library.launches[-1].traffic["weights"].read
    assert moved == packed.numel() * counted.blocks


# Times the fewest: heads padded to 16 channels in Q · Kᵀ and to 8 elsewhere, 64 channels in and out to whole chunks.
MOST_PRODUCTS = {
    (64, 256): 1.0, (96, 256): 1.08, (144, 256): 1.12,
    (80, 64): 1.14, (120, 64): 1.09, (192, 64): 1.0,
    (96, 16): 1.02, (144, 16): 1.07, (240, 16): 1.05,
}  # fmt: skip


def test_refusals() -> None:
    skip_unless_available("simt")
    case = case_of(WGMMA_INSTANCES[6])
    x, weights, options = case.build()
    x = x.half().contiguous(memory_format=torch.channels_last)
    packed = mvk.pack(weights, torch.float16, "cpu", "simt")
    slot = Slot.like(x)
    (way,) = (w for name, w in native.alternatives(slot, packed, **options).items() if name.startswith("wgmma"))
    (call,) = way
    library = simt.library()
    for change, message in (
        ({"dim": 104}, "no kernel of 104 channels and 16 tokens"),
        ({"height": 10}, "no kernel of 96 channels and 20 tokens"),
        ({"height": 7}, "expected whole patches"),
        ({"out_channels": 12}, "multiples of 8"),
        ({"weight_units": 3}, "weights: expected"),
    ):
        inputs = {name: x if isinstance(value, Slot) else value for name, value in call.inputs.items()}
        with pytest.raises((RuntimeError, ValueError, SimulatorFault), match=message):
            library.launch("transformer_wgmma", inputs, torch.empty_like(x), {**call.sizes, **change}, False)
