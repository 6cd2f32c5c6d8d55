"""head's CUDA kernels: every published shape, both block sizes, schedules; on the simulator and on a GPU."""

from __future__ import annotations

import pytest
import torch
from conftest import backend_params, skip_unless_available

import mobilevit_kernels as mvk
from mobilevit_kernels import simt, verify
from mobilevit_kernels.native import head
from mobilevit_kernels.verify import StageCase

PUBLISHED = sorted({case.sizes for _, _, case in verify.network_cases() if case.stage == "head"})
GENERAL = [
    StageCase("head", (8, 8, 2), (48, 8, 1, 1)),
    StageCase("head", (40, 72, 5), (3, 40, 9, 17)),  # an odd number of classes, three chunks of pixels
    StageCase("head", (24, 200, 0), (5, 24, 6, 7)),
    StageCase("head", (168, 24, 17), (17, 168, 2, 3)),
    StageCase("head", (72, 40, 9), (1, 72, 12, 12), {"pool": False}),
    StageCase("head", (16, 24, 0), (3, 16, 5, 5), {"pool": False}),
]
on_kernels = pytest.mark.parametrize(("backend", "device"), backend_params("simt", "cuda"))
dtypes = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])


def check(case: StageCase, backend: str, dtype: torch.dtype, device: str) -> None:
    skip_unless_available(backend)
    result = verify.check_stage(case, backend, dtype, device)
    assert result.passed, f"error {result.error:.2e}, stock {result.stock_error:.2e}, ratio {result.ratio:.2f}"


@pytest.mark.parametrize("sizes", PUBLISHED, ids=str)
@on_kernels
def test_published_shapes(sizes, backend, device) -> None:
    check(StageCase("head", sizes, (2, sizes[0], 8, 8)), backend, torch.float16, device)


@pytest.mark.parametrize("case", GENERAL, ids=str)
@dtypes
@on_kernels
def test_general_shapes(case, dtype, backend, device) -> None:
    check(case, backend, dtype, device)


def run(x: torch.Tensor, packed, pool: bool = True) -> torch.Tensor:
    return mvk.ops.head(x, packed, pool=pool)


def test_large_blocks_give_the_bits_of_small_ones() -> None:
    """265 images take the large blocks of both kernels, one image the small ones."""
    skip_unless_available("simt")
    _, weights, _ = StageCase("head", (24, 136, 35), (1, 24, 1, 2)).build()
    packed = mvk.pack(weights, torch.float16, backend="simt")
    x = torch.randn(265, 24, 1, 2, generator=torch.Generator().manual_seed(1)).half()
    library = simt.library()
    library.reset_counters()
    y = run(x, packed)
    assert [launch.shared_bytes for launch in library.launches] == [3 * 2 * (2 * 64 * 32 + 2 * 16 * 128), 4 * 16 * 512]
    for i in (0, 131, 264):
        assert torch.equal(run(x[i : i + 1], packed), y[i : i + 1])
    truth = verify.reference("head", x, weights)
    stock = verify.reference("head", x, weights, dtype=torch.float16)
    assert verify.judge("head", "simt", torch.float16, y, truth, stock, verify.MAX_STAGE_RATIO).passed


def test_large_blocks_of_the_map() -> None:
    skip_unless_available("simt")
    _, weights, _ = StageCase("head", (8, 1408, 0), (1, 8, 1, 1)).build()
    packed = mvk.pack(weights, torch.bfloat16, backend="simt")
    x = torch.randn(1, 8, 39, 43, generator=torch.Generator().manual_seed(1)).bfloat16()
    y = run(x, packed, pool=False)
    truth = verify.reference("head", x, weights, pool=False)
    stock = verify.reference("head", x, weights, dtype=torch.bfloat16, pool=False)
    assert verify.judge("head", "simt", torch.bfloat16, y, truth, stock, verify.MAX_STAGE_RATIO).passed
    assert torch.equal(run(x[:, :, :1, :9], packed, pool=False), y[:, :, :1, :9])


@pytest.mark.parametrize("pool", [True, False])
def test_silent_under_many_schedules(pool: bool) -> None:
    skip_unless_available("simt")
    x, weights, _ = StageCase("head", (72, 56, 21), (2, 72, 9, 10)).build()
    packed = mvk.pack(weights, torch.float16, backend="simt")
    library = simt.library()
    library.reset_counters()
    expected = run(x.half(), packed, pool)
    counted = library.counters()
    assert counted.matrix_load_conflicts == 0
    for seed in range(1, 12):
        library.set_seed(seed)
        library.reset_counters()
        assert torch.equal(run(x.half(), packed, pool), expected), f"seed {seed}"
        assert library.counters() == counted
    library.set_seed(0)


def test_refusals() -> None:
    skip_unless_available("simt")
    with pytest.raises(mvk.BackendUnavailable, match=r"hidden_channels: expected a multiple of 8, got 12"):
        mvk.pack(StageCase("head", (16, 12, 4), (1, 16, 4, 4)).build()[1], torch.float16, backend="simt")


# --- packing ---------------------------------------------------------------------------------------------------------


def test_convolution_fragments_hold_every_weight_where_the_kernel_looks_for_it() -> None:
    weight = torch.arange(24 * 40, dtype=torch.float32).reshape(24, 40, 1, 1)
    packed = head.pack_convolution(weight).reshape(3, 4, 32, 4)  # k-step, tile, lane, (r, h)
    padded = torch.zeros(32, 48)
    padded[:24, :40] = weight[:, :, 0, 0]
    for step, tile, lane in ((0, 0, 0), (1, 1, 13), (2, 2, 31), (2, 3, 7)):
        g, t = lane // 4, lane % 4
        channel = tile // 2 * 16 + 4 * (g // 2) + tile % 2 * 2 + g % 2
        expected = [padded[channel, 16 * step + 2 * t + 8 * r + h] / 2 for r in (0, 1) for h in (0, 1)]
        assert packed[step, tile, lane].tolist() == expected


def test_classifier_fragments_and_an_even_number_of_classes() -> None:
    weight = torch.arange(5 * 24, dtype=torch.float32).reshape(5, 24)
    fragments, bias = head.pack_classifier(weight, torch.ones(5))
    assert bias.tolist() == [1, 1, 1, 1, 1, 0]
    packed = fragments.reshape(2, 1, 32, 4)
    assert packed[1, 0, 4 * 3 + 2].tolist() == [weight[3, 20], weight[3, 21], 0, 0]
    assert packed[0, 0, 4 * 6 + 1].tolist() == [0, 0, 0, 0]
