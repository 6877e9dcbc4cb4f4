"""GPTQ: weights rounded column by column, where the columns still to come make up for the errors.

The way through: `_swept` rounds a weight on many scales (`_Sweep.run`) and keeps the best for every row and bit-width;
`_descended` makes its codes and scales better one at a time (`descent`). Shapes as in `rounding`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.memory import bound_on
from autocompress.menus.algebra import inverse
from autocompress.menus.cuda_graphs import graphed
from autocompress.menus.descent import descended
from autocompress.menus.rounding import Rounded, Rounding, code_range, min_max_scale, round_codes, scale_factors

_LARGE = 1_000_000  # weights; larger layers try every third scale, as a sweep takes weights times scales
HELD = {"cpu": 4_000_000, "cuda": 64_000_000}  # weights that are rounded side by side, on different scales
_BLOCK = 64  # columns that are rounded before their errors reach the columns behind them


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
    best, inputs = _swept(rounding, bits), _Inputs.of(rounding)
    return [_descended(rounding, inputs, width, best[width]) for width in bits]  # each as if it were asked alone


def _swept(rounding: Rounding, bits: Sequence[int]) -> dict[int, _Swept]:
    """What a sweep comes to at every bit-width, every row on its best scale."""
    sweep, large = _Sweep.of(rounding), rounding.weight.numel() > _LARGE
    widest = {width: min_max_scale(rounding, width) for width in bits}
    candidates = [(width, factor) for width in bits for factor in scale_factors(width)[:: 3 if large else 1].tolist()]
    at_once = max(1, bound_on(rounding.weight.device.type, HELD) // rounding.weight.numel())
    best: dict[int, _Swept] = {}
    for first in range(0, len(candidates), at_once):
        part = candidates[first : first + at_once]
        scales = torch.stack([factor * widest[width] for width, factor in part], 1)  # (g, f, r)
        for (width, _), swept in zip(part, sweep.run(rounding, scales, [width for width, _ in part]), strict=True):
            best[width] = best[width].with_better(swept) if width in best else swept
    return best


@dataclass(frozen=True)
class _Inputs:
    """The moments of a layer's inputs, in an order and about their means.

    Attributes:
        order: (d,) column of the weight at each place of the order.
        centred: (g, d, d) float32 E[x xᵀ] - E[x] E[x]ᵀ in that order.
        mean: (g, d, 1) float64 E[x], of the columns as they are.
    """

    order: Tensor
    centred: Tensor
    mean: Tensor

    @classmethod
    def of(cls, rounding: Rounding) -> _Inputs:
        """The moments of the inputs of a weight that is to be rounded."""
        moment, order = rounding.second_moment, _by_moment(rounding)
        mean = moment[:, :-1, -1:] / moment[:, -1:, -1:]
        ordered = mean[:, order]
        centred = moment[:, order][:, :, order] - (ordered @ ordered.mT) * moment[:, -1:, -1:]
        return cls(order, centred.float(), mean)


def _descended(rounding: Rounding, inputs: _Inputs, bits: int, swept: _Swept) -> Rounded:
    """A swept weight, made better by coordinate descent."""
    order, weight = inputs.order, rounding.weight[..., :-1]
    ordered, scale = descended(
        weight[..., order].float(),
        inputs.centred,
        swept.codes[..., order],
        swept.scale.float(),
        bits,
        None if rounding.mask is None else rounding.mask[..., order],
    )
    codes = torch.empty_like(ordered)
    codes[..., order] = ordered
    missed = weight - codes * scale.double()[..., None]  # (g, r, d), whose mean the bias takes
    bias = rounding.weight[..., -1] + (missed @ inputs.mean)[..., 0]
    return Rounded(codes.to(torch.int8), scale.double(), bias)


def _by_moment(rounding: Rounding) -> Tensor:
    """(d,) columns of the weight, those of the largest second moments first."""
    diagonal = rounding.second_moment.diagonal(dim1=-2, dim2=-1).sum(0)  # (d + 1,)
    return diagonal[:-1].argsort(descending=True, stable=True)


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
        low, high = (step.new_tensor(ends).repeat_interleave(rows) for ends in zip(*map(code_range, bits), strict=True))
        signs = step.new_tensor([width == 1 for width in bits]).repeat_interleave(rows).bool()
        is_sign = signs if 1 in bits else None
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
        parts = (unordered, scales.flatten(1), loss)
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
            code = torch.where(is_sign, round_codes(value, 1), code)
        if kept is not None:
            code = code * kept[j]
        codes[j], errors[j] = code, (block[j] - code * step) / factor[j, j]
        block[j + 1 :].addcmul_(factor[j, j + 1 :], errors[j], value=-1)
    return codes, errors


@dataclass(frozen=True)
class _Swept:
    """A weight after a sweep on one scale a row.

    Attributes:
        codes: (g, r, d) float32.
        scale: (g, r) float64.
        loss: (g, r) the output error that each row is left with: the sum of ((w_j - s q_j) / U_jj)² over its columns.
    """

    codes: Tensor
    scale: Tensor
    loss: Tensor

    def with_better(self, other: _Swept) -> _Swept:
        """Every row from the one of less loss; of equals, from this one."""
        takes = other.loss < self.loss  # (g, r)

        def chosen(own: Tensor, others: Tensor) -> Tensor:
            return torch.where(takes[..., None] if own.ndim == 3 else takes, others, own)

        fields = ("codes", "scale", "loss")
        return _Swept(*(chosen(getattr(self, field), getattr(other, field)) for field in fields))
