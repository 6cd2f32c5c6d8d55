"""Conversion: what is read from live models and checkpoints, against the stock models in float64; and what is refused.

A network is checked by evaluating its canonical description with the small float64 forward below, which knows nothing
of any code base.
"""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cvnets_standin
import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from timm.layers import ClassifierHead, convert_sync_batchnorm, freeze_batch_norm_2d
from timm.models.byobnet import BottleneckBlock, ByobNet, LayerFn
from timm.models.mobilevit import MobileVitBlock, model_cfgs
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from transformers import (
    MobileViTConfig,
    MobileViTForImageClassification,
    MobileViTForSemanticSegmentation,
    MobileViTModel,
    MobileViTV2Config,
    MobileViTV2ForImageClassification,
    MobileViTV2Model,
)
from transformers.models.mobilevit.modeling_mobilevit import MobileViTLayer

import mobilevit_kernels as mvk
import python_ref
from mobilevit_kernels import config as configs
from mobilevit_kernels.canonical import (
    Conv3x3Weights,
    HeadWeights,
    InvertedResidualSpec,
    MobileViTBlockSpec,
    NetworkSpec,
    StemWeights,
    TransformerWeights,
)
from mobilevit_kernels.convert import Unsupported, check_plain, load_network, read_block, read_network


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The maps are tiny: more threads only wait for each other, for minutes where the cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


NAMES = tuple(configs.CONFIGS)
RTOL = 1e-6  # relative L2: the description's tensors are rounded to float32 once
ODD = (70, 58)  # maps of 35×29, 18×15, 9×8, 5×4, 3×2: every kind of resize


# The canonical description, evaluated.


def conv_silu(x: Tensor, weights: StemWeights | Conv3x3Weights, stride: int = 1, dilation: int = 1) -> Tensor:
    y = F.conv2d(x, weights.weight.double(), weights.bias.double(), stride, dilation, dilation)
    return F.silu(y)


def run_inverted_residual(x: Tensor, spec: InvertedResidualSpec) -> Tensor:
    w = spec.weights
    h = F.silu(F.conv2d(x, w.expand_weight.double(), w.expand_bias.double()))
    depthwise, bias = w.depthwise_weight.double(), w.depthwise_bias.double()
    h = F.silu(F.conv2d(h, depthwise, bias, spec.stride, spec.dilation, spec.dilation, groups=h.shape[1]))
    y = F.conv2d(h, w.project_weight.double(), w.project_bias.double())
    return x + y if spec.residual else y


def run_transformer(x: Tensor, w: TransformerWeights, heads: int, patch: tuple[int, int]) -> Tensor:
    x = F.conv2d(x, w.in_weight.double())
    size = x.shape[2:]
    rows, columns = -(-size[0] // patch[0]), -(-size[1] // patch[1])
    padded = (rows * patch[0], columns * patch[1])
    if padded != tuple(size):
        x = F.interpolate(x, size=padded, mode="bilinear", align_corners=False)
    batch, dim = x.shape[:2]
    t = x.reshape(batch, dim, rows, patch[0], columns, patch[1]).permute(0, 3, 5, 2, 4, 1)
    t = t.reshape(batch * patch[0] * patch[1], rows * columns, dim)
    for layer in w.layers:
        y = F.layer_norm(t, (dim,), layer.norm1_weight.double(), layer.norm1_bias.double(), w.eps)
        qkv = F.linear(y, layer.qkv_weight.double(), layer.qkv_bias.double())
        q, k, v = qkv.reshape(*t.shape[:2], 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-2, -1) * (dim // heads) ** -0.5).softmax(-1) @ v
        y = y.transpose(1, 2).reshape(t.shape)
        t = t + F.linear(y, layer.proj_weight.double(), layer.proj_bias.double())
        y = F.layer_norm(t, (dim,), layer.norm2_weight.double(), layer.norm2_bias.double(), w.eps)
        y = F.silu(F.linear(y, layer.fc1_weight.double(), layer.fc1_bias.double()))
        t = t + F.linear(y, layer.fc2_weight.double(), layer.fc2_bias.double())
    t = F.layer_norm(t, (dim,), w.norm_weight.double(), w.norm_bias.double(), w.eps)
    t = t.reshape(batch, patch[0], patch[1], rows, columns, dim).permute(0, 5, 3, 1, 4, 2).reshape(batch, dim, *padded)
    if padded != tuple(size):
        t = F.interpolate(t, size=tuple(size), mode="bilinear", align_corners=False)
    return F.silu(F.conv2d(t, w.out_weight.double(), w.out_bias.double()))


def run_block(x: Tensor, spec: InvertedResidualSpec | MobileViTBlockSpec) -> Tensor:
    if isinstance(spec, InvertedResidualSpec):
        return run_inverted_residual(x, spec)
    if spec.downsampling is not None:
        x = run_inverted_residual(x, spec.downsampling)
    y = conv_silu(x, spec.local, dilation=spec.dilation)
    y = run_transformer(y, spec.transformer, spec.num_heads, spec.patch_size)
    return y if spec.fusion is None else conv_silu(torch.cat((x, y), 1), spec.fusion)


def run_maps(network: NetworkSpec, images: Tensor) -> list[Tensor]:
    """The maps after the stem, after each layer and after the head's convolution."""
    maps = [conv_silu(images, network.stem, stride=2)]
    maps[0] = F.silu(F.conv2d(images, network.stem.weight.double(), network.stem.bias.double(), stride=2, padding=1))
    for layer in network.layers:
        x = maps[-1]
        for spec in layer:
            x = run_block(x, spec)
        maps.append(x)
    if network.head is not None:
        head = network.head
        maps.append(F.silu(F.conv2d(maps[-1], head.conv_weight.double(), head.conv_bias.double())))
    return maps


def run_network(network: NetworkSpec, images: Tensor) -> Tensor:
    """Logits, or pooled features."""
    pooled = run_maps(network, images)[-1].mean((2, 3))
    assert network.head is not None
    if network.head.fc_weight is None:
        return pooled
    assert network.head.fc_bias is not None
    return F.linear(pooled, network.head.fc_weight.double(), network.head.fc_bias.double())


# Models and comparison.


def randomize(model: nn.Module, seed: int = 0) -> Any:
    """Random weights, biases, norms and statistics: no zero, one or equal pair would hide an error. In eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.2
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    python_ref.randomize_batch_norm(model, seed)
    python_ref.randomize_layer_norm(model, seed)
    return model.eval()


def transformers_config(name: str, **options: Any) -> MobileViTConfig:
    c = configs.get_config(name)
    return MobileViTConfig(
        hidden_sizes=list(c.transformer_dims),
        neck_hidden_sizes=[c.stem_channels, *c.layer_channels, c.head_channels],
        expand_ratio=float(c.expand_ratio),
        **options,
    )


def make(source: str, name: str = "mobilevit_xxs", num_classes: int = 7, **options: Any) -> Any:
    if source == "timm":
        model = timm.create_model(name, num_classes=num_classes, **options)
    elif source == "transformers":
        model = MobileViTForImageClassification(transformers_config(name, num_labels=num_classes, **options))
    elif source == "cvnets":
        model = cvnets_standin.MobileViT(name, num_classes, **options)
    else:
        model = python_ref.MobileViT(name, num_classes, **options)
    return randomize(model)


SOURCES = ("timm", "transformers", "cvnets", "reference")


def images(height: int = 64, width: int = 64, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, 3, height, width, generator=generator, dtype=torch.float64)


def in_double(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What the stock model computes in float64; a ModelOutput's logits."""
    with torch.no_grad():
        output = copy.deepcopy(model).double()(*args, **kwargs)
    return output.logits if hasattr(output, "logits") else output


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    error = ((actual - expected).norm() / expected.norm()).item()
    assert error <= RTOL


def tensors_of(value: Any, prefix: str = "") -> dict[str, Any]:
    """Every field of a description, by path."""
    if dataclasses.is_dataclass(value):
        items = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    elif isinstance(value, tuple) and not all(isinstance(part, int) for part in value):
        items = [(str(i), part) for i, part in enumerate(value)]
    else:
        return {prefix: value}
    return {path: leaf for name, part in items for path, leaf in tensors_of(part, f"{prefix}.{name}").items()}


def assert_same(a: NetworkSpec, b: NetworkSpec) -> None:
    """The same description, bit for bit."""
    left, right = tensors_of(a), tensors_of(b)
    assert left.keys() == right.keys()
    for path, value in left.items():
        same = torch.equal(value, right[path]) if isinstance(value, Tensor) else value == right[path]
        assert same, path


# Live networks.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("source", SOURCES)
def test_network_computes_what_the_stock_model_does(source: str, name: str) -> None:
    model = make(source, name)
    read = read_network(model)
    assert read.kind == source
    assert read.channel_order == ("BGR" if source in ("transformers", "cvnets") else "RGB")
    assert read.head_is_standard
    kinds = [[type(block) for block in layer] for layer in read.network.layers]
    inverted, block = InvertedResidualSpec, MobileViTBlockSpec
    assert kinds == [[inverted], [inverted] * 3, [inverted, block], [inverted, block], [inverted, block]]
    assert all(spec.downsampling is None for layer in read.network.layers[2:] for spec in layer[1:])
    for x in (images(64, 64), images(*ODD)):
        assert_close(run_network(read.network, x), in_double(model, x))


@pytest.mark.parametrize("source", SOURCES)
def test_description_is_float32_contiguous_and_its_own(source: str) -> None:
    model = make(source)
    before = copy.deepcopy(model.state_dict())
    for variant in (model, copy.deepcopy(model).to(memory_format=torch.channels_last)):
        network = read_network(variant).network
        theirs = {tensor.untyped_storage().data_ptr() for tensor in variant.state_dict().values()}
        for path, value in tensors_of(network).items():
            if isinstance(value, Tensor):
                assert value.dtype == torch.float32, path
                assert value.is_contiguous(), path
                assert not value.requires_grad, path
                assert value.untyped_storage().data_ptr() not in theirs, path
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_read_exactly(dtype: torch.dtype) -> None:
    model = make("timm").to(dtype)
    assert_same(read_network(model).network, read_network(copy.deepcopy(model).double()).network)


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("source", ["timm", "transformers", "cvnets"])
def test_output_stride(source: str, output_stride: int) -> None:
    model = make(source, output_stride=output_stride)
    network = read_network(model).network
    for x in (images(64, 64), images(*ODD)):
        assert_close(run_network(network, x), in_double(model, x))
    dilations = [(layer[0].dilation, layer[1].dilation) for layer in network.layers[2:]]
    # timm: the first block of a dilated stage keeps the dilation before it; the MobileViT block takes the new one.
    if source == "timm":
        assert dilations == [(1, 1), (1, 2), (2, 4)] if output_stride == 8 else [(1, 1), (1, 1), (1, 2)]
    else:
        assert dilations == [(1, 1), (1, 1), (2, 1)] if output_stride == 8 else [(1, 1), (1, 1), (1, 1)]
    strides = [layer[0].stride for layer in network.layers]
    assert strides == ([1, 2, 2, 1, 1] if output_stride == 8 else [1, 2, 2, 2, 1])


def test_features_only() -> None:
    model = randomize(timm.create_model("mobilevit_s", features_only=True))
    read = read_network(model)
    assert (read.kind, read.head_is_standard) == ("timm", False)
    assert read.network.head is not None
    assert read.network.head.fc_weight is None
    maps = run_maps(read.network, images(*ODD))
    taps = [maps[i] for i in (1, 2, 3, 4, 6)]
    for actual, expected in zip(taps, in_double(model, images(*ODD)), strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("out_indices", [(0,), (1,), (0, 2), (1, 3), (-1,)])
def test_pruned_features(out_indices: tuple[int, ...]) -> None:
    model = randomize(timm.create_model("mobilevit_xxs", features_only=True, out_indices=out_indices))
    network = read_network(model).network
    last = max(i % 5 for i in out_indices)
    assert (network.head is not None) == (last == 4)
    assert len(network.layers) == min(last + 1, 5)
    maps = run_maps(network, images())
    taps = [maps[-1] if i % 5 == 4 else maps[i + 1] for i in out_indices]
    for actual, expected in zip(taps, in_double(model, images()), strict=True):
        assert_close(actual, expected)


def test_features_with_unflattened_stages() -> None:
    net = randomize(timm.create_model("mobilevit_xxs", features_only=True, out_indices=(4,)))
    flat = read_network(net).network
    stages = nn.Sequential(*(net.pop(f"stages_{i}") for i in range(5)))
    final_conv = net.pop("final_conv")
    net["stages"], net["final_conv"] = stages, final_conv
    assert_same(read_network(net).network, flat)


def test_pruned_intermediate_layers() -> None:
    model = make("timm")
    model.prune_intermediate_layers([2])
    read = read_network(model)
    assert (len(read.network.layers), read.network.head, read.head_is_standard) == (3, None, False)
    assert_close(run_maps(read.network, images())[-1], in_double(model, images()))


def test_no_classifier() -> None:
    for source in ("timm", "transformers", "reference"):
        model = make(source, num_classes=0)
        read = read_network(model)
        assert read.head_is_standard
        assert read.network.head is not None
        assert read.network.head.fc_weight is None
        assert_close(run_network(read.network, images()), in_double(model, images()))


@pytest.mark.parametrize("pool", ["", "max", "catavgmax", "avg", "fast"])
def test_timm_pools(pool: str) -> None:
    model = make("timm", num_classes=0 if pool == "" else 7, global_pool=pool)
    read = read_network(model)
    assert read.head_is_standard == (pool in ("avg", "fast"))
    assert read.network.head is not None
    assert (read.network.head.fc_weight is None) == (not read.head_is_standard)
    features = run_maps(read.network, images())[-1]
    stock = copy.deepcopy(model).double()
    assert_close(features, stock.forward_features(images()))
    if not read.head_is_standard:  # what an adapter does: the stock head on the description's features
        assert_close(stock.head(features), stock(images()))


def test_timm_head_of_the_users_own_is_kept() -> None:
    def replaced(change: Callable[[Any], None]) -> Any:
        model = make("timm")
        change(model)
        return model

    class Scaled(ClassifierHead):
        def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
            return 2 * super().forward(x, pre_logits)

    def hooked(m: Any) -> None:
        m.head.global_pool.pool = nn.AdaptiveMaxPool2d(1)
        m.head.register_forward_hook(lambda *args: None)

    for change in (
        lambda m: setattr(m.head, "fc", nn.Sequential(nn.Linear(320, 20), nn.ReLU(), nn.Linear(20, 7))),
        lambda m: setattr(m, "head", nn.Flatten(1)),
        lambda m: setattr(m.head, "drop", nn.Tanh()),
        lambda m: setattr(m.head, "fc", LoRALinear(m.head.fc)),
        lambda m: setattr(m, "head", Scaled(320, 7)),
        hooked,
    ):
        read = read_network(replaced(change))
        assert not read.head_is_standard
        assert read.network.head is not None
        assert read.network.head.fc_weight is None


def test_transformers_backbones() -> None:
    x = images(*ODD)
    for expand_output in (True, False):
        model = randomize(MobileViTModel(transformers_config("mobilevit_xs"), expand_output=expand_output))
        read = read_network(model)
        assert read.head_is_standard == expand_output
        maps = run_maps(read.network, x)
        output = in_double(model, x, output_hidden_states=True)
        for actual, expected in zip(maps[1:6], output.hidden_states, strict=True):
            assert_close(actual, expected)
        assert_close(maps[-1], output.last_hidden_state)
        if expand_output:
            assert_close(run_network(read.network, x), output.pooler_output)


@pytest.mark.parametrize("output_stride", [16, 32])
def test_transformers_segmentation(output_stride: int) -> None:
    config = transformers_config("mobilevit_xxs", output_stride=output_stride, num_labels=5, aspp_out_channels=16)
    model = randomize(MobileViTForSemanticSegmentation(config))
    model.segmentation_head.register_forward_hook(lambda *args: None)  # the head is kept, and its hooks with it
    read = read_network(model)
    assert (read.network.head, read.head_is_standard) == (None, False)
    maps = run_maps(read.network, images())
    with torch.no_grad():
        assert_close(copy.deepcopy(model).double().segmentation_head(maps), in_double(model, images()))


def test_transformers_options() -> None:
    for options in ({"qkv_bias": False}, {"patch_size": 4}, {"num_attention_heads": 2}, {"layer_norm_eps": 1e-3}):
        model = make("transformers", **options)
        network = read_network(model).network
        for x in (images(64, 64), images(*ODD)):
            assert_close(run_network(network, x), in_double(model, x))


def test_cvnets_options() -> None:
    for options in ({"no_fusion": True}, {"patch_h": 1, "patch_w": 4}, {"dilation": 2}):
        model = make("cvnets", **options)
        network = read_network(model).network
        for x in (images(64, 64), images(*ODD)):
            assert_close(run_network(network, x), in_double(model, x))


def test_other_batch_norms() -> None:
    model = make("timm")
    expected = read_network(model).network
    assert_same(read_network(freeze_batch_norm_2d(copy.deepcopy(model))).network, expected)
    assert_same(read_network(convert_sync_batchnorm(copy.deepcopy(model))).network, expected)
    model = make("reference")
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert_same(read_network(synchronised).network, read_network(model).network)


def test_inactive_layers_and_eps_do_not_hinder() -> None:
    model = randomize(timm.create_model("mobilevit_xxs", num_classes=7, drop_path_rate=0.2, drop_rate=0.3))
    for i, module in enumerate(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        module.eps = 1e-3 * (i + 1)
    assert_close(run_network(read_network(model.train()).network, images()), in_double(model.eval(), images()))


def test_plain_batch_norm_and_grey_images() -> None:
    model = randomize(timm.create_model("mobilevit_xxs", num_classes=7, in_chans=1))
    model.final_conv.bn.weight = model.final_conv.bn.bias = None  # as built with affine=False
    x = images()[:, :1]
    assert_close(run_network(read_network(model).network, x), in_double(model, x))


def test_subclasses_that_compute_the_same() -> None:
    class Logged(MobileViTForImageClassification):
        def log(self) -> None: ...

    class Layer(MobileViTLayer):
        pass

    model = Logged(transformers_config("mobilevit_xxs", num_labels=7))
    model.mobilevit.encoder.layer[2].__class__ = Layer
    randomize(model)
    assert_close(run_network(read_network(model).network, images()), in_double(model, images()))


# Live blocks.


def test_timm_blocks() -> None:
    layers = LayerFn(
        conv_norm_act=lambda *args, **kwargs: timm.layers.ConvNormAct(*args, act_layer=nn.SiLU, **kwargs), act=nn.SiLU
    )
    dilated = {"dilation": (2, 2), "patch_size": 2}
    for options in ({"patch_size": (1, 4)}, {"patch_size": (4, 2)}, {"patch_size": 1}, {"no_fusion": True}, dilated):
        for out_chs in (24, 40):
            for heads in (2, 4):
                kwargs: dict[str, Any] = {"patch_size": 2, "transformer_dim": 32, "num_heads": heads, **options}
                block = randomize(MobileVitBlock(24, out_chs, layers=layers, **kwargs))
                x = torch.randn(2, 24, 9, 6, dtype=torch.float64)
                spec = read_block(block)
                assert isinstance(spec, MobileViTBlockSpec)
                assert_close(run_block(x, spec), in_double(block, x))


def test_transformers_block_holds_its_downsampling() -> None:
    model = make("transformers", "mobilevit_xs")
    block = model.mobilevit.encoder.layer[3]
    spec = read_block(block)
    assert isinstance(spec, MobileViTBlockSpec)
    assert spec.downsampling is not None
    x = torch.randn(2, 64, 9, 7, dtype=torch.float64)
    assert_close(run_block(x, spec), in_double(block, x))
    inside = read_block(block.downsampling_layer)
    assert isinstance(inside, InvertedResidualSpec)
    assert_close(run_block(x, inside), in_double(block.downsampling_layer, x))


def test_inverted_residuals_of_timms_mobilevitv2_are_served() -> None:
    block = randomize(timm.create_model("mobilevitv2_050")).stages[1][1]
    spec = read_block(block)
    assert isinstance(spec, InvertedResidualSpec)
    assert spec.residual
    x = torch.randn(1, 64, 8, 8, dtype=torch.float64)
    assert_close(run_block(x, spec), in_double(block, x))


def test_other_modules_are_no_blocks() -> None:
    class InvertedResidual(nn.Module):  # the name alone makes no block
        pass

    strangers = [nn.Conv2d(3, 3, 1), nn.Sequential(), InvertedResidual()]
    strangers += list(timm.create_model("mobilenetv2_050").modules())
    strangers += list(timm.create_model("gernet_s").modules())
    strangers += list(python_ref.VisionTransformer().modules())
    assert [type(module) for module in strangers if read_block(module) is not None] == []


# What is refused.


class LoRALinear(nn.Module):
    """The shape of peft's: a plain layer wrapped, with a low-rank path beside it."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features


class MergingLinear(nn.Linear):
    """The shape of loralib's: a Linear with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class QuantisedTensor(Tensor):
    pass


def replace(path: str, make_new: Callable[[Any], Any]) -> Callable[[nn.Module], None]:
    """Replaces the submodule or attribute at ``path`` by what ``make_new`` makes of it."""

    def change(model: nn.Module) -> None:
        owner, _, name = path.rpartition(".")
        parent = model.get_submodule(owner)
        setattr(parent, name, make_new(getattr(parent, name)))

    return change


def at(path: str, act: Callable[[Any], Any]) -> Callable[[nn.Module], None]:
    """Does something to the submodule at ``path``."""

    def change(model: nn.Module) -> None:
        act(model.get_submodule(path))

    return change


def with_conv(**changes: Any) -> Callable[[Any], Any]:
    """A copy of a convolution with other arguments."""

    def make_new(conv: nn.Conv2d) -> nn.Conv2d:
        names = (
            "in_channels",
            "out_channels",
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "groups",
            "padding_mode",
        )
        return nn.Conv2d(**{"bias": False, **{name: getattr(conv, name) for name in names}, **changes})

    return make_new


def quantise(linear: Any) -> None:
    linear.weight = nn.Parameter(linear.weight.data.as_subclass(QuantisedTensor), requires_grad=False)


def override_on_instance(module: Any) -> None:
    module.forward = lambda *args: None


def override_in_class(method: str) -> Callable[[Any], None]:
    def act(module: Any) -> None:
        original = getattr(type(module), method)

        def changed(self: Any, *args: Any, **kwargs: Any) -> Any:
            return original(self, *args, **kwargs)

        module.__class__ = type("Changed", (type(module),), {method: changed})

    return act


def rebias(conv: Any) -> None:
    conv.bias = nn.Parameter(torch.zeros(conv.out_channels))


def nothing(*args: Any) -> None:
    return None


T = "stages.2.1"  # the first MobileViT block, in timm's and python_ref's naming
H = "mobilevit.encoder.layer.2"
C = "layer_3.1"

LINEARS = {
    "timm": (f"{T}.transformer.0.attn.qkv", f"{T}.transformer.0.mlp.fc2"),
    "transformers": (f"{H}.transformer.layer.1.attention.attention.key", f"{H}.transformer.layer.0.output.dense"),
    "cvnets": (f"{C}.global_rep.0.pre_norm_mha.1.out_proj", f"{C}.global_rep.1.pre_norm_ffn.1"),
    "reference": (f"{T}.transformer.1.attn.proj", "head.fc"),
}
CONVS = {  # one depthwise, one dense 3×3
    "timm": ("stages.0.0.conv2_kxk.conv", f"{T}.conv_fusion.conv"),
    "transformers": ("mobilevit.encoder.layer.0.layer.0.conv_3x3.convolution", f"{H}.conv_kxk.convolution"),
    "cvnets": ("layer_1.0.block.conv_3x3.block.conv", f"{C}.fusion.block.conv"),
    "reference": ("stages.0.0.conv2_kxk.conv", f"{T}.conv_kxk.conv"),
}
NORMS = {  # one BatchNorm, one LayerNorm
    "timm": ("stem.bn", f"{T}.norm"),
    "transformers": (f"{H}.conv_projection.normalization", f"{H}.transformer.layer.0.layernorm_after"),
    "cvnets": ("conv_1.block.norm", f"{C}.global_rep.2"),
    "reference": ("final_conv.bn", f"{T}.transformer.0.norm1"),
}
ACTIVATIONS = {
    "timm": ("stages.1.0.conv1_1x1.bn.act", f"{T}.transformer.0.mlp.act"),
    "transformers": ("mobilevit.conv_stem.activation", f"{H}.transformer.layer.0.intermediate.intermediate_act_fn"),
    "cvnets": ("conv_1.block.act", f"{C}.global_rep.0.pre_norm_ffn.2"),
    "reference": (),
}
BLOCKS = {"timm": T, "transformers": H, "cvnets": C, "reference": T}


def common_refusals() -> list[Any]:
    """(source, change, path in the message, words in the message)"""
    cases = []
    for source in SOURCES:
        block = BLOCKS[source]
        for path in LINEARS[source]:
            cases += [
                (source, replace(path, LoRALinear), path, "LoRALinear"),
                (source, replace(path, lambda m: MergingLinear(m.in_features, m.out_features)), path, "MergingLinear"),
                (source, at(path, quantise), path, "QuantisedTensor"),
            ]
        for path in CONVS[source]:
            cases += [
                (source, replace(path, with_conv(kernel_size=5, padding=2)), path, "5×5"),
                (source, replace(path, with_conv(padding=0)), path, "padding"),
                (source, replace(path, with_conv(padding_mode="reflect")), path, "padding_mode"),
                (source, replace(path, with_conv(stride=(1, 2))), path, "stride"),
                (source, at(path, lambda m: parametrizations.weight_norm(m)), path, "parametris"),
                (source, at(path, lambda m: prune.l1_unstructured(m, "weight", 0.5)), path, "pre-hook"),
            ]
        dense = CONVS[source][1]
        cases.append((source, replace(dense, with_conv(groups=2)), dense, "2 groups"))
        batch_norm, layer_norm = NORMS[source]
        for hook in ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"):
            words = hook.removeprefix("full_").replace("_pre_hook", " pre-hook").replace("_hook", " hook")
            register = f"register_{hook}"
            for path in (block, batch_norm):
                cases.append((source, at(path, lambda m, r=register: getattr(m, r)(nothing)), path, words))
        cases += [
            (source, replace(batch_norm, lambda m: nn.InstanceNorm2d(m.num_features)), batch_norm, "InstanceNorm2d"),
            (source, at(batch_norm, lambda m: setattr(m, "running_mean", None)), batch_norm, "running"),
            (source, at(batch_norm, lambda m: setattr(m, "track_running_stats", False)), batch_norm, "running"),
            (source, replace(layer_norm, lambda m: nn.RMSNorm(m.normalized_shape)), layer_norm, "RMSNorm"),
            (source, at(layer_norm, lambda m: setattr(m, "eps", 0.1)), block, "eps"),
            (source, at(block, override_on_instance), block, "forward"),
            (source, at(block, override_in_class("forward")), block, "forward"),
        ]
        cases += [(source, replace(path, lambda _: nn.ReLU()), path, "ReLU") for path in ACTIVATIONS[source]]
    return cases


def special_refusals() -> list[Any]:
    timm_layer = f"{T}.transformer.0"
    return [
        ("timm", at("", override_in_class("forward_features")), "", "forward_features"),
        ("timm", replace(f"{timm_layer}.ls1", lambda _: nn.Linear(1, 1)), f"{timm_layer}.ls1", "Linear"),
        (
            "timm",
            replace(f"{timm_layer}.attn.q_norm", lambda _: nn.LayerNorm(16)),
            f"{timm_layer}.attn.q_norm",
            "Layer",
        ),
        ("timm", at(f"{timm_layer}.attn", lambda m: setattr(m, "scale", 1.0)), f"{timm_layer}.attn", "scale"),
        ("timm", at(f"{timm_layer}.attn", lambda m: setattr(m, "num_heads", 2)), timm_layer, "heads"),
        (
            "timm",
            replace("stages.0.0.attn", lambda _: timm.layers.SEModule(32)),
            "stages.0.0.attn",
            "squeeze-and-excite",
        ),
        ("timm", replace("stages.0.0.shortcut", lambda _: nn.Conv2d(16, 16, 1)), "stages.0.0.shortcut", "shortcut"),
        ("timm", replace("stages.0.0.drop_path", lambda _: nn.Tanh()), "stages.0.0.drop_path", "Tanh"),
        ("timm", replace("stages.1.0.shortcut", lambda _: nn.Identity()), "stages.1.0", "another shape"),
        ("timm", replace("stages.1", lambda m: nn.ModuleList(m)), "stages.1", "ModuleList"),
        ("timm", at(f"{T}.conv_1x1", rebias), f"{T}.conv_1x1", "bias"),
        ("timm", replace("stem.aa", lambda _: nn.AvgPool2d(2)), "stem.aa", "AvgPool2d"),
        (
            "timm",
            replace(f"{T}.conv_fusion.conv", with_conv(dilation=2, padding=2)),
            f"{T}.conv_fusion.conv",
            "dilation",
        ),
        ("timm", replace("stem.bn.act", lambda _: nn.Identity()), "stem.conv", "expected SiLU"),
        (
            "timm",
            replace("stages.0.0.conv3_1x1.bn.act", lambda _: nn.SiLU()),
            "stages.0.0.conv3_1x1.conv",
            "expected no activation",
        ),
        ("transformers", at("", override_in_class("forward")), "", "forward"),
        ("transformers", at(H, override_in_class("unfolding")), H, "unfolding"),
        ("transformers", at("mobilevit", override_in_class("forward")), "mobilevit", "forward"),
        ("transformers", replace("classifier", LoRALinear), "classifier", "LoRALinear"),
        (
            "transformers",
            at(f"{H}.transformer.layer.0.attention.attention", override_in_class("forward")),
            f"{H}.transformer.layer.0.attention.attention",
            "forward",
        ),
        ("cvnets", at("", override_in_class("extract_features")), "", "extract_features"),
        ("cvnets", at(C, override_in_class("forward_spatial")), C, "forward_spatial"),
        ("cvnets", replace("classifier.fc", LoRALinear), "classifier.fc", "LoRALinear"),
        ("cvnets", at("classifier.fc", lambda m: setattr(m, "channel_first", True)), "classifier.fc", "LinearLayer"),
        (
            "cvnets",
            at("classifier.global_pool", lambda m: setattr(m, "pool_type", "abs")),
            "classifier.global_pool",
            "abs",
        ),
        ("cvnets", replace("classifier", lambda _: None), "", "classifier"),
        (
            "cvnets",
            at("", lambda m: setattr(m, "neural_augmentor", nn.Identity())),
            "neural_augmentor",
            "not supported",
        ),
        ("cvnets", at("layer_1.0.block", lambda m: m.append(nn.ReLU())), "layer_1.0", "made of"),
        ("reference", at(f"{T}.transformer.0.mlp", lambda m: setattr(m, "activation", F.gelu)), T, "SiLU"),
    ]


def block_path(path: str) -> str | None:
    """The block that ``path`` lies in or is, or None."""
    parts = path.split(".")
    for start in ("stages.", "mobilevit.encoder.layer.", "layer_"):
        if path.startswith(start):
            length = {"stages.": 3, "mobilevit.encoder.layer.": 4, "layer_": 2}[start]
            length += 2 if path.startswith("mobilevit.encoder.layer.0") else 0
            return ".".join(parts[:length]) if len(parts) >= length else None
    return None


def described(case: Any) -> str:
    source, _, path, words = case
    return f"{source}-{path or 'model'}-{words}".replace(" ", "_")


@pytest.fixture(scope="module")
def stock() -> dict[str, Any]:
    return {source: make(source) for source in SOURCES}


@pytest.mark.parametrize("case", [*common_refusals(), *special_refusals()], ids=described)
def test_refused_by_name(case: Any, stock: dict[str, Any]) -> None:
    source, change, path, words = case
    model = copy.deepcopy(stock[source])
    read_network(model)
    change(model)
    with pytest.raises(Unsupported) as caught:
        read_network(model)
    message = str(caught.value)
    assert message.startswith(f"{path}." if path and f"{path} (" not in message else path)
    assert words in message
    block = block_path(path)
    if block is not None:  # the same on the block alone, named relative to it
        below = path.removeprefix(block).removeprefix(".")
        with pytest.raises(Unsupported) as caught:
            read_block(model.get_submodule(block))
        assert str(caught.value).startswith(below)
        assert words in str(caught.value)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_old_style_weight_norm_is_refused_with_the_remedy() -> None:
    model = make("reference")
    torch.nn.utils.weight_norm(model.head.fc)
    with pytest.raises(Unsupported, match=r"head\.fc \(Linear\).*WeightNorm.*remove_weight_norm"):
        read_network(model)


def test_check_plain_names_the_path_and_passes_plain_modules() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU()))
    check_plain(model)
    model[1][0].register_forward_hook(nothing)
    with pytest.raises(Unsupported, match=r"^outer\.1\.0 \(ReLU\)"):
        check_plain(model, "outer")
    replaced = nn.Sequential(nn.Linear(2, 2))
    override_on_instance(replaced[0])
    with pytest.raises(Unsupported, match=r"^0 \(Linear\): its forward was replaced"):
        check_plain(replaced)


def semobilevit() -> nn.Module:
    return ByobNet(model_cfgs["semobilevit_s"])


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: timm.create_model("mobilevitv2_050"), "MobileViTv2"),
        (lambda: timm.create_model("mobilevitv2_050", features_only=True), "MobileViTv2"),
        (lambda: MobileViTV2Model(MobileViTV2Config(width_multiplier=0.5)), "MobileViTv2"),
        (lambda: MobileViTV2ForImageClassification(MobileViTV2Config(width_multiplier=0.5)), "MobileViTv2"),
        (lambda: timm.create_model("mobilevit_xxs", act_layer="relu"), "ReLU"),
        (
            lambda: timm.create_model("mobilevit_xxs", features_only=True, feature_cls="hook"),
            "FeatureHookNet.*feature_cls",
        ),
        (
            lambda: timm.create_model("mobilevit_xxs", features_only=True, feature_cls="dict"),
            "FeatureDictNet.*feature_cls",
        ),
        (lambda: timm.create_model("resnet18", features_only=True), "conv1"),
        (lambda: timm.create_model("gernet_s"), "ReLU"),
        (lambda: timm.create_model("regnetz_b16"), r"stages\.0\.0 \(BottleneckBlock\): not a block of MobileViT"),
        (lambda: timm.create_model("resnet18"), "ResNet"),
        (lambda: nn.DataParallel(timm.create_model("mobilevit_xxs")), r"\.module"),
        (lambda: torch.compile(timm.create_model("mobilevit_xxs")), "_orig_mod"),
        (lambda: nn.Sequential(timm.create_model("mobilevit_xxs")), "Sequential"),
    ],
)
def test_networks_refused(build: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(Unsupported, match=words):
        read_network(build())


def test_squeeze_and_excite_is_refused() -> None:
    model = semobilevit()
    with pytest.raises(Unsupported, match=r"ReLU|squeeze-and-excite"):
        read_network(model)
    block = model.stages[0][0]
    assert isinstance(block, BottleneckBlock)
    with pytest.raises(Unsupported, match=r"^attn .*squeeze-and-excite"):
        read_block(block)


def test_blocks_of_relatives_are_refused() -> None:
    for block in (
        timm.create_model("mobilevitv2_050").stages[2][1],
        MobileViTV2Model(MobileViTV2Config(width_multiplier=0.5)).encoder.layer[2],
        MobileViTV2Model(MobileViTV2Config(width_multiplier=0.5)).encoder.layer[0].layer[0],
    ):
        with pytest.raises(Unsupported, match="MobileViTv2"):
            read_block(block)


def test_cvnets_relatives_are_refused() -> None:
    class MobileViTv3(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.__dict__.update(vars(make("cvnets")))

    with pytest.raises(Unsupported, match=r"^MobileViTv3: not ml-cvnets' MobileViT"):
        read_network(MobileViTv3())
    # MobileViTv3's blocks keep the name and change the convolutions: a depthwise one, and a fusion of 1×1.
    block = cvnets_standin.MobileViTBlock(48, 64, 128, head_dim=16)
    block.fusion = cvnets_standin.ConvLayer2d(96, 48, 1)
    with pytest.raises(Unsupported, match=r"^fusion\.block\.conv .*1×1"):
        read_block(block)

    class MobileViTBlockv2(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.global_rep = nn.Sequential()

    with pytest.raises(Unsupported, match=r"^MobileViTBlockv2: MobileViTv2"):
        read_block(MobileViTBlockv2())


def test_cvnets_block_without_expansion_is_refused() -> None:
    with pytest.raises(Unsupported, match="exp_1x1"):
        read_block(cvnets_standin.InvertedResidual(16, 16, 1, 1))


def test_no_module() -> None:
    with pytest.raises(TypeError, match="model"):
        read_network("mobilevit_s")  # type: ignore[arg-type]


def test_nothing_foreign_is_imported() -> None:
    code = (
        "import sys, python_ref, mobilevit_kernels.convert as c; c.read_network(python_ref.MobileViT('xxs')); "
        "sys.exit(any(m.split('.')[0] in ('timm', 'transformers', 'cvnets', 'safetensors') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0


# Checkpoints.


def state_of(source: str, name: str = "mobilevit_xxs", **options: Any) -> dict[str, Tensor]:
    return dict(make(source, name, **options).state_dict())


def save(state: Any, path: Path) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("source", SOURCES)
def test_checkpoint_round_trip(source: str, suffix: str, tmp_path: Path) -> None:
    model = make(source)
    live = read_network(model)
    loaded = load_network("mobilevit_xxs", save(model.state_dict(), tmp_path / f"weights{suffix}"))
    stem = live.network.stem
    if live.channel_order == "BGR":
        stem = dataclasses.replace(stem, weight=stem.weight.flip(1))
    assert_same(loaded, dataclasses.replace(live.network, stem=stem))
    assert all(value.is_contiguous() for value in tensors_of(loaded).values() if isinstance(value, Tensor))


@pytest.mark.parametrize("num_classes", [7, 0])
@pytest.mark.parametrize("prefix", ["", "mobilevit."])
def test_an_optimized_network_s_own_state_dict(prefix: str, num_classes: int, tmp_path: Path) -> None:
    fast = mvk.optimize(make("timm", num_classes=num_classes))
    state = {prefix + key: tensor for key, tensor in fast.state_dict().items()}
    path = save(state, tmp_path / "own.safetensors")
    loaded = mvk.load("mobilevit_xxs", path)
    x = images()
    with torch.inference_mode():
        assert torch.equal(loaded(x), fast(x))
    with pytest.raises(ValueError, match="weights of an optimized network that do not fit mobilevit_s"):
        mvk.load("mobilevit_s", path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("source", SOURCES)
def test_loaded_network_takes_rgb(source: str, name: str, tmp_path: Path) -> None:
    model = make(source, name)
    network = load_network(name, str(save(model.state_dict(), tmp_path / "weights.pt")))
    rgb = images()
    theirs = rgb.flip(1) if source in ("transformers", "cvnets") else rgb
    assert_close(run_network(network, rgb), in_double(model, theirs))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "epoch": 3, "arch": "mobilevit_xxs"},
        lambda s: {"model": s},
        lambda s: {"model_state_dict": s, "optim_state_dict": {"state": {}}},
        lambda s: {"model_ema": s, "model": {k: v * 0 for k, v in s.items()}},
        lambda s: {"state_dict_ema": s, "state_dict": {k: v * 0 for k, v in s.items()}},
        lambda s: {"model": {"state_dict": s}},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}},
        lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    ],
)
@pytest.mark.parametrize("source", ["timm", "transformers", "cvnets"])
def test_wrappers(source: str, wrap: Callable[[dict[str, Tensor]], Any], tmp_path: Path) -> None:
    state = state_of(source)
    plain = load_network("mobilevit_xxs", save(state, tmp_path / "plain.pt"))
    assert_same(load_network("mobilevit_xxs", save(wrap(state), tmp_path / "wrapped.pt")), plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_checkpoint_dtypes_are_read_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {key: value.to(dtype) for key, value in state_of("timm").items() if value.is_floating_point()}
    wide = {key: value.double() for key, value in state.items()}
    loaded = load_network("mobilevit_xxs", save(state, tmp_path / "narrow.safetensors"))
    assert_same(loaded, load_network("mobilevit_xxs", save(wide, tmp_path / "wide.safetensors")))
    weight = loaded.layers[2][1].transformer.in_weight  # type: ignore[union-attr]
    assert torch.equal(weight.to(dtype), state["stages.2.1.conv_1x1.weight"].float().to(dtype))


def test_checkpoints_without_classifier_and_backbones(tmp_path: Path) -> None:
    for source in SOURCES:
        state = {key: value for key, value in state_of(source).items() if "classifier" not in key and "fc." not in key}
        state |= {key: value for key, value in state_of(source).items() if "mlp.fc" in key}
        head = load_network("mobilevit_xxs", save(state, tmp_path / f"{source}.pt")).head
        assert isinstance(head, HeadWeights)
        assert head.fc_weight is None
    backbone = randomize(MobileViTModel(transformers_config("mobilevit_xxs")))
    network = load_network("mobilevit_xxs", save(backbone.state_dict(), tmp_path / "backbone.pt"))
    assert_close(run_network(network, images()), in_double(backbone, images().flip(1)).pooler_output)


def test_checkpoint_without_qkv_bias(tmp_path: Path) -> None:
    model = make("transformers", qkv_bias=False)
    network = load_network("mobilevit_xxs", save(model.state_dict(), tmp_path / "weights.pt"))
    assert_close(run_network(network, images()), in_double(model, images().flip(1)))


def test_non_finite_tensors_are_accepted(tmp_path: Path) -> None:
    state = state_of("timm")
    state["head.fc.weight"][0, 0] = torch.nan
    state["stem.conv.weight"][0, 0, 0, 0] = torch.inf
    network = load_network("mobilevit_xxs", save(state, tmp_path / "weights.pt"))
    assert network.head is not None
    assert network.head.fc_weight is not None
    assert network.head.fc_weight[0, 0].isnan()
    assert network.stem.weight[0, 0, 0, 0].isinf()


def test_wrong_architecture_names_the_one_that_fits(tmp_path: Path) -> None:
    for source in ("timm", "transformers", "cvnets"):
        path = save(state_of(source, "mobilevit_xs"), tmp_path / f"{source}.pt")
        with pytest.raises(
            ValueError, match=r"mobilevit_s: .*of another shape: .*its shapes are those of mobilevit_xs"
        ):
            load_network("mobilevit_s", path)


def renamed(old: str, new: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {key.replace(old, new): value for key, value in state.items()}


@pytest.mark.parametrize(
    ("source", "change", "words"),
    [
        ("timm", lambda s: s.pop("stages.2.1.norm.weight"), ["1 missing: stages.2.1.norm.weight"]),
        ("timm", lambda s: s.pop("head.fc.weight"), ["1 missing: head.fc.weight"]),
        ("timm", lambda s: s.pop("head.fc.bias"), ["1 missing: head.fc.bias"]),
        ("timm", lambda s: s.pop("stem.bn.running_var"), ["1 missing: stem.bn.running_var"]),
        ("timm", lambda s: s.update(lora_A=torch.zeros(2)), ["1 unexpected: lora_A"]),
        ("timm", lambda s: s.update(epoch=3), ["1 unexpected: epoch"]),
        (
            "timm",
            lambda s: s.update({"stem.conv.weight": s["stem.conv.weight"][:, :1]}),
            ["1 of another shape: stem.conv.weight (expected (16, 3, 3, 3), got (16, 1, 3, 3))"],
        ),
        (
            "timm",
            lambda s: s.update({"stem.bn.weight": torch.ones(16, dtype=torch.int8)}),
            ["stem.bn.weight (expected a floating-point tensor, got torch.int8)"],
        ),
        (
            "timm",
            lambda s: [s.pop(k) for k in list(s) if k.startswith("stages.4.")] and s.update(extra=torch.zeros(1)),
            [" missing: stages.4.0.conv1_1x1.conv.weight, ", ", …", "1 unexpected: extra"],
        ),
        (
            "transformers",
            lambda s: s.pop("mobilevit.encoder.layer.2.transformer.layer.0.attention.attention.key.bias"),
            ["1 missing: encoder.layer.2.transformer.layer.0.attention.attention.key.bias"],
        ),
        ("cvnets", lambda s: s.pop("layer_3.1.global_rep.2.bias"), ["1 missing: layer_3.1.global_rep.2.bias"]),
        (
            "cvnets",
            lambda s: s.update({"layer_5.1.fusion.block.conv.bias": torch.zeros(3)}),
            ["layer_5.1.fusion.block.conv.bias (expected (80,), got (3,))"],
        ),
    ],
)
def test_tensors_that_do_not_fit(
    source: str, change: Callable[[dict[str, Any]], Any], words: list[str], tmp_path: Path
) -> None:
    state: dict[str, Any] = state_of(source)
    change(state)
    path = save(state, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="do not fit mobilevit_xxs") as caught:
        load_network("mobilevit_xxs", path)
    message = str(caught.value)
    assert str(path) in message
    assert all(word in message for word in words), message
    assert "its shapes are those" not in message


def test_relatives_checkpoints_are_refused(tmp_path: Path) -> None:
    v2 = {
        "timm": timm.create_model("mobilevitv2_050").state_dict(),
        "transformers": MobileViTV2ForImageClassification(MobileViTV2Config(width_multiplier=0.5)).state_dict(),
        "cvnets": {
            "conv_1.block.conv.weight": torch.zeros(1),
            "layer_3.1.global_rep.0.pre_norm_attn.0.weight": torch.ones(1),
        },
    }
    for source, state in v2.items():
        with pytest.raises(Unsupported, match="MobileViTv2"):
            load_network("mobilevit_xxs", save(state, tmp_path / f"{source}.pt"))
    config = transformers_config("mobilevit_xxs", aspp_out_channels=16)
    state = MobileViTForSemanticSegmentation(config).state_dict()
    with pytest.raises(Unsupported, match="segmentation"):
        load_network("mobilevit_xxs", save(state, tmp_path / "segmentation.pt"))


class Opaque:
    """A class that a pickle would have to import."""


def test_bad_files(tmp_path: Path) -> None:
    good = save(state_of("timm"), tmp_path / "good.pt").read_bytes()
    safe = save(state_of("timm"), tmp_path / "good.safetensors").read_bytes()

    def file(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    torch.save({"state_dict": state_of("timm"), "args": Opaque()}, tmp_path / "code.pt")
    torch.save(make("timm"), tmp_path / "module.pt")
    cases = [
        (tmp_path / "absent.pt", FileNotFoundError, "no such"),
        (tmp_path / "absent.safetensors", FileNotFoundError, "no such"),
        (tmp_path, ValueError, "directory"),
        (file("empty.pt", b""), ValueError, "empty"),
        (file("empty.safetensors", b""), ValueError, "empty"),
        (file("truncated.pt", good[: len(good) // 2]), ValueError, "damaged"),
        (file("short.pt", good[:10]), ValueError, "damaged"),
        (file("truncated.safetensors", safe[: len(safe) // 2]), ValueError, "damaged"),
        (file("text.pt", b"these are not weights\n" * 20), ValueError, "damaged"),
        (file("text.safetensors", b"these are not weights\n" * 20), ValueError, "damaged"),
        (file("pickle.safetensors", good), ValueError, "damaged"),
        (tmp_path / "code.pt", ValueError, r"needs .*Opaque to be run"),
        (tmp_path / "module.pt", ValueError, r"needs .*ByobNet to be run"),
        (save([torch.zeros(1)], tmp_path / "list.pt"), ValueError, "state dict.*list"),
        (save({"lr": 0.1}, tmp_path / "numbers.pt"), ValueError, "state dict"),
        (
            save({"fc.weight": torch.zeros(1)}, tmp_path / "other.pt"),
            ValueError,
            "not a MobileViT checkpoint.*fc.weight",
        ),
    ]
    for path, error, words in cases:
        with pytest.raises(error, match=words) as caught:
            load_network("mobilevit_xxs", path)
        assert str(path) in str(caught.value)
        assert len(str(caught.value)) < 400


def test_bad_name(tmp_path: Path) -> None:
    for name in ("mobilevit_l", "mobilevitv2_050", ""):
        with pytest.raises(ValueError, match="mobilevit_xxs, mobilevit_xs, mobilevit_s"):
            load_network(name, tmp_path / "absent.pt")
