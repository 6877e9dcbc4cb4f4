"""Coordinate descent: the codes and scales of a rounded weight, made better one at a time.

A sweep over the columns rounds each of them once and never looks back. What it leaves of a row w is the output error

    δ C δᵀ,    δ = w - s q,    C = E[x xᵀ] - E[x] E[x]ᵀ

with codes q and scale s. C is the centred moment, since the bias makes up for the mean. Given everything else, error is
least with

    scale     s ← (w C qᵀ) / (q C qᵀ)
    code j    q_j ← the nearest code to q_j + (δ C)_j / (s C_jj)

The steps for codes are those of QuantEase (Behdin et al. 2023); here scales move as well. Neither ever makes the error
larger.

Shapes: g groups of a convolution (1 for other layers), r rows (output channels) in a group, d weight columns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from autocompress.menus.cuda_graphs import graphed
from autocompress.menus.rounding import round_codes

_ROUNDS = 3  # over all columns; a first one brings 70 %, three 93 % of what eight bring
_BLOCK = 64  # columns that are rounded before their changes reach all others
_LEAST = 1e-20  # below what any error or moment of a layer that is used comes to


def descended(
    weight: Tensor, moment: Tensor, codes: Tensor, scale: Tensor, bits: int, kept: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Codes and scales with less output error, or the given ones in rows where none were found.

    Args:
        weight: (g, r, d) float32 weights w.
        moment: (g, d, d) float32 C, positive definite.
        codes: (g, r, d) float32 codes q.
        scale: (g, r) float32 scales s, above 0.
        bits: bit-width of the codes.
        kept: (g, r, d) bool, False where a weight is pruned, so that its code is 0. Default: none is.

    Returns:
        Codes (g, r, d) and scales (g, r).
    """
    product = weight @ moment  # w C
    slope = product - scale[..., None] * (codes @ moment)  # δ C
    current, step, before = codes.clone(), scale, _error(weight, codes, scale, slope)
    for _ in range(_ROUNDS):
        moved = (product - slope) / step[..., None]  # q C
        step = _least_squares(product, moved, current, step)
        slope = product - step[..., None] * moved
        for start in range(0, weight.shape[2], _BLOCK):
            _descend_(current, slope, moment, step, bits, kept, slice(start, start + _BLOCK))
    better = _error(weight, current, step, slope) < before  # (g, r)
    return torch.where(better[..., None], current, codes), torch.where(better, step, scale)


def _error(weight: Tensor, codes: Tensor, scale: Tensor, slope: Tensor) -> Tensor:
    """(g, r) δ C δᵀ of every row, δ C being known."""
    return ((weight - scale[..., None] * codes) * slope).sum(-1)


def _least_squares(product: Tensor, moved: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """(g, r) scales of least error for the codes; a row of zeros, or one that turned around, keeps its scale."""
    found = (product * codes).sum(-1) / (moved * codes).sum(-1).clamp(min=_LEAST)
    return torch.where(found > 0, found, scale)


def _descend_(
    codes: Tensor, slope: Tensor, moment: Tensor, scale: Tensor, bits: int, kept: Tensor | None, block: slice
) -> None:
    """Round some columns anew, one after the other; `codes` and `slope` change."""
    # (block, g, r) copies, in which a column lies in one piece
    own, slope_of_own = (
        each[..., block].movedim(-1, 0).clone(memory_format=torch.contiguous_format) for each in (codes, slope)
    )
    moment_of_own = moment[:, block, block].movedim(0, -1)[..., None]  # (block, block, g, 1)
    kept_of_own = None if kept is None else kept[..., block].movedim(-1, 0)
    function = _to(bits)
    round_block = graphed(function) if codes.is_cuda and len(own) == _BLOCK else function
    rounded = round_block(own, slope_of_own, moment_of_own, scale, kept_of_own).movedim(0, -1)
    slope -= ((rounded - codes[..., block]) * scale[..., None]) @ moment[:, block]
    codes[..., block] = rounded


@cache
def _to(bits: int) -> Callable[..., Tensor]:
    """`_round_block` to this bit-width; always the same function, for which CUDA keeps a graph."""
    return partial(_round_block, bits=bits)


def _round_block(
    codes: Tensor, slope: Tensor, moment: Tensor, scale: Tensor, kept: Tensor | None, *, bits: int
) -> Tensor:
    """Codes (b, g, r) of a block of b columns.

    Args:
        codes: (b, g, r) codes; they are changed.
        slope: (b, g, r) δ C of the block; it is changed.
        moment: (b, b, g, 1) the columns' part of C.
        scale: (g, r) scale of every row.
        kept: (b, g, r) False where a weight is pruned; None: none is.
        bits: bit-width of the codes.
    """
    own = moment.diagonal(dim1=0, dim2=1).movedim(-1, 0)  # (b, g, 1) C_jj
    steps = 1 / (scale * own.clamp(min=_LEAST))  # (b, g, r)
    for j, (code, slope_of_it, step, column) in enumerate(zip(codes, slope, steps, moment, strict=True)):
        best = round_codes(torch.addcmul(code, slope_of_it, step), bits)
        if kept is not None:
            best *= kept[j]
        slope.addcmul_(column, (best - code).mul_(scale), value=-1)
        code.copy_(best)
    return codes
