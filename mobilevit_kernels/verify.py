"""The numerical contract: every stage against float64, with the stock computation's own error as the yardstick.

``reference`` is each stage in plain PyTorch, written apart from every backend. In float64 it is the truth; in a lower
dtype it is the stock computation. A backend passes where its relative L2 error against the truth is at most
``MAX_STAGE_RATIO`` times the stock's, in float32 where it is at most ``MAX_FLOAT32_ERROR``.

Above 500 lines, so that the whole contract, each stage's reference and its random cases can be read in one place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

import python_ref
from mobilevit_kernels import canonical, ops, registry
from mobilevit_kernels.canonical import (
    Conv3x3Weights,
    EncoderLayerWeights,
    HeadWeights,
    InvertedResidualSpec,
    InvertedResidualWeights,
    MobileViTBlockSpec,
    NetworkSpec,
    StageWeights,
    StemWeights,
    TransformerWeights,
)
from mobilevit_kernels.config import CONFIGS, MobileViTConfig

__all__ = [
    "MAX_FLOAT32_ERROR",
    "MAX_NETWORK_RATIO",
    "MAX_STAGE_RATIO",
    "NetworkCase",
    "Result",
    "StageCase",
    "available",
    "check",
    "check_network",
    "check_stage",
    "judge",
    "judge_draws",
    "network_cases",
    "plan",
    "random_network",
    "random_weights",
    "reference",
    "reference_network",
    "relative_error",
    "stock",
]

MAX_STAGE_RATIO = 2.0  # a stage's error over the stock's at the same dtype, worst case
MAX_NETWORK_RATIO = 1.3  # the same for whole networks, worst case
MAX_FLOAT32_ERROR = 1e-5  # relative L2, in float32


def relative_error(result: Tensor, truth: Tensor) -> float:
    """``‖result − truth‖ / ‖truth‖`` in float64; 0 for two empty tensors, infinite where either is not finite."""
    if truth.numel() == 0:
        return 0.0
    error = (result.double() - truth.double()).norm() / truth.double().norm()
    return error.item() if error.isfinite() else float("inf")


# --- the stages in plain PyTorch -------------------------------------------------------------------------------------


def _stem(x: Tensor, weights: StemWeights, *, normalize: Any = None) -> Tensor:
    if x.dtype == torch.uint8:
        x = x.permute(0, 3, 1, 2).to(weights.weight.dtype) / 255
    if normalize is not None:
        mean, std = (x.new_tensor(values).reshape(-1, 1, 1) for values in normalize)
        x = (x - mean) / std
    return F.silu(F.conv2d(x, weights.weight, weights.bias, stride=2, padding=1))


def _conv3x3(
    x: Tensor, weights: Conv3x3Weights, *, x2: Tensor | None = None, dilation: int = 1, activation: str = "silu"
) -> Tensor:
    if x2 is not None:
        x = torch.cat([x, x2], dim=1)
    y = F.conv2d(x, weights.weight, weights.bias, padding=dilation, dilation=dilation)
    return F.silu(y) if activation == "silu" else y


def _inverted_residual(
    x: Tensor, weights: InvertedResidualWeights, *, stride: int = 1, dilation: int = 1, residual: bool = False
) -> Tensor:
    hidden = F.silu(F.conv2d(x, weights.expand_weight, weights.expand_bias))
    hidden = F.conv2d(
        hidden, weights.depthwise_weight, weights.depthwise_bias, stride, dilation, dilation, groups=hidden.shape[1]
    )
    y = F.conv2d(F.silu(hidden), weights.project_weight, weights.project_bias)
    return x + y if residual else y


Attention: TypeAlias = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """(S, heads, N, head_dim) each: softmax(q·kᵀ·scale)·v."""
    return torch.softmax(q @ k.transpose(-2, -1) * scale, dim=-1) @ v


def _heads(attention: Attention, q: Tensor, k: Tensor, v: Tensor, num_heads: int, scale: float) -> Tensor:
    """Sequences (S, N, D) each → (S, N, D), through ``attention`` a head."""
    q, k, v = (part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in (q, k, v))
    return attention(q, k, v, scale).transpose(1, 2).flatten(2)


def _transformer(
    x: Tensor,
    weights: TransformerWeights,
    *,
    num_heads: int = 4,
    patch_size: tuple[int, int] = (2, 2),
    attention: Attention = _softmax_attention,
) -> Tensor:
    y = F.conv2d(x, weights.in_weight)
    height, width = y.shape[2:]
    whole = (-(-height // patch_size[0]) * patch_size[0], -(-width // patch_size[1]) * patch_size[1])
    if whole != (height, width):
        y = F.interpolate(y, size=whole, mode="bilinear", align_corners=False)
    tokens = python_ref.unfold(y, patch_size)
    dim = (tokens.shape[-1],)
    scale = (dim[0] // num_heads) ** -0.5
    for layer in weights.layers:
        normed = F.layer_norm(tokens, dim, layer.norm1_weight, layer.norm1_bias, weights.eps)
        q, k, v = F.linear(normed, layer.qkv_weight, layer.qkv_bias).chunk(3, dim=-1)
        tokens = tokens + F.linear(_heads(attention, q, k, v, num_heads, scale), layer.proj_weight, layer.proj_bias)
        normed = F.layer_norm(tokens, dim, layer.norm2_weight, layer.norm2_bias, weights.eps)
        hidden = F.silu(F.linear(normed, layer.fc1_weight, layer.fc1_bias))
        tokens = tokens + F.linear(hidden, layer.fc2_weight, layer.fc2_bias)
    tokens = F.layer_norm(tokens, dim, weights.norm_weight, weights.norm_bias, weights.eps)
    y = python_ref.fold(tokens, patch_size, whole)
    if whole != (height, width):
        y = F.interpolate(y, size=(height, width), mode="bilinear", align_corners=False)
    return F.silu(F.conv2d(y, weights.out_weight, weights.out_bias))


def _unfold_attention_fold(
    qkv: Tensor,
    weights: None,
    *,
    num_heads: int,
    patch_size: tuple[int, int] = (2, 2),
    scale: float | None = None,
    attention: Attention = _softmax_attention,
) -> Tensor:
    q, k, v = (python_ref.unfold(part, patch_size) for part in qkv.chunk(3, dim=1))
    scale = (q.shape[-1] // num_heads) ** -0.5 if scale is None else scale
    return python_ref.fold(_heads(attention, q, k, v, num_heads, scale), patch_size, (qkv.shape[2], qkv.shape[3]))


def _head(x: Tensor, weights: HeadWeights, *, pool: bool = True) -> Tensor:
    y = F.silu(F.conv2d(x, weights.conv_weight, weights.conv_bias))
    if not pool:
        return y
    y = y.mean((2, 3))
    return y if weights.fc_weight is None else F.linear(y, weights.fc_weight, weights.fc_bias)


_REFERENCE: dict[str, Callable[..., Tensor]] = {
    "stem": _stem,
    "conv3x3": _conv3x3,
    "inverted_residual": _inverted_residual,
    "transformer": _transformer,
    "unfold_attention_fold": _unfold_attention_fold,
    "head": _head,
}


def reference(
    stage: str, x: Tensor, weights: StageWeights | None, *, dtype: torch.dtype = torch.float64, **options: Any
) -> Tensor:
    """A stage in plain PyTorch, computed in ``dtype``.

    Args:
        stage: an op's name.
        x: its input, of any dtype.
        weights: canonical weights; None for unfold_attention_fold.
        dtype: everything is cast to it first (uint8 images stay so).
        options: the op's own, and ``attention``: another writing of softmax(q·kᵀ·scale)·v for the stages that have it.
    """
    return stock(stage, weights, dtype, x.device, **options)(x if x.dtype == torch.uint8 else x.to(dtype))


def stock(
    stage: str, weights: StageWeights | None, dtype: torch.dtype, device: torch.device | str = "cpu", **options: Any
) -> Callable[[Tensor], Tensor]:
    """:func:`reference` with everything but the input cast to ``dtype`` beforehand, to be called many times."""
    cast = {name: value.to(dtype) if isinstance(value, Tensor) else value for name, value in options.items()}
    if weights is not None:
        tensors = {name: tensor.to(device, dtype) for name, tensor in canonical.named_tensors(weights)}
        others = {"eps": weights.eps} if isinstance(weights, TransformerWeights) else {}
        weights = canonical.from_tensors(type(weights), tensors, **others)
    run = _REFERENCE[stage]

    def call(x: Tensor) -> Tensor:
        with torch.no_grad():
            return run(x, weights, **cast)

    return call


def reference_network(
    spec: NetworkSpec, x: Tensor, *, dtype: torch.dtype = torch.float64, normalize: Any = None
) -> Tensor:
    """A whole network in plain PyTorch, stage after stage, computed in ``dtype``.

    Args:
        spec: canonical description.
        x: images, as for :class:`mobilevit_kernels.MobileViT`.
        dtype: of all arithmetic.
        normalize: as for :func:`mobilevit_kernels.ops.stem`.
    """
    x = reference("stem", x, spec.stem, dtype=dtype, normalize=normalize)
    for block in (block for layer in spec.layers for block in layer):
        if isinstance(block, InvertedResidualSpec):
            x = _reference_inverted_residual(block, x, dtype)
            continue
        if block.downsampling is not None:
            x = _reference_inverted_residual(block.downsampling, x, dtype)
        y = reference("conv3x3", x, block.local, dtype=dtype, dilation=block.dilation)
        y = reference(
            "transformer", y, block.transformer, dtype=dtype, num_heads=block.num_heads, patch_size=block.patch_size
        )
        x = y if block.fusion is None else reference("conv3x3", x, block.fusion, dtype=dtype, x2=y)
    return x if spec.head is None else reference("head", x, spec.head, dtype=dtype)


def _reference_inverted_residual(block: InvertedResidualSpec, x: Tensor, dtype: torch.dtype) -> Tensor:
    options = {"stride": block.stride, "dilation": block.dilation, "residual": block.residual}
    return reference("inverted_residual", x, block.weights, dtype=dtype, **options)


# --- random weights --------------------------------------------------------------------------------------------------


def random_weights(stage: str, sizes: tuple[int, ...], generator: torch.Generator) -> StageWeights:
    """Canonical weights with BatchNorm and LayerNorm statistics drawn at random.

    Args:
        stage: a stage's name.
        sizes: as in :class:`~mobilevit_kernels.packed.Packed`.
        generator: a CPU generator.
    """

    def normal(*shape: int, std: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator) * std

    def uniform(size: int, low: float, high: float) -> Tensor:
        return torch.rand(size, generator=generator) * (high - low) + low

    def conv(out_channels: int, in_channels: int, kernel_size: int) -> tuple[Tensor, Tensor]:
        """A convolution of about unit gain with a random BatchNorm folded into it."""
        weight = normal(out_channels, in_channels, kernel_size, kernel_size, std=(in_channels * kernel_size**2) ** -0.5)
        return canonical.fold_batch_norm(
            weight,
            None,
            running_mean=normal(out_channels, std=0.2),
            running_var=uniform(out_channels, 0.5, 2.0),
            gamma=uniform(out_channels, 0.6, 1.4),
            beta=normal(out_channels, std=0.2),
            eps=1e-5,
        )

    def linear(out_features: int, in_features: int) -> tuple[Tensor, Tensor]:
        return normal(out_features, in_features, std=in_features**-0.5), normal(out_features, std=0.1)

    def norm(dim: int) -> tuple[Tensor, Tensor]:
        return uniform(dim, 0.6, 1.4), normal(dim, std=0.2)

    if stage == "stem":
        return StemWeights(*conv(sizes[1], sizes[0], 3))
    if stage == "conv3x3":
        return Conv3x3Weights(*conv(sizes[1], sizes[0], 3))
    if stage == "inverted_residual":
        in_channels, hidden_channels, out_channels = sizes
        return InvertedResidualWeights(
            *conv(hidden_channels, in_channels, 1),
            *conv(hidden_channels, 1, 3),
            *conv(out_channels, hidden_channels, 1),
        )
    if stage == "transformer":
        in_channels, dim, mlp_dim, num_layers, out_channels = sizes
        layers = tuple(
            EncoderLayerWeights(
                *norm(dim), *linear(3 * dim, dim), *linear(dim, dim),
                *norm(dim), *linear(mlp_dim, dim), *linear(dim, mlp_dim),
            )
            for _ in range(num_layers)
        )  # fmt: skip
        out_weight, out_bias = conv(out_channels, dim, 1)
        in_weight = normal(dim, in_channels, 1, 1, std=in_channels**-0.5)
        return TransformerWeights(in_weight, layers, *norm(dim), out_weight, out_bias)
    in_channels, hidden_channels, num_classes = sizes
    classifier = linear(num_classes, hidden_channels) if num_classes else (None, None)
    return HeadWeights(*conv(hidden_channels, in_channels, 1), *classifier)


def random_network(config: MobileViTConfig, generator: torch.Generator, num_classes: int = 1000) -> NetworkSpec:
    """A network of random canonical weights, as :func:`random_weights` draws them."""

    def weights(case: StageCase) -> Any:
        return random_weights(case.stage, case.sizes, generator)

    by_path = dict(_cases_of(config, 1, 256, 256))
    layers = []
    for i in range(len(config.layer_channels)):
        blocks: list[InvertedResidualSpec | MobileViTBlockSpec] = []
        for j in range(config.inverted_residuals_per_layer[i]):
            case = by_path[f"layers.{i}.{j}.stage"]
            blocks.append(InvertedResidualSpec(weights(case), case.options["stride"], 1, case.options["residual"]))
        path = f"layers.{i}.{config.inverted_residuals_per_layer[i]}"
        if f"{path}.local" in by_path:
            local, transformer, fusion = (weights(by_path[f"{path}.{n}"]) for n in ("local", "transformer", "fusion"))
            blocks.append(MobileViTBlockSpec(local, transformer, fusion, config.num_heads, config.patch_size))
        layers.append(tuple(blocks))
    head = random_weights("head", (*by_path["head"].sizes[:2], num_classes), generator)
    return NetworkSpec(weights(by_path["stem"]), tuple(layers), head)  # type: ignore[arg-type]


# --- cases -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageCase:
    """One stage on one input shape.

    Attributes:
        stage: the op's name.
        sizes: of the weights, as in :class:`~mobilevit_kernels.packed.Packed`; () for unfold_attention_fold.
        x_shape: (B, C, H, W); (B, H, W, C) for uint8 images.
        options: the op's own; ``x2_channels`` stands for a second input of that many channels.
        image: "float" or "uint8", the stem's input.
    """

    stage: str
    sizes: tuple[int, ...]
    x_shape: tuple[int, int, int, int]
    options: dict[str, Any] = field(default_factory=dict)
    image: str = "float"

    def __str__(self) -> str:
        options = "".join(f" {key}={value}" for key, value in self.options.items())
        sizes = "→".join(map(str, self.sizes))
        return f"{self.stage} {sizes} {'×'.join(map(str, self.x_shape))}{options}"

    def build(self, seed: int = 0) -> tuple[Tensor, StageWeights | None, dict[str, Any]]:
        """Random input (float32 or uint8), canonical weights and the op's options, on the CPU."""
        generator = torch.Generator().manual_seed(seed)
        weights = random_weights(self.stage, self.sizes, generator) if self.sizes else None
        if self.image == "uint8":
            x = torch.randint(0, 256, self.x_shape, generator=generator, dtype=torch.uint8)
        elif self.stage == "stem":
            x = torch.rand(self.x_shape, generator=generator)
        else:
            x = torch.randn(self.x_shape, generator=generator)
        options = dict(self.options)
        if (channels := options.pop("x2_channels", None)) is not None:
            batch, _, height, width = self.x_shape
            options["x2"] = torch.randn((batch, channels, height, width), generator=generator)
        return x, weights, options


@dataclass(frozen=True)
class NetworkCase:
    """A whole network on one input shape, with random weights."""

    model: str
    x_shape: tuple[int, int, int, int]

    def __str__(self) -> str:
        return f"{self.model} {'×'.join(map(str, self.x_shape))}"

    def build(self, seed: int = 0) -> tuple[Tensor, NetworkSpec]:
        """Random images (float32) and a random network, on the CPU."""
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(self.x_shape, generator=generator), random_network(CONFIGS[self.model], generator)


@dataclass(frozen=True)
class Result:
    """A stage or network on a backend against float64.

    Attributes:
        name, backend, dtype: what was run.
        error: relative L2 error of the backend.
        stock_error: of the stock computation in the same dtype on the same inputs.
        passed: within the contract.
    """

    name: str
    backend: str
    dtype: torch.dtype
    error: float
    stock_error: float
    passed: bool

    @property
    def ratio(self) -> float:
        """``error / stock_error``."""
        if self.stock_error:
            return self.error / self.stock_error
        return float("inf") if self.error else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "name": self.name,
            "backend": self.backend,
            "dtype": str(self.dtype).removeprefix("torch."),
            "rel_l2_err": self.error,
            "stock_rel_l2_err": self.stock_error,
            "ratio": self.ratio,
            "passed": self.passed,
        }


def judge(
    name: str, backend: str, dtype: torch.dtype, result: Tensor, truth: Tensor, stock: Tensor, max_ratio: float
) -> Result:
    """Compares a result and the stock's with the truth and applies the contract."""
    error, stock_error = relative_error(result, truth), relative_error(stock, truth)
    if dtype in (torch.float32, torch.float64):
        limit = MAX_FLOAT32_ERROR  # absolute: a stock that happens to round well must not fail its equal
    else:
        limit = max(max_ratio * stock_error, torch.finfo(dtype).eps / 8)
    return Result(name, backend, dtype, error, stock_error, error <= limit)


Draw: TypeAlias = tuple[Tensor, Tensor, Tensor]  # a result, the truth, the stock's result


def judge_draws(
    name: str, backend: str, dtype: torch.dtype, draws: Sequence[Draw], max_ratio: float = MAX_NETWORK_RATIO
) -> Result:
    """:func:`judge` over several draws of a network's weights together, the first of which was above the bound.

    Most of a network's error in 16 bits comes from the rounding of its weights and is the same for all images: a draw
    of weights is one sample of it, whatever the number of images, and the ratio of two such samples is a matter of
    chance. Errors are pooled as absolute ones, the first draw's included: that one passes at no more than
    ``max_ratio · √n`` times the stock's usual error, so that a fault which only its weights show does not get away.

    Args:
        name, backend, dtype, max_ratio: as for :func:`judge`.
        draws: the first one included.
    """
    results, truths, stocks = (
        torch.cat([part.double().flatten() for part in parts]) for parts in zip(*draws, strict=True)
    )
    return judge(name, backend, dtype, results, truths, stocks, max_ratio)


def check_stage(
    case: StageCase, backend: str, dtype: torch.dtype, device: torch.device | str = "cpu", seed: int = 0
) -> Result:
    """Runs one stage on a backend and compares it with float64.

    Inputs are rounded to ``dtype`` first, so that both sides see the same ones.
    """
    x, weights, options = case.build(seed)

    def rounded(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(device) if value.dtype == torch.uint8 else value.to(device, dtype)

    x = rounded(x)
    options = {name: rounded(value) for name, value in options.items()}
    op = getattr(ops, case.stage)
    with torch.inference_mode():
        if weights is None:
            result = op(x, **options, backend=backend)
        else:
            result = op(x, ops.pack(weights, dtype, device, backend), **options)
    truth = reference(case.stage, x, weights, **options)
    stock = reference(case.stage, x, weights, dtype=dtype, **options)
    return judge(str(case), backend, dtype, result, truth, stock, MAX_STAGE_RATIO)


def check_network(
    case: NetworkCase, backend: str, dtype: torch.dtype, device: torch.device | str = "cpu", seed: int = 0
) -> Result:
    """Runs a whole network on a backend and compares it with float64."""
    from mobilevit_kernels.models import MobileViT

    x, spec = case.build(seed)
    x = x.to(device, dtype)
    network = MobileViT(spec, dtype=dtype).to(device)
    network = MobileViT(network.spec, dtype=dtype, backend=backend)
    with torch.inference_mode():
        result = network(x)
    truth = reference_network(spec, x)
    stock = reference_network(spec, x, dtype=dtype)
    return judge(str(case), backend, dtype, result, truth, stock, MAX_NETWORK_RATIO)


Job: TypeAlias = tuple[StageCase | NetworkCase, str, torch.dtype]


def plan(
    models: tuple[str, ...],
    backend_names: tuple[str, ...],
    dtypes: list[torch.dtype],
    batch: int,
    size: int,
    device: torch.device | str = "cpu",
) -> list[Job]:
    """Every stage shape of the networks once, and the networks, for each backend and dtype that serves them whole."""

    def served(case: StageCase | NetworkCase, backend: str, dtype: torch.dtype) -> bool:
        stages = ("stem", "conv3x3", "inverted_residual", "transformer", "head")
        return not any(
            registry.load(backend).refusal(stage, None, dtype, torch.device(device))
            for stage in (stages if isinstance(case, NetworkCase) else (case.stage,))
        )

    cases: dict[str, StageCase | NetworkCase] = {
        str(case): case for _, _, case in network_cases(models, batch=batch, height=size, width=size)
    }
    cases |= {name: NetworkCase(name, (batch, 3, size, size)) for name in models}
    return [
        (case, backend, dtype)
        for case in cases.values()
        for backend in backend_names
        for dtype in dtypes
        if served(case, backend, dtype)
    ]


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """float32 in float32: on a GPU PyTorch's convolutions, and products where the user allows it, take TF32 else."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products


def check(job: Job, device: torch.device | str = "cpu", seed: int = 0) -> Result:
    """Runs one job of :func:`plan`, without TF32."""
    case, backend, dtype = job
    with without_tf32():
        if isinstance(case, NetworkCase):
            return check_network(case, backend, dtype, device, seed)
        return check_stage(case, backend, dtype, device, seed)


def network_cases(
    names: tuple[str, ...] = tuple(CONFIGS), *, batch: int = 1, height: int = 256, width: int = 256
) -> Iterator[tuple[str, str, StageCase]]:
    """Every stage of the networks at an image size: (model name, dotted stage name, case)."""
    for name in names:
        for path, case in _cases_of(CONFIGS[name], batch, height, width):
            yield name, path, case


def _cases_of(config: MobileViTConfig, batch: int, height: int, width: int) -> Iterator[tuple[str, StageCase]]:
    channels = config.stem_channels
    yield "stem", StageCase("stem", (3, channels), (batch, 3, height, width))
    height, width = (height + 1) // 2, (width + 1) // 2
    transformers = iter(zip(config.transformer_dims, config.transformer_depths, strict=True))
    for i, (out_channels, count, first_stride) in enumerate(
        zip(config.layer_channels, config.inverted_residuals_per_layer, config.layer_strides, strict=True)
    ):
        for j in range(count):
            stride = first_stride if j == 0 else 1
            sizes = (channels, channels * config.expand_ratio, out_channels)
            options = {"stride": stride, "residual": stride == 1 and channels == out_channels}
            yield (
                f"layers.{i}.{j}.stage",
                StageCase("inverted_residual", sizes, (batch, channels, height, width), options),
            )
            channels = out_channels
            height, width = (height - 1) // stride + 1, (width - 1) // stride + 1
        if i >= 2:
            dim, depth = next(transformers)
            shape = (batch, channels, height, width)
            path = f"layers.{i}.{count}"
            yield f"{path}.local", StageCase("conv3x3", (channels, channels), shape)
            yield (
                f"{path}.transformer",
                StageCase(
                    "transformer",
                    (channels, dim, dim * config.mlp_ratio, depth, channels),
                    shape,
                    {"num_heads": config.num_heads, "patch_size": config.patch_size},
                ),
            )
            yield f"{path}.fusion", StageCase("conv3x3", (2 * channels, channels), shape, {"x2_channels": channels})
    yield "head", StageCase("head", (channels, config.head_channels, 1000), (batch, channels, height, width))


def available(device: torch.device | str = "cpu") -> list[str]:
    """The backends that can run on a device: on a CPU torch, simt, and triton in its interpreter."""
    on_gpu = torch.device(device).type == "cuda"
    names = ("cuda", "triton", "torch") if on_gpu else ("triton", "torch", "simt")
    statuses = registry.backends()
    return [name for name in names if statuses[name].available]
