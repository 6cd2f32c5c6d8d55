"""Head: 1×1 convolution + SiLU + global average pool in one kernel, then the linear.

    pooled[b, n] = 1/P · Σ_p silu(bias[n] + Σ_c x[b, p, c] · weight[c, n])

Layouts: x (B, P, C) with P = H·W pixels, NHWC; weight (C, N); bias (N,) float32; pooled (B, N). The (B, P, N) map is
    never written.
A program owns one image × BLOCK_N channels and walks its pixels BLOCK_M at a time in a fixed order: deterministic,
    without atomics, and the same for every batch size.
Per pooled value: 2·C·P flops and P SiLUs; bytes itemsize·P·C/BLOCK_N from the L2. With 64 pixels and N = 640 the number
    of programs, ten an image, binds for small batches, the special functions and the matrix pipe for large ones.
``pool=False`` and the linear are the kernel of :mod:`mobilevit_kernels.triton._linear`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mobilevit_kernels.canonical import HeadWeights
from mobilevit_kernels.ops._dispatch import empty_nhwc
from mobilevit_kernels.packed import Packed
from mobilevit_kernels.triton import _launch, launch_table, tuned
from mobilevit_kernels.triton._device import dot, narrow, silu
from mobilevit_kernels.triton._linear import linear, pack_matrix
from mobilevit_kernels.triton.launch_table import Problem

__all__ = ["pack", "run", "variant"]


@triton.jit(do_not_specialize=["num_pixels"])
def head_kernel(
    x_ptr,  # (B, P, C)
    weight_ptr,  # (C, N)
    bias_ptr,  # (N,) float32
    pooled_ptr,  # (B, N)
    num_pixels,
    C: tl.constexpr,
    N: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    COLUMN_TILES: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    i_image = (tl.program_id(0) // COLUMN_TILES).to(tl.int64)
    o_n = (tl.program_id(0) % COLUMN_TILES) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < N
    x_ptr += i_image * num_pixels * C
    b_bias = tl.load(bias_ptr + o_n, mask=m_n, other=0.0)  # (N,)

    b_pooled = tl.zeros([BLOCK_N], tl.float32)
    for i_pixel in range(0, num_pixels, BLOCK_M):
        o_pixel = i_pixel + tl.arange(0, BLOCK_M)
        m_pixel = o_pixel < num_pixels
        b_map = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for i_k in range(0, C, BLOCK_K):
            o_k = i_k + tl.arange(0, BLOCK_K)
            m_k = o_k < C
            p_x = x_ptr + o_pixel.to(tl.int64)[:, None] * C + o_k[None, :]
            b_x = tl.load(p_x, mask=m_pixel[:, None] & m_k[None, :], other=0.0)  # (M, K)
            p_weight = weight_ptr + o_k[:, None] * N + o_n[None, :]
            b_weight = tl.load(p_weight, mask=m_k[:, None] & m_n[None, :], other=0.0)  # (K, N)
            b_map = dot(b_x, b_weight, b_map, PRECISION)  # (M, K) @ (K, N)
        b_map = silu(b_map + b_bias[None, :])
        b_pooled += tl.sum(tl.where(m_pixel[:, None], b_map, 0.0), axis=0)
    b_pooled /= num_pixels.to(tl.float32)
    tl.store(pooled_ptr + i_image * N + o_n, narrow(b_pooled, pooled_ptr.dtype.element_ty), mask=m_n)


def pack(weights: HeadWeights, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Convolution (C, hidden) and bias, then the classifier's (hidden, classes) and bias; biases in float32."""
    tensors = (pack_matrix(weights.conv_weight, dtype, device), weights.conv_bias.to(device, torch.float32))
    if weights.fc_weight is None:
        return tensors
    assert weights.fc_bias is not None
    return *tensors, pack_matrix(weights.fc_weight, dtype, device), weights.fc_bias.to(device, torch.float32)


def run(x: Tensor, packed: Packed, *, pool: bool) -> Tensor:
    """Convolution, SiLU, mean, linear; see :func:`mobilevit_kernels.ops.head`."""
    weight, bias, *classifier = packed.tensors
    in_channels, hidden_channels, num_classes = packed.sizes
    batch, _, height, width = x.shape
    num_pixels = height * width
    if not pool:
        out = empty_nhwc(x, hidden_channels, height, width, x.dtype)
        return linear(x, weight, bias, out, batch * num_pixels, activation=True)
    pooled = x.new_empty((batch, hidden_channels))
    _launch.launch(
        head_kernel,
        lambda config: (batch * triton.cdiv(hidden_channels, config["BLOCK_N"]),),
        (x, weight, bias, pooled, num_pixels),
        Problem("head", x.dtype, (launch_table.tile_class(num_pixels), in_channels, hidden_channels)),
        C=in_channels,
        N=hidden_channels,
        PRECISION=_launch.precision(x.dtype),
    )
    if not classifier:
        return pooled
    fc_weight, fc_bias = classifier
    return linear(pooled, fc_weight, fc_bias, x.new_empty((batch, num_classes)), batch)


def variant(packed: Packed) -> str:
    """One form for all shapes; the linear has larger tiles from a batch on that is hardly ever met."""
    linear_tiles = f"larger tiles there from batch {launch_table.MANY_ROWS}"
    return f"1×1 + SiLU + pool in one kernel, then the linear; {linear_tiles}; {tuned.origin(packed.device)}"
