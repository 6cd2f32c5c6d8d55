"""Runs jobs: builds each implementation, checks it against float64, times them in turn, writes records."""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch._inductor.utils import fresh_cache  # here, as a time limit that cut the import short would leave half of it

from mobilevit_kernels import machine, registry, verify
from mobilevit_kernels.bench import ceilings, results, timing
from mobilevit_kernels.bench.ceilings import NOT_MEASURED, Ceilings
from mobilevit_kernels.bench.implementations import Subject, subject_of
from mobilevit_kernels.bench.results import Record, Results
from mobilevit_kernels.bench.suite import Job, Plan, Variant
from mobilevit_kernels.bench.timing import Call, Timing
from mobilevit_kernels.native import choices
from mobilevit_kernels.registry import BackendUnavailable
from mobilevit_kernels.verify import Result

__all__ = ["Limits", "TimeLimitExceeded", "run", "run_job", "time_limit"]

MakeSubject: TypeAlias = Callable[[Job, torch.device], Subject]
Progress: TypeAlias = Callable[[str], None]

BUDGET_OVER = "the time budget was over"
LOST = "the GPU was lost"  # begins the reasons of what was not measured because of another implementation
OWN_GRAPHS = ("compile-reduce-overhead", "compile-max-autotune", "tensorrt")  # a replay cannot be captured
DRAWS = 8  # of a network's weights, where the first is above the bound
REDRAW_S = 60.0  # that they may take; what compiles for longer is judged by its first draw
SHORT_MS = 0.1  # below this a call is timed by replaying a CUDA graph of it


@dataclass(frozen=True)
class Limits:
    """How long things may take.

    Attributes:
        budget_s: seconds for the whole run; None: no limit.
        prepare_s: for building, compiling and the first call of one implementation.
        target_s: of timed calls an implementation.
        warm_up_s: of warming up an implementation, at most.
        rounds: timed calls of each implementation; None: by ``target_s``.
    """

    budget_s: float | None = None
    prepare_s: float = 900.0
    target_s: float = timing.TARGET_S
    warm_up_s: float = timing.WARM_UP_S
    rounds: int | None = None


class TimeLimitExceeded(BaseException):
    """What ``time_limit`` raises inside its block; no Exception, so that a compiler does not take it for its own."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeLimitExceeded in its block after ``seconds``.

    Works in the main thread on systems with SIGALRM; elsewhere the block takes as long as it takes.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def expire(*_: object) -> None:
        raise TimeLimitExceeded(f"took longer than {seconds:.0f} s")

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@dataclass
class _Prepared:
    """An implementation that is ready to be timed."""

    variant: Variant
    call: Call
    record: Record  # without times


def run_job(
    job: Job,
    device: torch.device,
    measured: Ceilings = NOT_MEASURED,
    limits: Limits = Limits(),
    deadline: float | None = None,
    progress: Progress = lambda text: None,
    make_subject: MakeSubject = subject_of,
    before_timing: Callable[[], None] = lambda: None,
) -> list[Record]:
    """Builds, checks and times every implementation of a job.

    Args:
        job: what to do.
        device: where.
        measured: the device's ceilings, for the floor.
        limits: see :class:`Limits`.
        deadline: ``time.monotonic()`` after which nothing more is prepared; None: never.
        progress: told what is going on.
        make_subject: builds the weights and inputs.
        before_timing: called when all are prepared; may wait until the device is free.

    Returns:
        A record for each implementation, those that were timed first; whatever went wrong is in status and reason.
    """
    blank = _blank(job, measured)
    failed: list[Record] = []
    prepared: list[_Prepared] = []

    unmeasured = functools.partial(_unmeasured, blank)

    def left_s() -> float:
        return limits.prepare_s if deadline is None else min(limits.prepare_s, deadline - time.monotonic())

    if left_s() <= 0:
        return unmeasured(results.LEFT_OUT, BUDGET_OVER, *job.variants)
    try:
        subject = make_subject(job, device)
        truth, stock = _truth(subject)
    except Exception as error:
        return unmeasured(*_status_of(error), *job.variants)
    judged: list[_Judged] = []
    for variant in job.variants:
        progress(f"{job.id}  {variant}")
        if (left := left_s()) <= 0:
            failed += unmeasured(results.LEFT_OUT, BUDGET_OVER, variant)
            continue
        try:
            with time_limit(left):
                ready = _prepare(subject, variant, blank, truth, stock, judged, min(REDRAW_S, left / 2))
        except TimeLimitExceeded as error:
            _stop_compilers()
            _free_memory(device)
            cut_short = left < limits.prepare_s
            status = results.LEFT_OUT if cut_short else "failed"
            failed += unmeasured(status, f"{BUDGET_OVER} while it was prepared" if cut_short else str(error), variant)
            continue
        except Exception as error:
            failed += unmeasured(*_status_of(error), variant)
            if _is_lost(device):  # nothing runs in this process any more
                tried = {record.key for record in failed}
                rest = unmeasured(results.LEFT_OUT, f"{LOST} to {variant}", *job.variants)
                return failed + [record for record in rest if record.key not in tried]
            _free_memory(device)
            continue
        if ready.record.key not in [other.record.key for other in prepared]:  # "auto" may be one of the named ones
            prepared.append(ready)
    before_timing()
    progress(f"{job.id}  timing {len(prepared)} implementations")
    done = _time_all(prepared, subject, limits, deadline)
    keys = [record.key for record in done]
    return done + [record for record in failed if record.key not in keys]


def _time_all(prepared: list[_Prepared], subject: Subject, limits: Limits, deadline: float | None) -> list[Record]:
    """Times what is ready; an implementation that raises meanwhile costs the others nothing."""
    failed: list[Record] = []
    while prepared:
        try:
            return _time(prepared, subject, limits, deadline) + failed
        except timing.CallFailed as failure:
            culprits = [p for p in prepared if p.record.label == failure.name]
            status, reason = _status_of(failure.__cause__ or failure)
        except Exception as error:
            culprits = list(prepared)
            status, reason = _status_of(error)
        failed += [replace(p.record, status=status, reason=f"while timing: {reason}") for p in culprits]
        prepared = [p for p in prepared if p not in culprits]
        if _is_lost(subject.device):
            return failed + [
                replace(p.record, status=results.LEFT_OUT, reason=f"{LOST} while timing") for p in prepared
            ]
        del culprits
        _free_memory(subject.device)
    return failed


def _unmeasured(blank: Record, status: str, reason: str, *variants: Variant) -> list[Record]:
    return [
        replace(blank, impl=v.impl, backend=v.backend, graph=v.graph, status=status, reason=reason) for v in variants
    ]


def _blank(job: Job, measured: Ceilings) -> Record:
    work = job.work
    bound = None
    floor_ms = work.floor_ms(measured, job.dtype) if work else None
    if work and floor_ms is not None:
        bound = next(name for name, ms in work.times_ms(measured, job.dtype).items() if ms == floor_ms)
    return Record(
        job=job.id,
        model=job.model,
        stage=job.case.stage if job.case else None,
        case=job.case_name,
        suites=job.suites,
        shape=job.shape,
        impl="",
        backend="",
        dtype=job.dtype_name,
        batch=job.batch,
        height=job.height,
        width=job.width,
        graph=False,
        status=results.LEFT_OUT,
        flops=work.flops if work else None,
        bytes=work.bytes(job.dtype) if work else None,
        floor_ms=floor_ms,
        floor_bound=bound,
    )


def _truth(subject: Subject) -> tuple[torch.Tensor, torch.Tensor]:
    """The checked images in float64, and by stock eager in the job's dtype."""
    with torch.inference_mode():
        truth = subject.truth()
        eager, _ = subject.build(Variant("eager"))
        return truth, eager(subject.inputs[0])[subject.rows].clone()


@dataclass(frozen=True)
class _Judged:
    """An implementation's result, and what came of the check."""

    backend: str
    output: torch.Tensor
    parity: Result
    draws: int


def _prepare(
    subject: Subject,
    variant: Variant,
    blank: Record,
    truth: torch.Tensor,
    stock: torch.Tensor,
    judged: list[_Judged],
    redraw_s: float,
) -> _Prepared:
    """Builds an implementation, calls it, checks its result, and sees what memory a call takes.

    The same bits of the same backend, with and without a graph, are judged once: ``judged`` has the job's results so
    far, and gets this one.
    """
    device, x = subject.device, subject.inputs[0]
    on_gpu = device.type == "cuda"
    with torch.inference_mode():
        held = 0
        if on_gpu:
            gc.collect()  # what earlier implementations left must not be freed while this one is measured
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats(device)
            held = torch.cuda.memory_allocated(device)
        # A compile finds nothing that an earlier one left on disk: its time is that of a first compile.
        with fresh_cache() if variant.impl.startswith("compile-") else contextlib.nullcontext():
            begin = time.perf_counter()
            call, backend = subject.build(variant)
            output = call(x)
            if on_gpu:
                torch.cuda.synchronize()
            first_call_s = time.perf_counter() - begin
        if not isinstance(output, torch.Tensor):
            raise TypeError(f"expected a tensor, got {type(output).__name__}")
        peak_mb = None
        if on_gpu:
            if not variant.graph:  # a replay allocates nothing: what it works in was allocated at its capture
                torch.cuda.reset_peak_memory_stats(device)
            call(x)
            torch.cuda.synchronize()
            peak_mb = (torch.cuda.max_memory_allocated(device) - held) / 2**20
        graph = variant.graph
        may_be_captured = on_gpu and not graph and variant.impl not in OWN_GRAPHS
        if may_be_captured and (subject.job.case is not None or _is_short(call, x)):
            with contextlib.suppress(RuntimeError):  # what cannot be captured is timed as it is: graph stays False
                call, graph = timing.captured(call, x), True
        output = call(x)[subject.rows].clone()  # of what is going to be timed
        known = (other for other in judged if other.backend == backend and torch.equal(other.output, output))
        if (same := next(known, None)) is not None:
            parity, draws = same.parity, same.draws
        else:
            parity = verify.judge(subject.job.id, backend, subject.job.dtype, output, truth, stock, subject.max_ratio)
            draws = 1
            if not parity.passed and first_call_s * (DRAWS - 1) <= redraw_s:
                parity, draws = _redraw(subject, variant, parity, (output, truth, stock), redraw_s)
            judged.append(_Judged(backend, output, parity, draws))
    record = replace(
        blank,
        impl=variant.impl,
        backend=backend,
        graph=graph,
        status=results.OK if parity.passed else "parity failed",
        reason="" if parity.passed else _parity_reason(parity, subject.max_ratio, draws),
        first_call_s=first_call_s,
        peak_mb=peak_mb,
        rel_l2_err=_finite(parity.error),
        stock_rel_l2_err=_finite(parity.stock_error),
        draws=draws,
    )
    return _Prepared(variant, call, record)


def _redraw(subject: Subject, variant: Variant, first: Result, draw: verify.Draw, limit_s: float) -> tuple[Result, int]:
    """Judges an implementation whose first draw of weights is above the bound by ``DRAWS`` of them together.

    Returns:
        The result and how many draws it is over: 1, and ``first``, where weights are not drawn anew, the dtype's bound
        is no ratio, or the time or the memory does not suffice.
    """
    if first.dtype not in (torch.float16, torch.bfloat16) or not math.isfinite(first.error):
        return first, 1
    end = time.perf_counter() + limit_s
    draws = [draw]
    try:
        for seed in range(1, DRAWS):
            other = subject.redrawn(seed)
            if other is None or time.perf_counter() > end:
                return first, 1
            truth, stock = _truth(other)
            call, _ = other.build(variant)
            draws.append((call(other.inputs[0])[subject.rows].clone(), truth, stock))
    except Exception:  # the first draw was judged: what fails in another takes nothing from it
        return first, 1
    return verify.judge_draws(first.name, first.backend, first.dtype, draws, subject.max_ratio), DRAWS


def _is_short(call: Call, x: torch.Tensor) -> bool:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call(x)
    end.record()
    end.synchronize()
    return bool(start.elapsed_time(end) < SHORT_MS)


def _finite(value: float) -> float | None:
    return value if value - value == 0 else None  # JSON has no infinities


def _parity_reason(parity: Result, max_ratio: float, draws: int) -> str:
    if parity.dtype in (torch.float32, torch.float64):
        return f"error {parity.error:.1e} against float64, allowed {verify.MAX_FLOAT32_ERROR:.0e}"
    over = "" if draws == 1 else f" over {draws} draws of weights"
    return f"error {parity.error:.1e} against float64{over}, {parity.ratio:.2f} × stock eager's, allowed {max_ratio} ×"


def _time(prepared: list[_Prepared], subject: Subject, limits: Limits, deadline: float | None) -> list[Record]:
    """Times what is ready, all in turn, and completes the records."""
    share_s = float("inf")
    if deadline is not None:  # what is ready is timed even where the budget is over, but in the fewest rounds
        share_s = max(0.0, deadline - time.monotonic()) / (3 * len(prepared))
    timings = timing.time_interleaved(
        {p.record.label: p.call for p in prepared},
        subject.inputs,
        limits.rounds,
        target_s=min(limits.target_s, share_s),
        warm_up_s=min(limits.warm_up_s, share_s),
    )
    eager = next((timings[p.record.label] for p in prepared if p.variant.impl == "eager"), None)
    return [_timed(p.record, timings[p.record.label], eager) for p in prepared]


def _timed(record: Record, took: Timing, eager: Timing | None) -> Record:
    speedup = None
    if eager is not None and record.status == results.OK:
        pairs = zip(eager.samples, took.samples, strict=True)
        speedup = timing.quantile([eager_ms / ms for eager_ms, ms in pairs], 0.5)
    return replace(
        record,
        ms=took.ms,
        ms_p20=took.ms_p20,
        ms_p80=took.ms_p80,
        ms_p99=took.ms_p99,
        rounds=len(took.samples),
        stable=took.stable,
        images_per_s=record.batch / took.ms * 1e3,
        host_us=took.host_us,
        latency_ms=took.latency_ms,
        latency_ms_p20=took.latency_ms_p20,
        latency_ms_p99=took.latency_ms_p99,
        floor_fraction=record.floor_ms / took.ms if record.floor_ms else None,
        speedup=speedup,
    )


def _status_of(error: BaseException) -> tuple[str, str]:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or "out of memory" in text.lower():
        return "out of memory", text[:300]
    if isinstance(error, BackendUnavailable):
        return "unsupported", text[:300]
    return "failed", f"{type(error).__name__}: {text}"[:300]


def _is_lost(device: torch.device) -> bool:
    """Whether an error sticks: after an illegal access every call of the process raises it again."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def _free_memory(device: torch.device) -> None:
    """Returns what nothing refers to any more, so that the next implementation finds the device empty."""
    gc.collect()
    if device.type == "cuda":
        with contextlib.suppress(RuntimeError):  # after an illegal access every call raises it again
            torch.cuda.empty_cache()


def _stop_compilers() -> None:
    """Ends inductor's workers after an interrupted compile: their queue would keep every core busy, and torch 2.11
    waits for minutes at exit where it is not empty."""
    if (module := sys.modules.get("torch._inductor.async_compile")) is None:
        return
    for pool in module._pool_set:
        if (process := getattr(pool, "process", None)) is not None:
            process.kill()
    module.shutdown_compile_workers()


def _between_jobs(device: torch.device) -> None:
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    _free_memory(device)


def _set_up(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)  # events, streams and synchronisations are the current device's
    torch.backends.cudnn.benchmark = True  # peers get their best algorithms
    torch.backends.cudnn.allow_tf32 = False  # or stock's float32 convolutions would miss float32's tolerance


def _work(
    parent: connection.Connection,
    threads: int,
    job: Job,
    device: torch.device,
    measured: Ceilings,
    limits: Limits,
    deadline: float | None,
    make_subject: MakeSubject,
) -> None:
    """A worker: sends a text for what it does, None when it is ready to time, then waits; its records come last."""

    def wait() -> None:
        parent.send(None)
        parent.recv()

    torch.set_num_threads(threads)  # as the parent has it: a new process begins with torch's own number
    _set_up(device)
    parent.send(run_job(job, device, measured, limits, deadline, parent.send, make_subject, wait))


def _run_wave(
    jobs: Sequence[Job],
    device: torch.device,
    measured: Ceilings,
    limits: Limits,
    deadline: float | None,
    progress: Progress,
    make_subject: MakeSubject,
) -> Iterator[tuple[Job, list[Record]]]:
    """Jobs that are prepared side by side, each in a process of its own, and timed one after the other when all are.

    Compilers leave most of a processor's cores, and the GPU, idle: a wave takes about as long as its slowest job.
    """
    context = get_context("spawn")
    workers = {}
    for job in jobs:
        ours, its = context.Pipe()
        arguments = (its, torch.get_num_threads(), job, device, measured, limits, deadline, make_subject)
        process = context.Process(target=_work, args=arguments)
        process.start()
        its.close()  # so that its end is seen at this one
        workers[ours] = (process, job)

    def hear(worker: connection.Connection) -> list[Record] | None:
        """What a worker says that is no text, or what is to be said of it where it has died."""
        process, job = workers[worker]
        try:
            while isinstance(said := worker.recv(), str):
                progress(said)
        except (EOFError, ConnectionError):
            process.join()
            reason = f"its process ended with code {process.exitcode}"
            return _unmeasured(_blank(job, measured), "failed", reason, *job.variants)
        return said

    try:
        heard = {worker: hear(worker) for worker in workers}
        for worker, (process, job) in workers.items():
            records = heard[worker]
            if records is None:
                with contextlib.suppress(ConnectionError):
                    worker.send(None)
                records = hear(worker)
                assert records is not None
            process.kill()  # what a compiler left to do at exit is of no use
            process.join()  # it must not share the device with the next one
            yield job, records
    finally:
        for process, _ in workers.values():
            process.kill()


def run(
    plan: Plan,
    device: torch.device | str,
    output: str | Path | None = None,
    *,
    limits: Limits = Limits(),
    resume: bool = False,
    side_by_side: int = 1,
    progress: Progress = lambda text: None,
    finished: Callable[[Sequence[Record]], None] = lambda records: None,
    make_subject: MakeSubject = subject_of,
) -> tuple[Results, Path]:
    """Runs a plan and writes the result file after each job, so that a killed run keeps what it had.

    Args:
        plan: from :func:`~mobilevit_kernels.bench.suite.plan`.
        device: where.
        output: the result file; None: ``benchmarks/results/<gpu>/<date>-<commit>.json``.
        limits: see :class:`Limits`; jobs that the budget does not reach are recorded as left out.
        resume: go on with ``output``: jobs that it has whole are not run again.
        side_by_side: so many jobs are prepared at once, each in a process of its own; all are timed alone. Where it is
            above 1, the seconds of first calls are those of a busy machine.
        progress: told what is going on.
        finished: told the records of a job that is done.
        make_subject: builds the weights and inputs of a job.

    Returns:
        The file's content and its path.

    Raises:
        ValueError: ``resume`` on a file of another device, commit or PyTorch; the default file exists, and is not to
            be resumed.
    """
    device = machine.indexed(device)
    deadline = None if limits.budget_s is None else time.monotonic() + limits.budget_s
    _set_up(device)
    progress("measuring the ceilings")
    dtypes = tuple(dict.fromkeys(job.dtype for job in plan.jobs))
    measured = ceilings.measure(device, dtypes)
    meta = {
        **machine.describe(device),
        "ceilings": measured.to_dict(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "tables": _tables(device),
        "left_out": list(plan.left_out),
    }
    path = Path(output) if output is not None else results.default_path(meta)
    by_job: dict[str, list[Record]] = {}
    if path.exists() and not resume and output is None:
        raise ValueError(f"output: {path} exists; resume goes on with it, output names another file")
    if resume and path.exists():
        meta, by_job = _resumed(path, meta)
        measured = Ceilings.from_dict(meta["ceilings"])

    def keep(job: Job, records: list[Record]) -> None:
        by_job[job.id] = _updated(by_job.get(job.id, []), records)
        results.write(path, meta, (record for group in by_job.values() for record in group))
        finished(records)

    for i in range(0, len(plan.jobs), side_by_side):
        wave = [job for job in plan.jobs[i : i + side_by_side] if not _is_whole(by_job.get(job.id, []), job)]
        if len(wave) > 1:
            for job, records in _run_wave(wave, device, measured, limits, deadline, progress, make_subject):
                keep(job, records)
        elif wave:
            keep(wave[0], run_job(wave[0], device, measured, limits, deadline, progress, make_subject))
            if _is_lost(device):
                break
            _between_jobs(device)
    return results.load(path), path


def _tables(device: torch.device) -> list[str]:
    """The tuned tables that ours goes by on the device."""
    if device.type != "cuda":
        return []
    found = [choices.origin(device)]
    if registry.backends()["triton"].available:
        from mobilevit_kernels.triton import tuned

        found.append(tuned.origin(device))
    return [sentence for sentence in found if sentence]


def _updated(before: list[Record], now: list[Record]) -> list[Record]:
    """A job's new records, and the earlier ones that they do not replace; what was measured outlives a left-out."""
    kept = {record.key: record for record in before if record.status != results.LEFT_OUT}
    tried = list(kept.values())
    for record in now:
        planned = Variant(record.impl, record.backend, record.graph)
        if record.status != results.LEFT_OUT or not any(_covers(earlier, planned) for earlier in tried):
            kept[record.key] = record
    return list(kept.values())


def _covers(record: Record, variant: Variant) -> bool:
    """Whether a record is what a variant gives. A variant without a graph may have been timed by replaying one."""
    if record.impl != "ours" or variant.impl != "ours":
        return record.impl == variant.impl
    return variant.backend in ("auto", record.backend) and record.graph >= variant.graph


def _is_whole(records: list[Record], job: Job) -> bool:
    """Whether a file has every implementation of a job, measured or tried."""
    tried = [record for record in records if record.status != results.LEFT_OUT]
    return all(any(_covers(record, variant) for record in tried) for variant in job.variants)


def _resumed(path: Path, meta: dict[str, Any]) -> tuple[dict[str, Any], dict[str, list[Record]]]:
    content = results.load(path)
    for name in ("device", "commit", "torch", "triton", "threads"):
        if content.meta[name] != meta[name]:
            raise ValueError(f"resume: {path} has {name} {content.meta[name]!r}, this run {meta[name]!r}")
    by_job: dict[str, list[Record]] = {}
    for record in content.records:
        by_job.setdefault(record.job, []).append(record)
    return content.meta, by_job
