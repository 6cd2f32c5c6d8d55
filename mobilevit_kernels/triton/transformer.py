"""Transformer stage: 1×1 in → encoder layers → LayerNorm → 1×1 out + SiLU, four kernels a layer and two around them.

    tokens  = x @ in                                                      ``_linear``
    a layer:  qkv     = norm(tokens) @ qkv + b                            ``_linear``, LayerNorm in front
              q       = attention(q, k, v)                                ``unfold_attention_fold``, in place of q
              tokens += q @ proj + b                                      ``_linear``, in place
              tokens += silu(norm(tokens) @ fc1 + b) @ fc2 + b            the kernel below, in place
    out     = silu(norm(tokens) @ out + b)                                ``_linear``, LayerNorm in front

Layouts: tokens stay in map order, (B·H·W, D): only attention cares about sequences, and it finds its tokens by address.
    Matrices (in, out), LayerNorm's affine folded into the one behind it; biases float32.
The MLP's program owns BLOCK_M rows for all D channels and walks the hidden channels BLOCK_H at a time: fc1's chunk,
    after SiLU, is fc2's left operand and never leaves the multiprocessor. D is seldom a power of two, so that rows
    are held as two tiles, MAIN + TAIL (144 = 128 + 16), with little or no padding.
Per row of the MLP: 4·D·HIDDEN flops, HIDDEN SiLUs, 2·itemsize·D bytes; weights from the L2, once per BLOCK_M rows. The
    matrix pipe and shared memory bind for large batches; for small ones the number of programs, rows / BLOCK_M.
Rows too wide for that (D > 256) take fc1 and fc2 as two launches of ``_linear``.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mobilevit_kernels.canonical import EncoderLayerWeights, TransformerWeights
from mobilevit_kernels.ops._dispatch import empty_nhwc
from mobilevit_kernels.ops._resize import on_whole_patches
from mobilevit_kernels.packed import Packed
from mobilevit_kernels.triton import _launch, launch_table, tuned
from mobilevit_kernels.triton._device import dot, narrow, silu
from mobilevit_kernels.triton._linear import fold_layer_norm, linear, pack_matrix
from mobilevit_kernels.triton.launch_table import Problem
from mobilevit_kernels.triton.unfold_attention_fold import attend

__all__ = ["pack", "run", "variant"]

_TENSORS_PER_LAYER = 8


@triton.jit(do_not_specialize=["num_rows"])
def mlp_kernel(
    tokens_ptr,  # (rows, D), read and written
    fc1_ptr,  # (D, HIDDEN)
    fc1_bias_ptr,  # (HIDDEN,) float32
    fc2_ptr,  # (HIDDEN, D)
    fc2_bias_ptr,  # (D,) float32
    num_rows,
    eps,
    D: tl.constexpr,
    HIDDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
):
    o_row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_row = o_row < num_rows
    o_main = tl.arange(0, MAIN)
    m_main = o_main < D
    DTYPE: tl.constexpr = tokens_ptr.dtype.element_ty
    p_main = tokens_ptr + o_row[:, None] * D + o_main[None, :]
    b_main = tl.load(p_main, mask=m_row[:, None] & m_main[None, :], other=0.0).to(tl.float32)  # (M, MAIN)
    b_sum = tl.sum(b_main, axis=1)
    if TAIL > 0:
        o_tail = MAIN + tl.arange(0, TAIL)
        m_tail = o_tail < D
        p_tail = tokens_ptr + o_row[:, None] * D + o_tail[None, :]
        b_tail = tl.load(p_tail, mask=m_row[:, None] & m_tail[None, :], other=0.0).to(tl.float32)  # (M, TAIL)
        b_sum += tl.sum(b_tail, axis=1)

    b_mean = b_sum / D
    b_main = tl.where(m_main[None, :], b_main - b_mean[:, None], 0.0)
    b_squares = tl.sum(b_main * b_main, axis=1)
    if TAIL > 0:
        b_tail = tl.where(m_tail[None, :], b_tail - b_mean[:, None], 0.0)
        b_squares += tl.sum(b_tail * b_tail, axis=1)
    b_rstd = 1.0 / tl.sqrt(b_squares / D + eps)
    b_main_norm = narrow(b_main * b_rstd[:, None], DTYPE)
    b_main_out = tl.zeros([BLOCK_M, MAIN], tl.float32)
    if TAIL > 0:
        b_tail_norm = narrow(b_tail * b_rstd[:, None], DTYPE)
        b_tail_out = tl.zeros([BLOCK_M, TAIL], tl.float32)

    for i_h in range(0, HIDDEN, BLOCK_H):
        o_h = i_h + tl.arange(0, BLOCK_H)
        m_h = o_h < HIDDEN
        b_hidden = tl.zeros([BLOCK_M, BLOCK_H], tl.float32)
        p_fc1 = fc1_ptr + o_main[:, None] * HIDDEN + o_h[None, :]
        b_fc1 = tl.load(p_fc1, mask=m_main[:, None] & m_h[None, :], other=0.0)  # (MAIN, H)
        b_hidden = dot(b_main_norm, b_fc1, b_hidden, PRECISION)  # (M, MAIN) @ (MAIN, H)
        if TAIL > 0:
            p_fc1 = fc1_ptr + o_tail[:, None] * HIDDEN + o_h[None, :]
            b_fc1 = tl.load(p_fc1, mask=m_tail[:, None] & m_h[None, :], other=0.0)  # (TAIL, H)
            b_hidden = dot(b_tail_norm, b_fc1, b_hidden, PRECISION)  # (M, TAIL) @ (TAIL, H)
        b_hidden = silu(b_hidden + tl.load(fc1_bias_ptr + o_h, mask=m_h, other=0.0)[None, :])
        b_hidden = narrow(b_hidden, DTYPE)
        p_fc2 = fc2_ptr + o_h[:, None] * D + o_main[None, :]
        b_fc2 = tl.load(p_fc2, mask=m_h[:, None] & m_main[None, :], other=0.0)  # (H, MAIN)
        b_main_out = dot(b_hidden, b_fc2, b_main_out, PRECISION)  # (M, H) @ (H, MAIN)
        if TAIL > 0:
            p_fc2 = fc2_ptr + o_h[:, None] * D + o_tail[None, :]
            b_fc2 = tl.load(p_fc2, mask=m_h[:, None] & m_tail[None, :], other=0.0)  # (H, TAIL)
            b_tail_out = dot(b_hidden, b_fc2, b_tail_out, PRECISION)  # (M, H) @ (H, TAIL)

    # The residual is read again: keeping it would cost a third tile of registers.
    m_out = m_row[:, None] & m_main[None, :]
    b_main_out += tl.load(fc2_bias_ptr + o_main, mask=m_main, other=0.0)[None, :]  # (MAIN,)
    b_main_out += tl.load(p_main, mask=m_out, other=0.0).to(tl.float32)  # (M, MAIN)
    tl.store(p_main, narrow(b_main_out, DTYPE), mask=m_out)
    if TAIL > 0:
        m_out = m_row[:, None] & m_tail[None, :]
        b_tail_out += tl.load(fc2_bias_ptr + o_tail, mask=m_tail, other=0.0)[None, :]  # (TAIL,)
        b_tail_out += tl.load(p_tail, mask=m_out, other=0.0).to(tl.float32)  # (M, TAIL)
        tl.store(p_tail, narrow(b_tail_out, DTYPE), mask=m_out)


def _mlp(tokens: Tensor, weights: tuple[Tensor, ...], num_rows: int, eps: float) -> None:
    """``tokens += fc2(silu(fc1(norm(tokens))))`` in place."""
    fc1, fc1_bias, fc2, fc2_bias = weights
    dim, hidden_width = fc1.shape
    if dim > launch_table.WIDEST_MLP:
        hidden = tokens.new_empty((num_rows, hidden_width))
        linear(tokens, fc1, fc1_bias, hidden, num_rows, normalize=True, activation=True, eps=eps)
        linear(hidden, fc2, fc2_bias, tokens, num_rows, residual=tokens)
        return
    _launch.launch(
        mlp_kernel,
        lambda config: (triton.cdiv(num_rows, config["BLOCK_M"]),),
        (tokens, *weights, num_rows, eps),
        Problem("mlp", tokens.dtype, (launch_table.rows_class(num_rows), dim, hidden_width)),
        D=dim,
        HIDDEN=hidden_width,
        PRECISION=_launch.precision(tokens.dtype),
    )


def _pack_layer(layer: EncoderLayerWeights, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    linears = (
        fold_layer_norm(layer.qkv_weight, layer.qkv_bias, layer.norm1_weight, layer.norm1_bias),
        (layer.proj_weight, layer.proj_bias),
        fold_layer_norm(layer.fc1_weight, layer.fc1_bias, layer.norm2_weight, layer.norm2_bias),
        (layer.fc2_weight, layer.fc2_bias),
    )
    return tuple(
        tensor
        for weight, bias in linears
        for tensor in (pack_matrix(weight, dtype, device), bias.to(device, torch.float32))
    )


def pack(weights: TransformerWeights, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """In (C, D); per layer qkv, proj, fc1, fc2, each (in, out) with its bias; out (D, C_out) and its bias."""
    layers = [tensor for layer in weights.layers for tensor in _pack_layer(layer, dtype, device)]
    out, out_bias = fold_layer_norm(weights.out_weight, weights.out_bias, weights.norm_weight, weights.norm_bias)
    return (
        pack_matrix(weights.in_weight, dtype, device),
        *layers,
        pack_matrix(out, dtype, device),
        out_bias.to(device, torch.float32),
    )


def run(x: Tensor, packed: Packed, *, num_heads: int, patch_size: tuple[int, int]) -> Tensor:
    """Unfold, encode, fold; see :func:`mobilevit_kernels.ops.transformer`."""
    return on_whole_patches(x, patch_size, lambda whole, silu: _run(whole, packed, num_heads, patch_size, silu))


def _run(x: Tensor, packed: Packed, num_heads: int, patch_size: tuple[int, int], activation: bool) -> Tensor:
    in_weight, *layers, out_weight, out_bias = packed.tensors
    batch, _, height, width = x.shape
    dim, out_channels, eps = packed.sizes[1], packed.sizes[4], packed.eps
    num_rows = batch * height * width
    tokens = linear(x, in_weight, None, x.new_empty((num_rows, dim)), num_rows)
    qkv = x.new_empty((num_rows, 3 * dim))
    for i in range(0, len(layers), _TENSORS_PER_LAYER):
        qkv_weight, qkv_bias, proj_weight, proj_bias, *mlp = layers[i : i + _TENSORS_PER_LAYER]
        linear(tokens, qkv_weight, qkv_bias, qkv, num_rows, normalize=True, eps=eps)
        attend(
            qkv, qkv, (batch, height, width),
            dim=dim, out_stride=3 * dim, num_heads=num_heads, patch_size=patch_size, scale=(dim // num_heads) ** -0.5,
        )  # fmt: skip
        linear(qkv, proj_weight, proj_bias, tokens, num_rows, x_stride=3 * dim, residual=tokens)
        _mlp(tokens, tuple(mlp), num_rows, eps)
    out = empty_nhwc(x, out_channels, height, width, x.dtype)
    return linear(tokens, out_weight, out_bias, out, num_rows, normalize=True, activation=activation, eps=eps)


def variant(packed: Packed) -> str:
    """The kernels of a layer, and the boundary between tile sizes."""
    fused = packed.sizes[1] <= launch_table.WIDEST_MLP
    kernels = "four kernels a layer" if fused else "five kernels a layer: rows too wide for one MLP kernel"
    boundary = f"larger tiles from {launch_table.MANY_ROWS} tokens (batch·height·width)"
    return f"{kernels}; {boundary}; {tuned.origin(packed.device)}"
