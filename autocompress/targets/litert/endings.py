"""Where a kernel ends: activations and roundings that it computes beside its own operator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from autocompress.menus.activations import ActivationRange
from autocompress.targets.graph.rounding_points import ROUND_ACTIVATION
from autocompress.targets.litert.graph import FileGraph, Form, arguments

_ATEN = torch.ops.aten
_NONE, _RELU, _RELU_N1_TO_1, _RELU6 = range(4)  # the schema's ActivationFunctionType
_BOUNDS: dict[tuple[float | None, float | None], int] = {
    (0.0, None): _RELU,
    (0.0, 6.0): _RELU6,
    (-1.0, 1.0): _RELU_N1_TO_1,
}


@dataclass(frozen=True)
class Ending:
    """What one kernel computes from a node on.

    Attributes:
        node: last node that the kernel computes.
        activation: activation that it computes too, as the schema numbers them.
        range: range that the result is rounded to for all that read it; None: somebody reads it unrounded.
    """

    node: fx.Node
    activation: int
    range: ActivationRange | None


def ending_of(node: fx.Node) -> Ending:
    """The node with the activation and the rounding behind it that its kernel computes too."""
    users = list(node.users)
    activation = _activation(users[0]) if len(users) == 1 else _NONE
    end = users[0] if activation else node
    ranges = {_range(user) for user in end.users if user.target is not _ATEN.sym_size.int}
    return Ending(end, activation, ranges.pop() if len(ranges) == 1 else None)


def _range(node: fx.Node) -> ActivationRange | None:
    return range_of_rounding(node) if node.target is ROUND_ACTIVATION else None


def range_of_rounding(node: fx.Node) -> ActivationRange:
    """The range of a `round_activation`."""
    _, scale, zero, bits = arguments(node, None, 0.0, 0, 0)
    return ActivationRange(int(bits), float(scale), int(zero), 0.0)


def _activation(node: fx.Node) -> int:
    bounds = bounds_of(node)
    return _BOUNDS.get(bounds, _NONE) if bounds is not None else _NONE


def bounds_of(node: fx.Node) -> tuple[float | None, float | None] | None:
    """(lowest, highest) value that a clamp lets pass, None where there is no bound; None for other operators."""
    if node.target is _ATEN.relu.default:
        return 0.0, None
    if node.target is _ATEN.relu6.default:
        return 0.0, 6.0
    if node.target is _ATEN.hardtanh.default:
        _, low, high = arguments(node, None, -1.0, 1.0)
    elif node.target is _ATEN.clamp.default:
        _, low, high = arguments(node, None, node.kwargs.get("min"), node.kwargs.get("max"))
    else:
        return None
    return _number(low), _number(high)


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


def finish(graph: FileGraph, ending: Ending, last: bool, in_integers: bool) -> int:
    """A new tensor for what a kernel computes; nodes behind the first one need no operator of their own."""
    graph.done.add(ending.node)
    return graph.new(ending.node, Form(last, ending.range if in_integers else None))
