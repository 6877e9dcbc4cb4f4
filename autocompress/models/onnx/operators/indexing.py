"""Operators that take parts: Slice, Split, Gather and its kin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.models.onnx.building import Untranslatable
from autocompress.models.onnx.translation import Handler, Operation

_MOST_PARTS = 4  # equal parts of the channels that slices are taken for
_ENDLESS = 2**31 - 1  # an end from here on is the end of the axis


def _slice(op: Operation) -> None:
    """Slice; positions are attributes up to opset 9, inputs after that, constants or computed from sizes."""
    if "starts" in op.attributes:
        starts, ends = list(op.attribute("starts")), list(op.attribute("ends"))
        axes, steps = list(op.attribute("axes") or range(len(starts))), [1] * len(starts)
    else:
        starts, ends = op.numbers(1), op.numbers(2)
        count = op.shapes(1)[0][0]
        axes = op.integers("", 3) or list(range(count))
        steps = [int(each) for each in op.required(4, "steps").tensor.tolist()] if op.has(4) else [1] * count
    axes = [axis % op.rank(0) for axis in axes]
    known = [_known(op, 1, starts), _known(op, 2, ends)]
    if axes == [1] and steps == [1] and known[0] and known[1] and _emit_share(op, known[0][0], known[1][0]):
        return
    op.emit(_sliced, op.tensor(0), starts, ends, axes=tuple(axes), steps=tuple(steps))


def _known(op: Operation, index: int, numbers: Any) -> list[int] | None:
    """Positions that are the same in every trial; None where they are not."""
    if isinstance(numbers, list):
        return numbers
    trials = op.value(index).trials
    return list(trials[0]) if all(trial == trials[0] for trial in trials) else None


def _emit_share(op: Operation, start: int, end: int) -> bool:
    """A slice of channels that is one of two to four equal parts, as such a part: so that channels may get fewer.

    Returns whether the slice is one.
    """
    sizes = {shape[1] for shape in op.shapes(0)}
    if len(sizes) != 1:
        return False
    (size,) = sizes
    first, last, _ = slice(start, end).indices(size)
    length = last - first
    if length <= 1 or length == size or size % length or first % length or size // length > _MOST_PARTS:
        return False
    op.emit(_share, op.tensor(0), index=first // length, count=size // length)
    return True


def _share(x: Tensor, index: int, count: int) -> Tensor:
    """One of several equal parts of the channels (axis 1)."""
    return torch.split(x, x.shape[1] // count, 1)[index]


def _sliced(x: Tensor, starts: list[int], ends: list[int], axes: Sequence[int], steps: Sequence[int]) -> Tensor:
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 0:
            positions = list(range(x.shape[axis]))[slice(start, None if end <= -_ENDLESS else end, step)]
            x = x.index_select(axis, torch.tensor(positions, dtype=torch.int64, device=x.device))
        else:
            stop = None if isinstance(end, int) and end >= _ENDLESS else end
            index: list[Any] = [slice(None)] * axis
            x = x[(*index, slice(start, stop, step))]
    return x


def _split(op: Operation) -> None:
    """Split; equal parts stay equal when the axis gets shorter."""
    axis, count = op.axis(0, 0), len(op.node.output)
    lengths = op.integers("split", 1)
    if lengths is None:
        size = op.shapes(0)[0][axis]
        whole = -(-size // int(op.attribute("num_outputs", count)))
        lengths = [min(whole, size - start) for start in range(0, size, whole)]
    if len(set(lengths)) == 1:
        op.emit(_equal_parts, op.tensor(0), axis=axis, count=len(lengths))
    else:
        op.emit(_parts, op.tensor(0), axis=axis, lengths=tuple(lengths))


def _equal_parts(x: Tensor, axis: int, count: int) -> tuple[Tensor, ...]:
    return torch.split(x, x.shape[axis] // count, axis)


def _parts(x: Tensor, axis: int, lengths: tuple[int, ...]) -> tuple[Tensor, ...]:
    return torch.split(x, list(lengths), axis)


def _gather(op: Operation) -> None:
    table, axis = op.constant(0), op.axis(0, 0)
    if table is not None and table.tensor.ndim == 2 and axis == 0 and table.tensor.is_floating_point():
        _embedding(op)
        return
    indices = op.constant(1)
    if op.is_host(1):
        numbers = op.numbers(1)
        op.emit(_picked, op.tensor(0), numbers, axis=axis)
    elif indices is None:
        op.emit(_gathered, op.tensor(0), op.tensor(1), axis=axis)
    elif indices.tensor.ndim == 0:
        op.emit(torch.select, op.tensor(0), axis, int(indices.tensor))
    elif indices.tensor.ndim == 1 and _is_run(indices.tensor) and op.shapes(0)[0][axis] > len(indices.tensor):
        op.emit(torch.narrow, op.tensor(0), axis, int(indices.tensor[0]), len(indices.tensor))
    else:
        op.emit(_gathered, op.tensor(0), op.tensor(1), axis=axis)


def _is_run(indices: Tensor) -> bool:
    """Whether indices are n, n + 1, n + 2, …, not counted from the end."""
    return len(indices) > 0 and int(indices[0]) >= 0 and bool((indices.diff() == 1).all())


def _embedding(op: Operation) -> None:
    """Rows of a constant table: `nn.Embedding`."""
    table = op.required(0, "a table")

    def make() -> nn.Module:
        module = nn.Embedding(1, 1)
        module.num_embeddings, module.embedding_dim = table.tensor.shape
        module.weight = op.own(table)
        return module

    path = op.layer(table, ("embedding",), make)
    if op.is_host(1):
        op.emit(path, op.step(_as_indices, op.numbers(1)))
    else:
        op.emit(path, op.tensor(1))


def _as_indices(numbers: Any) -> Tensor:
    return torch.tensor(numbers)


def _picked(x: Tensor, position: Any, axis: int) -> Tensor:
    if isinstance(position, list):
        return x.index_select(axis, torch.tensor(position, device=x.device))
    return x.select(axis, position)


def _gathered(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """Slices of x along an axis, by indices of any shape, of which negative ones count from the end."""
    size = x.shape[axis]
    flat = indices.reshape(-1).long()
    taken = x.index_select(axis, torch.where(flat < 0, flat + size, flat))
    return taken.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _gather_elements(op: Operation) -> None:
    op.emit(_elements, op.tensor(0), op.tensor(1), axis=op.axis(0, 0))


def _elements(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    size = x.shape[axis]
    return torch.gather(x, axis, torch.where(indices < 0, indices + size, indices).long())


def _gather_nd(op: Operation) -> None:
    if op.attribute("batch_dims", 0):
        raise Untranslatable("batch_dims above 0")
    op.emit(_at_points, op.tensor(0), op.tensor(1))


def _at_points(x: Tensor, indices: Tensor) -> Tensor:
    return x[tuple(indices.long().unbind(-1))]


def _scatter_elements(op: Operation) -> None:
    if op.attribute("reduction", "none") != "none":
        raise Untranslatable("a reduction")
    op.emit(_scattered, op.tensor(0), op.tensor(1), op.tensor(2), axis=op.axis(0, 0))


def _scattered(x: Tensor, indices: Tensor, updates: Tensor, axis: int) -> Tensor:
    size = x.shape[axis]
    return torch.scatter(x, axis, torch.where(indices < 0, indices + size, indices).long(), updates)


def _scatter_nd(op: Operation) -> None:
    if op.attribute("reduction", "none") != "none":
        raise Untranslatable("a reduction")
    op.emit(_put, op.tensor(0), op.tensor(1), op.tensor(2))


def _put(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    return x.index_put(tuple(indices.long().unbind(-1)), updates)


INDEXING: dict[str, Handler] = {
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
}
