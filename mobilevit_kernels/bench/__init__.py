"""The benchmark runner: interleaved, checked against float64 before a speed is printed."""

from mobilevit_kernels.bench.models import bench_model
from mobilevit_kernels.bench.timing import Timing, time_interleaved

__all__ = ["Timing", "bench_model", "time_interleaved"]
