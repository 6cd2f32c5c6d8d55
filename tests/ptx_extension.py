"""The extension's own host code and PTX on the CPU: what nvcc makes of csrc/, interpreted (tools/ptx).

``csrc/bindings.cpp`` and the ``.cu`` files are compiled by nvcc to host code and PTX, and linked with the interpreter
in place of the CUDA runtime. :class:`PtxLibrary` drives the result as the ``cuda`` backend drives the real one.

``MVK_PTX=full`` compiles all kernels, which takes minutes, and makes every test with the backend "simt" among its
parameters run on their PTX instead of on the simulator (conftest.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from mobilevit_kernels import cuda, native
from mobilevit_kernels.cache import cache_folder
from mobilevit_kernels.native.launches import Library, Slot
from mobilevit_kernels.plan import Plan, Runner
from mobilevit_kernels.simt._library import CONSTANTS

ROOT = Path(__file__).resolve().parent.parent

FULL = os.environ.get("MVK_PTX") == "full"
#: What is compiled else, beside the tests of the primitives.
SMALL_UNITS = ("conv3x3", "conv3x3_wgmma", "stem", "transformer_wgmma")

MULTIPROCESSORS = 132  # as tools/ptx/cuda_runtime.cpp reports
SHARED_LIMIT = 232448


def load_tool(name: str) -> ModuleType:
    """A program of tools/, as a module."""
    specification = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    tool = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(tool)
    return tool


resources = load_tool("kernel_resources")


@functools.lru_cache(maxsize=1)
def obstacle() -> str | None:
    """Why the PTX cannot be compiled here; None: it can."""
    nvcc = resources.find_tool("nvcc")
    if nvcc is None:
        return "no nvcc on the PATH"
    release = re.search(r"release (\d+)\.", subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout)
    if release is None or int(release[1]) != 13:
        return f"the interpreter knows the instructions and the fat binaries of nvcc 13, {nvcc} is another"
    if importlib.util.find_spec("pybind11") is None:
        return "the pybind11 package is not installed"
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return "Python's headers are not installed"
    return None


_FLAGS = ["-std=c++17", '-DMVK_ARCHITECTURES="90a-ptx"', "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall"]
# PTX alone goes into the fat binary, as it is.
_DEVICE = ["-O3", "-gencode=arch=compute_90a,code=compute_90a", "--compress-mode=none"]
_INTERPRETER = ["-O2", "-Xcompiler=-Wextra,-ftree-vectorize,-fno-strict-aliasing,-ffp-contract=off"]


def build(units: Sequence[str]) -> Path:
    """Compiles what has changed since the last time.

    Args:
        units: names of files csrc/*.cu; launchers of the others refuse.

    Returns:
        The extension module.
    """
    import pybind11

    nvcc = resources.find_tool("nvcc")
    sources, interpreter = ROOT / "csrc", ROOT / "tools" / "ptx"
    includes = [f"-I{folder}" for folder in (sources, pybind11.get_include(), sysconfig.get_paths()["include"])]
    kernels = [sources / f"{unit}.cu" for unit in units] + [sources / "testing" / "golden.cu"]
    commands = {unit: [nvcc, *_FLAGS, *_DEVICE, "-c", str(unit)] for unit in kernels}
    commands[sources / "bindings.cpp"] = [nvcc, *_FLAGS, *includes, "-c", str(sources / "bindings.cpp")]
    for unit in sorted(interpreter.glob("*.cpp")):
        commands[unit] = [nvcc, *_FLAGS, *includes, *_INTERPRETER, "-c", str(unit)]

    def digest(folder: Path, command: list[str]) -> Any:
        found = hashlib.sha256(" ".join(command).encode())
        for header in sorted(path for path in folder.rglob("*") if path.suffix in (".h", ".cuh")):
            found.update(header.read_bytes())
        return found

    target_folder = cache_folder() / "ptx"
    target_folder.mkdir(parents=True, exist_ok=True)

    def compile_unit(unit: Path) -> Path:
        of_unit = digest(interpreter if unit.parent == interpreter else sources, commands[unit])
        of_unit.update(unit.read_bytes())
        target = target_folder / f"{unit.stem}-{of_unit.hexdigest()[:20]}.o"
        if not target.exists():
            _run(commands[unit], target)
        return target

    with (target_folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes one compiles, the others wait for it
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_unit, commands))
        names = hashlib.sha256("".join(unit.name for unit in objects).encode()).hexdigest()[:20]
        target = target_folder / names / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            # The symbols of the CUDA runtime are in here; PyTorch may have brought others into the process.
            _run(["g++", "-shared", "-Wl,-Bsymbolic", *map(str, objects)], target)
    return target


def _run(command: list[str], target: Path) -> None:
    """Runs a compiler; the result appears under its name only when it is complete."""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        output = Path(scratch) / target.name
        done = subprocess.run([*command, "-o", str(output)], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
        os.replace(output, target)


@dataclass(frozen=True)
class Coverage:
    """What has been executed of a kernel."""

    name: str
    launches: int
    instructions: int
    executed: int  # of those, at least once
    warp_instructions: int


class PtxLibrary(cuda.CudaLibrary):
    """The extension on CPU tensors."""

    _INPUT, _OUTPUT, _CONSTANT = 0, 1, 2  # ptx::BufferKind

    def __init__(self, path: Path) -> None:
        # pybind11 keeps modules by their name: this one is neither mobilevit_kernels._C nor another build.
        specification = importlib.util.spec_from_file_location(f"{path.parent.name}._C", path)
        assert specification is not None
        assert specification.loader is not None
        extension = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(extension)
        super().__init__(extension)
        self.control = ctypes.CDLL(str(path))
        self.control.ptx_add_buffer.argtypes = [ctypes.c_char_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int]
        self.control.ptx_kernel_name.restype = ctypes.c_char_p
        self.control.ptx_run.restype = ctypes.c_char_p
        self._set_registers()

    def _set_registers(self) -> None:
        table = json.loads(resources.TABLE.read_text(encoding="utf-8"))["sm_90a"]
        for i in range(self.control.ptx_kernels()):
            figures = table.get(resources.short_name(self.control.ptx_kernel_name(i).decode()))
            if figures is not None:  # not of the tests' own kernels
                self.control.ptx_set_registers(i, figures["registers"])

    @contextlib.contextmanager
    def reach(self, inputs: Iterable[tuple[str, Tensor]], outputs: Mapping[str, Tensor]) -> Iterator[None]:
        """Makes these tensors, and nothing else, the memory that kernels can reach; NaN is in the outputs before."""
        try:
            for name, tensor in inputs:
                self._add_buffer(name, tensor, self._CONSTANT if name in CONSTANTS else self._INPUT)
            for name, tensor in outputs.items():
                tensor.fill_(float("nan") if tensor.is_floating_point() else 0xFF)
                self._add_buffer(name, tensor, self._OUTPUT)
            yield
        finally:
            self.control.ptx_clear_buffers()

    def _add_buffer(self, name: str, tensor: Tensor, kind: int) -> None:
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        size = (last + 1) * tensor.element_size() if tensor.numel() else 0
        self.control.ptx_add_buffer(name.encode(), tensor.data_ptr(), size, kind)

    def place(self, x: Tensor) -> tuple[int, int]:
        """The interpreter has one device and its default stream."""
        return 0, 0

    def launch(
        self,
        launcher: str,
        inputs: Mapping[str, Tensor],
        output: Tensor,
        sizes: Mapping[str, float],
        bfloat16: bool,
        workspace: Tensor | None = None,
    ) -> None:
        """Launches with these tensors in reach."""
        outputs = {"y": output} | ({} if workspace is None else {"workspace": workspace})
        with self.reach(inputs.items(), outputs):
            super().launch(launcher, inputs, output, sizes, bfloat16, workspace)

    def compile(self, plan: Plan) -> Runner:
        """A plan whose runs have its weights, activations and outputs in reach."""
        run = super().compile(plan)
        weights = [item for launch in plan.launches for item in launch.inputs.items() if isinstance(item[1], Tensor)]

        def run_in_reach(x: Tensor, workspace: Tensor, outputs: Mapping[Slot, Tensor]) -> None:
            written = {"workspace": workspace} | {f"output {i}": y for i, y in enumerate(outputs.values())}
            with self.reach([("x", x), *weights], written):
                run(x, workspace, outputs)

        return run_in_reach

    def shared_limit(self, device: torch.device) -> int:
        """Of an H200."""
        return SHARED_LIMIT

    def multiprocessors(self, device: torch.device) -> int:
        """Of an H200."""
        return MULTIPROCESSORS

    def has_clusters(self, device: torch.device) -> bool:
        """As on a GPU of compute capability 9.0."""
        return cuda.knows_clusters(self.extension.architectures, (9, 0))

    def has_wgmma(self, device: torch.device) -> bool:
        """As on a GPU of compute capability 9.0."""
        return cuda.knows_wgmma(self.extension.architectures, (9, 0))

    def coverage(self) -> list[Coverage]:
        """Of every kernel in the build."""
        found = []
        values = (ctypes.c_uint64 * 4)()
        for i in range(self.control.ptx_kernels()):
            self.control.ptx_coverage(i, values)
            found.append(Coverage(resources.short_name(self.control.ptx_kernel_name(i).decode()), *values))
        return found


@functools.lru_cache(maxsize=1)
def library() -> PtxLibrary:
    """The build that MVK_PTX asks for, compiled on first use."""
    units = sorted(path.stem for path in (ROOT / "csrc").glob("*.cu")) if FULL else SMALL_UNITS
    return PtxLibrary(build(units))


@contextlib.contextmanager
def in_place_of_the_simulator() -> Iterator[PtxLibrary]:
    """Lets the stages and plans of the backend "simt" call the extension; ``simt.library()`` stays the simulator."""
    loaded = library()

    def rerouted(backend: str) -> Library:
        assert backend == "simt"
        return loaded

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "library", rerouted)
        patch.setattr(native.launches, "library", rerouted)
        yield loaded
