"""The ``cuda`` backend: the compiled extension ``mobilevit_kernels._C``, built at install where an nvcc was found."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mobilevit_kernels import native
from mobilevit_kernels.canonical import AttentionShape, StageWeights
from mobilevit_kernels.native.launches import Launch, Slot, call
from mobilevit_kernels.plan import Plan, Runner
from mobilevit_kernels.registry import Status

__all__ = ["CudaLibrary", "library", "refusal", "serves", "stage_module", "status"]

_HOW_TO_BUILD = (
    "install with an nvcc in CUDACXX, under CUDA_HOME, on the PATH, or from PyPI (pip install nvidia-cuda-nvcc "
    "nvidia-cuda-cccl, then this package with --no-build-isolation), and MVK_BUILD_CUDA=1 to make a failure an error"
)


def serves(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether a build for ``architectures`` runs on a GPU of this compute capability.

    Machine code of 8.0 runs on 8.x with x ≥ 0, an "a" architecture on exactly its own, PTX on anything as new.

    Args:
        architectures: as the extension states them, such as "80/90a/120/120-ptx".
        capability: (major, minor).
    """
    for architecture in architectures.split("/"):
        number = architecture.removesuffix("-ptx").rstrip("af")
        built = (int(number[:-1]), int(number[-1]))
        if architecture.endswith("-ptx"):
            if capability >= built:
                return True
        elif architecture.endswith("a"):
            if capability == built:
                return True
        elif capability[0] == built[0] and capability[1] >= built[1]:
            return True
    return False


@functools.lru_cache(maxsize=1)
def _extension() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("mobilevit_kernels._C"), ""
    except ModuleNotFoundError:
        return None, f"this installation has no compiled extension; {_HOW_TO_BUILD}"
    except ImportError as error:
        return None, f"the compiled extension does not load: {error}"


def knows_clusters(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether what a GPU runs of a build knows clusters: PTX of an older architecture does not, on whatever GPU."""
    return any(
        serves(architecture, capability) and int(architecture.removesuffix("-ptx").rstrip("af")) >= 90
        for architecture in architectures.split("/")
    )


def knows_wgmma(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether what a GPU runs of a build has wgmma: only code for sm_90a has."""
    built = (architecture.removesuffix("-ptx") for architecture in architectures.split("/"))
    return capability == (9, 0) and "90a" in built


def status() -> Status:
    """Whether the extension is there and there is a GPU that it runs on."""
    extension, problem = _extension()
    if extension is None:
        return Status(False, problem)
    if not torch.cuda.is_available():
        return Status(False, "torch.cuda.is_available() is False: no GPU, no driver, or a CPU-only torch")
    architectures: str = extension.architectures
    names = []
    for index in range(torch.cuda.device_count()):
        if serves(architectures, torch.cuda.get_device_capability(index)):
            names.append(torch.cuda.get_device_name(index))
    if not names:
        capability = "{}.{}".format(*torch.cuda.get_device_capability())
        return Status(
            False,
            f"the extension is built for {architectures}, the GPU has compute capability {capability}; reinstall with "
            f"MVK_CUDA_ARCHITECTURES set",
        )
    return Status(True, f"built for {architectures}, runs on {', '.join(dict.fromkeys(names))}")


def refusal(
    stage: str,
    weights: StageWeights | AttentionShape | None,
    dtype: torch.dtype,
    device: torch.device,
    num_heads: int | None = None,
) -> str | None:
    """Why the CUDA kernels cannot serve these weights; None: they can."""
    if device.type != "cuda":
        return f"the CUDA kernels take tensors on a GPU, not on {device}"
    extension, problem = _extension()
    if extension is None:
        return problem
    capability = torch.cuda.get_device_capability(device)
    if not serves(extension.architectures, capability):
        return "the extension is built for {}, {} has compute capability {}.{}".format(
            extension.architectures, device, *capability
        )
    return native.refusal("cuda", stage, weights, dtype, device, num_heads)


def stage_module(stage: str) -> ModuleType:
    """The module of one stage."""
    return native.stage_module(stage)


class CudaLibrary:
    """The extension, behind the interface that the stages call."""

    def __init__(self, extension: Any) -> None:
        self.extension = extension

    def place(self, x: Tensor) -> tuple[int, int]:
        """The device that ``x`` is on, by index, and the handle of the stream that is current there."""
        device = x.device.index
        return device, torch._C._cuda_getCurrentRawStream(device)  # torch.cuda.current_stream makes an object of it

    def launch(
        self,
        launcher: str,
        inputs: Mapping[str, Tensor],
        output: Tensor,
        sizes: Mapping[str, float],
        bfloat16: bool,
        workspace: Tensor | None = None,
    ) -> None:
        """Launches on the current stream of the output's device."""
        device, stream = self.place(output)
        pointers = {name: tensor.data_ptr() for name, tensor in inputs.items()}
        if workspace is not None:
            pointers["workspace"] = workspace.data_ptr()
        getattr(self.extension, launcher)(
            device=device, stream=stream, y=output.data_ptr(), bfloat16=bfloat16, **pointers, **sizes
        )

    def compile(self, plan: Plan) -> Runner:
        """Fills in every launch but the addresses of activations, once."""
        return _CompiledPlan(self, plan)

    def shared_bytes(self, stage: str, *sizes: int) -> int:
        """Shared memory of a block in bytes."""
        needed: int = getattr(self.extension, f"{stage}_shared_bytes")(*sizes)
        return needed

    def dealt_pixels(self, *sizes: int) -> int:
        """Output pixels a multiprocessor up to which the inverted residual's row kernel deals hidden channels."""
        pixels: int = self.extension.inverted_residual_rows_dealt_pixels(*sizes)
        return pixels

    def rows_workspace_bytes(self, *sizes: int) -> int:
        """Device memory that the inverted residual's row kernel needs while it runs."""
        needed: int = self.extension.inverted_residual_rows_workspace_bytes(*sizes)
        return needed

    def shared_limit(self, device: torch.device) -> int:
        """Shared memory that a block may have on ``device``, in bytes."""
        properties: Any = torch.cuda.get_device_properties(device)  # stubs differ between torch releases
        limit: int = properties.shared_memory_per_block_optin
        return limit

    def multiprocessors(self, device: torch.device) -> int:
        """Streaming multiprocessors of ``device``."""
        count: int = torch.cuda.get_device_properties(device).multi_processor_count
        return count

    def l2_bytes(self, device: torch.device) -> int:
        """Size of the L2 cache of ``device``."""
        properties: Any = torch.cuda.get_device_properties(device)
        size: int = properties.L2_cache_size
        return size

    def has_clusters(self, device: torch.device) -> bool:
        """Whether ``device`` has thread-block clusters, from compute capability 9.0 on, and runs code built for it."""
        architectures: str = self.extension.architectures
        return knows_clusters(architectures, torch.cuda.get_device_capability(device))

    def has_wgmma(self, device: torch.device) -> bool:
        """Whether ``device`` has wgmma, as compute capability 9.0 alone, and the extension is built for sm_90a."""
        architectures: str = self.extension.architectures
        return knows_wgmma(architectures, torch.cuda.get_device_capability(device))


class _CompiledPlan:
    """A plan inside the extension: one call launches everything, or all up to a step of another library."""

    # csrc/plan.h: Base
    _WORKSPACE, _INPUT, _FIRST_OUTPUT = 1, 2, 3

    def __init__(self, library: CudaLibrary, plan: Plan) -> None:
        self._library, self._plan = library, plan
        self._outputs = tuple(dict.fromkeys(plan.outputs))
        self._parts: list[Any] = []  # what the extension launches in one call, and steps of other libraries
        for launch, begin in zip(plan.launches, plan.workspaces, strict=True):
            if launch.function is not None:
                self._parts.append(launch)
                continue
            if not self._parts or isinstance(self._parts[-1], Launch):
                self._parts.append(library.extension.Plan())
            values: dict[str, Any] = {**launch.sizes, "bfloat16": launch.dtype == torch.bfloat16}
            for name, value in (*launch.inputs.items(), ("y", launch.output)):
                values[name] = value.data_ptr() if isinstance(value, Tensor) else self._place(plan, value)
            if launch.workspace_bytes:
                values["workspace"] = (self._WORKSPACE, begin)
            self._parts[-1].add(launch.launcher, values)

    def _place(self, plan: Plan, slot: Slot) -> tuple[int, int]:
        root = slot.root
        if root is plan.input:
            return self._INPUT, slot.offset
        if root in self._outputs:
            return self._FIRST_OUTPUT + self._outputs.index(root), slot.offset
        return self._WORKSPACE, plan.offsets[root] + slot.offset

    def __call__(self, x: Tensor, workspace: Tensor, outputs: Mapping[Slot, Tensor]) -> None:
        """Launches on the current stream of ``x``'s device."""
        device, stream = self._library.place(x)
        addresses = [workspace.data_ptr(), x.data_ptr(), *(outputs[slot].data_ptr() for slot in self._outputs)]
        for part in self._parts:
            if isinstance(part, Launch):
                tensor_of = functools.partial(self._plan.tensor_of, x, workspace, outputs)
                call(self._library, part, tensor_of, None)
            else:
                part.run(device, stream, addresses, True)


@functools.lru_cache(maxsize=1)
def library() -> CudaLibrary:
    """The extension.

    Raises:
        RuntimeError: there is none, with the reason.
    """
    extension, problem = _extension()
    if extension is None:
        raise RuntimeError(problem)
    return CudaLibrary(extension)
