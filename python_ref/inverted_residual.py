"""Inverted residual: MobileNetV2's block (arXiv 1801.04381; arXiv 2110.02178, section 3.1 and table 4, "MV2")."""

from __future__ import annotations

from torch import Tensor, nn

from .conv_bn_act import ConvBNAct

__all__ = ["InvertedResidual", "make_divisible"]


def make_divisible(channels: int, divisor: int = 8) -> int:
    """The multiple of ``divisor`` nearest to ``channels``, halves rounded up, and never below 90 % of ``channels``."""
    rounded = max(divisor, (channels + divisor // 2) // divisor * divisor)
    return rounded if 10 * rounded >= 9 * channels else rounded + divisor


class InvertedResidual(nn.Module):
    """1×1 expand → 3×3 depthwise → 1×1 project, on a hidden map wider than its input and output.

    ::

        h = silu(BN(conv1×1(x)))            (B, hidden, H, W)
        h = silu(BN(depthwise3×3(h)))       (B, hidden, H/stride, W/stride), rounded up
        y = BN(conv1×1(h))                  (B, C_out, H/stride, W/stride): a linear bottleneck, no activation
        y = y + x                           where stride is 1 and C_in = C_out

    Args:
        in_channels, out_channels: C_in and C_out.
        stride: of the depthwise convolution, 1 or 2.
        expand_ratio: hidden channels over C_in, before rounding to a multiple of 8.
        dilation: of the depthwise convolution; the padding is the same.

    Raises:
        ValueError: for another ``stride``.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, expand_ratio: float = 4, dilation: int = 1
    ) -> None:
        super().__init__()
        if stride not in (1, 2):
            raise ValueError(f"stride: expected 1 or 2, got {stride}")
        hidden_channels = make_divisible(round(in_channels * expand_ratio))
        self.conv1_1x1 = ConvBNAct(in_channels, hidden_channels, kernel_size=1)
        self.conv2_kxk = ConvBNAct(
            hidden_channels, hidden_channels, kernel_size=3, stride=stride, dilation=dilation, groups=hidden_channels
        )
        self.conv3_1x1 = ConvBNAct(hidden_channels, out_channels, kernel_size=1, activation=False)
        self.stride = stride
        self.dilation = dilation
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv3_1x1(self.conv2_kxk(self.conv1_1x1(x)))
        return x + y if self.residual else y
