"""The least work that a stage or a network is: operations, bytes, special functions, and the time they take at best.

The counts are of the mathematics, not of any kernel. They leave out what costs nothing beside the rest (biases,
LayerNorm statistics, residual sums, pooling).

- A matrix product or convolution counts 2 operations a multiply-add.
- A stage reads its inputs and weights and writes its output once, each value at the width of the dtype.
- A SiLU is one special function (``h·tanh(h) + h`` with ``h = x/2``), so is the exponential of a softmax.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from mobilevit_kernels import verify
from mobilevit_kernels.bench.ceilings import Ceilings
from mobilevit_kernels.verify import StageCase

__all__ = ["Work", "network_work", "stage_work"]


@dataclass(frozen=True)
class Work:
    """What a computation needs at least.

    Attributes:
        flops: 2 × multiply-adds.
        activations: values of the inputs and the output, those that must pass through device memory.
        weights: values of the weights.
        special: SiLUs and exponentials.
        unfused: values of activations that pass where every op (a convolution or matrix product with its activation,
            a normalisation, a softmax, a sum) reads its inputs and writes its output. For comparison only.
    """

    flops: int
    activations: int
    weights: int
    special: int
    unfused: int

    def __add__(self, other: Work) -> Work:
        return Work(
            self.flops + other.flops,
            self.activations + other.activations,
            self.weights + other.weights,
            self.special + other.special,
            self.unfused + other.unfused,
        )

    def bytes(self, dtype: torch.dtype) -> int:
        """Bytes of activations and weights."""
        return (self.activations + self.weights) * dtype.itemsize

    def times_ms(self, ceilings: Ceilings, dtype: torch.dtype) -> dict[str, float | None]:
        """Milliseconds at each ceiling: ``matrix``, ``bytes``, ``special``; None where the ceiling was not measured."""
        at = {
            "matrix": (self.flops, ceilings.matrix_flops.get(str(dtype).removeprefix("torch."))),
            "bytes": (self.bytes(dtype), ceilings.bandwidth),
            "special": (self.special, ceilings.special),
        }
        return {name: amount / rate * 1e3 if rate else None for name, (amount, rate) in at.items()}

    def floor_ms(self, ceilings: Ceilings, dtype: torch.dtype) -> float | None:
        """The physical limit: the largest of :meth:`times_ms`; None where a ceiling was not measured."""
        times = self.times_ms(ceilings, dtype).values()
        known = [time for time in times if time is not None]
        return max(known) if len(known) == len(times) else None
