"""One model called by four threads with changing shapes: the results of a call alone, and no growth of memory.

A run takes ``MVK_SOAK_SECONDS`` a configuration, 3 by default.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from conftest import skip_unless_available
from torch import Tensor

import mobilevit_kernels as mvk
import python_ref
from mobilevit_kernels.verify import relative_error

SECONDS = float(os.environ.get("MVK_SOAK_SECONDS", "3"))
THREADS = 4
MIB = 1 << 20
MAX_GROWTH = {  # after every thread has met every shape, in bytes
    "resident": 48 * MIB,
    "allocated": 1 * MIB,
    "reserved": 256 * MIB,
}
# Which of the shapes have a graph at the end of the warm-up and at the end is chance, and so are these graphs' buffers.
MAX_GROWTH_OF_GRAPHS = {"allocated": 256 * MIB, "reserved": 1024 * MIB}
PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@dataclass
class Outcome:
    """What four threads met.

    Attributes:
        calls: all of them together, after the warm-up.
        errors: at most one a thread; a wrong result is one.
        growth: of memory from the end of the warm-up to the end, in bytes, by kind.
    """

    calls: int = 0
    errors: list[str] = field(default_factory=list)
    growth: dict[str, int] = field(default_factory=dict)


def memory(device: str) -> dict[str, int]:
    """Memory in use, in bytes: the process's on a CPU, PyTorch's on a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.empty(1, device="cuda")  # makes the allocator take back what other streams are done with
        return {"allocated": torch.cuda.memory_allocated(), "reserved": torch.cuda.memory_reserved()}
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return {}
    return {"resident": int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")}


def soak(
    call: Callable[[Tensor], Tensor],
    inputs: list[Tensor],
    check: Callable[[int, Tensor], str | None],
    device: str,
    seconds: float,
) -> Outcome:
    """Calls from several threads, each on a stream of its own and in an order of its own.

    Args:
        call: what is called, under inference mode.
        inputs: one is picked at random for each call.
        check: (index of the input, result) → what is wrong with the result; None: nothing.
        device: "cpu" or "cuda".
        seconds: after the warm-up, in which every thread takes every input twice.
    """
    outcome = Outcome()
    counts = [0] * THREADS
    before: dict[str, int] = {}
    stop = threading.Event()
    # Threads wait for each other around the measurement: memory is counted while nothing is in flight.
    warm = threading.Barrier(THREADS, action=lambda: before.update(memory(device)))

    def work(index: int) -> None:
        choose = random.Random(index)
        order = [i for _ in range(2) for i in choose.sample(range(len(inputs)), len(inputs))]
        stream = torch.cuda.Stream() if device == "cuda" else None
        torch.set_num_threads(1)

        def once(i: int) -> None:
            problem = check(i, call(inputs[i]))
            if problem is not None:
                raise AssertionError(f"input {i}, {tuple(inputs[i].shape)} of {inputs[i].dtype}: {problem}")

        try:
            with torch.inference_mode(), torch.cuda.stream(stream):
                for i in order:
                    once(i)
                warm.wait(timeout=600)
                deadline = time.monotonic() + seconds
                while time.monotonic() < deadline and not stop.is_set():
                    once(choose.randrange(len(inputs)))
                    counts[index] += 1
        except threading.BrokenBarrierError:
            pass  # another thread failed before, and says so
        except Exception as error:
            outcome.errors.append(f"thread {index}: {type(error).__name__}: {error}")
            stop.set()
            warm.abort()

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=seconds + 900)
        assert not thread.is_alive(), "a thread hangs"
    outcome.calls = sum(counts)
    outcome.growth = {kind: value - before[kind] for kind, value in memory(device).items() if kind in before}
    return outcome


def judge(outcome: Outcome, max_growth: dict[str, int] = MAX_GROWTH) -> None:
    """Prints the outcome; raises AssertionError for errors or growth."""
    grown = ", ".join(f"{kind} memory grew by {growth / MIB:.1f} MiB" for kind, growth in outcome.growth.items())
    print(f"{outcome.calls} calls, {len(outcome.errors)} errors, {grown}")
    assert not outcome.errors, "\n".join(outcome.errors)
    assert outcome.calls >= THREADS
    for kind, growth in outcome.growth.items():
        assert growth <= max_growth[kind], f"{kind} memory grew by {growth / MIB:.1f} MiB in {outcome.calls} calls"


def make_inputs(count: int, largest_batch: int, largest: int, device: str) -> list[Tensor]:
    """Images of changing batch, size, dtype and layout, the same at every call."""
    choose = random.Random(0)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.rand(0, 3, 64, 64)]
    while len(inputs) < count:
        batch = choose.randint(1, largest_batch)
        height, width = (choose.choice((choose.randint(32, largest), choose.randrange(32, largest, 32))) for _ in "hw")
        dtype = choose.choice((torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.uint8))
        if dtype == torch.uint8:
            x = torch.randint(0, 256, (batch, height, width, 3), dtype=dtype, generator=generator)
        else:
            x = torch.rand((batch, 3, height, width), generator=generator).to(dtype)
            layout = choose.choice(("contiguous", "channels_last", "strided"))
            if layout == "channels_last":
                x = x.contiguous(memory_format=torch.channels_last)
            elif layout == "strided":
                x = torch.stack([x, x], dim=-1)[..., 0]
        inputs.append(x)
    return [x.to(device) for x in inputs]


def make_model(backend: str, device: str, graph: bool = False) -> torch.nn.Module:
    stock = python_ref.randomize_weights(python_ref.MobileViT("xxs", num_classes=10), 0).to(device)
    return mvk.optimize(stock, backend=backend, graph=graph, normalize=PLAIN)


def checker(expected: list[Tensor], exact: bool) -> Callable[[int, Tensor], str | None]:
    """Compares with the results computed alone: bit for bit, or within the dtype's tolerance."""

    def check(i: int, result: Tensor) -> str | None:
        alone = expected[i]
        if (result.shape, result.dtype) != (alone.shape, alone.dtype):
            return f"{tuple(result.shape)} of {result.dtype}, alone {tuple(alone.shape)} of {alone.dtype}"
        if exact:
            return None if torch.equal(result, alone) else f"differs by {relative_error(result, alone):.1e}"
        error = relative_error(result, alone)
        return None if error <= max(1e-5, torch.finfo(result.dtype).eps) else f"differs by {error:.1e}"

    return check


def test_torch_on_a_cpu() -> None:
    fast = make_model("torch", "cpu")
    inputs = make_inputs(12, largest_batch=3, largest=96, device="cpu")
    with torch.inference_mode():
        expected = [fast(x) for x in inputs]
    judge(soak(fast, inputs, checker(expected, exact=False), "cpu", SECONDS))


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", ["none", "some shapes captured", "every shape"])
@pytest.mark.parametrize("backend", ["cuda", "triton", "torch"])
def test_on_a_gpu(backend: str, graphs: str) -> None:
    """With graph=True there are more shapes than graphs are kept, so that some are captured again and again."""
    skip_unless_available(backend)
    alone = make_model(backend, "cuda")
    inputs = make_inputs(24, largest_batch=16, largest=256, device="cuda")
    with torch.inference_mode():
        expected = [alone(x) for x in inputs]
    fast = make_model(backend, "cuda", graph=graphs == "every shape")
    if graphs == "some shapes captured":
        for x in inputs[1::2]:
            batch, height, width = x.shape[0], *(x.shape[1:3] if x.dtype == torch.uint8 else x.shape[2:])
            fast.capture(batch, height, width, dtype=x.dtype)
    torch.cuda.synchronize()
    outcome = soak(fast, inputs, checker(expected, exact=backend != "torch"), "cuda", SECONDS)
    judge(outcome, MAX_GROWTH_OF_GRAPHS if graphs == "every shape" else MAX_GROWTH)


def test_a_leak_is_seen() -> None:
    """A megabyte kept a call, a hundred times, in memory that is written to."""
    if not sys.platform.startswith("linux"):
        pytest.skip("memory is read from /proc")
    kept: list[Tensor] = []

    def leaking(x: Tensor) -> Tensor:
        if len(kept) < 100:
            kept.append(torch.ones(MIB // 4))
        time.sleep(0.005)
        return x

    inputs = [torch.zeros(1)]
    outcome = soak(leaking, inputs, lambda i, y: None, "cpu", seconds=1.0)
    assert outcome.growth["resident"] > MAX_GROWTH["resident"]
    with pytest.raises(AssertionError, match="resident memory grew by"):
        judge(outcome)


def test_a_result_of_another_thread_is_seen() -> None:
    """A buffer that all calls share, as a workspace that is not one thread's own."""
    buffer = torch.empty(1)

    def shared(x: Tensor) -> Tensor:
        buffer.copy_(x)
        time.sleep(0.001)
        return buffer.clone()

    inputs = [torch.full((1,), float(i)) for i in range(8)]
    outcome = soak(shared, inputs, checker(inputs, exact=True), "cpu", seconds=0.5)
    assert any("differs by" in error for error in outcome.errors)
    with pytest.raises(AssertionError, match="differs by"):
        judge(outcome)
