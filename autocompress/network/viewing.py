"""Networks that call `view` on what convolutions give: `x.view(len(x), -1)` before the first linear layer.

Plans are evaluated with the channels last in memory, as convolutions run faster then. There `view` fails where it joins
channels and positions, and `reshape` copies. `viewing` makes such a network copy where it must. Its class becomes one
of the same name that inherits from its own, as in `network.interface`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from autocompress.borrowed import evaluating
from autocompress.network.interface import Interfaced, outputs_by_name
from autocompress.network.verification import REORDERED_SUMS, are_close
from autocompress.samples import Inputs, images_channels_last


def viewing(model: nn.Module, inputs: Inputs) -> nn.Module:
    """A copy that runs with channels last where the network's calls of `view` fail then; else the network itself.

    So, too, where the copy does not give the same outputs, as where a network writes into a view.

    Args:
        model: network in its own form, which is not changed. In that of `interfaced` it was looked at before.
        inputs: samples that it is run on, at least one.
    """
    axes = {parameter.ndim for parameter in model.parameters()}
    if isinstance(model, Interfaced) or 4 not in axes or 5 in axes:  # the format can't hold the weights of Conv3d
        return model
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = images_channels_last(inputs)
    try:
        _outputs(last, images)
    except RuntimeError as error:
        if "view" not in str(error):
            return model  # whoever runs it says what is wrong
    else:
        return model
    last.__class__ = _with_copies(type(model))
    result = copy.deepcopy(model)
    result.__class__ = last.__class__
    return result if are_close(_outputs(model, inputs), _outputs(last, images), REORDERED_SUMS) else model


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    with torch.no_grad(), evaluating(model):
        return list(outputs_by_name(model, inputs).values())


def _with_copies(kind: Any) -> type[nn.Module]:
    """A subclass whose forward pass copies where a tensor can't be viewed."""

    @wraps(kind.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _Reshaping():
            return kind.forward(self, *args, **kwargs)

    return type(kind.__name__, (kind,), {"__module__": kind.__module__, "forward": forward})


class _Reshaping(TorchFunctionMode):
    """Inside of it, `view` is `reshape`: the same memory where that is possible, else a copy."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.view and len(args) > 1 and not isinstance(args[1], torch.dtype):
            return args[0].reshape(*args[1:])
        if func is Tensor.view_as:
            return args[0].reshape(args[1].shape)
        return func(*args, **(kwargs or {}))
