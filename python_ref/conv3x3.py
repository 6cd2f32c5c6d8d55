"""Dense 3×3 convolution: the local half of a MobileViT block, and its fusion (arXiv 2110.02178, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from .conv_bn_act import ConvBNAct

__all__ = ["Conv3x3"]


class Conv3x3(ConvBNAct):
    """``silu(BN(conv3×3(x)))`` at stride 1, or ``silu(BN(conv3×3(cat(x, x2))))`` on two inputs.

    Shapes: x (B, C_1, H, W), x2 (B, C_2, H, W) or None → (B, C_out, H, W), where ``in_channels`` counts both inputs.
    As the local convolution it takes one input, C → C; as the fusion it takes the block's input first and the
    transformer's output second, 2C → C.

    Args:
        in_channels: C_1 + C_2.
        out_channels: C_out.
        dilation: distance between the taps; the padding is the same.
    """

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, dilation=dilation)

    def forward(self, x: Tensor, x2: Tensor | None = None) -> Tensor:
        return super().forward(x if x2 is None else torch.cat((x, x2), dim=1))
