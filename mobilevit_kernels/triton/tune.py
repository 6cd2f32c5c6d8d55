"""Measures launch configurations on the device at hand and writes a table that goes before the static one.

A stage of a network runs once, with its launches recorded. Each problem (kernel, dtype, sizes) that the table does not
have yet is then tuned on the first launch that poses it, on that launch's own tensors: from the best configuration so
far, tile sizes are halved and doubled, and so are the warps, and the stages go one up and down; the fastest of these
neighbours is the next to start from, until none is faster.

A candidate counts only if it compiles, fits, spills nothing and gives the default's result.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mobilevit_kernels import ops
from mobilevit_kernels.triton import _launch, launch_table, tuned
from mobilevit_kernels.triton.launch_table import Launch
from mobilevit_kernels.verify import MAX_FLOAT32_ERROR, StageCase, network_cases, relative_error

__all__ = ["Candidate", "Outcome", "jobs", "measure", "tune", "tune_launch"]

GAIN = 0.98  # of the time: what is not faster by 2 % is noise, and the earlier configuration stays
_OUTPUTS = ("out_ptr", "pooled_ptr", "tokens_ptr")
_LARGEST = {"BLOCK_M": 256, "BLOCK_N": 256, "BLOCK_K": 128, "BLOCK_H": 128}
# What a tile covers, by the kernels' constants: it is never wider. Attention's BLOCK_N walks over tokens instead.
_COVERED = {"BLOCK_M": (), "BLOCK_N": ("N",), "BLOCK_K": ("K", "C", "C1", "HIDDEN"), "BLOCK_H": ("HIDDEN",)}
_MAX_WARPS = 8
_MAX_STAGES = 5

Job: TypeAlias = tuple[StageCase, torch.dtype]
Measure: TypeAlias = Callable[[Sequence[Callable[[], Any]], int], list[float]]


@dataclass
class Candidate:
    """One configuration of a problem.

    Attributes:
        config: the configuration.
        us: microseconds a launch, by the latest measurement; None where it was rejected.
        rejected: why it may not win; "" where it may.
    """

    config: Launch
    us: float | None = None
    rejected: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As in the table's file."""
        config = {
            "blocks": dict(self.config.blocks),
            "num_warps": self.config.num_warps,
            "num_stages": self.config.num_stages,
        }
        return {**config, "rejected": self.rejected} if self.rejected else {**config, "us": self.us}


@dataclass
class Outcome:
    """What tuning one problem gave: the winner, the default, and all that was tried."""

    problem: launch_table.Problem
    best: Candidate
    default: Candidate
    candidates: list[Candidate]

    @property
    def speedup(self) -> float:
        """The default's time over the winner's."""
        return _us(self.default) / _us(self.best)

    def to_dict(self) -> dict[str, Any]:
        """An entry of the table's file."""
        best = self.best.to_dict()
        return {
            "kernel": self.problem.kernel,
            "dtype": str(self.problem.dtype).removeprefix("torch."),
            "problem": dict(zip(launch_table.parameters(self.problem.kernel), self.problem.sizes, strict=True)),
            "us": best.pop("us"),
            "default_us": self.default.us,
            "config": best,
            "candidates": [candidate.to_dict() for candidate in self.candidates],
        }


def measure(calls: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    """Microseconds a call: the calls take turns, and each flushes the L2 first.

    Args:
        calls: what to time.
        rounds: how often each has its turn; the result is the median over the turns.
    """
    from triton.testing import do_bench

    turns = [[do_bench(call, warmup=1, rep=5, return_mode="median") for call in calls] for _ in range(rounds)]
    return [sorted(times)[len(times) // 2] * 1e3 for times in zip(*turns, strict=True)]


def _neighbours(config: Launch, arguments: dict[str, Any]) -> Iterator[Launch]:
    """Configurations one step away, in one respect."""
    for i, (name, value) in enumerate(config.blocks):
        if name in tuned.TUNABLE:
            widths = [arguments[key] for key in _COVERED[name] if key in arguments]
            largest = min([_LARGEST[name], *(max(16, launch_table.next_power_of_two(width)) for width in widths)])
            for size in (value // 2, value * 2):
                if 16 <= size <= largest:
                    blocks = (*config.blocks[:i], (name, size), *config.blocks[i + 1 :])
                    yield Launch(blocks, config.num_warps, config.num_stages)
    for num_warps in (config.num_warps // 2, config.num_warps * 2):
        if 1 <= num_warps <= _MAX_WARPS:
            yield Launch(config.blocks, num_warps, config.num_stages)
    for num_stages in (config.num_stages - 1, config.num_stages + 1):
        if 1 <= num_stages <= _MAX_STAGES:
            yield Launch(config.blocks, config.num_warps, num_stages)


def _compile_ahead(recorded: _launch.Recorded, configs: Sequence[Launch]) -> None:
    """Compiles on all cores. An error comes again, and is recorded, when the configuration is tried."""
    import triton

    if not recorded.tensors[0].is_cuda:
        return
    with (
        contextlib.suppress(Exception),
        torch.cuda.device(recorded.tensors[0].device),
        ThreadPoolExecutor(os.cpu_count()) as pool,
        triton.AsyncCompileMode(pool, ignore_errors=True),
    ):
        for config in configs:
            recorded.compile(config)


class _Trial:
    """Runs one recorded launch in any configuration, each time from the same output buffers."""

    def __init__(self, recorded: _launch.Recorded) -> None:
        self.recorded = recorded
        self._output: Tensor = next(recorded.arguments[name] for name in _OUTPUTS if name in recorded.arguments)
        self._before = self._output.clone()

    def restore(self) -> None:
        """Puts the outputs back to what they were."""
        self._output.copy_(self._before)

    def run(self, config: Launch) -> tuple[Tensor, Any]:
        """The result and the compiled kernel."""
        self.restore()
        compiled = self.recorded.run(config)
        return self._output.clone(), compiled

    def obstacle(self, config: Launch, expected: Tensor) -> str:
        """Why a configuration may not win; "" where it may."""
        try:
            result, compiled = self.run(config)
        except Exception as error:  # the compiler's errors have no common class, and none may end the search
            if self._output.is_cuda:
                torch.cuda.synchronize(self._output.device)  # raises where the device is gone: then all would fail
            return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        spills = getattr(compiled, "n_spills", 0)
        if spills:
            return f"spills {spills} registers"
        dtype = self.recorded.problem.dtype
        limit = MAX_FLOAT32_ERROR if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
        distance = relative_error(result, expected)
        return "" if distance <= limit else f"another result than the default's: relative error {distance:.1e}"


def tune_launch(
    recorded: _launch.Recorded,
    arch: int,
    *,
    measure: Measure = measure,
    steps: int = 8,
    rounds: int = 3,
    deadline: float = float("inf"),
) -> Outcome:
    """Searches the fastest configuration of one launch.

    Args:
        recorded: the launch; its outputs are written to.
        arch: compute capability as one number.
        measure: what times a list of calls.
        steps: how far from the default the search may go.
        rounds: turns of each call in a measurement.
        deadline: ``time.monotonic()`` at which the search ends with the best so far.
    """
    default = Candidate(launch_table.static(recorded.problem, arch))
    trial = _Trial(recorded)
    expected, _ = trial.run(default.config)

    def time_all(candidates: list[Candidate], rounds: int) -> None:
        calls = [functools.partial(recorded.run, candidate.config) for candidate in candidates]
        for candidate, us in zip(candidates, measure(calls, rounds), strict=True):
            candidate.us = us

    time_all([default], rounds)
    tried = {default.config: default}
    best = default
    for _ in range(steps):
        fresh = [config for config in _neighbours(best.config, recorded.arguments) if config not in tried]
        if time.monotonic() >= deadline:
            break
        _compile_ahead(recorded, fresh)
        usable = []
        for config in fresh:
            tried[config] = candidate = Candidate(config, rejected=trial.obstacle(config, expected))
            if not candidate.rejected:
                usable.append(candidate)
        if not usable:
            break
        time_all([best, *usable], rounds)
        fastest = min(usable, key=_us)
        if _us(fastest) > GAIN * _us(best):
            break
        best = fastest
    if best is not default:
        time_all([default, best], 2 * rounds + 1)
        if _us(best) > GAIN * _us(default):
            best = default
    trial.restore()
    return Outcome(recorded.problem, best, default, list(tried.values()))


def _us(candidate: Candidate) -> float:
    assert candidate.us is not None
    return candidate.us


def jobs(
    models: Sequence[str], stages: Sequence[str], batches: Sequence[int], dtypes: Sequence[torch.dtype], size: int
) -> list[Job]:
    """Every stage shape of the networks once, the largest batch first, since a problem is tuned where it is first met.

    Args:
        models: networks' names.
        stages: only these; empty: all.
        batches, dtypes: in which to run them.
        size: height and width of the images.
    """
    return [
        (case, dtype)
        for dtype in dtypes
        for batch in sorted(set(batches), reverse=True)
        for case in {
            str(case): case for _, _, case in network_cases(tuple(models), batch=batch, height=size, width=size)
        }.values()
        if not stages or case.stage in stages
    ]


def _record(case: StageCase, dtype: torch.dtype, device: torch.device) -> list[_launch.Recorded]:
    """Runs a stage once and returns its launches, with their tensors."""

    def cast(value: Any) -> Any:
        return value.to(device, dtype) if isinstance(value, Tensor) else value

    x, weights, options = case.build()
    assert weights is not None
    packed = ops.pack(weights, dtype, device, "triton")
    with torch.no_grad(), _launch.recording() as record:
        getattr(ops, case.stage)(cast(x), packed, **{name: cast(value) for name, value in options.items()})
    return record


def tune(
    jobs: Sequence[Job],
    device: torch.device,
    path: Path,
    *,
    measure: Measure = measure,
    quick: bool = False,
    budget: float | None = None,
) -> Iterator[list[Outcome]]:
    """Tunes the problems of all jobs; the table is written after each, so that it always holds the best so far.

    Entries that ``path`` has already, from the same GPU model and Triton, stay where they are not tuned anew; any
    other file there is replaced.

    Args:
        jobs: from :func:`jobs`.
        device: where to run.
        path: the table's file.
        measure: what times a list of calls.
        quick: one step from the default, and one turn a measurement.
        budget: seconds after which nothing new is started; None: as long as it takes.

    Yields:
        A list a job: the outcomes of the problems that it posed first.
    """
    import triton

    gpu, arch = tuned.identity(device)
    deadline = float("inf") if budget is None else time.monotonic() + budget
    meta = {
        "gpu": gpu,
        "capability": f"{arch // 10}.{arch % 10}",
        "triton": triton.__version__,
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    entries = {_entry_key(entry): entry for entry in _kept_entries(path, meta)}
    done: set[launch_table.Problem] = set()
    settings = {"steps": 1, "rounds": 1} if quick else {}
    for case, dtype in jobs:
        outcomes: list[Outcome] = []
        # The timer's events belong to the current device.
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            for recorded in _record(case, dtype, device) if time.monotonic() < deadline else ():
                if recorded.problem in done or time.monotonic() >= deadline:
                    continue
                done.add(recorded.problem)
                outcome = tune_launch(recorded, arch, measure=measure, deadline=deadline, **settings)
                outcomes.append(outcome)
                entry = outcome.to_dict()
                entries[_entry_key(entry)] = entry
                tuned.write(path, meta, list(entries.values()))
        yield outcomes


def _entry_key(entry: dict[str, Any]) -> tuple[Any, ...]:
    return entry["kernel"], entry["dtype"], *entry["problem"].items()


def _kept_entries(path: Path, meta: dict[str, Any]) -> list[dict[str, Any]]:
    try:
        table = tuned.read(path)
    except ValueError:
        return []
    same = all(table.meta[name] == meta[name] for name in ("gpu", "capability", "triton"))
    return table.entries if same else []
