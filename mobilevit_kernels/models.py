"""Drop-in modules: inverted residual, MobileViT block, and the whole network.

Above 500 lines, because each of the three has its constructors and their documented arguments here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mobilevit_kernels import canonical, initialize, machine
from mobilevit_kernels.canonical import InvertedResidualSpec, MobileViTBlockSpec, NetworkSpec
from mobilevit_kernels.config import MobileViTConfig, get_config
from mobilevit_kernels.engine import Engine
from mobilevit_kernels.native import head as native_head
from mobilevit_kernels.native import stem as native_stem
from mobilevit_kernels.ops import _checks, _dispatch
from mobilevit_kernels.ops.stem import check_fit, check_images
from mobilevit_kernels.stages import (
    Activation,
    Conv3x3Stage,
    HeadStage,
    InvertedResidualStage,
    Stage,
    StemStage,
    TransformerStage,
    all_or_none,
)

__all__ = ["InvertedResidual", "MobileViT", "MobileViTBlock", "create_model"]

Normalize = tuple[Sequence[float], Sequence[float]]


def check_mode(module: nn.Module) -> None:
    """Raises for a forward in training mode while autograd would record."""
    if module.training and torch.is_grad_enabled():
        raise RuntimeError(
            f"{type(module).__name__}: mobilevit_kernels is for inference only, but the module is in training mode and "
            f"grad mode is on; call .eval() on it (or on the network it is in), or wrap the call in "
            f"torch.inference_mode() or torch.no_grad()"
        )


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


class _Block(nn.Module):
    """A drop-in block: takes and returns a map in the caller's dtype, computes in its own."""

    def run(self, x: Activation) -> Activation:
        """The block on a map in the compute dtype."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Block:
        with all_or_none([module for module in self.modules() if isinstance(module, Stage)]):
            super()._apply(fn, recurse)
        return self

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of activations inside the block."""
        return next(module.compute_dtype for module in self.modules() if isinstance(module, Stage))

    def forward(self, x: Tensor) -> Tensor:
        """Runs the block.

        Args:
            x: (B, C, H, W), floating point.

        Returns:
            What the stock block returns, in ``x``'s dtype, channels_last in memory.

        Raises:
            TypeError, ValueError: not such a tensor.
            RuntimeError: in training mode, or where ``x`` requires grad, while grad mode is on.
        """
        check_mode(self)
        _checks.check_map("x", x, "(B, C, H, W)")
        _checks.check_float("x", x)
        _checks.check_inference("x", x)
        return self.run(x.to(self.compute_dtype)).to(x.dtype)


class InvertedResidual(_Block):
    """Drop-in MobileNetV2 inverted residual (arXiv 1801.04381): 1×1 expand → 3×3 depthwise → 1×1 project.

    Args:
        spec: canonical description.
        dtype: compute dtype; None: float16 while on a GPU, the stock module's own elsewhere.
        backend: "auto" or a backend's name.
        own_dtype: the stock module's dtype.
    """

    def __init__(
        self,
        spec: InvertedResidualSpec,
        *,
        dtype: torch.dtype | None = None,
        backend: str = "auto",
        own_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.stage = InvertedResidualStage(spec, dtype=dtype, backend=backend, own_dtype=own_dtype)
        self.training = False

    @classmethod
    def from_module(
        cls, module: nn.Module, *, dtype: torch.dtype | None = None, backend: str = "auto"
    ) -> InvertedResidual:
        """Reads a stock inverted residual of timm, transformers, ml-cvnets or python_ref.

        Raises:
            Unsupported: a module that cannot be served, with the reason.
        """
        spec = _read_block(module, InvertedResidualSpec, "an inverted residual")
        return cls(spec, dtype=dtype, backend=backend, own_dtype=own_dtype_of(module))

    @classmethod
    def from_config(
        cls,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        expand_ratio: float = 4,
        dilation: int = 1,
        dtype: torch.dtype | None = None,
        backend: str = "auto",
    ) -> InvertedResidual:
        """A block with random weights; hidden channels: ``in_channels · expand_ratio`` rounded to a multiple of 8.

        Raises:
            ValueError: a number that is not positive, a stride other than 1 and 2, a bad option.
        """
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels), ("dilation", dilation)):
            _checks.check_positive(name, value)
        _checks.check_one_of("stride", stride, (1, 2))
        _checks.check_ratio("expand_ratio", expand_ratio)
        spec = initialize.inverted_residual(in_channels, out_channels, stride, expand_ratio, dilation)
        return cls(spec, dtype=dtype, backend=backend)

    @property
    def spec(self) -> InvertedResidualSpec:
        """The canonical description of the block."""
        return self.stage.spec

    def run(self, x: Activation) -> Activation:
        result: Activation = self.stage(x)
        return result


class MobileViTBlock(_Block):
    """Drop-in MobileViT block (arXiv 2110.02178, section 3.1).

    3×3 convolution → 1×1 → unfold → transformer → fold → 1×1 → concatenation with the input → 3×3 convolution, in three
    stages. A transformers ``MobileViTLayer`` keeps the inverted residual before the block inside; so does this module
    where it replaces one.

    Args:
        spec: canonical description.
        dtype, backend, own_dtype: as for :class:`InvertedResidual`.
    """

    def __init__(
        self,
        spec: MobileViTBlockSpec,
        *,
        dtype: torch.dtype | None = None,
        backend: str = "auto",
        own_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        common: dict[str, Any] = {"dtype": dtype, "backend": backend, "own_dtype": own_dtype}
        self.downsampling = None if spec.downsampling is None else InvertedResidualStage(spec.downsampling, **common)
        self.local = Conv3x3Stage(spec.local, dilation=spec.dilation, **common)
        self.transformer = TransformerStage(
            spec.transformer, num_heads=spec.num_heads, patch_size=spec.patch_size, **common
        )
        self.fusion = None if spec.fusion is None else Conv3x3Stage(spec.fusion, **common)
        self.training = False

    @classmethod
    def from_module(
        cls, module: nn.Module, *, dtype: torch.dtype | None = None, backend: str = "auto"
    ) -> MobileViTBlock:
        """Reads a stock MobileViT block of timm, transformers (``MobileViTLayer``), ml-cvnets or python_ref.

        Raises:
            Unsupported: a module that cannot be served, with the reason.
        """
        spec = _read_block(module, MobileViTBlockSpec, "a MobileViT block")
        return cls(spec, dtype=dtype, backend=backend, own_dtype=own_dtype_of(module))

    @classmethod
    def from_config(
        cls,
        in_channels: int,
        transformer_dim: int,
        depth: int,
        *,
        num_heads: int = 4,
        mlp_ratio: float = 2,
        patch_size: int | tuple[int, int] = 2,
        dilation: int = 1,
        fusion: bool = True,
        dtype: torch.dtype | None = None,
        backend: str = "auto",
    ) -> MobileViTBlock:
        """A block with random weights.

        Args:
            in_channels: C of the map, in and out.
            transformer_dim: D, a multiple of ``num_heads``.
            depth: encoder layers.
            num_heads: attention heads.
            mlp_ratio: hidden over D in the MLP.
            patch_size: an int or (height, width).
            dilation: of the local convolution.
            fusion: False: no concatenation and no fusion convolution.
            dtype, backend: as for :class:`InvertedResidual`.

        Raises:
            ValueError: a number that is not positive, heads that do not divide the width, a bad option.
        """
        for name, value in (
            ("in_channels", in_channels),
            ("transformer_dim", transformer_dim),
            ("depth", depth),
            ("num_heads", num_heads),
            ("dilation", dilation),
        ):
            _checks.check_positive(name, value)
        _checks.check_divides("num_heads", num_heads, "transformer_dim", transformer_dim)
        _checks.check_ratio("mlp_ratio", mlp_ratio)
        spec = initialize.mobilevit_block(
            in_channels,
            transformer_dim,
            depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            patch_size=_checks.check_patch_size(patch_size),
            dilation=dilation,
            fusion=fusion,
        )
        return cls(spec, dtype=dtype, backend=backend)

    @property
    def spec(self) -> MobileViTBlockSpec:
        """The canonical description of the block."""
        return MobileViTBlockSpec(
            local=self.local.weights,
            transformer=self.transformer.weights,
            fusion=None if self.fusion is None else self.fusion.weights,
            num_heads=self.transformer.num_heads,
            patch_size=self.transformer.patch_size,
            dilation=self.local.dilation,
            downsampling=None if self.downsampling is None else self.downsampling.spec,
        )

    def run(self, x: Activation) -> Activation:
        if self.downsampling is not None:
            x = self.downsampling(x)
        y: Activation = self.transformer(self.local(x))
        if self.fusion is not None:
            y = self.fusion(x, y)
        return y


class MobileViT(nn.Module):
    """A whole MobileViT: images in, logits out.

    Its blocks are fixed: a network with other ones is converted anew, from a stock model or a specification.

    Args:
        spec: canonical description.
        dtype: compute dtype; None: float16 while on a GPU, ``own_dtype`` elsewhere.
        backend: "auto" or a backend's name.
        normalize: ``(mean, std)`` in units of 0…1, applied to the images in the stem; with it uint8 (B, H, W, C) images
            are accepted too.
        graph: capture a CUDA graph for each new shape.
        own_dtype: the stock model's dtype.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        *,
        dtype: torch.dtype | None = None,
        backend: str = "auto",
        normalize: Normalize | None = None,
        graph: bool = False,
        own_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        common: dict[str, Any] = {"dtype": dtype, "backend": backend, "own_dtype": own_dtype}
        self.stem = StemStage(spec.stem, normalize=normalize, **common)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                (InvertedResidual if isinstance(block, InvertedResidualSpec) else MobileViTBlock)(block, **common)  # type: ignore[arg-type]
                for block in layer
            )
            for layer in spec.layers
        )
        self.head = None if spec.head is None else HeadStage(spec.head, **common)
        self.engine = Engine(automatic=graph)
        # Not as a module list: they are registered where they stand.
        self.__dict__["_stages"] = [module for module in self.modules() if isinstance(module, Stage)]
        self.__dict__["_blocks_and_stages"] = [m for m in self.modules() if isinstance(m, Stage | _Block)]
        self.training = False

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        *,
        dtype: torch.dtype | None = None,
        backend: str = "auto",
        normalize: Normalize | None = None,
    ) -> MobileViT:
        """Reads a whole stock network; the result returns logits (or the last map, where there is no head).

        :func:`mobilevit_kernels.optimize` also keeps the stock model's call signature and return type, and a head that
        is not MobileViT's own.

        Raises:
            Unsupported: a model that cannot be served, with the reason.
        """
        from mobilevit_kernels import convert

        if isinstance(module, MobileViT):
            spec, standard = module.spec, getattr(module, "stock_head", None) is None
            normalize = module.stem.normalize if normalize is None else normalize
        else:
            source = convert.read_network(module)
            spec, standard = source.network, source.head_is_standard
        if not standard:
            raise convert.Unsupported(
                f"module: expected a network that ends with MobileViT's own head or with its last map, got a "
                f"{type(module).__name__} that goes on behind it; mobilevit_kernels.optimize(module) serves it"
            )
        return cls(spec, dtype=dtype, backend=backend, normalize=normalize, own_dtype=own_dtype_of(module))

    @classmethod
    def from_config(
        cls,
        config: str | MobileViTConfig,
        *,
        num_classes: int = 1000,
        dtype: torch.dtype | None = None,
        backend: str = "auto",
        normalize: Normalize | None = None,
        device: torch.device | str | None = None,
    ) -> MobileViT:
        """A network with random weights.

        Args:
            config: "mobilevit_xxs", "mobilevit_xs", "mobilevit_s", or a configuration.
            num_classes: classes; 0: no classifier, the result is the pooled features.
            dtype, backend, normalize: as for the class.
            device: where it is made; None: PyTorch's default device.

        Raises:
            ValueError: a bad argument.
            BackendUnavailable: ``backend`` was named and cannot serve there.
        """
        if not isinstance(config, MobileViTConfig):
            config = get_config(config)
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 0:
            raise ValueError(f"num_classes: expected 0 or a positive integer, got {_checks.describe(num_classes)}")
        spec = on_device(initialize.network(config, num_classes), device)
        return cls(spec, dtype=dtype, backend=backend, normalize=normalize)

    def configure(
        self,
        *,
        dtype: torch.dtype | None = None,
        backend: str = "auto",
        normalize: Normalize | None = None,
        graph: bool = False,
        own_dtype: torch.dtype = torch.float32,
    ) -> None:
        """Sets the options of the class anew; the weights stay.

        Raises:
            ValueError: a bad option.
            BackendUnavailable: ``backend`` was named and cannot serve.
        """
        with all_or_none(self.stages()):
            self.stem.set_normalize(normalize)
            for stage in self.stages():
                stage.configure(dtype=dtype, own_dtype=own_dtype, backend=backend)
        self.engine = Engine(automatic=graph)

    @property
    def spec(self) -> NetworkSpec:
        """The canonical description of the network."""
        return NetworkSpec(
            stem=self.stem.weights,
            layers=tuple(tuple(block.spec for block in layer) for layer in self._blocks()),
            head=None if self.head is None else self.head.weights,
        )

    def _blocks(self) -> list[list[Any]]:
        """The blocks by layer, past nn.ModuleList's untyped iteration."""
        return [list(layer) for layer in self.layers]  # type: ignore[call-overload]

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of activations inside the network."""
        return self.stem.compute_dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.stem.device

    @property
    def num_classes(self) -> int:
        """Classes; 0: no classifier."""
        return 0 if self.head is None else self.head.packed.sizes[2]

    def stages(self) -> list[Stage[Any]]:
        """The stages in the order of a forward."""
        stages: list[Stage[Any]] = self.__dict__["_stages"]
        return stages

    def has_hooks(self) -> bool:
        """Whether a block or a stage has forward hooks, which see each of them with its tensors."""
        modules = self.__dict__["_blocks_and_stages"]
        return any(m._forward_hooks or m._forward_pre_hooks for m in modules)  # in every forward: no call a module

    def prepare(self, x: Tensor) -> Tensor:
        """Images that :func:`check_images` has passed, as the CUDA kernels read them.

        Raises:
            ValueError: images, or a normalisation, of other channels than the stem's; images on another device.
        """
        packed = _dispatch.prepare("stem", x, self.stem.packed, "auto")
        check_fit("x", x, packed, *(self.stem.normalize or ((), ())))
        return native_stem.as_read(x)

    def finish(self, outputs: list[Tensor], *, pool: bool = True, taps: tuple[int, ...] = ()) -> list[Tensor]:
        """What :meth:`run` returns, from what the launches of its recording wrote."""
        if pool and self.head is not None:
            outputs[-1] = native_head.whole_classes(outputs[-1], self.head.packed)
        return outputs

    def run(self, x: Activation, *, pool: bool = True, taps: tuple[int, ...] = ()) -> list[Activation]:
        """The network in the compute dtype.

        Args:
            x: checked images; or a recording, which gets the launches of a forward.
            pool: False: the head stops before its pool.
            taps: which maps to return before the result: 0 the stem's, i the i-th layer's.

        Returns:
            The tapped maps in the order of the network, then the head's output (without a head: the last map).
        """
        outputs: list[Activation] = []
        x = self.stem(x)
        if 0 in taps:
            outputs.append(x)
        for i, layer in enumerate(self._blocks(), start=1):
            for block in layer:
                x = block(x) if _has_hooks(block) else block.run(x)
            if i in taps:
                outputs.append(x)
        if self.head is not None:
            x = self.head(x, pool=pool)
        return [*outputs, x]

    def compute(self, x: Tensor, *, pool: bool = True, taps: tuple[int, ...] = ()) -> list[Tensor]:
        """:meth:`run` behind the argument checks and the engine; results in the images' dtype."""
        check_mode(self)
        check_images("x", x, self.stem.normalize)
        outputs = self.engine.call(self, x, pool=pool, taps=taps)
        if not x.is_floating_point():
            return outputs
        return [output if output.dtype == x.dtype else output.to(x.dtype) for output in outputs]

    def forward(self, x: Tensor) -> Tensor:
        """Classifies images.

        Args:
            x: floating-point (B, 3, H, W), any memory layout; with ``normalize`` also uint8 (B, H, W, 3).

        Returns:
            Logits (B, num_classes), or the pooled features (B, C) where there is no classifier, in the images' dtype
            (uint8: the compute dtype).

        Raises:
            TypeError, ValueError: not such images.
            RuntimeError: in training mode, or where ``x`` requires grad, while grad mode is on.
        """
        return self.compute(x)[-1]

    def forward_features(self, x: Tensor) -> Tensor:
        """The map after the head's 1×1 convolution and SiLU (without a head: the last layer's), (B, C, H/32, W/32)."""
        return self.compute(x, pool=False)[-1]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MobileViT:
        with all_or_none(self.stages()):
            super()._apply(fn, recurse)
        self.engine.clear()
        return self

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        result = super().load_state_dict(*args, **kwargs)
        self.engine.clear()
        return result

    def capture(
        self, batch_size: int, height: int = 256, width: int = 256, *, dtype: torch.dtype | None = None
    ) -> MobileViT:
        """Captures a CUDA graph of the forward for one input shape; other shapes still run, without one.

        Args:
            batch_size, height, width: the input's shape.
            dtype: of the images; None: the compute dtype. torch.uint8: (B, H, W, C) images, with ``normalize``.

        Returns:
            The model itself.

        Raises:
            RuntimeError: the model is not on a CUDA device.
        """
        with torch.inference_mode(False):  # so that the graph's input can be written outside of inference mode
            x = self._images("capture", batch_size, height, width, dtype)
        with torch.inference_mode():
            self.engine.capture(self, x, keep=True, **self._default_outputs())
        return self

    def tune(
        self, batch_size: int, height: int = 256, width: int = 256, *, dtype: torch.dtype | None = None
    ) -> MobileViT:
        """Measures, for one input shape, which of several kernels serves each stage best, and takes those from then on.

        Rules choose tiles, blocks and clusters otherwise. Measured too: PyTorch's (cuDNN's) 3×3 convolutions, and, for
        large batches, a forward in slices whose activations stay in the L2. This takes seconds. Results stay within the
        same bounds, but need not be the same bits. Other networks of the process with the same stages profit; graphs
        have to be captured anew. ``mobilevit-kernels tune`` writes a table for all processes instead.

        Args:
            batch_size, height, width, dtype: as for :meth:`capture`.

        Returns:
            The model itself; the Report names what was chosen.

        Raises:
            RuntimeError: the model is not on a CUDA device, or a stage is not served by the CUDA kernels or has
                forward hooks.
        """
        x = self._images("tune", batch_size, height, width, dtype)
        with torch.inference_mode():
            for _ in self.engine.tune(self, x, **self._default_outputs()):
                pass
        return self

    def graph_input(
        self, batch_size: int, height: int = 256, width: int = 256, *, dtype: torch.dtype | None = None
    ) -> Tensor:
        """The tensor that a captured graph reads: write images into it and call the model with it, and none are copied.

        The next call for this shape overwrites it; write only after the stream has passed the call before.

        Args:
            batch_size, height, width, dtype: as for :meth:`capture`.

        Raises:
            RuntimeError: the model is not on a CUDA device.
            ValueError: no graph has been captured for this shape.
        """
        x = self._images("graph_input", batch_size, height, width, dtype)
        found = self.engine.static_input(x, **self._default_outputs())
        if found is None:
            raise ValueError(
                f"batch_size, height, width: expected a captured shape, got {batch_size}, {height}, {width} in "
                f"{str(x.dtype).removeprefix('torch.')}; call capture first"
            )
        return found

    def _images(self, caller: str, batch_size: int, height: int, width: int, dtype: torch.dtype | None) -> Tensor:
        """Images of zeros for a graph."""
        for name, value in (("batch_size", batch_size), ("height", height), ("width", width)):
            _checks.check_positive(name, value)
        if self.device.type != "cuda":
            raise RuntimeError(f"{caller}: expected the model on a CUDA device, it is on {self.device}")
        channels = self.stem.packed.sizes[0]
        shape = (batch_size, height, width, channels) if dtype == torch.uint8 else (batch_size, channels, height, width)
        return torch.zeros(shape, dtype=dtype or self.compute_dtype, device=self.device)

    def _default_outputs(self) -> dict[str, Any]:
        """What a plain forward asks of :meth:`run`."""
        return {"pool": True, "taps": ()}


def create_model(
    name: str,
    num_classes: int = 1000,
    *,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
    normalize: Normalize | None = None,
    device: torch.device | str | None = None,
) -> MobileViT:
    """A MobileViT with random weights.

    Args:
        name: "mobilevit_xxs", "mobilevit_xs" or "mobilevit_s".
        num_classes, dtype, backend, normalize, device: as for :meth:`MobileViT.from_config`.

    Raises:
        ValueError: for another name, with the three listed, or another bad argument.
        BackendUnavailable: ``backend`` was named and cannot serve there.
    """
    get_config(name)
    return MobileViT.from_config(
        name, num_classes=num_classes, dtype=dtype, backend=backend, normalize=normalize, device=device
    )


def on_device(spec: NetworkSpec, device: torch.device | str | None) -> NetworkSpec:
    """A description on a device; None: where it is.

    Raises:
        ValueError: ``device`` names none.
    """
    if device is None:
        return spec
    try:
        place = machine.indexed(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device: expected a torch device such as 'cuda', got {device!r}") from error
    return canonical.to_device(spec, place)


def own_dtype_of(module: nn.Module) -> torch.dtype:
    """The dtype of a stock module's first floating-point parameter; of an optimized model, the compute dtype."""
    for tensor in module.parameters():
        if tensor.is_floating_point():
            return tensor.dtype
    return next((stage.compute_dtype for stage in module.modules() if isinstance(stage, Stage)), torch.float32)


def _read_block(module: nn.Module, spec_class: type, what: str) -> Any:
    from mobilevit_kernels import convert

    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    spec = convert.read_block(module)
    if not isinstance(spec, spec_class):
        raise convert.Unsupported(f"module: expected {what} of timm, transformers, ml-cvnets or python_ref, got "
                                  f"{type(module).__module__}.{type(module).__qualname__}")  # fmt: skip
    return spec
