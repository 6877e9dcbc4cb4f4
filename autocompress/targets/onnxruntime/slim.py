"""What an ONNX graph can lose without computing anything else: its file's bytes are budgeted."""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator
from typing import Any

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

_NAME_LETTERS = string.ascii_letters + string.digits
# Attributes without a default in the schema that runtimes fill in just the same.
_IMPLIED = {"strides": 1, "dilations": 1, "pads": 0}


def slim_(proto: ModelProto) -> None:
    """Drop unused tensors, defaults and descriptions; keep equal tensors once; shorten names but the interface's."""
    graph = proto.graph
    _drop_unused_(graph)
    _share_initializers_(graph)
    _strip_(proto)
    _shorten_names_(graph)


def _drop_unused_(graph: GraphProto) -> None:
    read = {name for node in _all_nodes(graph) for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Those of branches and loops too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _all_nodes(attribute.g)


def _share_initializers_(graph: GraphProto) -> None:
    """Equal tensors once: layers with one weight, and the same scales and zeros over and over."""
    first: dict[tuple[Any, ...], str] = {}
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
    for node in _all_nodes(graph):
        node.input[:] = [renamed.get(name, name) for name in node.input]


def _strip_(proto: ModelProto) -> None:
    """Everything that says nothing about what is computed."""
    for described in ("producer_name", "producer_version", "domain", "model_version", "doc_string", "metadata_props"):
        proto.ClearField(described)  # type: ignore[arg-type]
    graph = proto.graph
    graph.name = "g"
    for field in ("doc_string", "metadata_props", "value_info", "quantization_annotation"):
        graph.ClearField(field)  # type: ignore[arg-type]
    for value in itertools.chain(graph.input, graph.output):
        value.ClearField("metadata_props")
    for node in _all_nodes(graph):
        for field in ("name", "doc_string", "metadata_props"):
            node.ClearField(field)  # type: ignore[arg-type]
        kept = [attribute for attribute in node.attribute if not _is_default(node, attribute)]
        del node.attribute[:]
        node.attribute.extend(kept)
    default = [entry for entry in proto.opset_import if entry.domain == ""]
    used = {node.domain for node in _all_nodes(graph)}
    others = [entry for entry in proto.opset_import if entry.domain and entry.domain in used]
    del proto.opset_import[:]
    proto.opset_import.extend(default + others)


def _is_default(node: NodeProto, attribute: AttributeProto) -> bool:
    if node.domain:
        return False
    value = helper.get_attribute_value(attribute)
    if attribute.name in _IMPLIED:
        return all(each == _IMPLIED[attribute.name] for each in value)
    if (node.op_type, attribute.name) == ("Conv", "kernel_shape"):
        return True
    default = onnx.defs.get_schema(node.op_type, 21, "").attributes[attribute.name].default_value
    return bool(default.type != AttributeProto.UNDEFINED and value == helper.get_attribute_value(default))


def _shorten_names_(graph: GraphProto) -> None:
    names = _short_names()
    renamed = {name: name for name in ("", *(value.name for value in itertools.chain(graph.input, graph.output)))}
    for node in _all_nodes(graph):
        for field in (node.input, node.output):
            for position, name in enumerate(field):
                if name not in renamed:
                    renamed[name] = next(names)
                field[position] = renamed[name]
    for tensor in graph.initializer:
        tensor.name = renamed[tensor.name]


def _short_names() -> Iterator[str]:
    """a, b, … Z, aa, ab, …: identifiers in C, as the standard asks."""
    for length in itertools.count(1):
        for first in string.ascii_letters:
            for rest in itertools.product(_NAME_LETTERS, repeat=length - 1):
                yield first + "".join(rest)
