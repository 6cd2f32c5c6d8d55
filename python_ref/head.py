"""Head: 1×1 convolution → global average pool → linear classifier (arXiv 2110.02178, section 3.1 and table 4)."""

from __future__ import annotations

from torch import Tensor, nn

from .conv_bn_act import ConvBNAct

__all__ = ["FinalConv", "Head"]


class FinalConv(ConvBNAct):
    """``silu(BN(conv1×1(x)))``, the head's first half: (B, C_in, H, W) → (B, C_out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1)


class Head(nn.Module):
    """Mean over all pixels, then a linear layer, the head's second half: (B, C, H, W) → (B, num_classes).

    With ``num_classes=0`` there is no linear layer, and the pooled features (B, C) are the output.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        if num_classes < 0:
            raise ValueError(f"num_classes: expected 0 or more, got {num_classes}")
        self.fc: nn.Module = nn.Linear(in_channels, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x.mean(dim=(2, 3)))
        return y
