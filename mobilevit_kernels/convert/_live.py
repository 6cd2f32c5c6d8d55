"""Reading live modules: what every code base's reader shares once it has recognised its own classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mobilevit_kernels.canonical import (
    Conv3x3Weights,
    HeadWeights,
    InvertedResidualSpec,
    MobileViTBlockSpec,
    NetworkSpec,
    StemWeights,
)
from mobilevit_kernels.convert import _naming
from mobilevit_kernels.convert._leaf import (
    ConvUnit,
    check_conv_unit,
    check_layer_norm,
    check_linear,
    child,
    children,
    join,
    refusal,
)
from mobilevit_kernels.convert._naming import Naming

__all__ = [
    "BlockSpec",
    "LiveTensors",
    "Source",
    "check_encoder_leaves",
    "read_head",
    "read_inverted_residual",
    "read_layer",
    "read_mobilevit_block",
    "read_stem",
]

BlockSpec = InvertedResidualSpec | MobileViTBlockSpec


@dataclass(frozen=True)
class Source:
    """A live network, read.

    Attributes:
        kind: the code base it is from.
        network: its canonical description, layer by layer as the paper counts them. The stem's input channels are in
            the order that the live model takes them.
        channel_order: which order that is, for weights trained as the code base publishes them.
        head_is_standard: True: the model ends with exactly ``network.head``, that is convolution, average pool and the
            linear layer where there is one. False: what follows the head's convolution (or the last layer, where
            ``network.head`` is None) is the model's own and has to be kept: timm's ``head`` with another pool, none, or
            another classifier, transformers' segmentation head, or nothing, as in a feature extractor.
            ``network.head.fc_weight`` is None then.
    """

    kind: Literal["timm", "transformers", "cvnets", "reference"]
    network: NetworkSpec
    channel_order: Literal["RGB", "BGR"]
    head_is_standard: bool


class LiveTensors:
    """The tensors of a live module whose structure has been checked."""

    def __init__(self, module: nn.Module, path: str) -> None:
        self.module = module
        self.path = path

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        owner_name, _, attribute = name.rpartition(".")
        owner = self.module.get_submodule(owner_name)
        tensor = getattr(owner, attribute)
        if tensor is None:  # a layer built without this parameter: its neutral element
            weight = next(owner.parameters(), torch.empty(0))
            return torch.full(shape, 1.0 if attribute == "weight" else 0.0, device=weight.device)
        path = join(self.path, owner_name)
        if type(tensor) not in (Tensor, nn.Parameter) or not tensor.is_floating_point():
            raise refusal(
                owner,
                path,
                f"its {attribute} is a {type(tensor).__name__} of {tensor.dtype}, not a plain floating-point tensor",
                "dequantise or gather it first",
            )
        if tuple(tensor.shape) != shape:
            raise refusal(
                owner,
                path,
                f"its {attribute} has the shape {tuple(tensor.shape)}, expected {shape}",
                "pass a model whose layers agree with their tensors",
            )
        plain: Tensor = tensor.detach()
        return plain

    def eps(self, name: str) -> float:
        return float(self.module.get_submodule(name).eps)  # type: ignore[arg-type]


def read_stem(module: nn.Module, path: str, naming: Naming, unit: ConvUnit) -> StemWeights:
    """The stem; ``unit`` is ``module`` with its classes checked."""
    check_conv_unit(unit, kernel_size=3, stride=(2,))
    return _naming.read_stem(LiveTensors(module, path), naming, "", unit.conv.in_channels, unit.conv.out_channels)


def read_inverted_residual(
    module: nn.Module, path: str, naming: Naming, units: tuple[ConvUnit, ConvUnit, ConvUnit], residual: bool
) -> InvertedResidualSpec:
    """An inverted residual.

    Args:
        module, path: the block and its dotted path.
        naming: its code base's.
        units: expand, depthwise and project convolution, with their classes checked.
        residual: whether the block adds its input.

    Raises:
        Unsupported: where the convolutions are not those of an inverted residual.
    """
    expand, depthwise, project = units
    check_conv_unit(expand, kernel_size=1)
    check_conv_unit(depthwise, kernel_size=3, stride=(1, 2), dilated=True, depthwise=True)
    check_conv_unit(project, kernel_size=1, activation=False)
    in_channels, out_channels = expand.conv.in_channels, project.conv.out_channels
    stride = depthwise.conv.stride[0]
    if residual and (stride != 1 or in_channels != out_channels):
        raise refusal(
            module,
            path,
            f"adds its input to an output of another shape (stride {stride}, {in_channels} → {out_channels} channels)",
            "pass an unmodified model",
        )
    weights = _naming.read_inverted_residual(
        LiveTensors(module, path), naming, "", in_channels, expand.conv.out_channels, out_channels
    )
    return InvertedResidualSpec(weights, stride=stride, dilation=depthwise.conv.dilation[0], residual=bool(residual))


def read_mobilevit_block(
    module: nn.Module,
    path: str,
    naming: Naming,
    *,
    local: ConvUnit,
    in_projection: ConvUnit,
    encoder_layers: Sequence[tuple[int, int]],
    out_projection: ConvUnit,
    fusion: ConvUnit | None,
    patch_size: tuple[int, int],
    layer_norm_classes: tuple[str, ...] = (),
    downsampling: InvertedResidualSpec | None = None,
) -> MobileViTBlockSpec:
    """A MobileViT block.

    Args:
        module, path: the block and its dotted path.
        naming: its code base's.
        local, in_projection, out_projection, fusion: the convolutions, with their classes checked.
        encoder_layers: what :func:`check_encoder_leaves` returned, one an encoder layer.
        patch_size: (height, width).
        layer_norm_classes: the code base's own classes for LayerNorm.
        downsampling: the inverted residual inside the same module.

    Raises:
        Unsupported: where the parts are not those of a MobileViT block.
    """
    check_conv_unit(local, kernel_size=3, dilated=True)
    check_conv_unit(in_projection, kernel_size=1, batch_norm=False, activation=False)
    check_conv_unit(out_projection, kernel_size=1)
    dim = in_projection.conv.out_channels
    in_channels, out_channels = local.conv.in_channels, out_projection.conv.out_channels
    if fusion is not None:
        check_conv_unit(fusion, kernel_size=3)
        out_channels = fusion.conv.out_channels

    heads = {num_heads for num_heads, _ in encoder_layers}
    if len(heads) != 1:
        raise refusal(
            module,
            path,
            f"its encoder layers have {', '.join(map(str, sorted(heads))) or 'no'} heads",
            "only blocks with encoder layers of one number of heads are supported",
        )
    tensors = LiveTensors(module, path)
    final_norm = naming.final_norm.format(depth=len(encoder_layers))
    check_layer_norm(child(module, final_norm, path), join(path, final_norm), dim, layer_norm_classes)
    for layer in range(len(encoder_layers)):
        for norm in (naming.norm1, naming.norm2):
            name = join(naming.encoder_layer.format(layer=layer), norm)
            if tensors.eps(name) != tensors.eps(final_norm):
                raise refusal(
                    module.get_submodule(name),
                    join(path, name),
                    f"eps {tensors.eps(name):g} where the block's last LayerNorm has {tensors.eps(final_norm):g}",
                    "only blocks with one eps are supported",
                )

    fusion_weights: Conv3x3Weights | None = None
    transformer_channels = out_projection.conv.out_channels
    if fusion is not None:
        fusion_weights = _naming.read_conv3x3(
            tensors, naming, naming.fusion, in_channels + transformer_channels, out_channels
        )
    return MobileViTBlockSpec(
        local=_naming.read_conv3x3(tensors, naming, naming.local, in_channels, local.conv.out_channels),
        transformer=_naming.read_transformer(
            tensors,
            naming,
            "",
            local.conv.out_channels,
            dim,
            [mlp_channels for _, mlp_channels in encoder_layers],
            transformer_channels,
        ),
        fusion=fusion_weights,
        num_heads=heads.pop(),
        patch_size=patch_size,
        dilation=local.conv.dilation[0],
        downsampling=downsampling,
    )


def check_encoder_leaves(
    layer: nn.Module,
    path: str,
    naming: Naming,
    num_heads: int,
    head_dim: int,
    linear_classes: tuple[str, ...] = (),
    layer_norm_classes: tuple[str, ...] = (),
) -> tuple[int, int]:
    """Checks the LayerNorms and linear layers of an encoder layer, whose other parts the caller has checked.

    Returns:
        The number of heads and the width of the MLP.

    Raises:
        Unsupported: naming the layer that is not plain, or where heads and widths disagree.
    """
    for name in (*naming.qkv, naming.proj, naming.fc1, naming.fc2):
        check_linear(child(layer, name, path), join(path, name), linear_classes)
    dim = int(layer.get_submodule(naming.fc1).in_features)  # type: ignore[arg-type]
    for name in (naming.norm1, naming.norm2):
        check_layer_norm(child(layer, name, path), join(path, name), dim, layer_norm_classes)
    if num_heads * head_dim != dim:
        raise refusal(
            layer,
            path,
            f"{num_heads} heads of {head_dim} channels in a transformer of width {dim}",
            "only heads that divide the width are supported",
        )
    return num_heads, int(layer.get_submodule(naming.fc1).out_features)  # type: ignore[arg-type]


def read_layer(
    layer: nn.Module, path: str, read_block: Callable[[nn.Module, str], BlockSpec | None], remedy: str
) -> tuple[BlockSpec, ...]:
    """The blocks of a layer that is a plain Sequential; Unsupported for one that ``read_block`` does not know."""
    specs = []
    for name, block in children(layer, path).items():
        spec = read_block(block, join(path, name))
        if spec is None:
            raise refusal(block, join(path, name), "not a block of MobileViT", remedy)
        specs.append(spec)
    return tuple(specs)


def read_head(
    model: nn.Module, naming: Naming, conv: str, unit: ConvUnit, classifier: str | None, num_classes: int = 0
) -> HeadWeights:
    """The head of ``model``.

    Args:
        model: the network.
        naming: its code base's.
        conv: dotted name of the 1×1 convolution's module.
        unit: that module, with its classes checked.
        classifier: dotted name of the linear layer, or None.
        num_classes: its outputs.
    """
    check_conv_unit(unit, kernel_size=1)
    return _naming.read_head(
        LiveTensors(model, ""), naming, conv, classifier, unit.conv.in_channels, unit.conv.out_channels, num_classes
    )
