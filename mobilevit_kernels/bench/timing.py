"""Interleaved timing of several implementations of one computation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mobilevit_kernels.engine import CAPTURING

__all__ = ["Call", "CallFailed", "Timing", "captured", "quantile", "time_interleaved"]

Call: TypeAlias = Callable[[Tensor], Any]

WINDOW = 5  # calls in each half of the stability test
STABLE_WITHIN = 0.02  # the medians of two windows in a row differ by less
WARM_UP_S = 2.0  # and if they never do, go on after so long, and say so
TARGET_S = 1.0  # of timed calls an implementation
MIN_ROUNDS, MAX_ROUNDS = 7, 200
MIN_LATENCY_CALLS, MAX_LATENCY_CALLS = 10, 100
FLUSH_FACTOR = 4  # the flush reads so many times the L2: it evicts everything, and the queue fills up meanwhile


class CallFailed(Exception):
    """An implementation raised while it was timed; ``name`` says which, ``__cause__`` is what it raised."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True)
class Timing:
    """Milliseconds a call.

    Attributes:
        ms: median.
        ms_p20, ms_p80, ms_p99: quantiles.
        host_us: microseconds until a call returns while the device is idle, median; None on a CPU.
        latency_ms, latency_ms_p20: of single calls, from an idle device to the finished result, by the wall clock.
        latency_ms_p99: None where there were fewer than 100 of these calls.
        stable: the warm-up ended because the time had settled.
        samples: every timed call, in order; the i-th of every implementation belong to one round.
    """

    ms: float
    ms_p20: float
    ms_p80: float
    ms_p99: float
    host_us: float | None
    latency_ms: float
    latency_ms_p20: float
    latency_ms_p99: float | None
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

    The flush reads a buffer larger than the L2. While it runs, the call is already being queued: its time is the
    device's, without the launch. What a single call costs from the host's side is its latency.

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

    def single(self, call: Call, x: Tensor) -> tuple[float, float]:
        """One call on an idle device by the wall clock: milliseconds until it returns, and until it is finished."""
        if self.on_gpu:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        call(x)
        returned = time.perf_counter()
        if self.on_gpu:
            torch.cuda.synchronize()
        return (returned - begin) * 1e3, (time.perf_counter() - begin) * 1e3


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


def _named(name: str, call: Call) -> Call:
    def run(x: Tensor) -> object:
        try:
            return call(x)
        except Exception as error:
            raise CallFailed(name) from error

    return run


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

    Raises:
        CallFailed: one of them raised.
    """
    watch = Stopwatch(inputs[0].device)
    implementations = {name: _named(name, call) for name, call in implementations.items()}
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
        singles: dict[str, list[tuple[float, float]]] = {}
        for name, call in implementations.items():
            count = int(2e3 * target_s / max(statistics.median(samples[name]), 1e-6))
            count = max(MIN_LATENCY_CALLS, min(MAX_LATENCY_CALLS, count))
            singles[name] = [watch.single(call, inputs[i % len(inputs)]) for i in range(count)]
    return {name: _timing(samples[name], singles[name], watch.on_gpu, warm[name][1]) for name in names}


def _timing(samples: Sequence[float], singles: Sequence[tuple[float, float]], on_gpu: bool, stable: bool) -> Timing:
    returned, finished = zip(*singles, strict=True)
    return Timing(
        quantile(samples, 0.5),
        quantile(samples, 0.2),
        quantile(samples, 0.8),
        quantile(samples, 0.99),
        1e3 * statistics.median(returned) if on_gpu else None,
        quantile(finished, 0.5),
        quantile(finished, 0.2),
        quantile(finished, 0.99) if len(finished) >= MAX_LATENCY_CALLS else None,
        stable,
        tuple(samples),
    )


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
        # PyTorch's own stream for captures stays on the device that the process captured on first. Other threads may go
        # on with what would break a capture of the whole process.
        with CAPTURING, torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            kept = call(x)  # holds the outputs: the graph writes to them

    def replay(_: Tensor) -> object:
        graph.replay()
        return kept

    return replay
