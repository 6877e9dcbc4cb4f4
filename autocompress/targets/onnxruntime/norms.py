"""Batch norms without weights of their own, which no layer absorbs, as x · scale + shift.

BatchNormalization asks for four vectors. A norm of PyTorch that was made with `affine=False` has two, its statistics,
and two are what the search counts a channel. The exporter fills up with ones and zeros, and keeps those of all norms of
one width once: they would take more bytes, the more widths a plan has.
"""

from __future__ import annotations

from operator import attrgetter

import torch
from torch import fx

_ATEN = torch.ops.aten


def write_norms_out_(module: fx.GraphModule) -> None:
    """Replace every batch norm without weight and bias by a multiplication and an addition.

    Args:
        module: graph whose nodes know their shapes (`ShapeProp`); it is changed.
    """
    for number, node in enumerate(list(module.graph.nodes)):
        if node.target is not _ATEN._native_batch_norm_legit_no_training.default or node.args[1:3] != (None, None):
            continue
        mean, variance = (attrgetter(each.target)(module).detach().double() for each in node.args[3:5])
        scale = torch.rsqrt(variance + node.args[6])
        shape = (-1, *[1] * (len(node.args[0].meta["tensor_meta"].shape) - 2))
        names = (f"norm_scale_{number}", f"norm_shift_{number}")
        for name, values in zip(names, (scale, -mean * scale), strict=True):
            module.register_buffer(name, values.float().view(shape))
        with module.graph.inserting_before(node):
            parts = [module.graph.get_attr(name) for name in names]
            scaled = module.graph.call_function(_ATEN.mul.Tensor, (node.args[0], parts[0]))
            shifted = module.graph.call_function(_ATEN.add.Tensor, (scaled, parts[1]))
        for user in list(node.users):  # the first of three results; the others are of training
            user.replace_all_uses_with(shifted)
