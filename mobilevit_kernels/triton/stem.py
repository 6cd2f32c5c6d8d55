"""Stem: 3×3 convolution, stride 2, padding 1, + bias + SiLU, on images as they come.

    out[p, n] = silu(bias[n] + Σ_tap Σ_c image[2·p + shift(tap), c] · weight[tap·C + c, n])

Layouts: images of any strides, so NCHW and NHWC alike, float or uint8; out (B, H/2, W/2, N) NHWC; weight (9·C, N); bias
    (N,) float32; statistics (2, C) float32, mean over std. A uint8 value v stands for v / 255; normalisation is
    (image − mean) / std in float32, then rounded to the compute dtype. The padding is zero *after* it, hence a mask
    here and not a term folded into the bias, which would be wrong at the border.
A program owns BLOCK_M consecutive output pixels × BLOCK_N channels. The 27 inputs of a pixel are one row of the
    implicit matrix product, gathered in chunks of BLOCK_K.
Per output: 18·C flops; bytes 4·C·itemsize(image)/N + itemsize. Device memory binds.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from mobilevit_kernels.canonical import StemWeights
from mobilevit_kernels.packed import Packed
from mobilevit_kernels.triton import _launch, tuned
from mobilevit_kernels.triton._device import dot, narrow, silu
from mobilevit_kernels.triton.launch_table import Problem

__all__ = ["pack", "run", "variant"]


@triton.jit(do_not_specialize=["num_pixels", "height", "width", "stride_b", "stride_c", "stride_y", "stride_x"])
def stem_kernel(
    image_ptr,  # (B, C, H, W) by its strides
    weight_ptr,  # (9·C, N)
    bias_ptr,  # (N,) float32
    statistics_ptr,  # (2, C) float32, or None
    out_ptr,  # (B·⌈H/2⌉·⌈W/2⌉, N)
    num_pixels,
    height,
    width,
    stride_b,
    stride_c,
    stride_y,
    stride_x,
    C: tl.constexpr,
    N: tl.constexpr,
    BYTES: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    out_height = (height + 1) // 2
    out_width = (width + 1) // 2
    COLUMN_TILES: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    i_pixel = (tl.program_id(0) // COLUMN_TILES).to(tl.int64) * BLOCK_M
    o_pixel = i_pixel + tl.arange(0, BLOCK_M)
    o_n = (tl.program_id(0) % COLUMN_TILES) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_pixel = o_pixel < num_pixels
    m_n = o_n < N
    o_row = o_pixel // out_width
    o_image = o_row // out_height
    o_y = (o_row - o_image * out_height) * 2
    o_x = (o_pixel - o_row * out_width) * 2

    b_out = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for i_k in range(0, 9 * C, BLOCK_K):
        o_k = i_k + tl.arange(0, BLOCK_K)
        o_c = o_k % C
        o_tap = o_k // C
        o_in_y = o_y[:, None] + (o_tap // 3 - 1)[None, :]
        o_in_x = o_x[:, None] + (o_tap % 3 - 1)[None, :]
        m_k = o_k < 9 * C
        m_inside = (o_in_y >= 0) & (o_in_y < height) & (o_in_x >= 0) & (o_in_x < width)
        m_in = m_pixel[:, None] & m_k[None, :] & m_inside
        o_in = (
            o_image[:, None] * stride_b + o_in_y * stride_y + o_in_x * stride_x + o_c.to(tl.int64)[None, :] * stride_c
        )
        b_image = tl.load(image_ptr + o_in, mask=m_in, other=0).to(tl.float32)  # (M, K)
        if BYTES:
            b_image = b_image / 255.0
        if statistics_ptr is not None:
            b_mean = tl.load(statistics_ptr + o_c)  # (K,)
            b_std = tl.load(statistics_ptr + C + o_c)  # (K,)
            b_image = tl.where(m_in, (b_image - b_mean[None, :]) / b_std[None, :], 0.0)
        p_weight = weight_ptr + o_k[:, None] * N + o_n[None, :]
        b_weight = tl.load(p_weight, mask=m_k[:, None] & m_n[None, :], other=0.0)  # (K, N)
        b_out = dot(narrow(b_image, b_weight.dtype), b_weight, b_out, PRECISION)  # (M, K) @ (K, N)

    b_out = silu(b_out + tl.load(bias_ptr + o_n, mask=m_n, other=0.0)[None, :])  # (N,)
    p_out = out_ptr + o_pixel[:, None] * N + o_n[None, :]
    tl.store(p_out, narrow(b_out, out_ptr.dtype.element_ty), mask=m_pixel[:, None] & m_n[None, :])


@functools.lru_cache(maxsize=64)
def _statistics(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> Tensor:
    """Mean over std, (2, C); kept, so that a call copies nothing to the device and may be captured in a graph."""
    with torch.inference_mode(False):
        return torch.tensor([mean, std], dtype=torch.float32, device=device)


def pack(weights: StemWeights, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Weight (9·C_in, C_out) and bias in float32."""
    weight = weights.weight.permute(2, 3, 1, 0).flatten(0, 2)
    return weight.to(device, dtype).contiguous(), weights.bias.to(device, torch.float32)


def run(x: Tensor, packed: Packed, *, mean: list[float], std: list[float]) -> Tensor:
    """``silu(conv2d((x − mean) / std, stride=2, padding=1))``; see :func:`mobilevit_kernels.ops.stem`."""
    weight, bias = packed.tensors
    in_channels, out_channels = packed.sizes
    image = x.permute(0, 3, 1, 2) if x.dtype == torch.uint8 else x
    batch, _, height, width = image.shape
    out_height, out_width = (height + 1) // 2, (width + 1) // 2
    num_pixels = batch * out_height * out_width
    out = torch.empty(
        (batch, out_channels, out_height, out_width),
        dtype=packed.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )
    statistics = _statistics(tuple(mean), tuple(std), x.device) if mean else None
    _launch.launch(
        stem_kernel,
        _launch.tiles(num_pixels, out_channels),
        (image, weight, bias, statistics, out, num_pixels, height, width, *image.stride()),
        Problem("stem", packed.dtype, (out_channels,)),
        C=in_channels,
        N=out_channels,
        BYTES=x.dtype == torch.uint8,
        PRECISION=_launch.precision(packed.dtype),
    )
    return out


def variant(packed: Packed) -> str:
    """One kernel, in one form for all shapes."""
    return f"implicit GEMM from the image's strides; {tuned.origin(packed.device)}"
