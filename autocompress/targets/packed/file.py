"""The packed file: one safetensors file that a compressed network is rebuilt from, every code at its real width.

Tensors of a layer:

- `NAME.weight`: codes without gaps, or floats (`bits.encode_weight`).
- `NAME.weight_scale` and `NAME.bias`: (rows,) float32; absent where the layer has none.
- `NAME.input_range`: (2,) float32, scale and zero point; absent where the input is not rounded.

A layer of low rank is two, `NAME.0` and `NAME.1`, each with these tensors.

Every other tensor that the graph reads stands under its own name.

Metadata: `format`, `version`, and `content`, which is text in zlib and base 85. Its first line is JSON: the input's
shape, the plan, the weights' shapes in the order of `Plan.modules`, a checksum of the tensors, and names of input and
output, and of the arguments of `forward`, where they are not the usual ones. Its second line is the graph
(`graph_json`); it is missing where torch.export could not follow the network.

Writing: `pack` or `pack_weights`. Reading: `load_packed_weights` reads and checks everything but the graph, `rebuilt`
makes the graph of it, `load_packed` does both. A damaged file is refused with one line. The graph
holds operators alone that compute, and is tried on a sample of zeros.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, fx, nn

from autocompress.budget import format_bytes
from autocompress.errors import InputError, reason_of
from autocompress.execute.compressed import Compressed, LayerWeights
from autocompress.files import check_regular
from autocompress.memory import memory_limit
from autocompress.network.verification import first_line
from autocompress.plan import Plan
from autocompress.samples import Field, Inputs, call, zeros
from autocompress.targets.graph.lowering import NAMES, Lowered
from autocompress.targets.packed.graph_json import (
    are_arguments,
    graph_from_json,
    graph_tensors,
    graph_to_json,
    parse_json,
)
from autocompress.targets.packed.interface_json import (
    arguments_from_json,
    inputs_from_json,
    inputs_to_json,
    must_be_named,
    names_from_json,
    shape_from_json,
    usual_arguments,
)
from autocompress.targets.packed.stored_layers import check_ranks, layer_tensors, take_layer_
from autocompress.tasks.outputs import as_tuple
from autocompress_envs.problem import n_of_m

FORMAT, VERSION = "autocompress", "1"
_MOST_CONTENT_BYTES = 64_000_000  # of metadata, unpacked
# What operators were seen to raise on arguments that lie.
_FAILED_RUN = (RuntimeError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, AssertionError)
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "BOOL": torch.bool,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class PackedWeights:
    """The content of a packed file.

    Attributes:
        layers: finished layers by name, in the plan's order. Files hold no `noise` of ranges: it is NaN.
        others: tensors that belong to no layer, by name.
        plan: labels that the network was made by.
        inputs: form of every tensor that the network takes.
        graph: graph as JSON (`graph_json`); None: only the original's class can run the weights.
        names: names of the only input, and of the outputs, in files that have such names.
        arguments: names by which the network's own `forward` takes its tensors; empty where they are not known, or no
            names that `forward` of a graph can have.
    """

    layers: Mapping[str, LayerWeights]
    others: Mapping[str, Tensor]
    plan: Plan
    inputs: tuple[Field, ...]
    graph: str | None
    names: tuple[str, ...] = NAMES
    arguments: tuple[str, ...] = ()

    def example(self) -> Inputs:
        """One sample of zeros."""
        return zeros(self.inputs, 1)


def pack(lowered: Lowered) -> bytes:
    """The content of the packed file of a network with its graph; the same bytes for the same network.

    Args:
        lowered: network to be written.

    Raises:
        ExportError: the graph holds something that a file may not hold.
        InputError: the layers are not what the plan or the graph says.
    """
    tensors = graph_tensors(lowered.graph)
    for name, layer in lowered.layers.items():
        _check_same(f"{name}.weight", tensors.pop(f"{name}.weight", None), layer.weight())
        _check_same(f"{name}.bias", tensors.pop(f"{name}.bias", None), layer.bias)
    graph = graph_to_json(lowered.graph)
    arguments = lowered.arguments if are_arguments(lowered.arguments, len(lowered.inputs)) else ()
    return _packed(
        PackedWeights(lowered.layers, tensors, lowered.plan, lowered.inputs, graph, lowered.names, arguments)
    )


def pack_weights(compressed: Compressed, inputs: Sequence[Field]) -> bytes:
    """The content of a packed file without a graph, for networks that torch.export can't follow.

    `loading.restore` reads it into a module of the original's class.

    Args:
        compressed: network to be written.
        inputs: form of every tensor that the network takes.

    Raises:
        InputError: the layers are not what the plan says.
    """
    others = dict(other_tensors(compressed.model, compressed.layers))
    return _packed(PackedWeights(compressed.layers, others, compressed.plan, tuple(inputs), None))


def other_tensors(model: nn.Module, layers: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a model's state that belongs to no layer, without norms' counts of batches.

    Args:
        model: model whose state is looked through.
        layers: names of the layers.
    """
    seen: set[int] = set()  # a parameter of several names is stored under the first
    for name, tensor in model.state_dict(keep_vars=True).items():
        module, _, leaf = name.rpartition(".")
        is_new = id(tensor) not in seen
        seen.add(id(tensor))
        if is_new and module not in layers and leaf != "num_batches_tracked":
            yield name, tensor.detach()


def load_packed(path: str | Path) -> Lowered:
    """The network in a packed file, as it was lowered, bit for bit.

    Args:
        path: packed file.

    Raises:
        InputError: the file is missing, damaged, of another format or version, or holds no graph.
    """
    return rebuilt(load_packed_weights(path), path)


def load_packed_weights(path: str | Path) -> PackedWeights:
    """The content of a packed file, its graph still as text.

    Args:
        path: packed file.

    Raises:
        InputError: the file is missing, damaged, or of another format or version.
    """
    if not Path(path).is_dir():  # the message for folders is below
        check_regular("`path`", path)
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"`path` must be a packed file, got {path}: {error.strerror}.") from error
    try:
        return _unpacked(raw)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def rebuilt(weights: PackedWeights, path: str | Path) -> Lowered:
    """The network as a graph that runs.

    Args:
        weights: content of the file.
        path: name of the file, for messages.

    Raises:
        InputError: there is no graph, or it is damaged, or does not fit the weights.
    """
    if weights.graph is None:
        raise InputError(
            f"{path}: the file must hold a graph to run without the original's class, got weights alone; "
            "pass the original's module as `model`."
        )
    try:
        return _rebuilt(weights, weights.graph)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _rebuilt(weights: PackedWeights, graph: str) -> Lowered:
    """As `rebuilt`, with a graph; messages do not yet name the file."""
    tensors = dict(weights.others)
    for name, layer in weights.layers.items():
        tensors[f"{name}.weight"] = layer.weight()
        if layer.bias is not None:
            tensors[f"{name}.bias"] = layer.bias
    arguments = weights.arguments or usual_arguments(weights.inputs)
    module = graph_from_json(graph, tensors, arguments)
    _check_all_read(module, weights.others)
    taken = len(module.graph.find_nodes(op="placeholder"))
    if taken != len(weights.inputs):
        raise InputError(f"The graph must take the {len(weights.inputs)} tensors that the file names, got {taken}.")
    _check_runs(module, weights.inputs, len(weights.names) - 1)
    return Lowered(module, weights.layers, weights.plan, weights.inputs, weights.names, arguments)


def _packed(weights: PackedWeights) -> bytes:
    """The bytes of a packed file. The same content gives the same bytes."""
    modules = weights.plan.modules()
    if weights.layers.keys() != modules.keys():
        raise InputError("`layers` must be the plan's layers, got others.")
    tensors: dict[str, Tensor] = {}
    for name, label in modules.items():
        tensors |= layer_tensors(name, weights.layers[name], label, weights.plan.granularity)
    for name, tensor in weights.others.items():
        if name in tensors:
            raise InputError(f"A packed file must have each name once, got {name} of a layer and of the graph.")
        tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    header, data = _parts(save(tensors))
    first_line = {
        **inputs_to_json(weights.inputs),
        "plan": weights.plan.to_dict(),
        "shapes": [list(weights.layers[name].values.shape) for name in modules],
        "checksum": _checksum(header, data),
        **({"names": list(weights.names)} if weights.names != NAMES else {}),
        **({"arguments": list(weights.arguments)} if must_be_named(weights.arguments, weights.inputs) else {}),
    }
    lines = [
        json.dumps(first_line, separators=(",", ":"), allow_nan=False),
        *([weights.graph] if weights.graph else []),
    ]
    content = base64.b85encode(zlib.compress("\n".join(lines).encode(), 9)).decode()
    return _joined({"format": FORMAT, "version": VERSION, "content": content}, header, data)


def _joined(metadata: Mapping[str, str], header: Mapping[str, Any], data: bytes) -> bytes:
    """The file with metadata; safetensors itself would write their keys in random order."""
    text = _json_bytes({"__metadata__": metadata, **header})
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def _parts(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """The header, parsed, and what follows it, of a file that safetensors has read or written."""
    end = 8 + int.from_bytes(raw[:8], "little")
    header: dict[str, Any] = json.loads(raw[8:end])
    return header, raw[end:]


def _checksum(header: Mapping[str, Any], data: bytes) -> int:
    """The CRC-32 of the tensors with their names, shapes and types."""
    return zlib.crc32(data, zlib.crc32(_json_bytes(header, sort_keys=True)))


def _json_bytes(value: Any, sort_keys: bool = False) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, sort_keys=sort_keys).encode()


def _check_same(name: str, found: Tensor | None, value: Tensor | None) -> None:
    if found is not None and (value is None or not torch.equal(found.detach().cpu(), value)):
        raise InputError(f"`layers` must hold what the graph runs, got another {name}.")


def _check_all_read(graph: fx.GraphModule, others: Mapping[str, Tensor]) -> None:
    left = sorted(others.keys() - graph_tensors(graph).keys())
    if left:
        raise InputError(f"The file must hold the tensors of its layers and graph, got also {left[0]}.")


def _check_runs(graph: fx.GraphModule, inputs: Sequence[Field], count: int) -> None:
    """Raise InputError where a graph can't compute: operators take arguments of other kinds, shapes and sizes."""
    size, limit = sum(field.nbytes for field in inputs), memory_limit(None)
    if size > limit:
        raise InputError(f"The input must fit into {format_bytes(limit)} of memory, got one of {format_bytes(size)}.")
    try:
        with torch.no_grad():
            outputs = call(graph, zeros(inputs, 1))
    except _FAILED_RUN as error:
        shapes = ", ".join(str(list(field.shape)) for field in inputs)
        raise InputError(
            f"The graph must run on a sample of shape {shapes}, got the error: {first_line(error)}"
        ) from error
    if len(as_tuple(outputs)) != count:
        raise InputError(f"The graph must give {count} tensors, as the file's names say, got {len(as_tuple(outputs))}.")


def _unpacked(raw: bytes) -> PackedWeights:
    """The content of a packed file's bytes, checked."""
    tensors = _tensors(raw)
    first_line, graph = _content(raw)
    plan = Plan.from_dict(first_line.get("plan"))
    _check_granularity(plan.granularity)
    shapes = first_line.get("shapes")
    modules = plan.modules()
    if not isinstance(shapes, list) or len(shapes) != len(modules):
        raise InputError("The file must hold one weight shape for each layer of the plan, got another number.")
    layers = {
        name: take_layer_(tensors, name, label, shape_from_json(shape, f"weight of {name}", 0), plan.granularity)
        for (name, label), shape in zip(modules.items(), shapes, strict=True)
    }
    check_ranks(layers, plan)
    names = names_from_json(first_line.get("names", list(NAMES)))
    inputs = inputs_from_json(first_line)
    arguments = arguments_from_json(first_line.get("arguments", []), len(inputs))
    return PackedWeights(layers, tensors, plan, inputs, graph, names, arguments)


def _check_granularity(granularity: str) -> None:
    try:
        if granularity not in ("channel", "element"):
            n_of_m(granularity)
    except ValueError as error:
        raise InputError(str(error)) from None


def _tensors(raw: bytes) -> dict[str, Tensor]:
    """All tensors of a safetensors file, by name."""
    try:
        found = safetensors.deserialize(raw)
    except SafetensorError as error:
        raise InputError(f"The file must be a safetensors file: {reason_of(error)}.") from error
    tensors = {}
    for name, entry in found:
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            raise InputError(f"The tensor {name} must be of {', '.join(_DTYPES)}, got {entry['dtype']}.")
        values = torch.frombuffer(entry["data"], dtype=dtype) if len(entry["data"]) else torch.empty(0, dtype=dtype)
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def _content(raw: bytes) -> tuple[dict[str, Any], str | None]:
    """(first line of the metadata's content, parsed; second line, or None where there is none)."""
    header, data = _parts(raw)
    metadata = header.pop("__metadata__", None) or {}
    if metadata.get("format") != FORMAT or "content" not in metadata:
        raise InputError(f"The file must be a packed file of {FORMAT}, got a safetensors file of other content.")
    if metadata.get("version") != VERSION:
        raise InputError(f"The `version` of the packed file must be {VERSION}, got {metadata.get('version')!r}.")
    line, *graph = _inflated(metadata["content"]).split("\n")
    first_line = parse_json(line, "the metadata")
    if not isinstance(first_line, dict) or len(graph) > 1:
        raise InputError("The metadata must be a mapping and a graph, got something else.")
    if first_line.get("checksum") != _checksum(header, data):
        raise InputError("The tensors must have the checksum that they were written with, got damaged ones.")
    return first_line, graph[0] if graph else None


def _inflated(content: str) -> str:
    """The text of the metadata's content. A bomb of zeros is refused at 64 MB."""
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(base64.b85decode(content), _MOST_CONTENT_BYTES)
        if not stream.eof:
            raise InputError(f"The metadata must be whole and at most {_MOST_CONTENT_BYTES:,} bytes, got others.")
        return text.decode()
    except (ValueError, zlib.error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"The metadata must be zlib in base 85: {error}.") from error
