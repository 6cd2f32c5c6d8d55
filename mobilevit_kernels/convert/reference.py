"""python_ref's MobileViT: this project's own readable implementation. Its state dict has timm's keys."""

from __future__ import annotations

from torch import nn

from mobilevit_kernels.canonical import InvertedResidualSpec, MobileViTBlockSpec, NetworkSpec
from mobilevit_kernels.convert import _live
from mobilevit_kernels.convert._leaf import (
    ConvUnit,
    check_batch_norm,
    check_conv2d,
    check_linear,
    check_plain,
    child,
    children,
    expect_class,
    foreign_class,
    is_identity,
    is_silu,
    join,
    refusal,
)
from mobilevit_kernels.convert._live import BlockSpec, Source
from mobilevit_kernels.convert.timm import NAMING

__all__ = ["NAMING", "read_block", "read_network"]

_PACKAGE = "python_ref"
_UNMODIFIED = "pass an unmodified model"


def read_network(model: nn.Module) -> Source | None:
    """Reads python_ref.MobileViT; None for another model."""
    if not foreign_class(model, "MobileViT", _PACKAGE):
        return None
    expect_class(model, "", "MobileViT", _PACKAGE, ("forward", "forward_features"))
    check_plain(model)
    expect_class(child(model, "head", ""), "head", "Head", _PACKAGE)
    fc = child(model, "head.fc", "")
    has_classifier = not is_identity(fc)
    if has_classifier:
        check_linear(fc, "head.fc")
    layers = children(child(model, "stages", ""), "stages")
    network = NetworkSpec(
        stem=_live.read_stem(child(model, "stem", ""), "stem", NAMING, _conv_unit(model, "stem", "")),
        layers=tuple(
            _live.read_layer(layer, join("stages", name), read_block, _UNMODIFIED) for name, layer in layers.items()
        ),
        head=_live.read_head(
            model,
            NAMING,
            "final_conv",
            _conv_unit(model, "final_conv", ""),
            "head.fc" if has_classifier else None,
            int(fc.out_features) if has_classifier else 0,  # type: ignore[arg-type]
        ),
    )
    return Source("reference", network, "RGB", head_is_standard=True)


def read_block(module: nn.Module, path: str = "") -> BlockSpec | None:
    """Reads python_ref.InvertedResidual or python_ref.MobileViTBlock; None for anything else."""
    if foreign_class(module, "InvertedResidual", _PACKAGE):
        return _read_inverted_residual(module, path)
    if foreign_class(module, "MobileViTBlock", _PACKAGE):
        return _read_mobilevit_block(module, path)
    return None


def _read_inverted_residual(module: nn.Module, path: str) -> InvertedResidualSpec:
    expect_class(module, path, "InvertedResidual", _PACKAGE)
    check_plain(module, path)
    expand, depthwise, project = (_conv_unit(module, name, path) for name in ("conv1_1x1", "conv2_kxk", "conv3_1x1"))
    return _live.read_inverted_residual(
        module, path, NAMING, (expand, depthwise, project), residual=bool(module.residual)
    )


def _read_mobilevit_block(module: nn.Module, path: str) -> MobileViTBlockSpec:
    expect_class(module, path, "MobileViTBlock", _PACKAGE)
    check_plain(module, path)
    in_path, container = join(path, "conv_1x1"), join(path, "transformer")
    in_projection = ConvUnit(check_conv2d(child(module, "conv_1x1", path), in_path), in_path, False, False)
    layers = children(child(module, "transformer", path), container)
    height, width = module.patch_size  # type: ignore[misc]
    return _live.read_mobilevit_block(
        module,
        path,
        NAMING,
        local=_conv_unit(module, "conv_kxk", path),
        in_projection=in_projection,
        encoder_layers=[_check_encoder_layer(layer, join(container, name)) for name, layer in layers.items()],
        out_projection=_conv_unit(module, "conv_proj", path),
        fusion=None if module.conv_fusion is None else _conv_unit(module, "conv_fusion", path),
        patch_size=(int(height), int(width)),
    )


def _check_encoder_layer(layer: nn.Module, path: str) -> tuple[int, int]:
    attention, mlp = child(layer, "attn", path), child(layer, "mlp", path)
    expect_class(layer, path, "EncoderLayer", _PACKAGE)
    expect_class(attention, join(path, "attn"), "Attention", _PACKAGE)
    expect_class(mlp, join(path, "mlp"), "Mlp", _PACKAGE)
    if not is_silu(mlp.activation):
        raise refusal(mlp, join(path, "mlp"), "its activation is not SiLU", "only networks with SiLU are supported")
    return _live.check_encoder_leaves(
        layer,
        path,
        NAMING,
        int(attention.num_heads),  # type: ignore[arg-type]
        int(attention.head_dim),  # type: ignore[arg-type]
    )


def _conv_unit(owner: nn.Module, name: str, path: str) -> ConvUnit:
    """The ConvBNAct called ``name``, or the Conv3x3 that takes two inputs."""
    module, where = child(owner, name, path), join(path, name)
    expect_class(module, where, ("Conv3x3", "ConvBNAct"), _PACKAGE)
    check_batch_norm(child(module, "bn", where), join(where, "bn"))
    conv_path = join(where, "conv")
    return ConvUnit(check_conv2d(child(module, "conv", where), conv_path), conv_path, True, bool(module.activation))
