"""Head in CUDA (csrc/head.cuh): packing and calls."""

from __future__ import annotations

import torch
from torch import Tensor

from mobilevit_kernels import native
from mobilevit_kernels.canonical import HeadWeights
from mobilevit_kernels.native.fragments import deal_channels, pad_to, to_b_tiles
from mobilevit_kernels.native.launches import Launch, Slot, execute, map_slot, matrix_slot
from mobilevit_kernels.packed import Packed

__all__ = ["launches", "pack", "pack_classifier", "pack_convolution", "refusal", "run", "variant", "whole_classes"]


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def pack_convolution(weight: Tensor) -> Tensor:
    """B fragments [16 input channels][8-channel tile][lane][4] of a (hidden, C, 1, 1) weight, flat.

    Halved, as the kernel computes ``silu(x)`` from ``x / 2``; channels dealt as it stores them.
    """
    hidden_channels, in_channels = weight.shape[:2]
    padded = pad_to(0.5 * weight.flatten(1), _round_up(hidden_channels, 16), _round_up(in_channels, 16))
    return to_b_tiles(deal_channels(padded.t())).flatten()


def pack_classifier(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """B fragments [16 features][8-class tile][lane][4] of a (classes, hidden) weight, flat, and the bias.

    The kernel stores pairs: an odd number of classes gets one more, of zeros.
    """
    classes, hidden_channels = weight.shape
    padded = pad_to(weight, _round_up(classes, 8), _round_up(hidden_channels, 16))
    return to_b_tiles(padded.t()).flatten(), pad_to(bias, _round_up(classes, 2))


def refusal(backend: str, weights: HeadWeights, device: torch.device) -> str | None:
    """Why the kernels cannot serve these weights; None: they can."""
    hidden_channels, in_channels = weights.conv_weight.shape[:2]
    return native.multiples_of_eight(in_channels=in_channels, hidden_channels=hidden_channels)


def pack(weights: HeadWeights, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """The convolution's fragments and bias, then the classifier's where there is one; biases in float32."""
    conv_weight, conv_bias = weights.conv_weight.cpu().float(), weights.conv_bias.cpu().float()
    tensors = (pack_convolution(conv_weight).to(device, dtype), (0.5 * conv_bias).to(device))
    if weights.fc_weight is None:
        return tensors
    assert weights.fc_bias is not None
    fc_weight, fc_bias = pack_classifier(weights.fc_weight.cpu().float(), weights.fc_bias.cpu().float())
    return (*tensors, fc_weight.to(device, dtype), fc_bias.to(device))


def launches(x: Slot, packed: Packed, *, pool: bool) -> list[Launch]:
    """One launch or two; see :func:`mobilevit_kernels.ops.head`. Logits have an even number of columns."""
    weight, bias, *classifier = packed.tensors
    in_channels, hidden_channels, _ = packed.sizes
    batch, _, height, width = x.shape
    if pool:
        features = matrix_slot(batch, hidden_channels, x.dtype)
    else:
        features = map_slot(batch, hidden_channels, height, width, x.dtype)
    sizes = {
        "batch": batch,
        "height": height,
        "width": width,
        "in_channels": in_channels,
        "hidden_channels": hidden_channels,
        "pool": pool,
    }
    calls = [Launch("head_features", {"x": x, "weights": weight, "bias": bias}, features, sizes, x.dtype)]
    if pool and classifier:
        weight, bias = classifier
        columns = bias.numel()
        sizes = {"rows": batch, "in_features": hidden_channels, "out_features": columns}
        inputs: dict[str, Tensor | Slot] = {"x": features, "weights": weight, "bias": bias}
        logits = matrix_slot(batch, columns, x.dtype)
        calls.append(Launch("head_classifier", inputs, logits, sizes, x.dtype))
    return calls


def run(x: Tensor, packed: Packed, *, pool: bool) -> Tensor:
    """Launches one kernel or two."""
    slot = Slot.like(x)
    return whole_classes(execute(packed.backend, launches(slot, packed, pool=pool), {slot: native.aligned(x)}), packed)


def whole_classes(y: Tensor, packed: Packed) -> Tensor:
    """The head's output without the column that an odd number of classes is padded with."""
    classes = packed.sizes[2]
    return y[:, :classes].contiguous() if y.dim() == 2 and classes not in (0, y.shape[1]) else y


def variant(packed: Packed) -> str:
    """Two block sizes that give the same bits."""
    text = "1×1 + SiLU + pool in registers, an image a warp"
    return f"{text}; linear" if packed.sizes[2] else text
