"""Inverted residual in two kernels: expand + SiLU; depthwise + SiLU + project (+ residual).

    hidden = silu(x @ expand + b1)                                                  the kernel of ``_linear``
    out    = silu(b2 + Σ_tap hidden[s·p + shift(tap)] · depthwise[tap]) @ project + b3 (+ x)

Layouts: x (B, H, W, C), hidden (slice, H, W, hidden), out (B, H/s, W/s, N), NHWC; expand (C, hidden), depthwise
    (9, hidden), project (hidden, N); biases float32.
A program of the second kernel owns BLOCK_M consecutive output pixels × BLOCK_N output channels, up to 256, so that for
    every published network it owns all channels and no depthwise value is computed twice. It walks the hidden channels
    in chunks: nine shifted loads, SiLU, and the chunk is the left operand of the project product without leaving the
    multiprocessor.
The hidden tensor is the stage's traffic, up to four times the input: the batch is taken in slices whose hidden tensor
    stays in the L2 between the kernels (:func:`~mobilevit_kernels.triton.launch_table.images_per_slice`). An image's
    result does not depend on the slice it is in.
Per output: 2·hidden flops of the product, and 18·hidden/N on the ordinary pipes; bytes 9·itemsize·hidden/N, from the L1
    and L2. Loads through the L1 and the special functions bind.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mobilevit_kernels.canonical import InvertedResidualWeights
from mobilevit_kernels.ops._dispatch import empty_nhwc
from mobilevit_kernels.packed import Packed
from mobilevit_kernels.triton import _launch, launch_table, tuned
from mobilevit_kernels.triton._device import dot, narrow, silu
from mobilevit_kernels.triton._linear import linear, pack_matrix
from mobilevit_kernels.triton.launch_table import Problem

__all__ = ["pack", "run", "variant"]


@triton.jit(do_not_specialize=["num_pixels", "height", "width", "out_height", "out_width", "dilation"])
def depthwise_project_kernel(
    hidden_ptr,  # (B·H·W, HIDDEN)
    depthwise_ptr,  # (9, HIDDEN)
    depthwise_bias_ptr,  # (HIDDEN,) float32
    project_ptr,  # (HIDDEN, N)
    project_bias_ptr,  # (N,) float32
    residual_ptr,  # (B·H·W, N), or None
    out_ptr,  # (B·out_height·out_width, N)
    num_pixels,
    height,
    width,
    out_height,
    out_width,
    dilation,
    HIDDEN: tl.constexpr,
    N: tl.constexpr,
    STRIDE: tl.constexpr,
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
    m_n = o_n < N
    o_row = o_pixel // out_width
    o_image = o_row // out_height
    o_y = (o_row - o_image * out_height).to(tl.int32) * STRIDE
    o_x = (o_pixel - o_row * out_width).to(tl.int32) * STRIDE
    o_centre = (o_image * height + o_y) * width + o_x

    b_out = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for i_k in range(0, HIDDEN, BLOCK_K):
        o_k = i_k + tl.arange(0, BLOCK_K)
        m_k = o_k < HIDDEN
        b_hidden = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
        for i_tap in tl.static_range(9):
            dy = (i_tap // 3 - 1) * dilation
            dx = (i_tap % 3 - 1) * dilation
            m_tap = m_pixel & (o_y + dy >= 0) & (o_y + dy < height) & (o_x + dx >= 0) & (o_x + dx < width)
            p_tap = hidden_ptr + (o_centre + dy * width + dx)[:, None] * HIDDEN + o_k[None, :]
            b_tap = tl.load(p_tap, mask=m_tap[:, None] & m_k[None, :], other=0.0)  # (M, K)
            b_weight = tl.load(depthwise_ptr + i_tap * HIDDEN + o_k, mask=m_k, other=0.0)  # (K,)
            b_hidden += b_tap.to(tl.float32) * b_weight.to(tl.float32)[None, :]
        b_hidden = silu(b_hidden + tl.load(depthwise_bias_ptr + o_k, mask=m_k, other=0.0)[None, :])
        p_project = project_ptr + o_k[:, None] * N + o_n[None, :]
        b_project = tl.load(p_project, mask=m_k[:, None] & m_n[None, :], other=0.0)  # (K, N)
        b_out = dot(narrow(b_hidden, b_project.dtype), b_project, b_out, PRECISION)  # (M, K) @ (K, N)

    b_out += tl.load(project_bias_ptr + o_n, mask=m_n, other=0.0)[None, :]  # (N,)
    o_out = o_pixel[:, None] * N + o_n[None, :]
    m_out = m_pixel[:, None] & m_n[None, :]
    if residual_ptr is not None:
        b_out += tl.load(residual_ptr + o_out, mask=m_out, other=0.0).to(tl.float32)  # (M, N)
    tl.store(out_ptr + o_out, narrow(b_out, out_ptr.dtype.element_ty), mask=m_out)


def pack(weights: InvertedResidualWeights, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Expand (C, hidden), depthwise (9, hidden), project (hidden, N), each with its bias in float32 behind it."""
    depthwise = weights.depthwise_weight.flatten(1).T.to(device, dtype).contiguous()
    return (
        pack_matrix(weights.expand_weight, dtype, device),
        weights.expand_bias.to(device, torch.float32),
        depthwise,
        weights.depthwise_bias.to(device, torch.float32),
        pack_matrix(weights.project_weight, dtype, device),
        weights.project_bias.to(device, torch.float32),
    )


def run(x: Tensor, packed: Packed, *, stride: int, dilation: int, residual: bool) -> Tensor:
    """Expand, depthwise, project; see :func:`mobilevit_kernels.ops.inverted_residual`."""
    expand, expand_bias, *others = packed.tensors
    _, hidden_channels, out_channels = packed.sizes
    batch, _, height, width = x.shape
    out_height, out_width = (height - 1) // stride + 1, (width - 1) // stride + 1
    out = empty_nhwc(x, out_channels, out_height, out_width, x.dtype)
    hidden_bytes = height * width * hidden_channels * x.element_size()
    images = launch_table.images_per_slice(batch, hidden_bytes, _launch.l2_bytes(x))
    hidden = empty_nhwc(x[:images], hidden_channels, height, width, x.dtype)
    # By the whole batch, not by the slice: the last slice may be smaller, and must round as the others do.
    rows = launch_table.rows_class(batch * out_height * out_width)
    for first in range(0, batch, images):
        part, part_out = x[first : first + images], out[first : first + images]
        num_images = part.shape[0]
        num_pixels = num_images * out_height * out_width
        linear(
            part, expand, expand_bias, hidden, num_images * height * width,
            activation=True, class_rows=batch * height * width,
        )  # fmt: skip
        _launch.launch(
            depthwise_project_kernel,
            _launch.tiles(num_pixels, out_channels),
            (
                hidden, *others, part if residual else None, part_out,
                num_pixels, height, width, out_height, out_width, dilation,
            ),
            Problem("depthwise_project", x.dtype, (rows, hidden_channels, out_channels, stride)),
            HIDDEN=hidden_channels,
            N=out_channels,
            STRIDE=stride,
            PRECISION=_launch.precision(x.dtype),
        )  # fmt: skip
    return out


def variant(packed: Packed) -> str:
    """Two kernels; larger tiles from a number of pixels on."""
    return (
        "expand; depthwise + project, in slices of the batch that fit the L2; "
        f"larger tiles from {launch_table.MANY_ROWS} pixels (batch·height·width); {tuned.origin(packed.device)}"
    )
