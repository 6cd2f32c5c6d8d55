"""Conversion: modules and checkpoint files of timm, transformers, ml-cvnets and python_ref → canonical description.

Nothing foreign is imported: classes are recognised by name, and files by their keys.
"""

from __future__ import annotations

from torch import nn

from mobilevit_kernels.canonical import InvertedResidualSpec, MobileViTBlockSpec
from mobilevit_kernels.convert import cvnets, reference, timm, transformers
from mobilevit_kernels.convert._leaf import Unsupported, check_plain, refusal
from mobilevit_kernels.convert._live import Source
from mobilevit_kernels.convert.checkpoint import load_network

__all__ = ["Source", "Unsupported", "check_plain", "load_network", "read_block", "read_network"]

# python_ref and ml-cvnets share class names; python_ref's are told apart by their package, so they come first.
_NETWORK_READERS = (timm.read_network, transformers.read_network, reference.read_network, cvnets.read_network)
_BLOCK_READERS = (timm.read_block, transformers.read_block, reference.read_block, cvnets.read_block)


def read_network(model: nn.Module) -> Source:
    """Reads a live MobileViT.

    Takes timm's mobilevit_xxs, mobilevit_xs and mobilevit_s (any ``output_stride``, ``num_classes``, ``global_pool``,
    also ``features_only=True``), transformers' MobileViTModel, MobileViTForImageClassification and
    MobileViTForSemanticSegmentation, ml-cvnets' MobileViT, and python_ref.MobileViT. Strides, dilations, residuals,
    heads and patch sizes are read from the modules. ``model`` is left as it is and shares no memory with the result.

    Args:
        model: the network, in any floating dtype and mode, on any device; the tensors of the result stay there.

    Raises:
        TypeError: for something that is no module.
        Unsupported: for any other network, and for one with a module that cannot be served: hooks, parametrisations,
            adapters, quantised layers, other activations or norms, squeeze-and-excite, MobileViTv2. The message names
            the module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    for reader in _NETWORK_READERS:
        source = reader(model)
        if source is not None:
            return source
    raise refusal(
        model,
        "",
        "not a network that can be read",
        _WRAPPERS.get(
            type(model).__name__,
            "pass timm's mobilevit_xxs, mobilevit_xs or mobilevit_s, transformers' MobileViT, ml-cvnets' MobileViT or "
            "python_ref.MobileViT itself, without a wrapper; MobileViTv2 and v3 are not supported",
        ),
    )


_WRAPPERS = {
    "OptimizedModule": "pass the model as it was before torch.compile (its _orig_mod), and compile the result",
    "DataParallel": "pass its .module",
    "DistributedDataParallel": "pass its .module",
}


def read_block(module: nn.Module) -> InvertedResidualSpec | MobileViTBlockSpec | None:
    """Reads one live block, for use inside any larger network.

    Takes timm's BottleneckBlock as MobileViT and MobileViTv2 use it (expand, depthwise, linear projection) and
    MobileVitBlock; transformers' MobileViTInvertedResidual and MobileViTLayer (whose downsampling layer becomes
    ``downsampling``); ml-cvnets' and python_ref's InvertedResidual and MobileViTBlock.

    Returns:
        The block's description, or None where ``module`` is not of this family at all.

    Raises:
        Unsupported: for a block of this family that cannot be served: with a hook, a parametrisation, an adapter, a
            quantised layer, squeeze-and-excite, another activation or kernel size, or MobileViTv2's. The message names
            the module, relative to the block.
    """
    for reader in _BLOCK_READERS:
        spec = reader(module)
        if spec is not None:
            return spec
    return None
