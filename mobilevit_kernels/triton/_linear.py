"""Linear layer on rows, the kernel behind every 1×1 convolution and linear of the network.

    out = [residual +] act(norm(x) @ weight [+ bias])

with norm: LayerNorm without affine, or nothing; act: SiLU, or nothing.

Layouts: x (rows, K), rows X_STRIDE values apart: an NHWC map is such a matrix, a row a pixel; weight (K, N), so that a
    tile's columns are contiguous; bias (N,) float32; residual and out (rows, N). ``out`` may be ``residual`` itself: a
    program reads no other part of it than the tile it writes.
A program owns BLOCK_M rows × BLOCK_N columns; programs of the same rows are neighbours in launch order, so that the
    rows come from device memory once and from the L2 after that. With LayerNorm, each recomputes its rows' statistics.
Per output: 2·K flops, itemsize·(K/N + 1) bytes where x is read once. With K of 16 to 640 device memory binds for large
    batches, latency and the number of tiles for small ones.
LayerNorm's affine is folded into weight and bias by :func:`fold_layer_norm` when they are packed.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mobilevit_kernels.triton import _launch, launch_table
from mobilevit_kernels.triton._device import dot, narrow, row_statistics, silu
from mobilevit_kernels.triton.launch_table import Problem

__all__ = ["fold_layer_norm", "linear", "pack_matrix"]


@triton.jit(do_not_specialize=["num_rows"])
def linear_kernel(
    x_ptr,  # (rows, K), rows X_STRIDE apart
    weight_ptr,  # (K, N)
    bias_ptr,  # (N,) float32, or None
    residual_ptr,  # (rows, N), or None
    out_ptr,  # (rows, N)
    num_rows,
    eps,
    K: tl.constexpr,
    N: tl.constexpr,
    X_STRIDE: tl.constexpr,
    NORMALIZE: tl.constexpr,
    SILU: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    COLUMN_TILES: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    i_row = (tl.program_id(0) // COLUMN_TILES).to(tl.int64) * BLOCK_M
    o_row = i_row + tl.arange(0, BLOCK_M)
    o_n = (tl.program_id(0) % COLUMN_TILES) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_row = o_row < num_rows
    m_n = o_n < N
    p_rows = x_ptr + o_row * X_STRIDE  # (M,)
    if NORMALIZE:
        b_mean, b_rstd = row_statistics(p_rows, m_row, eps, K, BLOCK_M, BLOCK_K)

    b_out = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for i_k in range(0, K, BLOCK_K):
        o_k = i_k + tl.arange(0, BLOCK_K)
        m_k = o_k < K
        b_x = tl.load(p_rows[:, None] + o_k[None, :], mask=m_row[:, None] & m_k[None, :], other=0.0)  # (M, K)
        p_weight = weight_ptr + o_k[:, None] * N + o_n[None, :]
        b_weight = tl.load(p_weight, mask=m_k[:, None] & m_n[None, :], other=0.0)  # (K, N)
        if NORMALIZE:
            b_x = narrow((b_x.to(tl.float32) - b_mean[:, None]) * b_rstd[:, None], b_weight.dtype)
        b_out = dot(b_x, b_weight, b_out, PRECISION)  # (M, K) @ (K, N)

    if bias_ptr is not None:
        b_out += tl.load(bias_ptr + o_n, mask=m_n, other=0.0)[None, :]  # (N,)
    if SILU:
        b_out = silu(b_out)
    o_out = o_row[:, None] * N + o_n[None, :]
    m_out = m_row[:, None] & m_n[None, :]
    if residual_ptr is not None:
        b_out += tl.load(residual_ptr + o_out, mask=m_out, other=0.0).to(tl.float32)  # (M, N)
    tl.store(out_ptr + o_out, narrow(b_out, out_ptr.dtype.element_ty), mask=m_out)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    num_rows: int,
    *,
    x_stride: int | None = None,
    residual: Tensor | None = None,
    normalize: bool = False,
    activation: bool = False,
    eps: float = 0.0,
    class_rows: int | None = None,
) -> Tensor:
    """Launches the kernel above on ``num_rows`` rows and returns ``out``.

    Args:
        x: rows of K values, ``x_stride`` (None: K) values apart.
        weight, bias: from :func:`pack_matrix` or :func:`fold_layer_norm`.
        out: room for (rows, N); may be ``residual``.
        residual: added to the result.
        normalize: apply LayerNorm, without affine, to the rows of ``x``; ``eps`` is its own.
        activation: apply SiLU, before the residual.
        class_rows: the number of rows that the configuration is chosen by, where these are a slice of more.
    """
    in_width, out_width = weight.shape
    rows = launch_table.rows_class(num_rows if class_rows is None else class_rows)
    _launch.launch(
        linear_kernel,
        _launch.tiles(num_rows, out_width),
        (x, weight, bias, residual, out, num_rows, eps),
        Problem("linear", x.dtype, (rows, in_width, out_width, int(normalize))),
        K=in_width,
        N=out_width,
        X_STRIDE=in_width if x_stride is None else x_stride,
        NORMALIZE=normalize,
        SILU=activation,
        PRECISION=_launch.precision(x.dtype),
    )
    return out


def pack_matrix(weight: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(N, K) or (N, K, 1, 1) → (K, N)."""
    return weight.flatten(1).T.to(device, dtype).contiguous()


def fold_layer_norm(weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Moves LayerNorm's affine into the linear behind it: ``W(γ·z + β) + b = (W·γ) z + (Wβ + b)``.

    Args:
        weight: (N, K) or (N, K, 1, 1). bias: (N,). gamma, beta: (K,).

    Returns:
        Weight (N, K) and bias (N,), computed in float64 and rounded to float32 once.
    """
    matrix = weight.double().flatten(1)
    return (matrix * gamma.double()).float(), (matrix @ beta.double() + bias.double()).float()
