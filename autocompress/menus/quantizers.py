"""Quantizers: ways to round a weight to integer codes and scales (`rounding`). Shapes as there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from autocompress.menus.gptq import HELD, gptq
from autocompress.menus.rounding import Rounded, Rounding, min_max_scale, round_codes, scale_factors
from autocompress.registry import Registry

RoundingFunction = Callable[[Rounding, Sequence[int]], list[Rounded]]
"""From a weight and several bit-widths below 16, the weight rounded to each of them."""


@dataclass(frozen=True)
class Quantizer:
    """A way to round weights.

    Attributes:
        round: function that rounds one weight to several bit-widths.
        bits: bit-widths below 16 that it can round to; None stands for 1 to 8.
    """

    round: RoundingFunction
    bits: tuple[int, ...] | None = None

    def __call__(self, rounding: Rounding, bits: Sequence[int]) -> list[Rounded]:
        """One `Rounded` for each of `bits`."""
        return self.round(rounding, bits)


def nearest(rounding: Rounding, bits: Sequence[int]) -> list[Rounded]:
    """Round every weight to the nearest level, on the smallest scale that clips nothing (min-max)."""
    return [_round_plainly(rounding, width, min_max_scale(rounding, width)) for width in bits]


def mse(rounding: Rounding, bits: Sequence[int]) -> list[Rounded]:
    """Round every weight to the nearest level, on the scale of least squared error ‖W - s q‖² of each row."""

    def weight_error(rounded: Rounded) -> Tensor:
        """Squared error (g, r) of every row."""
        change = rounding.weight[..., :-1] - rounded.codes * rounded.scale[..., None]
        return change.square().sum(-1)

    return [_best_per_row(_plain_candidates(rounding, width), weight_error) for width in bits]


def by_diagonal(rounding: Rounding, bits: Sequence[int]) -> list[Rounded]:
    """Round every weight to the nearest level, on the scale of least output error where inputs are uncorrelated.

    For layers with so many inputs that only the diagonal of H is known. Of as many scales as `gptq` tries, every row
    gets the one of least Σ_j H_jj (w_j - s q_j)²; rows are taken some at a time.

    Args:
        rounding: weight (1, r, d + 1), and second moment (1, 1, d + 1).
        bits: bit-widths of the codes.
    """
    at_once = max(1, HELD["cpu"] // rounding.weight.shape[-1])
    diagonal = rounding.second_moment[:, 0, None, :-1]  # (1, 1, d)

    def output_error(rounded: Rounded, weight: Tensor) -> Tensor:
        return ((weight[..., :-1] - rounded.codes * rounded.scale[..., None]).square() * diagonal).sum(-1)

    found: dict[int, list[Rounded]] = {width: [] for width in bits}
    for first in range(0, rounding.weight.shape[1], at_once):
        rows = slice(first, first + at_once)
        mask = None if rounding.mask is None else rounding.mask[:, rows]
        part = Rounding(rounding.weight[:, rows], rounding.second_moment, mask)
        for width in bits:
            found[width].append(
                _best_per_row(_plain_candidates(part, width), partial(output_error, weight=part.weight))
            )
    fields = ("codes", "scale", "bias")
    return [
        Rounded(*(torch.cat([getattr(each, field) for each in found[width]], 1) for field in fields)) for width in bits
    ]


def fixed_point(rounding: Rounding, bits: Sequence[int]) -> list[Rounded]:
    """Round every weight to the nearest level, on a power of two: hardware shifts instead of multiplying.

    Of the first power of two that clips nothing and the four below it, every row gets the one of least output
    error δ H δᵀ, with the row's error δ = w - s q.
    """

    def output_error(rounded: Rounded) -> Tensor:
        """δ H δᵀ (g, r) of every row."""
        change = torch.zeros_like(rounding.weight)
        change[..., :-1] = rounding.weight[..., :-1] - rounded.codes * rounded.scale[..., None]
        return (change @ rounding.second_moment * change).sum(-1)

    result = []
    for width in bits:
        top = 2.0 ** min_max_scale(rounding, width).log2().ceil()
        candidates = [_round_plainly(rounding, width, top / 2**shift) for shift in range(5)]
        result.append(_best_per_row(candidates, output_error))
    return result


def binary(rounding: Rounding, bits: Sequence[int]) -> list[Rounded]:
    """Round to 1 bit: sign times mean magnitude of the row (XNOR-Net, Rastegari et al. 2016, eq. 6)."""
    assert set(bits) <= {1}, "MenuSettings admits no other integer width"
    return nearest(rounding, bits)


QUANTIZERS: Registry[Quantizer] = Registry(
    "quantizer",
    {
        "gptq": Quantizer(gptq),
        "nearest": Quantizer(nearest),
        "mse": Quantizer(mse),
        "fixed-point": Quantizer(fixed_point),
        "binary": Quantizer(binary, bits=(1,)),
    },
)


def _round_plainly(rounding: Rounding, bits: int, scale: Tensor) -> Rounded:
    """Every weight rounded to the nearest level on the given scale (g, r)."""
    codes = round_codes(rounding.weight[..., :-1] / scale[..., None], bits)
    if rounding.mask is not None:
        codes = codes * rounding.mask
    return Rounded(codes.to(torch.int8), scale, rounding.weight[..., -1])


def _plain_candidates(rounding: Rounding, bits: int) -> list[Rounded]:
    """The weight rounded to nearest on each of the scales that are tried."""
    base = min_max_scale(rounding, bits)
    return [_round_plainly(rounding, bits, base * factor) for factor in scale_factors(bits)]


def _best_per_row(candidates: Sequence[Rounded], error: Callable[[Rounded], Tensor]) -> Rounded:
    """Every row from the candidate whose error (g, r) is least there."""
    best = torch.stack([error(candidate) for candidate in candidates]).argmin(0)  # (g, r)
    codes = torch.stack([candidate.codes for candidate in candidates])  # (f, g, r, d)
    scale = torch.stack([candidate.scale for candidate in candidates])  # (f, g, r)
    index = best[None, ..., None].expand(1, *codes.shape[1:])  # (1, g, r, d)
    return Rounded(codes.gather(0, index)[0], scale.gather(0, best[None])[0], candidates[0].bias)
