"""Attention across patches in CUDA (csrc/unfold_attention_fold.cuh): the call."""

from __future__ import annotations

import torch
from torch import Tensor

from mobilevit_kernels import native
from mobilevit_kernels.canonical import AttentionShape
from mobilevit_kernels.native.transformer_plan import MAX_HEAD_DIM
from mobilevit_kernels.ops import _dispatch

__all__ = ["refusal", "run"]


def refusal(backend: str, shape: AttentionShape, device: torch.device) -> str | None:
    """Why the kernel cannot serve these heads; None: it can."""
    if shape.head_dim % 2 != 0 or shape.head_dim > MAX_HEAD_DIM:
        return f"head_dim: expected an even number up to {MAX_HEAD_DIM}, got {shape.head_dim}"
    return None


def run(qkv: Tensor, *, num_heads: int, patch_size: tuple[int, int], scale: float) -> Tensor:
    """Launches the kernel; see :func:`mobilevit_kernels.ops.unfold_attention_fold`."""
    qkv = native.aligned(qkv)
    batch, channels, height, width = qkv.shape
    y = _dispatch.empty_nhwc(qkv, channels // 3, height, width, qkv.dtype)
    native.library("cuda" if qkv.is_cuda else "simt").launch(
        "unfold_attention_fold",
        {"qkv": qkv},
        y,
        {
            "batch": batch,
            "height": height,
            "width": width,
            "dim": channels // 3,
            "num_heads": num_heads,
            "patch_height": patch_size[0],
            "patch_width": patch_size[1],
            "scale": scale,
        },
        qkv.dtype == torch.bfloat16,
    )
    return y
