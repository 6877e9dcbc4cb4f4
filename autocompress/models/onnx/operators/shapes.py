"""Operators that move data: axes, concatenation, repetition, padding, blocks to channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autocompress.models.onnx.building import Untranslatable
from autocompress.models.onnx.network import Read
from autocompress.models.onnx.operators.reshaping import reshape
from autocompress.models.onnx.translation import Handler, Operation


def _identity(op: Operation) -> None:
    op.pass_on()


def _dropout(op: Operation) -> None:
    """Dropout of a network that is run, not trained."""
    if op.has_output(1):
        raise Untranslatable("the mask as its second output")
    op.pass_on()


def _flatten(op: Operation) -> None:
    rank = op.rank(0)
    axis = int(op.attribute("axis", 1))
    axis = axis + rank if axis < 0 else axis
    if axis == 1 and rank == 2:
        op.pass_on()
    elif axis == 1 and rank > 1:
        op.emit(torch.flatten, op.tensor(0), 1)
    else:
        op.emit(_in_two, op.tensor(0), axis=axis)


def _in_two(x: Tensor, axis: int) -> Tensor:
    """x as a matrix: axes before `axis` as rows, the others as columns."""
    return x.reshape(int(torch.Size(x.shape[:axis]).numel()), -1) if axis else x.reshape(1, -1)


def _transpose(op: Operation) -> None:
    order = op.attribute("perm") or list(reversed(range(op.rank(0))))
    op.emit(_permuted, op.tensor(0), order=tuple(order))


def _permuted(x: Tensor, order: tuple[int, ...]) -> Tensor:
    return x.permute(order)


def _squeeze(op: Operation) -> None:
    axes = op.integers("axes", 1)
    if axes is None:
        sizes = zip(*op.shapes(0), strict=True)
        axes = [axis for axis, found in enumerate(sizes) if set(found) == {1}]
    dims = tuple(axis % op.rank(0) for axis in axes)
    op.emit(_squeezed, op.tensor(0), axes=tuple(sorted(dims, reverse=True)))


def _squeezed(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    for axis in axes:
        x = x.squeeze(axis)
    return x


def _unsqueeze(op: Operation) -> None:
    axes = op.integers("axes", 1) or []
    rank = op.rank(0) + len(axes)
    op.emit(_unsqueezed, op.tensor(0), axes=tuple(sorted(axis % rank for axis in axes)))


def _unsqueezed(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    for axis in axes:
        x = x.unsqueeze(axis)
    return x


def _concat(op: Operation) -> None:
    """Concat; a constant of one sample beside tensors of several is repeated for each, as a class token is."""
    indices = [index for index in range(len(op.node.input)) if op.has(index)]
    axis = op.axis(indices[0], 1)
    parts = [op.tensor(index) for index in indices]
    shapes = [op.shapes(index) for index in indices]
    leader = next((index for index, shape in enumerate(shapes) if len(set(shape)) > 1), None)
    if leader is not None:
        wide = shapes[leader]
        for position, shape in enumerate(shapes):
            grown = [
                a
                for a in range(len(shape[0]))
                if a != axis and shape[0][a] == 1 and {s[a] for s in shape} != {s[a] for s in wide}
            ]
            if grown:
                parts[position] = op.step(_grown, parts[position], parts[leader], axes=tuple(grown))
    op.emit(torch.cat, parts, axis)


def _grown(x: Tensor, like: Tensor, axes: tuple[int, ...]) -> Tensor:
    """x repeated along axes of size 1 to the sizes of another tensor."""
    return x.expand([like.shape[axis] if axis in axes else -1 for axis in range(x.ndim)])


def _expand(op: Operation) -> None:
    numbers, shapes = op.numbers(1), op.shapes(0)
    if isinstance(numbers, list) and all(size in (1, *axis) for size, axis in _aligned(numbers, shapes[0])):
        op.emit(torch.clone, op.tensor(0))  # to what it is already, whatever the batch
        return
    op.emit(_expanded, op.tensor(0), numbers)


def _aligned(numbers: Sequence[int], shape: Sequence[int]) -> list[tuple[int, tuple[int, ...]]]:
    """Each wanted size with the size of the axis that it meets, as far as there is one."""
    missing = len(numbers) - len(shape)
    return [(size, () if index < missing else (shape[index - missing],)) for index, size in enumerate(numbers)]


def _expanded(x: Tensor, sizes: list[int]) -> Tensor:
    """x broadcast against a shape: 1 there keeps the size of x."""
    return x.expand(torch.broadcast_shapes(tuple(x.shape), tuple(sizes)))


def _tile(op: Operation) -> None:
    op.emit(_tiled, op.tensor(0), op.numbers(1))


def _tiled(x: Tensor, repeats: list[int]) -> Tensor:
    return x.repeat(repeats)


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def _pad(op: Operation) -> None:
    mode, rank = op.attribute("mode", "constant"), op.rank(0)
    pads = op.integers("pads", 1)
    assert pads is not None
    axes = op.integers("", 3)
    axes = [axis % rank for axis in axes] if axes is not None else list(range(rank))
    pairs = {axis: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    fill = op.constant(2)
    value = float(op.attribute("value", 0.0)) if fill is None else fill.tensor.item()
    first = min((axis for axis in pairs if pairs[axis] != (0, 0)), default=rank - 1)
    flat = [each for axis in range(rank - 1, first - 1, -1) for each in pairs.get(axis, (0, 0))]
    if mode == "constant":
        op.emit(F.pad, op.tensor(0), flat, value=value)
    elif mode in _PAD_MODES and first >= 2 - (rank == 2) and min(flat) >= 0:
        op.emit(F.pad, op.tensor(0), [*flat, *[0] * (2 * (rank - 2) - len(flat))], mode=_PAD_MODES[mode])
    else:
        raise Untranslatable(f"mode {mode} along axis {first}")


def _depth_to_space(op: Operation) -> None:
    size = int(op.attribute("blocksize"))
    if op.attribute("mode", "DCR") == "CRD":
        op.emit(F.pixel_shuffle, op.tensor(0), size)
    else:
        op.emit(_depth_to_space_dcr, op.tensor(0), size=size)


def _depth_to_space_dcr(x: Tensor, size: int) -> Tensor:
    n, c, h, w = x.shape
    blocks = x.reshape(n, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)  # (N, C', H, b, W, b)
    return blocks.reshape(n, c // size**2, h * size, w * size)


def _space_to_depth(op: Operation) -> None:
    op.emit(_blocks_to_channels, op.tensor(0), size=int(op.attribute("blocksize")))


def _blocks_to_channels(x: Tensor, size: int) -> Tensor:
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // size, size, w // size, size).permute(0, 3, 5, 1, 2, 4)  # (N, b, b, C, H', W')
    return blocks.reshape(n, c * size**2, h // size, w // size)


def _constant_of_shape(op: Operation) -> None:
    from autocompress.models.onnx.constants import as_torch

    value: Any = op.attribute("value")
    filling = 0.0 if value is None else _element(as_torch(_array(value), op.node.output[0]))
    op.emit(_filled, op.numbers(0), filling=filling)


def _array(tensor: Any) -> Any:
    from onnx import numpy_helper

    return numpy_helper.to_array(tensor)


def _element(tensor: Tensor) -> Any:
    return tensor.flatten()[0].item()


def _filled(sizes: list[int], filling: Any) -> Tensor:
    return torch.full(sizes, filling)


def _range(op: Operation) -> None:
    op.emit(torch.arange, *(_first(op.numbers(index)) for index in range(3)))


def _first(numbers: Any) -> Any:
    if isinstance(numbers, Read | int | float):
        return numbers
    return numbers[0]


def _triangle(op: Operation) -> None:
    shift = 0
    if op.has(1):
        shift = int(op.required(1, "a diagonal").tensor.item())
    op.emit(torch.triu if op.attribute("upper", 1) else torch.tril, op.tensor(0), shift)


def _one_hot(op: Operation) -> None:
    depth, values = op.required(1, "a depth"), op.required(2, "values")
    off, on = values.tensor.tolist()
    op.emit(_marked, op.tensor(0), depth=int(depth.tensor.item()), off=off, on=on, axis=int(op.attribute("axis", -1)))


def _marked(indices: Tensor, depth: int, off: float, on: float, axis: int) -> Tensor:
    is_on = (indices.long() % depth).unsqueeze(axis) == torch.arange(depth).reshape(
        [-1 if each == axis % (indices.ndim + 1) else 1 for each in range(indices.ndim + 1)]
    )
    return torch.where(is_on, on, off)


SHAPES: dict[str, Handler] = {
    "Identity": _identity,
    "Dropout": _dropout,
    "Reshape": reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Expand": _expand,
    "Tile": _tile,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Trilu": _triangle,
    "OneHot": _one_hot,
}
