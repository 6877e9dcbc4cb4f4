"""What an ONNX graph can lose without computing anything else: its file's bytes are budgeted.

A small network's exported graph takes some kilobytes more than its tensors: names of modules on every value, shapes of
all intermediate values, attributes that say what is the default anyway, the same scale stored many times. `slim_`
leaves about 300 bytes a layer.
"""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from autocompress.models.onnx.reading import all_nodes

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

_NAME_LETTERS = string.ascii_letters + string.digits
# Attributes without a default in the schema that runtimes fill in just the same.
_IMPLIED = {"strides": 1, "dilations": 1, "pads": 0}


def slim_(proto: ModelProto, names: Mapping[str, str]) -> None:
    """Make a file smaller that computes the same.

    In this order: unused tensors go; equal tensors are kept once, but for vectors; descriptions and defaults go; input
    and output get the names that they should have; every other name becomes one or two letters.

    Args:
        proto: network; it is changed.
        names: final names of input and output by those that they have.
    """
    graph = proto.graph
    _drop_unused_(graph)
    _share_initializers_(graph)
    _strip_(proto)
    _shorten_names_(graph, names)


def _drop_unused_(graph: GraphProto) -> None:
    """Remove tensors that no node reads, such as placeholders whose places are taken."""
    read = {name for node in all_nodes(graph) for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _share_initializers_(graph: GraphProto) -> None:
    """Keep equal tensors once: layers with one weight, and the same scales and zeros over and over.

    Vectors of floats, a number a channel, are kept once a reader, since layers with equal ones have other widths in
    other plans: the file of a network with all its channels must have the most bytes that no closed form counts.
    """
    from onnx import TensorProto, numpy_helper

    first: dict[tuple[Any, ...], str] = {}  # by type, shape and bytes: the name of the tensor that is kept
    renamed: dict[str, str] = {}
    kept = []
    for tensor in graph.initializer:
        values = tensor.raw_data or numpy_helper.to_array(tensor).tobytes()
        key = (tensor.data_type, tuple(tensor.dims), values)
        renamed[tensor.name] = first.setdefault(key, tensor.name)
        if renamed[tensor.name] == tensor.name:
            kept.append(TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=values))
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for node in all_nodes(graph):
        node.input[:] = [renamed.get(name, name) for name in node.input]
    _part_vectors_(graph)


def _part_vectors_(graph: GraphProto) -> None:
    """Give every reader of a vector of floats its own copy; the scales of weights are one layer's anyway."""
    from onnx import TensorProto

    scales = {node.input[1] for node in all_nodes(graph) if node.op_type == "DequantizeLinear"}
    vectors = {
        tensor.name: tensor
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.FLOAT and 1 < math.prod(tensor.dims) == max(tensor.dims)
    }
    read: set[str] = set()
    for node in all_nodes(graph):
        for position, name in enumerate(node.input):
            if name not in vectors or name in scales:
                continue
            if name in read:
                copied = graph.initializer.add()
                copied.CopyFrom(vectors[name])
                copied.name = node.input[position] = f"{name}/{len(graph.initializer)}"
            read.add(name)


def _strip_(proto: ModelProto) -> None:
    """Remove everything that says nothing about what is computed."""
    for described in ("producer_name", "producer_version", "domain", "model_version", "doc_string", "metadata_props"):
        proto.ClearField(described)  # type: ignore[arg-type]
    graph = proto.graph
    graph.name = "g"  # the standard asks for one
    for field in ("doc_string", "metadata_props", "value_info", "quantization_annotation"):
        graph.ClearField(field)  # type: ignore[arg-type]
    for value in itertools.chain(graph.input, graph.output):
        value.ClearField("metadata_props")
    for node in all_nodes(graph):
        for field in ("name", "doc_string", "metadata_props"):
            node.ClearField(field)  # type: ignore[arg-type]
        kept = [attribute for attribute in node.attribute if not _is_default(node, attribute)]
        del node.attribute[:]
        node.attribute.extend(kept)
    default = [entry for entry in proto.opset_import if entry.domain == ""]
    used = {node.domain for node in all_nodes(graph)}
    others = [entry for entry in proto.opset_import if entry.domain and entry.domain in used]
    del proto.opset_import[:]
    proto.opset_import.extend(default + others)


def _is_default(node: NodeProto, attribute: AttributeProto) -> bool:
    """Whether runtimes take the same value where the attribute is missing."""
    import onnx
    from onnx import AttributeProto, helper

    if node.domain:
        return False
    value = helper.get_attribute_value(attribute)
    if attribute.name in _IMPLIED:
        return all(each == _IMPLIED[attribute.name] for each in value)
    if (node.op_type, attribute.name) == ("Conv", "kernel_shape"):  # it is the weight's
        return True
    default = onnx.defs.get_schema(node.op_type, 21, "").attributes[attribute.name].default_value
    return bool(default.type != AttributeProto.UNDEFINED and value == helper.get_attribute_value(default))


def _shorten_names_(graph: GraphProto, final: Mapping[str, str]) -> None:
    """Rename every value: input and output as `final` says, the others a, b, … in the order of the nodes."""
    names = (name for name in _short_names() if name not in final.values())
    renamed = {"": "", **final}
    for value in itertools.chain(graph.input, graph.output):
        value.name = renamed[value.name]
    for node in all_nodes(graph):
        for field in (node.input, node.output):
            for position, name in enumerate(field):
                if name not in renamed:
                    renamed[name] = next(names)
                field[position] = renamed[name]
    for tensor in graph.initializer:
        tensor.name = renamed[tensor.name]


def _short_names() -> Iterator[str]:
    """a, b, … Z, aa, ab, …: identifiers in C, as the standard asks.

    >>> list(itertools.islice(_short_names(), 51, 55))
    ['Z', 'aa', 'ab', 'ac']
    """
    for length in itertools.count(1):
        for first in string.ascii_letters:
            for rest in itertools.product(_NAME_LETTERS, repeat=length - 1):
                yield first + "".join(rest)
