"""Windows that slide over images: how LiteRT pads them.

PyTorch pads as many zeros on every side as it is told. LiteRT knows two schemes: VALID pads nothing, and SAME pads just
so much that every stride-th pixel gets a window, more behind than before. Where PyTorch's padding is SAME's it costs
nothing; anything else is a PAD of its own before a VALID window. A 3x3 window with stride 2 is such a case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autocompress.menus.activations import ActivationRange
from autocompress.targets.litert.graph import FileGraph, Form

_SAME, _VALID = 0, 1  # the schema's Padding


@dataclass(frozen=True)
class Window:
    """A window over images (height, width).

    Attributes:
        size: height and width of the images.
        kernel: those of the window.
        stride: its steps.
        dilation: distances between its points.
        before: zeros above and to the left.
        behind: zeros below and to the right that some window reads.
    """

    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    before: tuple[int, int]
    behind: tuple[int, int]

    @classmethod
    def of(cls, size: Sequence[int], kernel: Any, stride: Any, padding: Any, dilation: Any = (1,)) -> Window:
        """The window of PyTorch's arguments; sequences are images of height 1.

        Args:
            size: height and width of the images, or the length of the sequences.
            kernel: size of the window, as `stride`, `padding` and `dilation` a number for each of these or one for all.
            stride: its steps.
            padding: zeros on both sides, or `same` or `valid`.
            dilation: distances between its points.
        """
        rank = len(size)
        kernels, strides, dilations = (_each(value, rank) for value in (kernel, stride, dilation))
        reach = [step * (count - 1) + 1 for step, count in zip(dilations, kernels, strict=True)]
        if padding == "same":
            before = [(length - 1) // 2 for length in reach]
            ends = [length - 1 - first for length, first in zip(reach, before, strict=True)]
        else:
            before = ends = [0] * rank if padding == "valid" else _each(padding, rank)
        behind = []
        for length, reached, step, first, last in zip(size, reach, strides, before, ends, strict=True):
            count = (length + first + last - reached) // step + 1
            behind.append((count - 1) * step + reached - length - first)  # negative: some pixels are in no window
        parts = [list(size), kernels, strides, dilations, before, behind]
        if rank == 1:
            parts = [[neutral, *part] for neutral, part in zip((1, 1, 1, 1, 0, 0), parts, strict=True)]
        return cls(*((part[0], part[1]) for part in parts))

    @property
    def is_same(self) -> bool:
        """Whether LiteRT's SAME pads exactly so."""
        for axis in range(2):
            reached = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            count = -(-self.size[axis] // self.stride[axis])
            missing = max((count - 1) * self.stride[axis] + reached - self.size[axis], 0)
            wanted = (missing // 2, missing - missing // 2)
            found = (self.before[axis], max(self.behind[axis], 0))
            made = (self.size[axis] + self.before[axis] + self.behind[axis] - reached) // self.stride[axis] + 1
            if found != wanted or made != count:
                return False
        return True

    @property
    def is_point(self) -> bool:
        """Whether every pixel is a window."""
        return self.is_valid and self.kernel == (1, 1) and self.stride == (1, 1)

    @property
    def is_valid(self) -> bool:
        """Whether nothing is padded."""
        return self.before == (0, 0) and max(self.behind) <= 0


def _each(value: Any, rank: int) -> list[int]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return [int(each) for each in (values * rank if len(values) == 1 else values)]


def padded(
    graph: FileGraph, source: int, channels: int, window: Window, found: ActivationRange | None, maximum: bool | None
) -> tuple[int, int]:
    """What a window has to read, and the scheme of its operator.

    Args:
        graph: file in the making.
        source: (N, height, width, channels) tensor.
        channels: number of channels.
        window: window that reads it.
        found: range of the tensor's codes; None: it is float32.
        maximum: what reads it: a pooling of maxima (True), for which the lowest number is padded instead of zeros, a
            pooling of averages (False), for which SAME won't do, as it does not count what is padded, or a layer.
    """
    if window.is_valid:
        return source, _VALID
    if window.is_same and maximum is not False:
        return source, _SAME
    behind = [max(number, 0) for number in window.behind]
    sides = [(0, 0), *zip(window.before, behind, strict=True), (0, 0)]
    sizes = [size + sum(side) for size, side in zip(window.size, sides[1:3], strict=True)]
    kind = "FLOAT32" if found is None else "INT8"
    made = graph.tensor(kind, (1, *sizes, channels), Form(True, found).rounding)
    inputs = [source, graph.constant(np.array(sides, np.int32))]
    if not maximum:
        return graph.run("PAD", inputs, made, "PadOptions"), _VALID
    if found is None:
        inputs.append(graph.constant(np.array([np.finfo(np.float32).min], np.float32)))
    else:
        inputs.append(graph.stored("INT8", (1,), np.array([-128], np.int8).tobytes(), Form(True, found).rounding))
    return graph.run("PADV2", inputs, made, "PadV2Options"), _VALID
