"""Two thin layers in the place of one: what a label of low rank makes of a module."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.plan import FIRST, SECOND


class Factors(nn.Sequential):
    """The two factors of a layer, `0` and `1`, in the place of its module.

    Code around a layer may ask for its weight's type or its widths, as that of T5 does; it gets the second factor's
    weight and bias, and the widths of both together.

    Args:
        first: layer with the input's channels and `rank` outputs, without a bias.
        second: layer with `rank` inputs and the outputs' channels.
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.add_module(FIRST, first)
        self.add_module(SECOND, second)

    def __getattr__(self, name: str) -> Any:
        if name in ("weight", "bias", "out_features", "out_channels"):
            return getattr(self._modules[SECOND], name)
        if name in ("in_features", "in_channels"):
            return getattr(self._modules[FIRST], name)
        return super().__getattr__(name)


def cut_(model: nn.Module, name: str, rank: int) -> None:
    """Replace a layer by two of a rank, wherever the network has it. Their weights are zeros, to be written.

    The first one is the module with fewer outputs, so that it strides and pads as that did; the second one computes
    at single positions.

    Args:
        model: network that has the layer, with its channels gone already.
        name: name of a linear layer or of a convolution whose kernel is 1.
        rank: rank of the factors, at least 1.
    """
    module: Any = model.get_submodule(name)
    weight: Tensor = module.weight.detach()
    first = copy.deepcopy(module)
    first.weight = nn.Parameter(weight.new_zeros(rank, *weight.shape[1:]), requires_grad=False)
    first.register_parameter("bias", None)
    second = nn.Parameter(weight.new_zeros(len(weight), rank, *weight.shape[2:]), requires_grad=False)
    pair = Factors(first, _pointwise(module, second))
    pair.train(module.training)
    if isinstance(module, nn.Linear):
        first.out_features = rank
    else:
        first.out_channels = rank
    _replace_(model, module, pair)


def join_(model: nn.Module, name: str) -> None:
    """Put one layer back in the place of two: the inverse of `cut_`. Its weight is zeros, to be written.

    Args:
        model: network that has the two factors.
        name: name of the layer.
    """
    pair: Any = model.get_submodule(name)
    first, second = pair._modules[FIRST], pair._modules[SECOND]
    whole = copy.deepcopy(first)
    shape = (len(second.weight), *first.weight.shape[1:])
    whole.weight = nn.Parameter(first.weight.new_zeros(shape), requires_grad=False)
    whole.bias = None if second.bias is None else nn.Parameter(second.bias.detach().clone(), requires_grad=False)
    if isinstance(whole, nn.Linear):
        whole.out_features = shape[0]
    else:
        whole.out_channels = shape[0]
    _replace_(model, pair, whole)


def _replace_(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in the place of another one, under each of its names."""
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child is old:
                parent._modules[key] = new


def _pointwise(module: nn.Module, weight: nn.Parameter) -> nn.Module:
    """A layer of the kind of `module` that computes at single positions with the weight (rows, rank, 1, …)."""
    rows, rank = weight.shape[:2]
    has_bias = module.bias is not None
    with torch.device("meta"):  # no numbers are drawn for what is replaced
        if isinstance(module, nn.Linear):
            made: Any = nn.Linear(rank, rows, bias=has_bias)
        else:
            made = (nn.Conv1d if weight.ndim == 3 else nn.Conv2d)(rank, rows, 1, bias=has_bias)
    made.weight = weight
    if has_bias:
        made.bias = nn.Parameter(weight.new_zeros(rows), requires_grad=False)
    return made  # type: ignore[no-any-return]
