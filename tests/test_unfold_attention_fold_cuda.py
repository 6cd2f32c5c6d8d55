"""unfold_attention_fold's CUDA kernel: sizes off the published ones, scales, refusals, schedules."""

from __future__ import annotations

import pytest
import torch
from conftest import backend_params, skip_unless_available

import mobilevit_kernels as mvk
from mobilevit_kernels import simt, verify
from mobilevit_kernels.verify import StageCase

on_kernels = pytest.mark.parametrize(("backend", "device"), backend_params("simt", "cuda"))
CASES = [
    StageCase("unfold_attention_fold", (), (1, 3 * 144, 16, 18), {"num_heads": 4}),  # 72 tokens: two tiles
    StageCase("unfold_attention_fold", (), (2, 3 * 240, 8, 8), {"num_heads": 4}),
    StageCase("unfold_attention_fold", (), (1, 3 * 120, 9, 15), {"num_heads": 4, "patch_size": (3, 5)}),
    StageCase("unfold_attention_fold", (), (1, 3 * 128, 10, 13), {"num_heads": 1, "patch_size": (1, 1)}),
    StageCase("unfold_attention_fold", (), (3, 3 * 2, 2, 2), {"num_heads": 1}),
    StageCase("unfold_attention_fold", (), (1, 3 * 96, 8, 8), {"num_heads": 4, "scale": -0.3}),
    StageCase("unfold_attention_fold", (), (1, 3 * 96, 8, 8), {"num_heads": 4, "scale": 0.0}),
    StageCase("unfold_attention_fold", (), (1, 3 * 96, 8, 8), {"num_heads": 4, "scale": 50.0}),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@on_kernels
def test_error_is_within_the_contract(case: StageCase, dtype: torch.dtype, backend: str, device: str) -> None:
    skip_unless_available(backend)
    result = verify.check_stage(case, backend, dtype, device)
    assert result.passed, f"error {result.error:.2e}, stock {result.stock_error:.2e}, ratio {result.ratio:.2f}"


@pytest.mark.parametrize("order", ["rising", "falling", "one row"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@on_kernels
def test_scores_that_outgrow_the_reference(order: str, dtype: torch.dtype, backend: str, device: str) -> None:
    """The largest score of a row moves by many powers of two from one step of keys to the next, or in one row alone."""
    skip_unless_available(backend)
    tokens, dim = 200, 16
    q, k, v = torch.randn(3, dim, tokens, generator=torch.Generator().manual_seed(0)).unbind()
    growth = torch.linspace(0.1, 40.0, tokens)
    if order == "one row":
        q[:, 77] *= 100
    else:
        k *= growth if order == "rising" else growth.flip(0)
    qkv = torch.cat([q, k, v]).reshape(1, 3 * dim, 1, tokens).to(device, dtype)
    options = {"num_heads": 1, "patch_size": (1, 1)}
    result = mvk.ops.unfold_attention_fold(qkv, backend=backend, **options)
    truth = verify.reference("unfold_attention_fold", qkv, None, **options)
    stock = verify.reference("unfold_attention_fold", qkv, None, dtype=dtype, **options)
    checked = verify.judge(order, backend, dtype, result, truth, stock, verify.MAX_STAGE_RATIO)
    assert checked.passed, f"error {checked.error:.2e}, stock {checked.stock_error:.2e}"


def test_silent_under_20_schedules() -> None:
    skip_unless_available("simt")
    qkv = CASES[0].build()[0].half()
    results = []
    try:
        for seed in range(20):
            simt.library().set_seed(seed)
            results.append(mvk.ops.unfold_attention_fold(qkv, num_heads=4, backend="simt"))
    finally:
        simt.library().set_seed(0)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("head_dim", [15, 130])
def test_refusals(head_dim: int) -> None:
    skip_unless_available("simt")
    qkv = torch.zeros(1, 3 * 2 * head_dim, 2, 2, dtype=torch.float16)
    with pytest.raises(mvk.BackendUnavailable, match=f"head_dim: expected an even number up to 128, got {head_dim}"):
        mvk.ops.unfold_attention_fold(qkv, num_heads=2, backend="simt")
