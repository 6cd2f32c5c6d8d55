"""The harness's GPU branches, run without a GPU on a stand-in for ``torch.cuda``."""

from __future__ import annotations

import contextlib

import pytest
import torch

from mobilevit_kernels import verify
from mobilevit_kernels.bench import results, runner
from mobilevit_kernels.bench.implementations import Subject
from mobilevit_kernels.bench.runner import Limits
from mobilevit_kernels.bench.suite import Job, Variant
from mobilevit_kernels.native import tuning

GPU = torch.device("cuda")
MB = 2**20


class OnGpu(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    device = property(lambda self: GPU)


class FakeCuda:
    """Clock, allocator, capture and streams; a sticky error where ``lost`` is set. Kernels run at once."""

    def __init__(self, monkeypatch) -> None:
        self.now_ms, self.held, self.peak, self.lost = 0.0, 0, 0, False
        self.capturing, self.stream, self.log = False, "main", []
        fake = self

        class Event:
            def __init__(self, enable_timing=False):
                self.at = None

            def record(self, stream=None):
                fake.check()
                assert not fake.capturing
                self.at = fake.now_ms
                fake.log.append(f"event on {fake.stream}")

            def synchronize(self):
                fake.check()

            def elapsed_time(self, other):
                return other.at - self.at

        class Stream:
            name = "side"

            def wait_stream(self, other):
                fake.check()

        class Main(Stream):
            name = "main"

        class CUDAGraph:
            def replay(self):
                fake.check()
                if fake.capturing:
                    raise torch.AcceleratorError("operation not permitted when stream is capturing")
                fake.work(self.ms, 0)

        @contextlib.contextmanager
        def stream(which):
            before, fake.stream = fake.stream, which.name
            yield
            fake.stream = before

        @contextlib.contextmanager
        def graph(which, stream, capture_error_mode):
            fake.check()
            assert not fake.capturing
            assert isinstance(stream, Stream)  # else PyTorch captures on a stream of whatever device came first
            assert capture_error_mode == "thread_local"
            fake.capturing, which.ms = True, 0.0
            fake.graph = which
            try:
                yield
            finally:
                fake.capturing = False

        def full(shape, *args, device=None, **kwargs):
            return self._zeros(shape, *args, **kwargs)

        self._zeros = torch.zeros
        monkeypatch.setattr(torch, "zeros", full)
        for name, value in {
            "Event": Event, "Stream": Stream, "CUDAGraph": CUDAGraph, "stream": stream, "graph": graph,
            "current_stream": lambda device=None: Main(), "synchronize": lambda device=None: fake.check(),
            "empty_cache": lambda: fake.check(), "memory_allocated": lambda device=None: fake.held,
            "max_memory_allocated": lambda device=None: fake.peak, "reset_peak_memory_stats": fake.reset,
            "get_device_properties": lambda device=None: type("P", (), {"L2_cache_size": 4096})(),
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)

    def check(self):
        if self.lost:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def reset(self, device=None):
        self.check()
        self.peak = self.held

    def work(self, ms, mb):
        """A kernel, and memory that is freed after it."""
        self.check()
        self.peak = max(self.peak, self.held + mb * MB)
        if self.capturing:
            self.graph.ms += ms
        else:
            self.now_ms += ms


class Fake(Subject):
    """y = 2x, each implementation with a time, memory and manners of its own."""

    max_ratio = verify.MAX_NETWORK_RATIO
    cuda: FakeCuda

    def __init__(self, job: Job, device: torch.device) -> None:
        super().__init__(job, device)
        self.inputs = [(torch.rand(4, 3) + 1).as_subclass(OnGpu) for _ in range(2)]

    def truth(self):
        return 2 * self.inputs[0][self.rows].double()

    def build(self, variant: Variant):
        cuda, calls = self.cuda, []
        ms = {"eager": 8.0, "sdpa": 0.05, "compile-reduce-overhead": 0.05}.get(variant.impl, 2.0)
        if variant.graph:  # as MobileViT.capture: warm-up and capture in the build, a replay in the call
            cuda.work(ms, 100)
            return (lambda x: (cuda.work(ms, 1), x + x)[1]), "triton"

        def call(x):
            calls.append(None)
            if variant.impl == "ours" and variant.backend == "cuda":
                cuda.lost = True
            if variant.impl == "compile-reduce-overhead" and cuda.capturing:
                raise torch.AcceleratorError("operation not permitted when stream is capturing")
            if variant.impl == "tensorrt" and len(calls) > 8:
                raise RuntimeError("no longer")
            cuda.work(ms, 100)
            return x + x

        return call, "torch" if variant.impl != "ours" else variant.backend


@pytest.fixture
def cuda(monkeypatch) -> FakeCuda:
    Fake.cuda = FakeCuda(monkeypatch)
    return Fake.cuda


def run(*variants: Variant) -> dict[str, results.Record]:
    job = Job("mobilevit_s", None, torch.float16, 4, 256, 256, ("models",), variants)
    limits = Limits(rounds=5, warm_up_s=0.05)
    records = runner.run_job(job, GPU, limits=limits, make_subject=Fake)
    assert len({record.key for record in records}) == len(records)
    return {record.label: record for record in records}


def test_times_are_those_between_the_events(cuda) -> None:
    records = run(Variant("eager"), Variant("ours", "triton"))
    assert {label: record.ms for label, record in records.items()} == {"eager": 8.0, "ours (triton)": 2.0}
    assert records["ours (triton)"].speedup == 4.0
    assert all(record.host_us is not None for record in records.values())
    assert set(cuda.log) == {"event on main"}


def test_short_call_is_replayed_but_not_where_it_is_a_replay_already(cuda) -> None:
    records = run(Variant("eager"), Variant("sdpa"), Variant("compile-reduce-overhead"))
    assert [(r.label, r.graph, round(r.ms, 6)) for r in records.values()] == [
        ("eager", False, 8.0), ("sdpa (graph)", True, 0.05), ("compile-reduce-overhead", False, 0.05)
    ]  # fmt: skip


def test_memory_of_a_graph_is_that_of_its_capture(cuda) -> None:
    records = run(Variant("eager"), Variant("ours", "triton"), Variant("ours", "triton", graph=True))
    assert {record.peak_mb for record in records.values()} == {100}


def test_one_that_fails_while_it_is_timed_costs_the_others_nothing(cuda) -> None:
    records = run(Variant("eager"), Variant("tensorrt"), Variant("ours", "triton"))
    assert {label: record.status for label, record in records.items()} == {
        "eager": "ok", "ours (triton)": "ok", "tensorrt": "failed"
    }  # fmt: skip
    assert records["tensorrt"].reason == "while timing: RuntimeError: no longer"


def test_lost_gpu_is_recorded(cuda) -> None:
    """After an illegal access every call raises, the one that frees memory too."""
    records = run(Variant("eager"), Variant("ours", "cuda"), Variant("sdpa"))
    assert {label: record.status for label, record in records.items()} == {
        "eager": "left out", "ours (cuda)": "failed", "sdpa": "left out"
    }  # fmt: skip
    assert "illegal memory access" in records["ours (cuda)"].reason
    assert records["sdpa"].reason == "the GPU was lost to ours (cuda)"


def test_the_timer_of_tune_repeats_short_calls(cuda, monkeypatch) -> None:
    """A launch in a graph costs 3 µs once; behind many repeats it does not count."""
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (cuda.work(0.003, 0), replay(graph)))
    short, long = tuning.measure(GPU, [lambda: cuda.work(0.002, 0), lambda: cuda.work(1.5, 0)])
    assert short == pytest.approx(2 + 3 / 20)
    assert long == pytest.approx(1503)


def test_weights_are_frozen() -> None:
    """Inductor folds the weights into the graph: the image is its only input."""
    import torch._inductor.freezing as freezing

    from mobilevit_kernels.bench.implementations import compiled

    left = []
    original = freezing.freeze

    def spy(*args):
        result = original(*args)
        left.append(len(result[1]))
        return result

    class Stop(BaseException):
        pass

    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)).eval()
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode(), contextlib.suppress(Stop):
        patch.setattr(freezing, "freeze", spy)
        import torch._inductor.compile_fx as compile_fx

        patch.setattr(compile_fx, "compile_fx_inner", lambda *a, **k: (_ for _ in ()).throw(Stop))
        compiled(module, "default")(torch.rand(1, 3, 4, 4))
    assert left == [1]
