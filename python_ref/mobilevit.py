"""MobileViT block and network (arXiv 2110.02178, section 3.1, figure 1b and table 4)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from .conv3x3 import Conv3x3
from .conv_bn_act import ConvBNAct
from .head import FinalConv, Head
from .inverted_residual import InvertedResidual
from .stem import Stem
from .transformer import TransformerEncoder, as_pair, transformer_stage

__all__ = ["MobileViT", "MobileViTBlock"]


class MobileViTBlock(nn.Module):
    """Local and global representation of a map, (B, C, H, W) → (B, C, H, W), for any H and W.

    ::

        y = silu(BN(conv3×3(x)))              local: each pixel sees its 3 × 3 neighbourhood
        y = transformer_stage(y)              global: 1×1 to D, unfold, encoder, LayerNorm, fold, 1×1 back to C
        y = silu(BN(conv3×3(cat(x, y))))      fusion; left out with fusion=False

    A token attends to the pixels at its own position of every patch, and the local convolution has written each
    pixel's neighbourhood into them. So every output pixel depends on every input pixel as long as a patch is no
    wider than that neighbourhood.

    Args:
        in_channels: C.
        transformer_dim: D.
        depth: number of encoder layers.
        num_heads: a divisor of D.
        mlp_ratio: the MLP's hidden width over D.
        patch_size: h × w pixels; an int stands for a square.
        dilation: of the local convolution alone.
        fusion: whether the input joins the output in a last convolution.

    Raises:
        ValueError: where ``transformer_dim`` is no multiple of ``num_heads``, or ``patch_size`` is not positive.
    """

    def __init__(
        self,
        in_channels: int,
        transformer_dim: int,
        depth: int,
        num_heads: int = 4,
        mlp_ratio: float = 2,
        patch_size: int | tuple[int, int] = 2,
        dilation: int = 1,
        fusion: bool = True,
    ) -> None:
        super().__init__()
        self.patch_size = as_pair(patch_size)
        self.num_heads = num_heads
        self.dilation = dilation
        self.conv_kxk = Conv3x3(in_channels, in_channels, dilation=dilation)
        self.conv_1x1 = nn.Conv2d(in_channels, transformer_dim, kernel_size=1, bias=False)
        nn.init.kaiming_normal_(self.conv_1x1.weight, nonlinearity="linear")
        self.transformer = TransformerEncoder(transformer_dim, depth, num_heads, mlp_ratio)
        self.norm = nn.LayerNorm(transformer_dim)
        self.conv_proj = ConvBNAct(transformer_dim, in_channels, kernel_size=1)
        self.conv_fusion = Conv3x3(2 * in_channels, in_channels) if fusion else None

    def forward(self, x: Tensor) -> Tensor:
        local = self.conv_kxk(x)
        y = transformer_stage(local, self.conv_1x1, self.transformer, self.norm, self.conv_proj, self.patch_size)
        if self.conv_fusion is not None:
            y = self.conv_fusion(x, y)
        return y


@dataclass(frozen=True)
class _Widths:
    """What distinguishes the three networks of table 4."""

    layer_channels: tuple[int, int, int, int, int]
    expand_ratio: int
    transformer_dims: tuple[int, int, int]
    head_channels: int


_WIDTHS = {
    "xxs": _Widths((16, 24, 48, 64, 80), 2, (64, 80, 96), 320),
    "xs": _Widths((32, 48, 64, 80, 96), 4, (96, 120, 144), 384),
    "s": _Widths((32, 64, 96, 128, 160), 4, (144, 192, 240), 640),
}
_STEM_CHANNELS = 16
_TRANSFORMER_DEPTHS = (2, 4, 3)


class MobileViT(nn.Module):
    """The network of table 4: images (B, 3, H, W) → logits (B, num_classes), for any H and W.

    ::

        stem        3×3, stride 2                                            H/2
        layer 1     inverted residual                                        H/2
        layer 2     inverted residual, stride 2; two more                    H/4
        layer 3     inverted residual, stride 2; MobileViT block, L = 2      H/8
        layer 4     inverted residual, stride 2; MobileViT block, L = 4      H/16
        layer 5     inverted residual, stride 2; MobileViT block, L = 3      H/32
        head        1×1, global average pool, linear

    Any floating dtype: ``.double()``, ``.half()`` and so on. The published weights expect values in [0, 1]. The keys of
    ``state_dict`` are timm's, so weights go both ways by ``load_state_dict``.

    Args:
        name: "xxs", "xs" or "s", or the same behind "mobilevit_".
        num_classes: 0 leaves the classifier out: the output is the pooled features (B, 320, 384 or 640).

    Raises:
        ValueError: for another name, or a negative ``num_classes``.
    """

    def __init__(self, name: str, num_classes: int = 1000) -> None:
        super().__init__()
        widths = _WIDTHS.get(str(name).removeprefix("mobilevit_"))
        if widths is None:
            raise ValueError(f"name: expected one of {', '.join(_WIDTHS)}, or mobilevit_<one of these>, got {name!r}")
        channels = (_STEM_CHANNELS, *widths.layer_channels)

        self.stem = Stem(3, _STEM_CHANNELS)
        layers = []
        for i in range(5):
            c_in, c_out = channels[i], channels[i + 1]
            stride = 1 if i == 0 else 2
            blocks: list[nn.Module] = [InvertedResidual(c_in, c_out, stride, widths.expand_ratio)]
            if i == 1:
                blocks += [InvertedResidual(c_out, c_out, 1, widths.expand_ratio) for _ in range(2)]
            if i >= 2:
                blocks.append(MobileViTBlock(c_out, widths.transformer_dims[i - 2], _TRANSFORMER_DEPTHS[i - 2]))
            layers.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*layers)
        self.final_conv = FinalConv(channels[-1], widths.head_channels)
        self.head = Head(widths.head_channels, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """The map before pooling: (B, 3, H, W) → (B, head channels, ⌈H/32⌉, ⌈W/32⌉)."""
        y: Tensor = self.final_conv(self.stages(self.stem(x)))
        return y

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.forward_features(x))
        return y
