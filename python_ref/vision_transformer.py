"""Vision transformer in the size called DeiT-Tiny, MobileViT's point of comparison (arXiv 2010.11929, 2012.12877)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .transformer import TransformerEncoder

__all__ = ["PatchEmbedding", "VisionTransformer"]


class PatchEmbedding(nn.Module):
    """Each patch projected to one token: (B, 3, H, W) → (B, N, D), N = (H/patch)·(W/patch).

    The order of the pixels within a patch is lost in the projection, which is what MobileViT's ``unfold`` avoids.
    """

    def __init__(self, in_channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.proj(x)
        return y.flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """DeiT-Tiny by default: images (B, 3, 224, 224) → logits (B, 1000); 12 layers, D = 192, 3 heads, MLP 4·D, GELU.

    ::

        z = cat(class token, patch embedding(x)) + positional embedding      (B, 1 + N, D)
        z = LN(encoder(z))
        y = linear(z at the class token)                                     (B, num_classes)

    The keys of ``state_dict`` are those of timm's ``deit_tiny_patch16_224``.

    Args:
        image_size: height and width of the images, a multiple of ``patch_size``.
        patch_size: height and width of a patch.
        num_classes: number of logits.
        dim: D, a multiple of ``num_heads``.
        depth: number of encoder layers.
        num_heads: attention heads.
        mlp_ratio: the MLP's hidden width over D.

    Raises:
        ValueError: where ``image_size`` is no multiple of ``patch_size`` or ``dim`` none of ``num_heads``; on forward
            where the image is not image_size × image_size, since the positional embedding is learned for that size.
    """

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 16,
        num_classes: int = 1000,
        dim: int = 192,
        depth: int = 12,
        num_heads: int = 3,
        mlp_ratio: float = 4,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"image_size: expected a multiple of patch_size {patch_size}, got {image_size}")
        num_patches = (image_size // patch_size) ** 2
        self.image_size = image_size
        self.patch_embed = PatchEmbedding(3, dim, patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + num_patches, dim))
        self.blocks = TransformerEncoder(dim, depth, num_heads, mlp_ratio, activation=F.gelu, eps=1e-6)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != (3, self.image_size, self.image_size):
            raise ValueError(f"x: expected (B, 3, {self.image_size}, {self.image_size}), got {tuple(x.shape)}")
        z = self.patch_embed(x)
        z = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), z), dim=1) + self.pos_embed
        z = self.norm(self.blocks(z))
        y: Tensor = self.head(z[:, 0])
        return y
