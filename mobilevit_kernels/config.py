"""The three published architectures as data (arXiv 2110.02178, table 4)."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CONFIGS", "MobileViTConfig", "get_config"]


@dataclass(frozen=True)
class MobileViTConfig:
    """Widths and depths of one MobileViT.

    Attributes:
        stem_channels: output channels of the stem.
        layer_channels: output channels of layers 1 … 5.
        expand_ratio: hidden over input channels in the inverted residuals.
        transformer_dims: width D of the transformers in layers 3, 4, 5.
        transformer_depths: number of encoder layers in layers 3, 4, 5.
        head_channels: channels of the head's 1×1 convolution.
        num_heads: attention heads.
        mlp_ratio: hidden over D in the encoder's MLP.
        patch_size: (height, width) of a patch in pixels.
    """

    stem_channels: int
    layer_channels: tuple[int, int, int, int, int]
    expand_ratio: int
    transformer_dims: tuple[int, int, int]
    head_channels: int
    transformer_depths: tuple[int, int, int] = (2, 4, 3)
    num_heads: int = 4
    mlp_ratio: int = 2
    patch_size: tuple[int, int] = (2, 2)

    @property
    def inverted_residuals_per_layer(self) -> tuple[int, int, int, int, int]:
        """How many inverted residuals open each layer: layers 3–5 have one, before their MobileViT block."""
        return (1, 3, 1, 1, 1)

    @property
    def layer_strides(self) -> tuple[int, int, int, int, int]:
        """Stride of the first inverted residual of each layer."""
        return (1, 2, 2, 2, 2)


CONFIGS: dict[str, MobileViTConfig] = {
    "mobilevit_xxs": MobileViTConfig(16, (16, 24, 48, 64, 80), 2, (64, 80, 96), 320),
    "mobilevit_xs": MobileViTConfig(16, (32, 48, 64, 80, 96), 4, (96, 120, 144), 384),
    "mobilevit_s": MobileViTConfig(16, (32, 64, 96, 128, 160), 4, (144, 192, 240), 640),
}


def get_config(name: str) -> MobileViTConfig:
    """The configuration called ``name``.

    Raises:
        ValueError: for a name that is not one of the three, with the three listed.
    """
    if not isinstance(name, str) or name not in CONFIGS:
        hint = ""
        if isinstance(name, str) and ("mobilevitv2" in name or "mobilevitv3" in name):
            hint = "; MobileViTv2 and MobileViTv3 are not supported"
        raise ValueError(f"name: expected one of {', '.join(CONFIGS)}, got {name!r}{hint}")
    return CONFIGS[name]
