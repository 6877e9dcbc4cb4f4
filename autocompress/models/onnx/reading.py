"""Reading ONNX files: whatever can't be translated or trusted ends in one line before anything is built."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.budget import format_bytes
from autocompress.errors import InputError, reason_of
from autocompress.files import check_regular
from autocompress.memory import memory_limit

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

OLDEST_OPSET = 9
_CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")
_DEFAULT_DOMAINS = ("", "ai.onnx")
_SHOWN = 3  # names of nodes listed of each operator


def read_onnx(path: Path, known: Collection[str]) -> ModelProto:
    """The content of an ONNX file, checked, with its functions inlined and its external data loaded.

    Args:
        path: path of the file.
        known: names of the operators that there is a translation for.

    Raises:
        InputError: the file is missing, truncated, or no ONNX file; of an opset that is not known here; its external
            data is missing, too short, or outside of the file's folder; it has control flow, or operators that are
            not known.
    """
    check_regular("`model`", path)
    if not path.is_file():
        raise InputError(f"`model` must be an existing file, got {path}.")
    proto = _inlined(_parsed(path), path, known)
    _check_operators(proto.graph, path, known)
    _load_external_data_(proto, path)
    return proto


def opset(proto: ModelProto) -> int:
    """Version of ONNX's own operators that a file uses; 0 where it names none."""
    versions = [entry.version for entry in proto.opset_import if entry.domain in _DEFAULT_DOMAINS]
    return int(max(versions, default=0))


def _parsed(path: Path) -> ModelProto:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    size, limit = path.stat().st_size, memory_limit(None)
    if size > limit:
        raise InputError(
            f"`model` must fit into the {format_bytes(limit)} of memory that are left, got {path} with "
            f"{format_bytes(size)}."
        )
    try:
        proto = onnx.load_model(str(path), load_external_data=False)
    except (DecodeError, OSError, ValueError, RuntimeError) as error:
        raise _unreadable(path) from error
    is_whole = proto.ir_version and proto.graph.node and proto.opset_import
    if not is_whole or not all(isinstance(name, str) for name in _names(proto)):  # bytes: no UTF-8, so damaged
        raise _unreadable(path)
    _check_opset(proto, path)
    return proto


def _unreadable(path: Path) -> InputError:
    return InputError(f"`model` must be an ONNX file, got {path}, which is truncated or of another format.")


def _names(proto: ModelProto) -> Iterator[str]:
    """Every name in a file that is read here."""
    yield from (entry.domain for entry in proto.opset_import)
    for node in all_nodes(proto.graph):
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)
    yield from (tensor.name for tensor in proto.graph.initializer)
    for value in (*proto.graph.input, *proto.graph.output):
        yield value.name
        yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)


def _check_opset(proto: ModelProto, path: Path) -> None:
    import onnx

    version, newest = opset(proto), onnx.defs.onnx_opset_version()
    if version > newest:
        raise InputError(
            f"`model` must be of opset {OLDEST_OPSET} to {newest}, the newest that the installed package onnx knows, "
            f"got {path} of opset {version}; export it with an older opset, or update onnx and onnxruntime."
        )
    if version < OLDEST_OPSET:
        raise InputError(
            f"`model` must be of opset {OLDEST_OPSET} to {newest}, got {path} of opset {version}; "
            "convert it with onnx.version_converter.convert_version(model, 13)."
        )


def _inlined(proto: ModelProto, path: Path, known: Collection[str]) -> ModelProto:
    """The file without functions: its own ones, and those of ONNX's operators that ONNX defines by others."""
    import onnx
    import onnx.inliner

    if proto.functions:
        proto = onnx.inliner.inline_local_functions(proto)
    schemas = {
        (node.domain, node.op_type)
        for node in all_nodes(proto.graph)
        if node.domain in _DEFAULT_DOMAINS and node.op_type not in known and _has_body(node.op_type, opset(proto))
    }
    if schemas:
        ids = [("", name) for _, name in sorted(schemas)]
        proto = onnx.inliner.inline_selected_functions(proto, ids, exclude=False, inline_schema_functions=True)
    return proto


def _has_body(operator: str, version: int) -> bool:
    import onnx

    try:
        schema: Any = onnx.defs.get_schema(operator, version, "")
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)


def all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """All nodes of a graph, those of its branches and loops too."""
    from onnx import AttributeProto

    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from all_nodes(attribute.g)


def node_name(node: NodeProto) -> str:
    """Name of a node for errors; that of its first result where it has none."""
    return str(node.name or next((name for name in node.output if name), node.op_type))


def _check_operators(graph: GraphProto, path: Path, known: Collection[str]) -> None:
    """Raise InputError that names every operator that can't be translated, with the nodes that use it."""
    control = [node for node in graph.node if node.op_type in _CONTROL_FLOW and node.domain in _DEFAULT_DOMAINS]
    if control:
        raise InputError(
            f"`model` must have no control flow, got {listed_nodes(control)} in {path}; "
            "export the network without branches and loops that depend on its input."
        )
    quantized = [node for node in graph.node if "QLinear" in node.op_type or node.op_type in _INTEGER_OPERATORS]
    if quantized:
        raise InputError(
            f"`model` must compute in floating point, got {listed_nodes(quantized)} in {path}; "
            "give the file that this one was quantized from."
        )
    unknown = [node for node in graph.node if node.domain not in _DEFAULT_DOMAINS or node.op_type not in known]
    if unknown:
        raise InputError(f"`model` must have operators that are known here, got {listed_nodes(unknown)} in {path}.")


_INTEGER_OPERATORS = ("QuantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "QGemm")


def listed_nodes(nodes: Collection[NodeProto]) -> str:
    """Operators with the names of their nodes, in words: `NonZero (/a/NonZero, /b/NonZero), Loop (l)`."""
    by_operator: dict[str, list[str]] = defaultdict(list)
    for node in nodes:
        domain = "" if node.domain in _DEFAULT_DOMAINS else f"{node.domain}."
        by_operator[f"{domain}{node.op_type}"].append(node_name(node))
    parts = []
    for operator, names in by_operator.items():
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        parts.append(f"{operator} ({', '.join(names[:_SHOWN])}{more})")
    return ", ".join(parts)


def _load_external_data_(proto: ModelProto, path: Path) -> None:
    """Read tensors that are kept in other files into the file's content."""
    from onnx.external_data_helper import load_external_data_for_model, uses_external_data

    tensors = [tensor for tensor in _tensors(proto.graph) if uses_external_data(tensor)]
    for tensor in tensors:
        _check_external(tensor, path)
    if tensors:
        try:
            load_external_data_for_model(proto, str(path.parent))
        except Exception as error:  # onnx raises several kinds of its own; the message is what matters
            reason = reason_of(error)
            raise InputError(f"`model` must have readable external data, got {path}: {reason}.") from error


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Every tensor that the graph stores."""
    yield from graph.initializer
    for node in all_nodes(graph):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _check_external(tensor: TensorProto, path: Path) -> None:
    """Raise InputError where a tensor's file is missing, too short, or not inside of the ONNX file's folder."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    file, folder = path.parent / location, path.parent.resolve()
    if not location or not file.resolve().is_relative_to(folder):
        raise InputError(
            f"`model` must keep its external data in the folder of its file, got {location!r} for {tensor.name} "
            f"in {path}."
        )
    if not file.is_file():
        raise InputError(
            f"`model` must come with its external data, got {path} without {location}, which holds {tensor.name}; "
            f"put it into {path.parent}."
        )
    end = sum(int(text) for text in (entries.get("offset", ""), entries.get("length", "")) if text.isdecimal())
    if file.stat().st_size < end:
        raise InputError(
            f"`model` must come with its whole external data, got {location} with {file.stat().st_size:,} bytes "
            f"where {tensor.name} ends at byte {end:,}."
        )
