"""Quantizers: integer codes on one symmetric scale per output channel.

With b bits the codes are -2^(b-1) … 2^(b-1) - 1; with 1 bit they are -1 and 1. Biases stay in floating point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.menus.algebra import inverse
from autocompress.registry import Registry

_LARGE = 1_000_000  # weights; layers with more try every third scale, as the sweep's time is their product
_BLOCK = 64  # columns rounded before their errors reach the columns behind the block


@dataclass(frozen=True)
class Rounding:
    """What is to be rounded: a layer's weight in g groups of r rows and d columns.

    Attributes:
        weight: (g, r, d + 1) float64, the bias last.
        second_moment: (g, d + 1, d + 1) damped H.
        mask: (g, r, d) bool, False where a weight is pruned and stays 0; None: all True.
    """

    weight: Tensor
    second_moment: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True)
class Rounded:
    """codes (g, r, d) int8, scale (g, r) float64 > 0, bias (g, r) float64; the weight is codes · scale."""

    codes: Tensor
    scale: Tensor
    bias: Tensor


RoundingFunction = Callable[[Rounding, Sequence[int]], list[Rounded]]
"""The weight of a `Rounding`, rounded once for each of several bit-widths below 16."""


@dataclass(frozen=True)
class Quantizer:
    """A way to round weights.

    Attributes:
        round: what rounds.
        bits: bit-widths below 16 that it can round to; None: 1 to 8.
    """

    round: RoundingFunction
    bits: tuple[int, ...] | None = None

    def __call__(self, rounding: Rounding, bits: Sequence[int]) -> list[Rounded]:
        """One `Rounded` for each of `bits`."""
        return self.round(rounding, bits)


def code_range(bits: int) -> tuple[int, int]:
    """Smallest and largest code.

    >>> code_range(2), code_range(1)
    ((-2, 1), (-1, 1))
    """
    return (-1, 1) if bits == 1 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def nearest(rounding: Rounding, bits: Sequence[int]) -> list[Rounded]:
    """Round to nearest on the smallest scale that clips nothing (min-max)."""
    return [_round_plainly(rounding, width, min_max_scale(rounding, width)) for width in bits]


def mse(rounding: Rounding, bits: Sequence[int]) -> list[Rounded]:
    """Round to nearest on the scale of the least squared weight error."""

    def weight_error(rounded: Rounded) -> Tensor:
        change = rounding.weight[..., :-1] - rounded.codes * rounded.scale[..., None]
        return change.square().sum(-1)

    return [_best_per_row(_plain_candidates(rounding, width), weight_error) for width in bits]


def fixed_point(rounding: Rounding, bits: Sequence[int]) -> list[Rounded]:
    """Round to nearest on the power-of-two scale of the least output error: shifts instead of multiplications."""

    def output_error(rounded: Rounded) -> Tensor:
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
    """1 bit: the sign, times the mean magnitude of the row (XNOR-Net, Rastegari et al. 2016, eq. 6)."""
    assert set(bits) <= {1}, "MenuSettings admits no other integer width"
    return nearest(rounding, bits)


def gptq(rounding: Rounding, bits: Sequence[int]) -> list[Rounded]:
    """Round column by column with error feedback to the columns still to come (GPTQ, Frantar et al. 2023, eq. 2-3).

    Beyond the paper: the scale of every row is the one that leaves the least output error after the sweep, and the bias
    is the last column: it takes feedback and is never rounded. (Feeding errors back between rows as well, through G as
    in YAQA, Tseng et al. 2025, was measured on ResNet-20 and did not lower the divergence.)
    """
    sweep = _Sweep.of(rounding)
    return [_gptq_width(rounding, sweep, width) for width in bits]


def _gptq_width(rounding: Rounding, sweep: _Sweep, bits: int) -> Rounded:
    """All candidate scales in one sweep, as further rows; then the best scale of every row."""
    groups, rows = rounding.weight.shape[:2]
    stride = 3 if rounding.weight.numel() > _LARGE else 1
    factors = _factors(bits)[::stride]
    count = len(factors)
    scale = min_max_scale(rounding, bits)[:, None] * factors[:, None]  # (g, f, r)
    weight = rounding.weight.repeat(1, count, 1)
    mask = None if rounding.mask is None else rounding.mask.repeat(1, count, 1)
    codes, bias, loss = sweep.run(weight, scale.flatten(1), bits, mask)
    best = loss.view(groups, count, rows).argmin(1, keepdim=True)  # (g, 1, r)
    codes = codes.view(groups, count, rows, -1)
    chosen = codes.gather(1, best[..., None].expand(-1, -1, -1, codes.shape[-1]))[:, 0]
    bias = bias.view(groups, count, rows).gather(1, best)[:, 0]
    return Rounded(chosen.to(torch.int8), scale.gather(1, best)[:, 0], bias)


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


def min_max_scale(rounding: Rounding, bits: int) -> Tensor:
    """(g, r) smallest scale at which no weight is clipped; for 1 bit the mean magnitude of the weights that stay."""
    weight = rounding.weight[..., :-1]
    if bits == 1:
        kept = torch.ones_like(weight) if rounding.mask is None else rounding.mask.to(weight)
        return ((weight.abs() * kept).sum(-1) / kept.sum(-1).clamp(min=1)).clamp(min=1e-12)
    low, high = code_range(bits)
    return torch.maximum(weight.amax(-1) / high, weight.amin(-1) / low).clamp(min=1e-12)


def _round_codes(value: Tensor, bits: int) -> Tensor:
    if bits == 1:
        return torch.where(value < 0, -1.0, 1.0).to(value.dtype)
    return value.round().clamp_(*code_range(bits))


def _round_plainly(rounding: Rounding, bits: int, scale: Tensor) -> Rounded:
    codes = _round_codes(rounding.weight[..., :-1] / scale[..., None], bits)
    if rounding.mask is not None:
        codes = codes * rounding.mask
    return Rounded(codes.to(torch.int8), scale, rounding.weight[..., -1])


def _factors(bits: int) -> Tensor:
    """Fractions of the min-max scale to try."""
    if bits == 1:
        return torch.linspace(0.5, 1.6, 12, dtype=torch.float64)
    lowest = {2: 0.30, 3: 0.40, 4: 0.55, 5: 0.70}.get(bits, 0.85)
    return torch.linspace(lowest, 1.0, {2: 16, 3: 14, 4: 10}.get(bits, 5), dtype=torch.float64)


def _plain_candidates(rounding: Rounding, bits: int) -> list[Rounded]:
    base = min_max_scale(rounding, bits)
    return [_round_plainly(rounding, bits, base * factor) for factor in _factors(bits)]


def _best_per_row(candidates: Sequence[Rounded], error: Callable[[Rounded], Tensor]) -> Rounded:
    best = torch.stack([error(candidate) for candidate in candidates]).argmin(0)  # (g, r)
    codes = torch.stack([candidate.codes for candidate in candidates])
    scale = torch.stack([candidate.scale for candidate in candidates])
    index = best[None, ..., None].expand(1, *codes.shape[1:])
    return Rounded(codes.gather(0, index)[0], scale.gather(0, best[None])[0], candidates[0].bias)


@dataclass(frozen=True)
class _Sweep:
    """The factor of H⁻¹ that error feedback runs on, columns with the largest second moments first, the bias last."""

    factor: Tensor  # (g, d + 1, d + 1) upper triangular, float32
    order: Tensor  # (d + 1,)

    @classmethod
    def of(cls, rounding: Rounding) -> _Sweep:
        diagonal = rounding.second_moment.diagonal(dim1=-2, dim2=-1).sum(0)
        order = diagonal[:-1].argsort(descending=True, stable=True)
        order = torch.cat([order, torch.tensor([len(diagonal) - 1])])
        ordered = inverse(rounding.second_moment[:, order][:, :, order])
        return cls(torch.linalg.cholesky(ordered, upper=True).float(), order)

    def run(self, weight: Tensor, scale: Tensor, bits: int, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Round (g, R, d + 1) on scale (g, R).

        Returns:
            codes (g, R, d) float32, bias (g, R) float64, and the output error (g, R) that each row is left with.
        """
        columns = weight.shape[-1] - 1
        work = weight[..., self.order].float().contiguous()
        step = scale.float()
        codes = torch.empty_like(work[..., :-1])
        kept = None if mask is None else mask[..., self.order[:-1]]
        loss = torch.zeros_like(step)
        for start in range(0, columns, _BLOCK):
            stop = min(start + _BLOCK, columns)
            errors = torch.empty_like(work[..., start:stop])
            for j in range(start, stop):
                code = _round_codes(work[..., j] / step, bits)
                if kept is not None:
                    code = code * kept[..., j]
                error = (work[..., j] - code * step) / self.factor[:, None, j, j]
                work[..., j + 1 : stop] -= error[..., None] * self.factor[:, None, j, j + 1 : stop]
                codes[..., j], errors[..., j - start] = code, error
            work[..., stop:] -= errors @ self.factor[:, start:stop, stop:]
            loss += errors.square().sum(-1)
        unordered = torch.empty_like(codes)
        unordered[..., self.order[:-1]] = codes
        return unordered, work[..., -1].double(), loss
