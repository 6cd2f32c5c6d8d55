"""Attention across patches in CUDA (csrc/unfold_attention_fold.cuh): the call."""

from __future__ import annotations

import torch
from torch import Tensor

from mobilevit_kernels import native
from mobilevit_kernels.ops import _dispatch

__all__ = ["run"]


def run(qkv: Tensor, *, num_heads: int, patch_size: tuple[int, int], scale: float) -> Tensor:
    """Launches the kernel; see :func:`mobilevit_kernels.ops.unfold_attention_fold`."""
    if qkv.data_ptr() % 16 != 0:  # a slice of a larger tensor: lanes read 4 bytes at a time
        qkv = qkv.clone(memory_format=torch.channels_last)
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
