"""Variants: the ready-made weights of one layer, for one set of kept columns and every bit-width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocompress.menus.algebra import damped, expected_loss, inverse, refit
from autocompress.menus.calibration import Statistics
from autocompress.menus.criteria import CRITERIA, ElementContext, block_mask, element_mask
from autocompress.menus.quantizers import QUANTIZERS, Rounding
from autocompress.menus.settings import MenuSettings
from autocompress.network.structure import Layer
from autocompress_envs.problem import n_of_m, removed_weights


@dataclass(frozen=True)
class Variant:
    """A layer's weights for one label; all rows, kept columns only.

    Attributes:
        columns: (k,) int64, kept columns of the flattened weight; none where a branch is removed.
        values: (rows, k) int8 codes where `scale` is given, else float32 (16 bits: exactly representable in float16).
        scale: (rows,) float32 > 0, or None for floating-point labels.
        bias: (rows,) float32.
        error: the label's layer error in nats.
    """

    columns: Tensor
    values: Tensor
    scale: Tensor | None
    bias: Tensor
    error: float

    def weight(self) -> Tensor:
        """(rows, k) float32."""
        return self.values.float() if self.scale is None else self.values * self.scale[:, None]


@dataclass(frozen=True)
class LayerSource:
    """What variants of one layer are made from.

    Attributes:
        layer: its structure.
        weight: (rows, d + 1) float64, the bias (0 without one) last.
        second_moment: H (g, d + 1, d + 1) float64, as calibrated.
        gradient_moment: G (rows, rows) float64, as calibrated.
    """

    layer: Layer
    weight: Tensor
    second_moment: Tensor
    gradient_moment: Tensor

    @classmethod
    def of(cls, layer: Layer, module: nn.Module, statistics: Statistics) -> LayerSource:
        """Of a module whose norm has been folded in."""
        weight = module.get_parameter("weight").detach().double().cpu().flatten(1)
        bias = getattr(module, "bias", None)
        column = weight.new_zeros(len(weight)) if bias is None else bias.detach().double().cpu()
        moment = statistics.second_moment
        if bias is None:
            moment = _without_bias(moment)
        return cls(layer, torch.cat([weight, column[:, None]], 1), moment, statistics.gradient_moment)


def channel_variants(
    source: LayerSource, columns: Tensor, bits: Sequence[int], settings: MenuSettings
) -> list[Variant]:
    """Variants with only the (k,) `columns` kept, one for each of `bits`.

    Dropping columns of a convolution in groups is not supported: such layers keep their inputs.
    """
    bias_column = torch.tensor([source.layer.fan_in])
    kept = torch.cat([columns, bias_column])
    moment = damped(source.second_moment, settings.damping)
    weight = source.weight
    if len(columns) < source.layer.fan_in:
        assert source.layer.groups == 1, "columns of grouped convolutions are never pruned"
        weight = refit(weight, moment[0], kept) if settings.refit else weight[:, kept]
    return _round_all(source, weight, kept, moment[:, kept][:, :, kept], None, bits, settings)


def sparse_variants(source: LayerSource, sparsity: float, bits: Sequence[int], settings: MenuSettings) -> list[Variant]:
    """Variants with single weights removed (granularity `element` or `n:m`), one for each of `bits`."""
    kept = torch.arange(source.layer.fan_in + 1)
    moment = damped(source.second_moment, settings.damping)
    mask = sparsity_mask(source, moment, sparsity, settings) if sparsity > 0 else None
    weight = source.weight
    if mask is not None:
        weight = _masked_refit(source, moment, mask) if settings.refit else weight.clone()
        weight[:, :-1] *= mask
    return _round_all(source, weight, kept, moment, mask, bits, settings)


def sparsity_mask(source: LayerSource, moment: Tensor, sparsity: float, settings: MenuSettings) -> Tensor:
    """(rows, d) bool, True where a weight stays."""
    rows = len(source.weight) // source.layer.groups
    inverse_diagonal = inverse(moment).diagonal(dim1=-2, dim2=-1)[:, :-1]
    context = ElementContext(
        source.weight[:, :-1],
        inverse_diagonal.repeat_interleave(rows, 0),
        moment.diagonal(dim1=-2, dim2=-1)[:, :-1].repeat_interleave(rows, 0),
        source.gradient_moment.diagonal(),
    )
    generator = torch.Generator().manual_seed(settings.seed)
    criterion = CRITERIA[settings.criterion].elements
    assert criterion is not None, "checked by the settings"
    score = criterion(context, generator)
    if settings.granularity == "element":
        return element_mask(score, int(removed_weights(score.numel(), sparsity)))  # type: ignore[arg-type]
    return block_mask(score, *n_of_m(settings.granularity))


def _masked_refit(source: LayerSource, moment: Tensor, mask: Tensor) -> Tensor:
    """Least squares on every row's own support: rows with few columns at once, so that memory stays bounded.

    Solves min (w - w') H (w - w')ᵀ with w' = 0 off the support: on the support S, w'_S H_SS = (w H)_S. Written for all
    rows at once by replacing the equations off the support with w' = 0.
    """
    rows = len(source.weight) // source.layer.groups
    right = torch.einsum("grd,gde->gre", source.weight.view(-1, rows, source.weight.shape[1]), moment).flatten(0, 1)
    support = torch.cat([mask, torch.ones(len(mask), 1, dtype=torch.bool)], 1)
    result = torch.empty_like(source.weight)
    for row in range(len(result)):
        index = support[row].nonzero()[:, 0]
        block = moment[row // rows][index][:, index]
        factor = torch.linalg.cholesky(block)
        result[row] = 0
        result[row, index] = torch.cholesky_solve(right[row, index][:, None], factor)[:, 0]
    return result


def _round_all(
    source: LayerSource,
    weight: Tensor,
    kept: Tensor,
    moment: Tensor,
    mask: Tensor | None,
    bits: Sequence[int],
    settings: MenuSettings,
) -> list[Variant]:
    if len(kept) == 1:
        return [_constant(source, weight, kept, width) for width in bits]
    groups = source.layer.groups
    integer = [width for width in bits if width < 16]
    by_bits: dict[int, Variant] = {}
    if integer:
        shape = (groups, len(weight) // groups, -1)
        rounding = Rounding(weight.view(shape), moment, None if mask is None else mask.view(shape))
        for width, rounded in zip(integer, QUANTIZERS[settings.quantizer](rounding, integer), strict=True):
            codes, scale, bias = rounded.codes.flatten(0, 1), rounded.scale.flatten().float(), rounded.bias.flatten()
            by_bits[width] = _variant(source, kept, codes, scale, bias)
    for width in set(bits) - set(integer):
        values = weight[:, :-1].float()
        by_bits[width] = _variant(source, kept, values.half().float() if width == 16 else values, None, weight[:, -1])
    return [by_bits[width] for width in bits]


def _constant(source: LayerSource, weight: Tensor, kept: Tensor, bits: int) -> Variant:
    """Of a layer that has no columns left, only its bias."""
    nothing = weight.new_zeros(len(weight), 0)
    if bits < 16:
        return _variant(source, kept, nothing.to(torch.int8), torch.ones(len(weight)), weight[:, -1])
    return _variant(source, kept, nothing.float(), None, weight[:, -1])


def _variant(source: LayerSource, kept: Tensor, values: Tensor, scale: Tensor | None, bias: Tensor) -> Variant:
    variant = Variant(kept[:-1], values, scale, bias.float(), 0.0)
    change = -source.weight
    change[:, kept[:-1]] += variant.weight()
    change[:, -1] += bias
    error = expected_loss(change, source.second_moment, source.gradient_moment)
    return Variant(variant.columns, values, scale, variant.bias, error)


def _without_bias(moment: Tensor) -> Tensor:
    """H of a layer without bias: nothing is fed into the last column, so it stays 0."""
    moment = moment.clone()
    diagonal = moment[:, -1, -1].clone()
    moment[:, -1, :] = 0
    moment[:, :, -1] = 0
    moment[:, -1, -1] = diagonal
    return moment
