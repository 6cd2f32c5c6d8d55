"""Fills Triton's on-disk cache for the quick benchmarks, on all cores: its compiler uses one.

Without this the first calls of a cold cache would take most of `make gpu`'s time.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from mobilevit_kernels.bench.suite import stage_cases
from mobilevit_kernels.verify import StageCase

BATCHES = (256, 1)


def warm(case: StageCase) -> None:
    """One call of a stage on the triton backend, in float16; it is compiled where the cache lacks it."""
    import torch

    from mobilevit_kernels import ops

    def cast(value: object) -> object:
        return value.to("cuda", torch.float16) if isinstance(value, torch.Tensor) else value

    x, weights, options = case.build()
    options = {name: cast(value) for name, value in options.items()}
    with torch.inference_mode():
        if weights is None:
            ops.unfold_attention_fold(cast(x), **options, backend="triton")
        else:
            getattr(ops, case.stage)(cast(x), ops.pack(weights, torch.float16, "cuda", "triton"), **options)
        torch.cuda.synchronize()


if __name__ == "__main__":
    cases = [case for batch in BATCHES for case in stage_cases(batch=batch)]
    failed = 0
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        jobs = {pool.submit(warm, case): case for case in cases}
        for job in as_completed(jobs):
            if (error := job.exception()) is not None:
                failed += 1
                print(f"{jobs[job]}: {type(error).__name__}: {' '.join(str(error).split())[:200]}", flush=True)
    print(f"{len(cases) - failed} of {len(cases)} stage cases ready", flush=True)
    sys.exit(failed > 0)
