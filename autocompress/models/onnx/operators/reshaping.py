"""Reshape with sizes that are read from the tensor, wherever they can be told from its own sizes.

A file says `Reshape(x, [1, 2, 58, 28, 28])`. If that is written down as it stands, the network takes one sample, and no
layer before it can lose a channel. So the sizes are matched: the first axes of input and output with equal products
make a block, then the next ones.

    (1, 116, 28, 28) to (1, 2, 58, 28, 28):  1 | 116 to 2, 58 | 28 | 28

An axis that stays, or takes in its neighbours, has the size of the input's. Of an axis that is split, one part follows
from the others: the last, as the channels of each group in a channel shuffle; or the first where the batch is in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from autocompress.models.onnx.building import Shapes
from autocompress.models.onnx.translation import Operation


@dataclass(frozen=True)
class Size:
    """The size of one axis of a result: scale · product of some of the input's sizes // divisor.

    Attributes:
        axes: axes of the input; none: the size is `scale`.
        divisor: what their product is divided by.
        scale: what it is multiplied by first.
    """

    axes: tuple[int, ...] = ()
    divisor: int = 1
    scale: int = 1

    def of(self, shape: Sequence[int]) -> int:
        """The size for an input of that shape."""
        product = math.prod(shape[axis] for axis in self.axes) * self.scale
        return product if self.divisor == 1 else product // self.divisor


def reshape(op: Operation) -> None:
    """Reshape: sizes are a constant, or computed from sizes."""
    numbers = list(op.attributes["shape"]) if "shape" in op.attributes else op.numbers(1)
    is_fixed, shapes = isinstance(numbers, list), op.shapes(0)
    targets = [numbers] * len(shapes) if is_fixed else [list(trial) for trial in op.value(1).trials]
    allows_zero = bool(op.attribute("allowzero", 0))
    wanted = [resolved(target, shape, allows_zero) for target, shape in zip(targets, shapes, strict=True)]
    sizes = matched(shapes, wanted, is_fixed)
    if sizes is not None:
        op.emit(resized, op.tensor(0), sizes=sizes)
    else:
        op.emit(_reshaped, op.tensor(0), numbers, allows_zero=allows_zero)


def resolved(target: Sequence[int], shape: Sequence[int], allows_zero: bool) -> list[int]:
    """The sizes of a result, with ONNX's 0 (as in the input) and -1 (what is left) filled in.

    >>> resolved([0, -1], (2, 3, 4), False)
    [2, 12]
    """
    sizes = [shape[axis] if size == 0 and not allows_zero else size for axis, size in enumerate(target)]
    rest = math.prod(size for size in sizes if size != -1)
    return [math.prod(shape) // rest if size == -1 and rest else size for size in sizes]


def _reshaped(x: Tensor, target: list[int], allows_zero: bool) -> Tensor:
    """x in a shape that was computed, or that could not be matched."""
    return x.reshape([x.shape[axis] if size == 0 and not allows_zero else size for axis, size in enumerate(target)])


def resized(x: Tensor, sizes: Sequence[Size]) -> Tensor:
    """x in a shape that follows from its own."""
    return x.reshape([size.of(x.shape) for size in sizes])


def matched(inputs: Shapes, targets: Sequence[Sequence[int]], is_fixed: bool) -> tuple[Size, ...] | None:
    """The sizes of a result by those of the input; None where they can't be told.

    Args:
        inputs: shape of the input in every trial.
        targets: sizes asked for in every trial, without 0 and -1; where the file has fixed them (`is_fixed`), they
            are those of the first trial in each, and may be too small for the others.
        is_fixed: whether the file holds the sizes as numbers.
    """
    found = _matched(inputs[0], tuple(targets[0]), _changing(inputs), is_fixed)
    if found is None:
        return None
    for shape, target in zip(inputs, targets, strict=True):
        sizes = [size.of(shape) for size in found]
        if math.prod(sizes) != math.prod(shape) or (not is_fixed and sizes != list(target)):
            return None
    return found


def _changing(inputs: Shapes) -> set[int]:
    """Axes of the input whose size is not the same in all trials."""
    return {axis for axis, sizes in enumerate(zip(*inputs, strict=True)) if len(set(sizes)) > 1}


def _matched(
    given: tuple[int, ...], wanted: tuple[int, ...], changing: set[int], is_fixed: bool
) -> tuple[Size, ...] | None:
    """The sizes by those of one trial."""
    result: list[Size] = []
    for axes, parts in _blocks(given, wanted):
        changes = bool(changing & set(axes))
        if not axes:
            result += [Size()] * len(parts)  # ones from nowhere
        elif len(parts) == 1:
            result.append(Size(axes))
        elif not parts:
            if changes:
                return None
        elif len(axes) == 1 and (is_fixed or not changes):
            result += _split(axes, parts, first=changes)
        elif not is_fixed:
            return None
        else:  # only the first part may hold the batch
            first = Size(axes[:1], given[axes[0]], parts[0]) if axes[0] in changing else Size(scale=parts[0])
            result += [first, *(Size(scale=part) for part in parts[1:])]
    return tuple(result)


def _split(axes: tuple[int, ...], parts: Sequence[int], *, first: bool) -> list[Size]:
    """Sizes of the parts of a split axis: one follows from the others, the first or the last that is not 1."""
    large = [position for position, part in enumerate(parts) if part != 1] or [0]
    open_part = 0 if first else large[-1]
    others = math.prod(part for position, part in enumerate(parts) if position != open_part)
    return [
        Size(axes, divisor=others) if position == open_part else Size(scale=part) for position, part in enumerate(parts)
    ]


def _blocks(given: Sequence[int], wanted: Sequence[int]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Axes of the input and the sizes that they become, block by block: the smallest ones with equal products.

    >>> _blocks((1, 116, 28, 28), (1, 2, 58, 784))
    [((0,), (1,)), ((1,), (2, 58)), ((2, 3), (784,))]
    """
    blocks: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    i = j = 0
    while i < len(given) and j < len(wanted):
        axes, parts, a, b = [i], [wanted[j]], given[i], wanted[j]
        i, j = i + 1, j + 1
        while a != b:
            if a < b and i < len(given):
                axes.append(i)
                a *= given[i]
                i += 1
            elif j < len(wanted):
                parts.append(wanted[j])
                b *= wanted[j]
                j += 1
            else:
                break
        blocks.append((tuple(axes), tuple(parts)))
    return _with_rest(blocks, tuple(range(i, len(given))), tuple(wanted[j:]))


def _with_rest(
    blocks: list[tuple[tuple[int, ...], tuple[int, ...]]], axes: tuple[int, ...], parts: tuple[int, ...]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The blocks with what is left at the end, ones: they go into the last block, or make one of their own."""
    if blocks and (axes or parts):
        last_axes, last_parts = blocks[-1]
        if axes:
            return [*blocks[:-1], ((*last_axes, *axes), last_parts)]
        return [*blocks, ((), parts)]
    return [*blocks, (axes, parts)] if axes or parts else blocks
