"""One small case a CUDA kernel that starts no other kernel: what compute-sanitizer runs on a GPU (tools/gpu.py)."""

from __future__ import annotations

import pytest
import torch
from conftest import backend_params, blocks, clusters, skip_unless_available

import mobilevit_kernels as mvk
from mobilevit_kernels import native, verify
from mobilevit_kernels.verify import StageCase

# Odd maps of more than one tile, channels that are no multiple of a chunk.
CASES = [
    StageCase("inverted_residual", (24, 40, 24), (2, 24, 19, 11), {"residual": True}),
    StageCase("inverted_residual", (24, 40, 48), (3, 24, 9, 11), {"stride": 2}),
    StageCase("inverted_residual", (48, 136, 48), (2, 48, 7, 18), {"residual": True}),  # dealt to the warps of a block
    StageCase("inverted_residual", (40, 72, 104), (1, 40, 17, 9), {"stride": 2}),
    StageCase("inverted_residual", (16, 32, 24), (1, 16, 9, 8), {"dilation": 3}),
    StageCase("inverted_residual", (16, 264, 40), (2, 16, 13, 9), {"dilation": 2}),  # split over clusters
    StageCase("transformer", (24, 80, 40, 1, 24), (2, 24, 6, 10), {"num_heads": 4}),
    StageCase("transformer", (16, 64, 48, 2, 24), (1, 16, 9, 11), {"num_heads": 4, "patch_size": (1, 1)}),  # split
    StageCase("transformer", (16, 64, 48, 1, 8), (2, 16, 7, 9), {"num_heads": 4}),  # resized
    StageCase("transformer", (16, 144, 48, 1, 8), (1, 16, 8, 10), {"num_heads": 4, "patch_size": (2, 1)}),
    StageCase("transformer", (24, 96, 192, 2, 24), (1, 24, 6, 8), {"num_heads": 4}),  # clusters, rows shared
    StageCase("transformer", (16, 80, 160, 1, 40), (1, 16, 8, 10), {"num_heads": 4}),  # clusters, rows split
    StageCase("unfold_attention_fold", (), (2, 3 * 80, 18, 8), {"num_heads": 4, "patch_size": (2, 1)}),
    StageCase("conv3x3", (40, 24), (2, 24, 9, 11), {"x2_channels": 16}),
    StageCase("conv3x3", (24, 56), (1, 24, 7, 9), {"dilation": 2, "activation": "none"}),
    StageCase("head", (40, 72, 21), (3, 40, 9, 8)),
    StageCase("head", (24, 40, 0), (2, 24, 5, 7), {"pool": False}),
    StageCase("stem", (3, 24), (2, 3, 19, 70)),
    StageCase("stem", (3, 16), (1, 16, 67, 3), {"normalize": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}, "uint8"),
]
# … and the two on clusters by blocks that send to each other.
RUNS = [(case, False) for case in CASES]
RUNS += [(case, True) for case in CASES if case.sizes[1:3] in ((96, 192), (80, 160))]


def test_every_kernel_has_a_case() -> None:
    assert len(RUNS) == len(CASES) + 2
    assert {case.stage for case in CASES} == set(native.STAGES)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize(("case", "sends"), RUNS, ids=lambda value: "sends" * value if value in (0, 1) else str(value))
@pytest.mark.parametrize(("backend", "device"), backend_params("simt", "cuda"))
def test_small_case(case: StageCase, sends: bool, dtype: torch.dtype, backend: str, device: str) -> None:
    skip_unless_available(backend)
    x, weights, options = case.build()

    def move(value):
        if not isinstance(value, torch.Tensor):
            return value
        if value.dtype == torch.uint8:
            return value.to(device)
        return value.to(dtype).contiguous(memory_format=torch.channels_last).to(device)

    arguments = [] if weights is None else [mvk.pack(weights, dtype, device, backend)]
    options |= {"backend": backend} if weights is None else {}
    if (case.stage == "transformer" and case.sizes[2] == 2 * case.sizes[1]) or 264 in case.sizes:
        variant = clusters(backend, device, sends=sends)
    else:
        variant = blocks(backend, "large" if 144 in case.sizes else "small")
    with variant:
        y = getattr(mvk.ops, case.stage)(move(x), *arguments, **{name: move(value) for name, value in options.items()})
    x = x if x.dtype == torch.uint8 else x.to(dtype)
    options.pop("backend", None)
    truth = verify.reference(case.stage, x, weights, **options)
    stock = verify.reference(case.stage, x, weights, dtype=dtype, **options)
    result = verify.judge(str(case), backend, dtype, y.cpu(), truth, stock, verify.MAX_STAGE_RATIO)
    assert result.passed, f"error {result.error:.2e}, stock {result.stock_error:.2e}, ratio {result.ratio:.2f}"
