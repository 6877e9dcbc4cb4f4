"""What each of LiteRT's operators becomes in XNNPACK's graph.

Most have a node of their own. These differ:

- Layers whose weights are codes but whose result is not rounded: a linear layer, or a 1x1 convolution as one, takes
  8-bit weights and float32 inputs. Any other convolution takes its rounded input in 8 bits on a range that is found in
  every run, since XNNPACK has no other kernel that gives float32; a depthwise one has none at all.
- Steps through an axis are a reshape that puts what is skipped behind what is taken, and a slice of that.
- Means over other axes than height and width are reshaped to that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from autocompress.errors import ExportError, InputError
from autocompress.targets.executorch.graph import XnnGraph
from autocompress.targets.litert.flatbuffer import FileOperator

_INFINITY = "+inf"
_ACTIVATIONS: dict[int, tuple[Any, Any] | None] = {0: None, 1: (0.0, _INFINITY), 2: (-1.0, 1.0), 3: (0.0, 6.0)}
_SAME = 0  # LiteRT's padding
_TRANSPOSED, _KEEPS_AXES = 1, 64  # XNNPACK's flags
_NONE = 2**32 - 1  # the number of a value that there is not
_MOST_JOINED = 5  # inputs of a concatenation

Handler = Callable[[XnnGraph, FileOperator], None]


def add_node(graph: XnnGraph, operator: FileOperator) -> None:
    """Add an operator of LiteRT's to a graph of XNNPACK's."""
    NODES[operator.code](graph, operator)


# --- layers ---


def _convolution(graph: XnnGraph, operator: FileOperator) -> None:
    """Conv2d, DepthwiseConv2d, or what stands for them where the weight is codes and the result is not."""
    source, weight, bias = operator.inputs
    source, sides = _padding(graph, operator, source)
    weight, is_coded = _stored(graph, weight)
    is_depthwise = operator.code == "DEPTHWISE_CONV_2D"
    shape, channels = graph.shape(weight), graph.shape(source)[3]
    rows = shape[3] if is_depthwise else shape[0]
    groups = channels if is_depthwise else channels // shape[3]
    if is_coded and _is_point(operator, shape, groups, sides):
        _multiply(graph, operator, source, weight, bias, shape=(rows, channels))
        return
    if is_coded and is_depthwise:
        raise ExportError(
            "`model` must round the results of depthwise convolutions with 8-bit weights for an ExecuTorch file, got "
            f"one of {channels} channels whose result is not rounded; pass --weight-bits 32, --target onnxruntime "
            "or packed."
        )
    if is_coded and source not in graph.rounded:
        raise InputError(
            "`plan` must round the inputs of convolutions with 8-bit weights for an ExecuTorch file, got 32 bits for "
            f"one of {channels} channels; search with `--target executorch`."
        )
    fields = operator.fields
    graph.node(
        "XNNDepthwiseConv2d" if is_depthwise else "XNNConv2d",
        {
            **dict(zip(("padding_top", "padding_bottom", "padding_left", "padding_right"), sides, strict=True)),
            **{"kernel_height": shape[1], "kernel_width": shape[2]},
            **{"subsampling_height": fields["strideH"], "subsampling_width": fields["strideW"]},
            **{"dilation_height": fields["dilationHFactor"], "dilation_width": fields["dilationWFactor"]},
            **{"group_input_channels": channels // groups, "group_output_channels": rows // groups, "groups": groups},
            "input1_id": graph.dynamic(source, 3) if is_coded else graph.value(source),
            **_parameters(graph, weight, bias),
            "output_id": graph.value(operator.outputs[0]),
        },
        _bounds(operator),
    )


def _fully_connected(graph: XnnGraph, operator: FileOperator) -> None:
    """FullyConnected on the last axis."""
    source, weight, bias = operator.inputs
    weight, is_coded = _stored(graph, weight)
    if is_coded:
        _multiply(graph, operator, source, weight, bias, graph.shape(weight))
        return
    ends = {"input1_id": graph.value(source), "output_id": graph.value(operator.outputs[0])}
    graph.node("XNNFullyConnected", ends | _parameters(graph, weight, bias), _bounds(operator))


def _multiply(
    graph: XnnGraph, operator: FileOperator, source: int, weight: int, bias: int, shape: tuple[int, ...]
) -> None:
    """FullyConnected of float32 inputs and a (rows, columns) matrix of codes, and an Add of the bias.

    XNNPACK's kernel for these types leaves a bias of its own out (seen in ExecuTorch 1.5.1).
    """
    graph.reshape_constant(weight, shape)
    (made,) = operator.outputs
    adds = not graph.is_zero(bias)
    product = graph.tensor(made, graph.shape(made)) if adds else made
    ends = {"input1_id": graph.value(source), "output_id": graph.value(product)}
    bounds = _bounds(operator)
    graph.node(
        "XNNFullyConnected",
        {**ends, "filter_id": graph.parameter(weight), "bias_id": _NONE},
        bounds if not adds else None,
    )
    if adds:
        ends = {"input1_id": graph.value(product), "input2_id": graph.value(bias), "output_id": graph.value(made)}
        graph.node("XNNAdd", ends, bounds)


def _parameters(graph: XnnGraph, weight: int, bias: int) -> dict[str, Any]:
    """Weight and bias of a layer, which XNNPACK copies."""
    return {"filter_id": graph.parameter(weight), "bias_id": graph.parameter(bias)}


def _stored(graph: XnnGraph, weight: int) -> tuple[int, bool]:
    """The constant that a weight is stored as, and whether it is codes that a float32 layer reads."""
    source = graph.dequantized.get(weight)
    return (weight, False) if source is None else (source, True)


def _is_point(operator: FileOperator, shape: tuple[int, ...], groups: int, sides: tuple[int, ...]) -> bool:
    """Whether a convolution is a linear layer at every pixel."""
    strides = operator.fields["strideH"], operator.fields["strideW"]
    return shape[1:3] == (1, 1) and strides == (1, 1) and groups == 1 and not any(sides)


def _bounds(operator: FileOperator) -> tuple[Any, Any] | None:
    return _ACTIVATIONS[operator.fields.get("fusedActivationFunction", 0)]


# --- windows ---


def _padding(graph: XnnGraph, operator: FileOperator, source: int) -> tuple[int, tuple[int, int, int, int]]:
    """What a convolution reads, and its zeros above, below, left and right: those of a PAD before it, or of SAME."""
    padded = graph.padded.get(source)
    if padded is not None:
        return padded
    if operator.fields["padding"] != _SAME:
        return source, (0, 0, 0, 0)
    weight = graph.shape(operator.inputs[1])
    dilations = operator.fields["dilationHFactor"], operator.fields["dilationWFactor"]
    return source, _same(graph, operator, source, weight[1:3], dilations)


def _same(
    graph: XnnGraph, operator: FileOperator, source: int, kernel: tuple[int, ...], dilations: tuple[int, int] = (1, 1)
) -> tuple[int, int, int, int]:
    """Zeros above, below, left and right, as LiteRT's SAME pads."""
    sides: list[int] = []
    strides = operator.fields["strideH"], operator.fields["strideW"]
    for size, length, stride, dilation in zip(graph.shape(source)[1:3], kernel, strides, dilations, strict=True):
        missing = max((-(-size // stride) - 1) * stride + dilation * (length - 1) + 1 - size, 0)
        sides += [missing // 2, missing - missing // 2]
    return sides[0], sides[1], sides[2], sides[3]


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
        sides = _same(graph, operator, source, kernel) if fields["padding"] == _SAME else (0, 0, 0, 0)
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
            _bounds(operator),
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
    _joined(graph, inputs, axis, made)
    if _bounds(operator) is not None:
        raise AssertionError("concatenations are followed by activations of their own")


def _joined(graph: XnnGraph, inputs: list[int], axis: int, made: int) -> int:
    if len(inputs) == 1:
        return _reshaped(graph, inputs[0], (0, *graph.shape(made)[1:]), made)
    ends = {f"input{number}_id": graph.value(each) for number, each in enumerate(inputs, 1)}
    graph.node(f"XNNConcatenate{len(inputs)}", {"axis": axis, **ends, "output_id": graph.value(made)})
    return made


# --- values in place ---


def _unary(kind: str, bounds: tuple[Any, Any] | None = None) -> Handler:
    def add(graph: XnnGraph, operator: FileOperator) -> None:
        _one(graph, kind, operator.inputs[0], operator.outputs[0], bounds)

    return add


def _one(graph: XnnGraph, kind: str, source: int, made: int, bounds: tuple[Any, Any] | None = None) -> None:
    graph.node(kind, {"input_id": graph.value(source), "output_id": graph.value(made)}, bounds)


def _binary(kind: str) -> Handler:
    def add(graph: XnnGraph, operator: FileOperator) -> None:
        first, second = map(graph.value, operator.inputs)
        ends = {"input1_id": first, "input2_id": second, "output_id": graph.value(operator.outputs[0])}
        graph.node(kind, ends | _flags(operator), _bounds(operator))

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
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D"), _convolution),
    "FULLY_CONNECTED": _fully_connected,
    "ADD": _binary("XNNAdd"),
    "SUB": _binary("XNNSubtract"),
    "MUL": _binary("XNNMultiply"),
    "DIV": _binary("XNNDiv"),
    "MAXIMUM": _binary("XNNMaximum"),
    "MINIMUM": _binary("XNNMinimum"),
    "BATCH_MATMUL": _binary("XNNBatchMatrixMultiply"),
    "RELU": _unary("XNNClamp", (0.0, _INFINITY)),
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
