"""Interleaved timing of several implementations of one computation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

__all__ = ["Call", "Timing", "captured", "quantile", "time_interleaved"]

Call: TypeAlias = Callable[[Tensor], Any]

WINDOW = 5  # calls in each half of the stability test
STABLE_WITHIN = 0.02  # the medians of two windows in a row differ by less
WARM_UP_S = 2.0  # and if they never do, go on after so long, and say so
TARGET_S = 1.0  # of timed calls an implementation
MIN_ROUNDS, MAX_ROUNDS = 7, 200
HOST_CALLS = 10
FLUSH_FACTOR = 4  # the flush reads so many times the L2: it evicts everything, and the queue fills up meanwhile


@dataclass(frozen=True)
class Timing:
    """Milliseconds a call.

    Attributes:
        ms: median.
        ms_p20, ms_p80, ms_p99: quantiles.
        host_us: microseconds until a call returns while the device is idle, median; None on a CPU.
        stable: the warm-up ended because the time had settled.
        samples: every timed call, in order; the i-th of every implementation belong to one round.
    """

    ms: float
    ms_p20: float
    ms_p80: float
    ms_p99: float
    host_us: float | None
    stable: bool
    samples: tuple[float, ...]


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile by linear interpolation between the sorted values."""
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


class Stopwatch:
    """Times single calls: with CUDA events behind a flush of the L2, or with the processor's clock.

    The flush reads a buffer larger than the L2. While it runs, the call is already being queued, so that a short call
    is not charged for its launch. A call whose launches take longer than its kernels is: that is what it costs.

    Args:
        device: where the inputs are.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        if self.on_gpu:
            l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
            self._buffer = torch.zeros(FLUSH_FACTOR * l2_bytes // 4, device=device)
            self._sum = torch.zeros((), device=device)
            self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def milliseconds(self, call: Call, x: Tensor) -> float:
        """One call's time."""
        if not self.on_gpu:
            begin = time.perf_counter()
            call(x)
            return (time.perf_counter() - begin) * 1e3
        torch.sum(self._buffer, 0, out=self._sum)
        self._start.record()
        call(x)
        self._end.record()
        self._end.synchronize()
        return float(self._start.elapsed_time(self._end))

    def host_microseconds(self, call: Call, x: Tensor) -> float | None:
        """Time until a call returns on an idle device; None on a CPU."""
        if not self.on_gpu:
            return None
        values = []
        for _ in range(HOST_CALLS):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            call(x)
            values.append((time.perf_counter() - begin) * 1e6)
        torch.cuda.synchronize()
        return statistics.median(values)


def _warm_up(watch: Stopwatch, call: Call, inputs: Sequence[Tensor], limit_s: float) -> tuple[float, bool]:
    """Calls until the time has settled or ``limit_s`` is over: (milliseconds a call, settled)."""
    samples: list[float] = []
    deadline = time.perf_counter() + limit_s
    while True:
        samples.append(watch.milliseconds(call, inputs[len(samples) % len(inputs)]))
        recent = statistics.median(samples[-WINDOW:])
        if len(samples) >= 2 * WINDOW:
            before = statistics.median(samples[-2 * WINDOW : -WINDOW])
            if abs(recent - before) <= STABLE_WITHIN * before:
                return recent, True
        if time.perf_counter() > deadline:
            return recent, False


def time_interleaved(
    implementations: dict[str, Call],
    inputs: Sequence[Tensor],
    rounds: int | None = None,
    *,
    target_s: float = TARGET_S,
    warm_up_s: float = WARM_UP_S,
) -> dict[str, Timing]:
    """Times the implementations in turn, so that drift of the machine meets all of them alike.

    Each is warmed up until its time has settled. Then every round calls each once, in an order that moves on by one
    from round to round, so that none always follows the same other one.

    Args:
        implementations: by name; called under inference_mode. Their first calls are over.
        inputs: rotated from round to round.
        rounds: timed calls of each; None: as many as take ``target_s`` an implementation, between 7 and 200.
        target_s, warm_up_s: seconds.

    Returns:
        A Timing for each name.
    """
    watch = Stopwatch(inputs[0].device)
    names = list(implementations)
    samples: dict[str, list[float]] = {name: [] for name in names}
    with torch.inference_mode():
        warm = {name: _warm_up(watch, call, inputs, warm_up_s) for name, call in implementations.items()}
        if rounds is None:
            slowest_s = max(ms for ms, _ in warm.values()) / 1e3
            rounds = max(MIN_ROUNDS, min(MAX_ROUNDS, int(target_s / max(slowest_s, 1e-9))))
        for i in range(rounds):
            for name in names[i % len(names) :] + names[: i % len(names)]:
                samples[name].append(watch.milliseconds(implementations[name], inputs[i % len(inputs)]))
        host = {name: watch.host_microseconds(call, inputs[0]) for name, call in implementations.items()}
    return {
        name: Timing(
            quantile(values, 0.5),
            quantile(values, 0.2),
            quantile(values, 0.8),
            quantile(values, 0.99),
            host[name],
            warm[name][1],
            tuple(values),
        )
        for name, values in samples.items()
    }


def captured(call: Call, x: Tensor) -> Call:
    """A call's work as a CUDA graph; the result ignores its argument and works on ``x``.

    Args:
        call: deterministic in its launches; its first call is over.
        x: the input it is captured with, on a CUDA device.

    Raises:
        RuntimeError: the work cannot be captured.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode():
        with torch.cuda.stream(side):
            call(x)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = call(x)  # holds the outputs: the graph writes to them

    def replay(_: Tensor) -> object:
        graph.replay()
        return kept

    return replay
