"""Random draws of (network, images, layout, dtype, source, output) on every backend, held to the numerical contract.

``MVK_FUZZ_DRAWS=500`` makes 500 draws on the torch backend and 50 on each of the others; the default is 30 and 3.

The bound of a draw. In float32 a relative L2 error of at most 1e-5. In float16 and bfloat16 at most
``MAX_NETWORK_RATIO`` times the stock model's error on the same images, the project's bound for whole networks. That
ratio is one sample of a quotient of two random errors: for outputs of a few values, or a single small image, it comes
out as 2 or more now and then whatever the kernels do. So a draw above the bound is repeated with other weights and
images, 8 times, 16, 32 and 64 if need be: over all of these together, the error has to come to at most
``MAX_NETWORK_RATIO`` times the stock's. The draw's own error has to stay below ``MAX_OUTLIER`` times the stock's over
the repetitions even then, so that a fault that only those weights or images show does not get away. Over all draws of a
backend the geometric mean of the ratios is at most 1.05.

Results that come back in a coarser dtype than the compute dtype, as the images' dtype asks, are compared with the
stock's rounded to it; in float32 the bound is wider by that dtype's unit roundoff.
"""

from __future__ import annotations

import math
import os

import pytest
import torch
from conftest import skip_unless_available
from draws import LAYOUTS, Draw, Errors, draw, returned_dtype, run

from mobilevit_kernels.verify import MAX_FLOAT32_ERROR, MAX_NETWORK_RATIO

DRAWS = int(os.environ.get("MVK_FUZZ_DRAWS", "30"))
MAX_MEAN_RATIO = 1.05
MAX_OUTLIER = 4.0
REPETITIONS = (8, 16, 32, 64)

HALF = (torch.float16, torch.bfloat16)
EVERY = (torch.float32, *HALF)

BATCHES = (1, 1, 2, 3, 5)

# backend, device, dtypes, also the published widths, largest side of an image, batches, share of the draws
BACKENDS = [
    pytest.param("torch", "cpu", EVERY, True, 96, BATCHES, 1.0, id="torch-cpu"),
    pytest.param("triton", "cpu", EVERY, False, 40, (1, 1, 2), 0.1, id="triton-cpu"),
    pytest.param("simt", "cpu", HALF, False, 96, BATCHES, 0.1, id="simt-cpu"),
    pytest.param("torch", "cuda", EVERY, True, 256, BATCHES, 1.0, id="torch-cuda", marks=pytest.mark.gpu),
    pytest.param("triton", "cuda", EVERY, True, 256, BATCHES, 0.1, id="triton-cuda", marks=pytest.mark.gpu),
    pytest.param("cuda", "cuda", HALF, True, 256, BATCHES, 0.1, id="cuda-cuda", marks=pytest.mark.gpu),
]


@pytest.mark.parametrize(("backend", "device", "dtypes", "published", "largest", "batches", "share"), BACKENDS)
def test_draws(
    backend: str,
    device: str,
    dtypes: tuple[torch.dtype, ...],
    published: bool,
    largest: int,
    batches: tuple[int, ...],
    share: float,
    record_property,
) -> None:
    skip_unless_available(backend)
    failures: list[str] = []
    ratios: list[float] = []
    worst = 0.0  # in float32
    repeated = 0
    count = max(1, round(DRAWS * share))
    for seed in range(count):
        case = draw(seed, dtypes, published, largest, batches)
        try:
            outputs = run(case, backend, device)
        except Exception as error:  # one draw's failure must not hide the next one's
            failures.append(f"{case}: {type(error).__name__}: {error}")
            continue
        if case.dtype == torch.float32:
            limit = MAX_FLOAT32_ERROR + _unit_roundoff(returned_dtype(case))
            failures += [f"{case}: error {e.error:.2e}" for e in outputs if not e.error <= limit]
            if returned_dtype(case) == torch.float32:
                worst = max(worst, *(e.error for e in outputs))
            continue
        ratios += [_ratio(e.error, e.stock_error, case.dtype) for e in outputs]
        if max(ratios[-len(outputs) :]) > MAX_NETWORK_RATIO:
            repeated += 1
            failures += _repeat(case, outputs, backend, device)
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else 1.0
    summary = (
        f"{count} draws, worst error in float32 {worst:.1e}, {len(ratios)} outputs in half precision, mean ratio "
        f"{mean:.3f}, {repeated} draws repeated"
    )
    record_property("summary", summary)
    print(f"{backend} on {device}: {summary}")
    assert not failures, "\n".join(failures)
    if count >= 16:
        assert mean <= MAX_MEAN_RATIO, summary


def _unit_roundoff(dtype: torch.dtype) -> float:
    return 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2


def _ratio(error: float, stock_error: float, dtype: torch.dtype) -> float:
    """A stock result that happens to be all but exact is no yardstick: below an eighth of an eps, that is one."""
    return max(error / max(stock_error, torch.finfo(dtype).eps / 8), 1e-3)


def _repeat(case: Draw, outputs: list[Errors], backend: str, device: str) -> list[str]:
    """Repeats a draw on other weights and images until the ratios over all are within the contract; what is not."""
    repetitions: list[list[Errors]] = []
    above: list[str] = []
    for count in REPETITIONS:
        while len(repetitions) < count:
            seed = 1_000_000 + 1000 * case.seed + len(repetitions)
            repetitions.append(run(case, backend, device, seed))
        above = []
        for i, first in enumerate(outputs):
            every = [repetition[i] for repetition in repetitions]
            norm = math.sqrt(sum(e.norm**2 for e in every))
            error = math.sqrt(sum((e.error * e.norm) ** 2 for e in every)) / norm
            stock = math.sqrt(sum((e.stock_error * e.norm) ** 2 for e in every)) / norm
            ratio = _ratio(error, stock, case.dtype)
            typical = max(stock * norm / math.sqrt(count) / first.norm, first.stock_error)
            if not ratio <= MAX_NETWORK_RATIO or not _ratio(first.error, typical, case.dtype) <= MAX_OUTLIER:
                above.append(
                    f"{case}: output {i} of {first.count} values: error {first.error:.2e}, stock's "
                    f"{first.stock_error:.2e}; over {count} repetitions {error:.2e}, stock's {stock:.2e}, "
                    f"ratio {ratio:.2f}"
                )
        if not above:
            break
    return above


def test_draws_cover_what_they_are_for() -> None:
    cases = [draw(seed, EVERY, True, 96, BATCHES) for seed in range(60)]
    assert cases == [draw(seed, EVERY, True, 96, BATCHES) for seed in range(60)], "the same on every run"
    assert {case.source for case in cases} == {"timm", "transformers", "python_ref"}
    assert {case.output for case in cases} == {
        "logits", "features_only", "forward_features", "pre_logits", "features", "hidden states", "segmentation",
    }  # fmt: skip
    assert {case.layout for case in cases} == set(LAYOUTS)
    assert {case.dtype for case in cases} == set(EVERY)
    assert {case.image for case in cases} == {*EVERY, torch.uint8}
    assert {case.output_stride for case in cases} == {8, 16, 32}
    assert {0, 1, 3, 1000} <= {case.num_classes for case in cases}
    assert any(case.height % 2 for case in cases)
    assert len({str(case.network) for case in cases}) > 10


@pytest.mark.parametrize(("factor", "caught"), [(1.0, False), (1.05, True)])
def test_a_wrong_result_is_caught(factor: float, caught: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, where the stock networks err by a percent or two; results of ours off by a factor."""
    import draws

    right = draws.call

    def call(case: Draw, model: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
        ours = type(model).__module__.startswith("mobilevit_kernels")
        return [y * factor if ours else y for y in right(case, model, x)]

    monkeypatch.setattr(draws, "call", call)
    monkeypatch.setitem(globals(), "REPETITIONS", (8,))
    cases = [draw(seed, (torch.bfloat16,), False, 64, BATCHES) for seed in range(12)]
    cases = [case for case in cases if case.image == torch.float32 and case.output != "segmentation"]
    assert len(cases) >= 2
    for case in cases[:2]:
        outputs = run(case, "torch", "cpu")
        above = max(_ratio(e.error, e.stock_error, case.dtype) for e in outputs) > MAX_NETWORK_RATIO
        assert (above and bool(_repeat(case, outputs, "torch", "cpu"))) == caught
