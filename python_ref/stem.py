"""Stem: the 3×3 convolution with stride 2 that opens the network (arXiv 2110.02178, section 3.1 and table 4)."""

from __future__ import annotations

from .conv_bn_act import ConvBNAct

__all__ = ["Stem"]


class Stem(ConvBNAct):
    """``silu(BN(conv3×3, stride 2))``: (B, C_in, H, W) → (B, C_out, ⌈H/2⌉, ⌈W/2⌉), padding 1.

    Args:
        in_channels: 3 for an image.
        out_channels: 16 in all three networks.
    """

    def __init__(self, in_channels: int = 3, out_channels: int = 16) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, stride=2)
