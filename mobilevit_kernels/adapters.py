"""Optimized models with the call signature and return type of the stock model they came from.

timm and transformers are imported only here, on first use, and only for a model that came from them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mobilevit_kernels.canonical import NetworkSpec
from mobilevit_kernels.models import MobileViT

__all__ = [
    "TimmFeatures",
    "TimmMobileViT",
    "TransformersClassifier",
    "TransformersFeatures",
    "TransformersMobileViT",
    "TransformersSegmenter",
    "adapt",
]


class TimmMobileViT(MobileViT):
    """An optimized timm MobileViT: ``forward``, ``forward_features``, ``forward_head``, ``forward_intermediates``.

    Args:
        stock: the timm model (``ByobNet``).
        spec: its canonical description.
        keep_head: the stock head pools in a way of its own: it is copied and run on the features as it is.
        kwargs: as for :class:`~mobilevit_kernels.MobileViT`.
    """

    def __init__(self, stock: Any, spec: NetworkSpec, keep_head: bool, **kwargs: Any) -> None:
        super().__init__(spec, **kwargs)
        self.stock_head: Any = copy.deepcopy(stock.head).eval().requires_grad_(False) if keep_head else None
        self._stock_classes = getattr(stock, "num_classes", 0)
        self.global_pool = stock.global_pool
        self.feature_info: Any
        for name in ("num_features", "head_hidden_size", "feature_info", "pretrained_cfg", "default_cfg"):
            if hasattr(stock, name):
                setattr(self, name, copy.deepcopy(getattr(stock, name)))
        self._match_stock_head()

    @property
    def pools(self) -> bool:
        """Whether the fused head pools: not with ``global_pool=''``, nor where the stock head does it."""
        return self.stock_head is None and self.global_pool != ""

    @property
    def num_classes(self) -> int:
        """Classes; 0: no classifier."""
        return super().num_classes if self.stock_head is None else self._stock_classes

    def train(self, mode: bool = True) -> TimmMobileViT:
        """Sets the flag; the stock head stays in eval mode, as everything else computes."""
        super().train(mode)
        if self.stock_head is not None:
            self.stock_head.eval()
        return self

    def _match_stock_head(self) -> None:
        if self.stock_head is not None:
            self.stock_head.to(self.compute_dtype)

    def configure(self, **options: Any) -> None:
        super().configure(**options)
        self._match_stock_head()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TimmMobileViT:
        super()._apply(fn, recurse)
        self._match_stock_head()
        return self

    def _default_outputs(self) -> dict[str, Any]:
        return {"pool": self.pools, "taps": ()}

    def forward(self, x: Tensor) -> Tensor:
        """Logits, or what the stock model gives with ``num_classes=0`` or ``global_pool=''``, in the images' dtype."""
        output = self.compute(x, **self._default_outputs())[-1]
        return output if self.stock_head is None else self.forward_head(output)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classifier on the map that :meth:`forward_features` returns."""
        if self.stock_head is not None:
            features = x.to(self.compute_dtype)
            # As the stock model does: a head of the user's own need not know the argument.
            options = {"pre_logits": True} if pre_logits else {}
            return self.stock_head(features, **options).to(x.dtype)
        if self.global_pool == "":
            return x
        pooled = x.mean((2, 3))
        if pre_logits or self.head is None or self.head.weights.fc_weight is None:
            return pooled
        weights = self.head.weights
        assert weights.fc_weight is not None
        assert weights.fc_bias is not None
        dtype = self.compute_dtype
        logits = nn.functional.linear(pooled.to(dtype), weights.fc_weight.to(dtype), weights.fc_bias.to(dtype))
        return logits.to(x.dtype)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        exclude_final_conv: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps at each reduction, as the stock method; the last is the head convolution's.

        Args:
            x: images.
            indices: an int: the last n; a list: those of (stem or layer 1, …, head); None: all.
            norm: accepted for the signature; there is no norm.
            stop_early: the final map is the last one asked for. The whole network runs all the same.
            output_fmt: "NCHW" only.
            intermediates_only: leave out the final map.
            exclude_final_conv: the last intermediate is the last layer's map, not the head convolution's.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt: expected 'NCHW', got {output_fmt!r}")
        from timm.models._features import feature_take_indices

        taps = _timm_taps([info["module"] for info in self.feature_info])
        if exclude_final_conv:
            taps = [len(self.layers) if tap is None else tap for tap in taps]
        chosen, last = feature_take_indices(len(taps), indices)
        outputs = self.compute(x, pool=False, taps=tuple(tap for tap in taps if tap is not None))
        intermediates = [outputs[i] for i in sorted(set(chosen))]  # in the order of the network, as the stock method
        if intermediates_only:
            return intermediates
        return outputs[last] if stop_early and last + 1 < len(taps) else outputs[-1], intermediates

    def get_classifier(self) -> nn.Module:
        """The classifier as a Linear of its own (Identity where there is none)."""
        if self.stock_head is not None:
            return getattr(self.stock_head, "fc", self.stock_head)
        if self.head is None or self.head.weights.fc_weight is None:
            return nn.Identity()
        weight = self.head.weights.fc_weight
        classifier = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
        classifier.load_state_dict({"weight": weight, "bias": self.head.weights.fc_bias})
        return classifier.requires_grad_(False)


def _timm_taps(names: list[str]) -> list[int | None]:
    """timm's feature modules as taps of :meth:`MobileViT.run`; None stands for the final map."""
    taps: list[int | None] = []
    for name in names:
        if name == "final_conv":
            taps.append(None)
        elif name == "stem":
            taps.append(0)
        else:  # "stages.3" or, flattened, "stages_3"
            taps.append(int(name.replace("_", ".").split(".")[1]) + 1)
    return taps


class TimmFeatures(MobileViT):
    """An optimized ``timm.create_model(…, features_only=True)``: images in, a list of maps out.

    Args:
        stock: timm's ``FeatureListNet``.
        spec: its canonical description.
        kwargs: as for :class:`~mobilevit_kernels.MobileViT`.
    """

    def __init__(self, stock: Any, spec: NetworkSpec, **kwargs: Any) -> None:
        super().__init__(spec, **kwargs)
        self.feature_info = copy.deepcopy(stock.feature_info)
        taps = _timm_taps(list(stock.feature_info.module_name()))
        self._taps = tuple(tap for tap in taps if tap is not None)
        self._with_final_map = None in taps

    def _default_outputs(self) -> dict[str, Any]:
        return {"pool": False, "taps": self._taps}

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        """The maps at the model's ``out_indices``, each (B, C, H/s, W/s), in the images' dtype."""
        outputs = self.compute(x, **self._default_outputs())
        return outputs if self._with_final_map else outputs[:-1]


class _Backbone(MobileViT):
    """The network inside a transformers model.

    Args:
        spec: canonical description.
        pool: whether the model's task wants the head's pool.
        config: the model's.
        kwargs: as for :class:`~mobilevit_kernels.MobileViT`.
    """

    def __init__(self, spec: NetworkSpec, *, pool: bool, config: Any, **kwargs: Any) -> None:
        super().__init__(spec, **kwargs)
        self.pool = pool
        self.config = config

    def outputs(self, hidden_states: bool) -> dict[str, Any]:
        """What a call of the model asks of :meth:`run`."""
        return {"pool": self.pool, "taps": tuple(range(1, len(self.layers) + 1)) if hidden_states else ()}

    def _default_outputs(self) -> dict[str, Any]:
        return self.outputs(self.config.output_hidden_states)


class TransformersMobileViT(nn.Module):
    """An optimized transformers model: same call signature, same ModelOutput classes.

    Args:
        stock: the transformers model.
        spec: canonical description of its backbone and classifier.
        kwargs: as for :class:`~mobilevit_kernels.MobileViT`.
    """

    main_input_name = "pixel_values"
    base_model_prefix = "mobilevit"
    pool: ClassVar[bool] = False

    def __init__(self, stock: Any, spec: NetworkSpec, **kwargs: Any) -> None:
        super().__init__()
        self.config: Any = copy.deepcopy(stock.config)
        self.mobilevit = _Backbone(spec, pool=self.pool, config=self.config, **kwargs)
        self.training = False

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.mobilevit.device

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of activations inside the network."""
        return self.mobilevit.compute_dtype

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype, under the name that transformers' models have for theirs."""
        return self.compute_dtype

    def can_generate(self) -> bool:
        """False: for transformers' pipelines."""
        return False

    def configure(self, **options: Any) -> None:
        """As :meth:`mobilevit_kernels.MobileViT.configure`."""
        self.mobilevit.configure(**options)

    def capture(self, batch_size: int, height: int = 256, width: int = 256, **kwargs: Any) -> TransformersMobileViT:
        """As :meth:`mobilevit_kernels.MobileViT.capture`, of the backbone as a plain call of the model runs it."""
        self.mobilevit.capture(batch_size, height, width, **kwargs)
        return self

    def tune(self, batch_size: int, height: int = 256, width: int = 256, **kwargs: Any) -> TransformersMobileViT:
        """As :meth:`mobilevit_kernels.MobileViT.tune`, of the backbone as a plain call of the model runs it."""
        self.mobilevit.tune(batch_size, height, width, **kwargs)
        return self

    def graph_input(self, batch_size: int, height: int = 256, width: int = 256, **kwargs: Any) -> Tensor:
        """As :meth:`mobilevit_kernels.MobileViT.graph_input`; pass it as ``pixel_values``."""
        return self.mobilevit.graph_input(batch_size, height, width, **kwargs)

    def _compute(
        self, pixel_values: Tensor | None, output_hidden_states: bool | None
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """The backbone's result and the maps after each layer, in the images' dtype."""
        if pixel_values is None:
            raise ValueError("pixel_values: expected images (B, 3, H, W), got None")
        hidden_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        *maps, last = self.mobilevit.compute(pixel_values, **self.mobilevit.outputs(hidden_states))
        return last, tuple(maps) if hidden_states else None

    def _pack(self, output_class: str, return_dict: bool | None, **fields: Any) -> Any:
        if not (self.config.return_dict if return_dict is None else return_dict):
            return tuple(value for value in fields.values() if value is not None)
        from transformers import modeling_outputs

        return getattr(modeling_outputs, output_class)(**fields)


class TransformersFeatures(TransformersMobileViT):
    """An optimized ``MobileViTModel``."""

    def forward(
        self,
        pixel_values: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """The stock model's outputs, in the images' dtype.

        Args:
            pixel_values: (B, 3, H, W) images in the stock model's channel order (BGR for Apple's weights); uint8
                (B, H, W, 3) with ``normalize``.
            output_hidden_states: also return the maps after each of the 5 layers.
            return_dict: False: tuples.
            kwargs: ignored, as the stock model ignores them.
        """
        last, states = self._compute(pixel_values, output_hidden_states)
        return self._pack(
            "BaseModelOutputWithPoolingAndNoAttention",
            return_dict,
            last_hidden_state=last,
            pooler_output=None if self.mobilevit.head is None else last.mean((2, 3)),
            hidden_states=states,
        )


class TransformersClassifier(TransformersMobileViT):
    """An optimized ``MobileViTForImageClassification``. With ``labels`` the stock loss is computed, no gradients."""

    pool = True

    def __init__(self, stock: Any, spec: NetworkSpec, **kwargs: Any) -> None:
        super().__init__(stock, spec, **kwargs)
        self.loss_function: Any = stock.loss_function

    def forward(
        self,
        pixel_values: Tensor | None = None,
        output_hidden_states: bool | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As :meth:`TransformersFeatures.forward`; ``labels`` (B,) are for the loss."""
        logits, states = self._compute(pixel_values, output_hidden_states)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return self._pack(
            "ImageClassifierOutputWithNoAttention", return_dict, loss=loss, logits=logits, hidden_states=states
        )


class TransformersSegmenter(TransformersMobileViT):
    """An optimized ``MobileViTForSemanticSegmentation``.

    Its DeepLabV3 head is the stock one, copied and run in the compute dtype. With ``labels`` the stock loss is
    computed, without gradients.
    """

    def __init__(self, stock: Any, spec: NetworkSpec, **kwargs: Any) -> None:
        super().__init__(stock, spec, **kwargs)
        head = copy.deepcopy(stock.segmentation_head).eval().requires_grad_(False)
        self.segmentation_head = head.to(self.compute_dtype)

    def train(self, mode: bool = True) -> TransformersSegmenter:
        """Sets the flag; the head stays in eval mode, as everything else computes."""
        super().train(mode)
        self.segmentation_head.eval()
        return self

    def configure(self, **options: Any) -> None:
        super().configure(**options)
        self.segmentation_head.to(self.compute_dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TransformersSegmenter:
        super()._apply(fn, recurse)
        self.segmentation_head.to(self.compute_dtype)
        return self

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As :meth:`TransformersFeatures.forward`; ``labels`` (B, height, width) are for the loss."""
        if labels is not None and self.config.num_labels == 1:
            raise ValueError("labels: expected more than one label in config.num_labels to compute a loss, got 1")
        last, states = self._compute(pixel_values, output_hidden_states)
        logits = self.segmentation_head([last.to(self.compute_dtype)]).to(last.dtype)
        loss = None if labels is None else self._loss(logits, labels)
        return self._pack("SemanticSegmenterOutput", return_dict, loss=loss, logits=logits, hidden_states=states)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = nn.functional.interpolate(logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False)
        return nn.functional.cross_entropy(logits, labels, ignore_index=self.config.semantic_loss_ignore_index)


_TRANSFORMERS = {
    "MobileViTModel": TransformersFeatures,
    "MobileViTForImageClassification": TransformersClassifier,
    "MobileViTForSemanticSegmentation": TransformersSegmenter,
}


def adapt(stock: nn.Module, source: Any, **kwargs: Any) -> nn.Module:
    """Wraps a network read from ``stock`` so that it is called as ``stock`` is.

    Args:
        stock: the model that was read.
        source: what :func:`mobilevit_kernels.convert.read_network` returned.
        kwargs: as for :class:`~mobilevit_kernels.MobileViT`.
    """
    if source.kind == "transformers":
        names = (cls.__name__ for cls in type(stock).__mro__ if cls.__module__.startswith("transformers."))
        return _TRANSFORMERS[next(names)](stock, source.network, **kwargs)
    if source.kind == "timm" and hasattr(stock, "return_layers"):
        return TimmFeatures(stock, source.network, **kwargs)
    if source.kind == "timm":
        return TimmMobileViT(stock, source.network, not source.head_is_standard, **kwargs)
    return MobileViT(source.network, **kwargs)
