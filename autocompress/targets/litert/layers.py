"""Layers: convolutions and linear layers, in integers where a kernel takes them so.

A layer runs in integers where its weight and its input are codes and its result is rounded. Its kernel computes

    code = clamp(round((sum of weight codes * (input codes - zero) + bias codes) * s_in * s_w / s_out) + zero_out)

with the bias in steps of s_in * s_w. Otherwise it runs in float32: weights that are stored as codes or float16 pass
DEQUANTIZE, once when the file is loaded. So weights take the same bytes either way: INT4 for 1 to 4 bits, INT8 for 5 to
8, FLOAT16 for 16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import fx

from autocompress.execute.compressed import LayerWeights
from autocompress.menus.activations import ActivationRange
from autocompress.targets.litert.endings import Ending, ending_of, finish
from autocompress.targets.litert.flatbuffer import Rounding
from autocompress.targets.litert.graph import Array, FileGraph, Form, arguments
from autocompress.targets.litert.windows import Window, padded

_LARGEST_BIAS = 2**31 - 1
# Of s_in * s_w / s_out, in which kernels multiply; outside of it they refuse to run.
_SMALLEST_FACTOR, _LARGEST_FACTOR = 2.0**-32, 255.0


# --- weights and biases ---


def runs_in_integers(graph: FileGraph, source: fx.Node, layer: LayerWeights | None, ending: Ending) -> bool:
    """Whether an integer kernel takes the layer."""
    read = graph.range_of(source)
    if layer is None or layer.scale is None or read is None or ending.range is None:
        return False
    steps = layer.scale.double().numpy() * read.scale
    factors = steps / ending.range.scale
    bias = 0.0 if layer.bias is None else float(np.abs(layer.bias.double().numpy() / steps).max())
    return bool(factors.min() >= _SMALLEST_FACTOR and factors.max() <= _LARGEST_FACTOR and bias <= _LARGEST_BIAS)


def weight_tensor(
    graph: FileGraph, node: fx.Node, arranged: Callable[[Array], Array], rows_axis: int, in_integers: bool
) -> int:
    """The tensor of a layer's weight: codes, or float32 that is dequantized from what is stored.

    Args:
        graph: file in the making.
        node: parameter in the lowered graph.
        arranged: function that gives a weight the axes that the operator wants.
        rows_axis: axis that the rows, each with a scale of its own, are on then.
        in_integers: whether the kernel takes codes.
    """
    layer = graph.layers.get(str(node.target))
    if layer is None or layer.bits == 32:
        return graph.constant(arranged(graph.values(node)))
    if layer.scale is None:
        halves = arranged(graph.values(node)).astype(np.float16)
        return _dequantized(graph, graph.constant(halves), halves.shape)
    codes = arranged(layer.values.numpy())
    rounding = Rounding(layer.scale.numpy().astype(np.float32), 0, rows_axis)
    four_bits = layer.bits <= 4
    content = packed_in_4_bits(codes) if four_bits else codes.astype(np.int8).tobytes()
    stored = graph.stored("INT4" if four_bits else "INT8", codes.shape, content, rounding)
    return stored if in_integers else _dequantized(graph, stored, codes.shape)


def _dequantized(graph: FileGraph, stored: int, shape: Sequence[int]) -> int:
    return graph.run("DEQUANTIZE", [stored], graph.tensor("FLOAT32", shape), "DequantizeOptions")


def packed_in_4_bits(codes: Array) -> bytes:
    """Codes of -8 … 7, two in a byte, the first in its lower half.

    >>> packed_in_4_bits(np.array([[1, -1, 7]], np.int8)).hex()
    'f107'
    """
    flat = np.zeros(-(-codes.size // 2) * 2, np.uint8)
    flat[: codes.size] = codes.astype(np.int8).ravel().view(np.uint8) & 0xF
    both: Array = flat[0::2] | (flat[1::2] << 4)
    return both.astype(np.uint8).tobytes()


def bias_tensor(
    graph: FileGraph, bias: fx.Node | None, source: fx.Node, layer: LayerWeights | None, rows: int, in_integers: bool
) -> int:
    """The tensor of a layer's bias, zeros where it has none: float32, or whole steps of input scale * weight scale."""
    values = np.zeros(rows, np.float32) if bias is None else graph.values(bias)
    if not in_integers:
        return graph.constant(values)
    read = graph.range_of(source)
    assert layer is not None, "runs_in_integers looks"
    assert layer.scale is not None, "runs_in_integers looks"
    assert read is not None, "runs_in_integers looks"
    steps = layer.scale.numpy().astype(np.float32) * np.float32(read.scale)
    codes = np.rint(values / steps.astype(np.float64)).clip(-_LARGEST_BIAS, _LARGEST_BIAS)
    return graph.stored("INT32", codes.shape, codes.astype(np.int32).tobytes(), Rounding(steps))


# --- operators ---


def linear(graph: FileGraph, node: fx.Node) -> None:
    """FULLY_CONNECTED on the last axis."""
    source, weight, bias = arguments(node, None, None, None)
    layer, ending = graph.layers.get(str(weight.target)), ending_of(node)
    integer = runs_in_integers(graph, source, layer, ending)
    inputs = [
        graph.get(source, Form(False, graph.range_of(source) if integer else None)),
        weight_tensor(graph, weight, lambda values: values, 0, integer),
        bias_tensor(graph, bias, source, layer, graph.shapes[node][-1], integer),
    ]
    keeps = len(graph.shapes[node]) != 2
    made = finish(graph, ending, False, integer)
    activation = ending.activation
    graph.run(
        "FULLY_CONNECTED", inputs, made, "FullyConnectedOptions", fusedActivationFunction=activation, keepNumDims=keeps
    )


def convolution(graph: FileGraph, node: fx.Node) -> None:
    """CONV_2D or DEPTHWISE_CONV_2D; one over sequences has a height of 1."""
    source, weight, bias, stride, padding, dilation, groups = arguments(node, None, None, None, [1], [0], [1], 1)
    layer, ending = graph.layers.get(str(weight.target)), ending_of(node)
    integer = runs_in_integers(graph, source, layer, ending)
    found = graph.range_of(source) if integer else None
    window = Window.of(graph.shapes[source][2:], graph.shapes[weight][2:], stride, padding, dilation)
    if layer is not None and layer.scale is not None and layer.bits <= 4 and groups == 1 and window.is_point:
        _pointwise(graph, source, weight, bias, ending, integer)
        return
    given = graph.get(source, Form(True, found))
    channels, rows = graph.shapes[source][1], graph.shapes[weight][0]
    given = _in_two_dimensions(graph, given, graph.shapes[source], found)
    given, scheme = padded(graph, given, channels, window, found, maximum=None)
    depthwise = groups == channels and graph.shapes[weight][1] == 1
    inputs = [
        given,
        weight_tensor(graph, weight, _depthwise if depthwise else _channels_last, 3 if depthwise else 0, integer),
        bias_tensor(graph, bias, source, layer, rows, integer),
    ]
    fields = {
        "padding": scheme,
        "fusedActivationFunction": ending.activation,
        **{"strideH": window.stride[0], "strideW": window.stride[1]},
        **{"dilationHFactor": window.dilation[0], "dilationWFactor": window.dilation[1]},
    }
    code, options = "CONV_2D", "Conv2DOptions"
    if depthwise:
        code, options = "DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions"
        fields["depthMultiplier"] = rows // channels
    made = finish(graph, ending, True, integer)
    shape = graph.shapes[node]
    if len(shape) == 4:
        graph.run(code, inputs, made, options, **fields)
        return
    rounding = Form(True, ending.range if integer else None).rounding
    wide = graph.tensor("INT8" if integer else "FLOAT32", (1, 1, shape[2], rows), rounding)
    graph.reshaped(graph.run(code, inputs, wide, options, **fields), (-1, shape[2], rows), made)


def _pointwise(
    graph: FileGraph, source: fx.Node, weight: fx.Node, bias: fx.Node | None, ending: Ending, in_integers: bool
) -> None:
    """A 1x1 convolution with 4-bit weights as FULLY_CONNECTED: XNNPACK has kernels for INT4 matrices alone.

    Where it has none, LiteRT's own kernels unpack the codes anew in every run.
    """
    layer, rows = graph.layers[str(weight.target)], graph.shapes[weight][0]
    inputs = [
        graph.get(source, Form(True, graph.range_of(source) if in_integers else None)),
        weight_tensor(graph, weight, lambda values: values.reshape(rows, -1), 0, in_integers),
        bias_tensor(graph, bias, source, layer, rows, in_integers),
    ]
    made = finish(graph, ending, True, in_integers)
    fields = {"fusedActivationFunction": ending.activation, "keepNumDims": True}
    graph.run("FULLY_CONNECTED", inputs, made, "FullyConnectedOptions", **fields)


def _in_two_dimensions(graph: FileGraph, given: int, shape: Sequence[int], found: ActivationRange | None) -> int:
    """(N, L, C) as (N, 1, L, C); images as they are."""
    if len(shape) == 4:
        return given
    kind = "FLOAT32" if found is None else "INT8"
    wide = graph.tensor(kind, (1, 1, shape[2], shape[1]), Form(True, found).rounding)
    return graph.reshaped(given, (-1, 1, shape[2], shape[1]), wide)


def _channels_last(weight: Array) -> Array:
    """(rows, columns, height, width) to (rows, height, width, columns); sequences have a height of 1."""
    whole = weight if weight.ndim == 4 else weight[:, :, None]
    return np.ascontiguousarray(whole.transpose(0, 2, 3, 1))


def _depthwise(weight: Array) -> Array:
    """(rows, 1, height, width) to (1, height, width, rows)."""
    whole = weight if weight.ndim == 4 else weight[:, :, None]
    return np.ascontiguousarray(whole.transpose(1, 2, 3, 0))
