"""ml-cvnets' MobileViT (apple/ml-cvnets), recognised by class name and structure, wherever its modules were copied to.

Read from ``cvnets/models/classification/mobilevit.py``, ``cvnets/modules/mobilevit_block.py``, ``mobilenetv2.py`` and
``transformer.py``. ml-cvnets is on no package registry, so it is never imported.

Its LayerNorm takes a channel-first branch where the number of tokens happens to equal the width of the transformer.
That is an accident of the image's size and is not followed.
"""

from __future__ import annotations

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
    join,
    read_activation,
    refusal,
)
from mobilevit_kernels.convert._live import BlockSpec, Source
from mobilevit_kernels.convert._naming import Naming

__all__ = ["NAMING", "read_block", "read_network"]

NAMING = Naming(
    convolution="block.conv",
    batch_norm="block.norm",
    expand="block.exp_1x1",
    depthwise="block.conv_3x3",
    project="block.red_1x1",
    local="local_rep.conv_3x3",
    in_projection="local_rep.conv_1x1.block.conv",
    encoder_layer="global_rep.{layer}",
    final_norm="global_rep.{depth}",
    out_projection="conv_proj",
    fusion="fusion",
    norm1="pre_norm_mha.0",
    qkv=("pre_norm_mha.1.qkv_proj",),
    proj="pre_norm_mha.1.out_proj",
    norm2="pre_norm_ffn.0",
    fc1="pre_norm_ffn.1",
    fc2="pre_norm_ffn.4",
    stem="conv_1",
    mobilenet_block="layer_{number}.{block}",
    downsampling="layer_{number}.0",
    mobilevit_block="layer_{number}.1",
    head_conv="conv_1x1_exp",
    classifier="classifier.fc",
)

_LAYERS = tuple(f"layer_{number}" for number in range(1, 6))
_LINEARS = ("LinearLayer",)
_LAYER_NORMS = ("LayerNormFP32", "LayerNorm")
_SUPPORTED = "only ml-cvnets' MobileViT (version 1) is supported"
_REPLACE_BLOCKS = "use mobilevit_kernels.replace_blocks on the whole network instead"


def read_network(model: nn.Module) -> Source | None:
    """Reads ml-cvnets' MobileViT; None for a model that is not built like it."""
    parts = model._modules
    if not all(isinstance(parts.get(name), nn.Module) for name in ("conv_1", *_LAYERS)):
        return None
    if not foreign_class(model, "MobileViT"):
        raise refusal(model, "", "not ml-cvnets' MobileViT", _SUPPORTED)
    methods = ("forward", "forward_classifier", "extract_features", "_forward_layer")
    expect_class(model, "", "MobileViT", None, methods)
    augmentor = getattr(model, "neural_augmentor", None)
    if augmentor is not None:
        raise refusal(augmentor, "neural_augmentor", "not supported", "build the model without it")

    check_plain(model)
    _check_classifier(model)
    network = NetworkSpec(
        stem=_live.read_stem(child(model, "conv_1", ""), "conv_1", NAMING, _conv_unit(model, "conv_1", "")),
        layers=tuple(_live.read_layer(child(model, name, ""), name, read_block, _SUPPORTED) for name in _LAYERS),
        head=_live.read_head(
            model,
            NAMING,
            "conv_1x1_exp",
            _conv_unit(model, "conv_1x1_exp", ""),
            "classifier.fc",
            int(child(model, "classifier.fc", "").out_features),  # type: ignore[arg-type]
        ),
    )
    return Source("cvnets", network, "BGR", head_is_standard=True)


def _check_classifier(model: nn.Module) -> None:
    """Raises Unsupported unless the classifier is an average pool, a dropout or none, and a linear layer."""
    for name in ("conv_1x1_exp", "classifier"):
        if model._modules.get(name) is None:
            raise refusal(model, "", f"its {name} was removed, as for an encoder", _REPLACE_BLOCKS)
    parts = children(child(model, "classifier", ""), "classifier")
    if [name for name in parts if name != "dropout"] != ["global_pool", "fc"]:
        raise refusal(
            model, "", f"its classifier is made of {', '.join(parts)}, expected global_pool, fc", _REPLACE_BLOCKS
        )
    pool = parts["global_pool"]
    expect_class(pool, "classifier.global_pool", "GlobalPool", None)
    if str(pool.pool_type) != "mean" or bool(pool.keep_dim):
        raise refusal(pool, "classifier.global_pool", f"pools by {pool.pool_type}", "only the mean is supported")
    check_inactive(child(model, "classifier", ""), "classifier", ("dropout",))
    check_linear(parts["fc"], "classifier.fc", _LINEARS)


def read_block(module: nn.Module, path: str = "") -> BlockSpec | None:
    """Reads an InvertedResidual or a MobileViTBlock built like ml-cvnets'; None for anything else."""
    parts = module._modules
    if foreign_class(module, "MobileViTBlockv2") and "global_rep" in parts:
        raise refusal(module, path, "MobileViTv2 is not supported", _SUPPORTED)
    if foreign_class(module, "MobileViTBlock") and "global_rep" in parts:
        return _read_mobilevit_block(module, path)
    block = parts.get("block")
    if block is not None and "red_1x1" in block._modules:
        if foreign_class(module, "InvertedResidualSE"):
            raise refusal(module, path, "MobileNetV3's block, with squeeze-and-excite, is not supported", _SUPPORTED)
        if foreign_class(module, "InvertedResidual"):
            return _read_inverted_residual(module, path)
    return None


def _read_inverted_residual(module: nn.Module, path: str) -> InvertedResidualSpec:
    expect_class(module, path, "InvertedResidual", None)
    check_plain(module, path)
    names = tuple(children(child(module, "block", path), join(path, "block")))
    if names != ("exp_1x1", "conv_3x3", "red_1x1"):
        raise refusal(
            module,
            path,
            f"made of {', '.join(names)}, expected exp_1x1, conv_3x3, red_1x1",
            "expand_ratio 1 is not served",
        )
    expand, depthwise, project = (_conv_unit(module, f"block.{name}", path) for name in names)
    return _live.read_inverted_residual(
        module, path, NAMING, (expand, depthwise, project), residual=bool(module.use_res_connect)
    )


def _read_mobilevit_block(module: nn.Module, path: str) -> MobileViTBlockSpec:
    expect_class(module, path, "MobileViTBlock", None, ("forward", "forward_spatial", "unfolding", "folding"))
    check_plain(module, path)
    names = tuple(children(child(module, "local_rep", path), join(path, "local_rep")))
    if names != ("conv_3x3", "conv_1x1"):
        raise refusal(module, path, f"its local_rep is made of {', '.join(names)}", _SUPPORTED)
    container = join(path, "global_rep")
    *layers, _ = children(child(module, "global_rep", path), container).items()
    return _live.read_mobilevit_block(
        module,
        path,
        NAMING,
        local=_conv_unit(module, "local_rep.conv_3x3", path),
        in_projection=_conv_unit(module, "local_rep.conv_1x1", path),
        encoder_layers=[_check_encoder_layer(layer, join(container, name)) for name, layer in layers],
        out_projection=_conv_unit(module, "conv_proj", path),
        fusion=None if module.fusion is None else _conv_unit(module, "fusion", path),
        patch_size=(int(module.patch_h), int(module.patch_w)),  # type: ignore[arg-type]
        layer_norm_classes=_LAYER_NORMS,
    )


def _check_encoder_layer(layer: nn.Module, path: str) -> tuple[int, int]:
    expect_class(layer, path, "TransformerEncoder", None)
    check_inactive(layer, path, ("drop_path",))
    mha, ffn = child(layer, "pre_norm_mha", path), child(layer, "pre_norm_ffn", path)
    mha_path, ffn_path = join(path, "pre_norm_mha"), join(path, "pre_norm_ffn")
    if len(children(mha, mha_path)) != 3 or len(children(ffn, ffn_path)) != 6:
        raise refusal(layer, path, "has more or fewer parts than ml-cvnets' encoder layer", _SUPPORTED)
    check_inactive(mha, mha_path, ("2",))
    check_inactive(ffn, ffn_path, ("3", "5"))
    if not read_activation(child(ffn, "2", ffn_path), join(ffn_path, "2")):
        raise refusal(ffn, ffn_path, "no activation", _SUPPORTED)
    attention, attention_path = child(mha, "1", mha_path), join(mha_path, "1")
    expect_class(attention, attention_path, "MultiHeadAttention", None, ("forward", "forward_default"))
    check_inactive(attention, attention_path, ("attn_dropout",))
    num_heads, head_dim = int(attention.num_heads), int(attention.head_dim)  # type: ignore[arg-type]
    if attention.scaling != head_dim**-0.5:
        raise refusal(attention, attention_path, f"scaling {attention.scaling}, expected head_dim^-0.5", _SUPPORTED)
    return _live.check_encoder_leaves(layer, path, NAMING, num_heads, head_dim, _LINEARS, _LAYER_NORMS)


def _conv_unit(owner: nn.Module, name: str, path: str) -> ConvUnit:
    """The ConvLayer2d (in older versions, ConvLayer) called ``name``."""
    module, where = child(owner, name, path), join(path, name)
    expect_class(module, where, ("ConvLayer2d", "ConvLayer"), None)
    block, block_path = child(module, "block", where), join(where, "block")
    parts = children(block, block_path)
    if list(parts) not in (["conv"], ["conv", "norm"], ["conv", "act"], ["conv", "norm", "act"]):
        raise refusal(block, block_path, f"made of {', '.join(parts)}, expected conv, norm, act", _SUPPORTED)
    if "norm" in parts:
        check_batch_norm(parts["norm"], join(block_path, "norm"), ("BatchNorm2dFP32",))
    activation = read_activation(parts.get("act"), join(block_path, "act"))
    conv_path = join(block_path, "conv")
    return ConvUnit(check_conv2d(child(block, "conv", block_path), conv_path), conv_path, "norm" in parts, activation)
