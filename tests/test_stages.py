"""Every stage on every backend against float64: one parametrised test serves all."""

from __future__ import annotations

import pytest
import torch
from conftest import backend_params, skip_unless_available

import mobilevit_kernels as mvk
from mobilevit_kernels import registry, verify
from mobilevit_kernels.verify import StageCase

# Network shapes at reduced batch and size, odd sizes, one token, options off the beaten track.
CASES = [
    StageCase("stem", (3, 16), (2, 3, 32, 48)),
    StageCase("stem", (3, 16), (1, 3, 17, 15)),
    StageCase("stem", (3, 16), (1, 3, 1, 1)),
    StageCase("stem", (3, 16), (2, 3, 18, 14), {"normalize": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}),
    StageCase("stem", (3, 16), (2, 15, 18, 3), {"normalize": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))}, image="uint8"),
    StageCase(
        "stem", (3, 16), (1, 16, 11, 3), {"normalize": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}, image="uint8"
    ),
    StageCase("conv3x3", (48, 48), (1, 48, 12, 12)),
    StageCase("conv3x3", (96, 96), (2, 96, 7, 9), {"dilation": 2}),
    StageCase("conv3x3", (64, 32), (1, 64, 5, 6), {"dilation": 4, "activation": "none"}),
    StageCase("conv3x3", (128, 64), (2, 64, 8, 8), {"x2_channels": 64}),
    StageCase("conv3x3", (160, 80), (1, 80, 7, 5), {"x2_channels": 80}),
    StageCase("conv3x3", (72, 40), (1, 24, 4, 4), {"x2_channels": 48}),
    StageCase("inverted_residual", (16, 32, 16), (1, 16, 16, 16), {"residual": True}),
    StageCase("inverted_residual", (16, 64, 32), (2, 16, 17, 13)),
    StageCase("inverted_residual", (32, 128, 64), (1, 32, 16, 16), {"stride": 2}),
    StageCase("inverted_residual", (64, 256, 64), (1, 64, 9, 9), {"residual": True}),
    StageCase("inverted_residual", (64, 256, 96), (2, 64, 11, 7), {"stride": 2}),
    StageCase("inverted_residual", (80, 320, 96), (1, 80, 8, 8), {"dilation": 2}),
    StageCase("inverted_residual", (48, 96, 64), (3, 48, 5, 6), {"stride": 2, "dilation": 2}),
    StageCase("inverted_residual", (24, 48, 24), (1, 24, 1, 1), {"residual": True}),
    StageCase("transformer", (48, 64, 128, 2, 48), (1, 48, 8, 8)),
    StageCase("transformer", (64, 80, 160, 2, 64), (2, 64, 6, 10)),
    StageCase("transformer", (80, 96, 192, 1, 80), (1, 80, 7, 7)),
    StageCase("transformer", (80, 120, 240, 2, 80), (1, 80, 8, 4)),
    StageCase("transformer", (96, 144, 288, 2, 96), (1, 96, 16, 16)),
    StageCase("transformer", (128, 192, 384, 1, 128), (2, 128, 4, 4)),
    StageCase("transformer", (160, 240, 480, 1, 160), (3, 160, 3, 5)),
    StageCase("transformer", (32, 48, 96, 1, 32), (1, 32, 2, 2)),  # one token a sequence
    StageCase("transformer", (32, 40, 56, 2, 24), (2, 32, 8, 12), {"num_heads": 1, "patch_size": (4, 2)}),
    StageCase("transformer", (32, 128, 256, 1, 32), (1, 32, 9, 8), {"num_heads": 1, "patch_size": (3, 4)}),
    StageCase("transformer", (32, 64, 128, 1, 32), (1, 32, 8, 8), {"num_heads": 8, "patch_size": (1, 1)}),
    StageCase("unfold_attention_fold", (), (2, 3 * 144, 8, 8), {"num_heads": 4}),
    StageCase("unfold_attention_fold", (), (1, 3 * 80, 4, 6), {"num_heads": 4, "scale": 0.7}),
    StageCase("unfold_attention_fold", (), (1, 3 * 60, 6, 9), {"num_heads": 2, "patch_size": (2, 3)}),
    StageCase("head", (80, 320, 10), (2, 80, 8, 8)),
    StageCase("head", (160, 640, 1000), (3, 160, 7, 7)),
    StageCase("head", (96, 384, 0), (1, 96, 5, 3)),
    StageCase("head", (96, 384, 10), (1, 96, 4, 4), {"pool": False}),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ONE_OF_EACH = [next(case for case in CASES if case.stage == stage) for stage in dict.fromkeys(c.stage for c in CASES)]

stages = pytest.mark.parametrize("case", CASES, ids=str)
one_of_each = pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.stage)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
on_backends = pytest.mark.parametrize(("backend", "device"), backend_params())


def skip_unless_served(backend: str, dtype: torch.dtype, case: StageCase, device: str) -> None:
    skip_unless_available(backend)
    weights = case.build()[1]
    refusal = registry.load(backend).refusal(case.stage, weights, dtype, torch.device(device))
    if refusal is not None:
        pytest.skip(f"{backend}: {refusal}")


def call(case: StageCase, backend: str, device: str, dtype: torch.dtype, x=None, seed: int = 0):
    """The op on the case's own weights, on ``x`` or the case's own input."""
    own, weights, options = case.build(seed)
    x = own if x is None else x
    x = x.to(device) if x.dtype == torch.uint8 else x.to(device, dtype)
    options = {k: v.to(device, dtype) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    op = getattr(mvk.ops, case.stage)
    with torch.inference_mode():
        if weights is None:
            return op(x, backend=backend, **options)
        return op(x, mvk.pack(weights, dtype, device, backend), **options)


@stages
@dtypes
@on_backends
def test_error_is_within_the_contract(case: StageCase, dtype: torch.dtype, backend: str, device: str) -> None:
    skip_unless_served(backend, dtype, case, device)
    result = verify.check_stage(case, backend, dtype, device, seed=1)
    assert result.passed, f"error {result.error:.2e}, stock {result.stock_error:.2e}, ratio {result.ratio:.2f}"


@one_of_each
@on_backends
def test_bitwise_deterministic_and_written_in_full(case: StageCase, backend: str, device: str) -> None:
    skip_unless_served(backend, torch.float16, case, device)
    with _nan_poisoned_empty():
        first = call(case, backend, device, torch.float16)
        second = call(case, backend, device, torch.float16)
    assert first.isfinite().all()
    assert torch.equal(first, second)


@one_of_each
@pytest.mark.parametrize("layout", ["channels_last", "strided", "offset", "offset channels_last"])
@on_backends
def test_any_memory_layout(case: StageCase, layout: str, backend: str, device: str) -> None:
    skip_unless_served(backend, torch.float16, case, device)
    x = case.build()[0].to(device, torch.float16)  # here and not in call(): a cast makes a fresh tensor
    expected = call(case, backend, device, torch.float16, x)
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    elif layout == "strided":
        x = x.repeat_interleave(2, dim=3)[..., ::2]
        assert not x.is_contiguous() or x.shape[3] == 1
    else:
        values = x.permute(0, 2, 3, 1) if layout == "offset channels_last" else x
        shape = values.shape
        values = torch.cat([values.flatten()[:1], values.flatten()])[1:].reshape(shape)
        x = values.permute(0, 3, 1, 2) if layout == "offset channels_last" else values
        assert x.storage_offset() == 1
    result = call(case, backend, device, torch.float16, x)
    if backend == "torch" and device == "cuda":  # cuDNN takes another algorithm where a tensor is not aligned
        assert verify.relative_error(result, expected) <= 2 * torch.finfo(torch.float16).eps
    else:
        assert torch.equal(result, expected)


@one_of_each
@on_backends
def test_result_is_channels_last_and_new(case: StageCase, backend: str, device: str) -> None:
    skip_unless_served(backend, torch.float16, case, device)
    x = case.build()[0].to(device, torch.float16)
    before = x.clone()
    result = call(case, backend, device, torch.float16, x)
    assert torch.equal(x, before), "the input was written to"
    assert result.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    if result.dim() == 4:
        assert result.is_contiguous(memory_format=torch.channels_last)


@one_of_each
@on_backends
def test_empty_batch(case: StageCase, backend: str, device: str) -> None:
    skip_unless_served(backend, torch.float16, case, device)
    full = call(case, backend, device, torch.float16)
    x = case.build()[0][:0]
    if case.options.get("x2_channels"):
        pytest.skip("both inputs would have to be empty; covered by the model tests")
    empty = call(case, backend, device, torch.float16, x)
    assert empty.shape == (0, *full.shape[1:])
    assert empty.dtype == full.dtype


@one_of_each
@on_backends
def test_an_image_does_not_depend_on_its_neighbours(case: StageCase, backend: str, device: str) -> None:
    skip_unless_served(backend, torch.float32 if backend == "torch" else torch.float16, case, device)
    if backend == "torch":
        pytest.skip("within the dtype's tolerance only: covered by test_error_is_within_the_contract")
    x = case.build()[0]
    x = torch.cat([x, x.flip(1), x])[: x.shape[0] * 2 + 1]
    batch = call(case, backend, device, torch.float16, x)
    for i in (0, x.shape[0] - 1):
        assert torch.equal(call(case, backend, device, torch.float16, x[i : i + 1]), batch[i : i + 1])


@one_of_each
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@on_backends
def test_non_finite_inputs_propagate(case: StageCase, value: float, backend: str, device: str) -> None:
    skip_unless_served(backend, torch.float16, case, device)
    x = case.build()[0].to(torch.float32)
    x[0, 0, x.shape[2] // 2, x.shape[3] // 2] = value
    result = call(case, backend, device, torch.float16, x)
    if value == float("inf"):
        if case.stage == "unfold_attention_fold":
            pytest.skip("softmax may turn a row of −inf into zeros, as PyTorch's own attention does")
        assert not result.isfinite().all()
        return
    _, weights, options = case.build()
    must_be_nan = verify.reference(case.stage, x.half(), weights, **options).isnan()
    assert must_be_nan.any()
    assert result.cpu()[must_be_nan].isnan().all()


class _nan_poisoned_empty:
    """Fills every fresh floating-point ``torch.empty``-made tensor with NaN, so that an unwritten element shows."""

    def __enter__(self) -> None:
        self._deterministic = torch.are_deterministic_algorithms_enabled()
        self._fill = torch.utils.deterministic.fill_uninitialized_memory
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = True

    def __exit__(self, *exc: object) -> None:
        torch.use_deterministic_algorithms(self._deterministic, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = self._fill
