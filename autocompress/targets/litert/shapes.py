"""The shape of every node of a graph, with the axis that the number of samples is on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from autocompress.samples import Field

_ANY_TWO = (2, 3)  # numbers of samples that shapes are compared at


class _Shapes(fx.Interpreter):
    """Runs the graph and keeps the shapes of all tensors that it makes."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, tuple | list):
            self.found[n] = tuple(each.shape for each in result if isinstance(each, Tensor))
        elif isinstance(result, Tensor):
            self.found[n] = result.shape
        return result


def shapes_of(module: fx.GraphModule, inputs: Sequence[Field]) -> Mapping[fx.Node, tuple[int, ...]]:
    """The shape of every node that makes one tensor: -1 where it grows with the number of samples.

    Args:
        module: graph of a network.
        inputs: form of every tensor that it takes.
    """
    runs = []
    for count in _ANY_TWO:
        shapes = _Shapes(module)
        with torch.no_grad():
            shapes.run(*(field.zeros(count) for field in inputs))
        runs.append(shapes.found)
    return {
        node: tuple(a if a == b else -1 for a, b in zip(shape, runs[1][node], strict=True))
        for node, shape in runs[0].items()
        if isinstance(shape, torch.Size)
    }
