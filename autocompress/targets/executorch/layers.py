"""Layers: convolutions and linear layers in XNNPACK's graph.

A layer whose weights and input are codes and whose result is rounded runs in integers, and one in float32 as it is.
Where weights are codes but the result is not rounded, a linear layer, or a 1x1 convolution as one, takes 8-bit weights
and float32 inputs. Any other convolution takes its rounded input in 8 bits on a range that is found in every run, since
XNNPACK has no other kernel that gives float32; a depthwise one has none at all.
"""

from __future__ import annotations

from typing import Any

from autocompress.errors import ExportError, InputError
from autocompress.targets.executorch.graph import XnnGraph
from autocompress.targets.litert.flatbuffer import FileOperator

Bounds = tuple[Any, Any] | None
"""Smallest and largest value of a result; None: it may have any."""

Sides = tuple[int, int, int, int]
"""Zeros above, below, left and right."""

INFINITY = "+inf"
_ACTIVATIONS: dict[int, Bounds] = {0: None, 1: (0.0, INFINITY), 2: (-1.0, 1.0), 3: (0.0, 6.0)}
_SAME = 0  # LiteRT's padding
_NONE = 2**32 - 1  # the number of a value that there is not


def convolution(graph: XnnGraph, operator: FileOperator) -> None:
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
    if is_coded and source not in graph.rounded:
        raise InputError(
            "`plan` must round the inputs of convolutions with 8-bit weights for an ExecuTorch file, got 32 bits for "
            f"one of {channels} channels; search with `--target executorch`."
        )
    if is_coded and is_depthwise:
        raise ExportError(
            "`model` must round the results of depthwise convolutions with 8-bit weights for an ExecuTorch file, got "
            f"one of {channels} channels whose result is not rounded; pass --weight-bits 32, --target onnxruntime "
            "or packed."
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
        bounds_of(operator),
    )


def fully_connected(graph: XnnGraph, operator: FileOperator) -> None:
    """FullyConnected on the last axis."""
    source, weight, bias = operator.inputs
    weight, is_coded = _stored(graph, weight)
    if is_coded:
        _multiply(graph, operator, source, weight, bias, graph.shape(weight))
        return
    ends = {"input1_id": graph.value(source), "output_id": graph.value(operator.outputs[0])}
    graph.node("XNNFullyConnected", ends | _parameters(graph, weight, bias), bounds_of(operator))


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
    bounds = bounds_of(operator)
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


def _is_point(operator: FileOperator, shape: tuple[int, ...], groups: int, sides: Sides) -> bool:
    """Whether a convolution is a linear layer at every pixel."""
    strides = operator.fields["strideH"], operator.fields["strideW"]
    return shape[1:3] == (1, 1) and strides == (1, 1) and groups == 1 and not any(sides)


def bounds_of(operator: FileOperator) -> Bounds:
    """The bounds of the activation that an operator computes too."""
    return _ACTIVATIONS[operator.fields.get("fusedActivationFunction", 0)]


def _padding(graph: XnnGraph, operator: FileOperator, source: int) -> tuple[int, Sides]:
    """What a convolution reads, and its zeros above, below, left and right: its own and those of a PAD before it."""
    weight = graph.shape(operator.inputs[1])
    dilations = operator.fields["dilationHFactor"], operator.fields["dilationWFactor"]
    own = same_padding(graph, operator, source, weight[1:3], dilations)
    before, sides = graph.padded.get(source, (source, (0, 0, 0, 0)))
    return before, (own[0] + sides[0], own[1] + sides[1], own[2] + sides[2], own[3] + sides[3])


def same_padding(
    graph: XnnGraph, operator: FileOperator, source: int, kernel: tuple[int, ...], dilations: tuple[int, int] = (1, 1)
) -> Sides:
    """The zeros of a window with LiteRT's padding: none, or where it is SAME just so many as give every pixel one.

    Args:
        graph: graph in the making.
        operator: window.
        source: (N, height, width, channels) tensor that it reads.
        kernel: height and width.
        dilations: distances between its points.
    """
    if operator.fields["padding"] != _SAME:
        return 0, 0, 0, 0
    sides: list[int] = []
    strides = operator.fields["strideH"], operator.fields["strideW"]
    for size, length, stride, dilation in zip(graph.shape(source)[1:3], kernel, strides, dilations, strict=True):
        missing = max((-(-size // stride) - 1) * stride + dilation * (length - 1) + 1 - size, 0)
        sides += [missing // 2, missing - missing // 2]
    return sides[0], sides[1], sides[2], sides[3]
