"""Whole models: timm in eager mode against ours, in one process."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import python_ref
from mobilevit_kernels.bench.timing import quantile, time_interleaved
from mobilevit_kernels.optimize import optimize
from mobilevit_kernels.stages import Stage
from mobilevit_kernels.verify import MAX_NETWORK_RATIO, judge

__all__ = ["bench_model"]


def bench_model(
    name: str,
    batch: int,
    *,
    size: int = 256,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    backend: str = "auto",
    rounds: int = 15,
) -> list[dict[str, Any]]:
    """Times a timm model in eager mode (NCHW and channels_last) and ours, and checks ours against float64 first.

    Args:
        name: timm's model name.
        batch, size: images (batch, 3, size, size).
        dtype, device, backend: what is run.
        rounds: timed calls of each implementation, interleaved.

    Returns:
        A record an implementation, in the schema of the result files; a ratio is the median over the rounds of
        stock eager time over this implementation's time, and None where the parity check failed.
    """
    import timm

    stock = timm.create_model(name).eval()
    python_ref.randomize_weights(stock, seed=0)
    stock = stock.to(device)
    fast = optimize(stock, dtype=dtype, backend=backend)
    low = copy.deepcopy(stock).to(dtype)
    channels_last = copy.deepcopy(low).to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.rand((batch, 3, size, size), generator=generator).to(device, dtype) for _ in range(3)]
    with torch.inference_mode():
        x = inputs[0][: min(batch, 2)]
        truth = copy.deepcopy(stock).double()(x.double())
        parity = judge(name, backend, dtype, fast(x), truth, low(x), MAX_NETWORK_RATIO)
    implementations: dict[str, Callable[[Tensor], object]] = {
        "eager": low,
        "eager-channels_last": lambda x: channels_last(x.contiguous(memory_format=torch.channels_last)),
        "ours": fast,
    }
    timings = time_interleaved(implementations, inputs, rounds)
    served_by = sorted({module.packed.backend for module in fast.modules() if isinstance(module, Stage)})
    records = []
    for impl, timing in timings.items():
        trusted = impl != "ours" or parity.passed
        pairs = zip(timings["eager"].samples, timing.samples, strict=True)
        records.append(
            {
                "model": name,
                "shape": [batch, 3, size, size],
                "impl": impl,
                "backend": "+".join(served_by) if impl == "ours" else "torch",
                "dtype": str(dtype).removeprefix("torch."),
                "batch": batch,
                "height": size,
                "width": size,
                "graph": False,
                "ms": timing.ms,
                "ms_p20": timing.ms_p20,
                "ms_p80": timing.ms_p80,
                "ms_p99": timing.ms_p99,
                "images_per_s": batch / timing.ms * 1e3,
                "first_call_s": timing.first_call_s,
                "rel_l2_err": parity.error if impl == "ours" else parity.stock_error,
                "stock_rel_l2_err": parity.stock_error,
                "parity": trusted,
                "ratio": quantile([stock_ms / ms for stock_ms, ms in pairs], 0.5) if trusted else None,
            }
        )
    return records
