"""stem's CUDA kernel: image types, layouts, normalisation at the border, schedules; on the simulator and on a GPU."""

from __future__ import annotations

import pytest
import torch
from conftest import backend_params, skip_unless_available

import mobilevit_kernels as mvk
from mobilevit_kernels import simt, verify
from mobilevit_kernels.native import stem
from mobilevit_kernels.verify import StageCase

NORMALIZE = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
on_kernels = pytest.mark.parametrize(("backend", "device"), backend_params("simt", "cuda"))
dtypes = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])


def judge(y: torch.Tensor, x: torch.Tensor, weights, dtype: torch.dtype, normalize=None) -> None:
    truth = verify.reference("stem", x, weights, normalize=normalize)
    stock = verify.reference("stem", x, weights, dtype=dtype, normalize=normalize)
    result = verify.judge("stem", "simt", dtype, y.cpu(), truth, stock, verify.MAX_STAGE_RATIO)
    assert result.passed, f"error {result.error:.2e}, stock {result.stock_error:.2e}, ratio {result.ratio:.2f}"


@pytest.mark.parametrize("out_channels", [8, 16, 24, 40])
@pytest.mark.parametrize("size", [(1, 1), (2, 131), (33, 64), (35, 7)], ids=str)
@dtypes
@on_kernels
def test_sizes_and_channels(out_channels, size, dtype, backend, device) -> None:
    skip_unless_available(backend)
    result = verify.check_stage(StageCase("stem", (3, out_channels), (2, 3, *size)), backend, dtype, device, seed=3)
    if size != (1, 1):  # sixteen values say little about an error
        assert result.passed, f"error {result.error:.2e}, stock {result.stock_error:.2e}, ratio {result.ratio:.2f}"
    assert result.error < 0.02


@pytest.mark.parametrize("image", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@dtypes
@on_kernels
def test_every_image_type(image, dtype, backend, device) -> None:
    skip_unless_available(backend)
    _, weights, _ = StageCase("stem", (3, 16), (1, 3, 4, 4)).build()
    generator = torch.Generator().manual_seed(0)
    if image == torch.uint8:
        x = torch.randint(0, 256, (2, 21, 37, 3), generator=generator, dtype=torch.uint8)
    else:
        x = torch.rand(2, 3, 21, 37, generator=generator).to(image)
    packed = mvk.pack(weights, dtype, device, backend)
    y = mvk.ops.stem(x.to(device), packed, normalize=NORMALIZE)
    assert y.dtype == dtype
    judge(y, x, weights, dtype, NORMALIZE)
    if image != torch.uint8:
        assert torch.equal(
            mvk.ops.stem(x.to(device, memory_format=torch.channels_last), packed, normalize=NORMALIZE), y
        )


def test_the_padding_is_zero_after_normalisation() -> None:
    """With the mean as the image, everything is the bias alone, border included, bit for bit."""
    skip_unless_available("simt")
    _, weights, _ = StageCase("stem", (3, 16), (1, 3, 4, 4)).build()
    packed = mvk.pack(weights, torch.float16, backend="simt")
    plain = mvk.ops.stem(torch.zeros(1, 3, 9, 9), packed)
    assert torch.equal(plain, plain[:, :, :1, :1].expand_as(plain))
    y = mvk.ops.stem(torch.full((1, 3, 9, 9), 0.25), packed, normalize=((0.25,) * 3, (0.5,) * 3))
    assert torch.equal(y, plain)
    y = mvk.ops.stem(torch.full((1, 9, 9, 3), 51, dtype=torch.uint8), packed, normalize=((0.2,) * 3, (0.25,) * 3))
    assert torch.allclose(y, plain, rtol=1e-3, atol=1e-6)


def test_a_bad_pixel_stays_where_it_is_seen() -> None:
    """Padding of K and of rows multiplies no neighbour by zero: a NaN reaches its own outputs and no others."""
    skip_unless_available("simt")
    _, weights, _ = StageCase("stem", (3, 16), (1, 3, 4, 4)).build()
    packed = mvk.pack(weights, torch.float16, backend="simt")
    for row, column, channel in ((6, 9, 0), (7, 12, 2), (0, 0, 1), (15, 65, 0)):
        x = torch.rand(1, 3, 18, 70, generator=torch.Generator().manual_seed(0))
        x[0, channel, row, column] = float("nan")
        truth = verify.reference("stem", x, weights)
        assert torch.equal(mvk.ops.stem(x, packed).isnan(), truth.isnan()), (row, column, channel)


def test_silent_under_many_schedules() -> None:
    skip_unless_available("simt")
    x, weights, _ = StageCase("stem", (3, 24), (2, 3, 21, 75)).build()
    packed = mvk.pack(weights, torch.float16, backend="simt")
    library = simt.library()
    library.reset_counters()
    expected = mvk.ops.stem(x.half(), packed)
    counted = library.counters()
    for seed in range(1, 30):
        library.set_seed(seed)
        library.reset_counters()
        assert torch.equal(mvk.ops.stem(x.half(), packed), expected), f"seed {seed}"
        assert library.counters() == counted
    library.set_seed(0)


def test_nothing_is_written_outside_of_the_output() -> None:
    skip_unless_available("simt")
    x, weights, _ = StageCase("stem", (3, 24), (3, 3, 13, 9)).build()
    fragments, bias = mvk.pack(weights, torch.float16, backend="simt").tensors
    margin, size = 64, 3 * 24 * 7 * 5
    around = torch.full((size + 2 * margin,), float("nan"), dtype=torch.float16)
    output = around[margin : margin + size].reshape(3, 7, 5, 24).permute(0, 3, 1, 2)
    names = ("stride_image", "stride_channel", "stride_row", "stride_column")
    sizes = dict(zip(names, x.stride(), strict=True)) | {"batch": 3, "height": 13, "width": 9, "out_channels": 24}
    sizes |= {"image": 3, **{f"scale{c}": 1.0 for c in range(3)}, **{f"shift{c}": 0.0 for c in range(3)}}
    simt.library().launch("stem", {"x": x, "weights": fragments, "bias": bias}, output, sizes, False)
    assert output.isfinite().all()
    assert around[:margin].isnan().all()
    assert around[margin + size :].isnan().all()


def test_refusals() -> None:
    skip_unless_available("simt")
    with pytest.raises(mvk.BackendUnavailable, match=r"images of 3 channels, got 4"):
        mvk.pack(StageCase("stem", (4, 16), (1, 4, 4, 4)).build()[1], torch.float16, backend="simt")
    with pytest.raises(mvk.BackendUnavailable, match=r"out_channels: expected a multiple of 8, got 12"):
        mvk.pack(StageCase("stem", (3, 12), (1, 3, 4, 4)).build()[1], torch.float16, backend="simt")


# --- packing ---------------------------------------------------------------------------------------------------------


def test_fragments_hold_every_weight_once_and_zeros_elsewhere() -> None:
    weight = torch.arange(1, 24 * 27 + 1, dtype=torch.float32).reshape(24, 3, 3, 3)
    packed = stem.pack_fragments(weight)
    assert packed.numel() == 4 * 32 * 8
    nonzero = packed[packed != 0]
    assert torch.equal((2 * nonzero).sort().values, torch.arange(1.0, 24 * 27 + 1))
    # Lane 4·g + t of tile 0: g = 1 is channel 1; its first pair is the tap row 0, elements 2t and 2t + 1.
    lane = packed.reshape(4, 32, 8)[0, 4 * 1 + 2]
    assert lane[:2].tolist() == [weight[1, 1, 0, 1] / 2, weight[1, 2, 0, 1] / 2]
    assert lane[6:].tolist() == [weight[1, 2, 2, 2] / 2, 0]


def test_normalization() -> None:
    scale, shift = stem.normalization([0.5, 0.25, 0.0], [0.5, 1.0, 2.0], is_bytes=True)
    assert scale == [1 / 127.5, 1 / 255, 1 / 510]
    assert shift == [-1.0, -0.25, 0.0]
    assert stem.normalization([], [], is_bytes=False) == ([1.0] * 3, [0.0] * 3)
