"""LiteRT files: the lowered graph, operator by operator, in LiteRT's own flatbuffer.

No converter stands in between, so every code, scale and zero point in the file is the plan's own. The modules:

1. `shapes.py`: the shape of every node, and which axis is the samples'.
2. `graph.py`: the file in the making: each node's tensor as float32 or INT8, with channels first or last.
3. `layers.py`, `operators.py`, `moves.py`: what each operator becomes; `windows.py` how windows are padded.
4. `flatbuffer.py`: the bytes.
"""

from __future__ import annotations

from torch import fx

from autocompress.execute.compressed import check_activations
from autocompress.samples import ONE
from autocompress.targets.graph.lowering import Lowered
from autocompress.targets.litert.flatbuffer import FileParts, written
from autocompress.targets.litert.graph import FileGraph, arguments
from autocompress.targets.litert.moves import MOVES
from autocompress.targets.litert.operators import OPERATORS, refused
from autocompress.targets.litert.shapes import shapes_of

_NO_RESULT = "sym_size"


def write_litert(lowered: Lowered) -> bytes:
    """The network as a LiteRT file: takes and gives tensors as PyTorch does, (N, …) with channels first, any N.

    Weights are INT4 (1 to 4 bits), INT8 (5 to 8), FLOAT16 or FLOAT32, each row on its own scale. A rounded activation
    is INT8, and what stands between rounded activations runs in LiteRT's integer kernels. The same network gives the
    same bytes.

    Args:
        lowered: network as a graph, made with `integer=True`, or else there are few integer kernels.

    Returns:
        The content of the file.

    Raises:
        InputError: the extra `litert` is not installed, or the plan rounds a layer's input to other than 8 bits.
        ExportError: the network has an operator that files can't hold.
    """
    check_activations(lowered.layers, "a LiteRT file", "litert")
    return written(parts_of(lowered, "a LiteRT file"))


def parts_of(lowered: Lowered, file: str) -> FileParts:
    """The tensors and operators of a network's file, by LiteRT's names.

    Args:
        lowered: network as a graph.
        file: kind of the file in a message, such as `a LiteRT file`.

    Raises:
        ExportError: the network has an operator that files can't hold.
    """
    nodes = lowered.graph.graph
    layers = {f"{name}.weight": layer for name, layer in lowered.layers.items()}
    graph = FileGraph(lowered.graph, shapes_of(lowered.graph, lowered.inputs), layers, file)
    fields = iter(lowered.inputs)
    for node in nodes.nodes:
        if node.op == "placeholder":
            field = next(fields)
            graph.take(node, lowered.names[0] if field.name == ONE else field.name, field.dtype)
        elif node.op == "call_function" and node not in graph.done and _NO_RESULT not in str(node.target):
            handler = OPERATORS.get(node.target) or MOVES.get(node.target)
            if handler is None:
                raise refused(graph, node)
            handler(graph, node)
    return graph.finished(dict(zip(lowered.outputs, _outputs(nodes), strict=True)))


def _outputs(graph: fx.Graph) -> list[fx.Node]:
    (given,) = arguments(graph.output_node(), None)
    return list(given) if isinstance(given, tuple | list) else [given]
