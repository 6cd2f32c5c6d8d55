"""The simulator's library through ctypes: launches on CPU tensors, counters, traffic of each buffer."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mobilevit_kernels.plan import Plan, Runner, run_one_by_one

__all__ = ["Counters", "Launch", "SimtLibrary", "SimulatorFault", "Traffic"]

MULTIPROCESSORS = 132  # of an H200
L2_BYTES = 50 << 20  # likewise
SHARED_LIMIT = 232448  # bytes of shared memory a block may have on sm_90


class SimulatorFault(RuntimeError):
    """The simulator found a fault in a kernel; the message names the place, the thread and the reason."""


@dataclass(frozen=True)
class Counters:
    """Exact counts since the last reset; csrc/simt/runtime.h explains each."""

    blocks: int
    global_read_bytes: int
    global_write_bytes: int
    global_read_sectors: int
    global_write_sectors: int
    shared_load_wavefronts: int
    shared_load_conflicts: int
    shared_store_wavefronts: int
    shared_store_conflicts: int
    matrix_load_wavefronts: int
    matrix_load_conflicts: int
    async_copy_wavefronts: int
    async_copy_conflicts: int
    mma_m16n8k16: int
    mma_m16n8k8: int
    mufu: int
    pair_arithmetic: int
    shuffles: int
    block_barriers: int
    warp_barriers: int
    cluster_barriers: int
    remote_read_bytes: int
    remote_write_bytes: int
    wgmma_m16n8k16: int
    wgmma_shared_bytes: int
    warpgroup_barriers: int
    bulk_copies: int
    bulk_copy_bytes: int


@dataclass(frozen=True)
class Traffic:
    """Bytes of one buffer: read by lanes, distinct bytes read (in whole sectors of 32), written by lanes."""

    read: int = 0
    read_distinct: int = 0
    written: int = 0


@dataclass(frozen=True)
class Launch:
    """What one launch did to each buffer, by name, and the dynamic shared memory of its blocks."""

    traffic: dict[str, Traffic]
    shared_bytes: int


_POINTER, _INT, _LONG, _FLOAT, _BOOL = (
    ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong, ctypes.c_float, ctypes.c_bool,
)  # fmt: skip


_INPUT, _OUTPUT, _CONSTANT = 0, 1, 2  # simt::BufferKind
# Packed weights, which no launch writes: kernels may read them before they wait for the launches ahead of them.
CONSTANTS = frozenset({"weights", "row_weights", "table", "bias", "biases"})


def _structure(name: str, *fields: tuple[Any, str]) -> type[ctypes.Structure]:
    """A struct of csrc/launchers.h, from its types and the names of each, in order."""
    return type(name, (ctypes.Structure,), {"_fields_": [(n, kind) for kind, names in fields for n in names.split()]})


_ARGUMENTS: dict[str, Any] = {
    "inverted_residual": _structure(
        "InvertedResidualArguments",
        (_POINTER, "x weights row_weights bias y workspace"),
        (_INT, "batch height width in_channels hidden_channels out_channels stride dilation chunk cluster_blocks"),
        (_BOOL, "residual dealt bfloat16"),
    ),
    "transformer": _structure(
        "TransformerArguments",
        (_POINTER, "x weights table biases y workspace"),
        (_INT, "batch height width in_channels dim hidden_channels num_layers out_channels"),
        (_INT, "num_heads patch_height patch_width instance_dim head_tiles instance_rows"),
        (_INT, "sequence_rows block_rows blocks chunks weight_units"),
        (_FLOAT, "epsilon"),
        (_BOOL, "split activation bfloat16"),
    ),
    "resize": _structure(
        "ResizeArguments",
        (_POINTER, "x y"),
        (_INT, "batch height width out_height out_width channels"),
        (_BOOL, "silu bfloat16"),
    ),
    "transformer_cluster": _structure(
        "TransformerClusterArguments",
        (_POINTER, "x weights table y"),
        (_INT, "batch height width in_channels dim num_layers out_channels patch_height patch_width"),
        (_INT, "cluster_rows sequence_rows chunks weight_units"),
        (_FLOAT, "epsilon"),
        (_BOOL, "sends activation bfloat16"),
    ),
    "transformer_wgmma": _structure(
        "TransformerWgmmaArguments",
        (_POINTER, "x weights biases y"),
        (_INT, "batch height width in_channels dim num_layers out_channels patch_height patch_width weight_units"),
        (_FLOAT, "epsilon"),
        (_BOOL, "activation bfloat16"),
    ),
    "unfold_attention_fold": _structure(
        "UnfoldAttentionFoldArguments",
        (_POINTER, "qkv y"),
        (_INT, "batch height width dim num_heads patch_height patch_width"),
        (_FLOAT, "scale"),
        (_BOOL, "bfloat16"),
    ),
    "conv3x3": _structure(
        "Conv3x3Arguments",
        (_POINTER, "x x2 weights bias y"),
        (_INT, "batch height width first_channels second_channels out_channels dilation tile"),
        (_BOOL, "silu bfloat16"),
    ),
    "stem": _structure(
        "StemArguments",
        (_POINTER, "x weights bias y"),
        (_LONG, "stride_image stride_channel stride_row stride_column"),
        (_INT, "batch height width out_channels image"),
        (_FLOAT, "scale0 scale1 scale2 shift0 shift1 shift2"),
        (_BOOL, "bfloat16"),
    ),
    "head_features": _structure(
        "HeadFeaturesArguments",
        (_POINTER, "x weights bias y"),
        (_INT, "batch height width in_channels hidden_channels"),
        (_BOOL, "pool bfloat16"),
    ),
    "head_classifier": _structure(
        "HeadClassifierArguments",
        (_POINTER, "x weights bias y"),
        (_INT, "rows in_features out_features"),
        (_BOOL, "bfloat16"),
    ),
}


class SimtLibrary:
    """The loaded simulator. One launch runs at a time, whichever thread asks."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.mvk_last_error.restype = ctypes.c_char_p
        self._library.mvk_set_seed.argtypes = [ctypes.c_uint64]
        self._library.mvk_add_buffer.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int]
        self._lock = threading.Lock()
        self._shared_limit = SHARED_LIMIT
        self._multiprocessors = MULTIPROCESSORS
        self._wgmma = True
        #: The launches since the last :meth:`reset_counters`; a stage may be several.
        self.launches: list[Launch] = []

    def launch(
        self,
        launcher: str,
        inputs: Mapping[str, Tensor],
        output: Tensor,
        sizes: Mapping[str, float],
        bfloat16: bool,
        workspace: Tensor | None = None,
    ) -> None:
        """Calls a launcher; see :class:`mobilevit_kernels.native.launches.Library`.

        Raises:
            SimulatorFault: the kernel did what a GPU would punish.
            ValueError: the launcher refused the arguments.
        """
        arguments = _ARGUMENTS[launcher](bfloat16=bfloat16, y=output.data_ptr(), **sizes)
        for name, tensor in inputs.items():
            setattr(arguments, name, tensor.data_ptr())
        outputs = {"y": output}
        if workspace is not None:
            arguments.workspace = workspace.data_ptr()
            outputs["workspace"] = workspace
        self.run_raw(f"mvk_{launcher}", [ctypes.byref(arguments)], inputs, outputs)

    def place(self, x: Tensor) -> tuple[int, int]:
        """The simulator has one device and no streams."""
        return 0, 0

    def compile(self, plan: Plan) -> Runner:
        """A plan's launches one after the other."""
        return functools.partial(run_one_by_one, self, plan)

    def run_raw(
        self, function: str, arguments: list[Any], inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
    ) -> None:
        """Calls a C function of the library with these buffers registered, and raises what it reports."""
        with self._lock:
            try:
                for name, tensor in (*inputs.items(), *outputs.items()):
                    kind = _OUTPUT if name in outputs else _CONSTANT if name in CONSTANTS else _INPUT
                    size = tensor.numel() * tensor.element_size()
                    self._library.mvk_add_buffer(name.encode(), tensor.data_ptr(), size, kind)
                code = getattr(self._library, function)(*arguments)
                message = self._library.mvk_last_error().decode(errors="replace") if code != 0 else ""
                names = [*inputs, *outputs]
                traffic = {name: self._traffic_of(index) for index, name in enumerate(names)}
                self.launches.append(Launch(traffic, self._library.mvk_launched_shared_bytes()))
            finally:
                self._library.mvk_clear_buffers()
        if code == 4:
            raise SimulatorFault(message)
        if code != 0:
            raise ValueError(message)

    def _traffic_of(self, index: int) -> Traffic:
        values = (ctypes.c_uint64 * 3)()
        self._library.mvk_buffer_traffic(index, values)
        return Traffic(*values)

    def shared_bytes(self, stage: str, *sizes: int) -> int:
        """Shared memory of a block in bytes."""
        needed: int = getattr(self._library, f"mvk_{stage}_shared_bytes")(*sizes)
        return needed

    def dealt_pixels(self, *sizes: int) -> int:
        """Output pixels a multiprocessor up to which the inverted residual's row kernel deals hidden channels."""
        pixels: int = self._library.mvk_inverted_residual_rows_dealt_pixels(*sizes)
        return pixels

    def rows_workspace_bytes(self, *sizes: int) -> int:
        """Device memory that the inverted residual's row kernel needs while it runs."""
        needed = self._library.mvk_inverted_residual_rows_workspace_bytes
        needed.restype = ctypes.c_longlong
        return int(needed(*sizes))

    def shared_limit(self, device: torch.device) -> int:
        """Shared memory that a simulated block may have, in bytes: that of sm_90 unless set otherwise."""
        return self._shared_limit

    def set_shared_limit(self, limit: int = SHARED_LIMIT) -> None:
        """Simulates a GPU whose blocks have ``limit`` bytes of shared memory."""
        self._shared_limit = limit
        self._library.mvk_set_shared_limit(limit)

    def set_grid_multiprocessors(self, count: int = 1) -> None:
        """Sizes the grid of persistent kernels as for ``count`` multiprocessors; one keeps a simulation short."""
        self._library.mvk_set_multiprocessors(count)

    def multiprocessors(self, device: torch.device) -> int:
        """Of the simulated GPU: as many as an H200 has unless set otherwise."""
        return self._multiprocessors

    def l2_bytes(self, device: torch.device) -> int:
        """Size of the simulated GPU's L2 cache, an H200's."""
        return L2_BYTES

    def has_clusters(self, device: torch.device) -> bool:
        """The simulated GPU has thread-block clusters."""
        return True

    def has_wgmma(self, device: torch.device) -> bool:
        """Whether the simulated GPU has wgmma: it does unless set otherwise."""
        return self._wgmma

    def set_wgmma(self, present: bool = True) -> None:
        """Simulates a GPU with or without wgmma, as far as the choice of a variant goes."""
        self._wgmma = present

    def set_multiprocessors(self, count: int = MULTIPROCESSORS) -> None:
        """Simulates a GPU with ``count`` multiprocessors, as far as the choice of a variant goes."""
        self._multiprocessors = count

    def set_seed(self, seed: int) -> None:
        """Chooses the interleaving of warps and lanes of the launches to come."""
        self._library.mvk_set_seed(seed)

    def counters(self) -> Counters:
        """What was counted since the last reset."""
        values = (ctypes.c_uint64 * len(dataclasses.fields(Counters)))()
        count = self._library.mvk_counters(values, len(values))
        assert count == len(values), "Counters is out of step with csrc/simt/runtime.h"
        return Counters(*values)

    def reset_counters(self) -> None:
        """Starts all counters from zero."""
        self._library.mvk_reset_counters()
        self.launches = []
