"""Checks on single foreign modules: is this exactly the layer its class name promises, and nothing around it?

A live network is read by its structure, so whatever changes a layer's result without showing in its tensors has to be
found first: hooks, parametrisations, replaced methods, adapters, quantised layers. Foreign classes are recognised by
name and package over the method resolution order, so neither timm nor transformers is ever imported here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, TypeGuard, TypeVar

import torch.nn.functional as F
from torch import nn

__all__ = [
    "ConvUnit",
    "Unsupported",
    "check_batch_norm",
    "check_conv2d",
    "check_conv_unit",
    "check_inactive",
    "check_layer_norm",
    "check_linear",
    "check_methods",
    "check_plain",
    "child",
    "children",
    "computes_as",
    "expect_class",
    "foreign_class",
    "is_identity",
    "is_inactive",
    "is_linear",
    "is_silu",
    "is_torch_class",
    "join",
    "read_activation",
    "refusal",
]

M = TypeVar("M", bound=nn.Module)

_MERGE = "merge, remove or dequantise it first (for LoRA: `merge_and_unload()`)"


class Unsupported(ValueError):
    """A module that cannot be served: the message says which one, what about it, and what to do."""


def refusal(module: object, path: str, problem: str, remedy: str) -> Unsupported:
    """The exception for ``module`` at the dotted ``path``, "" for the module that the caller was given."""
    name = type(module).__name__
    return Unsupported(f"{f'{path} ({name})' if path else name}: {problem}; {remedy}")


def join(*names: str) -> str:
    """Dotted path of the names that are not empty."""
    return ".".join(name for name in names if name)


def check_plain(module: nn.Module, path: str = "", kept: Collection[nn.Module] = ()) -> None:
    """Checks that nothing is attached to ``module`` or to a module below it that reading its tensors would miss.

    Args:
        module: the root of the tree.
        path: its dotted path, for the message.
        kept: modules below it that stay in use as they are, and so may carry anything.

    Raises:
        Unsupported: naming the first module with a forward or backward hook or pre-hook (old-style weight_norm and
            pruning are forward pre-hooks), a parametrisation, or a ``forward`` replaced on the instance.
    """
    skipped = {id(below) for root in kept for below in root.modules()}
    for name, current in module.named_modules():
        if id(current) in skipped:
            continue
        where = join(path, name)
        if "parametrizations" in current._modules:
            names = ", ".join(current._modules["parametrizations"]._modules)
            raise refusal(
                current,
                where,
                f"parametrised {names} cannot be read",
                "call torch.nn.utils.parametrize.remove_parametrizations on it first",
            )
        for attribute, kind in _HOOKS.items():
            for hook in getattr(current, attribute).values():
                hook_name = getattr(hook, "__qualname__", type(hook).__qualname__)
                remedy = _HOOK_REMEDIES.get(hook_name, "remove it first")
                raise refusal(current, where, f"its {kind} {hook_name} would not be called", remedy)
        if "forward" in vars(current):
            raise refusal(
                current,
                where,
                "its forward was replaced on the instance",
                "delete that attribute first (for accelerate: `remove_hook_from_module`)",
            )


_HOOKS = {
    "_forward_pre_hooks": "forward pre-hook",
    "_forward_hooks": "forward hook",
    "_backward_pre_hooks": "backward pre-hook",
    "_backward_hooks": "backward hook",
}
_HOOK_REMEDIES = {
    "WeightNorm": "call torch.nn.utils.remove_weight_norm on it first",
    "SpectralNorm": "call torch.nn.utils.remove_spectral_norm on it first",
}


def foreign_class(module: nn.Module, name: str, package: str | None = None) -> type | None:
    """The base-most class outside torch called ``name`` that ``module`` is an instance of, or None.

    Args:
        module: any module.
        name: the class's ``__name__``.
        package: the top-level package it has to come from; None for any.
    """
    found = [
        cls
        for cls in type(module).__mro__
        if cls.__name__ == name and _package(cls) != "torch" and package in (None, _package(cls))
    ]
    return found[-1] if found else None


def _package(cls: type) -> str:
    return cls.__module__.split(".")[0]


def check_methods(module: nn.Module, path: str, cls: type, methods: Iterable[str] = ("forward",)) -> None:
    """Raises Unsupported where ``module`` does not compute with the ``methods`` of ``cls``."""
    for method in methods:
        if not computes_as(module, cls, (method,)):
            raise refusal(
                module, path, f"{method} differs from {cls.__name__}'s, so what it computes is unknown", _MERGE
            )


def computes_as(module: nn.Module, cls: type, methods: Iterable[str] = ("forward",)) -> bool:
    """Whether ``module`` computes with the ``methods`` of ``cls``: overridden neither in its class nor on it."""
    return all(
        method not in vars(module) and _implementation(type(module), method) is _implementation(cls, method)
        for method in ("__call__", *methods)
    )


def _implementation(cls: type, method: str) -> Any:
    function = getattr(cls, method, None)
    # transformers wraps the forward of every subclass of a layer anew, overridden or not, for gradient checkpointing.
    while getattr(getattr(function, "__code__", None), "co_name", "") == "forward_with_checkpointing":
        function = function.__wrapped__  # type: ignore[union-attr]
    return function


def expect_class(
    module: nn.Module,
    path: str,
    names: str | tuple[str, ...],
    package: str | None,
    methods: Iterable[str] = ("forward",),
) -> None:
    """Raises Unsupported unless ``module`` is one of the foreign classes ``names`` and computes as that one does."""
    for name in (names,) if isinstance(names, str) else names:
        cls = foreign_class(module, name, package)
        if cls is not None:
            check_methods(module, path, cls, methods)
            return
    expected = names if isinstance(names, str) else " or ".join(names)
    raise refusal(module, path, f"expected {f'{package} ' if package else ''}{expected}", _MERGE)


def child(module: nn.Module, name: str, path: str) -> nn.Module:
    """The submodule at the dotted ``name``; Unsupported where there is none."""
    current: Any = module
    for part in name.split("."):
        following = current._modules.get(part)
        if following is None:
            raise refusal(module, path, f"has no part called {name}", "pass an unmodified model")
        current = following
    return current  # type: ignore[no-any-return]


def children(module: nn.Module, path: str, container: type[nn.Module] = nn.Sequential) -> dict[str, nn.Module]:
    """The named children of a plain Sequential (or another ``container``), in order; Unsupported for any other."""
    if not is_torch_class(module, container):
        raise refusal(module, path, f"expected a plain {container.__name__}", _MERGE)
    return dict(module.named_children())


def is_torch_class(module: object, cls: type[M], methods: Iterable[str] = ("forward",)) -> TypeGuard[M]:
    """Whether ``module`` is a ``cls`` of torch, or a subclass that changes none of ``methods``."""
    return isinstance(module, cls) and computes_as(module, cls, methods)


def is_identity(module: object) -> bool:
    """Whether ``module`` is absent or a plain Identity."""
    return module is None or is_torch_class(module, nn.Identity)


def is_silu(activation: object) -> bool:
    """Whether ``activation`` computes x·σ(x): torch's function or module, or transformers' SiLUActivation."""
    if activation is F.silu or is_torch_class(activation, nn.SiLU):
        return True
    if not isinstance(activation, nn.Module):
        return False
    cls = foreign_class(activation, "SiLUActivation", "transformers")
    return cls is not None and computes_as(activation, cls)


def read_activation(activation: object, path: str) -> bool:
    """True for SiLU, False for none; Unsupported for any other, by name."""
    if is_identity(activation):
        return False
    if is_silu(activation):
        return True
    raise refusal(activation, path, "this activation is not supported", "only networks with SiLU are")


_INACTIVE = ("Identity", "DropPath", "DropBlock2d", "StochasticDepth")


def is_inactive(module: object) -> bool:
    """Whether ``module`` is absent or, as dropout, does nothing at inference."""
    if is_identity(module) or any(is_torch_class(module, cls) for cls in (nn.Dropout, nn.Dropout2d)):
        return True
    return _is_foreign(module, _INACTIVE)


def check_inactive(module: nn.Module, path: str, names: Iterable[str]) -> None:
    """Raises Unsupported unless each child called so is absent or, as dropout, does nothing at inference."""
    for name in names:
        part = getattr(module, name, None)
        if not is_inactive(part):
            raise refusal(part, join(path, name), "not a layer of the published networks", _MERGE)


def check_linear(module: nn.Module, path: str, foreign: tuple[str, ...] = ()) -> None:
    """Raises Unsupported unless ``module`` is a plain Linear of torch's, or one of the ``foreign`` classes."""
    if not is_linear(module, foreign):
        raise refusal(module, path, "expected a plain Linear", _MERGE)


def is_linear(module: object, foreign: tuple[str, ...] = ()) -> bool:
    """Whether ``module`` is a plain Linear of torch's, or one of the ``foreign`` classes in its channels-last mode."""
    if is_torch_class(module, nn.Linear):
        return True
    return _is_foreign(module, foreign) and getattr(module, "channel_first", False) is False


def _is_foreign(module: object, names: tuple[str, ...]) -> bool:
    """Whether ``module`` is one of the classes ``names``, from any package, and computes as that one does."""
    if not isinstance(module, nn.Module):
        return False
    cls = next(filter(None, (foreign_class(module, name) for name in names)), None)
    return cls is not None and computes_as(module, cls)


def check_layer_norm(module: nn.Module, path: str, dim: int, foreign: tuple[str, ...] = ()) -> None:
    """Raises Unsupported unless ``module`` is a LayerNorm over ``dim`` channels, torch's or one of ``foreign``."""
    if not is_torch_class(module, nn.LayerNorm) and not (
        isinstance(module, nn.LayerNorm) and _is_foreign(module, foreign)
    ):
        raise refusal(module, path, "expected a plain LayerNorm", _MERGE)
    assert isinstance(module, nn.LayerNorm)
    if tuple(module.normalized_shape) != (dim,):
        raise refusal(module, path, f"normalises {tuple(module.normalized_shape)}, expected ({dim},)", _PUBLISHED)


_PUBLISHED = "only the layer shapes of the published networks are served"


@dataclass(frozen=True)
class ConvUnit:
    """A convolution with what follows it in the same foreign module, class by class checked."""

    conv: nn.Conv2d
    path: str  # of `conv`
    batch_norm: bool
    activation: bool  # SiLU


def check_conv2d(module: nn.Module, path: str) -> nn.Conv2d:
    """``module`` itself; Unsupported unless it is a plain Conv2d with zero padding."""
    if not is_torch_class(module, nn.Conv2d, ("forward", "_conv_forward")):
        raise refusal(module, path, "expected a plain Conv2d", _MERGE)
    if module.padding_mode != "zeros":
        raise refusal(module, path, f"padding_mode {module.padding_mode!r} is not supported", _PUBLISHED)
    return module


def check_batch_norm(module: nn.Module, path: str, foreign: tuple[str, ...] = (), package: str | None = None) -> None:
    """Raises Unsupported unless ``module`` is an inference-mode BatchNorm with running statistics.

    Args:
        module: torch's BatchNorm2d or SyncBatchNorm, or one of the foreign classes.
        path: its dotted path.
        foreign: names of classes of ``package`` that compute the same, then an activation read by the caller.
        package: where those come from; None for any.
    """
    if any(foreign_class(module, name, package) for name in foreign):
        expect_class(module, path, foreign, package)
    elif not is_torch_class(module, nn.BatchNorm2d) and not is_torch_class(module, nn.SyncBatchNorm):
        raise refusal(module, path, "expected a plain BatchNorm2d", "other norms cannot be folded into a convolution")
    # A frozen BatchNorm has no such attribute: its statistics never move.
    tracked = getattr(module, "track_running_stats", True)
    if not tracked or module.running_mean is None or module.running_var is None:
        raise refusal(
            module,
            path,
            "track_running_stats=False: it normalises by each batch's own statistics",
            "only BatchNorm with running statistics can be folded into a convolution",
        )


def check_conv_unit(
    unit: ConvUnit,
    *,
    kernel_size: int,
    stride: tuple[int, ...] = (1,),
    dilated: bool = False,
    depthwise: bool = False,
    batch_norm: bool = True,
    activation: bool = True,
) -> None:
    """Raises Unsupported unless the unit's geometry is one the canonical description has.

    Args:
        unit: the convolution and what follows it.
        kernel_size: of the square kernel.
        stride: the strides allowed.
        dilated: whether a dilation other than 1 is allowed.
        depthwise: whether every channel has its own filter; otherwise the convolution is dense.
        batch_norm: whether BatchNorm has to follow; without one, a bias is refused too.
        activation: whether SiLU has to follow.
    """
    conv = unit.conv
    dilation = conv.dilation[0]
    problem = None
    if conv.kernel_size != (kernel_size, kernel_size):
        problem = f"kernel size {conv.kernel_size[0]}×{conv.kernel_size[1]}, expected {kernel_size}×{kernel_size}"
    elif conv.stride[0] != conv.stride[1] or conv.stride[0] not in stride:
        problem = f"stride {conv.stride}, expected {' or '.join(map(str, stride))}"
    elif conv.dilation != (dilation, dilation) or (dilation != 1 and not dilated):
        problem = f"dilation {conv.dilation}, expected {'the same on both axes' if dilated else '1'}"
    elif conv.padding != (dilation * (kernel_size // 2),) * 2:
        problem = f"padding {conv.padding}, expected {dilation * (kernel_size // 2)} on each side"
    elif depthwise and not conv.groups == conv.in_channels == conv.out_channels:
        problem = f"{conv.groups} groups for {conv.in_channels} → {conv.out_channels} channels, expected depthwise"
    elif not depthwise and conv.groups != 1:
        problem = f"{conv.groups} groups, expected 1"
    elif unit.batch_norm != batch_norm:
        problem = f"expected {'a' if batch_norm else 'no'} BatchNorm behind it"
    elif not batch_norm and conv.bias is not None:
        problem = "expected no bias"
    elif unit.activation != activation:
        problem = f"expected {'SiLU' if activation else 'no activation'} behind it"
    if problem is not None:
        raise refusal(conv, unit.path, problem, _PUBLISHED)
