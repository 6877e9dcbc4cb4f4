"""ExecuTorch files: the lowered graph as one graph of XNNPACK, in ExecuTorch's program.

No converter stands in between, so every code, scale and zero point in the file is the plan's own. LiteRT's operators
stand on the same kernels, so the network is written in these first (`litert.file.parts_of`). The modules:

1. `nodes.py`, `layers.py`: what each of LiteRT's operators becomes in XNNPACK.
2. `graph.py`: XNNPACK's graph in the making: its values, nodes and constants.
3. `program.py`: the bytes; `schema.py` asks ExecuTorch's own compiler of flatbuffers for them.
"""

from __future__ import annotations

from autocompress.errors import ExportError
from autocompress.execute.compressed import check_activations
from autocompress.samples import ONE
from autocompress.targets.executorch.graph import XnnGraph
from autocompress.targets.executorch.nodes import add_node
from autocompress.targets.executorch.program import program_of
from autocompress.targets.graph.lowering import Lowered
from autocompress.targets.litert.file import parts_of

_FILE = "an ExecuTorch file"


def write_executorch(lowered: Lowered) -> bytes:
    """The network as an ExecuTorch file: takes and gives tensors as PyTorch does, (N, …) with channels first, N to 32.

    Weights are 8-bit codes (1 to 8 bits), each row on its own scale, or float32. A rounded activation is 8-bit
    codes, and what stands between rounded activations runs in XNNPACK's integer kernels. The same network gives the
    same bytes.

    Args:
        lowered: network as a graph, made with `integer=True`, or else there are few integer kernels.

    Returns:
        The content of the file.

    Raises:
        InputError: the extra `executorch` is not installed, or the plan rounds a layer's input to other than 8 bits.
        ExportError: the network has an operator that files can't hold.
    """
    check_activations(lowered.layers, _FILE, "executorch")
    for field in lowered.inputs:
        if field.dtype != "float32":
            name = lowered.names[0] if field.name == ONE else field.name
            raise ExportError(
                f"`model` must take float32 numbers for {_FILE}, got {field.dtype} for {name}; "
                "pass --target onnxruntime or packed."
            )
    graph = XnnGraph(parts_of(lowered, _FILE))
    for operator in graph.parts.operators:
        add_node(graph, operator)
    return program_of(graph)
