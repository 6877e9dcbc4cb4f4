"""A layer's inputs as columns: what its weight's rows are multiplied by at every output position."""

from __future__ import annotations

import itertools

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
    x = _channels_behind(x, window)
    height, width = _output_size(x, window)
    groups, per_group = window.groups, x.shape[3] // window.groups
    (kernel_h, kernel_w), (stride_h, stride_w), (dilation_h, dilation_w) = window.kernel, window.stride, window.dilation
    count = len(x) * height * width if drawn is None else len(drawn)
    columns = x.new_empty(groups, count, kernel_h * kernel_w * per_group + 1)
    columns[..., -1] = 1
    for position, (row, column) in enumerate(itertools.product(range(kernel_h), range(kernel_w))):
        top, left = row * dilation_h, column * dilation_w
        part = columns[..., position * per_group : (position + 1) * per_group]
        if drawn is None:
            bottom, right = top + (height - 1) * stride_h + 1, left + (width - 1) * stride_w + 1
            seen = x[:, top:bottom:stride_h, left:right:stride_w].flatten(0, 2)  # the pixel that each position reads
        else:
            sample, place = drawn // (height * width), drawn % (height * width)
            seen = x[sample, place // width * stride_h + top, place % width * stride_w + left]  # (M, C)
        part.copy_(seen.unflatten(1, (groups, per_group)).transpose(0, 1))
    return columns


def count_positions(x: Tensor, window: Window | None) -> int:
    """Number of output positions of all samples that a layer has for the inputs (N, …) of its operator."""
    if window is None:
        return x[..., 0].numel()
    height, width = _output_size(_channels_behind(x[:1, :1], window), window)
    return len(x) * height * width


def _channels_behind(x: Tensor, window: Window) -> Tensor:
    """(N, H, W, C) the padded input (N, C, H, W) or (N, C, W) of a convolution."""
    x = F.pad(x, window.padding)
    return (x[:, :, None] if x.ndim == 3 else x).permute(0, 2, 3, 1).contiguous()


def _output_size(x: Tensor, window: Window) -> tuple[int, int]:
    """Height and width of a convolution's output, from its padded input (N, H, W, C)."""
    (kernel_h, kernel_w), (stride_h, stride_w), (dilation_h, dilation_w) = window.kernel, window.stride, window.dilation
    height = (x.shape[1] - dilation_h * (kernel_h - 1) - 1) // stride_h + 1
    width = (x.shape[2] - dilation_w * (kernel_w - 1) - 1) // stride_w + 1
    return height, width


def weight_order(layer: Layer) -> Tensor:
    """Place (d + 1,) of every column of the flattened weight, bias last, among `extended_columns`."""
    if layer.kind == "linear":
        return torch.arange(layer.fan_in + 1)
    per_group = layer.weight_shape[1]
    order = torch.arange(layer.fan_in).view(-1, per_group).T.flatten()
    return torch.cat([order, torch.tensor([layer.fan_in])])
