"""Packed weights: the canonical weights of one stage in the form one backend wants, for one device and dtype."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Packed"]


@dataclass(frozen=True, eq=False)
class Packed:
    """Weights of one stage, ready to launch; made by :func:`mobilevit_kernels.pack`, never saved.

    Attributes:
        stage: "stem", "conv3x3", "inverted_residual", "transformer" or "head".
        backend: the backend whose layout this is.
        dtype: the compute dtype; activations enter and leave the stage in it.
        device: where the tensors are.
        tensors: the packed tensors, in an order that only the backend knows.
        sizes: what the tensors' shapes no longer tell, the same for every backend:

            ==================  ===========================================================
            stem                (in_channels, out_channels)
            conv3x3             (in_channels, out_channels)
            inverted_residual   (in_channels, hidden_channels, out_channels)
            transformer         (in_channels, dim, mlp_dim, num_layers, out_channels)
            head                (in_channels, hidden_channels, num_classes), 0: no classifier
            ==================  ===========================================================
        eps: of the LayerNorms of a transformer stage; unused elsewhere.
    """

    stage: str
    backend: str
    dtype: torch.dtype
    device: torch.device
    tensors: tuple[Tensor, ...]
    sizes: tuple[int, ...]
    eps: float = 1e-5
