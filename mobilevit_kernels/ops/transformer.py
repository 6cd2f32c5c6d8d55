"""The transformer stage of a MobileViT block: 1×1 in → unfold → encoder layers → LayerNorm → fold → 1×1 out + SiLU."""

from __future__ import annotations

from torch import Tensor

from mobilevit_kernels.canonical import TransformerWeights
from mobilevit_kernels.ops import _checks, _dispatch
from mobilevit_kernels.packed import Packed

__all__ = ["transformer"]


def transformer(
    x: Tensor,
    weights: TransformerWeights | Packed,
    *,
    num_heads: int = 4,
    patch_size: tuple[int, int] = (2, 2),
    backend: str = "auto",
) -> Tensor:
    """Computes the transformer stage of a MobileViT block (arXiv 2110.02178, section 3.1).

    With ``patches = python_ref.unfold(conv2d(x, in_weight), patch_size)`` of shape (B·P, N, D), each encoder layer is
    ``x += proj(MHA(LN1(x)));  x += fc2(SiLU(fc1(LN2(x))))``; the final LayerNorm, the fold, and
    ``silu(conv2d(…, out_weight, out_bias))`` follow. Pixel (2i+ph, 2j+pw) of a 2×2 patch attends to the pixels at the
    same place in all patches.

    A map whose sides are no multiples of the patch is resized up (bilinear, align_corners=False) and back down, as in
    the stock networks. Bilinear resizing is linear with weights that sum to 1, so it commutes with the 1×1
    convolutions: here it sits before the first, and behind the last and before its SiLU.

    Args:
        x: (B, C, H, W), floating point.
        weights: canonical or packed. Plain weights are packed on each call.
        num_heads: attention heads; divides D. The scale is (D / num_heads)^-0.5.
        patch_size: (height, width) of a patch.
        backend: "auto", "cuda", "triton", "torch" or "simt".

    Returns:
        (B, C_out, H, W) in ``x``'s dtype, channels_last in memory.

    Raises:
        TypeError: not a floating-point tensor, weights of another stage or dtype.
        ValueError: another number of axes or channels, a bad option, an unknown backend.
        RuntimeError: ``x`` requires grad while grad mode is on.
        BackendUnavailable: the named backend cannot serve.
    """
    _checks.check_map("x", x, "(B, C, H, W)")
    _checks.check_float("x", x)
    _checks.check_inference("x", x)
    _checks.check_positive("num_heads", num_heads)
    patch_height, patch_width = _checks.check_patch_size(patch_size)
    packed = _dispatch.prepare("transformer", x, weights, backend, num_heads)
    _checks.check_channels("x", x, packed.sizes[0])
    _checks.check_divides("num_heads", num_heads, "the transformer's width", packed.sizes[1])
    return _launch(
        x,
        list(packed.tensors),
        list(packed.sizes),
        packed.eps,
        num_heads,
        patch_height,
        patch_width,
        packed.backend,
    )


def _run(
    x: Tensor,
    tensors: list[Tensor],
    sizes: list[int],
    eps: float,
    num_heads: int,
    patch_height: int,
    patch_width: int,
    backend: str,
) -> Tensor:
    packed = Packed("transformer", backend, x.dtype, x.device, tuple(tensors), tuple(sizes), eps)
    module = _dispatch.stage_module(backend, "transformer")
    result: Tensor = module.run(_dispatch.nhwc(x), packed, num_heads=num_heads, patch_size=(patch_height, patch_width))
    return result


def _fake(
    x: Tensor,
    tensors: list[Tensor],
    sizes: list[int],
    eps: float,
    num_heads: int,
    patch_height: int,
    patch_width: int,
    backend: str,
) -> Tensor:
    return _dispatch.empty_nhwc(x, sizes[4], x.shape[2], x.shape[3], x.dtype)


_launch = _dispatch.register(
    "transformer",
    "(Tensor x, Tensor[] weights, int[] sizes, float eps, int num_heads, int patch_height, int patch_width, "
    "str backend) -> Tensor",
    _run,
    _fake,
)
