"""A rounded weight: integer codes q and one scale s for every output channel; a weight becomes s q.

With b bits the codes are -2^(b-1) … 2^(b-1) - 1; with 1 bit they are -1 and 1. The zero point is always 0:
weights lie about 0, and runtimes are fast on symmetric ones. Biases stay in floating point.

Shapes: g groups of a convolution (1 for other layers), r rows (output channels) in a group, d weight columns,
f scales that are tried.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rounding:
    """A layer's weight that is to be rounded, and what its inputs look like.

    Attributes:
        weight: (g, r, d + 1) float64, the bias last.
        second_moment: (g, d + 1, d + 1) float64 H of the inputs, damped.
        mask: (g, r, d) bool, False where a weight is pruned and has to stay 0; None where none is.
    """

    weight: Tensor
    second_moment: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True)
class Rounded:
    """A rounded weight, which is `codes` times `scale`.

    Attributes:
        codes: (g, r, d) int8.
        scale: (g, r) float64, above 0.
        bias: (g, r) float64.
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor


def code_range(bits: int) -> tuple[int, int]:
    """Smallest and largest code of a bit-width, 1 to 8.

    >>> code_range(2), code_range(1)
    ((-2, 1), (-1, 1))
    """
    return (-1, 1) if bits == 1 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def min_max_scale(rounding: Rounding, bits: int) -> Tensor:
    """Smallest scale (g, r) that clips no weight; with 1 bit, the mean magnitude of the weights that stay."""
    weight = rounding.weight[..., :-1]
    if bits == 1:
        kept = torch.ones_like(weight) if rounding.mask is None else rounding.mask.to(weight)
        return ((weight.abs() * kept).sum(-1) / kept.sum(-1).clamp(min=1)).clamp(min=1e-12)
    low, high = code_range(bits)
    return torch.maximum(weight.amax(-1) / high, weight.amin(-1) / low).clamp(min=1e-12)


def round_codes(value: Tensor, bits: int) -> Tensor:
    """The codes nearest to weights that are divided by their scale; same shape and dtype."""
    if bits == 1:
        return torch.where(value < 0, -1.0, 1.0).to(value.dtype)
    return value.round().clamp_(*code_range(bits))


def scale_factors(bits: int) -> Tensor:
    """Fractions (f,) of the min-max scale that are tried; the fewer bits, the more is gained by clipping."""
    if bits == 1:
        return torch.linspace(0.5, 1.6, 12, dtype=torch.float64)
    lowest = {2: 0.30, 3: 0.40, 4: 0.55, 5: 0.70}.get(bits, 0.85)
    return torch.linspace(lowest, 1.0, {2: 16, 3: 14, 4: 10}.get(bits, 5), dtype=torch.float64)
