"""Low ranks: two thin layers in the place of one, by the weighted singular value decomposition, both rounded.

A linear layer or 1x1 convolution y = W x + b becomes y = A (B x) + b, with B (r, k) and A (rows, r): r (k + rows)
weights instead of k · rows. Of all A, B and b, those of least ½ tr(G ΔW H ΔWᵀ) are wanted, H and G as in `algebra`.

The bias takes up what the change of the weights does on average, so the inputs' covariance counts, C = H_xx - h hᵀ / c
with h and c the last column of H. With roots C = L Lᵀ and G = R Rᵀ the loss is ½ ‖Rᵀ (W - A B) L‖². By Eckart and Young
(1936) its minimum is reached by the first r singular triples of Rᵀ W L = U Σ Vᵀ,

    A = R⁻ᵀ U_r Σ_r^½        B = Σ_r^½ V_rᵀ L⁻¹

and is half of the sum of the squares of all others. (SVD-LLM, Wang et al. 2024, without G.) The factors share the
singular values evenly, so that neither has channels of another magnitude than the other.

Rounding goes the same way as the data: B with the moment C of its own inputs, then A and b are fitted anew, by least
squares, to what the rounded B hands on, and are rounded with the second moment of that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.menus.algebra import cholesky_factor, covariance, damped, refit
from autocompress.menus.quantizers import QUANTIZERS
from autocompress.menus.rounding import Rounding
from autocompress.menus.settings import MenuSettings
from autocompress.menus.variants import FirstFactor, LayerSource, Variant, finished_variant
from autocompress.network.structure import LINEAR, Layer

STEP = 8  # ranks from here on are multiples of it, as kernels take channels by eights
_GRADIENT_DAMPING = 0.1  # added to G's diagonal, as a share of its mean: samples say little of single gradients
_LEAST_DAMPING = 1e-9  # of fits to what a first factor hands on, some of whose channels may be alike, or zero


@dataclass(frozen=True)
class Format:
    """How a layer's weights are stored.

    Attributes:
        rank: rank of the two factors; 0: the layer stays one.
        bits: bit-width of all weights.
    """

    rank: int
    bits: int


def can_be_cut(layer: Layer) -> bool:
    """Whether two thin layers may stand in for a layer: a linear one, or a convolution of single positions.

    Args:
        layer: structure of the layer.
    """
    is_single = layer.kind == "conv" and layer.groups == 1 and math.prod(layer.weight_shape[2:]) == 1
    return layer.kind == LINEAR or is_single


def offered_ranks(members: Iterable[Layer], shares: Sequence[float]) -> tuple[int, ...]:
    """Ranks on offer, ascending, each with fewer multiply-accumulates and weights than the layer.

    A layer of 384 columns and 1,536 rows has as many at rank 307.2; half of it are 153.6, rounded down 152.

    >>> big, small = (Layer("fc", LINEAR, shape, 1, 1, (), (), None, True, (), None) for shape in [(1536, 384), (6, 4)])
    >>> offered_ranks([big], (0.25, 0.5)), offered_ranks([small], (0.25, 0.5)), offered_ranks([big, small], (0.5,))
    ((72, 152), (1,), (1,))

    Args:
        members: a layer, or all that have one label; each has to become smaller.
        shares: at most so much of the layer's multiply-accumulates is left at each rank.
    """
    layers = list(members)
    if not all(can_be_cut(layer) for layer in layers):
        return ()
    even = [layer.rows * layer.fan_in / (layer.rows + layer.fan_in) for layer in layers]  # as many weights as it has
    ranks = {int(min(share * rank for rank in even)) for share in shares}
    return tuple(sorted({rank - rank % STEP if rank >= STEP else rank for rank in ranks if rank > 0}))


def low_rank_variants(
    source: LayerSource, columns: Tensor, formats: Sequence[Format], settings: MenuSettings
) -> list[Variant]:
    """The layer's weights as two factors, with only some columns kept, for every rank and bit-width.

    Columns that go are made up for first: the loss of what is left is then that of the factors against the re-fitted
    weight, on the moment of the kept columns alone.

    Args:
        source: weight and statistics of the layer, whose whole H is known.
        columns: (k,) int64 indices of the columns that stay, ascending; k at least 1.
        formats: ranks, each at least 1, and bits.
        settings: quantizer and damping.

    Returns:
        One variant for each of `formats`.
    """
    kept = torch.cat([columns, torch.tensor([source.layer.fan_in])]).to(source.weight.device)  # (k + 1,)
    whole = source.damped_moment(settings.damping)[0]
    weight = source.weight  # (rows, k + 1), the bias last
    if len(columns) < source.layer.fan_in:
        weight = refit(weight, whole, kept) if settings.refit else weight[:, kept]
    moment = whole[kept][:, kept]
    highest = max(each.rank for each in formats)
    first = first_factor(weight, moment, source.gradient_moment.double(), highest)
    rounded = _rounded_first(first, moment, sorted({each.bits for each in formats}), settings)
    found = []
    for each in formats:
        factor = rounded[each.bits]
        factor = FirstFactor(factor.values[: each.rank], None if factor.scale is None else factor.scale[: each.rank])
        found.append(_second(source, kept, weight, moment, factor, each.bits, settings))
    return found


def first_factor(weight: Tensor, moment: Tensor, gradient_moment: Tensor, rank: int) -> Tensor:
    """B (rank, k): its first r rows are those of the best factors of rank r; zeros from the largest rank on.

    Args:
        weight: (rows, k + 1) W, the bias last.
        moment: (k + 1, k + 1) H, positive definite.
        gradient_moment: (rows, rows) G, not damped.
        rank: number of rows, at least 1.
    """
    left, right = cholesky_factor(_damped_gradients(gradient_moment)), cholesky_factor(covariance(moment))
    _, singular, vectors = torch.linalg.svd(left.mT @ weight[:, :-1] @ right, full_matrices=False)
    scaled = singular.sqrt()[:, None] * vectors  # Σ^½ Vᵀ
    factor = torch.linalg.solve_triangular(right, scaled, upper=False, left=False)  # … L⁻¹
    missing = max(0, rank - len(factor))
    return torch.cat([factor[:rank], factor.new_zeros(missing, factor.shape[1])])


def _damped_gradients(moment: Tensor) -> Tensor:
    """G + λ I, which is positive definite also where G is not."""
    mean = moment.diagonal().mean().clamp(min=1e-30)
    return moment + _GRADIENT_DAMPING * mean * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)


def _rounded_first(
    factor: Tensor, moment: Tensor, bits: Sequence[int], settings: MenuSettings
) -> dict[int, FirstFactor]:
    """The first factor (r, k) at every bit-width. Rows are rounded alone, so fewer of them are those of lower ranks."""
    found = {}
    integer = [width for width in bits if width < 16]
    if integer:
        constant = factor.new_zeros(len(factor), 1)  # it has no bias: that of the second factor makes up for its mean
        own = torch.block_diag(covariance(moment), moment[-1:, -1:])[None]
        rounding = Rounding(torch.cat([factor, constant], 1)[None], own)
        for width, rounded in zip(integer, QUANTIZERS[settings.quantizer](rounding, integer), strict=True):
            found[width] = FirstFactor(rounded.codes[0], rounded.scale[0].float())
    for width in set(bits) - set(integer):
        values = factor.float()
        found[width] = FirstFactor(values.half().float() if width == 16 else values, None)
    return found


def _second(
    source: LayerSource,
    kept: Tensor,
    weight: Tensor,
    moment: Tensor,
    first: FirstFactor,
    bits: int,
    settings: MenuSettings,
) -> Variant:
    """The second factor and the bias, fitted to what a first factor hands on, and rounded.

    Args:
        source: weight and statistics of the layer, against which the expected loss is taken.
        kept: (k + 1,) indices of the columns, the bias column last.
        weight: (rows, k + 1) W, pruned and re-fitted.
        moment: (k + 1, k + 1) H of the kept columns, damped.
        first: first factor, rounded.
        bits: bit-width of the weights.
        settings: quantizer and damping.
    """
    hands_on = torch.block_diag(first.weight().double(), weight.new_ones(1, 1))  # (r + 1, k + 1), the constant too
    handed = hands_on @ moment @ hands_on.mT  # (r + 1, r + 1) their second moment
    solvable = damped(handed[None], _LEAST_DAMPING)[0]
    second = torch.cholesky_solve(hands_on @ moment @ weight.mT, cholesky_factor(solvable)).mT  # (rows, r + 1)
    if bits >= 16:
        values = second[:, :-1].float()
        return finished_variant(
            source, kept, values.half().float() if bits == 16 else values, None, second[:, -1], first
        )
    rounding = Rounding(second[None], damped(handed[None], settings.damping))
    rounded = QUANTIZERS[settings.quantizer](rounding, [bits])[0]
    return finished_variant(source, kept, rounded.codes[0], rounded.scale[0].float(), rounded.bias[0], first)
