"""What each of LiteRT's operators becomes in XNNPACK's graph.

Most have a node of their own, layers are in `layers.py`. Steps through an axis are a reshape that puts what is skipped
behind what is taken, and a slice of that. Means over other axes than height and width are reshaped to that.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from autocompress.errors import ExportError
from autocompress.targets.executorch.graph import XnnGraph
from autocompress.targets.executorch.layers import (
    INFINITY,
    Bounds,
    bounds_of,
    convolution,
    fully_connected,
    same_padding,
)
from autocompress.targets.litert.flatbuffer import FileOperator

_TRANSPOSED, _KEEPS_AXES = 1, 64  # XNNPACK's flags
_MOST_JOINED = 5  # inputs of a concatenation

Handler = Callable[[XnnGraph, FileOperator], None]


def add_node(graph: XnnGraph, operator: FileOperator) -> None:
    """Add an operator of LiteRT's to a graph of XNNPACK's."""
    NODES[operator.code](graph, operator)


# --- windows ---


def _pad(graph: XnnGraph, operator: FileOperator) -> None:
    """StaticConstantPad; zeros around images are left to the convolutions that read them."""
    source, sides, *value = operator.inputs
    before, behind = np.reshape(graph.numbers(sides), (-1, 2)).T.tolist()
    (made,) = operator.outputs

    def add() -> None:
        number = graph.number(value[0]) if value else 0.0
        fields = {"pre_paddings": before, "post_paddings": behind, "padding_value": number}
        graph.node("XNNStaticConstantPad", {**fields, "input_id": graph.value(source), "output_id": graph.value(made)})

    if not value and len(before) == 4 and not (before[0] or behind[0] or before[3] or behind[3]):
        graph.padded[made] = source, (before[1], behind[1], before[2], behind[2])
        graph.later[made] = add
        return
    add()


def _pooling(kind: str) -> Handler:
    def add(graph: XnnGraph, operator: FileOperator) -> None:
        (source,), fields = operator.inputs, operator.fields
        kernel = fields["filterHeight"], fields["filterWidth"]
        sides = same_padding(graph, operator, source, kernel)
        graph.node(
            kind,
            {
                **dict(zip(("padding_top", "padding_bottom", "padding_left", "padding_right"), sides, strict=True)),
                **{"pooling_height": kernel[0], "pooling_width": kernel[1]},
                **{"stride_height": fields["strideH"], "stride_width": fields["strideW"]},
                **{"dilation_height": 1, "dilation_width": 1},
                "input_id": graph.value(source),
                "output_id": graph.value(operator.outputs[0]),
            },
            bounds_of(operator),
        )

    return add


def _mean(graph: XnnGraph, operator: FileOperator) -> None:
    """GlobalAvgPooling2d over the second and third axis from the end of what is reshaped to that."""
    source, axes = operator.inputs
    shape, over = graph.shape(source), sorted(graph.numbers(axes))
    if 0 in over or over != list(range(over[0], over[-1] + 1)):
        raise ExportError(
            f"`model` must take means over neighbouring axes for an ExecuTorch file, got axes {over} of {len(shape)}; "
            "pass --target onnxruntime or packed."
        )
    inner = math.prod(shape[over[-1] + 1 :])
    flat = (0, math.prod(shape[over[0] : over[-1] + 1]), 1, inner)
    is_image = len(shape) == 4 and over == [1, 2]
    given = source if is_image else _reshaped(graph, source, flat)
    (made,) = operator.outputs
    keeps = is_image and len(graph.shape(made)) == 4
    pooled = made if keeps else graph.tensor(made, (1, 1, 1, inner))
    ends = {"input_id": graph.value(given), "output_id": graph.value(pooled)}
    graph.node("XNNGlobalAvgPooling2d", {**ends, "flags": _KEEPS_AXES})
    if not keeps:
        _reshaped(graph, pooled, (0, *graph.shape(made)[1:]), made)


# --- moves ---


def _reshaped(graph: XnnGraph, source: int, shape: tuple[int, ...], made: int | None = None) -> int:
    """A StaticReshape, of whose shape one entry may be 0: as many as there are; gives the tensor that it makes."""
    if made is None:
        made = graph.tensor(source, [size or 1 for size in shape])
    fields = {"num_dims": len(shape), "new_shape": [int(size) for size in shape]}
    graph.node("XNNStaticReshape", {**fields, "input_id": graph.value(source), "output_id": graph.value(made)})
    return made


def _reshape(graph: XnnGraph, operator: FileOperator) -> None:
    source, shape = operator.inputs
    (made,) = operator.outputs
    if source in graph.rounded:
        graph.rounded.add(made)
    _reshaped(graph, source, tuple(max(size, 0) for size in graph.numbers(shape)), made)


def _transpose(graph: XnnGraph, operator: FileOperator) -> None:
    source, order = operator.inputs
    axes = graph.numbers(order)
    ends = {"input_id": graph.value(source), "output_id": graph.value(operator.outputs[0])}
    graph.node("XNNStaticTranspose", {"num_dims": len(axes), "perm": axes, **ends})


def _slice(graph: XnnGraph, operator: FileOperator) -> None:
    """Some places of one axis: its other axes are taken whole."""
    source = operator.inputs[0]
    begins, ends, steps = (graph.numbers(each) for each in operator.inputs[1:])
    whole, shape, (made,) = operator.fields["beginMask"], graph.shape(source), operator.outputs
    (axis,) = (axis for axis in range(len(shape)) if not whole >> axis & 1)
    begin, step = begins[axis], steps[axis]
    count = len(range(begin, ends[axis], step))
    if step == 1:
        _cut(graph, source, axis, begin, count, made)
        return
    missing = begin + count * step - shape[axis]
    if missing > 0:
        source = _longer(graph, source, axis, missing)
    if begin or graph.shape(source)[axis] != count * step:
        source = _cut(graph, source, axis, begin, count * step)
    inner = math.prod(shape[axis + 1 :])
    folded = _reshaped(graph, source, (0, math.prod(shape[1:axis]), count, step * inner))
    taken = _cut(graph, folded, 3, 0, inner)
    _reshaped(graph, taken, (0, *graph.shape(made)[1:]), made)


def _cut(graph: XnnGraph, source: int, axis: int, begin: int, count: int, made: int | None = None) -> int:
    """A StaticSlice of one axis; gives the tensor that it makes."""
    shape = list(graph.shape(source))
    offsets, sizes = [0] * len(shape), [0] * len(shape)  # a size of 0 is the rest of the axis
    offsets[axis], sizes[axis], shape[axis] = begin, count, count
    made = graph.tensor(source, shape) if made is None else made
    fields = {"num_dims": len(shape), "offsets": offsets, "sizes": sizes}
    graph.node("XNNStaticSlice", {**fields, "input_id": graph.value(source), "output_id": graph.value(made)})
    return made


def _longer(graph: XnnGraph, source: int, axis: int, missing: int) -> int:
    """The tensor with zeros behind an axis."""
    shape = list(graph.shape(source))
    shape[axis] += missing
    behind = [missing if each == axis else 0 for each in range(len(shape))]
    made = graph.tensor(source, shape)
    fields = {"pre_paddings": [0] * len(shape), "post_paddings": behind, "padding_value": 0.0}
    graph.node("XNNStaticConstantPad", {**fields, "input_id": graph.value(source), "output_id": graph.value(made)})
    return made


def _concatenate(graph: XnnGraph, operator: FileOperator) -> None:
    """Concatenate2 to 5; of more inputs, the first five are joined first."""
    inputs, axis, (made,) = list(operator.inputs), operator.fields["axis"], operator.outputs
    while len(inputs) > _MOST_JOINED:
        first, inputs = inputs[:_MOST_JOINED], inputs[_MOST_JOINED:]
        shape = list(graph.shape(made))
        shape[axis] = sum(graph.shape(each)[axis] for each in first)
        inputs = [_joined(graph, first, axis, graph.tensor(made, shape)), *inputs]
    bounds = bounds_of(operator)
    if bounds is None:
        _joined(graph, inputs, axis, made)
        return
    whole = _joined(graph, inputs, axis, graph.tensor(made, graph.shape(made)))
    _one(graph, "XNNClamp", whole, made, bounds)


def _joined(graph: XnnGraph, inputs: list[int], axis: int, made: int) -> int:
    if len(inputs) == 1:
        return _reshaped(graph, inputs[0], (0, *graph.shape(made)[1:]), made)
    ends = {f"input{number}_id": graph.value(each) for number, each in enumerate(inputs, 1)}
    graph.node(f"XNNConcatenate{len(inputs)}", {"axis": axis, **ends, "output_id": graph.value(made)})
    return made


# --- values in place ---


def _unary(kind: str, bounds: Bounds = None) -> Handler:
    def add(graph: XnnGraph, operator: FileOperator) -> None:
        _one(graph, kind, operator.inputs[0], operator.outputs[0], bounds)

    return add


def _one(graph: XnnGraph, kind: str, source: int, made: int, bounds: Bounds = None) -> None:
    graph.node(kind, {"input_id": graph.value(source), "output_id": graph.value(made)}, bounds)


def _binary(kind: str) -> Handler:
    def add(graph: XnnGraph, operator: FileOperator) -> None:
        first, second = map(graph.value, operator.inputs)
        ends = {"input1_id": first, "input2_id": second, "output_id": graph.value(operator.outputs[0])}
        graph.node(kind, ends | _flags(operator), bounds_of(operator))

    return add


def _flags(operator: FileOperator) -> dict[str, int]:
    return {"flags": _TRANSPOSED} if operator.fields.get("adjY") else {}


def _dequantize(graph: XnnGraph, operator: FileOperator) -> None:
    """Convert, but codes of weights stay as they are, for layers that take them so; float16 becomes float32."""
    (source,), (made,) = operator.inputs, operator.outputs
    kind, content = graph.tensors[source].kind, graph.tensors[source].content
    if content is None:
        graph.rounded.add(made)
        _one(graph, "XNNConvert", source, made)
    elif kind == "FLOAT16":
        graph.widen(source, made)
    else:
        graph.dequantized[made] = source


def _log_softmax(graph: XnnGraph, operator: FileOperator) -> None:
    (source,), (made,) = operator.inputs, operator.outputs
    between = graph.tensor(made, graph.shape(made))
    _one(graph, "XNNSoftmax", source, between)
    _one(graph, "XNNLog", between, made)


def _gelu(graph: XnnGraph, operator: FileOperator) -> None:
    if operator.fields["approximate"]:
        raise ExportError(
            "`model` must have operators that an ExecuTorch file holds, got aten.gelu with tanh; "
            "pass --target onnxruntime or packed."
        )
    _one(graph, "XNNGelu", operator.inputs[0], operator.outputs[0])


def _leaky_relu(graph: XnnGraph, operator: FileOperator) -> None:
    ends = {"input_id": graph.value(operator.inputs[0]), "output_id": graph.value(operator.outputs[0])}
    graph.node("XNNLeakyReLU", {"negative_slope": operator.fields["alpha"], **ends})


def _elu(graph: XnnGraph, operator: FileOperator) -> None:
    ends = {"input_id": graph.value(operator.inputs[0]), "output_id": graph.value(operator.outputs[0])}
    graph.node("XNNELU", {"alpha": 1.0, **ends})


NODES: dict[str, Handler] = {
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D"), convolution),
    "FULLY_CONNECTED": fully_connected,
    "ADD": _binary("XNNAdd"),
    "SUB": _binary("XNNSubtract"),
    "MUL": _binary("XNNMultiply"),
    "DIV": _binary("XNNDiv"),
    "MAXIMUM": _binary("XNNMaximum"),
    "MINIMUM": _binary("XNNMinimum"),
    "BATCH_MATMUL": _binary("XNNBatchMatrixMultiply"),
    "RELU": _unary("XNNClamp", (0.0, INFINITY)),
    "RELU6": _unary("XNNClamp", (0.0, 6.0)),
    "RELU_N1_TO_1": _unary("XNNClamp", (-1.0, 1.0)),
    "LOGISTIC": _unary("XNNSigmoid"),
    "TANH": _unary("XNNTanh"),
    "HARD_SWISH": _unary("XNNHardswish"),
    "EXP": _unary("XNNExp"),
    "SQRT": _unary("XNNSquareRoot"),
    "RSQRT": _unary("XNNReciprocalSquareRoot"),
    "ABS": _unary("XNNAbs"),
    "NEG": _unary("XNNNegate"),
    "SOFTMAX": _unary("XNNSoftmax"),
    "LOG_SOFTMAX": _log_softmax,
    "GELU": _gelu,
    "LEAKY_RELU": _leaky_relu,
    "ELU": _elu,
    "QUANTIZE": _unary("XNNConvert"),
    "DEQUANTIZE": _dequantize,
    "MEAN": _mean,
    "AVERAGE_POOL_2D": _pooling("XNNAvgPooling2d"),
    "MAX_POOL_2D": _pooling("XNNMaxPooling2d"),
    **dict.fromkeys(("PAD", "PADV2"), _pad),
    "CONCATENATION": _concatenate,
    "STRIDED_SLICE": _slice,
    "RESHAPE": _reshape,
    "TRANSPOSE": _transpose,
}
"""By LiteRT's operator: what adds its nodes."""
