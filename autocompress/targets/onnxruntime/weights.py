"""The layers' own weights in an ONNX graph: packed codes and scales where the exporter left placeholders."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from autocompress.execute.compressed import LayerWeights
from autocompress.targets.onnxruntime.exporter import PLACEHOLDER

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto


def store_weights_(graph: GraphProto, layers: list[LayerWeights]) -> None:
    """Put the layers' codes and scales where the placeholders stand.

    A placeholder is a DequantizeLinear whose scale is called `autocompress_stored_NUMBER`, the layer's number in
    `layers`. Where only transpositions read it, as before a matrix product, the codes are stored transposed and the
    transpositions go.

    Args:
        graph: graph from the exporter; it is changed.
        layers: layers of the network, in the order that they were numbered in.
    """
    _store_tables_(graph, layers)
    nodes: list[NodeProto] = []
    turned: dict[str, str] = {}  # by output of a transposition: what is stored transposed and takes its place
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[1].startswith(PLACEHOLDER):
            number = int(node.input[1].removeprefix(PLACEHOLDER))
            readers = [reader for reader in graph.node if node.output[0] in reader.input]
            turn = _common_order(readers)
            turned |= {reader.output[0]: node.output[0] for reader in readers if turn}
            with_zero = any(reader.op_type == "Gemm" for reader in readers)
            nodes += _weight_nodes(graph, layers[number], node.output[0], turn, with_zero)
        elif node.output[0] not in turned:
            nodes.append(node)
    for node in nodes:
        node.input[:] = [turned.get(name, name) for name in node.input]
    dequantized = [node.input[0] for node in nodes if node.op_type == "DequantizeLinear"]
    assert not any(name.startswith(PLACEHOLDER) for name in dequantized), "every weight has its content"
    del graph.node[:]
    graph.node.extend(nodes)


def _common_order(readers: list[NodeProto]) -> tuple[int, ...]:
    """The order of axes that all readers put a weight in; empty where they do not, or not all the same."""
    orders = {tuple(reader.attribute[0].ints) if reader.op_type == "Transpose" else () for reader in readers}
    return orders.pop() if len(orders) == 1 else ()


def _store_tables_(graph: GraphProto, layers: list[LayerWeights]) -> None:
    """Put codes and scales where rows of tables are looked up.

    That is Cast(Gather(codes, rows)) · Unsqueeze(Gather(scale, rows)); 16-bit rows have no scale: Gather and Cast do.
    """
    for steps in list(graph.node):
        if steps.op_type != "Gather" or not steps.input[0].startswith(PLACEHOLDER):
            continue
        if steps.input[0].startswith(f"{PLACEHOLDER}codes_"):
            continue
        layer = layers[int(steps.input[0].removeprefix(PLACEHOLDER))]
        spread = _only_reader(graph, steps)
        product = _only_reader(graph, spread)
        cast = _maker(graph, next(name for name in product.input if name != spread.output[0]))
        rows = _maker(graph, cast.input[0])
        output = product.output[0]
        made = _table(graph, layer, output)
        rows.input[0] = made
        if layer.scale is None:
            cast.output[0] = output
            for node in (steps, spread, product):
                graph.node.remove(node)
        else:
            steps.input[0] = f"{output}_scale"


def _table(graph: GraphProto, layer: LayerWeights, output: str) -> str:
    """Add a table's stored tensors to the graph. Returns the name of what rows are looked up in: int8 or float16."""
    from onnx import TensorProto, helper, numpy_helper

    if layer.scale is None:
        graph.initializer.append(numpy_helper.from_array(layer.values.numpy().astype(np.float16), f"{output}_half"))
        return f"{output}_half"
    stored = packed(layer.values.numpy(), layer.bits, f"{output}_codes")
    graph.initializer.extend([stored, numpy_helper.from_array(layer.scale.numpy(), f"{output}_scale")])
    if stored.data_type == TensorProto.INT8:
        return stored.name
    graph.node.insert(0, helper.make_node("Cast", [stored.name], [f"{output}_int8"], to=TensorProto.INT8))
    return f"{output}_int8"


def _only_reader(graph: GraphProto, node: NodeProto) -> NodeProto:
    readers: list[NodeProto] = [each for each in graph.node if node.output[0] in each.input]
    (reader,) = readers
    return reader


def _maker(graph: GraphProto, name: str) -> NodeProto:
    makers: list[NodeProto] = [each for each in graph.node if name in each.output]
    (maker,) = makers
    return maker


def _weight_nodes(
    graph: GraphProto, layer: LayerWeights, output: str, turn: tuple[int, ...], with_zero: bool
) -> list[NodeProto]:
    """The nodes that make the float32 weight `output` of stored tensors, which are added to the graph.

    Float16: Cast. INT8: DequantizeLinear(codes, scale). INT4 and INT2: Cast to INT8, then DequantizeLinear.

    Args:
        graph: graph that the tensors are added to.
        layer: weights to store.
        output: name of the weight.
        turn: order of axes that the weight is stored in, so that nothing transposes it at run time; empty: its own.
        with_zero: whether to add zero points, all 0: the integer kernel of Gemm is only found with them, all others
            are found without.
    """
    from onnx import TensorProto, helper, numpy_helper

    values = layer.values.numpy()
    values = np.ascontiguousarray(values.transpose(turn)) if turn else values
    if layer.scale is None:
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float16), f"{output}_half"))
        return [helper.make_node("Cast", [f"{output}_half"], [output], to=TensorProto.FLOAT)]
    stored = packed(values, layer.bits, f"{output}_codes")
    scale = numpy_helper.from_array(layer.scale.numpy(), f"{output}_scale")
    graph.initializer.extend([stored, scale])
    dequantized = f"{output}_int8" if stored.data_type != TensorProto.INT8 else stored.name
    inputs = [dequantized, scale.name]
    if with_zero:
        inputs.append(f"{output}_zero")
        graph.initializer.append(numpy_helper.from_array(np.zeros(len(layer.scale), np.int8), inputs[2]))
    nodes = [helper.make_node("DequantizeLinear", inputs, [output], axis=turn.index(0) if turn else 0)]
    if dequantized != stored.name:
        nodes.insert(0, helper.make_node("Cast", [stored.name], [dequantized], to=TensorProto.INT8))
    return nodes


def packed(codes: npt.NDArray[np.int8], bits: int, name: str) -> TensorProto:
    """Codes as an ONNX tensor of the narrowest type that holds them: INT2, INT4 or INT8, several codes in a byte.

    The first of the codes in a byte takes its lowest bits, as the ONNX standard has it. Codes are in two's complement:
    -2 is 1110 in 4 bits.

    >>> tensor = packed(np.array([1, -2, 3], dtype=np.int8), 4, "codes")
    >>> [f"{byte:08b}" for byte in tensor.raw_data]  # -2 and 1, then nothing and 3
    ['11100001', '00000011']

    Args:
        codes: codes in the shape of the weight.
        bits: 1 to 8.
        name: name of the tensor.
    """
    from onnx import TensorProto

    widths = {TensorProto.INT2: 2, TensorProto.INT4: 4, TensorProto.INT8: 8}
    kind = next(kind for kind, width in widths.items() if bits <= width)
    width = widths[kind]
    per_byte = 8 // width
    flat = np.zeros(-(-codes.size // per_byte) * per_byte, np.uint8)
    flat[: codes.size] = codes.ravel().view(np.uint8) & (2**width - 1)
    shifts = np.arange(per_byte, dtype=np.uint8) * width
    bytes_of_codes = np.bitwise_or.reduce(flat.reshape(-1, per_byte) << shifts, axis=1)  # (bytes,)
    return TensorProto(name=name, data_type=kind, dims=codes.shape, raw_data=bytes_of_codes.astype(np.uint8).tobytes())
