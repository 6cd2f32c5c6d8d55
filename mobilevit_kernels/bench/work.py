"""The least work that a stage or a network is: operations, bytes, special functions, and the time they take at best.

The counts are of the mathematics, not of any kernel. They leave out what costs nothing beside the rest (biases,
LayerNorm statistics, residual sums, pooling).

- A matrix product or convolution counts 2 operations a multiply-add.
- A stage reads its inputs and weights and writes its output once, each value at the width of the dtype.
- A SiLU is one special function (``h·tanh(h) + h`` with ``h = x/2``), so is the exponential of a softmax.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch

from mobilevit_kernels import canonical, verify
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


def stage_work(case: StageCase) -> Work:
    """Counts one stage on its input shape, batch and all."""
    batch, in_channels, height, width = case.x_shape
    pixels = batch * height * width
    weights = _weight_count(case.stage, case.sizes)
    if case.stage == "stem":
        out_channels, out_pixels = case.sizes[1], batch * -(-height // 2) * -(-width // 2)
        moved = in_channels * pixels + out_channels * out_pixels
        return Work(18 * in_channels * out_channels * out_pixels, moved, weights, out_channels * out_pixels, moved)
    if case.stage == "conv3x3":
        in_channels, out_channels = case.sizes
        moved = (in_channels + out_channels) * pixels
        concat = 2 * in_channels * pixels if "x2_channels" in case.options else 0
        flops = 18 * in_channels * out_channels * pixels
        return Work(flops, moved, weights, out_channels * pixels, moved + concat)
    if case.stage == "inverted_residual":
        in_channels, hidden, out_channels = case.sizes
        stride = case.options["stride"]
        out_pixels = batch * -(-height // stride) * -(-width // stride)
        flops = 2 * hidden * (in_channels * pixels + (9 + out_channels) * out_pixels)
        moved = in_channels * pixels + out_channels * out_pixels
        residual = in_channels * pixels if case.options["residual"] else 0
        unfused = moved + 2 * hidden * (pixels + out_pixels) + residual
        return Work(flops, moved, weights, hidden * (pixels + out_pixels), unfused)
    if case.stage == "transformer":
        return _transformer_work(case, weights)
    if case.stage == "unfold_attention_fold":
        dim = in_channels // 3
        tokens, scores = _attention_sizes(case)
        return Work(4 * pixels * tokens * dim, 4 * dim * pixels, 0, scores, 4 * dim * pixels + 8 * dim * pixels)
    hidden, classes = case.sizes[1:]
    flops = 2 * hidden * (in_channels * pixels + classes * batch)
    moved = in_channels * pixels + (classes or hidden) * batch
    unfused = moved + 2 * hidden * pixels + (2 * hidden * batch if classes else 0)
    return Work(flops, moved, weights, hidden * pixels, unfused)


def _attention_sizes(case: StageCase) -> tuple[int, int]:
    """Tokens of a sequence, and scores of all sequences and heads."""
    batch, _, height, width = case.x_shape
    patch_height, patch_width = case.options.get("patch_size", (2, 2))
    tokens = -(-height // patch_height) * -(-width // patch_width)
    return tokens, batch * patch_height * patch_width * case.options["num_heads"] * tokens**2


def _transformer_work(case: StageCase, weights: int) -> Work:
    in_channels, dim, mlp_dim, num_layers, out_channels = case.sizes
    batch, _, height, width = case.x_shape
    patch_height, patch_width = case.options["patch_size"]
    tokens, scores = _attention_sizes(case)
    rows = batch * patch_height * patch_width * tokens  # pixels of the map, rounded up to whole patches
    layer_flops = 2 * rows * (4 * dim**2 + 2 * dim * mlp_dim + 2 * tokens * dim)
    pixels = batch * height * width  # an odd map is resized behind the first 1×1 and before the last
    flops = 2 * pixels * dim * (in_channels + out_channels) + num_layers * layer_flops
    # A layer: two LayerNorms, QKV, attention, projection + residual, fc1, fc2 + residual.
    layer_values = rows * (4 * dim + 4 * dim + 4 * dim + 3 * dim + (dim + mlp_dim) + (mlp_dim + 2 * dim))
    around = rows * (
        in_channels + dim + 2 * dim + 2 * dim + 2 * dim + dim + out_channels
    )  # 1×1, unfold, norm, fold, 1×1
    return Work(
        flops,
        pixels * (in_channels + out_channels),
        weights,
        num_layers * (rows * mlp_dim + scores) + pixels * out_channels,
        num_layers * layer_values + around,
    )


@cache
def _weight_count(stage: str, sizes: tuple[int, ...]) -> int:
    if not sizes:  # attention alone has none
        return 0
    weights = verify.random_weights(stage, sizes, torch.Generator().manual_seed(0))
    return sum(tensor.numel() for _, tensor in canonical.named_tensors(weights))


def network_work(model: str, batch: int = 1, height: int = 256, width: int = 256) -> Work:
    """Counts a whole network.

    Blocks read their input and write their output once. Inside a MobileViT block one map passes through memory, between
    the transformer and the fusion convolution, which needs its neighbouring pixels: the block is two fused parts.
    """
    total = Work(0, 0, 0, 0, 0)
    for _, path, case in verify.network_cases((model,), batch=batch, height=height, width=width):
        work = stage_work(case)
        channels, (_, _, h, w) = case.sizes[-1], case.x_shape
        stays_on_chip = {"local": channels, "transformer": channels, "fusion": channels}.get(path.rpartition(".")[2], 0)
        # The local convolution's output, the transformer's input, and the block's input, read before by the former.
        total += replace(work, activations=work.activations - batch * h * w * stays_on_chip)
    return total
