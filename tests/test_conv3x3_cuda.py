"""conv3x3's CUDA kernel: every published shape, every tile, schedules, the tiling; on the simulator and on a GPU."""

from __future__ import annotations

import pytest
import torch
from conftest import backend_params, skip_unless_available

import mobilevit_kernels as mvk
from mobilevit_kernels import native, simt, verify
from mobilevit_kernels.native import conv3x3, conv3x3_tiling
from mobilevit_kernels.native.fragments import deal_channels, to_b_tiles
from mobilevit_kernels.native.launches import Slot
from mobilevit_kernels.simt import SimulatorFault
from mobilevit_kernels.verify import StageCase

PUBLISHED = sorted({(case.sizes, "x2_channels" in case.options) for _, _, case in verify.network_cases()
                    if case.stage == "conv3x3"})  # fmt: skip
GENERAL = [  # channels off the published ones, inputs that split a k-step, dilation beyond the map, one pixel
    StageCase("conv3x3", (8, 8), (1, 8, 3, 5)),
    StageCase("conv3x3", (40, 104), (3, 40, 9, 17)),
    StageCase("conv3x3", (24, 200), (1, 24, 10, 6), {"activation": "none"}),
    StageCase("conv3x3", (40, 24), (2, 8, 9, 9), {"x2_channels": 32}),
    StageCase("conv3x3", (40, 24), (1, 20, 5, 9), {"x2_channels": 20}),
    StageCase("conv3x3", (16, 16), (2, 16, 7, 10), {"dilation": 3}),
    StageCase("conv3x3", (16, 24), (1, 16, 9, 8), {"dilation": 16}),
    StageCase("conv3x3", (24, 16), (1, 16, 1, 1), {"x2_channels": 8}),
    StageCase("conv3x3", (16, 16), (1, 16, 1, 40)),
]
on_kernels = pytest.mark.parametrize(("backend", "device"), backend_params("simt", "cuda"))
dtypes = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
NAMES = {number: tile.name for number, tile in conv3x3_tiling.numbered(wgmma=True).items()}
tiles = pytest.mark.parametrize("tile", NAMES, ids=NAMES.values())


def launch(case: StageCase, tile: int, backend: str = "simt", device: str = "cpu", dtype=torch.float16) -> torch.Tensor:
    """The stage with a tile of one's choice; skips where the device does not have it."""
    if tile in conv3x3_tiling.WGMMA_TILES and not native.library(backend).has_wgmma(torch.device(device)):
        pytest.skip("no wgmma: it is of compute capability 9.0, and of a build for sm_90a")
    x, weights, options = case.build()

    def move(value: torch.Tensor) -> torch.Tensor:
        return value.to(device, dtype).contiguous(memory_format=torch.channels_last)

    packed = mvk.pack(weights, dtype, device, backend)
    x2 = move(options["x2"]) if "x2" in options else None
    options = {"dilation": 1, "activation": "silu"} | options | {"x2": x2}
    return conv3x3.run(move(x), packed, **options, tile=tile)


def judge(case: StageCase, y: torch.Tensor, backend: str, dtype: torch.dtype) -> None:
    x, weights, options = case.build()
    rounded = {name: v.to(dtype) if isinstance(v, torch.Tensor) else v for name, v in options.items()}
    truth = verify.reference("conv3x3", x.to(dtype), weights, **rounded)
    stock = verify.reference("conv3x3", x.to(dtype), weights, dtype=dtype, **rounded)
    result = verify.judge(str(case), backend, dtype, y.cpu(), truth, stock, verify.MAX_STAGE_RATIO)
    assert result.passed, f"error {result.error:.2e}, stock {result.stock_error:.2e}, ratio {result.ratio:.2f}"


@pytest.mark.parametrize(("sizes", "two_inputs"), PUBLISHED, ids=str)
@on_kernels
def test_published_shapes(sizes, two_inputs, backend, device) -> None:
    skip_unless_available(backend)
    channels = sizes[1]
    case = StageCase("conv3x3", sizes, (2, channels, 9, 7), {"x2_channels": channels} if two_inputs else {})
    result = verify.check_stage(case, backend, torch.float16, device)
    assert result.passed, f"error {result.error:.2e}, stock {result.stock_error:.2e}, ratio {result.ratio:.2f}"


@pytest.mark.parametrize("case", GENERAL, ids=str)
@dtypes
@tiles
@on_kernels
def test_general_shapes_in_every_tile(case, dtype, tile, backend, device) -> None:
    skip_unless_available(backend)
    judge(case, launch(case, tile, backend, device, dtype), backend, dtype)


@pytest.mark.parametrize("out_channels", [48, 64, 80, 96, 128, 160, 192])
@pytest.mark.parametrize("tile", [3, 4, 5], ids=[NAMES[tile] for tile in (3, 4, 5)])
@on_kernels
def test_every_width_of_the_large_tiles(out_channels, tile, backend, device) -> None:
    skip_unless_available(backend)
    case = StageCase("conv3x3", (24, out_channels), (5, 24, 8, 7))
    judge(case, launch(case, tile, backend, device), backend, torch.float16)


@tiles
def test_silent_under_many_schedules(tile: int) -> None:
    skip_unless_available("simt")
    case = StageCase("conv3x3", (152, 40), (1, 88, 9, 11), {"x2_channels": 64})
    library = simt.library()
    library.reset_counters()
    expected = launch(case, tile)
    counted = library.counters()
    for seed in range(1, 12):
        library.set_seed(seed)
        library.reset_counters()
        assert torch.equal(launch(case, tile), expected), f"seed {seed}"
        assert library.counters() == counted
    library.set_seed(0)


@tiles
def test_no_bank_conflicts_and_no_padding_at_the_published_sizes(tile: int) -> None:
    skip_unless_available("simt")
    library = simt.library()
    library.reset_counters()
    launch(StageCase("conv3x3", (64, 96), (4, 64, 8, 8)), tile)
    counted = library.counters()
    assert counted.matrix_load_conflicts == 0
    assert counted.shared_load_conflicts == 0
    assert counted.shared_store_conflicts == 0
    assert counted.async_copy_conflicts == 0 or tile not in conv3x3_tiling.WGMMA_TILES
    assert counted.mma_m16n8k16 + counted.wgmma_m16n8k16 == 4 * 64 * 96 * 64 * 9 // 2048
    assert counted.mufu == 4 * 64 * 96
    if tile in conv3x3_tiling.WGMMA_TILES:
        assert counted.wgmma_shared_bytes <= 107 * counted.wgmma_m16n8k16
        assert counted.matrix_load_wavefronts == 0
        assert counted.global_read_bytes <= (26 if tile == 5 else 44) * counted.wgmma_m16n8k16
    elif conv3x3_tiling.TILES[tile].name == "large":  # bytes an mma: shared memory binds from 206 on, L2 from 39
        assert (counted.matrix_load_wavefronts + counted.shared_load_wavefronts) * 128 <= 112 * counted.mma_m16n8k16
        assert counted.global_read_bytes <= 26 * counted.mma_m16n8k16


def test_batches_of_0_1_and_3_agree() -> None:
    skip_unless_available("simt")
    x, weights, _ = StageCase("conv3x3", (32, 32), (3, 32, 8, 8)).build()
    packed = mvk.pack(weights, torch.float16, backend="simt")
    y = mvk.ops.conv3x3(x.half(), packed)
    assert mvk.ops.conv3x3(x[:0].half(), packed).shape == (0, 32, 8, 8)
    for i in range(3):
        assert torch.equal(mvk.ops.conv3x3(x[i : i + 1].half(), packed), y[i : i + 1])


def test_nothing_is_written_outside_of_the_output() -> None:
    skip_unless_available("simt")
    case = StageCase("conv3x3", (16, 24), (3, 16, 7, 9))
    x, weights, _ = case.build()
    fragments, bias, _ = mvk.pack(weights, torch.float16, backend="simt").tensors
    margin, size = 64, 3 * 24 * 7 * 9
    x = x.half().contiguous(memory_format=torch.channels_last)
    sizes = {"batch": 3, "height": 7, "width": 9, "first_channels": 16, "second_channels": 0, "out_channels": 24}
    sizes |= {"dilation": 1, "silu": True}
    for tile in range(len(conv3x3_tiling.TILES)):
        around = torch.full((size + 2 * margin,), float("nan"), dtype=torch.float16)
        output = around[margin : margin + size].reshape(3, 7, 9, 24).permute(0, 3, 1, 2)
        inputs = {"x": x, "weights": fragments, "bias": bias}
        simt.library().launch("conv3x3", inputs, output, sizes | {"tile": tile}, False)
        assert output.isfinite().all()
        assert around[:margin].isnan().all()
        assert around[margin + size :].isnan().all()


def test_a_buffer_too_short_is_reported() -> None:
    skip_unless_available("simt")
    x, weights, _ = StageCase("conv3x3", (16, 16), (1, 16, 8, 8)).build()
    packed = mvk.pack(weights, torch.float16, backend="simt")
    object.__setattr__(packed, "tensors", (packed.tensors[0][:-8], *packed.tensors[1:]))
    with pytest.raises(SimulatorFault, match="no registered buffer holds"):
        mvk.ops.conv3x3(x.half(), packed)


def test_refusals() -> None:
    skip_unless_available("simt")
    with pytest.raises(mvk.BackendUnavailable, match=r"out_channels: expected a multiple of 8, got 12"):
        mvk.pack(StageCase("conv3x3", (16, 12), (1, 16, 4, 4)).build()[1], torch.float16, backend="simt")
    assert native.refusal("simt", "conv3x3", None, torch.float32, torch.device("cpu")) is not None


# --- packing and tiling ----------------------------------------------------------------------------------------------


def test_fragments_hold_every_weight_where_the_kernel_looks_for_it() -> None:
    weight = torch.arange(24 * 40 * 9, dtype=torch.float32).reshape(24, 40, 3, 3)
    packed = conv3x3.pack_fragments(weight).reshape(3, 3, 3, 4, 32, 4)  # k-step, dx, dy, tile, lane, (r, h)
    padded = torch.zeros(32, 48, 3, 3)
    padded[:24, :40] = weight
    for step, dx, dy, tile, lane in ((0, 0, 0, 0, 0), (1, 2, 0, 1, 13), (2, 1, 2, 2, 31), (2, 0, 1, 3, 7)):
        g, t = lane // 4, lane % 4
        channel = tile // 2 * 16 + 4 * (g // 2) + tile % 2 * 2 + g % 2
        expected = [padded[channel, 16 * step + 2 * t + 8 * r + h, dy, dx] for r in (0, 1) for h in (0, 1)]
        assert packed[step, dx, dy, tile, lane].tolist() == expected


def test_planes_hold_eight_channels_of_a_column() -> None:
    weight = torch.randn(24, 40, 3, 3)
    packed = conv3x3.pack_planes(weight).reshape(3, 3, 3, 2, 32, 8)  # 16 channels, dx, dy, plane, column, k
    padded = torch.zeros(32, 48, 3, 3)
    padded[:24, :40] = weight
    random = torch.Generator().manual_seed(0)
    for _ in range(200):
        step, dx, dy, plane, tile, g = (int(torch.randint(n, (), generator=random)) for n in (3, 3, 3, 2, 4, 8))
        channel = tile // 2 * 16 + 4 * (g // 2) + tile % 2 * 2 + g % 2
        expected = padded[channel, 16 * step + 8 * plane :, dy, dx][:8]
        assert torch.equal(packed[step, dx, dy, plane, 8 * tile + g], expected)


def test_dealing_is_a_permutation_of_each_16_channels() -> None:
    dealt = deal_channels(torch.arange(48)).reshape(3, 16)
    assert torch.equal(dealt.sort(dim=1).values, torch.arange(48).reshape(3, 16))
    for t in range(4):  # columns 2t, 2t + 1 of both tiles: channels 4t … 4t + 3
        assert dealt[1, [2 * t, 2 * t + 1, 8 + 2 * t, 8 + 2 * t + 1]].tolist() == [16 + 4 * t + i for i in range(4)]
    assert to_b_tiles(torch.zeros(2, 32, 24)).shape == (2, 2, 3, 32, 4)


@pytest.mark.parametrize("wgmma", [False, True], ids=["mma", "wgmma"])
@pytest.mark.parametrize(("sizes", "two_inputs"), PUBLISHED, ids=str)
def test_tiles_grow_with_the_number_of_pixels(sizes, two_inputs, wgmma) -> None:
    found = conv3x3_tiling.boundaries(*sizes, wgmma)
    assert found[0][0] == 1
    tiles = [*conv3x3_tiling.numbered(wgmma).values()]
    order = [tiles.index(tile) for _, tile in found]
    assert order == sorted(set(order)), "each tile is used in one range only, so that the variant can name it"
    assert order[-1] == len(tiles) - 1, "256 images take the largest tile"


@pytest.mark.parametrize(
    ("sizes", "side", "batch", "us"),  # the six tiles on an H200, float16
    [
        ((48, 48), 32, 1, (3.9, 3.9, 5.2, 9.1, 5.5, 7.4)),
        ((48, 48), 32, 16, (16.9, 11.9, 7.3, 9.4, 6.7, 7.6)),
        ((48, 48), 32, 256, (217.7, 129.6, 87.6, 51.0, 44.4, 38.3)),
        ((80, 80), 16, 16, (10.4, 7.9, 6.9, 16.9, 8.3, 12.0)),
        ((80, 80), 16, 64, (28.5, 23.8, 14.5, 17.5, 9.5, 12.3)),
        ((80, 80), 16, 256, (105.3, 79.2, 45.8, 36.7, 24.8, 18.4)),
        ((96, 96), 32, 8, (21.0, 16.9, 9.9, 20.5, 10.2, 14.7)),
        ((96, 96), 32, 16, (37.1, 29.3, 15.7, 20.8, 11.6, 15.0)),
        ((96, 96), 32, 64, (127.4, 96.6, 51.8, 41.7, 31.3, 24.1)),
        ((128, 64), 16, 8, (6.2, 6.0, 8.2, 19.2, 9.8, 14.5)),
        ((192, 96), 32, 256, (931.4, 631.6, 314.7, 273.0, 170.0, 151.8)),
        ((256, 128), 16, 16, (26.4, 24.9, 13.9, 34.2, 16.8, 24.9)),
        ((256, 128), 16, 32, (44.5, 37.4, 20.1, 34.1, 18.1, 24.9)),
        ((320, 160), 8, 1, (6.2, 8.3, 14.7, 44.2, 21.8, 29.2)),
        ((320, 160), 8, 64, (35.8, 29.4, 23.8, 50.1, 22.9, 32.6)),
    ],
    ids=str,
)
def test_the_model_takes_what_was_measured_fastest(sizes, side, batch, us) -> None:
    """Within 5 %, of the tiles that a device has."""
    count = conv3x3_tiling.sub_tiles(batch, side, side, 1)
    for wgmma, times in ((True, us), (False, us[:4])):
        assert times[conv3x3_tiling.choose(count, *sizes, wgmma)] <= 1.05 * min(times)


def test_tiles_of_the_published_networks() -> None:
    """Small maps at batch 1 are split over output channels; batch 256 takes as few passes as it can, on wgmma too."""
    for batch, size, sizes, blocks in (
        (1, 8, (320, 160), 20),
        (1, 16, (256, 128), 64),
        (1, 32, (192, 96), 96),
        (256, 8, (320, 160), 128),
        (256, 16, (256, 128), 512),
        (256, 32, (192, 96), 1024),
    ):
        count = conv3x3_tiling.sub_tiles(batch, size, size, 1)
        for wgmma in (False, True):
            tile = conv3x3_tiling.numbered(wgmma)[conv3x3_tiling.choose(count, *sizes, wgmma)]
            assert tile.wgmma == (wgmma and batch == 256)
            channels = conv3x3_tiling.block_channels(tile, sizes[1])
            assert -(-count // tile.sub_tiles) * -(-sizes[1] // channels) == blocks, (batch, size, tile)


def test_sub_tiles() -> None:
    assert conv3x3_tiling.sub_tiles(2, 16, 9, 1) == 2 * 2 * 2
    assert conv3x3_tiling.sub_tiles(1, 16, 16, 2) == 4
    assert conv3x3_tiling.sub_tiles(1, 3, 3, 4) == 16


def test_the_variant_names_its_boundaries() -> None:
    skip_unless_available("simt")
    packed = mvk.pack(StageCase("conv3x3", (192, 96), (1, 96, 8, 8)).build()[1], torch.float16, backend="simt")
    assert conv3x3.variant(packed).endswith(
        "128 pixels × 32 channels a block from 44 tiles of 8×8 pixels, "
        "128 pixels × 96 channels a block on wgmma from 149 tiles of 8×8 pixels, "
        "256 pixels × 96 channels a block on wgmma from 438 tiles of 8×8 pixels"
    )
    library = simt.library()
    library.set_wgmma(False)
    try:
        assert conv3x3.variant(packed).endswith("256 pixels × 96 channels a block from 432 tiles of 8×8 pixels")
        slot = Slot.like(torch.empty(256, 96, 32, 32, dtype=torch.float16))
        options = {"x2": slot, "dilation": 1, "activation": "silu"}
        assert next(iter(native.alternatives(slot, packed, **options))) == "large tiles"
        library.set_wgmma()
        found = native.alternatives(slot, packed, **options)
        assert next(iter(found)) == "wgmma, 256 pixels"
        assert len(found) == 7
    finally:
        library.set_wgmma()
