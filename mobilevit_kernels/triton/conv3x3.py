"""Dense 3×3 convolution, stride 1, on one input or two, + bias + SiLU: an implicit matrix product.

    out[p, n] = act(bias[n] + Σ_tap Σ_c cat(x, x2)[p + shift(tap), c] · weight[tap, c, n])

Layouts: x (B, H, W, C1), x2 (B, H, W, C2), out (B, H, W, N), all NHWC; weight (9, C1 + C2, N); bias (N,) float32.
A program owns BLOCK_M consecutive pixels of the flattened maps × BLOCK_N output channels. A tap is a constant shift of
    the row index; pixels that it moves out of the image are masked, which is the zero padding. The concatenation of the
    fusion convolution is never made: the same loop runs over the taps of each input in turn.
Per output: 18·(C1 + C2) flops; bytes itemsize·(1 + (C1 + C2)/N) where the nine shifted reads of a tile hit the L1 and
    L2. The matrix pipe binds for large batches, latency of 9·C/BLOCK_K dependent steps for small ones.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mobilevit_kernels.canonical import Conv3x3Weights
from mobilevit_kernels.ops._dispatch import empty_nhwc
from mobilevit_kernels.packed import Packed
from mobilevit_kernels.triton import _launch, launch_table, tuned
from mobilevit_kernels.triton._device import dot, narrow, silu
from mobilevit_kernels.triton.launch_table import Problem

__all__ = ["pack", "run", "variant"]


@triton.jit
def accumulate_taps(
    b_out,  # (M, N) float32
    x_ptr,  # (B·H·W, C)
    weight_ptr,  # (9, C_IN, N), at this input's first channel
    o_pixel,  # (M,) int64
    o_y,  # (M,)
    o_x,  # (M,)
    m_pixel,  # (M,)
    o_n,  # (N,)
    height,
    width,
    dilation,
    C: tl.constexpr,
    C_IN: tl.constexpr,
    N: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    CHUNKS: tl.constexpr = (C + BLOCK_K - 1) // BLOCK_K
    m_n = o_n < N
    for i_step in range(9 * CHUNKS):
        i_tap = i_step // CHUNKS
        dy = (i_tap // 3 - 1) * dilation
        dx = (i_tap % 3 - 1) * dilation
        o_k = (i_step % CHUNKS) * BLOCK_K + tl.arange(0, BLOCK_K)
        m_k = o_k < C
        m_tap = m_pixel & (o_y + dy >= 0) & (o_y + dy < height) & (o_x + dx >= 0) & (o_x + dx < width)
        p_x = x_ptr + (o_pixel + dy * width + dx)[:, None] * C + o_k[None, :]
        b_x = tl.load(p_x, mask=m_tap[:, None] & m_k[None, :], other=0.0)  # (M, K)
        p_weight = weight_ptr + (i_tap * C_IN + o_k)[:, None] * N + o_n[None, :]
        b_weight = tl.load(p_weight, mask=m_k[:, None] & m_n[None, :], other=0.0)  # (K, N)
        b_out = dot(b_x, b_weight, b_out, PRECISION)  # (M, K) @ (K, N)
    return b_out


@triton.jit(do_not_specialize=["num_pixels", "height", "width", "dilation"])
def conv3x3_kernel(
    x_ptr,  # (B·H·W, C1)
    x2_ptr,  # (B·H·W, C2), or None
    weight_ptr,  # (9, C1 + C2, N)
    bias_ptr,  # (N,) float32
    out_ptr,  # (B·H·W, N)
    num_pixels,
    height,
    width,
    dilation,
    C1: tl.constexpr,
    C2: tl.constexpr,
    N: tl.constexpr,
    SILU: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    COLUMN_TILES: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    i_pixel = (tl.program_id(0) // COLUMN_TILES).to(tl.int64) * BLOCK_M
    o_pixel = i_pixel + tl.arange(0, BLOCK_M)
    o_n = (tl.program_id(0) % COLUMN_TILES) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_pixel = o_pixel < num_pixels
    o_row = o_pixel // width
    o_y = (o_row % height).to(tl.int32)
    o_x = (o_pixel - o_row * width).to(tl.int32)

    b_out = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    b_out = accumulate_taps(
        b_out, x_ptr, weight_ptr, o_pixel, o_y, o_x, m_pixel, o_n, height, width, dilation,
        C1, C1 + C2, N, PRECISION, BLOCK_K,
    )  # fmt: skip
    if x2_ptr is not None:
        b_out = accumulate_taps(
            b_out, x2_ptr, weight_ptr + C1 * N, o_pixel, o_y, o_x, m_pixel, o_n, height, width, dilation,
            C2, C1 + C2, N, PRECISION, BLOCK_K,
        )  # fmt: skip

    m_n = o_n < N
    b_out += tl.load(bias_ptr + o_n, mask=m_n, other=0.0)[None, :]  # (N,)
    if SILU:
        b_out = silu(b_out)
    p_out = out_ptr + o_pixel[:, None] * N + o_n[None, :]
    tl.store(p_out, narrow(b_out, out_ptr.dtype.element_ty), mask=m_pixel[:, None] & m_n[None, :])


def pack(weights: Conv3x3Weights, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Weight (9, C_in, C_out) and bias in float32."""
    weight = weights.weight.permute(2, 3, 1, 0).flatten(0, 1)
    return weight.to(device, dtype).contiguous(), weights.bias.to(device, torch.float32)


def run(x: Tensor, packed: Packed, *, x2: Tensor | None, dilation: int, activation: str) -> Tensor:
    """``silu(conv2d(cat([x, x2], 1)))``; see :func:`mobilevit_kernels.ops.conv3x3`."""
    weight, bias = packed.tensors
    batch, channels, height, width = x.shape
    second_channels = 0 if x2 is None else x2.shape[1]
    out_channels = packed.sizes[1]
    num_pixels = batch * height * width
    out = empty_nhwc(x, out_channels, height, width, x.dtype)
    _launch.launch(
        conv3x3_kernel,
        _launch.tiles(num_pixels, out_channels),
        (x, x2, weight, bias, out, num_pixels, height, width, dilation),
        Problem("conv3x3", x.dtype, (launch_table.rows_class(num_pixels), channels, second_channels, out_channels)),
        C1=channels,
        C2=second_channels,
        N=out_channels,
        SILU=activation == "silu",
        PRECISION=_launch.precision(x.dtype),
    )
    return out


def variant(packed: Packed) -> str:
    """One kernel; larger tiles from a number of pixels on."""
    boundary = f"larger tiles from {launch_table.MANY_ROWS} pixels (batch·height·width)"
    return f"implicit GEMM; {boundary}; {tuned.origin(packed.device)}"
