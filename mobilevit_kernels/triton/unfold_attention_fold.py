"""Multi-head self-attention among the pixels that share a place in their patch, as one pass over the keys.

    out[n] = Σ_m softmax_m(scale · q[n]·k[m]) · v[m]        n, m: the tokens of one sequence (image, pixel of the patch)

Layouts: qkv (B, H, W, 3·D) NHWC, channels q, k, v, each (heads, head_dim); out NHWC, pixels OUT_STRIDE values apart.
    Unfold and fold are address arithmetic: with patches of PH × PW, token n of sequence (b, ph, pw) is pixel
    ((n // columns)·PH + ph, (n % columns)·PW + pw) of image b, where columns = W / PW:

        0 1 0 1
        2 3 2 3     2 × 2 patches: the four sequences of a map of 4 × 4 pixels, four tokens each
        0 1 0 1
        2 3 2 3

    ``out`` may be the q part of ``qkv`` itself: a program reads no other queries than the ones it overwrites.
A program owns BLOCK_M queries of one head of one sequence and walks the keys BLOCK_N at a time, with the running
    maximum and sum of the softmax in float32 (online softmax: Milakov and Gimelshein 2018; Dao et al. 2022). A head dim
    that is no power of two is masked in registers only.
Per output: 4·N flops, N/head_dim exponentials; bytes itemsize·(2 + 2·N/BLOCK_M), the keys from the L2. The exponentials
    bind at 256 tokens, latency at 64 and fewer.
"""

import triton
import triton.language as tl
from torch import Tensor

from mobilevit_kernels.ops._dispatch import empty_nhwc
from mobilevit_kernels.registry import BackendUnavailable
from mobilevit_kernels.triton import _launch, launch_table
from mobilevit_kernels.triton._device import dot, narrow
from mobilevit_kernels.triton.launch_table import Problem

__all__ = ["attend", "run"]

LARGEST_HEAD_DIM = 256
_LOG2_E = 1.4426950408889634


@triton.jit
def pixel_of_token(o_token, columns, width, PATCH_HEIGHT: tl.constexpr, PATCH_WIDTH: tl.constexpr):
    """Offset in pixels of a token from its sequence's first pixel."""
    return (o_token // columns) * PATCH_HEIGHT * width + (o_token % columns) * PATCH_WIDTH


@triton.jit(do_not_specialize=["num_tokens", "columns", "width", "image_pixels"])
def attention_kernel(
    qkv_ptr,  # (B·H·W, 3·HEADS·HEAD_DIM)
    out_ptr,  # (B·H·W, HEADS·HEAD_DIM), rows OUT_STRIDE apart
    num_tokens,
    columns,
    width,
    image_pixels,
    scale_log2,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    OUT_STRIDE: tl.constexpr,
    PATCH_HEIGHT: tl.constexpr,
    PATCH_WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    DIM: tl.constexpr = HEADS * HEAD_DIM
    PATCH_PIXELS: tl.constexpr = PATCH_HEIGHT * PATCH_WIDTH
    tiles = tl.cdiv(num_tokens, BLOCK_M)
    i_head = (tl.program_id(0) // tiles) % HEADS
    i_sequence = tl.program_id(0) // (tiles * HEADS)
    i_in_patch = i_sequence % PATCH_PIXELS
    first_pixel = (i_sequence // PATCH_PIXELS).to(tl.int64) * image_pixels
    first_pixel += (i_in_patch // PATCH_WIDTH) * width + i_in_patch % PATCH_WIDTH

    o_query = (tl.program_id(0) % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_d = tl.arange(0, BLOCK_D)
    m_query = o_query < num_tokens
    m_d = o_d < HEAD_DIM
    o_query_pixel = first_pixel + pixel_of_token(o_query, columns, width, PATCH_HEIGHT, PATCH_WIDTH)  # (M,)
    m_block = m_query[:, None] & m_d[None, :]
    o_head = i_head * HEAD_DIM + o_d
    b_query = tl.load(qkv_ptr + o_query_pixel[:, None] * (3 * DIM) + o_head[None, :], mask=m_block, other=0.0)  # (M, D)

    b_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    b_out = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for i_key in range(0, num_tokens, BLOCK_N):
        o_key = i_key + tl.arange(0, BLOCK_N)
        m_key = o_key < num_tokens
        o_key_pixel = first_pixel + pixel_of_token(o_key, columns, width, PATCH_HEIGHT, PATCH_WIDTH)  # (N,)
        p_key = qkv_ptr + DIM + o_key_pixel[:, None] * (3 * DIM) + o_head[None, :]
        b_key = tl.load(p_key, mask=m_key[:, None] & m_d[None, :], other=0.0)  # (N, D)
        b_scores = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        b_scores = dot(b_query, tl.trans(b_key), b_scores, PRECISION)  # (M, D) @ (D, N)
        b_scores = tl.where(m_key[None, :], b_scores * scale_log2, float("-inf"))
        b_new_max = tl.maximum(b_max, tl.max(b_scores, axis=1))
        b_decay = tl.exp2(b_max - b_new_max)
        b_weights = tl.exp2(b_scores - b_new_max[:, None])
        b_sum = b_sum * b_decay + tl.sum(b_weights, axis=1)
        b_value = tl.load(p_key + DIM, mask=m_key[:, None] & m_d[None, :], other=0.0)  # (N, D)
        b_out = dot(narrow(b_weights, b_value.dtype), b_value, b_out * b_decay[:, None], PRECISION)  # (M, N) @ (N, D)
        b_max = b_new_max

    b_out = b_out / b_sum[:, None]
    p_out = out_ptr + o_query_pixel[:, None] * OUT_STRIDE + o_head[None, :]
    tl.store(p_out, narrow(b_out, out_ptr.dtype.element_ty), mask=m_block)


def attend(
    qkv: Tensor,
    out: Tensor,
    size: tuple[int, int, int],
    *,
    dim: int,
    out_stride: int,
    num_heads: int,
    patch_size: tuple[int, int],
    scale: float,
) -> None:
    """Launches the kernel.

    Args:
        qkv: (B·H·W, 3·D) values in memory.
        out: (B·H·W, D), rows ``out_stride`` values apart; may be ``qkv``, whose q part it overwrites then.
        size: (B, H, W), multiples of the patch.
        dim: D.
    """
    head_dim = dim // num_heads
    if head_dim > LARGEST_HEAD_DIM:
        raise BackendUnavailable(
            f"backend='triton' cannot serve unfold_attention_fold: expected heads of at most {LARGEST_HEAD_DIM} "
            f"channels, got {head_dim} ({dim} channels in {num_heads} heads)"
        )
    batch, height, width = size
    patch_height, patch_width = patch_size
    columns = width // patch_width
    num_tokens = height // patch_height * columns
    sequences = batch * patch_height * patch_width
    rows = launch_table.rows_class(sequences * num_tokens)
    _launch.launch(
        attention_kernel,
        lambda config: (triton.cdiv(num_tokens, config["BLOCK_M"]) * num_heads * sequences,),
        (qkv, out, num_tokens, columns, width, height * width, scale * _LOG2_E),
        Problem("attention", qkv.dtype, (rows, launch_table.tile_class(num_tokens), head_dim)),
        HEADS=num_heads,
        HEAD_DIM=head_dim,
        OUT_STRIDE=out_stride,
        PATCH_HEIGHT=patch_height,
        PATCH_WIDTH=patch_width,
        PRECISION=_launch.precision(qkv.dtype),
    )


def run(qkv: Tensor, *, num_heads: int, patch_size: tuple[int, int], scale: float) -> Tensor:
    """Unfold, attend, fold; see :func:`mobilevit_kernels.ops.unfold_attention_fold`."""
    batch, channels, height, width = qkv.shape
    dim = channels // 3
    out = empty_nhwc(qkv, dim, height, width, qkv.dtype)
    attend(
        qkv, out, (batch, height, width),
        dim=dim, out_stride=dim, num_heads=num_heads, patch_size=patch_size, scale=scale,
    )  # fmt: skip
    return out
