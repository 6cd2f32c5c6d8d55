"""Micro-benchmarks of each op under pytest-benchmark: ``pytest benchmarks``.

Every stage shape of MobileViT-S at 256×256, on every backend that can run here. On a GPU the timed call ends with a
synchronisation, so that launch and kernel are in it; ``python -m benchmarks`` measures kernels alone, against peers.
"""

from __future__ import annotations

import pytest
import torch

from mobilevit_kernels import ops, registry, verify
from mobilevit_kernels.bench.suite import stage_cases

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.float16 if DEVICE == "cuda" else torch.float32
# Simulator and interpreter run on CPUs and are no measure of anything.
BACKENDS = ("cuda", "triton", "torch") if DEVICE == "cuda" else ("torch",)
CASES = [case for batch in ((1, 256) if DEVICE == "cuda" else (1,)) for case in stage_cases(("mobilevit_s",), batch)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_stage(benchmark, case: verify.StageCase, backend: str) -> None:
    x, weights, options = case.build()
    try:
        chosen = registry.choose(backend, case.stage, weights, DTYPE, torch.device(DEVICE)).backend
    except registry.BackendUnavailable as refusal:
        pytest.skip(str(refusal))
    x = x.to(DEVICE, DTYPE, memory_format=torch.channels_last)
    options = {
        n: v.to(DEVICE, DTYPE, memory_format=torch.channels_last) if isinstance(v, torch.Tensor) else v
        for n, v in options.items()
    }
    op = getattr(ops, case.stage)
    arguments = (x,) if weights is None else (x, ops.pack(weights, DTYPE, DEVICE, chosen))

    def call() -> torch.Tensor:
        y = op(*arguments, **options, backend=chosen)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return y

    benchmark.group = str(case)
    with torch.inference_mode():
        y = benchmark(call)
    assert y.isfinite().all()
