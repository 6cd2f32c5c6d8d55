"""Attention across patches in CUDA (csrc/unfold_attention_fold.cuh): the call."""

from __future__ import annotations

import torch
from torch import Tensor

from mobilevit_kernels import native
from mobilevit_kernels.canonical import AttentionShape
from mobilevit_kernels.native.launches import Launch, Slot, execute, map_slot
from mobilevit_kernels.native.transformer_plan import MAX_HEAD_DIM

__all__ = ["refusal", "run"]


def refusal(backend: str, shape: AttentionShape, device: torch.device) -> str | None:
    """Why the kernel cannot serve these heads; None: it can."""
    if shape.head_dim % 2 != 0 or shape.head_dim > MAX_HEAD_DIM:
        return f"head_dim: expected an even number up to {MAX_HEAD_DIM}, got {shape.head_dim}"
    return None


def run(qkv: Tensor, *, num_heads: int, patch_size: tuple[int, int], scale: float) -> Tensor:
    """Launches the kernel; see :func:`mobilevit_kernels.ops.unfold_attention_fold`."""
    batch, channels, height, width = qkv.shape
    sizes = {
        "batch": batch,
        "height": height,
        "width": width,
        "dim": channels // 3,
        "num_heads": num_heads,
        "patch_height": patch_size[0],
        "patch_width": patch_size[1],
        "scale": scale,
    }
    slot = Slot.like(qkv)
    y = map_slot(batch, channels // 3, height, width, qkv.dtype)
    launch = Launch("unfold_attention_fold", {"qkv": slot}, y, sizes, qkv.dtype)
    return execute("cuda" if qkv.is_cuda else "simt", [launch], {slot: native.aligned(qkv)})
