"""timm's MobileViT: ByobNet with BottleneckBlock and MobileVitBlock, and its feature extractors.

Read from ``timm/models/byobnet.py``, ``mobilevit.py`` and ``_features.py`` (1.0). timm itself is not imported.
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
    check_plain,
    child,
    children,
    computes_as,
    expect_class,
    foreign_class,
    is_identity,
    is_inactive,
    is_linear,
    is_torch_class,
    join,
    read_activation,
    refusal,
)
from mobilevit_kernels.convert._live import BlockSpec, Source
from mobilevit_kernels.convert._naming import Naming

__all__ = ["NAMING", "read_block", "read_network"]

NAMING = Naming(
    convolution="conv",
    batch_norm="bn",
    expand="conv1_1x1",
    depthwise="conv2_kxk",
    project="conv3_1x1",
    local="conv_kxk",
    in_projection="conv_1x1",
    encoder_layer="transformer.{layer}",
    final_norm="norm",
    out_projection="conv_proj",
    fusion="conv_fusion",
    norm1="norm1",
    qkv=("attn.qkv",),
    proj="attn.proj",
    norm2="norm2",
    fc1="mlp.fc1",
    fc2="mlp.fc2",
    stem="stem",
    mobilenet_block="stages.{layer}.{block}",
    downsampling="stages.{layer}.0",
    mobilevit_block="stages.{layer}.1",
    head_conv="final_conv",
    classifier="head.fc",
)

_PACKAGE = "timm"
_BATCH_NORMS = ("BatchNormAct2d", "SyncBatchNormAct", "FrozenBatchNormAct2d")
_SUPPORTED = "only mobilevit_xxs, mobilevit_xs and mobilevit_s are supported"


def read_network(model: nn.Module) -> Source | None:
    """Reads a ByobNet or a FeatureListNet made of one; None for another model, Unsupported for another ByobNet."""
    if foreign_class(model, "FeatureListNet", _PACKAGE):
        expect_class(model, "", "FeatureListNet", _PACKAGE, ("forward", "_collect"))
        return _read_feature_net(model)
    for name in ("FeatureDictNet", "FeatureHookNet", "FeatureGetterNet", "FeatureGraphNet"):
        if foreign_class(model, name, _PACKAGE):
            raise refusal(model, "", "this feature extractor is not supported", "leave out feature_cls")
    if not foreign_class(model, "ByobNet", _PACKAGE):
        return None
    expect_class(model, "", "ByobNet", _PACKAGE, ("forward", "forward_features", "forward_head"))

    head = child(model, "head", "")
    fc = getattr(head, "fc", None)
    final_conv = child(model, "final_conv", "")
    standard = not is_identity(final_conv) and _is_standard_head(head)
    check_plain(model, kept=() if standard else (head,))
    weights = None
    if not is_identity(final_conv):
        linear = standard and not is_identity(fc)
        weights = _live.read_head(
            model,
            NAMING,
            "final_conv",
            _conv_unit(model, "final_conv", ""),
            "head.fc" if linear else None,
            fc.out_features if linear else 0,  # type: ignore[union-attr]
        )
    layers = children(child(model, "stages", ""), "stages")
    network = NetworkSpec(
        stem=_live.read_stem(child(model, "stem", ""), "stem", NAMING, _conv_unit(model, "stem", "")),
        layers=tuple(
            _live.read_layer(layer, join("stages", name), read_block, _SUPPORTED) for name, layer in layers.items()
        ),
        head=weights,
    )
    return Source("timm", network, "RGB", standard)


def _is_standard_head(head: nn.Module) -> bool:
    """Whether ``head`` is an average pool and a linear layer, or an average pool alone."""
    cls = foreign_class(head, "ClassifierHead", _PACKAGE)
    if cls is None or not computes_as(head, cls):
        return False
    pool = child(head, "global_pool", "head")
    select, kind = foreign_class(pool, "SelectAdaptivePool2d", _PACKAGE), pool._modules.get("pool")
    if select is None or kind is None or not computes_as(pool, select):
        return False
    fast = foreign_class(kind, "FastAdaptiveAvgPool", _PACKAGE)
    averages = (is_torch_class(kind, nn.AdaptiveAvgPool2d) and kind.output_size in (1, (1, 1))) or (
        fast is not None and computes_as(kind, fast)
    )
    return (
        averages
        and is_inactive(head.drop)
        and is_identity(getattr(head, "flatten", None))
        and (is_identity(head.fc) or is_linear(head.fc))
    )


def _read_feature_net(model: nn.Module) -> Source:
    """A feature extractor: the modules of a ByobNet up to the last feature, the stages flattened into it."""
    check_plain(model)
    layers, has_head = [], False
    for name, module in model.named_children():
        if name == "final_conv":
            has_head = True
        elif name == "stages":
            layers += [
                _live.read_layer(stage, join(name, number), read_block, _SUPPORTED)
                for number, stage in children(module, name).items()
            ]
        elif name.startswith("stages_"):
            layers.append(_live.read_layer(module, name, read_block, _SUPPORTED))
        elif name != "stem":
            raise refusal(module, name, "not a part of MobileViT", _SUPPORTED)
    head = None
    if has_head:
        head = _live.read_head(model, NAMING, "final_conv", _conv_unit(model, "final_conv", ""), None)
    stem = _live.read_stem(child(model, "stem", ""), "stem", NAMING, _conv_unit(model, "stem", ""))
    return Source("timm", NetworkSpec(stem, tuple(layers), head), "RGB", head_is_standard=False)


def read_block(module: nn.Module, path: str = "") -> BlockSpec | None:
    """Reads a BottleneckBlock used as an inverted residual, or a MobileVitBlock; None for anything else."""
    if foreign_class(module, "MobileVitV2Block", _PACKAGE):
        raise refusal(module, path, "MobileViTv2 is not supported", _SUPPORTED)
    if foreign_class(module, "MobileVitBlock", _PACKAGE):
        return _read_mobilevit_block(module, path)
    if foreign_class(module, "BottleneckBlock", _PACKAGE) and _is_inverted_residual(module):
        return _read_inverted_residual(module, path)
    return None


def _is_inverted_residual(module: nn.Module) -> bool:
    """Whether a BottleneckBlock is one of MobileNetV2's, rather than one of ResNet's: linear output, depthwise."""
    conv = getattr(module.conv2_kxk, "conv", None)
    dense = isinstance(conv, nn.Conv2d) and conv.groups != conv.in_channels
    return is_identity(module.act) and not dense


def _read_inverted_residual(module: nn.Module, path: str) -> InvertedResidualSpec:
    expect_class(module, path, "BottleneckBlock", _PACKAGE)
    check_plain(module, path)
    for name in ("attn", "attn_last"):
        part = getattr(module, name, None)
        if not is_identity(part):
            raise refusal(part, join(path, name), "squeeze-and-excite or other attention in a block", _SUPPORTED)
    conv2b, shortcut = getattr(module, "conv2b_kxk", None), module.shortcut
    if not is_identity(conv2b):
        raise refusal(conv2b, join(path, "conv2b_kxk"), "a second depthwise convolution", _SUPPORTED)
    if not is_identity(shortcut):
        raise refusal(shortcut, join(path, "shortcut"), "a shortcut that is not the identity", _SUPPORTED)
    check_inactive(module, path, ("drop_path",))
    expand, depthwise, project = (_conv_unit(module, name, path) for name in ("conv1_1x1", "conv2_kxk", "conv3_1x1"))
    return _live.read_inverted_residual(
        module, path, NAMING, (expand, depthwise, project), residual=shortcut is not None
    )


def _read_mobilevit_block(module: nn.Module, path: str) -> MobileViTBlockSpec:
    expect_class(module, path, "MobileVitBlock", _PACKAGE)
    check_plain(module, path)
    in_path = join(path, "conv_1x1")
    in_projection = ConvUnit(check_conv2d(child(module, "conv_1x1", path), in_path), in_path, False, False)
    container = join(path, "transformer")
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
    expect_class(layer, path, "Block", _PACKAGE)
    attention, mlp = child(layer, "attn", path), child(layer, "mlp", path)
    expect_class(attention, join(path, "attn"), "Attention", _PACKAGE)
    expect_class(mlp, join(path, "mlp"), "Mlp", _PACKAGE)
    extras = {"ls1": layer, "ls2": layer, "attn.q_norm": attention, "attn.k_norm": attention, "attn.norm": attention}
    extras |= {"attn.gate": attention, "mlp.norm": mlp}
    for name, owner in extras.items():
        part = getattr(owner, name.rpartition(".")[2], None)
        if not is_identity(part):
            raise refusal(part, join(path, name), "not a layer of the published networks", _SUPPORTED)
    check_inactive(layer, path, ("drop_path1", "drop_path2"))
    check_inactive(attention, join(path, "attn"), ("attn_drop", "proj_drop"))
    check_inactive(mlp, join(path, "mlp"), ("drop1", "drop2"))
    if not read_activation(mlp.act, join(path, "mlp.act")):
        raise refusal(mlp, join(path, "mlp"), "no activation", _SUPPORTED)
    num_heads, head_dim = int(attention.num_heads), int(attention.head_dim)  # type: ignore[arg-type]
    if attention.scale != head_dim**-0.5:
        raise refusal(attention, join(path, "attn"), f"scale {attention.scale}, expected head_dim^-0.5", _SUPPORTED)
    return _live.check_encoder_leaves(layer, path, NAMING, num_heads, head_dim)


def _conv_unit(owner: nn.Module, name: str, path: str) -> ConvUnit:
    """The ConvNormAct called ``name``, where the activation is a part of the norm."""
    module, where = child(owner, name, path), join(path, name)
    expect_class(module, where, "ConvNormAct", _PACKAGE)
    anti_aliasing = getattr(module, "aa", None)
    if not is_identity(anti_aliasing):
        raise refusal(anti_aliasing, join(where, "aa"), "anti-aliasing is not supported", _SUPPORTED)
    norm, norm_path = child(module, "bn", where), join(where, "bn")
    has_norm = not (is_torch_class(norm, nn.Sequential) and len(norm._modules) == 0)
    activation = False
    if has_norm:
        check_batch_norm(norm, norm_path, _BATCH_NORMS, _PACKAGE)
        check_inactive(norm, norm_path, ("drop",))
        activation = read_activation(getattr(norm, "act", None), join(norm_path, "act"))
    conv_path = join(where, "conv")
    return ConvUnit(check_conv2d(child(module, "conv", where), conv_path), conv_path, has_norm, activation)
