"""A model as a graph of ATen operators, which runs without the model's class."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from autocompress.errors import ExportError
from autocompress.network.verification import first_line

LAYER_OPERATORS = frozenset(
    {torch.ops.aten.conv1d, torch.ops.aten.conv2d, torch.ops.aten.linear, torch.ops.aten.convolution}
)


def export_graph(model: nn.Module, example: Tensor) -> fx.GraphModule:
    """The graph of a model in eval mode, for any number of samples.

    Args:
        model: takes one tensor.
        example: (1+, …); the batch axis stays free.

    Raises:
        ExportError: torch.export can't take the model.
    """
    sample = torch.cat([example[:1]] * 2)  # a batch of one would be taken for a constant
    try:
        program = torch.export.export(model, (sample,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    except Exception as error:  # torch.export raises what the model's code raises, and dozens of its own
        raise ExportError(f"torch.export can't take the network: {first_line(error)}") from error
    graph = program.module()
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":  # checks of the example's shape
            graph.graph.erase_node(node)
    graph.graph.lint()
    graph.recompile()
    return graph


def layer_calls(graph: fx.GraphModule, layers: Iterable[str]) -> dict[fx.Node, str]:
    """The nodes that run a layer, with its name, in the order in which they run."""
    weights = {f"{name}.weight": name for name in layers}
    calls: dict[fx.Node, str] = {}
    for node in graph.graph.nodes:
        if node.op != "call_function" or getattr(node.target, "overloadpacket", None) not in LAYER_OPERATORS:
            continue
        weight: Any = node.args[1]
        if weight.op == "get_attr" and weight.target in weights:
            calls[node] = weights[weight.target]
    return calls
