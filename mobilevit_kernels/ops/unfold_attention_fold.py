"""Multi-head self-attention across patches, on a map: unfold and fold are address arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor

from mobilevit_kernels import registry
from mobilevit_kernels.canonical import AttentionShape
from mobilevit_kernels.ops import _checks, _dispatch

__all__ = ["unfold_attention_fold"]


def unfold_attention_fold(
    qkv: Tensor,
    *,
    num_heads: int,
    patch_size: tuple[int, int] = (2, 2),
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Computes softmax(q·kᵀ·scale)·v among the pixels that share a place in their patch.

    The plain-PyTorch equivalent, with :func:`python_ref.unfold` and :func:`python_ref.fold`::

        q, k, v = (unfold(part, patch_size) for part in qkv.chunk(3, dim=1))       # (B·P, N, D) each
        heads = lambda t: t.unflatten(-1, (num_heads, -1)).transpose(1, 2)         # (B·P, num_heads, N, head_dim)
        out = F.scaled_dot_product_attention(heads(q), heads(k), heads(v), scale=scale)
        fold(out.transpose(1, 2).flatten(2), patch_size, (H, W))

    Args:
        qkv: projected map (B, 3·D, H, W), floating point, channels q, k, v, each (num_heads, head_dim); H and W are
            multiples of the patch.
        num_heads: attention heads; divides D.
        patch_size: (height, width) of a patch.
        scale: of the scores; None: (D / num_heads)^-0.5.
        backend: "auto", "cuda", "triton", "torch" or "simt".

    Returns:
        (B, D, H, W) in ``qkv``'s dtype, channels_last in memory.

    Raises:
        TypeError: not a floating-point tensor, a scale that is no number.
        ValueError: a shape that the options do not fit, an unknown backend.
        RuntimeError: ``qkv`` requires grad while grad mode is on.
        BackendUnavailable: the named backend cannot serve.
    """
    _checks.check_map("qkv", qkv, "(B, 3·D, H, W)")
    _checks.check_float("qkv", qkv)
    _checks.check_inference("qkv", qkv)
    _checks.check_positive("num_heads", num_heads)
    patch_height, patch_width = _checks.check_patch_size(patch_size)
    if qkv.shape[1] % 3 != 0:
        raise ValueError(f"qkv: expected 3·D channels, got {qkv.shape[1]}")
    _checks.check_divides("num_heads", num_heads, "D", qkv.shape[1] // 3)
    _checks.check_divides("patch_size", patch_height, "qkv's height", qkv.shape[2])
    _checks.check_divides("patch_size", patch_width, "qkv's width", qkv.shape[3])
    if scale is not None and (isinstance(scale, bool) or not isinstance(scale, int | float | torch.SymFloat)):
        raise TypeError(f"scale: expected a number or None, got {_checks.describe(scale)}")
    if scale is None:
        scale = (qkv.shape[1] // (3 * num_heads)) ** -0.5
    chosen = _choose(backend, qkv.shape[1] // (3 * num_heads), qkv.dtype, qkv.device)
    return _launch(qkv, num_heads, patch_height, patch_width, float(scale), chosen)


def _choose(backend: str, head_dim: int, dtype: torch.dtype, device: torch.device) -> str:
    return registry.choose(backend, "unfold_attention_fold", AttentionShape(head_dim), dtype, device).backend


# torch.compile cannot trace the imports behind a backend's status. This is what torch.compiler.assume_constant_result
# sets; calling that would import torch._dynamo along with this package.
_choose._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _run(qkv: Tensor, num_heads: int, patch_height: int, patch_width: int, scale: float, backend: str) -> Tensor:
    module = _dispatch.stage_module(backend, "unfold_attention_fold")
    result: Tensor = module.run(
        _dispatch.nhwc(qkv), num_heads=num_heads, patch_size=(patch_height, patch_width), scale=scale
    )
    return result


def _fake(qkv: Tensor, num_heads: int, patch_height: int, patch_width: int, scale: float, backend: str) -> Tensor:
    return _dispatch.empty_nhwc(qkv, qkv.shape[1] // 3, qkv.shape[2], qkv.shape[3], qkv.dtype)


_launch = _dispatch.register(
    "unfold_attention_fold",
    "(Tensor qkv, int num_heads, int patch_height, int patch_width, float scale, str backend) -> Tensor",
    _run,
    _fake,
)
