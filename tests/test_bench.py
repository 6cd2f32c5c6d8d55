"""The benchmark harness: counts, suite, statistics, statuses, budget and resume, on fake implementations."""

from __future__ import annotations

import copy
import json
import math
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mobilevit_kernels import ops, verify
from mobilevit_kernels.bench import ceilings, results, runner, suite, timing, work
from mobilevit_kernels.bench.implementations import StageSubject, Subject, subject_of
from mobilevit_kernels.bench.runner import Limits
from mobilevit_kernels.bench.suite import Choice, Job, Plan, Variant
from mobilevit_kernels.registry import BackendUnavailable
from mobilevit_kernels.verify import StageCase

CPU = torch.device("cpu")
QUICK = Limits(target_s=0.01, warm_up_s=0.05, rounds=5)


# --- counts ----------------------------------------------------------------------------------------------------------

# Counted by hand, by another author: GFLOP, MB in fp16 without fusion, MB of fused blocks, millions of SiLUs and of
# exponentials, for one 256×256 image.
KNOWN = {
    "mobilevit_xxs": (0.81, 29.8, 4.5, 3.9, 2.4),
    "mobilevit_xs": (2.05, 63.8, 7.0, 10.5, 2.4),
    "mobilevit_s": (4.00, 82.1, 8.4, 12.7, 2.4),
}


@pytest.mark.parametrize("model", KNOWN)
def test_counts_agree_with_those_of_another_author(model: str) -> None:
    gflop, unfused_mb, fused_mb, silus, exponentials = KNOWN[model]
    counted = work.network_work(model)
    assert counted.flops / 1e9 == pytest.approx(gflop, rel=0.01)
    assert 2 * counted.unfused / 1e6 == pytest.approx(unfused_mb, rel=0.01)
    assert 2 * counted.activations / 1e6 == pytest.approx(fused_mb, rel=0.01)
    assert counted.special / 1e6 == pytest.approx(silus + exponentials, rel=0.02)


def test_counts_grow_with_the_batch_but_weights_do_not() -> None:
    one, many = work.network_work("mobilevit_s"), work.network_work("mobilevit_s", batch=8)
    assert (many.flops, many.activations, many.special) == (8 * one.flops, 8 * one.activations, 8 * one.special)
    assert many.weights == one.weights == pytest.approx(5.57e6, rel=0.01)  # 5.58 M parameters, BatchNorm folded


@pytest.mark.parametrize("case", list(suite.stage_cases(("mobilevit_xxs",), batch=2, size=65)), ids=str)
def test_flops_are_what_pytorch_counts(case: StageCase) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    x, weights, options = case.build()
    with FlopCounterMode(display=False) as counter:
        y = verify.reference(case.stage, x, weights, dtype=torch.float32, **options)
    counted = work.stage_work(case)
    assert counted.flops == counter.get_total_flops()
    inputs = x.numel() + (options["x2"].numel() if "x2" in options else 0)
    assert counted.activations == inputs + y.numel()


def test_floor_is_the_slowest_ceiling() -> None:
    counted = work.Work(flops=800, activations=60, weights=40, special=10, unfused=0)
    rates = ceilings.Ceilings(bandwidth=1e3, matrix_flops={"float16": 1e3}, special=1e3)
    assert counted.times_ms(rates, torch.float16) == {"matrix": 800, "bytes": 200, "special": 10}
    assert counted.floor_ms(rates, torch.float16) == 800
    assert counted.floor_ms(rates, torch.bfloat16) is None, "a rate that was not measured gives no floor"
    assert replace(counted, special=1000).floor_ms(rates, torch.float16) == 1000


def test_ceilings_of_this_machine() -> None:
    measured = ceilings.measure("cpu", (torch.float32,))
    assert measured.bandwidth > 1e8
    assert measured.matrix_flops["float32"] > 1e8
    assert measured.special > 1e5
    assert ceilings.Ceilings.from_dict(json.loads(json.dumps(measured.to_dict()))) == measured


# --- timing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [0, 0.2, 0.5, 0.8, 0.99, 1])
def test_quantile(q: float) -> None:
    values = torch.rand(37).tolist()
    assert timing.quantile(values, q) == pytest.approx(torch.tensor(values).double().quantile(q).item())


def test_time_interleaved_takes_turns_and_rotates_the_inputs() -> None:
    calls: list[tuple[str, float]] = []
    inputs = [torch.tensor([float(i)]) for i in range(3)]
    implementations = {name: lambda x, name=name: calls.append((name, x.item())) for name in "abc"}
    timed = timing.time_interleaved(implementations, inputs, rounds=6, warm_up_s=0)
    latencies = 3 * timing.MAX_LATENCY_CALLS  # such short calls get the most
    timed_calls = calls[:-latencies]
    rounds = [timed_calls[i : i + 3] for i in range(len(timed_calls) - 18, len(timed_calls), 3)]
    assert all(sorted(name for name, _ in turn) == ["a", "b", "c"] for turn in rounds)
    assert all(len({value for _, value in turn}) == 1 for turn in rounds), "one round, one input"
    assert {value for turn in rounds for _, value in turn} == {0.0, 1.0, 2.0}
    assert len({turn[0][0] for turn in rounds}) == 3, "the first of a round is not always the same"
    assert all(len(t.samples) == 6 and t.host_us is None for t in timed.values())


def test_time_interleaved_tells_slow_from_fast() -> None:
    timed = timing.time_interleaved(
        {"slow": lambda x: time.sleep(0.004), "fast": lambda x: time.sleep(0.001)}, [torch.zeros(1)], rounds=9
    )
    slow = timed["slow"]
    assert slow.ms > 2 * timed["fast"].ms
    assert slow.ms == statistics.median(slow.samples)
    assert slow.ms_p20 <= slow.ms <= slow.ms_p80 <= slow.ms_p99 <= max(slow.samples)
    assert 4 <= slow.latency_ms_p20 <= slow.latency_ms <= slow.latency_ms_p99


def test_no_p99_from_few_calls() -> None:
    timed = timing.time_interleaved({"slow": lambda x: time.sleep(0.004)}, [torch.zeros(1)], rounds=9, target_s=0.05)
    assert timed["slow"].latency_ms >= 4
    assert timed["slow"].latency_ms_p99 is None


def test_warm_up_goes_on_until_the_time_has_settled(monkeypatch) -> None:
    times = iter([9.0] * 5 + [5.0] * 5 + [1.0] * 100)
    watch = timing.Stopwatch(CPU)
    monkeypatch.setattr(watch, "milliseconds", lambda call, x: next(times))
    assert timing._warm_up(watch, lambda x: None, [torch.zeros(1)], 10) == (1.0, True)
    falling = iter(range(10**6, 0, -1))
    monkeypatch.setattr(watch, "milliseconds", lambda call, x: next(falling) ** 2 * 1e-9)
    monkeypatch.setattr(timing, "STABLE_WITHIN", 0.0)
    assert timing._warm_up(watch, lambda x: None, [torch.zeros(1)], 0.02)[1] is False


# --- the suite -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_full_suite_has_every_job_once(device: str) -> None:
    plan = suite.plan(device)
    ids = [job.id for job in plan.jobs]
    assert len(ids) == len(set(ids))
    names = {(job.case.stage, job.case.sizes) for job in plan.jobs if job.case}
    for _, _, case in verify.network_cases():
        assert (case.stage, case.sizes) in names
    assert {job.model for job in plan.jobs if job.model} == {*KNOWN, *suite.NEIGHBOURS}
    assert {name for job in plan.jobs for name in job.suites} == set(suite.SUITES)


def test_suite_on_a_gpu_has_every_peer_batch_and_dtype() -> None:
    jobs = suite.plan("cuda").jobs
    networks = [job for job in jobs if "models" in job.suites]
    assert {(job.batch, job.dtype_name) for job in networks} == {
        (batch, dtype) for batch in (1, 8, 32, 256) for dtype in ("float16", "bfloat16")
    }
    for job in networks:
        impls = {variant.impl for variant in job.variants}
        assert impls == {"eager", "eager-channels_last", *suite.COMPILED, "tensorrt", "ours"}
        assert {(v.backend, v.graph) for v in job.variants if v.impl == "ours"} >= {("auto", True), ("triton", False)}
    assert {job.batch for job in jobs if "batch-sweep" in job.suites} == {2**i for i in range(11)}
    assert {job.height for job in jobs if "size-sweep" in job.suites} >= {192, 224, 256, 512}
    by_stage = {job.case.stage: {v.impl for v in job.variants} for job in jobs if job.case}
    assert "cudnn" in by_stage["conv3x3"]
    assert "cudnn" in by_stage["stem"]
    assert "sdpa" in by_stage["transformer"]
    assert "sdpa" in by_stage["unfold_attention_fold"]


def test_suite_on_a_cpu_says_what_it_leaves_out() -> None:
    plan = suite.plan("cpu")
    assert all(v.impl in ("eager", "eager-channels_last", "sdpa", "ours") for j in plan.jobs for v in j.variants)
    said = " ".join(plan.left_out)
    assert all(word in said for word in ("no GPU", "torch.compile", "float16", "batches above 8"))
    asked = suite.plan("cpu", Choice(impls=("compile-default",), batches=(32,), dtypes=(torch.bfloat16,)))
    assert {(j.batch, j.dtype_name, v.impl) for j in asked.jobs for v in j.variants} == {
        (32, "bfloat16", "compile-default")
    }


def test_quick_suite_begins_with_what_is_worth_most() -> None:
    jobs = suite.plan("cuda", Choice(quick=True)).jobs
    assert jobs[0].id == "model/mobilevit_s/b256/256x256/float16"
    assert [v.impl for v in jobs[0].variants][-1] == "compile-default"
    assert [v.impl for v in jobs[-1].variants] == ["eager", "compile-max-autotune"], "what takes minutes comes last"
    assert {v.impl for j in jobs for v in j.variants} >= set(suite.COMPILED)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (Choice(stages=("stem",)), lambda job: job.case is not None and job.case.stage == "stem"),
        (Choice(models=("mobilevit_xs",)), lambda job: job.model in (None, "mobilevit_xs")),
        (Choice(models=("resnet50",)), lambda job: job.model == "resnet50"),
        (Choice(batches=(3,)), lambda job: job.batch == 3),
        (Choice(sizes=(96,), models=("mobilevit_s",)), lambda job: job.case is not None or job.height == 96),
        (Choice(suites=("size-sweep",)), lambda job: "size-sweep" in job.suites),
        (Choice(only=("model/*/b1/*",)), lambda job: job.model is not None and job.batch == 1),
        (Choice(impls=("ours",)), lambda job: {v.impl for v in job.variants} == {"ours"}),
    ],
    ids=("stages", "models", "neighbours", "batches", "sizes", "suites", "only", "impls"),
)
def test_choice(choice: Choice, expected) -> None:
    jobs = suite.plan("cuda", choice).jobs
    assert jobs
    assert all(expected(job) for job in jobs)


def test_empty_choice_raises() -> None:
    with pytest.raises(ValueError, match="nothing to measure"):
        suite.plan("cpu", Choice(only=("nonsense",)))


@pytest.mark.parametrize("model", KNOWN)
def test_breakdown_names_jobs_of_the_suite(model: str) -> None:
    ids = {job.id for job in suite.plan("cuda").jobs}
    rows = suite.breakdown(model, 256, torch.float16)
    assert len(rows) == len(list(verify.network_cases((model,))))
    assert all(job in ids for _, _, job in rows)


# --- the runner ------------------------------------------------------------------------------------------------------


class Fake(Subject):
    """y = 2x by several implementations, most of them bad."""

    max_ratio = verify.MAX_STAGE_RATIO

    def __init__(self, job: Job, device: torch.device) -> None:
        super().__init__(job, device)
        self.inputs = [torch.rand(4, 3) + 1 for _ in range(2)]
        self.built: list[str] = []

    def truth(self) -> torch.Tensor:
        return 2 * self.inputs[0][self.rows].double()

    def build(self, variant: Variant):
        self.built.append(variant.impl)
        if variant.impl == "compile-default":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB")
        if variant.impl == "compile-reduce-overhead":
            raise RuntimeError("no such\nkernel")
        if variant.impl == "tensorrt":
            raise BackendUnavailable("torch_tensorrt is not importable")
        if variant.impl == "compile-max-autotune":
            time.sleep(30)
        if variant.impl == "ours":
            return (lambda x: 2.1 * x), "triton"
        return (lambda x: x + x), "torch"


def job_of(*impls: str, batch: int = 4) -> Job:
    variants = tuple(Variant(impl, "auto" if impl == "ours" else "torch") for impl in impls)
    return Job("mobilevit_s", None, torch.float32, batch, 256, 256, ("models",), variants)


def run_fake(*impls: str, limits: Limits = QUICK, **options) -> dict[str, results.Record]:
    records = runner.run_job(job_of(*impls), CPU, limits=limits, make_subject=Fake, **options)
    assert [record.impl for record in records if record.ms] + [r.impl for r in records if not r.ms] == [
        record.impl for record in records
    ]
    assert len(records) == len(impls), "nothing is lost"
    return {record.impl: record for record in records}


def test_statuses() -> None:
    limits = replace(QUICK, prepare_s=0.5)
    records = run_fake("eager", "ours", *suite.COMPILED, "tensorrt", limits=limits)
    assert {impl: record.status for impl, record in records.items()} == {
        "eager": "ok",
        "ours": "parity failed",
        "compile-default": "out of memory",
        "compile-reduce-overhead": "failed",
        "compile-max-autotune": "failed",
        "tensorrt": "unsupported",
    }
    assert records["compile-reduce-overhead"].reason == "RuntimeError: no such kernel"
    assert records["compile-max-autotune"].reason == "took longer than 0 s"
    assert "torch_tensorrt" in records["tensorrt"].reason
    eager, ours = records["eager"], records["ours"]
    assert (eager.rounds, eager.speedup) == (5, pytest.approx(1))
    assert eager.images_per_s == pytest.approx(4 / eager.ms * 1e3)
    assert ours.ms is not None
    assert ours.speedup is None, "no speed-up for a wrong result"
    assert ours.rel_l2_err == pytest.approx(0.05, rel=1e-3)
    assert ours.backend == "triton"


class Drawn(Fake):
    """A network of one weight: its draws' errors, in units of stock eager's usual one, are ``errors`` and ``stock``."""

    max_ratio = verify.MAX_NETWORK_RATIO
    errors: tuple[float, ...] = ()
    stock: tuple[float, ...] = (1.0,) * runner.DRAWS
    broken_from = runner.DRAWS
    seed = 0

    def redrawn(self, seed: int) -> Subject:
        other = copy.copy(self)
        other.seed = seed
        return other

    def build(self, variant: Variant):
        if self.seed >= self.broken_from:
            raise RuntimeError("no memory for another one")
        error = (self.errors if variant.impl == "ours" else self.stock)[self.seed]
        return (lambda x: (2 + 2e-3 * error) * x), "triton" if variant.impl == "ours" else "torch"


def draws_of(*errors: float, dtype: torch.dtype = torch.float16, **attributes: object) -> results.Record:
    made = type("Made", (Drawn,), {"errors": errors + errors[-1:] * (runner.DRAWS - len(errors)), **attributes})
    job = replace(job_of("eager", "ours"), dtype=dtype)
    records = runner.run_job(job, CPU, limits=QUICK, make_subject=made)
    return next(record for record in records if record.impl == "ours")


def test_a_draw_of_weights_above_the_bound_is_judged_with_others() -> None:
    """One draw is one sample: of eight together the error has to be within the contract."""
    below = draws_of(1.2, 9.0)
    assert (below.status, below.draws) == ("ok", 1)
    assert below.rel_l2_err == pytest.approx(1.2e-3, rel=1e-3)
    chance = draws_of(1.6, 0.6)
    assert (chance.status, chance.draws, chance.reason) == ("ok", runner.DRAWS, "")
    assert chance.rel_l2_err == pytest.approx(1e-3 * math.sqrt((1.6**2 + 7 * 0.6**2) / 8), rel=1e-3)
    assert chance.stock_rel_l2_err == pytest.approx(1e-3, rel=1e-3)
    assert chance.speedup is not None


def test_the_same_bits_are_judged_once() -> None:
    """A graph's result is that of the launches in it: it is not drawn anew eight times more."""
    seeds: list[int] = []

    class Counted(Drawn):
        errors = (1.6,) + (0.6,) * (runner.DRAWS - 1)

        def redrawn(self, seed: int) -> Subject:
            seeds.append(seed)
            return super().redrawn(seed)

    job = replace(job_of("eager"), dtype=torch.float16)
    ours = (Variant("ours", "cuda"), Variant("ours", "cuda", graph=True))
    records = runner.run_job(replace(job, variants=ours), CPU, limits=QUICK, make_subject=Counted)
    assert [(record.status, record.draws) for record in records] == [("ok", runner.DRAWS)] * 2
    assert seeds == list(range(1, runner.DRAWS))


def test_what_errs_in_every_draw_or_far_too_much_in_one_fails() -> None:
    everywhere = draws_of(1.4)
    assert (everywhere.status, everywhere.draws, everywhere.speedup) == ("parity failed", runner.DRAWS, None)
    assert everywhere.reason == (
        "error 1.4e-03 against float64 over 8 draws of weights, 1.40 × stock eager's, allowed 1.3 ×"
    )
    assert draws_of(1.4, 0.9, 1.6).status == "parity failed"
    assert draws_of(3.6, 0.1).status == "ok"
    assert draws_of(3.8, 0.1).status == "parity failed", "of the first one's error not all is taken for chance"
    assert draws_of(float("nan"), 0.1).status == "parity failed"


def test_weights_are_not_drawn_anew_where_that_helps_nothing(monkeypatch) -> None:
    assert draws_of(1.6, 0.6, broken_from=5).status == "parity failed", "the first draw's verdict stays"
    exact = draws_of(0.5, 0.0, dtype=torch.float32)  # float32 has a bound of its own
    assert (exact.status, exact.draws) == ("parity failed", 1)
    monkeypatch.setattr(runner, "REDRAW_S", 0.0)
    slow = draws_of(1.6, 0.6)
    assert (slow.status, slow.draws) == ("parity failed", 1)
    assert slow.reason == "error 1.6e-03 against float64, 1.60 × stock eager's, allowed 1.3 ×"


def test_networks_are_drawn_anew_on_the_same_images() -> None:
    job = suite.plan("cpu", Choice(models=("mobilevit_xxs",), sizes=(64,), batches=(2,), suites=("models",))).jobs[0]
    first = subject_of(job, CPU)
    other = first.redrawn(1)
    assert other is not None
    assert other.inputs is first.inputs
    with torch.inference_mode():
        truths = [subject.truth() for subject in (first, other, first.redrawn(0))]
        channels_last, _ = other.build(Variant("eager-channels_last"))
        result = channels_last(other.inputs[0])
    assert torch.equal(truths[0], truths[2]), "the first one's weights stay"
    assert verify.relative_error(result, truths[1]) <= 1e-5
    assert verify.relative_error(truths[0], truths[1]) > 0.1


def test_speedup_is_the_median_of_the_rounds(monkeypatch) -> None:
    def fake_times(calls, inputs, rounds, **options):
        samples = {"eager": (2.0, 4.0, 9.0), "sdpa": (1.0, 1.0, 3.0)}
        return {
            n: timing.Timing(statistics.median(s), s[0], s[2], s[2], None, 1.0, 1.0, None, True, s)
            for n, s in samples.items()
        }

    monkeypatch.setattr(timing, "time_interleaved", fake_times)
    records = run_fake("eager", "sdpa")
    assert records["sdpa"].speedup == 3.0  # of 2, 4 and 3


def test_floor_fraction() -> None:
    rates = ceilings.Ceilings(bandwidth=1e15, matrix_flops={"float32": 1e12}, special=1e15)
    record = runner.run_job(job_of("eager"), CPU, rates, QUICK, make_subject=Fake)[0]
    assert record.floor_ms == pytest.approx(4 * 4.0017, rel=1e-3)
    assert record.floor_bound == "matrix"
    assert record.floor_fraction == pytest.approx(record.floor_ms / record.ms)


def test_budget_leaves_out_and_says_so() -> None:
    records = run_fake("eager", "ours", deadline=time.monotonic() - 1)
    assert {record.status for record in records.values()} == {"left out"}
    assert {record.reason for record in records.values()} == {"the time budget was over"}
    begin = time.monotonic()
    records = run_fake("eager", "compile-max-autotune", "sdpa", deadline=begin + 0.7)
    assert time.monotonic() - begin < 5
    assert records["eager"].status == "ok", "what was ready is timed"
    assert records["compile-max-autotune"].reason == "the time budget was over while it was prepared"
    assert records["sdpa"].status == "left out"


def test_failing_subject_is_recorded(monkeypatch) -> None:
    def no_memory(self, job, device):
        raise MemoryError("out of memory")

    monkeypatch.setattr(Fake, "__init__", no_memory)
    assert {r.status for r in run_fake("eager", "ours").values()} == {"out of memory"}


@pytest.fixture
def small_plan() -> Plan:
    return Plan((job_of("eager", batch=1), job_of("eager", "ours", batch=2), job_of("eager", batch=3)), ("much",))


def test_killed_run_keeps_what_it_had_and_resumes(small_plan: Plan, tmp_path) -> None:
    path, seen = tmp_path / "out.json", []

    class Killed(BaseException):
        pass

    def finished(records) -> None:
        seen.append(records[0].batch)
        if len(seen) == 2:
            raise Killed

    options = {"limits": QUICK, "make_subject": Fake, "finished": finished}
    with pytest.raises(Killed):
        runner.run(small_plan, "cpu", path, **options)
    first = results.load(path)
    assert [(r.batch, r.impl) for r in first.records] == [(1, "eager"), (2, "eager"), (2, "ours")]
    content, written = runner.run(small_plan, "cpu", path, resume=True, **options)
    assert seen == [1, 2, 3], "only the job that was missing is run"
    assert written == path
    assert content.records[:3] == first.records
    assert content.meta == first.meta
    assert content.meta["left_out"] == ["much"]
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]


def test_resume_runs_again_what_a_budget_left_out(small_plan: Plan, tmp_path) -> None:
    path = tmp_path / "out.json"
    spent = replace(QUICK, budget_s=1e-9)
    content, _ = runner.run(small_plan, "cpu", path, limits=spent, make_subject=Fake)
    assert {record.status for record in content.records} == {"left out"}
    content, _ = runner.run(small_plan, "cpu", path, limits=QUICK, make_subject=Fake, resume=True)
    assert [record.status for record in content.records] == ["ok", "ok", "parity failed", "ok"]


def test_resume_refuses_a_file_of_another_machine(small_plan: Plan, tmp_path) -> None:
    path = tmp_path / "out.json"
    content, _ = runner.run(small_plan, "cpu", path, limits=QUICK, make_subject=Fake)
    results.write(path, {**content.meta, "torch": "1.0"}, content.records)
    with pytest.raises(ValueError, match=r"resume: .*out\.json has torch '1\.0', this run"):
        runner.run(small_plan, "cpu", path, limits=QUICK, make_subject=Fake, resume=True)


def test_job_that_comes_again_with_more_replaces_its_records(tmp_path) -> None:
    plan = Plan((job_of("eager"), job_of("eager", "sdpa")), ())
    content, _ = runner.run(plan, "cpu", tmp_path / "out.json", limits=QUICK, make_subject=Fake)
    assert [record.impl for record in content.records] == ["eager", "sdpa"]


def test_job_that_comes_again_and_is_cut_short_keeps_its_records(tmp_path, monkeypatch) -> None:
    class Slow(Fake):
        def __init__(self, job: Job, device: torch.device) -> None:
            super().__init__(job, device)
            time.sleep(0.6 * ("sdpa" in [variant.impl for variant in job.variants]))

    monkeypatch.setattr(ceilings, "measure", lambda *_: ceilings.NOT_MEASURED)
    plan = Plan((job_of("eager", "ours"), job_of("eager", "ours", "sdpa")), ())
    limits = replace(QUICK, budget_s=0.5)
    content, _ = runner.run(plan, "cpu", tmp_path / "out.json", limits=limits, make_subject=Slow)
    assert [(r.impl, r.status) for r in content.records] == [
        ("eager", "ok"), ("ours", "parity failed"), ("sdpa", "left out")
    ]  # fmt: skip


class Logged(Fake):
    """Every call appends the job's batch to calls.log in the working directory; a job of 3 images ends its process."""

    def build(self, variant: Variant):
        if self.job.batch == 3:
            os._exit(7)
        call, backend = super().build(variant)

        def logged(x: torch.Tensor) -> torch.Tensor:
            with Path("calls.log").open("a") as file:
                file.write(str(self.job.batch))
            assert torch.get_num_threads() == 1, "as the parent has it"
            return call(x)

        return logged, backend


def test_side_by_side(tmp_path, monkeypatch) -> None:
    """All jobs are prepared before the first is timed, then timed one after the other; a dead one costs no other."""
    monkeypatch.chdir(tmp_path)
    plan = Plan(tuple(job_of("eager", batch=batch) for batch in (1, 3, 2)), ())
    said: list[str] = []
    options = {"limits": QUICK, "make_subject": Logged, "progress": said.append}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        content, _ = runner.run(plan, "cpu", tmp_path / "out.json", side_by_side=3, **options)
    finally:
        torch.set_num_threads(threads)
    assert [(r.batch, r.status, r.reason) for r in content.records] == [
        (1, "ok", ""), (3, "failed", "its process ended with code 7"), (2, "ok", "")
    ]  # fmt: skip
    calls = (tmp_path / "calls.log").read_text()
    prepared = 3  # stock eager's result, the first call, the one that is checked
    assert sorted(calls[: 2 * prepared]) == sorted("12" * prepared)
    assert calls[2 * prepared :] == "".join(sorted(calls[2 * prepared :]))
    assert min(calls.count("1"), calls.count("2")) > prepared
    assert any("timing 1 implementations" in text for text in said)


@pytest.mark.parametrize("stage", suite.STAGES)
def test_implementations_of_a_stage_agree(stage: str) -> None:
    """Every implementation that a CPU can do passes the contract, with the real weights and the real ops."""
    plan = suite.plan("cpu", Choice(stages=(stage,), models=("mobilevit_xxs",), sizes=(64,), batches=(5,)))
    for record in runner.run_job(plan.jobs[0], CPU, limits=QUICK):
        assert (record.status, record.reason) == ("ok", ""), record
        assert record.rel_l2_err <= 1e-5


def test_both_ends_of_the_batch_are_checked(monkeypatch) -> None:
    """A backend that gets only the last image wrong is found out."""
    job = suite.plan("cpu", Choice(stages=("conv3x3",), models=("mobilevit_xxs",), sizes=(64,), batches=(9,))).jobs[0]
    assert isinstance(subject := subject_of(job, CPU), StageSubject)
    assert subject.rows == [0, 1, 7, 8]
    right = ops.conv3x3

    def wrong(*args, **options):
        y = right(*args, **options).clone()
        y[-1] *= 1.01
        return y

    monkeypatch.setattr(ops, "conv3x3", wrong)
    statuses = {record.impl: record.status for record in runner.run_job(job, CPU, limits=QUICK)}
    assert statuses == {"eager": "ok", "eager-channels_last": "ok", "ours": "parity failed"}


def test_implementations_of_a_network_agree() -> None:
    job = suite.plan("cpu", Choice(models=("mobilevit_xxs",), sizes=(64,), batches=(2,), suites=("models",))).jobs[0]
    records = runner.run_job(job, CPU, limits=QUICK)
    assert [(r.impl, r.backend, r.status) for r in records] == [
        ("eager", "torch", "ok"),
        ("eager-channels_last", "torch", "ok"),
        ("ours", "torch", "ok"),
    ]
