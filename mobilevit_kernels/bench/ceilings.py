"""What the device can do at most, measured: memory bandwidth, matrix rates, special functions."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

__all__ = ["NOT_MEASURED", "Ceilings", "measure"]


@dataclass(frozen=True)
class Ceilings:
    """Rates per second; None, or absent, where they were not measured.

    Attributes:
        bandwidth: bytes read and written by a large device-to-device copy.
        matrix_flops: operations of a large matrix product of random numbers, by dtype (``"float16"``, …).
        special: exponentials (one MUFU instruction each on a GPU).
        reasons: why a rate is missing, by name.
    """

    bandwidth: float | None = None
    matrix_flops: dict[str, float] = field(default_factory=dict)
    special: float | None = None
    reasons: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Ceilings:
        """The inverse of :meth:`to_dict`."""
        return cls(
            values.get("bandwidth"),
            dict(values.get("matrix_flops", {})),
            values.get("special"),
            dict(values.get("reasons", {})),
        )


NOT_MEASURED = Ceilings()
REPEATS = 7


def measure(device: torch.device | str, dtypes: tuple[torch.dtype, ...] = (torch.float16, torch.bfloat16)) -> Ceilings:
    """Measures the ceilings of a device, in a second or two.

    Args:
        device: a CUDA device or the CPU.
        dtypes: of the matrix products.

    Returns:
        The best of several repeats of each: a ceiling is what the device can do, not what it does on average.
    """
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    reasons: dict[str, str] = {}

    def attempt(name: str, measure_one: Callable[[], float]) -> float | None:
        try:
            return measure_one()
        except Exception as error:  # a ceiling that cannot be measured must not cost the benchmarks
            reasons[name] = f"{type(error).__name__}: {error}"[:300]
            return None

    with torch.inference_mode():
        # The matrix products first: they bring an idle GPU to its clocks.
        rates = {
            name: attempt(name, lambda dtype=dtype: _matrix_flops(device, dtype, 8192 if on_gpu else 1024))  # type: ignore[misc]
            for dtype in dtypes
            if (name := str(dtype).removeprefix("torch."))
        }
        bandwidth = attempt("bandwidth", lambda: _bandwidth(device, 2**31 if on_gpu else 2**27))
        special = attempt("special", lambda: _special_gpu(device) if on_gpu else _special_cpu())
    return Ceilings(bandwidth, {name: rate for name, rate in rates.items() if rate}, special, reasons)


def _best_seconds(call: Callable[[], object], device: torch.device) -> float:
    call()  # warm up
    best = float("inf")
    for _ in range(REPEATS):
        if device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            end.synchronize()
            seconds = start.elapsed_time(end) / 1e3
        else:
            begin = time.perf_counter()
            call()
            seconds = time.perf_counter() - begin
        best = min(best, seconds)
    return best


def _bandwidth(device: torch.device, size: int) -> float:
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _best_seconds(lambda: target.copy_(source), device)


def _matrix_flops(device: torch.device, dtype: torch.dtype, size: int) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _best_seconds(lambda: a @ b, device)


def _special_cpu() -> float:
    x = torch.rand(2**17 * torch.get_num_threads())  # work for every thread, and still in the caches
    return x.numel() / _best_seconds(lambda: torch.exp(x), torch.device("cpu"))


def _special_gpu(device: torch.device) -> float:
    from mobilevit_kernels.bench import _special

    blocks = torch.cuda.get_device_properties(device).multi_processor_count * 32
    out = torch.empty(blocks * _special.BLOCK, device=device)
    with torch.cuda.device(device):
        seconds = _best_seconds(lambda: _special.chain[(blocks,)](out, _special.BLOCK, _special.STEPS), device)
    return out.numel() * _special.STEPS / seconds
