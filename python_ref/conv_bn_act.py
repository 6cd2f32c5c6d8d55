"""Convolution, BatchNorm and SiLU: the unit every convolutional part of MobileViT is made of."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ConvBNAct"]


class ConvBNAct(nn.Module):
    """``silu(BN(conv(x)))``, or ``BN(conv(x))`` with ``activation=False``.

    The convolution has no bias: BatchNorm's shift takes its place. The padding is ``dilation · (kernel_size − 1) / 2``
    zeros on each side, which keeps the size at stride 1: (B, C_in, H, W) → (B, C_out, ⌈H/stride⌉, ⌈W/stride⌉).
    Any floating dtype; the output has the input's. A fresh weight is drawn by Kaiming's rule, N(0, 2/fan_in): under
    PyTorch's default the signal shrinks in every layer, and an untrained network answers the same for all images.

    Args:
        in_channels, out_channels: C_in and C_out.
        kernel_size: odd.
        stride, dilation, groups: of the convolution.
        activation: whether SiLU (which the paper calls Swish) follows.

    Raises:
        ValueError: for an even ``kernel_size``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        activation: bool = True,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number, got {kernel_size}")
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size - 1) // 2,
            dilation=dilation,
            groups=groups,
            bias=False,
        )
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        self.bn = nn.BatchNorm2d(out_channels)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return F.silu(x) if self.activation else x
