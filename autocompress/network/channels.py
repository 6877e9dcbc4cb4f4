"""Output channels of layers, followed through the operators between layers, for the sizes of activations.

Where an operator mixes or moves channels in a way that is not modelled, the answer is None, "not known": such
a tensor counts with its original size, so that memory is never understated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from autocompress.network.operators import is_matmul

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Channels:
    """Where the entries of one axis of a tensor come from.

    Attributes:
        axis: index of the axis, 1 or higher.
        sources: (size of the axis,) int64 number of the layer output channel that each entry comes from,
            counted over all layers; -1 where it comes from none.
    """

    axis: int
    sources: IntArray


Inputs = Mapping[int, Channels | None]  # by the id of a tensor argument


def written_by_layer(layer: nn.Module, shape: Sequence[int], first_row: int) -> Channels:
    """Channels of a layer's own result: axis 1 of a convolution, the last axis of a linear layer.

    Args:
        layer: the layer.
        shape: shape of the result, with the batch axis.
        first_row: number of the layer's first output channel.
    """
    axis = len(shape) - 1 if isinstance(layer, nn.Linear) else 1
    return Channels(axis, np.arange(first_row, first_row + shape[axis], dtype=np.int64))


def follow(func: Any, args: Any, inputs: Inputs, made: Sequence[Tensor]) -> list[Channels | None]:
    """Channels of every result of an operator that is not a layer; None where they are not known.

    Args:
        func: aten operator.
        args: positional arguments of the call.
        inputs: channels of the tensor arguments, None where they are not known; tensors that do not depend on
            the network's input are missing.
        made: results of the call.
    """
    name = func.overloadpacket.__name__
    if is_matmul(func):
        return [None] * len(made)
    if name == "cat":
        return [_concatenated(args, inputs, made[0])]
    rule = _VIEW_RULES.get(name)
    if rule is not None and isinstance(args[0], Tensor):
        source = inputs.get(id(args[0]))
        return rule(source, args, made) if source is not None else [None] * len(made)
    return [_kept(args, inputs, tensor) for tensor in made]


def _kept(args: Any, inputs: Inputs, made: Tensor) -> Channels | None:
    """Channels that stay where they are in an argument: element-wise operators, pooling, reductions."""
    for given in torch.utils._pytree.tree_leaves(args):
        source = inputs.get(id(given)) if isinstance(given, Tensor) else None
        if source is None:
            continue
        from_end = source.axis - given.ndim
        for axis in (source.axis, made.ndim + from_end):
            if 0 < axis < made.ndim and made.shape[axis] == len(source.sources):
                return Channels(axis, source.sources)
    return None


def _concatenated(args: Any, inputs: Inputs, made: Tensor) -> Channels | None:
    """Channels of a concatenation: those of the parts one after another, or those of all parts alike."""
    tensors = [tensor for tensor in args[0] if tensor.numel()]
    dim = (args[1] if len(args) > 1 else 0) % made.ndim
    sources = [inputs.get(id(tensor)) for tensor in tensors]
    known = [source for source in sources if source is not None]
    if not known or any(source.axis != known[0].axis for source in known):
        return None
    if known[0].axis != dim:
        return known[0]
    parts = [
        source.sources if source is not None else np.full(tensor.shape[dim], -1, np.int64)
        for tensor, source in zip(tensors, sources, strict=True)
    ]
    return Channels(dim, np.concatenate(parts))


def _reshaped(source: Channels, args: Any, made: Sequence[Tensor]) -> list[Channels | None]:
    """Channels of a view of another shape.

    The axis stays whole where the same number of elements lies before it; later axes may be merged into it.
    """
    before, size = math.prod(args[0].shape[: source.axis]), len(source.sources)
    shape = made[0].shape
    for axis in range(1, len(shape)):
        if math.prod(shape[:axis]) == before and shape[axis] % size == 0 and shape[axis]:
            return [Channels(axis, source.sources.repeat(shape[axis] // size))]
    return [None]


def _permuted(source: Channels, args: Any, made: Sequence[Tensor]) -> list[Channels | None]:
    """Channels of a tensor whose axes are put in another order."""
    order = [dim % args[0].ndim for dim in args[1]]
    return [Channels(order.index(source.axis), source.sources)]


def _transposed(source: Channels, args: Any, made: Sequence[Tensor]) -> list[Channels | None]:
    """Channels of a tensor of which two axes are swapped."""
    first, second = (dim % args[0].ndim for dim in args[1:3])
    axis = {first: second, second: first}.get(source.axis, source.axis)
    return [Channels(axis, source.sources)]


def _sliced(source: Channels, args: Any, made: Sequence[Tensor]) -> list[Channels | None]:
    """Channels of a slice along one axis."""
    given = list(args[1:])
    dim, start, end, step = given + [0, None, None, 1][len(given) :]
    if dim % args[0].ndim != source.axis:
        return [source]
    return [Channels(source.axis, source.sources[slice(start, end, step)])]


def _split(source: Channels, args: Any, made: Sequence[Tensor]) -> list[Channels | None]:
    """Channels of every part of a tensor that is split along one axis."""
    dim = (args[2] if len(args) > 2 else 0) % args[0].ndim
    if dim != source.axis:
        return [source] * len(made)
    ends = np.cumsum([tensor.shape[dim] for tensor in made])
    return [Channels(dim, part) for part in np.split(source.sources, ends[:-1])]


def _lost(source: Channels, args: Any, made: Sequence[Tensor]) -> list[Channels | None]:
    """Not known, for every result."""
    return [None] * len(made)


_VIEW_RULES = {
    **dict.fromkeys(("view", "_unsafe_view", "_reshape_alias", "unsqueeze", "squeeze"), _reshaped),
    "permute": _permuted,
    "transpose": _transposed,
    "slice": _sliced,
    **dict.fromkeys(("select", "unbind", "t", "as_strided", "diagonal"), _lost),
    **dict.fromkeys(("split", "split_with_sizes"), _split),
}
