"""inverted_residual's CUDA kernel: every published shape, configurations, schedules; on the simulator and on a GPU."""

from __future__ import annotations

import time

import pytest
import torch
from conftest import backend_params, skip_unless_available

import mobilevit_kernels as mvk
from mobilevit_kernels import native, simt, verify
from mobilevit_kernels.native import inverted_residual
from mobilevit_kernels.packed import Packed
from mobilevit_kernels.simt import SimulatorFault
from mobilevit_kernels.verify import StageCase

PUBLISHED = sorted(
    {
        (case.sizes, case.options["stride"], case.options["residual"])
        for _, _, case in verify.network_cases()
        if case.stage == "inverted_residual"
    }
)
GENERAL = [  # channels off the published ones, wide outputs (two passes), dilation beyond the map
    StageCase("inverted_residual", (8, 8, 8), (1, 8, 3, 5), {"residual": True}),
    StageCase("inverted_residual", (40, 72, 104), (3, 40, 9, 17)),
    StageCase("inverted_residual", (40, 72, 200), (1, 40, 6, 7), {"stride": 2}),
    StageCase("inverted_residual", (168, 24, 168), (1, 168, 5, 3), {"residual": True}),
    StageCase("inverted_residual", (256, 64, 48), (1, 256, 7, 9), {"stride": 2}),
    StageCase("inverted_residual", (16, 32, 16), (2, 16, 7, 10), {"dilation": 3, "residual": True}),
    StageCase("inverted_residual", (16, 32, 24), (1, 16, 9, 8), {"dilation": 16}),
    StageCase("inverted_residual", (16, 32, 24), (1, 16, 15, 11), {"stride": 2, "dilation": 3}),
    StageCase("inverted_residual", (16, 32, 24), (1, 16, 1, 40), {"stride": 2}),
]
on_kernels = pytest.mark.parametrize(("backend", "device"), backend_params("simt", "cuda"))
dtypes = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])


def check(case: StageCase, backend: str, dtype: torch.dtype, device: str) -> None:
    skip_unless_available(backend)
    result = verify.check_stage(case, backend, dtype, device)
    assert result.passed, f"error {result.error:.2e}, stock {result.stock_error:.2e}, ratio {result.ratio:.2f}"


@pytest.mark.parametrize(("sizes", "stride", "residual"), PUBLISHED, ids=str)
@dtypes
@on_kernels
def test_published_shapes(sizes, stride, residual, dtype, backend, device) -> None:
    check(
        StageCase("inverted_residual", sizes, (2, sizes[0], 19, 17), {"stride": stride, "residual": residual}),
        backend, dtype, device,
    )  # fmt: skip


@pytest.mark.parametrize("case", GENERAL, ids=str)
@dtypes
@on_kernels
def test_general_shapes(case, dtype, backend, device) -> None:
    check(case, backend, dtype, device)


def launch(case: StageCase, chunk: int, x: torch.Tensor | None = None) -> torch.Tensor:
    """The stage on the simulator with the records packed for ``chunk``."""
    own, weights, options = case.build()
    x = (own.half() if x is None else x).contiguous(memory_format=torch.channels_last)
    records = inverted_residual.pack_chunks(weights, torch.float16, chunk)
    tensors = (records, weights.project_bias, torch.tensor(chunk, dtype=torch.int32))
    packed = Packed("inverted_residual", "simt", torch.float16, x.device, tensors, case.sizes)
    return inverted_residual.run(x, packed, **{"stride": 1, "dilation": 1, "residual": False, **options})


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("chunk", [inverted_residual.SMALL_CHUNK, inverted_residual.LARGE_CHUNK])
def test_silent_under_100_schedules(stride: int, chunk: int) -> None:
    skip_unless_available("simt")
    case = StageCase("inverted_residual", (24, 80, 40), (1, 24, 11, 18), {"stride": stride})
    library = simt.library()
    expected = launch(case, chunk)
    library.reset_counters()
    launch(case, chunk)
    counted = library.counters()
    for seed in range(1, 100):
        library.set_seed(seed)
        library.reset_counters()
        assert torch.equal(launch(case, chunk), expected), f"seed {seed}"
        assert library.counters() == counted
    library.set_seed(0)


@pytest.mark.parametrize("limit", [101376, 166912])  # sm_86 / sm_89 / sm_120, sm_80
def test_smaller_shared_memory(limit: int) -> None:
    skip_unless_available("simt")
    library = simt.library()
    library.set_shared_limit(limit)
    try:
        for sizes, stride, residual in PUBLISHED:
            options = {"stride": stride, "residual": residual}
            case = StageCase("inverted_residual", sizes, (1, sizes[0], 6, 9), options)
            assert verify.check_stage(case, "simt", torch.float16).passed
    finally:
        library.set_shared_limit()


def test_too_little_shared_memory_is_refused_in_words() -> None:
    skip_unless_available("simt")
    library = simt.library()
    library.set_shared_limit(49152)
    case = StageCase("inverted_residual", (128, 512, 160), (1, 128, 4, 4), {"stride": 2})
    try:
        with pytest.raises(ValueError, match=r"128 → 512 → 160 channels at stride 2 need \d+ bytes of shared memory"):
            verify.check_stage(case, "simt", torch.float16)
    finally:
        library.set_shared_limit()


def test_a_buffer_too_short_is_reported() -> None:
    skip_unless_available("simt")
    case = StageCase("inverted_residual", (16, 32, 16), (1, 16, 8, 8))
    _, weights, _ = case.build()
    records = inverted_residual.pack_chunks(weights, torch.float16, 64)
    tensors = (records[:-8], weights.project_bias, torch.tensor(64, dtype=torch.int32))
    packed = Packed("inverted_residual", "simt", torch.float16, torch.device("cpu"), tensors, case.sizes)
    x = torch.zeros(1, 16, 8, 8, dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    with pytest.raises(SimulatorFault, match="no registered buffer holds"):
        inverted_residual.run(x, packed, stride=1, dilation=1, residual=False)


def test_nothing_is_written_outside_of_the_output() -> None:
    skip_unless_available("simt")
    case = StageCase("inverted_residual", (16, 32, 24), (3, 16, 7, 9))
    x, weights, _ = case.build()
    packed = mvk.pack(weights, torch.float16, backend="simt")
    margin, size = 64, 3 * 24 * 7 * 9
    around = torch.full((size + 2 * margin,), float("nan"), dtype=torch.float16)
    output = around[margin : margin + size].reshape(3, 7, 9, 24).permute(0, 3, 1, 2)
    records, bias, chunk = packed.tensors
    x = x.half().contiguous(memory_format=torch.channels_last)
    sizes = {"batch": 3, "height": 7, "width": 9, "in_channels": 16, "hidden_channels": 32, "out_channels": 24}
    sizes |= {"stride": 1, "dilation": 1, "chunk": int(chunk), "residual": False}
    simt.library().launch("inverted_residual", {"x": x, "weights": records, "bias": bias}, output, sizes, False)
    assert output.isfinite().all()
    assert around[:margin].isnan().all()
    assert around[margin + size :].isnan().all()


def test_unaligned_batch_slices() -> None:
    skip_unless_available("simt")
    case = StageCase("inverted_residual", (24, 48, 24), (3, 24, 5, 5), {"residual": True})
    x, weights, options = case.build()
    x = x.half()
    packed = mvk.pack(weights, torch.float16, backend="simt")
    whole = mvk.ops.inverted_residual(x, packed, **options)
    assert torch.equal(mvk.ops.inverted_residual(x[1:], packed, **options), whole[1:])


def test_a_whole_map_simulates_in_under_a_minute() -> None:
    skip_unless_available("simt")
    case = StageCase("inverted_residual", (64, 256, 64), (1, 64, 64, 64), {"residual": True})
    begin = time.perf_counter()
    assert verify.check_stage(case, "simt", torch.float16).passed
    assert time.perf_counter() - begin < 60


def test_refusals() -> None:
    skip_unless_available("simt")
    with pytest.raises(mvk.BackendUnavailable, match=r"out_channels: expected a multiple of 8, got 12"):
        mvk.pack(StageCase("inverted_residual", (16, 32, 12), (1, 16, 4, 4)).build()[1], torch.float16, backend="simt")
    with pytest.raises(mvk.BackendUnavailable, match=r"float16 and bfloat16, not in float32"):
        mvk.pack(StageCase("inverted_residual", (16, 32, 16), (1, 16, 4, 4)).build()[1], torch.float32, backend="simt")
    assert native.refusal("simt", "no such stage", None, torch.float16, torch.device("cpu")) is not None


def test_architectures_and_capabilities() -> None:
    from mobilevit_kernels.cuda import serves

    assert serves("90a", (9, 0))
    assert not serves("90a", (10, 0))
    assert serves("80/90a", (8, 9))
    assert not serves("86", (8, 0))
    assert serves("80/120-ptx", (12, 1))
    assert not serves("80/120", (13, 0))
