"""transformers' MobileViT: MobileViTModel and its task heads.

Read from ``transformers/models/mobilevit/modeling_mobilevit.py`` (5). transformers itself is not imported.
"""

from __future__ import annotations

import dataclasses

from torch import nn

from mobilevit_kernels.canonical import InvertedResidualSpec, MobileViTBlockSpec, NetworkSpec
from mobilevit_kernels.convert import _live
from mobilevit_kernels.convert._leaf import (
    ConvUnit,
    check_batch_norm,
    check_conv2d,
    check_inactive,
    check_linear,
    check_plain,
    child,
    children,
    expect_class,
    foreign_class,
    is_identity,
    join,
    read_activation,
    refusal,
)
from mobilevit_kernels.convert._live import BlockSpec, Source
from mobilevit_kernels.convert._naming import Naming

__all__ = ["NAMING", "read_block", "read_network"]

NAMING = Naming(
    convolution="convolution",
    batch_norm="normalization",
    expand="expand_1x1",
    depthwise="conv_3x3",
    project="reduce_1x1",
    local="conv_kxk",
    in_projection="conv_1x1.convolution",
    encoder_layer="transformer.layer.{layer}",
    final_norm="layernorm",
    out_projection="conv_projection",
    fusion="fusion",
    norm1="layernorm_before",
    qkv=("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    proj="attention.output.dense",
    norm2="layernorm_after",
    fc1="intermediate.dense",
    fc2="output.dense",
    stem="conv_stem",
    mobilenet_block="encoder.layer.{layer}.layer.{block}",
    downsampling="encoder.layer.{layer}.downsampling_layer",
    mobilevit_block="encoder.layer.{layer}",
    head_conv="conv_1x1_exp",
    classifier="classifier",
)

_PACKAGE = "transformers"
_SUPPORTED = "only MobileViTModel, MobileViTForImageClassification and MobileViTForSemanticSegmentation are supported"


def read_network(model: nn.Module) -> Source | None:
    """Reads a MobileViTModel, with or without a task head; None for another model."""
    if any(cls.__name__.startswith("MobileViTV2") for cls in type(model).__mro__):
        raise refusal(model, "", "MobileViTv2 is not supported", _SUPPORTED)
    if foreign_class(model, "MobileViTModel", _PACKAGE):
        check_plain(model)
        network = _read_backbone(model, "")
        return Source("transformers", network, "BGR", head_is_standard=network.head is not None)
    if foreign_class(model, "MobileViTForImageClassification", _PACKAGE):
        expect_class(model, "", "MobileViTForImageClassification", _PACKAGE)
        return _read_classifier(model)
    if foreign_class(model, "MobileViTForSemanticSegmentation", _PACKAGE):
        expect_class(model, "", "MobileViTForSemanticSegmentation", _PACKAGE)
        check_plain(model, kept=(child(model, "segmentation_head", ""),))
        network = _read_backbone(child(model, "mobilevit", ""), "mobilevit")
        return Source("transformers", network, "BGR", head_is_standard=False)
    return None


def _read_classifier(model: nn.Module) -> Source:
    check_plain(model)
    check_inactive(model, "", ("dropout",))
    backbone, classifier = child(model, "mobilevit", ""), child(model, "classifier", "")
    network = _read_backbone(backbone, "mobilevit")
    if network.head is None:
        raise refusal(backbone, "mobilevit", "expand_output=False under a classifier", _SUPPORTED)
    if not is_identity(classifier):
        check_linear(classifier, "classifier")
        head = _live.read_head(
            model,
            NAMING,
            "mobilevit.conv_1x1_exp",
            _conv_unit(backbone, "conv_1x1_exp", "mobilevit"),
            "classifier",
            int(classifier.out_features),  # type: ignore[arg-type]
        )
        network = dataclasses.replace(network, head=head)
    return Source("transformers", network, "BGR", head_is_standard=True)


def _read_backbone(model: nn.Module, path: str) -> NetworkSpec:
    """A MobileViTModel; the head has no classifier."""
    expect_class(model, path, "MobileViTModel", _PACKAGE)
    encoder, encoder_path = child(model, "encoder", path), join(path, "encoder")
    expect_class(encoder, encoder_path, "MobileViTEncoder", _PACKAGE)
    container = join(encoder_path, "layer")
    head = None
    if model.expand_output:
        head = _live.read_head(model, NAMING, "conv_1x1_exp", _conv_unit(model, "conv_1x1_exp", path), None)
    layers = children(child(encoder, "layer", encoder_path), container, nn.ModuleList)
    return NetworkSpec(
        stem=_live.read_stem(
            child(model, "conv_stem", path), join(path, "conv_stem"), NAMING, _conv_unit(model, "conv_stem", path)
        ),
        layers=tuple(_read_layer(layer, join(container, name)) for name, layer in layers.items()),
        head=head,
    )


def _read_layer(layer: nn.Module, path: str) -> tuple[BlockSpec, ...]:
    """A layer as the other code bases have it: an inverted residual inside a MobileViT block comes out of it."""
    if foreign_class(layer, "MobileViTMobileNetLayer", _PACKAGE):
        expect_class(layer, path, "MobileViTMobileNetLayer", _PACKAGE)
        blocks = children(child(layer, "layer", path), join(path, "layer"), nn.ModuleList)
        return tuple(_read_inverted_residual(block, join(path, "layer", name)) for name, block in blocks.items())
    block = _read_mobilevit_block(layer, path)
    if block.downsampling is None:
        return (block,)
    return block.downsampling, dataclasses.replace(block, downsampling=None)


def read_block(module: nn.Module, path: str = "") -> BlockSpec | None:
    """Reads a MobileViTInvertedResidual or a MobileViTLayer; None for anything else."""
    for name in ("MobileViTV2Layer", "MobileViTV2InvertedResidual"):
        if foreign_class(module, name, _PACKAGE):
            raise refusal(module, path, "MobileViTv2 is not supported", _SUPPORTED)
    if foreign_class(module, "MobileViTInvertedResidual", _PACKAGE):
        return _read_inverted_residual(module, path)
    if foreign_class(module, "MobileViTLayer", _PACKAGE):
        return _read_mobilevit_block(module, path)
    return None


def _read_inverted_residual(module: nn.Module, path: str) -> InvertedResidualSpec:
    expect_class(module, path, "MobileViTInvertedResidual", _PACKAGE)
    check_plain(module, path)
    expand, depthwise, project = (_conv_unit(module, name, path) for name in ("expand_1x1", "conv_3x3", "reduce_1x1"))
    return _live.read_inverted_residual(
        module, path, NAMING, (expand, depthwise, project), residual=bool(module.use_residual)
    )


def _read_mobilevit_block(module: nn.Module, path: str) -> MobileViTBlockSpec:
    expect_class(module, path, "MobileViTLayer", _PACKAGE, ("forward", "unfolding", "folding"))
    check_plain(module, path)
    downsampling = None
    if module.downsampling_layer is not None:
        name = "downsampling_layer"
        downsampling = _read_inverted_residual(child(module, name, path), join(path, name))
    transformer = child(module, "transformer", path)
    expect_class(transformer, join(path, "transformer"), "MobileViTTransformer", _PACKAGE)
    container = join(path, "transformer.layer")
    layers = children(child(module, "transformer.layer", path), container, nn.ModuleList)
    return _live.read_mobilevit_block(
        module,
        path,
        NAMING,
        local=_conv_unit(module, "conv_kxk", path),
        in_projection=_conv_unit(module, "conv_1x1", path),
        encoder_layers=[_check_encoder_layer(layer, join(container, name)) for name, layer in layers.items()],
        out_projection=_conv_unit(module, "conv_projection", path),
        fusion=_conv_unit(module, "fusion", path),
        patch_size=(int(module.patch_height), int(module.patch_width)),  # type: ignore[arg-type]
        downsampling=downsampling,
    )


_ENCODER_CLASSES = {
    "": "MobileViTTransformerLayer",
    "attention": "MobileViTAttention",
    "attention.attention": "MobileViTSelfAttention",
    "attention.output": "MobileViTSelfOutput",
    "intermediate": "MobileViTIntermediate",
    "output": "MobileViTOutput",
}


def _check_encoder_layer(layer: nn.Module, path: str) -> tuple[int, int]:
    for name, cls in _ENCODER_CLASSES.items():
        module = child(layer, name, path) if name else layer
        expect_class(module, join(path, name), cls, _PACKAGE)
        check_inactive(module, join(path, name), ("dropout",))
    activation_path = join(path, "intermediate.intermediate_act_fn")
    if not read_activation(child(layer, "intermediate", path).intermediate_act_fn, activation_path):
        raise refusal(layer, path, "no activation in its MLP", _SUPPORTED)
    attention = child(layer, "attention.attention", path)
    num_heads, head_dim = int(attention.num_attention_heads), int(attention.attention_head_size)  # type: ignore[arg-type]
    return _live.check_encoder_leaves(layer, path, NAMING, num_heads, head_dim)


def _conv_unit(owner: nn.Module, name: str, path: str) -> ConvUnit:
    """The MobileViTConvLayer called ``name``."""
    module, where = child(owner, name, path), join(path, name)
    expect_class(module, where, "MobileViTConvLayer", _PACKAGE)
    has_norm = module.normalization is not None
    if has_norm:
        check_batch_norm(child(module, "normalization", where), join(where, "normalization"))
    activation = read_activation(module.activation, join(where, "activation"))
    conv_path = join(where, "convolution")
    return ConvUnit(check_conv2d(child(module, "convolution", where), conv_path), conv_path, has_norm, activation)
