"""ONNX files: weights as packed integers, activations behind QuantizeLinear, no byte that a runtime doesn't need."""

from __future__ import annotations

import copy
import itertools
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxscript import ir, opset21
from torch import Tensor, fx
from torch.fx.passes.shape_prop import ShapeProp

from autocompress.errors import ExportError, InputError
from autocompress.execute.compressed import LayerWeights
from autocompress.network.verification import first_line
from autocompress.targets.graph.lowering import Lowered
from autocompress.targets.graph.rounding_points import ROUND_ACTIVATION
from autocompress.targets.onnxruntime.slim import slim_

INPUT, OUTPUT, BATCH = "input", "output", "batch"
_ATEN = torch.ops.aten
_ONNX: Any = opset21
OPSET, IR_VERSION = 21, 10  # the first with INT4
_INT2_OPSET, _INT2_IR_VERSION = 25, 13  # the first with INT2; between them, operators only learned further types
_STORED = "autocompress_stored_"
_WIDTHS = {TensorProto.INT2: 2, TensorProto.INT4: 4, TensorProto.INT8: 8}


@torch.library.custom_op("autocompress::stored_weight", mutates_args=())
def stored_weight(codes: Tensor, scale: Tensor) -> Tensor:
    """Stands for a weight until the file holds it: codes int8 in the weight's shape, scale (rows,) float32."""
    return codes * scale.view(-1, *[1] * (codes.ndim - 1))


@stored_weight.register_fake
def _(codes: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(codes, dtype=torch.float32)


@torch.library.custom_op("autocompress::global_average", mutates_args=())
def global_average(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, C, 1, 1): the one kind of mean that runtimes have an integer kernel for."""
    return x.mean((2, 3), keepdim=True)


@global_average.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:2], 1, 1))


def write_onnx(lowered: Lowered) -> bytes:
    """The network as an ONNX file: takes `input` (batch, …) float32, gives `output`, any batch size.

    Weights are INT2 (1 and 2 bits), INT4 (3 and 4), INT8 (5 to 8), float16 or float32. INT2 and INT4 are cast to INT8
    first: ONNX Runtime folds the cast when it loads the file, and then runs its integer kernels. A rounded
    activation is QuantizeLinear and DequantizeLinear. The same network gives the same bytes.

    Raises:
        InputError: the plan rounds a layer's input to other than 8 bits.
        ExportError: the network has an operator that ONNX doesn't.
    """
    _check_activations(lowered.layers)
    proto = _exported(_with_stored_weights(lowered), lowered.input_shape)
    graph = proto.graph
    _inline_constants_(graph)
    _store_weights_(graph, list(lowered.layers.values()))
    _store_biases_(graph)
    slim_(proto)
    for value in itertools.chain(graph.input, graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = BATCH
    two_bits = any(tensor.data_type == TensorProto.INT2 for tensor in graph.initializer)
    proto.ir_version = _INT2_IR_VERSION if two_bits else IR_VERSION
    proto.opset_import[0].version = _INT2_OPSET if two_bits else OPSET
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _check_activations(layers: Mapping[str, LayerWeights]) -> None:
    for name, layer in layers.items():
        if layer.input_range is not None and layer.input_range.bits != 8:
            raise InputError(
                f"`plan` must round activations to 8 bits or not at all for an ONNX file, got {layer.input_range.bits} "
                f"bits for {name}; search with `--target onnxruntime`."
            )


# --- through torch.onnx ----------------------------------------------------------------------------------------------


def _with_stored_weights(lowered: Lowered) -> fx.GraphModule:
    """A copy of the graph whose weights are placeholders that no optimizer folds."""
    module = fx.GraphModule(lowered.graph, copy.deepcopy(lowered.graph.graph))
    ShapeProp(module).propagate(torch.zeros(2, *lowered.input_shape))
    index = {f"{name}.weight": position for position, name in enumerate(lowered.layers)}
    for node in list(module.graph.nodes):
        if node.op == "get_attr" and node.target in index:
            layer = lowered.layers[str(node.target).removesuffix(".weight")]
            if layer.bits != 32:
                _replace_weight_(module, node, layer, index[str(node.target)])
        elif _is_global_average(node):
            with module.graph.inserting_before(node):
                pooled = module.graph.call_function(torch.ops.autocompress.global_average.default, (node.args[0],))
            node.replace_all_uses_with(pooled)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _replace_weight_(module: fx.GraphModule, node: fx.Node, layer: LayerWeights, position: int) -> None:
    """The scale is the layer's number: it tells placeholders of equal shape apart."""
    codes, scale = f"{_STORED}codes_{position}", f"{_STORED}{position}"
    module.register_buffer(codes, torch.zeros(layer.values.shape, dtype=torch.int8))
    module.register_buffer(scale, torch.full((len(layer.values),), float(position + 1)))
    with module.graph.inserting_before(node):
        parts = (module.graph.get_attr(codes), module.graph.get_attr(scale))
        stored = module.graph.call_function(torch.ops.autocompress.stored_weight.default, parts)
    node.replace_all_uses_with(stored)


def _is_global_average(node: fx.Node) -> bool:
    if node.target is _ATEN.adaptive_avg_pool2d.default:
        return list(node.args[1]) == [1, 1] and _rank(node) == 4  # type: ignore[arg-type]
    keeps = len(node.args) > 2 and bool(node.args[2])
    if node.target is not _ATEN.mean.dim or not keeps or _rank(node) != 4:
        return False
    return sorted(axis % 4 for axis in node.args[1]) == [2, 3]  # type: ignore[union-attr,operator]


def _rank(node: fx.Node) -> int:
    return len(node.meta["tensor_meta"].shape)


def _exported(module: fx.GraphModule, input_shape: tuple[int, ...]) -> ModelProto:
    translations: dict[Any, Any] = {
        ROUND_ACTIVATION: _rounding,
        torch.ops.autocompress.stored_weight.default: _weight,
        torch.ops.autocompress.global_average.default: _average,
    }
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(module, (torch.zeros(2, *input_shape),), dynamic_shapes=dynamic)
            written = torch.onnx.export(
                program,
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
                optimize=True,
                custom_translation_table=translations,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(f"`model` must have operators that ONNX has, got {_operator(error)}.") from error
    assert written is not None
    proto: ModelProto = written.model_proto
    assert not proto.functions, "the exporter inlines its functions"
    return proto


def _rounding(x: Any, scale: float, zero: int, bits: int) -> Any:
    step = _ONNX.Constant(value=ir.tensor(np.array(scale, np.float32)))
    code = _ONNX.Constant(value=ir.tensor(np.array(zero, np.uint8)))
    return _ONNX.DequantizeLinear(_ONNX.QuantizeLinear(x, step, code), step, code)


def _weight(codes: Any, scale: Any) -> Any:
    return _ONNX.DequantizeLinear(codes, scale, axis=0)


def _average(x: Any) -> Any:
    return _ONNX.GlobalAveragePool(x)


def _operator(error: BaseException) -> str:
    """The operator that an exporter's error is about, else what its innermost cause says."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    found = re.search(r"op='([\w.]+)'", f"{error} {cause}")
    return found[1] if found else first_line(cause)  # type: ignore[arg-type]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's advice to its developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _inline_constants_(graph: GraphProto) -> None:
    constants = [node for node in graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"]
    for node in constants:
        tensor = graph.initializer.add()
        tensor.CopyFrom(node.attribute[0].t)
        tensor.name = node.output[0]
        graph.node.remove(node)


# --- the weights -----------------------------------------------------------------------------------------------------


def _store_weights_(graph: GraphProto, layers: list[LayerWeights]) -> None:
    """Put the layers' own codes where the placeholders stand."""
    nodes: list[NodeProto] = []
    turned: dict[str, str] = {}  # outputs of transpositions that are stored already turned
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[1].startswith(_STORED):
            position = int(node.input[1].removeprefix(_STORED))
            readers = [reader for reader in graph.node if node.output[0] in reader.input]
            turn = bool(readers) and all(reader.op_type == "Transpose" for reader in readers)
            turned |= {reader.output[0]: node.output[0] for reader in readers if turn}
            with_zero = any(reader.op_type == "Gemm" for reader in readers)
            nodes += _weight_nodes(graph, layers[position], node.output[0], turn, with_zero)
        elif node.output[0] not in turned:
            nodes.append(node)
    for node in nodes:
        node.input[:] = [turned.get(name, name) for name in node.input]
    del graph.node[:]
    graph.node.extend(nodes)


def _weight_nodes(graph: GraphProto, layer: LayerWeights, output: str, turn: bool, with_zero: bool) -> list[NodeProto]:
    """A matrix that is multiplied from the right is stored turned, so that nothing turns it at run time.

    The integer kernel of Gemm is only found with a zero point; the others are found without.
    """
    values = layer.values.numpy()
    values = np.ascontiguousarray(values.T) if turn else values
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
    nodes = [helper.make_node("DequantizeLinear", inputs, [output], axis=int(turn))]
    if dequantized != stored.name:
        nodes.insert(0, helper.make_node("Cast", [stored.name], [dequantized], to=TensorProto.INT8))
    return nodes


def packed(codes: npt.NDArray[np.int8], bits: int, name: str) -> TensorProto:
    """The first of several codes in a byte takes its lowest bits."""
    kind = next(kind for kind, width in _WIDTHS.items() if bits <= width)
    width = _WIDTHS[kind]
    per_byte = 8 // width
    flat = np.zeros(-(-codes.size // per_byte) * per_byte, np.uint8)
    flat[: codes.size] = codes.ravel().view(np.uint8) & (2**width - 1)
    shifts = np.arange(per_byte, dtype=np.uint8) * width
    packed = np.bitwise_or.reduce(flat.reshape(-1, per_byte) << shifts, axis=1)
    return TensorProto(name=name, data_type=kind, dims=codes.shape, raw_data=packed.astype(np.uint8).tobytes())


def _store_biases_(graph: GraphProto) -> None:
    """Write as integers those biases that ONNX Runtime would otherwise draw the wrong conclusion from.

    Float weights between rounded activations it rounds to 8 bits, unless the bias is no plain tensor
    (weight_bias_quantization.cc): the bias gets a scale of its own, exact to half a unit in the last place of its
    largest value. A matrix product has an integer kernel only with an integer bias, on the kernel's own scale; where
    that takes more than 32 bits, the product stays in float32.
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
    name = f"{node.output[0]}_bias"
    step, scale = (numpy_helper.to_array(tensors[each]).astype(np.float64) for each in scales)
    codes = np.rint(numpy_helper.to_array(tensors[node.input[2]]) / (step * scale))
    if np.abs(codes).max() >= 2**31:
        return []
    graph.initializer.append(numpy_helper.from_array(codes.astype(np.int32), f"{name}_codes"))
    node.input[2] = name
    return [
        helper.make_node("Mul", scales, [f"{name}_scale"]),
        helper.make_node("DequantizeLinear", [f"{name}_codes", f"{name}_scale"], [name], axis=0),
    ]
