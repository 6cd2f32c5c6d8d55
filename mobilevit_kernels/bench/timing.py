"""Interleaved timing of several implementations of one computation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Timing", "quantile", "time_interleaved"]

WARM_UP_RUNS = 3


@dataclass(frozen=True)
class Timing:
    """Milliseconds a call.

    Attributes:
        ms: median.
        ms_p20, ms_p80, ms_p99: quantiles.
        first_call_s: seconds of the first call, with whatever it compiles or initialises.
        samples: every timed call, in order; the i-th of every implementation belong to one round.
    """

    ms: float
    ms_p20: float
    ms_p80: float
    ms_p99: float
    first_call_s: float
    samples: tuple[float, ...]


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile by linear interpolation between the sorted values."""
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def time_interleaved(
    implementations: dict[str, Callable[[Tensor], object]], inputs: Sequence[Tensor], rounds: int = 15
) -> dict[str, Timing]:
    """Times the implementations in turn, so that drift of the machine meets all of them alike.

    Args:
        implementations: by name; called under inference_mode.
        inputs: rotated from round to round.
        rounds: timed calls of each.

    Returns:
        A Timing for each name.
    """
    on_gpu = inputs[0].device.type == "cuda"

    def timed(call: Callable[[Tensor], object], x: Tensor) -> float:
        if on_gpu:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call(x)
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end))
        begin = time.perf_counter()
        call(x)
        return (time.perf_counter() - begin) * 1e3

    first: dict[str, float] = {}
    samples: dict[str, list[float]] = {name: [] for name in implementations}
    with torch.inference_mode():
        for name, call in implementations.items():
            begin = time.perf_counter()
            call(inputs[0])
            if on_gpu:
                torch.cuda.synchronize()
            first[name] = time.perf_counter() - begin
            for i in range(WARM_UP_RUNS - 1):
                call(inputs[i % len(inputs)])
        for i in range(rounds):
            for name, call in implementations.items():
                samples[name].append(timed(call, inputs[i % len(inputs)]))
    return {
        name: Timing(
            quantile(values, 0.5),
            quantile(values, 0.2),
            quantile(values, 0.8),
            quantile(values, 0.99),
            first[name],
            tuple(values),
        )
        for name, values in samples.items()
    }
