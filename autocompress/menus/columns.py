"""A layer's inputs as columns: what its weight's rows are multiplied by at every output position."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autocompress.menus.listening import Window
from autocompress.network.structure import Layer

_SHORT = 8  # channels, below which copying them one run after the other is slow


def extended_columns(x: Tensor, window: Window | None, drawn: Tensor | None = None) -> Tensor:
    """The layer's inputs at output positions, with a 1 for the bias: (g, M, d + 1).

    M is samples times positions, or the number of positions that are drawn. The product with the weight's rows, in the
    same order of columns, is the layer's output at those positions.

    Columns of a convolution run by kernel position first and by channel second, so that whole runs of channels are
    copied; that is several times faster than `F.unfold`. `weight_order` puts them in the weight's order.

    Args:
        x: (N, …) inputs of the operator.
        window: window of a convolution; None for a linear layer.
        drawn: (M,) int64 positions to take, samples first (`count_positions`); None: all.
    """
    if window is None:
        flat = x.reshape(1, -1, x.shape[-1])
        flat = flat if drawn is None else flat[:, drawn]
        return torch.cat([flat, flat.new_ones(1, flat.shape[1], 1)], 2)
    if drawn is not None:
        return _drawn_columns(x, window, drawn)
    x = _channels_behind(x, window)
    sizes = _output_sizes(x.shape[1:-1], window)
    columns = _empty_columns(x, len(x) * math.prod(sizes), window)
    for part, place in _parts(columns, window):
        seen = x[(slice(None), *_read_at(place, sizes, window))]  # the pixel that each position reads
        part.copy_(seen.flatten(0, -2).unflatten(1, (window.groups, -1)).transpose(0, 1))
    return columns


def summed_columns(x: Tensor, window: Window | None) -> Tensor:
    """The sum of a layer's columns over output positions: (g, N, d + 1), whose last entry is their number.

    Args:
        x: (N, …) inputs of the operator.
        window: window of a convolution; None for a linear layer, whose positions are all axes but the first and last.
    """
    if window is None:
        flat = x.reshape(len(x), -1, x.shape[-1])
        summed = flat.sum(1)[None]
        return torch.cat([summed, summed.new_full((1, len(x), 1), flat.shape[1])], 2)
    x = _channels_behind(x, window)
    sizes = _output_sizes(x.shape[1:-1], window)
    columns = _empty_columns(x, len(x), window)
    columns[..., -1] = math.prod(sizes)
    for part, place in _parts(columns, window):
        seen = x[(slice(None), *_read_at(place, sizes, window))].flatten(1, -2).sum(1)  # (N, C)
        part.copy_(seen.unflatten(1, (window.groups, -1)).transpose(0, 1))
    return columns


def _read_at(place: tuple[int, ...], sizes: tuple[int, ...], window: Window) -> tuple[slice, ...]:
    """What a place in the kernel reads of the padded input at all output positions, along each axis."""
    axes = zip(place, sizes, window.stride, strict=True)
    return tuple(slice(first, first + (size - 1) * stride + 1, stride) for first, size, stride in axes)


def _drawn_columns(x: Tensor, window: Window, drawn: Tensor) -> Tensor:
    """The columns at drawn positions alone: nothing else of a large map is copied."""
    x = x[:, :, None] if x.ndim == 3 else x  # (N, C, H, W) or (N, C, D, H, W)
    around = _padding_by_axis(window)
    sizes = _output_sizes([size + sum(zeros) for size, zeros in zip(x.shape[2:], around, strict=True)], window)
    sample = drawn  # of each position, in the end
    corner: list[Tensor] = []  # where its window begins along each axis
    for size, stride, (before, _) in reversed(list(zip(sizes, window.stride, around, strict=True))):
        corner.insert(0, sample % size * stride - before)
        sample = sample // size
    columns = _empty_columns(x.movedim(1, -1), len(drawn), window)
    for part, place in _parts(columns, window):
        at = [begin + offset for begin, offset in zip(corner, place, strict=True)]
        inside = torch.ones_like(drawn, dtype=torch.bool)  # else padding
        for axis, index in enumerate(at, 2):
            inside &= (index >= 0) & (index < x.shape[axis])
        held = [index.clamp(0, x.shape[axis] - 1) for axis, index in enumerate(at, 2)]
        where: tuple[Any, ...] = (sample, slice(None), *held)
        seen = x[where]  # (M, C)
        part.copy_((seen * inside[:, None]).unflatten(1, (window.groups, -1)).transpose(0, 1))
    return columns


def _empty_columns(x: Tensor, count: int, window: Window) -> Tensor:
    """(g, M, d + 1) columns to be filled, with the 1 for the bias; x has its channels last.

    Of few channels a group, as in depthwise layers, positions lie side by side in memory: runs of channels are short.
    """
    per_group = x.shape[-1] // window.groups
    width = math.prod(window.kernel) * per_group + 1
    is_transposed = window.groups > 1 and per_group < _SHORT
    columns = x.new_empty(window.groups, width, count).mT if is_transposed else x.new_empty(window.groups, count, width)
    columns[..., -1] = 1
    return columns


def _parts(columns: Tensor, window: Window) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
    """The part (g, M, channels of a group) of each kernel position, and how far along each axis it reads."""
    per_group = (columns.shape[-1] - 1) // math.prod(window.kernel)
    for position, place in enumerate(_places(window)):
        yield columns[..., position * per_group : (position + 1) * per_group], place


def _places(window: Window) -> Iterator[tuple[int, ...]]:
    """How far along each axis every kernel position reads, the last axis fastest."""
    ranges = (range(0, size * step, step) for size, step in zip(window.kernel, window.dilation, strict=True))
    return itertools.product(*ranges)


def at_positions(x: Tensor, axis: int, drawn: Tensor | None) -> Tensor:
    """(M, channels) values at drawn positions of all samples, or at all of them.

    Args:
        x: (N, …) values, channels on `axis`.
        axis: 1 or -1.
        drawn: (M,) int64 positions, samples first; None: all.
    """
    if axis == -1 or x.ndim == 2:
        flat = x.reshape(-1, x.shape[-1])
        return flat if drawn is None else flat[drawn]
    by_channel = x.flatten(2)  # (N, C, T)
    if drawn is None:
        return by_channel.movedim(1, -1).flatten(0, 1)
    return by_channel[drawn // by_channel.shape[2], :, drawn % by_channel.shape[2]]


def count_positions(x: Tensor, window: Window | None) -> int:
    """Number of output positions of all samples that a layer has for the inputs (N, …) of its operator."""
    if window is None:
        return x[..., 0].numel()
    spatial = x.shape[2:] if x.ndim > 3 else (1, x.shape[-1])
    padded = [size + sum(zeros) for size, zeros in zip(spatial, _padding_by_axis(window), strict=True)]
    return len(x) * math.prod(_output_sizes(padded, window))


def _padding_by_axis(window: Window) -> list[tuple[int, int]]:
    """Zeros (before, after) each axis, the first axis first."""
    flat = (*window.padding, *[0] * (2 * len(window.kernel) - len(window.padding)))
    return list(zip(flat[::2], flat[1::2], strict=True))[::-1]


def _channels_behind(x: Tensor, window: Window) -> Tensor:
    """(N, H, W, C) the padded input (N, C, H, W) or (N, C, W) of a convolution; (N, D, H, W, C) along three axes."""
    x = F.pad(x, window.padding)
    return (x[:, :, None] if x.ndim == 3 else x).movedim(1, -1).contiguous()


def _output_sizes(padded: Sequence[int], window: Window) -> tuple[int, ...]:
    """Sizes of a convolution's output along each axis, from those of its padded input."""
    axes = zip(padded, window.kernel, window.stride, window.dilation, strict=True)
    return tuple((size - dilation * (kernel - 1) - 1) // stride + 1 for size, kernel, stride, dilation in axes)


def unfolded(x: Tensor, window: Window) -> Tensor:
    """(N, C · kernel, T) what a convolution sees at each of T output positions, in the order of the flattened weight.

    As `F.unfold`, but for any padding. Whole runs of positions are copied, which suits layers of few channels a group.

    Args:
        x: (N, C, H, W), (N, C, W) or (N, C, D, H, W) inputs of the operator.
        window: window of the convolution.
    """
    x = F.pad(x, window.padding).contiguous()  # channels may lie last
    x = x[:, :, None] if x.ndim == 3 else x
    sizes = _output_sizes(x.shape[2:], window)
    windows = x.new_empty(*x.shape[:2], math.prod(window.kernel), *sizes)
    for position, place in enumerate(_places(window)):
        windows[:, :, position] = x[(slice(None), slice(None), *_read_at(place, sizes, window))]
    return windows.flatten(3).flatten(1, 2)


def weight_order(layer: Layer) -> Tensor:
    """Place (d + 1,) of every column of the flattened weight, bias last, among `extended_columns`."""
    if layer.has_channels_last:
        return torch.arange(layer.fan_in + 1)
    per_group = layer.weight_shape[1]
    order = torch.arange(layer.fan_in).view(-1, per_group).T.flatten()
    return torch.cat([order, torch.tensor([layer.fan_in])])
