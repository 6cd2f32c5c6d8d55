"""Measures the alternatives of a stage on one shape, and how many slices to cut a batch into."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from mobilevit_kernels.native.choices import Outcome
from mobilevit_kernels.native.launches import Alternatives, Launch, Library, Slot, call

__all__ = ["Measure", "fastest", "measure", "slice_counts", "tune_stage"]

#: Calls to the microseconds that each takes.
Measure: TypeAlias = Callable[[Sequence[Callable[[], object]]], "list[float]"]

GAIN = 0.98  # of the time: what is not faster by 2 % is noise, and the default stays
# A step through PyTorch takes this much of the host's time; a kernel that takes less on the device would wait for it.
HOST_US = 40.0
MAX_ERROR = 16  # in the dtype's eps: two orders of summation stay far below, wrong results lie above
_REPEATED_US = 100.0  # short calls are repeated in a measurement until they take about this long
_ROUNDS = 15


def measure(device: torch.device, calls: Sequence[Callable[[], object]]) -> list[float]:
    """Microseconds a call on a GPU: the median of turns that the calls take, each as a CUDA graph.

    A short call is repeated inside its graph. Every turn begins behind a flush of the L2; what is repeated then finds
    its weights there, and its activations where they fit, as in a network.
    """
    with torch.cuda.device(device):
        return _measure(device, calls)


def _measure(device: torch.device, calls: Sequence[Callable[[], object]]) -> list[float]:
    from mobilevit_kernels.bench.timing import Stopwatch, captured

    watch, nothing = Stopwatch(device), torch.zeros(0, device=device)

    def graph(call: Callable[[], object], times: int) -> Callable[[Tensor], object]:
        def run(_: Tensor) -> None:
            for _turn in range(times):
                call()

        return captured(run, nothing)

    repeats, graphs = [], []
    for one in calls:
        once = graph(one, 1)
        us = 1e3 * statistics.median(watch.milliseconds(once, nothing) for _ in range(3))
        repeats.append(max(1, min(20, int(_REPEATED_US / max(us, 1e-3)))))
        graphs.append(once if repeats[-1] == 1 else graph(one, repeats[-1]))
    turns = [[watch.milliseconds(graph, nothing) for graph in graphs] for _ in range(_ROUNDS)]
    return [1e3 * statistics.median(times) / n for times, n in zip(zip(*turns, strict=True), repeats, strict=True)]


def fastest(problem: str, us: Mapping[str, float], rejected: Mapping[str, str]) -> Outcome:
    """The outcome of a problem from the microseconds of its alternatives, the default first."""
    default = next(iter(us))
    best = min(us, key=lambda name: us[name])
    return Outcome(problem, default, best if us[best] < GAIN * us[default] else default, dict(us), dict(rejected))


def tune_stage(
    library: Library, problem: str, alternatives: Alternatives, device: torch.device, measure: Measure
) -> Outcome:
    """Runs every alternative on the same random input, and times those that give the default's result.

    Args:
        library: that launches.
        problem, alternatives: as recorded.
        device: where to run.
        measure: what times a list of calls.
    """
    inputs = next(iter(alternatives.values()))
    written = {launch.output for launches in alternatives.values() for launch in launches}
    slots = [v for launch in inputs for v in launch.inputs.values() if isinstance(v, Slot) and v not in written]
    generator = torch.Generator(device).manual_seed(0)
    tensors = {slot: slot.allocate(device).normal_(generator=generator) for slot in slots}

    calls: dict[str, Callable[[], Tensor]] = {}
    rejected: dict[str, str] = {}
    expected: Tensor | None = None
    for name, launches in alternatives.items():
        # Every alternative has slots of its own for what it writes, and the same ones for what it reads.
        try:
            run = _ready(library, launches, dict(tensors), device)
            result = run().float()
            error = 0.0 if expected is None else float((result - expected).norm() / expected.norm())
        except RuntimeError as failure:
            if expected is None:
                raise
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # raises where the device is gone: then all would fail
            rejected[name] = f"{type(failure).__name__}: {' '.join(str(failure).split())[:200]}"
            continue
        expected = result if expected is None else expected
        if error <= MAX_ERROR * torch.finfo(launches[-1].dtype).eps:
            calls[name] = run
        else:
            rejected[name] = f"another result than the default's: relative error {error:.1e}"
    us = dict(zip(calls, measure(list(calls.values())), strict=True))
    default, *others = us
    if us[default] < HOST_US:
        for name in [name for name in others if any(launch.function for launch in alternatives[name])]:
            rejected[name] = f"{us.pop(name):.1f} µs, but a step in PyTorch takes the host {HOST_US:.0f} µs"
    return fastest(problem, us, rejected)


def _ready(
    library: Library, launches: Sequence[Launch], tensors: dict[Slot, Tensor], device: torch.device
) -> Callable[[], Tensor]:
    """Launches as a call that allocates nothing of ours."""
    workspaces = []
    for launch in launches:
        tensors[launch.output] = launch.output.allocate(device)
        size = launch.workspace_bytes
        workspaces.append(torch.empty(size, dtype=torch.uint8, device=device) if size else None)

    def run() -> Tensor:
        for launch, workspace in zip(launches, workspaces, strict=True):
            call(library, launch, tensors.__getitem__, workspace)
        return tensors[launches[-1].output]

    return run


@functools.cache
def slice_counts(batch: int, workspace_bytes: int, l2_bytes: int) -> tuple[int, ...]:
    """Into how many slices a batch may be worth cutting: 1, and what brings a slice's activations near the L2's size.

    Args:
        batch: images; a count of slices divides it.
        workspace_bytes: of the activations that are alive at once, of the whole batch.
        l2_bytes: of the device.
    """
    counts = (count for count in range(2, batch + 1) if batch % count == 0)
    near = [count for count in counts if l2_bytes / 8 <= workspace_bytes / count <= 2 * l2_bytes]
    if len(near) > 4:  # evenly among them
        near = [near[round(i * (len(near) - 1) / 3)] for i in range(4)]
    return (1, *near) if workspace_bytes > l2_bytes / 2 else (1,)
