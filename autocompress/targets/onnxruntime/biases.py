"""Biases in an ONNX graph, as integers where ONNX Runtime would otherwise run another kernel than the graph means.

ONNX Runtime decides by an operator's inputs which kernel runs. Two of its decisions depend on the bias:

- A float weight between rounded activations it rounds to 8 bits, which no plan asked for, if the bias is a plain
  tensor (weight_bias_quantization.cc). A bias behind a DequantizeLinear of its own keeps it from that.
- A matrix product (Gemm) runs in integers only if its bias is int32 on the kernel's own scale, input scale times
  weight scale, with DequantizeLinear behind it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto


def store_biases_(graph: GraphProto) -> None:
    """Write those biases as integers that a kernel depends on.

    Args:
        graph: graph whose weights are stored; it is changed.
    """
    makers = {node.output[0]: node for node in graph.node}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm") and _dequantizes(makers.get(node.input[0])):
            if not _dequantizes(makers.get(node.input[1])):
                nodes += _exact_bias(graph, node, tensors)
            elif node.op_type == "Gemm" and len(node.input) == 3:
                nodes += _kernel_bias(graph, node, [makers[name].input[1] for name in node.input[:2]], tensors)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _dequantizes(node: NodeProto | None) -> bool:
    return node is not None and node.op_type == "DequantizeLinear"


def _exact_bias(graph: GraphProto, node: NodeProto, tensors: Mapping[str, TensorProto]) -> list[NodeProto]:
    """The node that makes a float layer's bias of int32 codes, on a scale on which its largest value is 2³¹ - 1.

    That is exact to half a unit in the last place of the largest value. Zeros stand for a bias that there is not.
    """
    from onnx import helper, numpy_helper

    name = f"{node.output[0]}_bias"
    if len(node.input) == 3:
        bias = numpy_helper.to_array(tensors[node.input[2]]).astype(np.float64)
    else:
        values = itertools.chain(graph.value_info, graph.output)  # the last layer's is in no value_info
        output = next(value for value in values if value.name == node.output[0])
        bias = np.zeros(output.type.tensor_type.shape.dim[1].dim_value)
    scale = max(float(np.abs(bias).max()), 1e-30) / (2**31 - 1)
    codes, step = np.rint(bias / scale).astype(np.int32), np.array(scale, np.float32)
    graph.initializer.append(numpy_helper.from_array(codes, f"{name}_codes"))
    graph.initializer.append(numpy_helper.from_array(step, f"{name}_scale"))
    node.input[:] = [*node.input[:2], name]
    return [helper.make_node("DequantizeLinear", [f"{name}_codes", f"{name}_scale"], [name])]


def _kernel_bias(
    graph: GraphProto, node: NodeProto, scales: list[str], tensors: Mapping[str, TensorProto]
) -> list[NodeProto]:
    """The nodes that make a product's bias of int32 codes, in steps of input scale times weight scale.

    Nothing where a code takes more than 32 bits: the bias stays as it is, and the product runs in float32.

    Args:
        graph: graph that the codes are added to.
        node: matrix product; its bias is changed.
        scales: names of the input's scale and the weight's scales.
        tensors: initializers by name.
    """
    from onnx import helper, numpy_helper

    name = f"{node.output[0]}_bias"
    step, scale = (numpy_helper.to_array(tensors[each]).astype(np.float64) for each in scales)  # (), (rows,)
    codes = np.rint(numpy_helper.to_array(tensors[node.input[2]]) / (step * scale))  # (rows,)
    if np.abs(codes).max() >= 2**31:
        return []
    graph.initializer.append(numpy_helper.from_array(codes.astype(np.int32), f"{name}_codes"))
    node.input[2] = name
    return [
        helper.make_node("Mul", scales, [f"{name}_scale"]),  # the runtime multiplies once, when it loads the file
        helper.make_node("DequantizeLinear", [f"{name}_codes", f"{name}_scale"], [name], axis=0),
    ]
