"""Transposed convolutions whose weight has a row for each output channel, as those of all other layers have.

PyTorch's `nn.ConvTranspose2d` keeps its weight as (inputs, outputs / groups, …). The modules here are convolutions by
class and by their weight, (outputs, inputs / groups, …), and compute the transposed convolution. They run in two ways
(`written_out`): as PyTorch's operator, or as a convolution. For a stride s, dilation d, kernel k and padding p,

    y[o] = Σ x[i] w[j]   over i · s + j · d - p = o

is the convolution of x with s - 1 zeros between its values and d (k - 1) - p zeros around them, by w turned around in
every axis. Instead of w, the input is turned around here, and then the output, so that the weight is used as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from autocompress.network.written_out import runs_as_convolutions

TRANSPOSED_TYPES = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class TransposedConv:
    """Mixed into convolutions: they compute the transposed convolution.

    Attributes:
        output_padding: positions that are added behind the output, by axis.
    """

    output_padding: tuple[int, ...]

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Output (N, outputs, …).

        Args:
            input: (N, inputs, …).
            output_size: size of the output along each axis, where `output_padding` does not say it.
        """
        own: Any = self
        axes = own.weight.ndim - 2
        behind = _ConvTransposeNd._output_padding(
            own, input, output_size, own.stride, own.padding, own.kernel_size, axes, own.dilation
        )
        if not runs_as_convolutions():
            weight = transposed_weight(own.weight, own.groups)
            output: Tensor = _TRANSPOSED[axes](
                input, weight, own.bias, own.stride, own.padding, tuple(behind), own.groups, own.dilation
            )
            return output
        spatial = tuple(range(2, axes + 2))
        spread = _spread(input, own.stride, _around(own, tuple(behind))).flip(spatial)
        turned: Tensor = _CONVOLUTIONS[axes](spread, own.weight, own.bias, 1, 0, own.dilation, own.groups)
        return turned.flip(spatial)


class TransposedConv1d(TransposedConv, nn.Conv1d):
    """A transposed convolution along one axis."""


class TransposedConv2d(TransposedConv, nn.Conv2d):
    """A transposed convolution along two axes."""


class TransposedConv3d(TransposedConv, nn.Conv3d):
    """A transposed convolution along three axes."""


def with_rows_first(original: Any) -> nn.Module:
    """The module that computes what one of `TRANSPOSED_TYPES` does; its weight is a copy, its bias the same.

    Args:
        original: module to be replaced.
    """
    kind = {1: TransposedConv1d, 2: TransposedConv2d, 3: TransposedConv3d}[original.weight.ndim - 2]
    module: Any = kind(
        original.in_channels, original.out_channels, original.kernel_size, original.stride, original.padding,
        original.dilation, original.groups, original.bias is not None, device="meta",
    )  # fmt: skip
    module.output_padding = original.output_padding
    rows_first = transposed_weight(original.weight.detach(), original.groups).contiguous()
    module.weight = nn.Parameter(rows_first, original.weight.requires_grad)
    module.bias = original.bias
    module.training = original.training
    return module  # type: ignore[no-any-return]


def transposed_weight(weight: Tensor, groups: int) -> Tensor:
    """(inputs, outputs / groups, …) of (outputs, inputs / groups, …), and the other way round."""
    if groups == 1:
        return weight.transpose(0, 1)
    by_group: Tensor = weight.unflatten(0, (groups, -1))
    return by_group.transpose(1, 2).flatten(0, 1)


def _around(module: Any, behind: tuple[int, ...]) -> list[tuple[int, int]]:
    """Zeros (before, after) each axis of the spread input; negative ones cut off."""
    sizes = zip(module.kernel_size, module.dilation, module.padding, behind, strict=True)
    return [(d * (k - 1) - p, d * (k - 1) - p + more) for k, d, p, more in sizes]


def _spread(x: Tensor, stride: Sequence[int], around: Sequence[tuple[int, int]]) -> Tensor:
    """The input (N, C, …) with stride - 1 zeros between its values, and zeros around them, along every axis."""
    for axis, step in enumerate(stride, 2):
        if step > 1:
            spread = F.pad(x.unsqueeze(axis + 1).movedim(axis + 1, -1), (0, step - 1)).movedim(-1, axis + 1)
            x = spread.flatten(axis, axis + 1).narrow(axis, 0, (x.shape[axis] - 1) * step + 1)
    return F.pad(x, [zeros for pair in reversed(around) for zeros in pair])
