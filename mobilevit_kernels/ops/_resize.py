"""Maps whose sides are no multiples of the patch, for the backends that resize with PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from mobilevit_kernels.ops import _dispatch

__all__ = ["on_whole_patches"]


def on_whole_patches(x: Tensor, patch_size: tuple[int, int], run: Callable[[Tensor, bool], Tensor]) -> Tensor:
    """Runs a transformer stage on a map of any size.

    Args:
        x: (B, C, H, W).
        patch_size: (height, width).
        run: the stage on a map whose sides are multiples of the patch, with or without its last SiLU.
    """
    size = tuple(x.shape[2:])
    whole = tuple(-(-side // patch) * patch for side, patch in zip(size, patch_size, strict=True))
    if whole == size:
        return run(x, True)
    resized = _dispatch.nhwc(F.interpolate(x, size=whole, mode="bilinear", align_corners=False))
    result = F.interpolate(run(resized, False), size=size, mode="bilinear", align_corners=False)
    return F.silu(_dispatch.nhwc(result), inplace=True)
