"""PT2 archives: the network as `torch.export.load` reads it, in plain ATen operators."""

from __future__ import annotations

import copy
import io

import torch
from torch import fx

from autocompress.network.exported import free_axes, takes_any_length
from autocompress.targets.graph.lowering import Lowered
from autocompress.targets.graph.rounding_points import rounding_nodes

_ATEN = torch.ops.aten


def write_pt2(lowered: Lowered) -> bytes:
    """The network as a PT2 archive with float32 weights; it loads without autocompress and takes any batch size.

    Every rounding is written out as clamp(round(x / scale), -zero, 2^bits - 1 - zero) * scale.

    Args:
        lowered: network to be written; it is not changed.

    Returns:
        The content of the file.
    """
    module = fx.GraphModule(lowered.graph, copy.deepcopy(lowered.graph.graph))
    graph = module.graph
    for node, found in list(rounding_nodes(graph)):
        low, high = -found.zero, 2**found.bits - 1 - found.zero
        with graph.inserting_before(node):
            steps = graph.call_function(_ATEN.div.Tensor, (node.args[0], found.scale))
            codes = graph.call_function(
                _ATEN.clamp.default, (graph.call_function(_ATEN.round.default, (steps,)), low, high)
            )
            values = graph.call_function(_ATEN.mul.Tensor, (codes, found.scale))
        node.replace_all_uses_with(values)
        graph.erase_node(node)
    module.recompile()
    example = tuple(field.zeros(2) for field in lowered.inputs)
    with torch.no_grad():
        free = free_axes(module, len(example), any_length=takes_any_length(module))
        program = torch.export.export(module, example, dynamic_shapes=free)
    archive = io.BytesIO()
    torch.export.save(program, archive)
    return archive.getvalue()
