"""MobileViT in plain PyTorch, readable beside the paper (arXiv 2110.02178); depends on torch alone.

One file a stage (``stem``, ``conv3x3``, ``inverted_residual``, ``transformer``, ``head``), ``mobilevit`` for the block
and the network, ``vision_transformer`` for DeiT-Tiny. It is what every kernel is checked against, in float64.
"""

from .conv3x3 import Conv3x3
from .conv_bn_act import ConvBNAct
from .head import FinalConv, Head
from .inverted_residual import InvertedResidual
from .mobilevit import MobileViT, MobileViTBlock
from .random_stats import randomize_batch_norm, randomize_layer_norm, randomize_weights
from .stem import Stem
from .transformer import Attention, EncoderLayer, Mlp, TransformerEncoder, fold, transformer_stage, unfold
from .vision_transformer import VisionTransformer

__all__ = [
    "Attention",
    "Conv3x3",
    "ConvBNAct",
    "EncoderLayer",
    "FinalConv",
    "Head",
    "InvertedResidual",
    "Mlp",
    "MobileViT",
    "MobileViTBlock",
    "Stem",
    "TransformerEncoder",
    "VisionTransformer",
    "fold",
    "randomize_batch_norm",
    "randomize_layer_norm",
    "randomize_weights",
    "transformer_stage",
    "unfold",
]
