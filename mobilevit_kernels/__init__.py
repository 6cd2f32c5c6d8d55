"""Fused kernels for MobileViT inference: drop-in modules, functional ops, conversion of stock models."""

from mobilevit_kernels import ops
from mobilevit_kernels.accuracy import Accuracy, accuracy
from mobilevit_kernels.convert import Unsupported
from mobilevit_kernels.models import InvertedResidual, MobileViT, MobileViTBlock, create_model
from mobilevit_kernels.ops import pack
from mobilevit_kernels.optimize import load, optimize, replace_blocks, report, restore
from mobilevit_kernels.registry import BackendUnavailable, Status, backends
from mobilevit_kernels.report import Report, Row

__version__ = "0.1.0"

__all__ = [
    "Accuracy",
    "BackendUnavailable",
    "InvertedResidual",
    "MobileViT",
    "MobileViTBlock",
    "Report",
    "Row",
    "Status",
    "Unsupported",
    "__version__",
    "accuracy",
    "backends",
    "create_model",
    "load",
    "ops",
    "optimize",
    "pack",
    "replace_blocks",
    "report",
    "restore",
]
