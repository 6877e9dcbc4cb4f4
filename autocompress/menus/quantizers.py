"""Quantizers: integer codes q and one scale s for every output channel; a weight becomes s q.

With b bits the codes are -2^(b-1) … 2^(b-1) - 1; with 1 bit they are -1 and 1. The zero point is always 0:
weights lie about 0, and runtimes are fast on symmetric ones. Biases stay in floating point.

Shapes: g groups of a convolution (1 for other layers), r rows (output channels) in a group, d weight columns,
f scales that are tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from autocompress.memory import bound_on
from autocompress.menus.algebra import inverse
from autocompress.menus.cuda_graphs import graphed
from autocompress.menus.descent import Grid, descended
from autocompress.registry import Registry

_LARGE = 1_000_000  # weights; larger layers try every third scale, as a sweep takes weights times scales
_HELD = {"cpu": 4_000_000, "cuda": 64_000_000}  # weights that are swept side by side, on different scales
_BLOCK = 64  # columns that are rounded before their errors reach the columns behind them


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


def code_range(bits: int) -> tuple[int, int]:
    """Smallest and largest code of a bit-width, 1 to 8.

    >>> code_range(2), code_range(1)
    ((-2, 1), (-1, 1))
    """
    return (-1, 1) if bits == 1 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


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
    at_once = max(1, _HELD["cpu"] // rounding.weight.shape[-1])
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


def gptq(rounding: Rounding, bits: Sequence[int]) -> list[Rounded]:
    """Round column by column; columns still to come make up for the errors of those already rounded.

    Rounding column j of a row w to s q leaves the error w_j - s q. Where the columns behind j are free, the
    least output error is reached by

        w_k ← w_k - (w_j - s q) (H⁻¹)_jk / (H⁻¹)_jj     for k > j

    with the H⁻¹ of the columns from j on (GPTQ, Frantar et al. 2023, eq. 2 and 3). All those inverses stand
    in the rows of one factor U of the whole H⁻¹ = Uᵀ U: (H⁻¹)_jk / (H⁻¹)_jj = U_jk / U_jj (the paper's step
    3).

    Three things go beyond the paper. The scale of every row is the one that leaves the least output error after
    the sweep. The bias is the last column: it makes up for errors and is never rounded. And codes and scales are
    then made better one at a time (`descent`). (Feeding errors back between rows as well, through G as in YAQA,
    Tseng et al. 2025, was measured on ResNet-20 and did not lower the divergence.)
    """
    best = _swept(rounding, bits)
    at_once = _at_once(rounding)
    found: list[Rounded] = []
    for first in range(0, len(bits), at_once):
        widths = bits[first : first + at_once]
        found += _descended(rounding, widths, [best[width] for width in widths])
    return found


def _at_once(rounding: Rounding) -> int:
    """Number of copies of a weight that are rounded side by side."""
    return max(1, bound_on(rounding.weight.device.type, _HELD) // rounding.weight.numel())


def _swept(rounding: Rounding, bits: Sequence[int]) -> dict[int, _Swept]:
    """What a sweep comes to at every bit-width, every row on its best scale."""
    sweep, large = _Sweep.of(rounding), rounding.weight.numel() > _LARGE
    widest = {width: min_max_scale(rounding, width) for width in bits}
    candidates = [(width, factor) for width in bits for factor in _factors(width)[:: 3 if large else 1].tolist()]
    at_once = _at_once(rounding)
    best: dict[int, _Swept] = {}
    for first in range(0, len(candidates), at_once):
        part = candidates[first : first + at_once]
        scales = torch.stack([factor * widest[width] for width, factor in part], 1)  # (g, f, r)
        for (width, _), swept in zip(part, sweep.run(rounding, scales, [width for width, _ in part]), strict=True):
            best[width] = best[width].with_better(swept) if width in best else swept
    return best


def _descended(rounding: Rounding, bits: Sequence[int], swept: Sequence[_Swept]) -> list[Rounded]:
    """Swept weights of several bit-widths, made better by coordinate descent side by side."""
    count, rows = len(bits), rounding.weight.shape[1]
    order = _by_moment(rounding)
    mean, ones = rounding.second_moment[:, :-1, -1:], rounding.second_moment[:, -1:, -1:]
    centred = (rounding.second_moment[:, :-1, :-1] - mean @ mean.mT / ones)[:, order][:, :, order].float()
    weight = rounding.weight[..., :-1]
    mask = None if rounding.mask is None else rounding.mask[..., order].repeat(1, count, 1)
    codes, scale = descended(
        weight[..., order].float().repeat(1, count, 1),
        centred,
        torch.cat([each.codes[..., order] for each in swept], 1),
        torch.cat([each.scale for each in swept], 1).float(),
        Grid(*_ends(bits, rows, weight.device), _signs(bits, rows, weight.device), mask),
    )
    unordered = torch.empty_like(codes)
    unordered[..., order] = codes
    found = []
    for own_codes, own_scale in zip(unordered.split(rows, 1), scale.double().split(rows, 1), strict=True):
        missed = weight - own_codes * own_scale[..., None]  # (g, r, d), whose mean the bias takes
        bias = rounding.weight[..., -1] + (missed @ mean / ones)[..., 0]
        found.append(Rounded(own_codes.to(torch.int8), own_scale, bias))
    return found


def _by_moment(rounding: Rounding) -> Tensor:
    """(d,) columns of the weight, those of the largest second moments first."""
    diagonal = rounding.second_moment.diagonal(dim1=-2, dim2=-1).sum(0)  # (d + 1,)
    return diagonal[:-1].argsort(descending=True, stable=True)


def _ends(bits: Sequence[int], rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(f · r,) smallest and largest code of every row, of f bit-widths one after the other."""
    low, high = zip(*map(code_range, bits), strict=True)
    smallest, largest = (torch.tensor(ends, dtype=torch.float32, device=device) for ends in (low, high))
    return smallest.repeat_interleave(rows), largest.repeat_interleave(rows)


def _signs(bits: Sequence[int], rows: int, device: torch.device) -> Tensor | None:
    """(f · r,) whether a row's codes are -1 and 1, of f bit-widths one after the other; None: nowhere."""
    if 1 not in bits:
        return None
    return torch.tensor([width == 1 for width in bits], device=device).repeat_interleave(rows)


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
    """Smallest scale (g, r) that clips no weight; with 1 bit, the mean magnitude of the weights that stay."""
    weight = rounding.weight[..., :-1]
    if bits == 1:
        kept = torch.ones_like(weight) if rounding.mask is None else rounding.mask.to(weight)
        return ((weight.abs() * kept).sum(-1) / kept.sum(-1).clamp(min=1)).clamp(min=1e-12)
    low, high = code_range(bits)
    return torch.maximum(weight.amax(-1) / high, weight.amin(-1) / low).clamp(min=1e-12)


def _round_codes(value: Tensor, bits: int) -> Tensor:
    """The codes nearest to weights that are divided by their scale; same shape and dtype."""
    if bits == 1:
        return torch.where(value < 0, -1.0, 1.0).to(value.dtype)
    return value.round().clamp_(*code_range(bits))


def _round_plainly(rounding: Rounding, bits: int, scale: Tensor) -> Rounded:
    """Every weight rounded to the nearest level on the given scale (g, r)."""
    codes = _round_codes(rounding.weight[..., :-1] / scale[..., None], bits)
    if rounding.mask is not None:
        codes = codes * rounding.mask
    return Rounded(codes.to(torch.int8), scale, rounding.weight[..., -1])


def _factors(bits: int) -> Tensor:
    """Fractions (f,) of the min-max scale that are tried; the fewer bits, the more is gained by clipping."""
    if bits == 1:
        return torch.linspace(0.5, 1.6, 12, dtype=torch.float64)
    lowest = {2: 0.30, 3: 0.40, 4: 0.55, 5: 0.70}.get(bits, 0.85)
    return torch.linspace(lowest, 1.0, {2: 16, 3: 14, 4: 10}.get(bits, 5), dtype=torch.float64)


def _plain_candidates(rounding: Rounding, bits: int) -> list[Rounded]:
    """The weight rounded to nearest on each of the scales that are tried."""
    base = min_max_scale(rounding, bits)
    return [_round_plainly(rounding, bits, base * factor) for factor in _factors(bits)]


def _best_per_row(candidates: Sequence[Rounded], error: Callable[[Rounded], Tensor]) -> Rounded:
    """Every row from the candidate whose error (g, r) is least there."""
    best = torch.stack([error(candidate) for candidate in candidates]).argmin(0)  # (g, r)
    codes = torch.stack([candidate.codes for candidate in candidates])  # (f, g, r, d)
    scale = torch.stack([candidate.scale for candidate in candidates])  # (f, g, r)
    index = best[None, ..., None].expand(1, *codes.shape[1:])  # (1, g, r, d)
    return Rounded(codes.gather(0, index)[0], scale.gather(0, best[None])[0], candidates[0].bias)


@dataclass(frozen=True)
class _Sweep:
    """The factor of H⁻¹ by which errors reach the columns still to come, and the order of the columns.

    Columns of the largest second moments come first: their errors weigh most, and early columns find the most
    others to make up for them.

    Attributes:
        factor: (g, d + 1, d + 1) float32, upper triangular U with Uᵀ U = H⁻¹ in that order.
        order: (d + 1,) column of the weight at each place of the order; the bias column is last.
    """

    factor: Tensor
    order: Tensor

    @classmethod
    def of(cls, rounding: Rounding) -> _Sweep:
        """The sweep over a weight's columns, for any bit-width and scale."""
        order = _by_moment(rounding)
        order = torch.cat([order, order.new_tensor([len(order)])])
        ordered = inverse(rounding.second_moment[:, order][:, :, order])  # (g, d + 1, d + 1)
        return cls(torch.linalg.cholesky(ordered, upper=True).float(), order)

    def run(self, rounding: Rounding, scales: Tensor, bits: Sequence[int]) -> list[_Swept]:
        """Round a weight on several scales side by side, in float32.

        Columns are rounded in blocks. Within a block an error reaches the rest of the block at once; the
        columns behind the block get all of its errors in one matrix product, which gives the same and is much
        faster.

        Args:
            rounding: weight, and mask of those that are pruned and have to stay 0.
            scales: (g, f, r) scale of every row, for each of f candidates.
            bits: bit-width of each candidate.

        Returns:
            What each candidate comes to.
        """
        _, count, rows = scales.shape
        columns = rounding.weight.shape[-1] - 1
        ordered = rounding.weight[..., self.order].float()  # (g, r, d + 1)
        work = ordered.repeat(1, count, 1)  # (g, f · r, d + 1)
        step = scales.flatten(1).float()
        low, high = _ends(bits, rows, step.device)
        is_sign = _signs(bits, rows, step.device)
        codes = torch.empty_like(work[..., :-1])  # (g, f · r, d)
        kept = None if rounding.mask is None else rounding.mask[..., self.order[:-1]].repeat(1, count, 1)
        loss = torch.zeros_like(step)
        for start in range(0, columns, _BLOCK):
            stop = min(start + _BLOCK, columns)
            block = work[..., start:stop].movedim(-1, 0).contiguous()  # (block, g, f · r): a column lies in one piece
            factor = self.factor[:, start:stop, start:stop].movedim(0, -1)[..., None]  # (block, block, g, 1)
            own = None if kept is None else kept[..., start:stop].movedim(-1, 0)
            round_block = graphed(_round_block) if block.is_cuda and stop - start == _BLOCK else _round_block
            rounded, errors = round_block(block, factor, step, low, high, is_sign, own)
            codes[..., start:stop] = rounded.movedim(0, -1)
            work[..., stop:] -= errors.movedim(0, -1) @ self.factor[:, start:stop, stop:]
            loss += errors.square().sum(0)
        unordered = torch.empty_like(codes)
        unordered[..., self.order[:-1]] = codes
        parts = (unordered, scales.flatten(1), work[..., -1].double(), loss)
        of_candidates = (part.unflatten(1, (count, rows)).unbind(1) for part in parts)
        return [_Swept(*each) for each in zip(*of_candidates, strict=True)]


def _round_block(
    block: Tensor, factor: Tensor, step: Tensor, low: Tensor, high: Tensor, is_sign: Tensor | None, kept: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Codes and errors (b, g, R) of a block of b columns, each error passed on to the columns behind it.

    Args:
        block: (b, g, R) weights; they are changed.
        factor: (b, b, g, 1) the columns' part of U.
        step: (g, R) scale of every row.
        low: (R,) smallest code of every row.
        high: (R,) largest code of every row.
        is_sign: (R,) whether the codes are -1 and 1; None: nowhere.
        kept: (b, g, R) False where a weight is pruned; None: none is.
    """
    codes, errors = torch.empty_like(block), torch.empty_like(block)
    for j in range(len(block)):
        value = block[j] / step  # (g, R)
        code = torch.minimum(torch.maximum(value.round(), low), high)
        if is_sign is not None:
            code = torch.where(is_sign, _round_codes(value, 1), code)
        if kept is not None:
            code = code * kept[j]
        codes[j], errors[j] = code, (block[j] - code * step) / factor[j, j]
        block[j + 1 :] -= factor[j, j + 1 :] * errors[j]
    return codes, errors


@dataclass(frozen=True)
class _Swept:
    """A weight after a sweep on one scale a row.

    Attributes:
        codes: (g, r, d) float32.
        scale: (g, r) float64.
        bias: (g, r) float64.
        loss: (g, r) the output error that each row is left with: the sum of ((w_j - s q_j) / U_jj)² over its columns.
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor
    loss: Tensor

    def with_better(self, other: _Swept) -> _Swept:
        """Every row from the one of less loss; of equals, from this one."""
        takes = other.loss < self.loss  # (g, r)

        def chosen(own: Tensor, others: Tensor) -> Tensor:
            return torch.where(takes[..., None] if own.ndim == 3 else takes, others, own)

        fields = ("codes", "scale", "bias", "loss")
        return _Swept(*(chosen(getattr(self, field), getattr(other, field)) for field in fields))
