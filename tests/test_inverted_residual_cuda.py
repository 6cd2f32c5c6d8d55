"""inverted_residual's CUDA kernel: every published shape, configurations, schedules; on the simulator and on a GPU."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator

import pytest
import torch
from conftest import backend_params, judge, skip_unless_available

import mobilevit_kernels as mvk
from mobilevit_kernels import native, simt, verify
from mobilevit_kernels.native import inverted_residual
from mobilevit_kernels.native.launches import Slot, execute, map_slot
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


# The row kernel, each warp for itself, or hidden channels dealt to a block's warps. A number: the tile kernel with
# chunks of that many hidden channels; two: and that many blocks of a cluster that share a tile.
ROWS, DEALT = "rows", "dealt"
Kernel = int | str | tuple[int, int]
SMALL, LARGE = inverted_residual.SMALL_CHUNK, inverted_residual.LARGE_CHUNK


def launch(case: StageCase, kernel: Kernel, x: torch.Tensor | None = None, dtype=torch.float16) -> torch.Tensor:
    """The stage on the simulator by one of its kernels."""
    chunk, blocks = kernel if isinstance(kernel, tuple) else (LARGE if isinstance(kernel, str) else kernel, 0)
    own, weights, options = case.build()
    x = (own if x is None else x).to(dtype).contiguous(memory_format=torch.channels_last)
    if kernel in (ROWS, DEALT):
        assert options["stride"] in inverted_residual.row_strides("simt", case.sizes, x.device)
        rows = inverted_residual.pack_rows(weights, dtype)
    else:
        rows = torch.empty(0, dtype=dtype)
    tensors = (inverted_residual.pack_chunks(weights, dtype, chunk), weights.project_bias, rows)
    packed = Packed("inverted_residual", "simt", dtype, x.device, tensors, case.sizes)
    options = {"stride": 1, "dilation": 1, "residual": False, **options}
    with form(kernel):
        slot = Slot.like(x)
        named = inverted_residual.split(blocks) if blocks else inverted_residual.DEALT if kernel == DEALT else None
        (call,) = inverted_residual.launches(slot, packed, **options, form=named)
        assert call.sizes["cluster_blocks"] == blocks
        assert call.sizes["dealt"] == (kernel == DEALT)
        return execute("simt", [call], {slot: x})


@contextlib.contextmanager
def form(kernel: Kernel, backend: str = "simt") -> Iterator[None]:
    """Makes the row kernel deal hidden channels, or not, whatever the pixels; no tile is split without being asked."""
    library = native.library(backend)
    library.multiprocessors = lambda device: 1_000_000 if kernel == DEALT else 0  # type: ignore[method-assign]
    has_clusters = library.has_clusters
    library.has_clusters = lambda device: kernel != DEALT and has_clusters(device)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del library.multiprocessors
        del library.has_clusters


@contextlib.contextmanager
def multiprocessors(count: int) -> Iterator[None]:
    simt.library().set_grid_multiprocessors(count)
    try:
        yield
    finally:
        simt.library().set_grid_multiprocessors()


SILENT = [
    *((StageCase("inverted_residual", (24, 80, 40), (1, 24, 11, 18), {"stride": s}), k)
      for s in (1, 2) for k in (SMALL, LARGE)),
    (StageCase("inverted_residual", (24, 48, 24), (1, 24, 7, 18), {"stride": 1, "residual": True}), ROWS),
    (StageCase("inverted_residual", (16, 32, 24), (1, 16, 7, 18), {"stride": 2}), ROWS),
    (StageCase("inverted_residual", (96, 104, 128), (1, 96, 7, 18), {"stride": 2}), ROWS),  # four chunks, then three
    (StageCase("inverted_residual", (48, 136, 48), (1, 48, 7, 18), {"stride": 1, "residual": True}), DEALT),
    (StageCase("inverted_residual", (32, 128, 64), (1, 32, 7, 18), {"stride": 2}), DEALT),
    (StageCase("inverted_residual", (24, 152, 40), (1, 24, 7, 9), {"stride": 2}), (LARGE, 2)),
    (StageCase("inverted_residual", (24, 152, 24), (1, 24, 6, 7), {"stride": 1, "residual": True}), (SMALL, 5)),
]  # fmt: skip


@pytest.mark.parametrize(("case", "kernel"), SILENT, ids=str)
def test_silent_under_many_schedules(case: StageCase, kernel: Kernel, schedules: range) -> None:
    skip_unless_available("simt")
    library = simt.library()
    results = []
    try:
        for seed in schedules:
            library.set_seed(seed)
            library.reset_counters()
            results.append((launch(case, kernel), library.counters()))
    finally:
        library.set_seed(0)
    for seed, (result, counted) in zip(schedules, results, strict=True):
        assert torch.equal(result, results[0][0]), f"seed {seed}"
        assert counted == results[0][1], f"seed {seed}"


SERVED_BY_ROWS = [(sizes, s, r) for sizes, s, r in PUBLISHED if sizes[0] < 128]
TWO_PASSES = [(80, 320, 96), (96, 384, 128)]  # at stride 2; these cannot be dealt
CAN_BE_DEALT = [case for case in SERVED_BY_ROWS if case[0][1] >= 128 and case[0] not in TWO_PASSES]


def test_the_row_kernel_serves_the_large_maps() -> None:
    skip_unless_available("simt")
    for sizes, stride, _ in PUBLISHED:
        served = stride in inverted_residual.row_strides("simt", sizes, torch.device("cpu"))
        assert served == (sizes[0] < 128), sizes
        needed = simt.library().rows_workspace_bytes(sizes[0], sizes[2], stride, 256, 32, 32)
        # Sums of whole steps: 16 output pixels of a row, of which strips share one, and a column between images.
        least = 4 * 256 * 16 * 16 * sizes[2] if sizes in TWO_PASSES else 0
        assert least <= needed <= 1.2 * least, sizes


def test_dealing_is_for_few_pixels() -> None:
    skip_unless_available("simt")
    for sizes, stride, _ in SERVED_BY_ROWS:
        packed = mvk.pack(StageCase("inverted_residual", sizes, (1, sizes[0], 4, 4)).build()[1], backend="simt",
                          dtype=torch.float16)  # fmt: skip
        pixels = inverted_residual.dealt_pixels(packed, stride)
        assert (pixels > 0) == (sizes[1] >= 192 and sizes not in TWO_PASSES), sizes
        # On 132 multiprocessors: from one image on 64 × 64 pixels to four on 32 × 32.
        assert pixels == 0 or 3900 <= pixels <= 13000, sizes
        options = {"stride": stride, "dilation": 1, "residual": False}
        for batch, dealt in ((pixels // 4, True), (pixels // 4 + 1, False)):
            if batch:
                x = map_slot(batch, sizes[0], 2 * stride, 2 * stride, torch.float16)
                (call,) = inverted_residual.launches(x, packed, **options)
                assert call.sizes["dealt"] == (dealt and pixels > 0)
        assert (f"{pixels} output pixels" in inverted_residual.variant(packed)) == (pixels > 0)


def test_at_stride_2_tiles_are_split_before_channels_are_dealt() -> None:
    """On 132 multiprocessors, where 29 clusters of four blocks run at once; but not where there are no clusters."""
    skip_unless_available("simt")
    library = simt.library()
    for sizes, stride, size, expected in (
        ((64, 256, 80), 2, 32, {1: 4, 3: 4, 4: 0}),  # 8 tiles an image
        ((64, 256, 96), 2, 64, {1: 0}),
        ((48, 192, 64), 2, 64, {1: 0}),
        ((64, 256, 64), 1, 64, {1: 0}),
    ):
        weights = StageCase("inverted_residual", sizes, (1, sizes[0], 4, 4)).build()[1]
        packed = mvk.pack(weights, torch.float16, backend="simt")
        options = {"stride": stride, "dilation": 1, "residual": False}
        for batch, blocks in expected.items():
            x = map_slot(batch, sizes[0], size, size, torch.float16)
            pixels = batch * (size // stride) ** 2
            few = pixels <= inverted_residual.dealt_pixels(packed, stride)
            names = [*inverted_residual.alternatives(x, packed, **options)]
            assert {inverted_residual.DEALT, inverted_residual.ROWS, inverted_residual.TILES} <= {*names}
            unsplit = inverted_residual.DEALT if few else inverted_residual.ROWS
            assert names[0] == (inverted_residual.split(blocks) if blocks else unsplit), (sizes, batch)
        text = ", but split over clusters up to 29 tiles of 4 × 8 pixels at stride 2)"
        assert (text in inverted_residual.variant(packed)) == (stride == 2), sizes
    weights = StageCase("inverted_residual", (64, 256, 80), (1, 64, 4, 4)).build()[1]
    packed = mvk.pack(weights, torch.float16, backend="simt")
    x = map_slot(1, 64, 32, 32, torch.float16)
    library.has_clusters = lambda device: False  # type: ignore[method-assign]
    try:
        assert "clusters" not in inverted_residual.variant(packed)
        names = [*inverted_residual.alternatives(x, packed, stride=2, dilation=1, residual=False)]
        assert names[0] == inverted_residual.DEALT
    finally:
        del library.has_clusters


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("sizes", "stride", "residual", "kernel"),
    [(*case, ROWS) for case in SERVED_BY_ROWS] + [(*case, DEALT) for case in CAN_BE_DEALT],
    ids=str,
)
@on_kernels
def test_forms_of_the_row_kernel_on_published_shapes(sizes, stride, residual, kernel, dtype, backend, device) -> None:
    skip_unless_available(backend)
    case = StageCase("inverted_residual", sizes, (2, sizes[0], 9, 17), {"stride": stride, "residual": residual})
    with form(kernel, backend):
        assert verify.check_stage(case, backend, dtype, device).passed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("sizes", "stride", "shape"),
    [((48, 136, 48), 1, (3, 48, 6, 9)), ((64, 256, 64), 1, (2, 64, 4, 15)), ((32, 144, 48), 2, (3, 32, 9, 11))],
    ids=str,
)
def test_dealt_by_any_cut(sizes, stride, shape, dtype) -> None:
    """Strips, segments, blocks and neighbours in the batch change nothing, bit for bit; and hardly anything undealt."""
    skip_unless_available("simt")
    case = StageCase("inverted_residual", sizes, shape, {"stride": stride, "residual": stride == 1})
    x = case.build()[0].to(dtype)
    whole = launch(case, DEALT, dtype=dtype)
    for count in (2, 132):
        with multiprocessors(count):
            assert torch.equal(launch(case, DEALT, dtype=dtype), whole), f"{count} multiprocessors"
    assert torch.equal(launch(case, DEALT, x[1:], dtype), whole[1:])
    assert torch.equal(launch(case, DEALT, x[:1], dtype), whole[:1])
    undealt = launch(case, ROWS, dtype=dtype)
    assert (whole - undealt).norm() <= 2 * torch.finfo(dtype).eps * undealt.norm()


# Tiles that a cluster shares: fewer pixels than a tile, several tiles, a last chunk that is cut, chunks that the blocks
# cannot share evenly, two passes over the output channels.
SPLIT = [
    (StageCase("inverted_residual", (96, 384, 128), (2, 96, 9, 17), {"stride": 2}), (LARGE, 6)),
    (StageCase("inverted_residual", (128, 512, 160), (2, 128, 7, 9), {"stride": 2}), (LARGE, 8)),
    (StageCase("inverted_residual", (80, 320, 96), (2, 80, 16, 16), {"stride": 2}), (LARGE, 5)),
    (StageCase("inverted_residual", (96, 384, 128), (2, 96, 3, 5), {"stride": 2}), (SMALL, 7)),
    (StageCase("inverted_residual", (40, 200, 200), (3, 40, 6, 7), {"stride": 2}), (LARGE, 3)),
    (StageCase("inverted_residual", (168, 136, 168), (2, 168, 5, 3), {"residual": True}), (LARGE, 2)),
    (StageCase("inverted_residual", (24, 72, 24), (2, 24, 9, 11), {"residual": True}), (SMALL, 3)),
    (StageCase("inverted_residual", (16, 104, 16), (2, 16, 7, 19), {"dilation": 2, "residual": True}), (LARGE, 2)),
    (StageCase("inverted_residual", (16, 104, 24), (2, 16, 15, 11), {"stride": 2, "dilation": 3}), (SMALL, 4)),
    (StageCase("inverted_residual", (8, 512, 8), (2, 8, 1, 1), {"residual": True}), (LARGE, 8)),
]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize(("case", "kernel"), SPLIT, ids=str)
def test_split_over_clusters(case: StageCase, kernel: tuple[int, int], dtype: torch.dtype) -> None:
    """As accurate as the stock computation, the same at every place in the batch, and hardly anything unsplit."""
    skip_unless_available("simt")
    x = case.build()[0].to(dtype)
    whole = launch(case, kernel, dtype=dtype)
    assert judge(case, whole, x, dtype).passed
    assert torch.equal(launch(case, kernel, x[1:], dtype), whole[1:])
    assert torch.equal(launch(case, kernel, x[:1], dtype), whole[:1])
    unsplit = launch(case, kernel[0], dtype=dtype)
    assert (whole - unsplit).norm() <= 2 * torch.finfo(dtype).eps * unsplit.norm()


@on_kernels
def test_small_batches_are_split_over_clusters(backend: str, device: str) -> None:
    """On 132 multiprocessors: as many blocks a tile as run at once; and never where there are no clusters."""
    skip_unless_available(backend)
    library = native.library(backend)
    if not library.has_clusters(torch.device(device)):
        pytest.skip(f"{device} has no thread-block clusters")
    for sizes, height, expected in (
        ((96, 384, 128), 32, {1: 6, 2: 6, 5: 3, 8: 2, 16: 2, 17: 0, 66: 0, 67: ROWS, 256: ROWS}),
        ((128, 512, 160), 16, {1: 8, 7: 8, 8: 4, 14: 4, 16: 3, 32: 2, 66: 2, 67: 0}),
        ((80, 320, 96), 16, {1: 5, 8: 5, 16: 3, 66: 2, 67: 0, 132: 0, 133: ROWS}),
        ((16, 64, 512), 16, {1: 0}),  # one chunk
    ):
        case = StageCase("inverted_residual", sizes, (1, sizes[0], height, height), {"stride": 2})
        weights = case.build()[1]
        packed = mvk.pack(weights, torch.float16, device, backend)
        options = {"stride": 2, "dilation": 1, "residual": False}
        library.multiprocessors = lambda device: 132
        try:
            for batch, form in expected.items():
                blocks = 0 if form == ROWS else form
                x = map_slot(batch, sizes[0], height, height, torch.float16)
                (call,) = inverted_residual.launches(x, packed, **options)
                assert call.sizes["cluster_blocks"] == blocks, (sizes, batch)
                first, *others = inverted_residual.alternatives(x, packed, **options)
                unsplit = inverted_residual.ROWS if form == ROWS else inverted_residual.TILES
                assert first == (inverted_residual.split(blocks) if blocks else unsplit)
                assert bool(call.inputs["row_weights"].numel()) == (form == ROWS)
                assert (call.workspace_bytes > 0) == (form == ROWS) == (call.kernels == 2)
                assert len({first, *others}) == len(others) + 1
            several = sizes[1] > 64
            assert ("132 at stride 2" in inverted_residual.variant(packed)) == several
            library.has_clusters = lambda device: False
            without = [unsplit] if unsplit == inverted_residual.TILES else [unsplit, inverted_residual.TILES]
            assert [*inverted_residual.alternatives(x, packed, **options)] == without
            assert "clusters" not in inverted_residual.variant(packed)
        finally:
            del library.multiprocessors
            library.__dict__.pop("has_clusters", None)


def test_clusters_that_cannot_share_are_refused_in_words() -> None:
    skip_unless_available("simt")
    case = StageCase("inverted_residual", (128, 512, 160), (1, 128, 4, 4), {"stride": 2})
    x, weights, _ = case.build()
    packed = mvk.pack(weights, torch.float16, backend="simt")
    x = x.half().contiguous(memory_format=torch.channels_last)
    slot = Slot.like(x)
    (call,) = inverted_residual.launches(slot, packed, stride=2, dilation=1, residual=False)
    for blocks in (-1, 1, 9):
        refused = dataclasses.replace(call, sizes={**call.sizes, "cluster_blocks": blocks})
        with pytest.raises(ValueError, match=f"cluster_blocks: expected 0, or 2 to 8 and .* 8 chunks, got {blocks}"):
            execute("simt", [refused], {slot: x})
    library = simt.library()
    library.set_shared_limit(150_000)
    try:
        with pytest.raises(ValueError, match=r"split over 8 blocks, need \d+ bytes of shared memory a block"):
            execute("simt", [call], {slot: x})
    finally:
        library.set_shared_limit()


# The row kernel serves these shapes in test_published_shapes; here the tile kernel does.
@pytest.mark.parametrize(("sizes", "stride", "residual"), SERVED_BY_ROWS, ids=str)
def test_tile_kernel_on_shapes_of_the_row_kernel(sizes, stride, residual) -> None:
    skip_unless_available("simt")
    case = StageCase("inverted_residual", sizes, (1, sizes[0], 9, 17), {"stride": stride, "residual": residual})
    assert judge(case, launch(case, LARGE), case.build()[0].half(), torch.float16).passed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("sizes", "stride", "shape"),
    [
        ((24, 48, 24), 1, (3, 24, 13, 9)),  # odd maps, several images a strip
        ((24, 48, 24), 1, (2, 24, 3, 1)),
        ((48, 80, 48), 1, (2, 48, 6, 29)),  # one m-tile; hidden channels that end within a chunk's word pairs
        ((24, 40, 48), 2, (3, 24, 9, 11)),
        ((16, 32, 24), 2, (2, 16, 8, 62)),
        ((16, 32, 24), 2, (5, 16, 1, 2)),
        ((80, 320, 96), 2, (3, 80, 5, 17)),
        ((96, 384, 128), 2, (2, 96, 9, 11)),
    ],
    ids=str,
)
def test_row_kernel_by_any_cut(sizes, stride, shape, dtype) -> None:
    """Strips, segments, blocks and neighbours in the batch change nothing, bit for bit."""
    skip_unless_available("simt")
    case = StageCase("inverted_residual", sizes, shape, {"stride": stride, "residual": stride == 1})
    x = case.build()[0].to(dtype)
    whole = launch(case, ROWS, dtype=dtype)
    assert judge(case, whole, x, dtype).passed
    for count in (2, 132):
        with multiprocessors(count):
            assert torch.equal(launch(case, ROWS, dtype=dtype), whole), f"{count} multiprocessors"
    assert torch.equal(launch(case, ROWS, x[1:], dtype), whole[1:])
    assert torch.equal(launch(case, ROWS, x[:1], dtype), whole[:1])


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
    case = StageCase("inverted_residual", (128, 512, 160), (1, 128, 4, 4), {"stride": 2})
    weights = case.build()[1]
    packed = mvk.pack(weights, torch.float16, backend="simt")
    library.set_shared_limit(49152)
    try:
        with pytest.raises(mvk.BackendUnavailable, match=r"128 → 512 → 160 channels need \d+ bytes of shared memory"):
            mvk.pack(weights, torch.float16, backend="simt")
        with pytest.raises(ValueError, match=r"128 → 512 → 160 channels at stride 2 need \d+ bytes of shared memory"):
            mvk.ops.inverted_residual(torch.zeros(1, 128, 4, 4).half(), packed, stride=2)
    finally:
        library.set_shared_limit()


def test_a_buffer_too_short_is_reported() -> None:
    skip_unless_available("simt")
    case = StageCase("inverted_residual", (16, 32, 16), (1, 16, 8, 8))
    _, weights, _ = case.build()
    records = inverted_residual.pack_chunks(weights, torch.float16, 64)
    tensors = (records[..., :-1].contiguous(), weights.project_bias, torch.empty(0, dtype=torch.float16))
    packed = Packed("inverted_residual", "simt", torch.float16, torch.device("cpu"), tensors, case.sizes)
    x = torch.zeros(1, 16, 8, 8, dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    with pytest.raises(SimulatorFault, match="no registered buffer holds"):
        inverted_residual.run(x, packed, stride=1, dilation=1, residual=False)


@pytest.mark.parametrize(("stride", "height", "width"), [(1, 7, 9), (2, 7, 9)], ids=["tiles", "rows"])
def test_nothing_is_written_outside_of_the_output(stride: int, height: int, width: int) -> None:
    skip_unless_available("simt")
    case = StageCase("inverted_residual", (16, 32, 24), (3, 16, height, width))
    x, weights, _ = case.build()
    records, bias, rows = mvk.pack(weights, torch.float16, backend="simt").tensors
    assert rows.numel() > 0, "the row kernel serves 16 → 24 channels at stride 2"
    height, width = (height - 1) // stride + 1, (width - 1) // stride + 1
    margin, size = 64, 3 * 24 * height * width
    around = torch.full((size + 2 * margin,), float("nan"), dtype=torch.float16)
    output = around[margin : margin + size].reshape(3, height, width, 24).permute(0, 3, 1, 2)
    x = x.half().contiguous(memory_format=torch.channels_last)
    sizes = {"batch": 3, "height": 7, "width": 9, "in_channels": 16, "hidden_channels": 32, "out_channels": 24}
    sizes |= {"stride": stride, "dilation": 1, "chunk": records.shape[2], "residual": False}
    inputs = {"x": x, "weights": records, "row_weights": rows, "bias": bias}
    simt.library().launch("inverted_residual", inputs, output, sizes, False)
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
    with pytest.raises(mvk.BackendUnavailable, match=r"2048 → 16 → 8 channels need \d+ bytes of shared memory a block"):
        mvk.pack(
            StageCase("inverted_residual", (2048, 16, 8), (1, 2048, 1, 1)).build()[1], torch.float16, backend="simt"
        )
    with pytest.raises(mvk.BackendUnavailable, match=r"float16 and bfloat16, not in float32"):
        mvk.pack(StageCase("inverted_residual", (16, 32, 16), (1, 16, 4, 4)).build()[1], torch.float32, backend="simt")
    assert native.refusal("simt", "no such stage", None, torch.float16, torch.device("cpu")) is not None


def test_architectures_and_capabilities() -> None:
    from mobilevit_kernels.cuda import knows_clusters, serves

    assert serves("90a", (9, 0))
    assert not serves("90a", (10, 0))
    assert serves("80/90a", (8, 9))
    assert not serves("86", (8, 0))
    assert serves("80/120-ptx", (12, 1))
    assert not serves("80/120", (13, 0))
    # Clusters: what is compiled for sm_90 and newer knows them. PTX of an older architecture runs there, and does not.
    assert knows_clusters("80/90a", (9, 0))
    assert knows_clusters("80/100/120-ptx", (12, 1))
    assert not knows_clusters("80/80-ptx", (9, 0))
    assert not knows_clusters("90a/80-ptx", (10, 0))
    assert not knows_clusters("80/90a", (8, 0))
