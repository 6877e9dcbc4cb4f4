"""Batch norms that no layer absorbs, as x · scale + shift: two tensors instead of BatchNormalization's four.

Two of the four are often the same ones and zeros for norms of one width. Kept once, they would make the file of the
network that has all its channels the shorter one, and the search's count of bytes builds on its being the longest.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx

_ATEN = torch.ops.aten


def write_norms_out_(module: fx.GraphModule) -> None:
    """Replace every batch norm by a multiplication and an addition.

    Args:
        module: graph whose nodes know their shapes (`ShapeProp`); it is changed.
    """
    for number, node in enumerate(list(module.graph.nodes)):
        if node.target is not _ATEN._native_batch_norm_legit_no_training.default:
            continue
        parameters = [None if each is None else attrgetter(each.target)(module) for each in node.args[1:5]]
        scale, shift = _scale_and_shift(parameters, node.args[6])
        shape = (-1, *[1] * (len(node.args[0].meta["tensor_meta"].shape) - 2))
        names = (f"norm_scale_{number}", f"norm_shift_{number}")
        for name, values in zip(names, (scale, shift), strict=True):
            module.register_buffer(name, values.view(shape))
        with module.graph.inserting_before(node):
            parts = [module.graph.get_attr(name) for name in names]
            scaled = module.graph.call_function(_ATEN.mul.Tensor, (node.args[0], parts[0]))
            shifted = module.graph.call_function(_ATEN.add.Tensor, (scaled, parts[1]))
        for user in list(node.users):  # the first of three results; the others are of training
            user.replace_all_uses_with(shifted)


def _scale_and_shift(parameters: list[Any], eps: float) -> tuple[Tensor, Tensor]:
    """(C,) float32 scale and shift of a norm's weight, bias, mean and variance, computed in double precision."""
    weight, bias, mean, variance = (None if each is None else each.detach().double() for each in parameters)
    assert mean is not None
    assert variance is not None
    scale = torch.rsqrt(variance + eps)
    scale = scale if weight is None else scale * weight
    shift = -mean * scale
    return scale.float(), (shift if bias is None else shift + bias).float()
