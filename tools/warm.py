"""Fills Triton's on-disk cache for the quick benchmarks, a process a network and batch: its compiler uses one core.

Without this the first calls of a cold cache would take most of `make gpu`'s time.
"""

import multiprocessing
import sys

MODELS = ("mobilevit_s", "mobilevit_xs", "mobilevit_xxs")
BATCHES = (256, 1)


def warm(model: str, batch: int) -> str:
    """One forward of a network on the triton backend, in float16."""
    import torch

    import mobilevit_kernels as mvk

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if not mvk.backends()["triton"].available:
        return f"{model}, batch {batch}: no triton here"
    fast = mvk.optimize(mvk.create_model(model).to(device), dtype=torch.float16, backend="triton")
    with torch.inference_mode():
        fast(torch.rand(batch, 3, 256, 256, device=device, dtype=torch.float16))
    return f"{model}, batch {batch}: ready"


if __name__ == "__main__":
    jobs = [(model, batch) for model in MODELS for batch in BATCHES]
    with multiprocessing.get_context("spawn").Pool(len(jobs)) as pool:
        results = [pool.apply_async(warm, job) for job in jobs]
        failed = False
        for job, result in zip(jobs, results, strict=True):
            try:
                print(result.get(), flush=True)
            except Exception as error:
                failed = True
                print(f"{job[0]}, batch {job[1]}: {type(error).__name__}: {error}", flush=True)
    sys.exit(failed)
