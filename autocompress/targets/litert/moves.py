"""Operators that only move values: reshapes, transpositions, slices, padding with zeros, concatenations.

Codes stay codes on the same range. Only a concatenation whose inputs lie on other ranges than its result converts them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx

from autocompress.targets.litert.endings import ending_of, finish
from autocompress.targets.litert.graph import FileGraph, Form, Handler, arguments, moved, source_of
from autocompress.targets.litert.operators import batch_norm, refused

_ATEN = torch.ops.aten
_BATCH_NORM = _ATEN._native_batch_norm_legit_no_training.default
_FAR = 2**31 - 1  # the end of any axis


def _same(graph: FileGraph, node: fx.Node) -> None:
    """An operator that changes nothing."""
    _alias(graph, node, source_of(node))


def _alias(graph: FileGraph, node: fx.Node, source: fx.Node) -> None:
    """Let a node have the tensors of another."""
    for form in graph.forms(source):
        graph.hold(node, form, graph.get(source, form))


def _reshape(graph: FileGraph, node: fx.Node) -> None:
    source, shape = source_of(node), graph.shapes[node]
    if shape == graph.shapes[source]:
        _same(graph, node)
        return
    if shape.count(-1) > 1:
        raise refused(graph, node, "of several axes that grow with the number of samples")
    form = Form(False, graph.range_of(source))
    graph.reshaped(graph.get(source, form), shape, graph.new(node, form))


def _permute(graph: FileGraph, node: fx.Node) -> None:
    _transposed(graph, node, list(arguments(node, None, ())[1]))


def _transpose(graph: FileGraph, node: fx.Node) -> None:
    order = list(range(len(graph.shapes[node])))
    _, a, b = arguments(node, None, 0, 0)
    order[a], order[b] = order[b], order[a]
    _transposed(graph, node, order)


def _transposed(graph: FileGraph, node: fx.Node, order: list[int]) -> None:
    """TRANSPOSE, but not where the tensor lies so already: channels last in the file are plain after a permutation."""
    source, rank = source_of(node), len(order)
    order = [axis % rank for axis in order]
    found, axes = graph.range_of(source), tuple(range(rank))
    if graph.is_last(source) and tuple(order) == moved(axes, True):
        graph.hold(node, Form(False, found), graph.get(source, Form(True, found)))
        return
    if rank > 2 and moved(order, True) == axes:
        graph.hold(node, Form(True, found), graph.get(source, Form(False, found)))
        return
    form = Form(False, found)
    permutation = graph.constant(np.array(order, np.int32))
    graph.run("TRANSPOSE", [graph.get(source, form), permutation], graph.new(node, form), "TransposeOptions")


def _slice(graph: FileGraph, node: fx.Node) -> None:
    _, axis, start, stop, step = arguments(node, None, 0, None, None, 1)
    _cut(graph, node, source_of(node), axis, start, stop, step)


def _cut(graph: FileGraph, node: fx.Node, source: fx.Node, axis: Any, start: Any, stop: Any, step: Any = 1) -> None:
    """STRIDED_SLICE of one axis, from `start` to before `stop`."""
    shape = graph.shapes[source]
    axis = int(axis) % len(shape)
    first, end = int(start or 0), _FAR if stop is None else min(int(stop), _FAR)
    if shape[axis] == -1 and (first, end, step) != (0, _FAR, 1):
        raise refused(graph, node, "of samples")
    if shape[axis] == -1 or (len(range(*slice(first, end, step).indices(shape[axis]))) == shape[axis]):
        _alias(graph, node, source)
        return
    first, end, _ = slice(first, end, step).indices(shape[axis])
    form = Form(graph.is_last(source), graph.range_of(source))
    _strided(graph, source, form, axis, range(first, end, step), graph.new(node, form))


def _strided(graph: FileGraph, source: fx.Node, form: Form, axis: int, places: range, made: int) -> int:
    """Add a STRIDED_SLICE that takes some places of one axis, and all of the others; gives `made`."""
    rank = len(graph.shapes[source])
    place = moved(range(rank), form.last).index(axis)
    begins, ends, steps = [0] * rank, [0] * rank, [1] * rank
    begins[place], ends[place], steps[place] = places.start, places.stop, places.step
    whole = sum(1 << other for other in range(rank) if other != place)
    inputs = [graph.get(source, form), *(graph.constant(np.array(each, np.int32)) for each in (begins, ends, steps))]
    return graph.run("STRIDED_SLICE", inputs, made, "StridedSliceOptions", beginMask=whole, endMask=whole)


def _select(graph: FileGraph, node: fx.Node) -> None:
    """One place of an axis, which then is gone."""
    source, axis, place = arguments(node, None, 0, 0)
    shape = graph.shapes[source]
    axis, place = axis % len(shape), place % abs(shape[axis])
    if shape[axis] == -1:
        raise refused(graph, node, "of samples")
    form = Form(False, graph.range_of(source))
    kind = "FLOAT32" if form.range is None else "INT8"
    narrow = graph.tensor(kind, (*shape[:axis], 1, *shape[axis + 1 :]), form.rounding)
    piece = _strided(graph, source, form, axis, range(place, place + 1), narrow)
    graph.reshaped(piece, graph.shapes[node], graph.new(node, form))


def _pick(graph: FileGraph, node: fx.Node) -> None:
    """One of several results: of a norm the first, of a split its piece."""
    source, number = arguments(node, None, 0)
    if source.target is _BATCH_NORM:
        batch_norm(graph, node, source)
        return
    whole, _, axis = arguments(source, None, None, 0)
    length = graph.shapes[whole][axis]
    starts = _starts(source, length)
    _cut(graph, node, whole, axis, starts[number], starts[number + 1])


def _starts(split: fx.Node, length: int) -> list[int]:
    """Where the pieces of a split begin, and the end of the last."""
    given: Any = split.args[1]
    if split.target is _ATEN.split_with_sizes.default:
        return [0, *np.cumsum(given).tolist()]
    size = -(-length // int(given)) if split.target is _ATEN.chunk.default else int(given)
    return [*range(0, length, size), length]


def _later(graph: FileGraph, node: fx.Node) -> None:
    """An operator of several results, which are made where they are picked."""


def _pad(graph: FileGraph, node: fx.Node) -> None:
    source, sides, *rest = arguments(node, None, (), "constant", None)
    mode, value = rest if isinstance(rest[0], str) else ("constant", rest[0])  # constant_pad_nd has no mode
    rank = len(graph.shapes[node])
    if mode != "constant" or any(int(each) < 0 for each in sides):
        raise refused(graph, node, f"of mode {mode}" if mode != "constant" else "that cuts")
    pairs = [(0, 0)] * rank
    for number in range(len(sides) // 2):
        pairs[rank - 1 - number] = (int(sides[2 * number]), int(sides[2 * number + 1]))
    form = Form(graph.is_last(source), None if value else graph.range_of(source))
    inputs = [graph.get(source, form), graph.constant(np.array(moved(pairs, form.last), np.int32))]
    if value:
        number = graph.constant(np.array([value], np.float32))
        graph.run("PADV2", [*inputs, number], graph.new(node, form), "PadV2Options")
        return
    graph.run("PAD", inputs, graph.new(node, form), "PadOptions")


def _concatenate(graph: FileGraph, node: fx.Node) -> None:
    """CONCATENATION, in integers where all inputs and the result are rounded."""
    sources, axis = arguments(node, (), 0)
    rank = len(graph.shapes[node])
    last, ending = rank > 2 and any(graph.is_last(each) for each in sources), ending_of(node)
    ranges = [graph.range_of(each) for each in sources]
    integer = None not in ranges and ending.range is not None and not ending.activation
    inputs = [_on_range(graph, each, Form(last, ending.range if integer else None)) for each in sources]
    place = moved(range(rank), last).index(axis % rank)
    made = finish(graph, ending, last, integer)
    graph.run(
        "CONCATENATION", inputs, made, "ConcatenationOptions", axis=place, fusedActivationFunction=ending.activation
    )


def _on_range(graph: FileGraph, node: fx.Node, form: Form) -> int:
    """The tensor of a node in a form, converted where the node's own range is another."""
    own = graph.range_of(node)
    if form.range is None or own == form.range:
        return graph.get(node, form)
    given = graph.get(node, Form(form.last))  # in float32: from INT8 to INT8 is rounded twice
    made = graph.tensor("INT8", moved(graph.shapes[node], form.last), form.rounding)
    return graph.run("QUANTIZE", [given], made, "QuantizeOptions")


MOVES: dict[Callable[..., Any], Handler] = {
    **dict.fromkeys(
        (
            *(_ATEN.view.default, _ATEN.reshape.default, _ATEN._unsafe_view.default, _ATEN.flatten.using_ints),
            *(_ATEN.unflatten.int, _ATEN.squeeze.dim, _ATEN.squeeze.dims, _ATEN.unsqueeze.default),
        ),
        _reshape,
    ),
    **dict.fromkeys(
        (_ATEN.clone.default, _ATEN.contiguous.default, _ATEN.alias.default, _ATEN.detach.default), _same
    ),
    _ATEN.permute.default: _permute,
    _ATEN.transpose.int: _transpose,
    _ATEN.slice.Tensor: _slice,
    _ATEN.select.int: _select,
    operator.getitem: _pick,
    **dict.fromkeys((_BATCH_NORM, _ATEN.split.Tensor, _ATEN.split_with_sizes.default, _ATEN.chunk.default), _later),
    **dict.fromkeys((_ATEN.pad.default, _ATEN.constant_pad_nd.default), _pad),
    _ATEN.cat.default: _concatenate,
}  # fmt: skip
"""By operator of a lowered graph that only moves values: what adds it to a file."""
