"""Problem → launch configuration: a pure function of kernel, shape class, architecture and dtype.

Nothing is measured at run time, so the first call of a shape costs one compile and no more. Every tile is a power of
two, as Triton wants it; sizes that are none are masked, and tiles are chosen to mask little.

The entries are chosen by reasoning (tile reuse against registers and occupancy), checked by ahead-of-time compiles
(:mod:`mobilevit_kernels.triton.aot`), and not yet tuned on a GPU. A table that ``mobilevit-kernels tune`` has measured
goes before them (:mod:`mobilevit_kernels.triton.tuned`).

A function a kernel. Its parameters before ``arch`` are the problem: all that a tuned table tells apart, whether the
rules here do or not.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

__all__ = [
    "DEFAULT_ARCH",
    "FALLBACK_L2_BYTES",
    "KERNELS",
    "MANY_ROWS",
    "WIDEST_MLP",
    "Launch",
    "Problem",
    "block_that_fits",
    "images_per_slice",
    "next_power_of_two",
    "parameters",
    "rows_class",
    "split_width",
    "static",
    "tile_class",
]

MANY_ROWS = 16384  # pixels from which large tiles still give every multiprocessor of a large GPU a tile
WIDEST_MLP = 256  # channels of a row that stay on the chip
DEFAULT_ARCH = 90  # where no GPU tells: in plans and in the interpreter
FALLBACK_L2_BYTES = 40 * 2**20  # where the device does not tell: an A100's
_L2_SHARE = 0.5  # of the L2 for the hidden tensor of a slice; weights, input and output take their part


@dataclass(frozen=True)
class Launch:
    """One launch configuration.

    Attributes:
        blocks: tile sizes, by the kernel's constexpr names.
        num_warps, num_stages: of the compiled kernel.
    """

    blocks: tuple[tuple[str, int], ...]
    num_warps: int
    num_stages: int

    def __getitem__(self, name: str) -> int:
        return dict(self.blocks)[name]

    def __str__(self) -> str:
        blocks = " ".join(f"{name}={size}" for name, size in self.blocks)
        return f"{blocks} warps={self.num_warps} stages={self.num_stages}"


def _launch(num_warps: int, num_stages: int, **blocks: int) -> Launch:
    return Launch(tuple(blocks.items()), num_warps, num_stages)


def next_power_of_two(value: int) -> int:
    """The smallest power of two that is at least ``value``."""
    return 1 << (value - 1).bit_length()


def block_that_fits(size: int, largest: int, smallest: int, waste: float = 1.2) -> int:
    """The largest power of two of ``smallest``…``largest`` that covers ``size`` in whole tiles with little waste.

    >>> block_that_fits(144, 128, 32), block_that_fits(240, 128, 32), block_that_fits(64, 128, 32)
    (32, 128, 64)
    """
    block = largest
    while block > smallest and -(-size // block) * block > waste * size:
        block //= 2
    return block


def split_width(width: int) -> tuple[int, int]:
    """A width as two tiles (main, tail), powers of two of at least 16 with the least padding; tail 0: one tile.

    >>> split_width(144), split_width(192), split_width(240), split_width(64)
    ((128, 16), (128, 64), (256, 0), (64, 0))
    """
    whole = max(16, next_power_of_two(width))
    main = whole // 2
    if main < 16:
        return whole, 0
    tail = max(16, next_power_of_two(width - main))
    return (main, tail) if main + tail < whole else (whole, 0)


def images_per_slice(batch: int, bytes_per_image: int, l2_bytes: int) -> int:
    """How many images to take at a time, so that a tensor written and read again in between stays in the L2."""
    fitting = max(1, int(l2_bytes * _L2_SHARE) // max(1, bytes_per_image))
    slices = -(-batch // fitting)
    return -(-batch // slices)  # even slices: the last one is no straggler


class Problem(NamedTuple):
    """What a launch configuration is chosen by, apart from the architecture.

    Attributes:
        kernel: a name of ``KERNELS``.
        dtype: that the kernel computes in.
        sizes: the values of :func:`parameters`, in order.
    """

    kernel: str
    dtype: torch.dtype
    sizes: tuple[int | str, ...]

    def __str__(self) -> str:
        sizes = " ".join(f"{name}={value}" for name, value in zip(parameters(self.kernel), self.sizes, strict=True))
        return f"{self.kernel} {sizes} {str(self.dtype).removeprefix('torch.')}"


def rows_class(rows: int) -> str:
    """The shape class of a number of rows or pixels: "few" or "many"."""
    return "few" if rows < MANY_ROWS else "many"


def tile_class(count: int) -> int:
    """The shape class of a number of pixels or tokens that one program may see whole: 16, 32 or 64 (and more)."""
    return min(64, max(16, next_power_of_two(count)))


def _stages(arch: int) -> int:
    """Depth of the load pipeline: sm_86, sm_89 and sm_120 have 99 KiB of shared memory a block."""
    return 2 if arch in (86, 89, 120) or arch < 80 else 3


def _linear(rows: str, in_width: int, out_width: int, normalize: int, arch: int, itemsize: int) -> Launch:
    """1×1 convolutions and linear layers: a tile of rows × output channels."""
    block_k = block_that_fits(in_width, 64 if itemsize == 2 else 32, 16)
    if itemsize == 4:  # products in float32 run on the ordinary pipes, out of registers
        return _launch(4, 2, BLOCK_M=32 if rows == "few" else 64, BLOCK_N=32, BLOCK_K=block_k)
    if rows == "few":
        return _launch(4, _stages(arch), BLOCK_M=32, BLOCK_N=block_that_fits(out_width, 64, 32), BLOCK_K=block_k)
    block_n = block_that_fits(out_width, 128, 32)
    # 128 × 128 values take 128 registers a thread of four warps: with LayerNorm in front that spills.
    return _launch(8 if block_n == 128 else 4, _stages(arch), BLOCK_M=128, BLOCK_N=block_n, BLOCK_K=block_k)


def _conv3x3(rows: str, in_width: int, second_width: int, out_width: int, arch: int, itemsize: int) -> Launch:
    """Dense 3×3: a tile of pixels × output channels; the channel chunk serves both inputs."""
    block_k = block_that_fits(in_width, 64 if itemsize == 2 else 32, 16)
    if second_width:
        block_k = min(block_k, block_that_fits(second_width, 64 if itemsize == 2 else 32, 16))
    if itemsize == 4:
        return _launch(4, 2, BLOCK_M=32 if rows == "few" else 64, BLOCK_N=32, BLOCK_K=block_k)
    if rows == "few":
        return _launch(4, _stages(arch), BLOCK_M=32, BLOCK_N=32, BLOCK_K=block_k)
    # One pass over the input pays more than masked columns here: up to 128 channels are one tile.
    block_n = min(128, next_power_of_two(out_width)) if out_width <= 128 else block_that_fits(out_width, 128, 32)
    if block_n == 128 and arch >= 100:  # 128 × 128 spills, with four warps or with eight, by the compiler's release
        return _launch(4, _stages(arch), BLOCK_M=64, BLOCK_N=block_n, BLOCK_K=block_k)
    return _launch(8 if block_n == 128 else 4, _stages(arch), BLOCK_M=128, BLOCK_N=max(16, block_n), BLOCK_K=block_k)


def _stem(out_width: int, arch: int, itemsize: int) -> Launch:
    """Stem: pixels × all output channels; the 27 inputs of a pixel are one masked chunk of 32.

    The addresses of the gather take 64 × 32 registers of 64 bits; a larger tile spills.
    """
    return _launch(4, 1, BLOCK_M=64, BLOCK_N=min(64, max(16, next_power_of_two(out_width))), BLOCK_K=32)


def _depthwise_project(rows: str, hidden_width: int, out_width: int, stride: int, arch: int, itemsize: int) -> Launch:
    """Depthwise + project: pixels × all output channels up to 256, so that no depthwise result is computed twice."""
    block_n = min(64 if itemsize == 4 else 256, max(16, next_power_of_two(out_width)))
    block_k = 16 if itemsize == 4 else block_that_fits(hidden_width, 32, 16)
    if rows == "few" or itemsize == 4:
        return _launch(4, 2, BLOCK_M=16 if rows == "few" else 32, BLOCK_N=block_n, BLOCK_K=block_k)
    if arch < 90 or arch >= 120:  # operands of the product are registers there, and Hopper's tiles spill
        return _launch(4, 2, BLOCK_M=32, BLOCK_N=block_n, BLOCK_K=block_k)
    return _launch(8 if block_n >= 128 else 4, 2, BLOCK_M=64, BLOCK_N=block_n, BLOCK_K=block_k)


def _head(pixels: int, in_width: int, hidden_width: int, arch: int, itemsize: int) -> Launch:
    """1×1 + pool: one image × a tile of channels. No class of rows: a batch must not change an image's result."""
    block_n = block_that_fits(hidden_width, 32 if itemsize == 4 else 64, 32)
    block_k = block_that_fits(in_width, 64 if itemsize == 2 else 32, 16)
    return _launch(4, 2 if itemsize == 4 else _stages(arch), BLOCK_M=pixels, BLOCK_N=block_n, BLOCK_K=block_k)


def _mlp(rows: str, width: int, hidden_width: int, arch: int, itemsize: int) -> Launch:
    """LayerNorm + MLP + residual in one kernel: whole rows, up to WIDEST_MLP channels, stay on the chip."""
    main, tail = split_width(width)
    if itemsize == 4:
        return _launch(8 if main == 256 else 4, 1, BLOCK_M=16, BLOCK_H=16, MAIN=main, TAIL=tail)
    if rows == "few":
        return _launch(4, 2, BLOCK_M=16, BLOCK_H=32, MAIN=main, TAIL=tail)
    if main + tail > 128 and arch >= 120:  # as for depthwise + project
        return _launch(4, 2, BLOCK_M=32, BLOCK_H=32, MAIN=main, TAIL=tail)
    block_h = 16 if main == 256 else 32  # 64 × 256 sums and as many inputs leave registers for no more
    return _launch(8 if main + tail > 128 else 4, 2, BLOCK_M=64, BLOCK_H=block_h, MAIN=main, TAIL=tail)


def _attention(rows: str, tokens: int, head_dim: int, arch: int, itemsize: int) -> Launch:
    """Attention: a tile of queries of one head of one sequence; keys in chunks."""
    block_d = max(16, next_power_of_two(head_dim))
    block = min(tokens, 32 if itemsize == 4 or block_d > 128 else 64)
    return _launch(4 if block >= 32 else 1, 2, BLOCK_M=block, BLOCK_N=block, BLOCK_D=block_d)


KERNELS: dict[str, Callable[..., Launch]] = {
    "stem": _stem,
    "linear": _linear,
    "conv3x3": _conv3x3,
    "depthwise_project": _depthwise_project,
    "mlp": _mlp,
    "attention": _attention,
    "head": _head,
}
_PARAMETERS = {name: tuple(inspect.signature(rule).parameters)[:-2] for name, rule in KERNELS.items()}


def parameters(kernel: str) -> tuple[str, ...]:
    """The names of a kernel's problem sizes."""
    return _PARAMETERS[kernel]


def static(problem: Problem, arch: int) -> Launch:
    """The configuration that the rules above choose.

    Args:
        problem: kernel, dtype and sizes.
        arch: compute capability as one number, 90 for 9.0.
    """
    return KERNELS[problem.kernel](*problem.sizes, arch, problem.dtype.itemsize)
