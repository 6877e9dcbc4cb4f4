"""Constants of an ONNX graph: everything that does not depend on the network's input, computed when a file is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from autocompress.errors import InputError, reason_of
from autocompress.models.onnx.reading import node_name, opset

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")
_LATER_OPSETS = (19, 21, 23)  # tried where the reference implementation does not have an operator as old as the file's
_AS_IT_IS = frozenset(["Identity", "Dropout"])  # of a constant: that constant, so a weight that is shared stays shared


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that the file holds, or that follows from such ones.

    Attributes:
        name: name in the file.
        tensor: value; every kind of floating-point number is float32.
        origin: name of the stored tensor that it is, or is the transposition of.
        turned: whether it is the transposition of its origin.
    """

    name: str
    tensor: Tensor
    origin: str
    turned: bool = False


def fold_constants(proto: ModelProto) -> tuple[dict[str, Constant], list[NodeProto]]:
    """The constants of a graph by name, and the nodes that are left, in order.

    Args:
        proto: file that was read.

    Raises:
        InputError: a tensor is damaged or of a type that torch doesn't have, or a node of constants can't be computed.
    """
    constants = _stored(proto.graph)
    left: list[NodeProto] = []
    for node in proto.graph.node:
        given = [name for name in node.input if name]
        if node.op_type in RANDOM or not all(name in constants for name in given):
            left.append(node)
        else:
            constants |= computed(node, proto, constants)
    return constants, left


def _stored(graph: GraphProto) -> dict[str, Constant]:
    from onnx import numpy_helper

    found = {}
    for tensor in graph.initializer:
        try:
            values = numpy_helper.to_array(tensor)
        except (ValueError, TypeError, RuntimeError) as error:
            raise InputError(
                f"`model` must hold whole tensors, got {tensor.name}, whose data don't fit its shape."
            ) from error
        found[tensor.name] = Constant(tensor.name, as_torch(values, tensor.name), tensor.name)
    if graph.sparse_initializer:
        raise InputError("`model` must hold dense tensors, got sparse initializers.")
    return found


def as_torch(values: Any, name: str) -> Tensor:
    """An array of an ONNX file as a tensor: floats of any width as float32, integers of 2 and 4 bits as int8.

    Args:
        values: array, NumPy's or one of onnx's own types.
        name: name of the tensor, for errors.
    """
    array = np.asarray(values)
    if array.dtype.kind == "V" or array.dtype.name.startswith(("float8", "float4", "bfloat16", "int", "uint")):
        array = _widened(array)
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
    try:
        return torch.from_numpy(np.array(array, order="C"))  # a copy: onnx's arrays can't be written to
    except TypeError as error:
        raise InputError(f"`model` must hold numbers, got {name} of type {array.dtype}.") from error


def _widened(array: Any) -> Any:
    """An array of a type that torch does not have, or not all of, as one that it has."""
    name = array.dtype.name
    if name.startswith(("float", "bfloat")):
        return array.astype(np.float32)
    if name in ("int4", "uint4", "int2", "uint2"):
        return array.astype(np.int8)
    return array.astype(np.int64) if name in ("uint16", "uint32", "uint64") else array


def computed(node: NodeProto, proto: ModelProto, constants: Mapping[str, Constant]) -> dict[str, Constant]:
    """The results of a node whose inputs are all constants.

    Args:
        node: the node.
        proto: file that it is from.
        constants: constants by name.
    """
    if node.op_type in _AS_IT_IS:
        return {node.output[0]: constants[node.input[0]]}
    names = [name for name in node.output if name]
    source = constants[node.input[0]] if node.input else None
    results = _evaluated(node, proto, constants)
    tensors = [as_torch(result, name) for name, result in zip(node.output, results, strict=False) if name]
    if source is not None and node.op_type == "Transpose" and source.tensor.ndim == 2 and tensors[0].ndim == 2:
        is_turn = torch.equal(tensors[0], source.tensor.T)
        return {names[0]: Constant(names[0], tensors[0], source.origin, source.turned != is_turn)}
    return {name: Constant(name, tensor, name) for name, tensor in zip(names, tensors, strict=True)}


def _evaluated(node: NodeProto, proto: ModelProto, constants: Mapping[str, Constant]) -> list[Any]:
    """A node's results by onnx's reference implementation."""
    failure: Exception | None = None
    for version in (opset(proto), *(each for each in _LATER_OPSETS if each > opset(proto))):
        try:
            return _run(node, version, constants)
        except Exception as error:  # the reference implementation raises whatever NumPy does
            failure = failure or error
    assert failure is not None, "the file's own opset is tried in any case"
    reason = reason_of(failure)
    raise InputError(
        f"`model` must have constants that can be computed, got {node.op_type} ({node_name(node)}): {reason}."
    ) from failure


def _run(node: NodeProto, version: int, constants: Mapping[str, Constant]) -> list[Any]:
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    given = list(dict.fromkeys(name for name in node.input if name))
    inputs = [helper.make_tensor_value_info(name, 1, None) for name in given]  # the evaluator asks for no types
    outputs = [helper.make_tensor_value_info(name, 1, None) for name in node.output if name]
    graph = helper.make_graph([node], "constants", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)])
    return list(ReferenceEvaluator(model).run(None, {name: constants[name].tensor.numpy() for name in given}))
