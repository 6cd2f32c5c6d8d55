"""Rounding weights to 16 bits such that the errors of an output channel's weights cancel.

Rounded one by one, the weights of an output channel err by a little more or less than nothing in the sum, and that sum
meets the mean of the inputs, which behind a SiLU is not zero: an error that is the same for every pixel and does not
average out. Here the few weights that lie closest to the middle between two 16-bit numbers go to the other one, as long
as the square of a channel's summed error falls by more than the sum of its squared errors rises.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from mobilevit_kernels.canonical import StageWeights, TransformerWeights

__all__ = ["round_rows", "round_weights"]

# What the square of a row's summed error counts beside the sum of its squared errors.
SUM_WEIGHT = 1.0

W = TypeVar("W", bound=StageWeights)


def round_rows(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounds a weight so that the errors of each row add up to next to nothing.

    Every value becomes one of its two neighbours in ``dtype``. Of those that would make the sum smaller, the cheapest
    go to the farther neighbour: the least added squared error for each unit of the sum.

    Args:
        weight: (rows, …), float32; a row is an output channel.
        dtype: float16 or bfloat16.

    Returns:
        The rounded values in float32, of the same shape. A row that holds, or rounds to, a value that is not finite
        is rounded one by one.
    """
    # On the CPU: which of two equal prices topk takes, and in which order sums are added up, is a matter of the device.
    exact = weight.flatten(1).cpu().double()
    nearest = exact.to(dtype)
    error = nearest.double() - exact
    # The neighbour on the other side of the exact value: one step in the magnitude's bits.
    step = torch.where((error > 0) == (nearest > 0), -1, 1).to(torch.int16)
    other = torch.where((error == 0) | (nearest == 0), nearest, (nearest.view(torch.int16) + step).view(dtype))
    change = other.double() - nearest.double()
    total = error.sum(1, keepdim=True)
    helps = change * total < 0
    cost = (error + change).square() - error.square()  # what it adds to the sum of squares
    # The sum errs by about √n / 4 spacings, and each that goes over mends one: a few √n candidates are enough.
    candidates = min(exact.shape[1], 8 + 4 * int(exact.shape[1] ** 0.5))
    prices = torch.where(helps, cost / change.abs(), torch.inf).float()
    places = prices.topk(candidates, dim=1, largest=False).indices
    gains, costs = (torch.where(helps, value, 0.0).gather(1, places).cumsum(1) for value in (change, cost))
    errors = torch.cat([SUM_WEIGHT * total.square(), SUM_WEIGHT * (total + gains).square() + costs], 1)
    count = errors.nan_to_num(torch.inf).argmin(1, keepdim=True)  # how many of them make the error least
    first = torch.arange(candidates, device=count.device) < count
    taken = torch.zeros_like(helps).scatter_(1, places, first) & helps & total.isfinite()
    return torch.where(taken, other, nearest).to(weight.device, torch.float32).reshape(weight.shape)


def round_weights(weights: W, dtype: torch.dtype) -> W:
    """A stage's matrices and kernels rounded by :func:`round_rows`, where ``dtype`` has 16 bits.

    Of a transformer only those that no LayerNorm stands before: their inputs have a mean, and no backend folds anything
    into them before it rounds.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return weights

    def rounded(part: Any, names: Iterable[str]) -> Any:
        tensors = {name: getattr(part, name) for name in names}
        return dataclasses.replace(part, **{n: round_rows(t, dtype) for n, t in tensors.items() if t is not None})

    if isinstance(weights, TransformerWeights):
        layers = tuple(rounded(layer, ("proj_weight", "fc2_weight")) for layer in weights.layers)
        whole: W = dataclasses.replace(rounded(weights, ("in_weight",)), layers=layers)
        return whole
    names = [field.name for field in dataclasses.fields(weights) if field.name.endswith("weight")]
    result: W = rounded(weights, names)
    return result
