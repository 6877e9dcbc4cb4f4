"""Modules that multiply by the weights of linear layers of their own without calling these.

The attention of torchvision's Swin transformers hands `self.qkv.weight` to a function. What the package does to a
layer, from watching its inputs to rounding them, it does where the layer is called. `calling` makes such a module call
its layers: inside of its forward pass, `linear(x, layer.weight, …)` becomes `layer(x)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_SWIN = "torchvision.models.swin_transformer"
_TYPES = ("ShiftedWindowAttention", "ShiftedWindowAttentionV2")


def uses_weights_of_layers(module: nn.Module) -> bool:
    """Whether it is of a class that is known to do so. torchvision is optional, hence the names."""
    return type(module).__module__ == _SWIN and type(module).__name__ in _TYPES


def calling(module: nn.Module) -> nn.Module:
    """The module itself, changed to call its layers. What it computes, and its names, stay the same.

    Args:
        module: one that `uses_weights_of_layers`. The second version of Swin sets the keys' biases to zero at every
            pass; here they are set once.
    """
    kind: Any = type(module)
    bias = dict(module.named_parameters()).get("qkv.bias")
    if bias is not None and kind.__name__ == "ShiftedWindowAttentionV2":
        bias.data[len(bias) // 3 : 2 * len(bias) // 3] = 0
    module.__class__ = _calling_class(kind)
    return module


@cache
def _calling_class(kind: Any) -> type[nn.Module]:
    """A subclass whose forward pass calls the linear layers that it holds."""

    class Calling(kind):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            with _LayersCalled(self):
                outputs: Tensor = super().forward(x)
            return outputs

    Calling.__name__ = Calling.__qualname__ = kind.__name__
    return Calling


class _LayersCalled(TorchFunctionMode):
    """Inside of it, a linear operator with the weight of one of a module's own layers is a call of that layer."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._layers = [child for child in module.children() if isinstance(child, nn.Linear)]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.linear:
            for layer in self._layers:
                if args[1] is layer.weight:
                    return layer(args[0])
        return func(*args, **(kwargs or {}))
