"""Operators that belong to no layer: sums, activations, poolings, reductions, products of two tensors.

Sums and global means of rounded tensors run in integers where their result is rounded too. All else runs in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from autocompress.errors import ExportError
from autocompress.targets.graph.rounding_points import ROUND_ACTIVATION
from autocompress.targets.litert.endings import bounds_of, ending_of, finish, range_of_rounding
from autocompress.targets.litert.graph import FileGraph, Form, Handler, arguments, moved, source_of
from autocompress.targets.litert.layers import convolution, linear
from autocompress.targets.litert.windows import Window, padded

_ATEN = torch.ops.aten
_Nodes = Sequence[fx.Node]
_CLAMPS: dict[tuple[float | None, float | None], str] = {
    (0.0, None): "RELU",
    (0.0, 6.0): "RELU6",
    (-1.0, 1.0): "RELU_N1_TO_1",
}


def refused(graph: FileGraph, node: fx.Node, what: str = "") -> ExportError:
    """The error of an operator that files can't hold, or only otherwise than the network uses it."""
    name = str(node.target).removesuffix(".default")
    return ExportError(
        f"`model` must have operators that {graph.file} holds, got {name}{f' {what}' if what else ''} ({node.name}); "
        "pass --target onnxruntime or packed."
    )


def round_activation(graph: FileGraph, node: fx.Node) -> None:
    """QUANTIZE, where no kernel before it has rounded its result already."""
    source, found = source_of(node), range_of_rounding(node)
    forms = [form for form in graph.forms(source) if form.range == found]
    if graph.is_constant(source):
        forms = [Form(False, found)]
    if not forms:
        plain = Form(graph.is_last(source))
        given = graph.get(source, plain)
        graph.run("QUANTIZE", [given], graph.new(node, Form(plain.last, found)), "QuantizeOptions")
    for form in forms:
        graph.hold(node, form, graph.get(source, form))


# --- values in place ---


def _layout(graph: FileGraph, node: fx.Node, sources: _Nodes) -> bool:
    """Whether operands are wanted with channels last: one is made so, and all others can be turned."""
    rank = len(graph.shapes[node])
    turns = [graph.is_constant(each) or len(graph.shapes[each]) == rank for each in sources]
    return rank > 2 and all(turns) and any(graph.is_last(each) for each in sources)


def _operand(graph: FileGraph, source: Any, last: bool, rank: int) -> int:
    """The float32 tensor of an operand: a node, or a number."""
    if not isinstance(source, fx.Node):
        return graph.constant(np.array(source, np.float32))
    if last and graph.is_constant(source):
        values = graph.values(source).astype(np.float32)
        values = values.reshape((1,) * (rank - values.ndim) + values.shape)
        return graph.constant(np.ascontiguousarray(np.moveaxis(values, 1, -1)))
    return graph.get(source, Form(last))


def _arithmetic(code: str, options: str) -> Handler:
    def add(graph: FileGraph, node: fx.Node) -> None:
        if node.kwargs.get("alpha", 1) != 1 or node.kwargs.get("rounding_mode"):
            raise refused(graph, node, "with a factor or rounding")
        sources = [each for each in node.args[:2] if isinstance(each, fx.Node)]
        last, ending = _layout(graph, node, sources), ending_of(node)
        ranges = [graph.range_of(each) for each in sources]
        integer = code == "ADD" and len(sources) == 2 and None not in ranges and ending.range is not None
        rank = len(graph.shapes[node])
        if integer:
            inputs = [graph.get(each, Form(last, found)) for each, found in zip(sources, ranges, strict=True)]
        else:
            inputs = [_operand(graph, each, last, rank) for each in node.args[:2]]
        made = finish(graph, ending, last, integer)
        graph.run(code, inputs, made, options, fusedActivationFunction=ending.activation)

    return add


def _elementwise(code: str, options: str = "", **fields: Any) -> Handler:
    def add(graph: FileGraph, node: fx.Node) -> None:
        form = Form(graph.is_last(source_of(node)))
        graph.run(code, [graph.get(source_of(node), form)], graph.new(node, form), options, **fields)

    return add


def _silu(graph: FileGraph, node: fx.Node) -> None:
    form = Form(graph.is_last(source_of(node)))
    given = graph.get(source_of(node), form)
    gate = graph.tensor("FLOAT32", moved(graph.shapes[node], form.last))
    graph.run("LOGISTIC", [given], gate)
    graph.run("MUL", [given, gate], graph.new(node, form), "MulOptions", fusedActivationFunction=0)


def _hardsigmoid(graph: FileGraph, node: fx.Node) -> None:
    """relu6(x + 3) / 6."""
    form = Form(graph.is_last(source_of(node)))
    given, shape = graph.get(source_of(node), form), moved(graph.shapes[node], form.last)
    clamped = graph.tensor("FLOAT32", shape)
    three, sixth = (graph.constant(np.array(number, np.float32)) for number in (3, 1 / 6))
    graph.run("ADD", [given, three], clamped, "AddOptions", fusedActivationFunction=3)
    graph.run("MUL", [clamped, sixth], graph.new(node, form), "MulOptions", fusedActivationFunction=0)


def _clamp(graph: FileGraph, node: fx.Node) -> None:
    """RELU and its kin by their own operators, others by MAXIMUM and MINIMUM."""
    bounds = bounds_of(node)
    assert bounds is not None
    form = Form(graph.is_last(source_of(node)))
    given = graph.get(source_of(node), form)
    code = _CLAMPS.get(bounds)
    if code is not None:
        graph.run(code, [given], graph.new(node, form))
        return
    low, high = bounds
    if low is not None:
        made = graph.new(node, form) if high is None else graph.tensor("FLOAT32", moved(graph.shapes[node], form.last))
        given = graph.run("MAXIMUM", [given, graph.constant(np.array(low, np.float32))], made, "MaximumMinimumOptions")
    if high is not None:
        number = graph.constant(np.array(high, np.float32))
        graph.run("MINIMUM", [given, number], graph.new(node, form), "MaximumMinimumOptions")


def _gelu(graph: FileGraph, node: fx.Node) -> None:
    approximate = node.kwargs.get("approximate", "none") == "tanh"
    _elementwise("GELU", "GeluOptions", approximate=approximate)(graph, node)


def _leaky_relu(graph: FileGraph, node: fx.Node) -> None:
    _, slope = arguments(node, None, 0.01)
    _elementwise("LEAKY_RELU", "LeakyReluOptions", alpha=float(slope))(graph, node)


def _elu(graph: FileGraph, node: fx.Node) -> None:
    if any(each != 1 for each in node.args[1:]):
        raise refused(graph, node, "with a factor")
    _elementwise("ELU")(graph, node)


# --- along an axis ---


def _softmax(code: str, options: str, **fields: Any) -> Handler:
    def add(graph: FileGraph, node: fx.Node) -> None:
        source, axis = arguments(node, None, -1)
        rank = len(graph.shapes[node])
        axis = int(axis) % rank
        last = rank > 2 and axis == 1
        if not last and axis != rank - 1:
            raise refused(graph, node, f"along axis {axis} of {rank}")
        given = graph.get(source, Form(last))
        graph.run(code, [given], graph.new(node, Form(last)), options, **fields)

    return add


def _mean(graph: FileGraph, node: fx.Node) -> None:
    source, axes, keeps = arguments(node, None, None, False)
    rank = len(graph.shapes[source])
    _reduce(graph, node, source, tuple(sorted(axis % rank for axis in (range(rank) if axes is None else axes))), keeps)


def _reduce(graph: FileGraph, node: fx.Node, source: fx.Node, axes: tuple[int, ...], keeps: bool) -> None:
    """MEAN over some axes, in integers where both sides are rounded."""
    rank, ending = len(graph.shapes[source]), ending_of(node)
    # Without the axes behind the channels, channels last and first are the same.
    last = graph.is_last(source) and (keeps or axes == tuple(range(2, rank)))
    found = graph.range_of(source)
    integer = found is not None and ending.range is not None and not ending.activation
    given = graph.get(source, Form(last, found if integer else None))
    places = [moved(range(rank), last).index(axis) for axis in axes]
    form = Form(last and keeps, ending.range if integer else None)
    order = graph.constant(np.array(places, np.int32))
    graph.run("MEAN", [given, order], graph.new(node, form), "ReducerOptions", keepDims=keeps)


# --- poolings ---


def _adaptive_average(graph: FileGraph, node: fx.Node) -> None:
    source, wanted = arguments(node, None, None)
    size = graph.shapes[source][2:]
    wanted = tuple(int(each) for each in wanted)
    if set(wanted) == {1}:
        _reduce(graph, node, source, tuple(range(2, 2 + len(size))), keeps=True)
        return
    if len(size) != 2 or any(a % b for a, b in zip(size, wanted, strict=True)):
        raise refused(graph, node, f"from {size} to {wanted}")
    kernel = [a // b for a, b in zip(size, wanted, strict=True)]
    _pool(graph, node, source, Window.of(size, kernel, kernel, 0), "AVERAGE_POOL_2D", maximum=False)


def _average(graph: FileGraph, node: fx.Node) -> None:
    source, kernel, stride, padding, ceils, counts_padding, divisor = arguments(node, 0, 0, 0, 0, False, True, None)
    window = Window.of(graph.shapes[source][2:], kernel, stride or kernel, padding)
    if ceils or divisor or (not counts_padding and not window.is_valid) or len(graph.shapes[source]) != 4:
        raise refused(graph, node, "with ceil_mode, a divisor, or padding that is not counted")
    _pool(graph, node, source, window, "AVERAGE_POOL_2D", maximum=False)


def _maximum(graph: FileGraph, node: fx.Node) -> None:
    source, kernel, stride, padding, dilation, ceils = arguments(node, 0, 0, 0, 0, 1, False)
    window = Window.of(graph.shapes[source][2:], kernel, stride or kernel, padding, dilation)
    if ceils or window.dilation != (1, 1) or len(graph.shapes[source]) != 4:
        raise refused(graph, node, "with ceil_mode or dilation")
    _pool(graph, node, source, window, "MAX_POOL_2D", maximum=True)


def _pool(graph: FileGraph, node: fx.Node, source: fx.Node, window: Window, code: str, maximum: bool) -> None:
    """Maxima of codes are codes on the same range; averages are float32."""
    found = graph.range_of(source) if maximum else None
    given, channels = graph.get(source, Form(True, found)), graph.shapes[source][1]
    given, scheme = padded(graph, given, channels, window, found, maximum=maximum)
    graph.run(
        code, [given], graph.new(node, Form(True, found)), "Pool2DOptions", padding=scheme, fusedActivationFunction=0,
        filterHeight=window.kernel[0], filterWidth=window.kernel[1],
        strideH=window.stride[0], strideW=window.stride[1],
    )  # fmt: skip


# --- norms and products ---


def batch_norm(graph: FileGraph, node: fx.Node, norm: fx.Node) -> None:
    """A norm that no layer absorbed, as x * scale + shift; `node` takes the first of its results."""
    source, weight, bias, mean, variance, _, epsilon = arguments(norm, *[None] * 7)
    rank, last = len(graph.shapes[source]), graph.is_last(source)
    shift_by, spread = (graph.values(each).astype(np.float64) for each in (mean, variance))
    scale = 1 / np.sqrt(spread + float(epsilon))
    if isinstance(weight, fx.Node):
        scale = scale * graph.values(weight)
    shift = -shift_by * scale
    if isinstance(bias, fx.Node):
        shift = shift + graph.values(bias)
    shape = (-1,) if last else (-1, *[1] * (rank - 2))
    factors, shifts = (graph.constant(each.astype(np.float32).reshape(shape)) for each in (scale, shift))
    scaled = graph.tensor("FLOAT32", moved(graph.shapes[source], last))
    graph.run("MUL", [graph.get(source, Form(last)), factors], scaled, "MulOptions", fusedActivationFunction=0)
    ending = ending_of(node)
    made = finish(graph, ending, last, in_integers=False)
    graph.run("ADD", [scaled, shifts], made, "AddOptions", fusedActivationFunction=ending.activation)


def _layer_norm(graph: FileGraph, node: fx.Node) -> None:
    """(x - mean) / sqrt(variance + epsilon) * weight + bias over the last axes."""
    source, over, weight, bias, epsilon = arguments(node, None, None, None, None, 1e-5)
    shape = graph.shapes[source]
    axes = graph.constant(np.arange(len(shape) - len(over), len(shape), dtype=np.int32))
    narrow = (*shape[: len(shape) - len(over)], *[1] * len(over))

    def run(code: str, inputs: list[int], shape: Sequence[int], options: str = "", **fields: Any) -> int:
        return graph.run(code, inputs, graph.tensor("FLOAT32", shape), options, **fields)

    plain: dict[str, Any] = {"fusedActivationFunction": 0}
    given = graph.get(source, Form(False))
    mean = run("MEAN", [given, axes], narrow, "ReducerOptions", keepDims=True)
    centred = run("SUB", [given, mean], shape, "SubOptions", **plain)
    squares = run("MUL", [centred, centred], shape, "MulOptions", **plain)
    variance = run("MEAN", [squares, axes], narrow, "ReducerOptions", keepDims=True)
    small = graph.constant(np.array(epsilon, np.float32))
    inverse = run("RSQRT", [run("ADD", [variance, small], narrow, "AddOptions", **plain)], narrow)
    result = run("MUL", [centred, inverse], shape, "MulOptions", **plain)
    for code, options, parameter in (("MUL", "MulOptions", weight), ("ADD", "AddOptions", bias)):
        if isinstance(parameter, fx.Node):
            result = run(code, [result, graph.constant(graph.values(parameter))], shape, options, **plain)
    graph.hold(node, Form(False), result)


def _product(graph: FileGraph, node: fx.Node) -> None:
    """BATCH_MATMUL of two computed tensors of one rank."""
    a, b = arguments(node, None, None)
    if len(graph.shapes[a]) != len(graph.shapes[b]) or len(graph.shapes[a]) < 3:
        raise refused(graph, node, f"of {len(graph.shapes[a])} and {len(graph.shapes[b])} axes")
    inputs = [graph.get(each, Form(False)) for each in (a, b)]
    graph.run("BATCH_MATMUL", inputs, graph.new(node, Form(False)), "BatchMatMulOptions")


def _attention(graph: FileGraph, node: fx.Node) -> None:
    """softmax(q k^T * scale) v, without a mask."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    if given.get("attn_mask") is not None or given.get("is_causal"):
        raise refused(graph, node, "with a mask")
    query, key, value = (given[name] for name in names[:3])
    shape = graph.shapes[query]
    scale = given.get("scale") or shape[-1] ** -0.5
    scores = graph.tensor("FLOAT32", (*shape[:-1], graph.shapes[key][-2]))
    scaled, weights = (graph.tensor("FLOAT32", (*shape[:-1], graph.shapes[key][-2])) for _ in range(2))
    inputs = [graph.get(each, Form(False)) for each in (query, key)]
    graph.run("BATCH_MATMUL", inputs, scores, "BatchMatMulOptions", adjY=True)
    factor = graph.constant(np.array(scale, np.float32))
    graph.run("MUL", [scores, factor], scaled, "MulOptions", fusedActivationFunction=0)
    graph.run("SOFTMAX", [scaled], weights, "SoftmaxOptions", beta=1.0)
    graph.run(
        "BATCH_MATMUL", [weights, graph.get(value, Form(False))], graph.new(node, Form(False)), "BatchMatMulOptions"
    )


OPERATORS: dict[Callable[..., Any], Handler] = {
    ROUND_ACTIVATION: round_activation,
    **dict.fromkeys((_ATEN.conv1d.default, _ATEN.conv1d.padding), convolution),
    **dict.fromkeys((_ATEN.conv2d.default, _ATEN.conv2d.padding), convolution),
    _ATEN.linear.default: linear,
    _ATEN.add.Tensor: _arithmetic("ADD", "AddOptions"),
    _ATEN.sub.Tensor: _arithmetic("SUB", "SubOptions"),
    _ATEN.mul.Tensor: _arithmetic("MUL", "MulOptions"),
    _ATEN.div.Tensor: _arithmetic("DIV", "DivOptions"),
    **dict.fromkeys((_ATEN.relu.default, _ATEN.relu6.default, _ATEN.hardtanh.default, _ATEN.clamp.default), _clamp),
    _ATEN.sigmoid.default: _elementwise("LOGISTIC"),
    _ATEN.tanh.default: _elementwise("TANH"),
    _ATEN.hardswish.default: _elementwise("HARD_SWISH"),
    _ATEN.exp.default: _elementwise("EXP"),
    _ATEN.sqrt.default: _elementwise("SQRT"),
    _ATEN.rsqrt.default: _elementwise("RSQRT"),
    _ATEN.abs.default: _elementwise("ABS"),
    _ATEN.neg.default: _elementwise("NEG"),
    _ATEN.silu.default: _silu,
    _ATEN.hardsigmoid.default: _hardsigmoid,
    _ATEN.gelu.default: _gelu,
    _ATEN.leaky_relu.default: _leaky_relu,
    _ATEN.elu.default: _elu,
    _ATEN.softmax.int: _softmax("SOFTMAX", "SoftmaxOptions", beta=1.0),
    _ATEN._softmax.default: _softmax("SOFTMAX", "SoftmaxOptions", beta=1.0),
    _ATEN.log_softmax.int: _softmax("LOG_SOFTMAX", "LogSoftmaxOptions"),
    _ATEN._log_softmax.default: _softmax("LOG_SOFTMAX", "LogSoftmaxOptions"),
    _ATEN.mean.dim: _mean,
    **dict.fromkeys((_ATEN.adaptive_avg_pool1d.default, _ATEN.adaptive_avg_pool2d.default), _adaptive_average),
    _ATEN.avg_pool2d.default: _average,
    _ATEN.max_pool2d.default: _maximum,
    _ATEN.layer_norm.default: _layer_norm,
    **dict.fromkeys((_ATEN.matmul.default, _ATEN.bmm.default), _product),
    _ATEN.scaled_dot_product_attention.default: _attention,
}  # fmt: skip
"""By operator of a lowered graph: what adds it to a file."""
