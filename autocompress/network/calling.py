"""Modules that multiply by the weights of linear layers of their own without calling these.

The attention of torchvision's Swin transformers hands `self.qkv.weight` to a function. What the package does to a
layer, from watching its inputs to rounding them, it does where the layer is called. `calling` makes such a module call
its layers: inside of its forward pass, `linear(x, layer.weight, …)` becomes `layer(x)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn import functional as F

from autocompress.network.overriding import overridden

_SWIN = "torchvision.models.swin_transformer"
_TYPES = ("ShiftedWindowAttention", "ShiftedWindowAttentionV2")


def uses_weights_of_layers(module: nn.Module) -> bool:
    """Whether it is of a class that is known to do so. torchvision is optional, hence the names."""
    return type(module).__module__ == _SWIN and type(module).__name__ in _TYPES


def calling(module: Any) -> nn.Module:
    """The module itself, changed to call its layers. What it computes, and its names, stay the same.

    Args:
        module: one that `uses_weights_of_layers`. The second version of Swin sets the keys' biases to zero at every
            pass; here they are set once.
    """
    if module.qkv.bias is not None and type(module).__name__ == "ShiftedWindowAttentionV2":
        bias = module.qkv.bias.data
        bias[len(bias) // 3 : 2 * len(bias) // 3] = 0
    changed: nn.Module = module
    changed.__class__ = overridden(type(module), _called)
    return changed


def _called(module: nn.Module, func: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """What the call of a layer of the module's own gives, for a linear operator with that layer's weight."""
    if func is F.linear:
        for layer in module.children():
            if isinstance(layer, nn.Linear) and args[1] is layer.weight:
                return layer(args[0])
    return NotImplemented
