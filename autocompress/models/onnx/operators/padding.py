"""Padding of convolutions and pools: even pads go into the operator, all others into a step before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from autocompress.models.onnx.translation import Operation


@dataclass(frozen=True)
class Pads:
    """Positions added before and after each axis in space.

    Attributes:
        before: positions before, by axis.
        after: positions after, by axis.
        same: kernel, stride and dilation by axis, and whether an odd position goes to the end, where pads follow from
            the size of the input (`SAME_UPPER`, `SAME_LOWER`); `before` and `after` don't count then.
    """

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    same: tuple[tuple[tuple[int, int, int], ...], bool] | None = None

    @property
    def is_even(self) -> bool:
        """Whether every axis has as many positions before as after it."""
        return self.same is None and self.before == self.after


def pads_of(op: Operation, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Pads:
    """The padding that a node's attributes ask for.

    Args:
        op: convolution or pool.
        kernel: size of the kernel by axis.
        stride: stride by axis.
        dilation: dilation by axis.
    """
    axes, auto = len(kernel), op.attribute("auto_pad", "NOTSET")
    if auto == "VALID":
        return Pads((0,) * axes, (0,) * axes)
    if auto == "NOTSET":
        pads = tuple(op.attribute("pads") or (0,) * (2 * axes))
        return Pads(pads[:axes], pads[axes:])
    windows, is_upper = tuple(zip(kernel, stride, dilation, strict=True)), auto == "SAME_UPPER"
    found = {tuple(_same(shape[2:], windows, is_upper)) for shape in op.shapes(0)}
    if len(found) == 1:
        pairs = found.pop()
        return Pads(tuple(before for before, _ in pairs), tuple(after for _, after in pairs))
    return Pads(same=(windows, is_upper))


def _same(sizes: Sequence[int], windows: Sequence[tuple[int, int, int]], is_upper: bool) -> list[tuple[int, int]]:
    """Positions before and after each axis with which a window of stride s makes ⌈size / s⌉ positions."""
    pairs = []
    for size, (kernel, stride, dilation) in zip(sizes, windows, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size)
        less, more = total // 2, total - total // 2
        pairs.append((less, more) if is_upper else (more, less))
    return pairs


def with_pads(
    op: Operation, x: Any, pads: Pads, value: float = 0.0, at_most: Sequence[int] | None = None
) -> tuple[Any, tuple[int, ...]]:
    """The padded input where the padding is not even, and the even padding that is left for the operator itself.

    Args:
        op: convolution or pool.
        x: its input.
        pads: padding.
        value: content of what is added.
        at_most: most padding that the operator itself takes, by axis; None: any.
    """
    fits = at_most is None or all(pad <= most for pad, most in zip(pads.before, at_most, strict=False))
    if pads.is_even and fits:
        return x, pads.before
    if pads.same is not None:
        padded = op.step(pad_same, x, windows=pads.same[0], is_upper=pads.same[1], value=value)
        return padded, (0,) * len(pads.same[0])
    return op.step(F.pad, x, _flat(pads.before, pads.after), value=value), (0,) * len(pads.before)


def pad_same(x: Tensor, windows: Sequence[tuple[int, int, int]], is_upper: bool, value: float) -> Tensor:
    """x padded by as much as its size asks for."""
    pairs = _same(x.shape[2:], windows, is_upper)
    return F.pad(x, _flat([before for before, _ in pairs], [after for _, after in pairs]), value=value)


def _flat(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Pads in torch's order: last axis first, before and after each."""
    return [each for pair in zip(reversed(before), reversed(after), strict=True) for each in pair]
