"""A layer's inputs as columns: what its weight's rows are multiplied by at every output position."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from autocompress.menus.listening import Window
from autocompress.network.structure import Layer


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
    height, width = _output_size(x.shape[1], x.shape[2], window)
    columns = _empty_columns(x, len(x) * height * width, window)
    for part, top, left in _parts(columns, window):
        bottom, right = top + (height - 1) * window.stride[0] + 1, left + (width - 1) * window.stride[1] + 1
        seen = x[:, top : bottom : window.stride[0], left : right : window.stride[1]]  # the pixel that each reads
        part.copy_(seen.flatten(0, 2).unflatten(1, (window.groups, -1)).transpose(0, 1))
    return columns


def _drawn_columns(x: Tensor, window: Window, drawn: Tensor) -> Tensor:
    """The columns at drawn positions alone: nothing else of a large map is copied."""
    x = x[:, :, None] if x.ndim == 3 else x  # (N, C, H, W)
    before_w, after_w, before_h, after_h = (*window.padding, 0, 0)[:4]
    height, width = _output_size(x.shape[2] + before_h + after_h, x.shape[3] + before_w + after_w, window)
    sample, place = drawn // (height * width), drawn % (height * width)
    row, column = place // width * window.stride[0] - before_h, place % width * window.stride[1] - before_w
    columns = _empty_columns(x.movedim(1, -1), len(drawn), window)
    for part, top, left in _parts(columns, window):
        at_row, at_column = row + top, column + left
        inside = (at_row >= 0) & (at_row < x.shape[2]) & (at_column >= 0) & (at_column < x.shape[3])  # else padding
        seen = x[sample, :, at_row.clamp(0, x.shape[2] - 1), at_column.clamp(0, x.shape[3] - 1)]  # (M, C)
        part.copy_((seen * inside[:, None]).unflatten(1, (window.groups, -1)).transpose(0, 1))
    return columns


def _empty_columns(x: Tensor, count: int, window: Window) -> Tensor:
    """(g, M, d + 1) columns to be filled, with the 1 for the bias; x has its channels last."""
    per_group = x.shape[-1] // window.groups
    columns = x.new_empty(window.groups, count, window.kernel[0] * window.kernel[1] * per_group + 1)
    columns[..., -1] = 1
    return columns


def _parts(columns: Tensor, window: Window) -> Iterator[tuple[Tensor, int, int]]:
    """The part (g, M, channels of a group) of each kernel position, and how far down and right it reads."""
    per_group = (columns.shape[-1] - 1) // (window.kernel[0] * window.kernel[1])
    places = itertools.product(range(window.kernel[0]), range(window.kernel[1]))
    for position, (row, column) in enumerate(places):
        part = columns[..., position * per_group : (position + 1) * per_group]
        yield part, row * window.dilation[0], column * window.dilation[1]


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
    before_w, after_w, before_h, after_h = (*window.padding, 0, 0)[:4]
    rows = x.shape[2] if x.ndim == 4 else 1
    height, width = _output_size(rows + before_h + after_h, x.shape[-1] + before_w + after_w, window)
    return len(x) * height * width


def _channels_behind(x: Tensor, window: Window) -> Tensor:
    """(N, H, W, C) the padded input (N, C, H, W) or (N, C, W) of a convolution."""
    x = F.pad(x, window.padding)
    return (x[:, :, None] if x.ndim == 3 else x).permute(0, 2, 3, 1).contiguous()


def _output_size(height: int, width: int, window: Window) -> tuple[int, int]:
    """Height and width of a convolution's output, from those of its padded input."""
    (kernel_h, kernel_w), (stride_h, stride_w), (dilation_h, dilation_w) = window.kernel, window.stride, window.dilation
    return (height - dilation_h * (kernel_h - 1) - 1) // stride_h + 1, (
        width - dilation_w * (kernel_w - 1) - 1
    ) // stride_w + 1


def unfolded(x: Tensor, window: Window) -> Tensor:
    """(N, C · kernel, T) what a convolution sees at each of T output positions, in the order of the flattened weight.

    As `F.unfold`, but for any padding. Whole runs of positions are copied, which suits layers of few channels a group.

    Args:
        x: (N, C, H, W) or (N, C, W) inputs of the operator.
        window: window of the convolution.
    """
    x = F.pad(x, window.padding)
    x = x[:, :, None] if x.ndim == 3 else x
    height, width = _output_size(x.shape[2], x.shape[3], window)
    windows = x.new_empty(*x.shape[:2], window.kernel[0] * window.kernel[1], height, width)
    for position, (row, column) in enumerate(itertools.product(range(window.kernel[0]), range(window.kernel[1]))):
        top, left = row * window.dilation[0], column * window.dilation[1]
        bottom, right = top + (height - 1) * window.stride[0] + 1, left + (width - 1) * window.stride[1] + 1
        windows[:, :, position] = x[:, :, top : bottom : window.stride[0], left : right : window.stride[1]]
    return windows.flatten(3).flatten(1, 2)


def weight_order(layer: Layer) -> Tensor:
    """Place (d + 1,) of every column of the flattened weight, bias last, among `extended_columns`."""
    if layer.kind == "linear":
        return torch.arange(layer.fan_in + 1)
    per_group = layer.weight_shape[1]
    order = torch.arange(layer.fan_in).view(-1, per_group).T.flatten()
    return torch.cat([order, torch.tensor([layer.fan_in])])
