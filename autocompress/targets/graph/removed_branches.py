"""Takes removed branches out of a graph: what is left of each is a constant that is added.

A plan may remove all channels of a residual branch. In `x + outer(relu(inner(x)))`, `inner` then writes nothing and
`outer` reads nothing, so `outer` puts out its bias at every position, and the sum is `x + outer.bias`. The graph
therefore loses both layers, and all that stands between them, such as the heads of attention:

    x + outer(relu(inner(x)))   becomes   x + view(outer.bias, [-1, 1, 1]),   or   x   where `outer` has no bias.

Files could hold layers without channels in no other way: runtimes have no convolution to or from nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from autocompress.errors import ExportError
from autocompress.execute.compressed import LayerWeights
from autocompress.network.exported import LayerCalls

_ATEN = torch.ops.aten


def without_branches(
    graph: fx.GraphModule, calls: LayerCalls, layers: Mapping[str, LayerWeights]
) -> tuple[fx.GraphModule, LayerCalls]:
    """The graph without the layers that have no weights and without all that only they need.

    Args:
        graph: graph of the network, in which zeros stand in for removed branches; its nodes are changed.
        calls: layer names by the nodes that call them.
        layers: finished layers by name; those that `is_empty` write or read a removed branch.

    Returns:
        The graph, and the calls of the layers that are left.

    Raises:
        ExportError: such a layer's output is not just added to something.
    """
    empty = {call: name for call, name in calls.items() if layers[name].is_empty}
    if not empty:
        return graph, calls
    for call, name in empty.items():
        if len(layers[name].values):
            _add_bias_only_(graph.graph, call)
    _eliminate_dead_code_(graph.graph)
    left = set(graph.graph.nodes)
    for call, name in empty.items():
        if call in left:
            raise ExportError(
                f"`plan` may remove branches that are added to something only, got {name} without weights."
            )
    smaller = fx.GraphModule(graph, graph.graph)
    return smaller, {call: name for call, name in calls.items() if call in left}


def _eliminate_dead_code_(graph: fx.Graph) -> None:
    """Remove what nobody reads.

    torch.fx keeps operators that may draw random numbers, as attention with dropout does; here none of them draws any.
    """
    for node in reversed(graph.nodes):
        if node.op not in ("placeholder", "output") and not node.users:
            graph.erase_node(node)


def _add_bias_only_(graph: fx.Graph, call: fx.Node) -> None:
    """Let every addition of the layer's output add its bias instead.

    Other operators that read the layer still do; `without_branches` refuses those that stay in the graph.
    """
    bias = call.args[2] if len(call.args) > 2 else None
    for add, term in _sums(call):
        with graph.inserting_before(add):
            if isinstance(bias, fx.Node):
                add.replace_input_with(term, _over_positions(graph, call, bias))
            else:
                add.replace_all_uses_with(_without(graph, add, term))


def _sums(call: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    """(addition, operand) for all additions of the layer's output; after a linear layer the operand may be a view."""
    views = [user for user in call.users if user.target is _ATEN.view.default and call.target is _ATEN.linear.default]
    return [(user, term) for term in (call, *views) for user in term.users if user.target is _ATEN.add.Tensor]


def _without(graph: fx.Graph, add: fx.Node, term: fx.Node) -> fx.Node:
    """What the addition `first + alpha * second` gives without one of the two; `alpha` is 1 where it is not given."""
    first, second = add.args
    if second is term or not add.kwargs:
        other = first if second is term else second
        assert isinstance(other, fx.Node)
        return other
    scaled = graph.call_function(_ATEN.mul.Tensor, (second, add.kwargs["alpha"]))
    scaled.meta["val"] = add.meta.get("val")
    return scaled


def _over_positions(graph: fx.Graph, call: fx.Node, bias: fx.Node) -> fx.Node:
    """The bias (rows,) in a shape that is broadcast over the axes behind the channels: (rows, 1, 1) for conv2d."""
    if call.target is _ATEN.linear.default:
        return bias
    positions = 1 if call.target in (_ATEN.conv1d.default, _ATEN.conv1d.padding) else 2
    shaped = graph.call_function(_ATEN.view.default, (bias, [-1, *[1] * positions]))
    value = bias.meta.get("val")
    shaped.meta["val"] = None if value is None else value.view(-1, *[1] * positions)
    return shaped
