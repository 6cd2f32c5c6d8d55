"""One nn.Module a fused stage: canonical weights as float32 buffers, and their packed form beside them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from mobilevit_kernels import canonical, native, ops, registry
from mobilevit_kernels.canonical import (
    Conv3x3Weights,
    HeadWeights,
    InvertedResidualSpec,
    InvertedResidualWeights,
    StageWeights,
    StemWeights,
    TransformerWeights,
)
from mobilevit_kernels.native import choices
from mobilevit_kernels.ops import _dispatch
from mobilevit_kernels.ops.stem import check_normalize
from mobilevit_kernels.packed import Packed
from mobilevit_kernels.plan import Recorded

__all__ = [
    "Conv3x3Stage",
    "HeadStage",
    "InvertedResidualStage",
    "Stage",
    "StemStage",
    "TransformerStage",
    "all_or_none",
]

W = TypeVar("W", bound=StageWeights)
Activation: TypeAlias = Any  # a Tensor; or a Recorded, which gives a Recorded


@contextlib.contextmanager
def all_or_none(stages: Sequence[Stage[Any]]) -> Iterator[None]:
    """Puts stages back as they were where the block raises: a cast that the last one refuses changes none of them."""
    before = [(stage, dict(stage.__dict__), dict(stage._buffers)) for stage in stages]
    try:
        yield
    except BaseException:
        for stage, attributes, buffers in before:
            stage.__dict__.clear()
            stage.__dict__.update(attributes)
            stage._buffers.update(buffers)
        raise


class Stage(nn.Module, Generic[W]):
    """A stage of a network.

    The state dict holds the canonical weights in float32, whatever the compute dtype: ``.to(dtype)``, ``.half()`` and
    the like change the dtype that the stage computes in, not what is saved. The packed weights are derived, and made
    anew after ``.to(…)``, ``load_state_dict``, unpickling and copying.

    Args:
        weights: canonical weights.
        dtype: the compute dtype; None: float16 while on a GPU, ``own_dtype`` elsewhere.
        own_dtype: the dtype of the stock module.
        backend: "auto" or a backend's name.
    """

    weights_class: ClassVar[type]
    cast_to: torch.dtype | None = None  # by the last cast, where there was one
    _num_heads: int | None = None  # of a transformer stage; packing may depend on it

    def __init__(
        self,
        weights: W,
        *,
        dtype: torch.dtype | None = None,
        own_dtype: torch.dtype = torch.float32,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        # No inference tensors: load_state_dict could not write them.
        with torch.inference_mode(False), torch.no_grad():
            for name, tensor in canonical.named_tensors(weights):
                # Copied: the stage must not change with the stock module it was read from.
                self.register_buffer(name.replace(".", "_"), tensor.detach().float().clone())
        self._names = [name for name, _ in canonical.named_tensors(weights)]
        self._others = {"eps": weights.eps} if isinstance(weights, TransformerWeights) else {}
        self.training = False  # there is no other mode
        self.configure(dtype=dtype, own_dtype=own_dtype, backend=backend)

    def configure(self, *, dtype: torch.dtype | None, own_dtype: torch.dtype, backend: str) -> None:
        """Sets the options of the class, and packs the weights for them.

        Raises:
            ValueError: unknown backend.
            BackendUnavailable: ``backend`` was named and cannot serve.
        """
        self._backend = registry.check_name(backend)
        self._dtype = dtype
        self._own_dtype = own_dtype
        self.repack()

    @property
    def weights(self) -> W:
        """The canonical weights: the buffers themselves."""
        tensors = {name: self.get_buffer(name.replace(".", "_")) for name in self._names}
        weights: W = canonical.from_tensors(self.weights_class, tensors, **self._others)
        return weights

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.get_buffer(self._names[0].replace(".", "_")).device

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of activations inside the stage."""
        if self._dtype is not None:
            return self._dtype
        return torch.float16 if self.device.type == "cuda" else self._own_dtype

    def repack(self) -> None:
        """Derives the packed weights anew; needed by hand only after writing into the buffers."""
        self.choice = registry.choose(
            self._backend,
            _dispatch.STAGE_OF[self.weights_class],
            self.weights,
            self.compute_dtype,
            self.device,
            self._num_heads,
        )
        self.packed: Packed = _dispatch.pack(
            self.weights, self.compute_dtype, self.device, self.choice.backend, num_heads=self._num_heads
        )

    def record(self, x: Recorded, **options: Any) -> Recorded:
        """What the stage would launch on ``x``, behind what has been recorded so far."""
        alternatives = native.alternatives(x.slot, self.packed, **options)
        return x.then(choices.problem(x.slot, self.packed, **options), alternatives)

    @property
    def variant(self) -> str:
        """The kernel variants of the stage on its backend, with the boundaries between them."""
        variant: str = _dispatch.stage_module(self.packed.backend, self.packed.stage).variant(self.packed)
        return variant

    @property
    def shape(self) -> str:
        """The stage's sizes in a few words."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{self.shape}; {self.packed.backend}, {str(self.packed.dtype).removeprefix('torch.')}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Stage[W]:
        # A cast takes every dtype to one; a move leaves each as it is.
        targets = {
            fn(torch.empty(0, dtype=dtype, device=self.device)).dtype for dtype in (torch.float32, torch.float64)
        }
        with all_or_none([self]):
            if len(targets) == 1:
                self.cast_to = self._dtype = targets.pop()
            for name, buffer in self._buffers.items():
                assert buffer is not None
                moved = fn(buffer)
                self._buffers[name] = moved if moved.dtype == torch.float32 else buffer.to(moved.device)
            if self.device.type != "meta":
                self.repack()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        for name, buffer in self._buffers.items():  # with assign=True the buffer may be of another dtype now
            assert buffer is not None
            self._buffers[name] = buffer.float()
        self.repack()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "packed"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.repack()


class StemStage(Stage[StemWeights]):
    """3×3 convolution, stride 2, + SiLU on images; see :func:`mobilevit_kernels.ops.stem`."""

    weights_class = StemWeights

    def __init__(
        self, weights: StemWeights, *, normalize: tuple[Sequence[float], Sequence[float]] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(weights, **kwargs)
        self.set_normalize(normalize)

    def set_normalize(self, normalize: tuple[Sequence[float], Sequence[float]] | None) -> None:
        """Sets the normalisation of images; ValueError for one that the stem's channels do not fit."""
        mean, std = check_normalize(normalize)
        for name, values in (("mean", mean), ("std", std)):
            if values and len(values) != self.packed.sizes[0]:
                raise ValueError(f"normalize: expected {self.packed.sizes[0]} values of {name}, got {len(values)}")
        # Plain numbers of its own: what the caller gave may be an iterator, a tensor, or a list that changes.
        self.normalize = (tuple(mean), tuple(std)) if mean else None

    @property
    def shape(self) -> str:
        return "{} → {}, stride 2".format(*self.packed.sizes)

    def forward(self, x: Activation) -> Activation:
        if isinstance(x, Recorded):
            mean, std = ([float(v) for v in values] for values in self.normalize or ((), ()))
            return self.record(x, mean=mean, std=std)
        return ops.stem(x, self.packed, normalize=self.normalize)


class Conv3x3Stage(Stage[Conv3x3Weights]):
    """Dense 3×3 convolution + SiLU on one input or two; see :func:`mobilevit_kernels.ops.conv3x3`."""

    weights_class = Conv3x3Weights

    def __init__(self, weights: Conv3x3Weights, *, dilation: int = 1, **kwargs: Any) -> None:
        super().__init__(weights, **kwargs)
        self.dilation = dilation

    @property
    def shape(self) -> str:
        text = "{} → {}".format(*self.packed.sizes)
        return text if self.dilation == 1 else f"{text}, dilation {self.dilation}"

    def forward(self, x: Activation, x2: Activation | None = None) -> Activation:
        if isinstance(x, Recorded):
            slot2 = None if x2 is None else x2.slot
            return self.record(x, x2=slot2, dilation=self.dilation, activation="silu")
        return ops.conv3x3(x, self.packed, x2=x2, dilation=self.dilation)


class InvertedResidualStage(Stage[InvertedResidualWeights]):
    """MobileNetV2 block; see :func:`mobilevit_kernels.ops.inverted_residual`."""

    weights_class = InvertedResidualWeights

    def __init__(self, spec: InvertedResidualSpec, **kwargs: Any) -> None:
        super().__init__(spec.weights, **kwargs)
        self.stride, self.dilation, self.residual = spec.stride, spec.dilation, spec.residual

    @property
    def spec(self) -> InvertedResidualSpec:
        """The canonical description of the block."""
        return InvertedResidualSpec(self.weights, self.stride, self.dilation, self.residual)

    @property
    def shape(self) -> str:
        in_channels, hidden_channels, out_channels = self.packed.sizes
        text = f"{in_channels} → {hidden_channels} → {out_channels}, stride {self.stride}"
        if self.dilation != 1:
            text += f", dilation {self.dilation}"
        return text + (", residual" if self.residual else "")

    def forward(self, x: Activation) -> Activation:
        if isinstance(x, Recorded):
            return self.record(x, stride=self.stride, dilation=self.dilation, residual=self.residual)
        return ops.inverted_residual(x, self.packed, stride=self.stride, dilation=self.dilation, residual=self.residual)


class TransformerStage(Stage[TransformerWeights]):
    """1×1 in, encoder, 1×1 out + SiLU; see :func:`mobilevit_kernels.ops.transformer`."""

    weights_class = TransformerWeights

    def __init__(
        self, weights: TransformerWeights, *, num_heads: int = 4, patch_size: tuple[int, int] = (2, 2), **kwargs: Any
    ) -> None:
        self._num_heads = num_heads  # before super() packs
        super().__init__(weights, **kwargs)
        self.num_heads, self.patch_size = num_heads, patch_size

    @property
    def shape(self) -> str:
        in_channels, dim, _, num_layers, out_channels = self.packed.sizes
        text = f"{in_channels} → {dim} → {out_channels}, {num_layers} layers, {self.num_heads} heads"
        return text if self.patch_size == (2, 2) else "{}, {}×{} patches".format(text, *self.patch_size)

    def forward(self, x: Activation) -> Activation:
        if isinstance(x, Recorded):
            return self.record(x, num_heads=self.num_heads, patch_size=self.patch_size)
        return ops.transformer(x, self.packed, num_heads=self.num_heads, patch_size=self.patch_size)


class HeadStage(Stage[HeadWeights]):
    """1×1 convolution + SiLU, pool, linear; see :func:`mobilevit_kernels.ops.head`."""

    weights_class = HeadWeights

    @property
    def shape(self) -> str:
        in_channels, hidden_channels, num_classes = self.packed.sizes
        text = f"{in_channels} → {hidden_channels}"
        return f"{text} → {num_classes}" if num_classes else text

    def forward(self, x: Activation, pool: bool = True) -> Activation:
        if isinstance(x, Recorded):
            return self.record(x, pool=pool)
        return ops.head(x, self.packed, pool=pool)
