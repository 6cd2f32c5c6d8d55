"""The resize kernel: PyTorch's bilinear interpolation in float64, on every kind of size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import backend_params, skip_unless_available

from mobilevit_kernels import simt
from mobilevit_kernels.native import transformer
from mobilevit_kernels.native.launches import Slot, execute

on_kernels = pytest.mark.parametrize(("backend", "device"), backend_params("simt", "cuda"))
dtypes = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])


def resize(x: torch.Tensor, size: tuple[int, int], silu: bool, backend: str) -> torch.Tensor:
    slot = Slot.like(x)
    return execute(backend, [transformer._resize(slot, size, silu)], {slot: x})


def random_map(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return x.to(device, dtype).contiguous(memory_format=torch.channels_last)


@dtypes
@pytest.mark.parametrize("silu", [False, True], ids=["plain", "silu"])
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((2, 96, 7, 7), (8, 8)),  # layer 5 at 224×224, up …
        ((2, 160, 8, 8), (7, 7)),  # … and down
        ((1, 8, 1, 1), (2, 2)),
        ((3, 24, 5, 9), (6, 10)),
        ((1, 16, 9, 11), (3, 20)),  # down by three and up
        ((1, 264, 13, 2), (13, 2)),  # the same size
    ],
    ids=str,
)
@on_kernels
def test_matches_float64(shape, size, silu, dtype, backend, device) -> None:
    skip_unless_available(backend)
    x = random_map(shape, dtype, device)
    y = resize(x, size, silu, backend)
    resized = F.interpolate(x.cpu().double(), size=size, mode="bilinear", align_corners=False)
    truth = F.silu(resized) if silu else resized
    assert y.shape == truth.shape
    assert y.is_contiguous(memory_format=torch.channels_last)
    # One rounding; SiLU is u·tanh(u) + u with u = x / 2, and the tanh errs by 2^-11.
    tolerance = 0.51 * torch.finfo(dtype).eps * truth.abs() + 1e-6
    if silu:
        tolerance += 1.1 * 2**-11 * resized.abs() / 2
    assert ((y.cpu().double() - truth).abs() <= tolerance).all()


@on_kernels
def test_a_non_finite_pixel_reaches_its_neighbours_only(backend, device) -> None:
    skip_unless_available(backend)
    x = random_map((2, 8, 7, 7), torch.float16, device)
    x[1, :, 3, 3] = float("nan")
    y = resize(x, (8, 8), True, backend).cpu()
    expected = F.interpolate(x.cpu().float(), size=(8, 8), mode="bilinear", align_corners=False)
    assert expected.isnan().any()
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y[:1], resize(x[:1], (8, 8), True, backend).cpu())


def test_counts_and_refusals() -> None:
    skip_unless_available("simt")
    library = simt.library()
    x = random_map((1, 160, 7, 7), torch.float16, "cpu")
    library.reset_counters()
    resize(x, (8, 8), False, "simt")
    counted = library.counters()
    assert counted.global_write_bytes == 160 * 64 * 2
    assert counted.global_read_bytes == 4 * counted.global_write_bytes
    (launch,) = library.launches
    assert launch.traffic["x"].read_distinct == 160 * 49 * 2
    with pytest.raises(ValueError, match="resize: expected channels that are a multiple of 8, got 12"):
        resize(random_map((1, 12, 4, 4), torch.float16, "cpu"), (3, 3), False, "simt")
    with pytest.raises(ValueError, match="resize: expected maps, got batch 1, 4 × 4 → 0 × 3 pixels"):
        resize(random_map((1, 8, 4, 4), torch.float16, "cpu"), (0, 3), False, "simt")
