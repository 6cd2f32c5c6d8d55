"""The fused stages as functions: logical NCHW in and out, NHWC (channels_last) in memory."""

from mobilevit_kernels.ops._dispatch import pack
from mobilevit_kernels.ops.conv3x3 import conv3x3
from mobilevit_kernels.ops.head import head
from mobilevit_kernels.ops.inverted_residual import inverted_residual
from mobilevit_kernels.ops.stem import stem
from mobilevit_kernels.ops.transformer import transformer
from mobilevit_kernels.ops.unfold_attention_fold import unfold_attention_fold

__all__ = ["conv3x3", "head", "inverted_residual", "pack", "stem", "transformer", "unfold_attention_fold"]
