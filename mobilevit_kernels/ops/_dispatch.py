"""From a checked call to a backend's launcher: packing, the registered operators, and the eager shortcut around them.

Every stage is registered as ``torch.ops.mobilevit_kernels.<stage>`` with a functional schema and a fake, so that
torch.compile and torch.export keep it as one node. In eager mode the public function calls the backend directly, which
saves the operator's dispatch of several µs a call. The ``torch`` backend stays transparent under torch.compile:
inductor fuses plain PyTorch better than it fuses around an opaque node.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mobilevit_kernels import machine, registry
from mobilevit_kernels.canonical import (
    Conv3x3Weights,
    HeadWeights,
    InvertedResidualWeights,
    StageWeights,
    StemWeights,
    TransformerWeights,
    named_tensors,
)
from mobilevit_kernels.ops._checks import FLOAT_DTYPES, check_divides, check_positive
from mobilevit_kernels.ops._weights import check_weights
from mobilevit_kernels.packed import Packed
from mobilevit_kernels.rounding import round_weights

__all__ = ["STAGE_OF", "empty_nhwc", "nhwc", "pack", "prepare", "register", "stage_module"]

STAGE_OF: dict[type, str] = {
    StemWeights: "stem",
    Conv3x3Weights: "conv3x3",
    InvertedResidualWeights: "inverted_residual",
    TransformerWeights: "transformer",
    HeadWeights: "head",
}

_FROM_STOCK = {
    "stem": "MobileViT.from_module(model).spec.stem",
    "conv3x3": "MobileViTBlock.from_module(block).spec.local, or .fusion",
    "inverted_residual": "InvertedResidual.from_module(block).spec.weights",
    "transformer": "MobileViTBlock.from_module(block).spec.transformer",
    "head": "MobileViT.from_module(model).spec.head",
}

_LIBRARY = torch.library.Library("mobilevit_kernels", "FRAGMENT")


def sizes_of(weights: StageWeights) -> tuple[int, ...]:
    """The ``Packed.sizes`` of canonical weights."""
    if isinstance(weights, StemWeights | Conv3x3Weights):
        return (weights.weight.shape[1], weights.weight.shape[0])
    if isinstance(weights, InvertedResidualWeights):
        hidden_channels, in_channels = weights.expand_weight.shape[:2]
        return (in_channels, hidden_channels, weights.project_weight.shape[0])
    if isinstance(weights, TransformerWeights):
        dim, in_channels = weights.in_weight.shape[:2]
        mlp_dim = weights.layers[0].fc1_weight.shape[0] if weights.layers else 0
        return (in_channels, dim, mlp_dim, len(weights.layers), weights.out_weight.shape[0])
    hidden_channels, in_channels = weights.conv_weight.shape[:2]
    return (in_channels, hidden_channels, 0 if weights.fc_weight is None else weights.fc_weight.shape[0])


def pack(
    weights: StageWeights,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    backend: str = "auto",
    *,
    num_heads: int | None = None,
) -> Packed:
    """Packs the canonical weights of one stage for a backend, once, so that calls need not.

    Args:
        weights: a canonical dataclass of :mod:`mobilevit_kernels.canonical`.
        dtype: the compute dtype; None: float16 on a GPU, float32 elsewhere.
        device: where the packed weights live; None: where ``weights`` are.
        backend: "auto", "cuda", "triton", "torch" or "simt".
        num_heads: of a transformer stage, where it is known. The CUDA kernels' weights are packed for a number of
            heads; None: for 4, and a call with another number packs anew each time.

    Returns:
        What the ops of :mod:`mobilevit_kernels.ops` take in place of ``weights``.

    Raises:
        TypeError: ``weights`` is not a canonical dataclass of floating-point tensors.
        ValueError: a tensor's shape does not fit the others'; unknown backend or dtype; ``num_heads`` does not divide
            the width.
        BackendUnavailable: the backend cannot serve this stage here, with the reason.
    """
    if type(weights) not in STAGE_OF:
        expected = ", ".join(cls.__name__ for cls in STAGE_OF)
        raise TypeError(f"weights: expected one of {expected}, got {type(weights).__name__}")
    check_weights(weights)
    if isinstance(weights, HeadWeights) and weights.fc_weight is not None and weights.fc_bias is None:
        weights = replace(weights, fc_bias=weights.fc_weight.new_zeros(weights.fc_weight.shape[0]))
    stage = STAGE_OF[type(weights)]
    device = next(tensor for _, tensor in named_tensors(weights)).device if device is None else machine.indexed(device)
    if dtype is None:
        dtype = torch.float16 if device.type == "cuda" else torch.float32
    if dtype not in FLOAT_DTYPES:
        raise ValueError(f"dtype: expected torch.float16, bfloat16, float32 or float64, got {dtype!r}")
    if num_heads is not None and isinstance(weights, TransformerWeights):
        check_positive("num_heads", num_heads)
        check_divides("num_heads", num_heads, "the transformer's width", weights.in_weight.shape[0])
    choice = registry.choose(backend, stage, weights, dtype, device, num_heads)
    with torch.no_grad():
        options = {"num_heads": num_heads} if stage == "transformer" and choice.backend in ("cuda", "simt") else {}
        tensors = stage_module(choice.backend, stage).pack(round_weights(weights, dtype), dtype, device, **options)
    eps = weights.eps if isinstance(weights, TransformerWeights) else 1e-5
    return Packed(stage, choice.backend, dtype, device, tuple(tensors), sizes_of(weights), eps)


def prepare(
    stage: str, x: Tensor, weights: StageWeights | Packed, backend: str, num_heads: int | None = None
) -> Packed:
    """The packed weights of a call: ``weights`` itself where it is packed, else packed now in ``x``'s dtype.

    Raises:
        TypeError, ValueError: weights of another stage, backend, device or dtype than the call's.
    """
    registry.check_name(backend)
    if not isinstance(weights, Packed):
        if STAGE_OF.get(type(weights)) != stage:
            expected = next(cls.__name__ for cls, name in STAGE_OF.items() if name == stage)
            raise TypeError(
                f"weights: expected {expected} or its packed form, got {type(weights).__name__}; those of a stock "
                f"module: {_FROM_STOCK[stage]}"
            )
        dtype = x.dtype if x.is_floating_point() else None
        return pack(weights, dtype, x.device, backend, num_heads=num_heads)
    if weights.stage != stage:
        raise TypeError(f"weights: expected packed weights of {stage}, got those of {weights.stage}")
    if backend not in ("auto", weights.backend):
        raise ValueError(f"backend: expected 'auto' or {weights.backend!r}, as the weights are packed, got {backend!r}")
    if weights.device != x.device:
        raise ValueError(f"x: expected a tensor on {weights.device}, as the weights are, got one on {x.device}")
    if stage != "stem" and x.dtype != weights.dtype:  # the stem takes images as they come
        raise TypeError(f"x: expected {weights.dtype}, as the weights are packed, got {x.dtype}")
    return weights


def nhwc(x: Tensor) -> Tensor:
    """``x`` with NHWC memory: itself where it has it already."""
    return x.contiguous(memory_format=torch.channels_last)


def empty_nhwc(like: Tensor, channels: int, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """An uninitialised (B, channels, height, width) tensor, NHWC in memory."""
    return torch.empty(
        (like.shape[0], channels, height, width),
        dtype=dtype,
        device=like.device,
        memory_format=torch.channels_last,
    )


def register(stage: str, schema: str, run: Callable[..., Tensor], fake: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Registers an op and returns the function that its public front calls, with the schema's arguments in order.

    Args:
        stage: the op's name.
        schema: its argument list and return type; the first argument is the input, the last the backend's name.
        run: computes the result on that backend.
        fake: an uninitialised tensor of the result's shape, dtype and memory layout.
    """
    _LIBRARY.define(f"{stage}{schema}", tags=(torch.Tag.pt2_compliant_tag,))

    def run_any_batch(x: Tensor, *args: Any) -> Tensor:
        if x.shape[0] == 0:
            return fake(x, *args)
        if torch.is_autocast_enabled(x.device.type):  # the compute dtype is the packed weights', not autocast's
            with torch.autocast(x.device.type, enabled=False):
                return run(x, *args)
        return run(x, *args)

    _LIBRARY.impl(stage, run_any_batch, "CPU")
    _LIBRARY.impl(stage, run_any_batch, "CUDA")
    torch.library.register_fake(f"mobilevit_kernels::{stage}", fake)
    operator = getattr(torch.ops.mobilevit_kernels, stage)

    def launch(*args: Any) -> Tensor:
        as_node = torch.compiler.is_compiling() and args[-1] != "torch"
        result: Tensor = operator(*args) if as_node else run_any_batch(*args)
        return result

    return launch


_STAGE_MODULES: dict[tuple[str, str], ModuleType] = {}


def stage_module(backend: str, stage: str) -> ModuleType:
    """A backend's module of one stage; a plain dict look-up after the first time, which torch.compile can trace."""
    module = _STAGE_MODULES.get((backend, stage))
    if module is None:
        module = _STAGE_MODULES[backend, stage] = registry.load(backend).stage_module(stage)
    return module
