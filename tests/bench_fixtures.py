"""Synthetic results in the shape of a recorded run: every status, several dtypes and batches, missing peers."""

from __future__ import annotations

import dataclasses
from typing import Any

from mobilevit_kernels.bench.results import OK, Record, Results

MODELS = {"mobilevit_xxs": 0.4, "mobilevit_xs": 0.7, "mobilevit_s": 1.0}  # relative cost
IMPLS = {  # ms a call without work, ms an image of mobilevit_s
    "eager": (6.0, 0.30),
    "eager-channels_last": (5.9, 0.20),
    "compile-default": (2.2, 0.12),
    "compile-reduce-overhead": (0.8, 0.12),
    "compile-max-autotune": (0.7, 0.10),
}
OURS = {("triton", False): (0.9, 0.05), ("triton", True): (0.25, 0.05), ("torch", False): (4.0, 0.18)}
STAGES = [  # stage, case, flops an image, values an image
    ("stem", "3→16 256×256", 28e6, 0.46e6),
    ("inverted_residual", "16→64→32 128×128", 60e6, 0.8e6),
    ("inverted_residual", "64→256→96 64×64 stride=2", 90e6, 0.36e6),
    ("conv3x3", "96→96 32×32", 170e6, 0.2e6),
    ("transformer", "96→144×2 32×32", 600e6, 0.2e6),
    ("head", "160→640→1000 8×8", 14e6, 0.8e6),
]

PARITY_REASON = "relative L2 error 3.10e-01 is 310 times stock's, at most 1.3 allowed"
MEMORY_REASON = "CUDA out of memory: tried to allocate 20.25 GiB"
UNSUPPORTED_REASON = "tensorrt: torch_tensorrt is not installed"
FAILED_REASON = "RuntimeError: <script>alert('x')</script> & more | with a pipe"
LEFT_OUT_REASON = "the time budget of 540 s was spent"
REASONS = [PARITY_REASON, MEMORY_REASON, UNSUPPORTED_REASON, FAILED_REASON, LEFT_OUT_REASON]

# The records that failed their check carry figures that no reader may see.
WITHHELD_SPEEDUP, WITHHELD_FRACTION, WITHHELD_MS = 777.7, 0.8888, 0.0123


def gpu_meta(**changes: Any) -> dict[str, Any]:
    return {
        "gpu": "NVIDIA H200",
        "device": "NVIDIA H200",
        "driver": "570.1",
        "cuda": "13.2",
        "torch": "2.15.0",
        "triton": "3.9.0",
        "timm": "1.0.31",
        "python": "3.11.7",
        "threads": 16,
        "commit": "0123456789abcdef",
        "dirty": False,
        "date": "2026-12-01T10:00:00+00:00",
        "ceilings": {"bandwidth": 4.1e12, "matrix_flops": {"float16": 7.0e14, "bfloat16": 6.9e14}, "special": 4.4e12},
        "command": "mobilevit-kernels bench",
        "tables": [],
        "left_out": [],
    } | changes


def cpu_meta(**changes: Any) -> dict[str, Any]:
    none = dict.fromkeys(("gpu", "driver", "cuda", "triton"))
    ceilings = {"bandwidth": 2.0e10, "matrix_flops": {"float32": 1.0e11}, "special": None}
    return gpu_meta(**none, device="AMD EPYC, 2 cores", threads=2, ceilings=ceilings) | changes


def record(job: str, impl: str, ms: float | None, **fields: Any) -> Record:
    """A record with everything that follows from its time filled in; ``fields`` win."""
    batch, size = fields.pop("batch", 1), fields.pop("size", 256)
    values: dict[str, Any] = {
        "job": job,
        "model": None,
        "stage": None,
        "case": None,
        "suites": ("models",),
        "shape": (batch, 3, size, size),
        "impl": impl,
        "backend": "torch",
        "dtype": "float16",
        "batch": batch,
        "height": size,
        "width": size,
        "graph": False,
        "status": OK,
    }
    if ms is not None:
        floor = ms / 8
        values |= {
            "ms": ms,
            "ms_p20": 0.98 * ms,
            "ms_p80": 1.02 * ms,
            "ms_p99": 1.2 * ms,
            "rounds": 50,
            "stable": True,
            "images_per_s": batch / ms * 1e3,
            "host_us": 40.0,
            "latency_ms": ms,
            "latency_ms_p20": 0.98 * ms,
            "latency_ms_p99": 1.2 * ms,
            "first_call_s": 1.5,
            "peak_mb": 120.0,
            "floor_ms": floor,
            "floor_fraction": floor / ms,
            "floor_bound": "bytes",
            "rel_l2_err": 1.1e-3,
            "stock_rel_l2_err": 1.2e-3,
            "speedup": 1.0,
        }
    return Record(**(values | fields))


def wrong(job: str, impl: str, **fields: Any) -> Record:
    """A record whose result failed its check, with figures that must not be shown."""
    hidden = {"speedup": WITHHELD_SPEEDUP, "floor_fraction": WITHHELD_FRACTION, "rel_l2_err": 0.31}
    return record(job, impl, WITHHELD_MS, status="parity failed", reason=PARITY_REASON, **hidden, **fields)


def network(model: str, impl: str, batch: int, **fields: Any) -> Record:
    """A network's record with a time made up from the cost of a call and of an image."""
    size, dtype, backend = fields.get("size", 256), fields.get("dtype", "float16"), fields.get("backend", "torch")
    call, image = OURS[backend, fields.get("graph", False)] if impl == "ours" else IMPLS[impl]
    ms = call + image * batch * MODELS[model] * (size / 256) ** 2
    speedup = (IMPLS["eager"][0] + IMPLS["eager"][1] * batch * MODELS[model]) / ms
    return record(_job(model, batch, size, dtype), impl, ms, model=model, batch=batch, speedup=speedup, **fields)


def _job(model: str, batch: int, size: int, dtype: str) -> str:
    return f"model/{model}/b{batch}/{size}x{size}/{dtype}"


def _ours(model: str, batch: int, **fields: Any) -> list[Record]:
    return [network(model, "ours", batch, backend=backend, graph=graph, **fields) for backend, graph in OURS]


def gpu_results(**meta: Any) -> Results:
    """A GPU's run: all suites, every status."""
    records: list[Record] = []
    for model in MODELS:
        for batch in (1, 8, 32, 256, 1024):
            suites = ("batch-sweep",) if batch == 1024 else ("models", "batch-sweep")
            records += [network(model, impl, batch, suites=suites) for impl in IMPLS]
            records += _ours(model, batch, suites=suites)
            job = _job(model, batch, 256, "float16")
            none: dict[str, Any] = {"model": model, "batch": batch, "suites": suites}
            records.append(
                record(
                    job, "tensorrt", None, status="unsupported", reason=UNSUPPORTED_REASON, backend="tensorrt", **none
                )
            )
            if model == "mobilevit_xs":
                records.append(wrong(job, "ours", backend="cuda", graph=True, **none))
        for batch in (1, 8):
            records += [network(model, "eager-channels_last", batch, dtype="bfloat16")]
            records += _ours(model, batch, dtype="bfloat16")
        for size in (192, 256, 384, 512):
            sweep: dict[str, Any] = {"size": size, "suites": ("size-sweep",)}
            if size != 256:
                records += [
                    network(model, impl, 32, **sweep) for impl in ("eager-channels_last", "compile-max-autotune")
                ]
                records += _ours(model, 32, **sweep)
    records = [_spoilt(r) for r in records]
    records = [
        dataclasses.replace(r, suites=(*r.suites, "size-sweep")) if (r.batch, r.dtype) == (32, "float16") else r
        for r in records
    ]
    for model, size in (("deit_tiny_patch16_224", 224), ("resnet50", 256)):
        for batch in (1, 8):
            fields: dict[str, Any] = {"model": model, "batch": batch, "size": size, "suites": ("neighbours",)}
            records.append(
                record(_job(model, batch, size, "float16"), "compile-max-autotune", 0.5 + batch / 50, **fields)
            )
            records.append(record(_job(model, batch, size, "float16"), "eager", 4 + batch / 50, **fields))
    return Results(gpu_meta(**meta), (*records, *stage_records()))


def _spoilt(r: Record) -> Record:
    """What went wrong in the made-up run."""
    at = (r.model, r.batch, r.impl, r.dtype, r.height)
    fields = {"model": r.model, "batch": r.batch, "dtype": r.dtype, "suites": r.suites, "size": r.height}
    if at == ("mobilevit_s", 1024, "eager", "float16", 256):
        return record(r.job, r.impl, None, status="out of memory", reason=MEMORY_REASON, **fields)
    if at == ("mobilevit_s", 256, "compile-default", "float16", 256):
        return record(r.job, r.impl, None, status="failed", reason=FAILED_REASON, **fields)
    if r.model == "mobilevit_s" and r.batch == 32 and r.height == 256 and r.impl.startswith("compile"):
        return record(r.job, r.impl, None, status="out of memory", reason=MEMORY_REASON, **fields)
    if r.model == "mobilevit_xxs" and r.batch == 256 and r.impl == "ours":
        return wrong(r.job, r.impl, backend=r.backend, graph=r.graph, **fields)
    if at == ("mobilevit_xxs", 8, "eager-channels_last", "float16", 256):
        return record(r.job, r.impl, None, status="left out", reason=LEFT_OUT_REASON, **fields)
    return r


def stage_job(stage: str, case: str, batch: int) -> str:
    return f"stage/{stage}/{case}/b{batch}/float16"


def stage_records() -> list[Record]:
    """Stages at batches 1 and 32; the transformer's ``ours (triton)`` failed its check."""
    records = []
    for batch in (1, 32):
        for stage, case, flops, values in STAGES:
            job = stage_job(stage, case, batch)
            fields: dict[str, Any] = {"stage": stage, "case": case, "batch": batch, "size": 64, "suites": ("stages",)}
            floor = batch * max(flops / 7.0e14, 2 * values / 4.1e12) * 1e3
            for impl, times in (("eager", 40), ("eager-channels_last", 25), ("compile-max-autotune", 9)):
                records.append(record(job, impl, times * floor, floor_ms=floor, **fields))
            if stage == "transformer":
                records.append(wrong(job, "ours", backend="triton", floor_ms=floor, **fields))
            else:
                records.append(record(job, "ours", 2.5 * floor, backend="triton", graph=True, floor_ms=floor, **fields))
    return records


def work(batch: int = 32) -> dict[str, tuple[float, float]]:
    """Job → (operations, bytes)."""
    return {stage_job(stage, case, b): (b * f, 2 * b * v) for b in (1, batch) for stage, case, f, v in STAGES}


def breakdown(batch: int = 32) -> dict[str, list[tuple[str, str, str]]]:
    """mobilevit_s has all stages, with one twice; mobilevit_xxs has those that ours was measured on."""
    parts = [(f"stages.{i}", stage, stage_job(stage, case, batch)) for i, (stage, case, *_) in enumerate(STAGES)]
    return {"mobilevit_s": [*parts, parts[1]], "mobilevit_xxs": [p for p in parts if p[1] != "transformer"]}


def cpu_results(**meta: Any) -> Results:
    """A CPU's run: float32 at two batches, eager against ours."""
    records: list[Record] = []
    cpu: dict[str, Any] = {"dtype": "float32", "host_us": None, "peak_mb": None}
    for model in MODELS:
        for batch in (1, 8):
            records += [network(model, impl, batch, **cpu) for impl in ("eager", "eager-channels_last")]
            records.append(network(model, "ours", batch, backend="torch", **cpu))
    return Results(cpu_meta(**meta), tuple(records))


def as_json(results: Results) -> dict[str, Any]:
    """What the file of ``results`` holds."""
    return {"schema": 1, "meta": dict(results.meta), "records": [record.to_dict() for record in results.records]}
