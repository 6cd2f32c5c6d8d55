"""Launches as data: what a stage is going to call, before any activation has an address.

A stage's module in ``native/`` says in ``launches(x, packed, …)`` which launchers it calls on which sizes, with a
:class:`Slot` for each activation. :func:`execute` gives every slot a tensor of its own and calls them one by one; a
:class:`mobilevit_kernels.plan.Plan` puts the slots of a whole network into one workspace instead.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mobilevit_kernels.plan import Plan, Runner

__all__ = ["Alternatives", "Launch", "Library", "Slot", "call", "execute", "library", "map_slot", "matrix_slot"]


@dataclass(frozen=True, eq=False)
class Slot:
    """An activation that has no memory yet. Two slots are the same only where they are the same object.

    Attributes:
        shape: logical, NCHW for a map.
        stride: in elements; maps are NHWC in memory.
        dtype: of its elements.
        whole: the slot that this one is some images of; None: it has a place of its own.
        first: the first of these images.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    whole: Slot | None = None
    first: int = 0

    @staticmethod
    def like(x: Tensor) -> Slot:
        """A slot of a tensor's shape, layout and dtype."""
        return Slot(tuple(x.shape), x.stride(), x.dtype)

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def root(self) -> Slot:
        """The slot that has a place: this one, or the one that it is a part of."""
        return self if self.whole is None else self.whole

    @property
    def offset(self) -> int:
        """Where it begins in its root, in bytes."""
        return self.first * self.stride[0] * self.dtype.itemsize

    def part(self, first: int, count: int) -> Slot:
        """The slot of ``count`` of its images, from the ``first`` on."""
        return Slot((count, *self.shape[1:]), self.stride, self.dtype, self.root, self.first + first)

    def allocate(self, device: torch.device) -> Tensor:
        """An uninitialised tensor for it."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=device)

    def view(self, memory: Tensor, offset: int) -> Tensor:
        """Its tensor inside ``memory`` (uint8), ``offset`` bytes from the beginning."""
        return memory[offset : offset + self.bytes].view(self.dtype).as_strided(self.shape, self.stride)


def map_slot(batch: int, channels: int, height: int, width: int, dtype: torch.dtype) -> Slot:
    """A slot for a (batch, channels, height, width) map, NHWC in memory."""
    stride = (height * width * channels, 1, width * channels, channels)
    return Slot((batch, channels, height, width), stride, dtype)


def matrix_slot(rows: int, columns: int, dtype: torch.dtype) -> Slot:
    """A slot for a (rows, columns) matrix."""
    return Slot((rows, columns), (columns, 1), dtype)


@dataclass(frozen=True, eq=False)
class Launch:
    """One call of a launcher in csrc/launchers.h.

    Attributes:
        launcher: its name.
        inputs: what it reads, by its name for it: activations as slots, packed weights as tensors.
        output: what it writes.
        sizes: its numbers and flags, by name.
        dtype: the compute dtype.
        workspace_bytes: memory that it may use as it likes while it runs.
        kernels: that it starts, one after the other.
        function: what is called with the inputs and the output in place of a launcher: another library's kernels.
    """

    launcher: str
    inputs: Mapping[str, Tensor | Slot]
    output: Slot
    sizes: Mapping[str, float]
    dtype: torch.dtype
    workspace_bytes: int = 0
    kernels: int = 1
    function: Callable[[Mapping[str, Tensor], Tensor], None] | None = None

    def with_slots(self, replaced: Mapping[Slot, Slot]) -> Launch:
        """The same launch on other activations, where they are in ``replaced``."""
        inputs = {n: replaced.get(v, v) if isinstance(v, Slot) else v for n, v in self.inputs.items()}
        return replace(self, inputs=inputs, output=replaced.get(self.output, self.output))


# Ways to launch a stage on a shape, by a name for the Report; the first is what serves where nothing was measured.
Alternatives: TypeAlias = Mapping[str, "list[Launch]"]


class Library(Protocol):
    """The launchers of one backend."""

    def place(self, x: Tensor) -> tuple[int, int]:
        """The device that ``x`` is on, by index, and the handle of the stream that is current there."""

    def launch(
        self,
        launcher: str,
        inputs: Mapping[str, Tensor],
        output: Tensor,
        sizes: Mapping[str, float],
        bfloat16: bool,
        workspace: Tensor | None = None,
    ) -> None:
        """Calls a launcher.

        Args:
            launcher: its name.
            inputs: every tensor that it reads, by its name for it.
            output: the tensor that it writes.
            sizes: its numbers and flags, by name.
            bfloat16: the compute dtype is bfloat16, else float16.
            workspace: memory that it may use as it likes; None: it takes none.
        """

    def compile(self, plan: Plan) -> Runner:
        """Makes a plan ready to run."""

    def shared_bytes(self, stage: str, *sizes: int) -> int:
        """Shared memory of a block in bytes."""

    def dealt_pixels(self, *sizes: int) -> int:
        """Output pixels a multiprocessor up to which the inverted residual's row kernel deals hidden channels."""

    def rows_workspace_bytes(self, *sizes: int) -> int:
        """Device memory that the inverted residual's row kernel needs while it runs.

        Args:
            sizes: in and out channels, stride, and the input's batch, height and width.
        """

    def shared_limit(self, device: torch.device) -> int:
        """Shared memory that a block may have, in bytes."""

    def multiprocessors(self, device: torch.device) -> int:
        """Streaming multiprocessors of the device."""

    def l2_bytes(self, device: torch.device) -> int:
        """Size of the device's L2 cache."""

    def has_clusters(self, device: torch.device) -> bool:
        """Whether blocks of the device form thread-block clusters, and the kernels know of them."""

    def has_wgmma(self, device: torch.device) -> bool:
        """Whether the device has the wgmma instructions of sm_90a, and the kernels are built for them."""


def library(backend: str) -> Library:
    """The loaded library of ``"cuda"`` or ``"simt"``."""
    loaded: Library = importlib.import_module(f"mobilevit_kernels.{backend}").library()
    return loaded


def execute(backend: str, launches: Sequence[Launch], tensors: Mapping[Slot, Tensor]) -> Tensor:
    """Calls the launchers in turn, with a fresh tensor for whatever they write.

    Args:
        backend: "cuda" or "simt".
        launches: not empty.
        tensors: of the slots that no launch writes.

    Returns:
        What the last launch wrote.
    """
    loaded = library(backend)
    known = dict(tensors)
    device = next(iter(known.values())).device
    for launch in launches:
        output = known[launch.output] = launch.output.allocate(device)
        workspace = None
        if launch.workspace_bytes:
            workspace = torch.empty(launch.workspace_bytes, dtype=torch.uint8, device=device)
        call(loaded, launch, known.__getitem__, workspace)
    return output


def call(library: Library, launch: Launch, tensor_of: Callable[[Slot], Tensor], workspace: Tensor | None) -> None:
    """Calls one launcher, or the function in its place.

    Args:
        library: whose launcher it is.
        launch: what to call it with.
        tensor_of: the memory of each slot.
        workspace: the launch's own; None: it takes none.
    """
    inputs = {name: tensor_of(value) if isinstance(value, Slot) else value for name, value in launch.inputs.items()}
    output = tensor_of(launch.output)
    if launch.function is not None:
        launch.function(inputs, output)
        return
    library.launch(launch.launcher, inputs, output, launch.sizes, launch.dtype == torch.bfloat16, workspace)
