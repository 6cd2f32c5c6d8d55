"""Stock models for the tests, with weights and BatchNorm statistics drawn at random."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

import python_ref

NAMES = ("mobilevit_xxs", "mobilevit_xs", "mobilevit_s")

TRANSFORMERS_SIZES: dict[str, dict[str, Any]] = {
    "mobilevit_xxs": {
        "hidden_sizes": [64, 80, 96],
        "neck_hidden_sizes": [16, 16, 24, 48, 64, 80, 320],
        "expand_ratio": 2.0,
    },
    "mobilevit_xs": {"hidden_sizes": [96, 120, 144], "neck_hidden_sizes": [16, 32, 48, 64, 80, 96, 384]},
    "mobilevit_s": {},
}


def timm_model(name: str, seed: int = 0, **kwargs: Any) -> nn.Module:
    """A timm model in eval mode; random weights from ``seed``."""
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, **kwargs).eval()
    python_ref.randomize_weights(model, seed)
    return model


def transformers_model(name: str, task: str = "ForImageClassification", seed: int = 0, **config: Any) -> nn.Module:
    """A transformers model in eval mode; random weights from ``seed``."""
    transformers = pytest.importorskip("transformers")
    sizes = {"num_labels": 1000, "image_size": 256, **TRANSFORMERS_SIZES[name], **config}
    model = getattr(transformers, f"MobileViT{task}")(transformers.MobileViTConfig(**sizes)).eval()
    python_ref.randomize_weights(model, seed)
    return model


@functools.cache
def stock_model(source: str, name: str) -> nn.Module:
    """A cached classifier of ``source``: "timm", "transformers" or "reference"; tests must not change it."""
    if source == "reference":
        model = python_ref.MobileViT(name).eval()
        python_ref.randomize_weights(model, 0)
        return model
    return {"timm": timm_model, "transformers": transformers_model}[source](name)


def logits(output: Any) -> torch.Tensor:
    """The tensor in a model's output."""
    return output if isinstance(output, torch.Tensor) else output.logits
