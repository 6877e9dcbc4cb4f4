"""Networks that call `view` on what convolutions give: `x.view(len(x), -1)` before the first linear layer.

Plans are evaluated with the channels last in memory, as convolutions run faster then. There `view` fails where it joins
channels and positions, and `reshape` copies. `viewing` makes such a network copy where it must.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.borrowed import evaluating
from autocompress.network.interface import Interfaced, outputs_by_name
from autocompress.network.overriding import overridden
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
    result = copy.deepcopy(model)
    result.__class__ = last.__class__ = overridden(type(model), _reshaped)
    return result if are_close(_outputs(model, inputs), _outputs(last, images), REORDERED_SUMS) else model


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    with torch.no_grad(), evaluating(model):
        return list(outputs_by_name(model, inputs).values())


def _reshaped(_: nn.Module, func: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """What `reshape` gives for `view`: the same memory where that is possible, else a copy."""
    if func is Tensor.view and len(args) > 1 and not isinstance(args[1], torch.dtype):
        return args[0].reshape(*args[1:])
    if func is Tensor.view_as:
        return args[0].reshape(args[1].shape)
    return NotImplemented
