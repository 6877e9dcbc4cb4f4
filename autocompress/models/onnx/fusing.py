"""Additions of a constant right behind a matrix product or convolution, as that layer's bias."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from autocompress.models.onnx.constants import Constant

if TYPE_CHECKING:
    from onnx import NodeProto


def with_biases(nodes: Sequence[NodeProto], constants: dict[str, Constant], outputs: Sequence[str]) -> list[NodeProto]:
    """The nodes with every such addition in the layer before it: as a third input of MatMul or Conv.

    ONNX's MatMul has no third input: exporters write `MatMul` and `Add` for a linear layer of more than two axes.

    Args:
        nodes: nodes in order; they are not changed.
        constants: constants by name; the biases are added.
        outputs: names of the graph's outputs.
    """
    readers = Counter(name for node in nodes for name in node.input)
    readers.update(outputs)
    makers = {node.output[0]: position for position, node in enumerate(nodes)}
    result: list[NodeProto | None] = list(nodes)
    for position, node in enumerate(nodes):
        for product, added in (tuple(node.input), tuple(reversed(node.input))) if node.op_type == "Add" else ():
            layer = result[makers[product]] if product in makers else None
            bias = _bias(layer, constants, added) if layer is not None and readers[product] == 1 else None
            if layer is not None and bias is not None:
                constants[f"{added}\nflat"] = Constant(added, bias, added)
                result[makers[product]] = _with_bias(layer, f"{added}\nflat", node.output[0])
                makers[node.output[0]] = makers[product]
                result[position] = None
                break
    return [node for node in result if node is not None]


def _with_bias(layer: NodeProto, bias: str, output: str) -> NodeProto:
    from onnx import NodeProto

    copied = NodeProto()
    copied.CopyFrom(layer)
    copied.input[:] = [*layer.input[:2], bias]
    copied.output[:] = [output]
    return copied


def _bias(layer: NodeProto, constants: dict[str, Constant], added: str) -> Tensor | None:
    """(channels,) what is added to the layer's results, if it is one number for each of its channels."""
    if layer.op_type not in ("MatMul", "Conv") or added not in constants or len(layer.input) > 2:
        return None
    weight, value = constants.get(layer.input[1]), constants[added].tensor
    if weight is None or layer.input[0] in constants:
        return None
    shape = list(value.shape)
    if layer.op_type == "MatMul" and weight.tensor.ndim == 2:
        wanted = [weight.tensor.shape[1]]
    elif layer.op_type == "Conv" and value.ndim == weight.tensor.ndim - 1:
        wanted = [weight.tensor.shape[0], *[1] * (weight.tensor.ndim - 2)]
    else:
        wanted = [1, weight.tensor.shape[0], *[1] * (weight.tensor.ndim - 2)]
    return value.flatten() if shape == wanted else None
