"""Random parameters for tests.

A fresh network's normalisation layers hold 0 and 1, which hides an error in their handling; its weights, in most code
bases, let the signal die out on the way, so that its output hardly depends on the image and hides any error in front.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["randomize_batch_norm", "randomize_layer_norm", "randomize_weights"]

M = TypeVar("M", bound=nn.Module)


def _draw_normal(target: Tensor | None, std: float, generator: torch.Generator) -> None:
    if target is not None:
        target.copy_(torch.randn(target.shape, generator=generator, dtype=torch.float64) * std)


def _draw_uniform(target: Tensor | None, low: float, high: float, generator: torch.Generator) -> None:
    if target is not None:
        target.copy_(torch.rand(target.shape, generator=generator, dtype=torch.float64) * (high - low) + low)


@torch.no_grad()
def randomize_batch_norm(model: M, seed: int) -> M:
    """Draws the statistics and the affine part of every BatchNorm in ``model``, in place, and returns ``model``.

    running_mean ~ N(0, 0.2²), running_var ~ U(0.5, 2), weight ~ U(0.6, 1.4), bias ~ N(0, 0.2²). Layers are visited
    in the order of ``model.modules()``; a seed gives the same values, rounded, in any dtype and on any device. What a
    layer does not have (``affine=False``, ``track_running_stats=False``) is passed over.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            _draw_normal(module.running_mean, 0.2, generator)
            _draw_uniform(module.running_var, 0.5, 2.0, generator)
            _draw_uniform(module.weight, 0.6, 1.4, generator)
            _draw_normal(module.bias, 0.2, generator)
    return model


@torch.no_grad()
def randomize_layer_norm(model: M, seed: int) -> M:
    """Draws weight ~ U(0.6, 1.4) and bias ~ N(0, 0.2²) of every LayerNorm in ``model``, in place; returns ``model``."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            _draw_uniform(module.weight, 0.6, 1.4, generator)
            _draw_normal(module.bias, 0.2, generator)
    return model


@torch.no_grad()
def randomize_weights(model: M, seed: int) -> M:
    """Draws every parameter of the usual layers of ``model``, of any code base, in place, and returns ``model``.

    Conv2d weight ~ N(0, 2/fan_in), Linear weight ~ N(0, 1/fan_in), biases ~ N(0, 0.2²), BatchNorm and LayerNorm as in
    ``randomize_batch_norm`` and ``randomize_layer_norm``. Values keep a magnitude near 1 through all of MobileViT, and
    the logits of different images differ by several percent.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            gain = 2 if isinstance(module, nn.Conv2d) else 1
            _draw_normal(module.weight, math.sqrt(gain / module.weight[0].numel()), generator)
            _draw_normal(module.bias, 0.2, generator)
    randomize_batch_norm(model, seed + 1)
    return randomize_layer_norm(model, seed + 2)
