"""Inputs for the tests of the CUDA kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from mobilevit_kernels.canonical import InvertedResidualWeights


def stage_input(
    in_channels: int,
    hidden_channels: int,
    out_channels: int,
    height: int,
    width: int,
    dtype: torch.dtype,
    batch: int = 1,
    seed: int = 0,
) -> tuple[Tensor, InvertedResidualWeights]:
    """A random map and random weights of about unit gain."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator) * std

    weights = InvertedResidualWeights(
        normal(hidden_channels, in_channels, 1, 1, std=in_channels**-0.5),
        normal(hidden_channels, std=0.2),
        normal(hidden_channels, 1, 3, 3, std=1 / 3),
        normal(hidden_channels, std=0.2),
        normal(out_channels, hidden_channels, 1, 1, std=hidden_channels**-0.5),
        normal(out_channels, std=0.2),
    )
    return normal(batch, in_channels, height, width).to(dtype), weights
