"""Rounding whose errors cancel along a row."""

from __future__ import annotations

import pytest
import torch

from mobilevit_kernels import rounding, verify

dtypes = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])


@dtypes
@pytest.mark.parametrize("shape", [(16, 64), (32, 24, 3, 3), (8, 1, 3, 3), (5, 3), (4, 1), (0, 8)], ids=str)
def test_errors_of_a_row_cancel(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rounded = rounding.round_rows(weight, dtype)
    assert rounded.shape == weight.shape
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, rounded.to(dtype).float())  # of the dtype: packing has nothing left to round
    nearest = weight.to(dtype)
    error, plain = ((r.double() - weight).flatten(1) for r in (rounded, nearest))
    # One of the two neighbours: the errors of both add up to their distance.
    spacing = 2.0 ** weight.abs().log2().floor().double() * torch.finfo(dtype).eps
    assert (error.abs() < spacing.flatten(1)).all()
    assert (error.sum(1).abs() <= plain.sum(1).abs()).all()
    if len(weight) and error.shape[1] >= 64:
        assert error.sum(1).abs().mean() <= 0.2 * plain.sum(1).abs().mean()
        assert error.norm() <= 1.1 * plain.norm()  # paid for with little


@dtypes
def test_exact_and_non_finite_rows_stay(dtype: torch.dtype) -> None:
    exact = torch.tensor([[0.5, -1.0, 0.0, 3.0], [1.5, 2.0, -0.25, 0.0]])
    assert torch.equal(rounding.round_rows(exact, dtype), exact)
    for bad in (float("nan"), float("inf"), 3.5e38):
        row = torch.tensor([[0.1, 0.2, bad, 0.3], [0.1, 0.2, 0.7, 0.3]])
        rounded = rounding.round_rows(row, dtype)
        assert torch.equal(rounded[0].nan_to_num(7), row[0].to(dtype).float().nan_to_num(7))
        assert torch.equal(rounded[1], rounding.round_rows(row[1:], dtype)[0])


def test_what_is_rounded() -> None:
    generator = torch.Generator().manual_seed(0)
    conv = verify.random_weights("inverted_residual", (16, 32, 24), generator)
    assert rounding.round_weights(conv, torch.float32) is conv
    rounded = rounding.round_weights(conv, torch.bfloat16)
    assert rounded.expand_bias is conv.expand_bias
    for name in ("expand_weight", "depthwise_weight", "project_weight"):
        expected = rounding.round_rows(getattr(conv, name), torch.bfloat16)
        assert torch.equal(getattr(rounded, name), expected)
        assert not torch.equal(getattr(conv, name), expected)
    head = verify.random_weights("head", (16, 32, 0), generator)
    assert rounding.round_weights(head, torch.float16).fc_weight is None

    # Backends fold a LayerNorm into the matrix behind it before they round: those are not touched.
    transformer = verify.random_weights("transformer", (16, 32, 64, 2, 16), generator)
    assert rounding.round_weights(transformer, torch.float32) is transformer
    result = rounding.round_weights(transformer, torch.bfloat16)
    assert torch.equal(result.in_weight, rounding.round_rows(transformer.in_weight, torch.bfloat16))
    assert result.out_weight is transformer.out_weight
    for before, after in zip(transformer.layers, result.layers, strict=True):
        assert torch.equal(after.fc2_weight, rounding.round_rows(before.fc2_weight, torch.bfloat16))
        assert torch.equal(after.proj_weight, rounding.round_rows(before.proj_weight, torch.bfloat16))
        assert after.qkv_weight is before.qkv_weight
        assert after.fc1_weight is before.fc1_weight


def test_networks_err_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason for it: the error of whole networks in bfloat16, over eight draws of weights of each size."""
    import itertools
    import math

    import mobilevit_kernels as mvk
    import python_ref
    from mobilevit_kernels.ops import _dispatch

    def error(model: python_ref.MobileViT, x: torch.Tensor, truth: torch.Tensor) -> float:
        result = mvk.optimize(model, dtype=torch.bfloat16)(x).double()
        return float((result - truth).norm() / truth.norm())

    logs = []
    for source, seed in itertools.product(("xxs", "xs", "s"), range(8)):
        model = python_ref.MobileViT(source, num_classes=100).eval()
        python_ref.randomize_weights(model, seed=seed)
        x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed)).bfloat16()
        with torch.inference_mode():
            truth = mvk.optimize(model, dtype=torch.float64)(x.double())
            balanced = error(model, x, truth)
            with monkeypatch.context() as plain:
                plain.setattr(_dispatch, "round_weights", lambda weights, dtype: weights)
                logs.append(math.log(balanced / error(model, x, truth)))
    # Up to 0.975 was seen: CPUs differ in how their convolutions add up in bfloat16.
    assert math.exp(sum(logs) / len(logs)) <= 0.98


@pytest.mark.gpu
@dtypes
def test_every_device_rounds_alike(dtype: torch.dtype) -> None:
    # Of few different errors many are the same: which of them goes over must not be left to the device.
    weight = torch.randint(-4096, 4096, (64, 1440), generator=torch.Generator().manual_seed(0)) / 2.0**16
    on_gpu = rounding.round_rows(weight.cuda(), dtype)
    assert on_gpu.is_cuda
    assert torch.equal(on_gpu.cpu(), rounding.round_rows(weight, dtype))
