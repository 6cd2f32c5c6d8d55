"""Exact counts of the CUDA kernels' work, from the host simulator, beside the least that the mathematics needs.

The counts are free of noise: the same on every machine and under every schedule. They say how much work a kernel does,
not how long it takes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from mobilevit_kernels import native, ops, verify
from mobilevit_kernels.bench.work import Work, stage_work
from mobilevit_kernels.native.transformer_plan import instances_for, lay_out
from mobilevit_kernels.ops._dispatch import pack
from mobilevit_kernels.verify import StageCase

__all__ = ["BATCH", "Row", "cases", "count", "rows"]

# The simulated GPU has one multiprocessor. Eight images on it are what 1,000 are on a large GPU: persistent kernels
# have enough work for their warps, and strips that run over several images show little of their last one's unused
# columns.
BATCH = 8


@dataclass(frozen=True)
class Row:
    """One stage on one shape. Bytes are global memory's, mma are m16n8k16 (an m16n8k8 counts half).

    Attributes:
        path: the stage's name in its network.
        shape: its sizes.
        floor_bytes: input, weights and output once.
        bytes: what the kernel touches, each byte once: what device memory sees.
        reread_bytes: input bytes read again, the halo of neighbouring tiles; from L2 as a rule.
        weight_reread_bytes: packed weights read again, by every block or tile; from L2.
        weight_bytes: packed weights read, all blocks together.
        sector_ratio: bytes of the 32-byte sectors moved over bytes that lanes ask for; below 1 where lanes share bytes.
        floor_mma, mma: matrix instructions.
        floor_mufu, mufu: special-function results.
        matrix_conflicts: bank conflicts of ldmatrix, in cycles.
        shared_conflicts: bank conflicts of all other shared-memory accesses, in cycles.
        shared_wavefronts: shared-memory cycles, all blocks together.
        shuffles: warp-wide shuffles; each takes a shared-memory cycle too.
        barriers: block barriers, all blocks together.
        cluster_barriers: of all clusters together.
        remote_bytes: sent to or fetched from another block's shared memory.
        blocks: the grid's size.
        shared_bytes: dynamic shared memory of a block.
    """

    path: str
    shape: str
    floor_bytes: int
    bytes: int
    reread_bytes: int
    weight_reread_bytes: int
    weight_bytes: int
    sector_ratio: float
    floor_mma: float
    mma: float
    floor_mufu: int
    mufu: int
    matrix_conflicts: int
    shared_conflicts: int
    shared_wavefronts: int
    shuffles: int
    barriers: int
    cluster_barriers: int
    remote_bytes: int
    blocks: int
    shared_bytes: int

    @property
    def bytes_waste(self) -> float:
        """``bytes / floor_bytes``."""
        return self.bytes / self.floor_bytes

    @property
    def mma_waste(self) -> float:
        """``mma / floor_mma``."""
        return self.mma / self.floor_mma

    @property
    def mufu_waste(self) -> float:
        """``mufu / floor_mufu``."""
        return self.mufu / self.floor_mufu

    @property
    def shared_bytes_per_mma(self) -> float:
        """What shared memory moves for a matrix instruction: 128 bytes a cycle, shuffles included."""
        return 128 * (self.shared_wavefronts + self.shuffles) / self.mma

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            **self.__dict__,
            "bytes_waste": self.bytes_waste,
            "mma_waste": self.mma_waste,
            "mufu_waste": self.mufu_waste,
            "shared_bytes_per_mma": self.shared_bytes_per_mma,
        }


def cases(model: str, stage: str | None = None, size: int = 256, batch: int = BATCH) -> Iterator[tuple[str, StageCase]]:
    """The stages of a network that have a CUDA kernel, each shape once; a transformer stage with the images that fill a
    block.

    Args:
        model: a network's name.
        stage: only this stage; None: all.
        size: height and width of the image.
        batch: images.
    """
    seen = set()
    for _, path, case in verify.network_cases((model,), batch=batch, height=size, width=size):
        if case.stage in native.STAGES and stage in (None, case.stage) and str(case) not in seen:
            seen.add(str(case))
            yield path, _filled(case)


def _filled(case: StageCase) -> StageCase:
    """The case at the least batch that fills a block: several short sequences share one."""
    if case.stage != "transformer":
        return case
    (patch_height, patch_width), heads = case.options["patch_size"], case.options["num_heads"]
    height, width = case.x_shape[2:]
    tokens = -(-height // patch_height) * -(-width // patch_width)
    chosen = lay_out(instances_for(case.sizes[1], heads)[0], tokens, 1, case.sizes[3])
    images = -(-chosen.block_rows // chosen.sequence_rows) // (patch_height * patch_width)
    return dataclasses.replace(case, x_shape=(max(images, 1), *case.x_shape[1:]))


def count(path: str, case: StageCase, dtype: torch.dtype = torch.float16, *, small_batch: bool = False) -> Row:
    """Runs one case on the simulator and counts.

    Args:
        path: what the row is called.
        case: the stage, its shape and options.
        dtype: the compute dtype.
        small_batch: the variant that an H200 takes for this batch; else that for throughput, whatever the batch, of
            a GPU without wgmma.

    Raises:
        BackendUnavailable: there is no simulator here.
        SimulatorFault: the kernel is wrong.
    """
    from mobilevit_kernels import simt

    x, weights, options = case.build()
    assert weights is not None
    packed = pack(weights, dtype, backend="simt")
    options = {name: value.to(dtype) if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    library = simt.library()
    library.reset_counters()
    if not small_batch:
        library.set_multiprocessors(0)
        library.set_wgmma(False)
    try:
        getattr(ops, case.stage)(x if x.dtype == torch.uint8 else x.to(dtype), packed, **options)
    finally:
        library.set_multiprocessors()
        library.set_wgmma()
    counted, launches = library.counters(), library.launches
    traffic = [(name, buffer) for launch in launches for name, buffer in launch.traffic.items()]
    inputs = [buffer for name, buffer in traffic if name in ("x", "x2")]
    weight_buffers = [buffer for name, buffer in traffic if name in ("weights", "row_weights")]
    work = stage_work(case)
    moved = counted.global_read_bytes + counted.global_write_bytes
    return Row(
        path=path,
        shape=str(case),
        floor_bytes=work.bytes(dtype),
        bytes=sum(buffer.read_distinct + buffer.written for _, buffer in traffic),
        reread_bytes=sum(buffer.read - buffer.read_distinct for buffer in inputs),
        weight_reread_bytes=sum(buffer.read - buffer.read_distinct for buffer in weight_buffers),
        weight_bytes=sum(buffer.read for buffer in weight_buffers),
        sector_ratio=32 * (counted.global_read_sectors + counted.global_write_sectors) / moved,
        floor_mma=_products(case, work) / (16 * 8 * 16),
        mma=counted.mma_m16n8k16 + counted.mma_m16n8k8 / 2 + counted.wgmma_m16n8k16,
        floor_mufu=work.special,
        mufu=counted.mufu,
        matrix_conflicts=counted.matrix_load_conflicts,
        shared_conflicts=counted.shared_load_conflicts + counted.shared_store_conflicts + counted.async_copy_conflicts,
        shared_wavefronts=counted.shared_load_wavefronts
        + counted.shared_store_wavefronts
        + counted.matrix_load_wavefronts
        + counted.async_copy_wavefronts,
        shuffles=counted.shuffles,
        barriers=counted.block_barriers,
        cluster_barriers=counted.cluster_barriers,
        remote_bytes=counted.remote_read_bytes + counted.remote_write_bytes,
        blocks=counted.blocks,
        shared_bytes=max(launch.shared_bytes for launch in launches),
    )


def _products(case: StageCase, work: Work) -> int:
    """Multiply-adds for the tensor cores; the depthwise step of an inverted residual is not among them."""
    products = work.flops // 2
    if case.stage == "inverted_residual":
        batch, _, height, width = case.x_shape
        stride = case.options.get("stride", 1)
        products -= 9 * case.sizes[1] * batch * -(-height // stride) * -(-width // stride)
    return products


def rows(
    models: Iterable[str],
    stage: str | None = None,
    size: int = 256,
    dtype: torch.dtype = torch.float16,
    batch: int = BATCH,
) -> Iterator[Row]:
    """Counts every shape of the networks, as it gets done."""
    for model in models:
        for path, case in cases(model, stage, size, batch):
            yield count(f"{model} {path}", case, dtype)
