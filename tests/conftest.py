"""Shared test set-up."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator

# Before torch or triton is imported: without a GPU, Triton kernels run in the interpreter.
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# Not whatever `tune` has left on this machine.
os.environ.setdefault("MVK_LAUNCH_TABLE", "static")
os.environ.setdefault("MVK_CHOICE_TABLE", "none")

import pytest

from mobilevit_kernels import native, registry, verify
from mobilevit_kernels.native import transformer_plan
from mobilevit_kernels.native.clusters import clusters_at_once
from mobilevit_kernels.native.transformer_plan import lay_out_clusters

# The bound on float32 is for float32: cuDNN's convolutions, the torch backend's among them, would take TF32.
torch.backends.cudnn.allow_tf32 = False

# One thread a process: `make test` runs a process a core.
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--schedules", type=int, default=20, help="orders of warps and lanes that the simulator runs a kernel in"
    )


@pytest.fixture
def schedules(request: pytest.FixtureRequest) -> range:
    """Seeds of the simulator's schedules."""
    return range(request.config.getoption("--schedules"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a GPU: torch.cuda.is_available() is False")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def _kernels_from_ptx(request: pytest.FixtureRequest) -> Iterator[None]:
    """MVK_PTX=full: what a test asks of the simulator is done by the kernels' PTX (ptx_extension.py)."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if os.environ.get("MVK_PTX") == "full" and parameters.get("backend") == "simt":
        import ptx_extension

        with ptx_extension.in_place_of_the_simulator():
            yield
    else:
        yield


def judge(case: verify.StageCase, y: torch.Tensor, x: torch.Tensor, dtype: torch.dtype) -> verify.Result:
    """The simulator's result for ``x`` against float64 and the stock computation."""
    _, weights, options = case.build()
    truth = verify.reference(case.stage, x, weights, **options)
    stock_x = x.to(dtype) if x.is_floating_point() else x
    stock = verify.reference(case.stage, stock_x, weights, dtype=dtype, **options)
    return verify.judge(str(case), "simt", dtype, y, truth, stock, verify.MAX_STAGE_RATIO)


def backend_params(*names: str) -> list[object]:
    """Parameters (backend, device) for a test that serves all backends; one without a GPU skips the GPU ones."""
    params = []
    for name in names or registry.BACKENDS:
        devices = {"torch": ("cpu", "cuda"), "triton": ("cpu", "cuda"), "cuda": ("cuda",), "simt": ("cpu",)}[name]
        for device in devices:
            marks = [pytest.mark.gpu] if device == "cuda" else []
            params.append(pytest.param(name, device, marks=marks, id=f"{name}-{device}"))
    return params


@contextlib.contextmanager
def blocks(backend: str, size: str) -> Iterator[None]:
    """Makes the transformer of "simt" or "cuda" take its "small" or its "large" blocks, whatever the batch, and
    neither clusters nor wgmma."""
    library = native.library(backend)
    library.multiprocessors = lambda device: 1_000_000 if size == "small" else 0  # type: ignore[method-assign]
    library.has_clusters = lambda device: False  # type: ignore[method-assign]
    library.has_wgmma = lambda device: False  # type: ignore[method-assign]
    try:
        yield
    finally:
        del library.multiprocessors
        del library.has_clusters
        del library.has_wgmma


@contextlib.contextmanager
def clusters(backend: str, device: str, at_once: int = 1_000_000, *, sends: bool = False) -> Iterator[None]:
    """Makes the transformer of "simt" or "cuda" take clusters, as on a GPU that runs ``at_once`` of them at once; skips
    without any. ``sends``: those whose blocks send."""
    library = native.library(backend)
    if not library.has_clusters(torch.device(device)):
        pytest.skip(f"{device} has no thread-block clusters")
    multiprocessors = 18 * (at_once // 2) + 8 * (at_once % 2)
    assert clusters_at_once(multiprocessors, 8) == at_once
    library.multiprocessors = lambda device: multiprocessors  # type: ignore[method-assign]

    def lay_out(instance, *sizes):
        return dataclasses.replace(lay_out_clusters(instance, *sizes), sends=sends)

    transformer_plan.lay_out_clusters = lay_out
    transformer_plan.plan_clusters.cache_clear()
    try:
        yield
    finally:
        transformer_plan.lay_out_clusters = lay_out_clusters
        transformer_plan.plan_clusters.cache_clear()
        del library.multiprocessors


def skip_unless_available(backend: str) -> None:
    """Skips the running test, with the backend's own reason, where it cannot run here."""
    status = registry.backends()[backend]
    if not status.available:
        pytest.skip(f"{backend}: {status.reason}")
