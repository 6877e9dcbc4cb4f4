"""ONNX files: weights as packed integers, activations behind QuantizeLinear, no byte that a runtime doesn't need.

`write_onnx` takes these steps, one module each:

1. `exporter.py`: the graph goes through `torch.onnx`. Every weight that is not float32 is a placeholder there, since
   the exporter knows no packed integers and its optimizer would compute with constants. Every rounding of an activation
   becomes QuantizeLinear and DequantizeLinear (Q/DQ): two operators that together compute what the graph's
   `round_activation` does, and between which the tensor is uint8. A runtime that finds DQ before and Q behind an
   operator runs its integer kernel instead of all three.
2. `pads.py`: convolutions pad for themselves what an operator of its own padded for them.
3. `weights.py`: the layers' own codes take the placeholders' places, two INT4 codes or four INT2 codes in a byte,
   each tensor with a DequantizeLinear that names its scales.
4. `biases.py`: biases become int32 where ONNX Runtime would otherwise run another kernel than the graph means.
5. `slim.py`: what says nothing about the computation is dropped, and names get short, as the budget counts the bytes.
"""

from __future__ import annotations

import itertools

from autocompress.execute.compressed import check_activations
from autocompress.network.exported import takes_any_length
from autocompress.samples import ONE
from autocompress.targets.graph.lowering import Lowered
from autocompress.targets.onnxruntime.biases import store_biases_
from autocompress.targets.onnxruntime.exporter import OPSET, exported, inline_constants_, with_placeholders
from autocompress.targets.onnxruntime.pads import join_pads_
from autocompress.targets.onnxruntime.recurrent import with_gates_in_order
from autocompress.targets.onnxruntime.slim import slim_
from autocompress.targets.onnxruntime.weights import store_weights_

_OUTPUT = "autocompress_output_"  # how the names of outputs begin until they get their own
BATCH = "batch"  # name of the batch axis of input and output
TOKENS = "tokens"  # name of the inputs' second axis where texts may have any length
IR_VERSION = 10  # of the file format: the first with INT4, as is opset 21 (`OPSET`)
_INT2_OPSET, _INT2_IR_VERSION = 25, 13  # the first with INT2; from 21 to 25, operators only learned further types


def write_onnx(lowered: Lowered) -> bytes:
    """The network as an ONNX file: takes and gives (batch, …) tensors, any batch size.

    A graph that takes texts of any length gives a file that does.

    Several inputs are called as `lowered.inputs` says. A single one is called `input`; in a network that comes from an
    ONNX file, as it is there. Outputs are called as `lowered.outputs` says.

    Weights are INT2 (1 and 2 bits), INT4 (3 and 4), INT8 (5 to 8), float16 or float32. INT2 and INT4 are cast to INT8
    first: ONNX Runtime folds the cast when it loads the file, and then runs its integer kernels. A rounded
    activation is QuantizeLinear and DequantizeLinear. The same network gives the same bytes.

    Args:
        lowered: network as a graph, made with `integer=True`, or else ONNX Runtime finds few integer kernels.

    Returns:
        The content of the file.

    Raises:
        InputError: the plan rounds a layer's input to other than 8 bits.
        ExportError: the network has an operator that ONNX doesn't.
    """
    from onnx import TensorProto

    check_activations(lowered.layers, "an ONNX file", "onnxruntime")
    placeholders = [f"{_OUTPUT}{number}" for number in range(len(lowered.outputs))]
    proto = exported(with_placeholders(lowered), lowered.inputs, placeholders)
    graph = proto.graph
    inline_constants_(graph)
    join_pads_(graph)
    store_weights_(graph, list(with_gates_in_order(lowered.graph.graph, lowered.layers).values()))
    store_biases_(graph)
    slim_(proto, _final_names(lowered) | dict(zip(placeholders, lowered.outputs, strict=True)))
    for value in itertools.chain(graph.input, graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = BATCH
    if takes_any_length(lowered.graph):
        for value in graph.input:
            value.type.tensor_type.shape.dim[1].dim_param = TOKENS
    two_bits = any(tensor.data_type == TensorProto.INT2 for tensor in graph.initializer)
    proto.ir_version = _INT2_IR_VERSION if two_bits else IR_VERSION
    proto.opset_import[0].version = _INT2_OPSET if two_bits else OPSET
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _final_names(lowered: Lowered) -> dict[str, str]:
    """Names of inputs in the file, by those that they have."""
    return {field.name: lowered.names[0] if field.name == ONE else field.name for field in lowered.inputs}
