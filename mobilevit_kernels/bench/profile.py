"""Where a stage's or a network's time goes: PyTorch's profiler, and the hardware counters that ncu reads."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity

from mobilevit_kernels import ops, verify
from mobilevit_kernels.verify import NetworkCase, StageCase

__all__ = [
    "COUNTERS",
    "Counted",
    "Kernel",
    "NcuError",
    "Target",
    "count",
    "find_ncu",
    "prepare",
    "read_ncu",
    "stage_paths",
    "trace",
]

WARM_UP_CALLS = 3


@dataclass(frozen=True)
class Target:
    """What is profiled: a stage of a network, or the whole network, with random weights.

    Attributes:
        model: a network's name.
        path: a stage's dotted name in it; None: the whole network.
        batch, size: images (batch, 3, size, size).
        dtype: its name, such as ``float16``.
        backend: which kernels.
        device: a torch device's name.
    """

    model: str
    path: str | None
    batch: int
    size: int
    dtype: str
    backend: str
    device: str

    def case(self) -> StageCase | NetworkCase:
        """The stage or network at this batch and image size."""
        if self.path is None:
            return NetworkCase(self.model, (self.batch, 3, self.size, self.size))
        cases = verify.network_cases((self.model,), batch=self.batch, height=self.size, width=self.size)
        return next(case for _, path, case in cases if path == self.path)


def stage_paths(model: str) -> dict[str, str]:
    """Dotted stage name → stage, in the network's order."""
    return {path: case.stage for _, path, case in verify.network_cases((model,))}


def prepare(target: Target) -> tuple[Callable[[], object], str]:
    """The call to profile, warmed up, and the backends that serve it.

    Raises:
        BackendUnavailable: the backend cannot serve this here.
    """
    from mobilevit_kernels.models import MobileViT
    from mobilevit_kernels.stages import Stage

    device, dtype, case = torch.device(target.device), getattr(torch, target.dtype), target.case()
    if isinstance(case, NetworkCase):
        images, spec = case.build()
        images = images.to(device, dtype)
        network = MobileViT(spec, dtype=dtype).to(device)
        network = MobileViT(network.spec, dtype=dtype, backend=target.backend).eval()
        served_by = {module.packed.backend for module in network.modules() if isinstance(module, Stage)}

        def call() -> object:
            return network(images)

    else:
        x, weights, options = case.build()

        def move(value: Any) -> Any:
            """Maps are NHWC inside a network; images come as they are."""
            if not isinstance(value, Tensor):
                return value
            value = value.to(device, dtype)
            return value if case.stage == "stem" else value.contiguous(memory_format=torch.channels_last)

        assert weights is not None
        x, options = move(x), {name: move(value) for name, value in options.items()}
        packed = ops.pack(weights, dtype, device, target.backend)
        served_by = {packed.backend}
        op = getattr(ops, case.stage)

        def call() -> object:
            return op(x, packed, **options)

    def inference() -> object:
        with torch.inference_mode():
            return call()

    for _ in range(WARM_UP_CALLS):
        inference()
    _synchronize(device)
    return inference, "+".join(sorted(served_by))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- PyTorch's profiler ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kernel:
    """A kernel's part of a call; on a CPU, an operator's own time.

    Attributes:
        name: as the profiler has it.
        calls: launches a call.
        total_us: time of all of them.
        mean_us: time of one.
        share: of the time of all kernels.
    """

    name: str
    calls: float
    total_us: float
    mean_us: float
    share: float


def trace(
    call: Callable[[], object], device: torch.device | str, calls: int = 10, output: str | Path | None = None
) -> list[Kernel]:
    """Profiles ``calls`` calls in a row.

    Args:
        call: warmed up.
        device: where it runs.
        calls: how often.
        output: a file for the trace, which chrome://tracing and Perfetto show; None: none.

    Returns:
        The kernels, the costliest first; times and launches are means a call.

    Raises:
        RuntimeError: the profiler saw nothing on the GPU.
    """
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        for _ in range(calls):
            call()
        _synchronize(device)
    if output is not None:
        profiler.export_chrome_trace(str(output))
    times = {
        event.key: (event.count, event.self_device_time_total if on_gpu else event.self_cpu_time_total)
        for event in profiler.key_averages()
        if event.device_type.name == ("CUDA" if on_gpu else "CPU")
    }
    whole = sum(us for _, us in times.values())
    if not whole:
        raise RuntimeError("PyTorch's profiler saw no kernels: is another profiler attached to this process?")
    kernels = [Kernel(name, n / calls, us / calls, us / n, us / whole) for name, (n, us) in times.items()]
    return sorted(kernels, key=lambda kernel: -kernel.total_us)


# --- ncu -------------------------------------------------------------------------------------------------------------

# Column → ncu's metric. Caches are flushed before each kernel (ncu's default), so DRAM bytes are those of a cold start.
COUNTERS = {
    "time": "gpu__time_duration.sum",
    "DRAM read": "dram__bytes_read.sum",
    "DRAM written": "dram__bytes_write.sum",
    "DRAM": "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "L2": "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "tensor": "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
    "MUFU": "sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_active",
    "issue": "sm__inst_issued.avg.pct_of_peak_sustained_active",
    "bank conflicts": "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum",
    "occupancy": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "registers": "launch__registers_per_thread",
}


class NcuError(Exception):
    """ncu ran and gave no counters; the message, one line, says why."""


@dataclass(frozen=True)
class Counted:
    """One launch under ncu.

    Attributes:
        kernel: its name.
        grid, block: its shape, as ncu prints it.
        values: column of ``COUNTERS`` → (value, ncu's unit); without those that this GPU lacks.
    """

    kernel: str
    grid: str
    block: str
    values: dict[str, tuple[float, str]]


def find_ncu() -> str | None:
    """ncu on the PATH, or the newest where NVIDIA's installers put it."""
    if found := shutil.which("ncu", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"])):
        return found
    return next((str(path) for path in sorted(Path("/opt/nvidia/nsight-compute").glob("*/ncu"), reverse=True)), None)


def read_ncu(text: str) -> list[Counted]:
    """Reads what ``ncu --csv --page raw`` prints: names, units, then a row a launch, among lines of other text."""
    rows = list(csv.reader(line for line in text.splitlines() if line.startswith('"')))
    start = next((i for i, row in enumerate(rows) if row[0] == "ID"), None)
    if start is None or len(rows) < start + 3:
        return []
    names, units = rows[start : start + 2]
    launches = []
    for row in rows[start + 2 :]:
        cells = dict(zip(names, row, strict=False))
        unit = dict(zip(names, units, strict=False))
        values = {}
        for column, metric in COUNTERS.items():
            try:
                values[column] = (float(cells.get(metric, "").replace(",", "")), unit[metric])
            except ValueError:
                continue  # "n/a": this GPU has no such counter
        launches.append(Counted(cells["Kernel Name"], cells["Grid Size"], cells["Block Size"], values))
    return launches


def count(target: Target, ncu: str) -> list[Counted]:
    """One call of the target under ncu, in a process of its own.

    Args:
        target: what is profiled.
        ncu: its executable.

    Returns:
        Every launch, in order.

    Raises:
        NcuError: there are no counters, with ncu's own reason.
    """
    options = ["--csv", "--page", "raw", "--print-units", "base", "--metrics", ",".join(COUNTERS.values())]
    options += ["--profile-from-start", "off", "--clock-control", "none"]
    child = [sys.executable, "-m", "mobilevit_kernels.bench.profile", json.dumps(dataclasses.asdict(target))]
    done = subprocess.run([ncu, *options, *child], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    launches = read_ncu(done.stdout)
    if launches:
        return launches
    lines = [line.strip() for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
    # The first of ncu's own errors names the cause; of a traceback in the child it is the last line.
    own = [line for line in lines if line.startswith("==ERROR==") and "application returned an error" not in line]
    others = [line for line in lines if not line.startswith("==")]
    raise NcuError(f"ncu gave no counters: {own[0] if own else (others or lines or ['no output'])[-1]}")


def _profiled(target: Target) -> None:
    """What runs under ncu: one call between cudaProfilerStart and cudaProfilerStop."""
    call, _ = prepare(target)
    torch.cuda.profiler.start()
    call()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


if __name__ == "__main__":
    _profiled(Target(**json.loads(sys.argv[1])))
