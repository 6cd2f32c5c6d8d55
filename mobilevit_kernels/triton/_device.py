"""Device functions that the kernels share.

Kernels name their values by role: ``i_`` an index, ``o_`` offsets, ``m_`` a mask, ``p_`` pointers, ``b_`` a block of
values; constants known at compile time are in capitals.
"""

import inspect
from typing import Any

import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

__all__ = ["INTERPRETED", "dot", "narrow", "row_statistics", "silu"]

# Triton decides when a function is decorated, so its own library tells what TRITON_INTERPRET was at the first import.
INTERPRETED = tl.constexpr(not isinstance(tl.cdiv, JITFunction))


def _mend_interpreter() -> None:
    """Lets loops have runtime bounds in the interpreter of Triton 3.6 and older.

    There ``tensor.__index__`` is ``int(array of one element)``, an error from NumPy 2.5 on. The interpreter sets it
    anew for each launch, so what is wrapped is the function that does.
    """
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor
    if "int(self.handle.data)" not in inspect.getsource(patch):
        return

    def patch_with_index(tensor: Any, *scope: Any) -> None:
        patch(tensor, *scope)
        tensor.__index__ = lambda self: self.handle.data.item()

    interpreter._patch_lang_tensor = patch_with_index


if INTERPRETED:
    _mend_interpreter()


@triton.jit
def silu(b_x):
    """x·sigmoid(x) in float32; −∞ gives NaN, as in PyTorch."""
    return b_x * tl.sigmoid(b_x)


@triton.jit
def narrow(b_x, DTYPE: tl.constexpr):
    """float32 values in the storage dtype, rounded to nearest even."""
    if INTERPRETED:  # noqa: SIM102 (each condition is one of compile time)
        # The interpreter cuts the lower bits off: rounded beforehand, what it cuts is zero.
        if DTYPE == tl.bfloat16:  # noqa: SIM300
            b_bits = b_x.to(tl.int32, bitcast=True)
            b_bits = (b_bits + 0x7FFF + ((b_bits >> 16) & 1)) & -0x10000
            b_x = tl.where(b_x == b_x, b_bits.to(tl.float32, bitcast=True), b_x)
    return b_x.to(DTYPE)


@triton.jit
def dot(b_left, b_right, b_sum, PRECISION: tl.constexpr):
    """``b_sum + b_left @ b_right`` with float32 accumulation: (M, K), (K, N), (M, N)."""
    if INTERPRETED:  # the interpreter's products of bfloat16 are wrong; float32 holds both half formats exactly
        return tl.dot(b_left.to(tl.float32), b_right.to(tl.float32), b_sum, input_precision="ieee")
    return tl.dot(b_left, b_right, b_sum, input_precision=PRECISION)


@triton.jit
def row_statistics(p_rows, m_rows, eps, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """Mean and 1/√(variance + eps) of BLOCK_M rows of WIDTH values, in float32.

    Chunks of columns are merged by the parallel variance formula (Chan, Golub, LeVeque 1979): one pass, and no
    cancellation where the mean is large against the deviation.

    Args:
        p_rows: (BLOCK_M,) pointers to the first value of each row.
        m_rows: (BLOCK_M,) rows that exist.
    """
    b_mean = tl.zeros([BLOCK_M], tl.float32)
    b_squares = tl.zeros([BLOCK_M], tl.float32)
    for i_c in range(0, WIDTH, BLOCK_C):
        o_c = i_c + tl.arange(0, BLOCK_C)
        m_c = o_c < WIDTH
        count = tl.minimum(WIDTH - i_c, BLOCK_C).to(tl.float32)
        b_x = tl.load(p_rows[:, None] + o_c[None, :], mask=m_rows[:, None] & m_c[None, :], other=0.0)  # (M, C)
        b_x = b_x.to(tl.float32)
        b_chunk_mean = tl.sum(b_x, axis=1) / count
        b_centred = tl.where(m_c[None, :], b_x - b_chunk_mean[:, None], 0.0)
        b_delta = b_chunk_mean - b_mean
        seen = i_c * 1.0
        b_mean += b_delta * (count / (seen + count))
        b_squares += tl.sum(b_centred * b_centred, axis=1) + b_delta * b_delta * (seen * count / (seen + count))
    return b_mean, 1.0 / tl.sqrt(b_squares / WIDTH + eps)
