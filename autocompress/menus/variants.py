"""Variants: the ready-made weights of one layer, for one set of kept columns and every bit-width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from autocompress.menus.algebra import damped, expected_loss, inverse, refit
from autocompress.menus.calibration import shrunk
from autocompress.menus.criteria import ElementContext, block_mask, element_mask, element_scores
from autocompress.menus.lookups import lookup_loss
from autocompress.menus.quantizers import QUANTIZERS, by_diagonal
from autocompress.menus.rounding import Rounding
from autocompress.menus.settings import MenuSettings
from autocompress.menus.statistics import Statistics
from autocompress.network.structure import EMBEDDING, Layer
from autocompress_envs.problem import n_of_m, removed_weights


@dataclass(frozen=True)
class FirstFactor:
    """The first of the two thin layers that stand in for a layer: it reads the input, and has no bias.

    Attributes:
        values: (rank, k) int8 codes where `scale` is given, else float32; those of a 16-bit label are exactly
            representable in float16.
        scale: (rank,) float32 above 0, or None for the floating-point labels of 16 and 32 bits.
    """

    values: Tensor
    scale: Tensor | None

    def weight(self) -> Tensor:
        """The weight (rank, k) float32."""
        return self.values.float() if self.scale is None else self.values * self.scale[:, None]


@dataclass(frozen=True)
class Variant:
    """A layer's weights for one label: all of its rows, but the kept columns only.

    Attributes:
        columns: (k,) int64 indices of the kept columns of the flattened weight; k = 0 where a branch is
            removed.
        values: (rows, k) int8 codes where `scale` is given, else float32; those of a 16-bit label are exactly
            representable in float16. Of a label of low rank, those of the second factor, (rows, rank).
        scale: (rows,) float32 above 0, or None for the floating-point labels of 16 and 32 bits.
        bias: (rows,) float32.
        error: loss in nats, at least 0, that the moments expect which the weights were fitted to. It ranks fits of one
            layer; what a label costs is judged on other samples (`judging`).
        first: first factor of a label of low rank; None: the layer stays one.
    """

    columns: Tensor
    values: Tensor
    scale: Tensor | None
    bias: Tensor
    error: float
    first: FirstFactor | None = None

    def own_weight(self) -> Tensor:
        """The weight of `values`, (rows, k) float32, or (rows, rank) of the second factor."""
        return self.values.float() if self.scale is None else self.values * self.scale[:, None]

    def weight(self) -> Tensor:
        """The weight on the kept columns, (rows, k) float32; of two factors, their product."""
        return self.own_weight() if self.first is None else self.own_weight() @ self.first.weight()


@dataclass(frozen=True)
class LayerSource:
    """The numbers that variants of one layer are made from; d is the layer's fan-in, g its number of groups.

    Attributes:
        layer: structure of the layer.
        weight: (rows, d + 1) float64 W, flattened; the last column is the bias, 0 for a layer without one.
        second_moment: (g, d + 1, d + 1) float32 H, shrunk as calibration says, not damped; or (1, 1, d + 1), its
            diagonal.
        gradient_moment: (rows, rows) float32 G, as calibrated. Of an embedding, `second_moment` holds G of its columns,
            and this its look-ups (`lookups`).
        coherence: κ: by how much more the mean of a sample's errors counts than errors that differ (`coherence`).
            Default: 0.
    """

    layer: Layer
    weight: Tensor
    second_moment: Tensor
    gradient_moment: Tensor
    coherence: float = 0.0

    @classmethod
    def of(cls, layer: Layer, module: nn.Module, statistics: Statistics) -> LayerSource:
        """The source of a layer.

        Args:
            layer: structure of the layer.
            module: the layer itself, with its batch norm folded in.
            statistics: statistics of the layer from calibration.
        """
        weight = module.get_parameter("weight").detach().double().cpu().flatten(1)  # (rows, d)
        bias = getattr(module, "bias", None)
        column = weight.new_zeros(len(weight)) if bias is None else bias.detach().double().cpu()  # (rows,)
        moment = shrunk(statistics.second_moment, float(statistics.shrinkage))
        if bias is None and moment.shape[1] > 1:
            moment = _without_bias(moment)
        extended = torch.cat([weight, column[:, None]], 1)
        return cls(layer, extended, moment, statistics.gradient_moment, float(statistics.coherence))

    def to(self, device: str) -> LayerSource:
        """The same on a device."""
        moved = {name: getattr(self, name).to(device) for name in ("weight", "second_moment", "gradient_moment")}
        return replace(self, **moved)

    @property
    def is_diagonal(self) -> bool:
        """Whether only the diagonal of H is known: then removed inputs and rounding errors are made up for by none."""
        return self.second_moment.shape[1] == 1 < self.second_moment.shape[2]

    @cached_property
    def output_moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance (rows,) of the original's outputs; not where only the diagonal of H is known."""
        return self.moments_of(self.weight.float())

    def moments_of(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (rows,) of the outputs that weights (rows, d + 1) give, the bias last."""
        by_group = weight.view(len(self.second_moment), -1, weight.shape[1])
        product, count = by_group @ self.second_moment, self.second_moment[:, -1:, -1]
        mean, square = product[..., -1] / count, (product * by_group).sum(2) / count
        return mean.flatten(), (square - mean.square()).flatten()

    def damped_moment(self, damping: float) -> Tensor:
        """(g, d + 1, d + 1) float64 H, damped: fits are made in double precision, moments are not kept in it.

        Where only the diagonal is known, that.
        """
        if self.is_diagonal:
            return self.second_moment.double().clamp(min=damping * float(self.second_moment[..., :-1].mean()) + 1e-12)
        return damped(self.second_moment.double(), damping)

    def change(self, variant: Variant) -> Tensor:
        """(rows, d + 1) float32 dW of a variant; it includes the columns that are gone."""
        change = -self.weight.float()
        change[:, variant.columns] += variant.weight()
        change[:, -1] += variant.bias
        return change


def channel_variants(
    source: LayerSource, columns: Tensor, bits: Sequence[int], settings: MenuSettings
) -> list[Variant]:
    """The layer's weights with only some columns kept, for every bit-width: prune, re-fit, round.

    Re-fitting solves for the kept columns once; rounding then minimises ½ tr(G ΔW H ΔWᵀ) over the same H,
    restricted to the kept columns, as the removed inputs are no longer there.

    Args:
        source: weight and statistics of the layer. A convolution in groups keeps all columns.
        columns: (k,) int64 indices of the columns that stay, ascending.
        bits: bit-widths, each 1 to 8, 16 or 32.
        settings: quantizer, damping, and whether the kept weights are re-fitted.

    Returns:
        One variant for each of `bits`.
    """
    kept = torch.cat([columns, torch.tensor([source.layer.fan_in])]).to(source.weight.device)  # (k + 1,)
    moment = source.damped_moment(settings.damping)
    weight = source.weight
    if source.is_diagonal:
        return _round_all(source, weight[:, kept], kept, moment[:, :, kept], None, bits, settings)
    if len(columns) < source.layer.fan_in:
        assert source.layer.groups == 1, "columns of grouped convolutions are never pruned"
        weight = refit(weight, moment[0], kept) if settings.refit else weight[:, kept]  # (rows, k + 1)
    return _round_all(source, weight, kept, moment[:, kept][:, :, kept], None, bits, settings)


def sparse_variants(source: LayerSource, sparsity: float, bits: Sequence[int], settings: MenuSettings) -> list[Variant]:
    """The layer's weights with single weights removed (granularity `element` or `n:m`), for every bit-width.

    Args:
        source: weight and statistics of the layer.
        sparsity: fraction of the weights that is removed, in [0, 1).
        bits: bit-widths, each 1 to 8, 16 or 32.
        settings: criterion, quantizer, damping, and whether the weights that stay are re-fitted.

    Returns:
        One variant for each of `bits`; every one has all columns, with zeros where weights are removed.
    """
    kept = torch.arange(source.layer.fan_in + 1, device=source.weight.device)
    moment = source.damped_moment(settings.damping)
    mask = sparsity_mask(source, moment, sparsity, settings) if sparsity > 0 else None
    weight = source.weight
    if mask is not None:
        weight = _masked_refit(source, moment, mask) if settings.refit and not source.is_diagonal else weight.clone()
        weight[:, :-1] *= mask
    return _round_all(source, weight, kept, moment, mask, bits, settings)


def sparsity_mask(source: LayerSource, moment: Tensor, sparsity: float, settings: MenuSettings) -> Tensor:
    """Mask (rows, d) bool, True where a weight stays.

    Args:
        source: weight and statistics of the layer.
        moment: (g, d + 1, d + 1) damped H.
        sparsity: fraction of the weights that is removed; counts with granularity `element` only.
        settings: criterion, granularity, and the seed of random scores.
    """
    rows = len(source.weight) // source.layer.groups
    if source.is_diagonal:
        diagonal, inverse_diagonal = moment[:, 0, :-1], 1 / moment[:, 0, :-1]
    else:
        diagonal = moment.diagonal(dim1=-2, dim2=-1)[:, :-1]  # (g, d)
        inverse_diagonal = inverse(moment).diagonal(dim1=-2, dim2=-1)[:, :-1]
    context = ElementContext(
        source.weight[:, :-1],
        inverse_diagonal.repeat_interleave(rows, 0),
        diagonal.repeat_interleave(rows, 0),
        source.gradient_moment.diagonal().double(),
    )
    generator = torch.Generator().manual_seed(settings.seed)
    score = element_scores(settings.criterion, context.to_cpu(), generator)  # (rows, d)
    if settings.granularity == "element":
        mask = element_mask(score, int(removed_weights(score.numel(), sparsity)))  # type: ignore[arg-type]
    else:
        mask = block_mask(score, *n_of_m(settings.granularity))
    return mask.to(source.weight.device)


def _masked_refit(source: LayerSource, moment: Tensor, mask: Tensor) -> Tensor:
    """The weight (rows, d + 1), 0 where the mask is False, that reproduces the layer's outputs best.

    Every row w has its own support S, the columns that stay and the bias. The least squares min (w - w') H (w
    - w')ᵀ over w' that is 0 off S have the normal equations w'_S H_SS = (w H)_S. Rows are solved one by one,
    so that memory holds one H_SS at a time.
    """
    rows = len(source.weight) // source.layer.groups  # of one group
    right = torch.einsum("grd,gde->gre", source.weight.view(-1, rows, source.weight.shape[1]), moment).flatten(0, 1)
    support = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)  # (rows, d + 1)
    result = torch.empty_like(source.weight)
    for row in range(len(result)):
        index = support[row].nonzero()[:, 0]  # (s,)
        block = moment[row // rows][index][:, index]  # (s, s)
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
    """The weight (rows, k + 1) on the `kept` columns (k + 1,), bias last, rounded to each of `bits`.

    Bit-widths below 16 go to the quantizer all at once, as some of its work is the same for all.

    Args:
        source: weight and statistics of the layer, against which the expected loss is taken.
        weight: (rows, k + 1) pruned and re-fitted.
        kept: (k + 1,) indices of the columns, the bias column last.
        moment: (g, k + 1, k + 1) damped H of those columns.
        mask: (rows, k) bool, True where a weight stays; None: all stay.
        bits: bit-widths, each 1 to 8, 16 or 32.
        settings: quantizer that rounds.
    """
    if len(kept) == 1:
        return [_constant(source, weight, kept, width) for width in bits]
    groups = source.layer.groups
    integer = [width for width in bits if width < 16]
    by_bits: dict[int, Variant] = {}
    if integer:
        shape = (groups, len(weight) // groups, -1)
        rounding = Rounding(weight.view(shape), moment, None if mask is None else mask.view(shape))
        quantizer = by_diagonal if source.is_diagonal else QUANTIZERS[settings.quantizer]
        for width, rounded in zip(integer, quantizer(rounding, integer), strict=True):
            codes, scale, bias = rounded.codes.flatten(0, 1), rounded.scale.flatten().float(), rounded.bias.flatten()
            by_bits[width] = finished_variant(source, kept, codes, scale, bias)
    for width in set(bits) - set(integer):
        values = weight[:, :-1].float()
        by_bits[width] = finished_variant(
            source, kept, values.half().float() if width == 16 else values, None, weight[:, -1]
        )
    return [by_bits[width] for width in bits]


def _constant(source: LayerSource, weight: Tensor, kept: Tensor, bits: int) -> Variant:
    """The variant of a layer that has no columns left: only its bias."""
    nothing = weight.new_zeros(len(weight), 0)
    if bits < 16:
        return finished_variant(
            source, kept, nothing.to(torch.int8), nothing.new_ones(len(weight)).float(), weight[:, -1]
        )
    return finished_variant(source, kept, nothing.float(), None, weight[:, -1])


def finished_variant(
    source: LayerSource,
    kept: Tensor,
    values: Tensor,
    scale: Tensor | None,
    bias: Tensor,
    first: FirstFactor | None = None,
) -> Variant:
    """The variant of those numbers, on the CPU, with its loss; dW includes the columns that are gone.

    Args:
        source: weight and statistics of the layer.
        kept: (k + 1,) indices of the columns that stay, the bias column last.
        values: as in `Variant`.
        scale: as in `Variant`.
        bias: (rows,) bias.
        first: first factor of a label of low rank. Default: None.
    """
    variant = Variant(kept[:-1], values, scale, bias.float(), 0.0, first)
    change = source.change(variant).double()
    if source.layer.kind == EMBEDDING:
        moment = source.second_moment[0, :-1, :-1].double()
        error = lookup_loss(change[:, :-1], source.gradient_moment.double(), moment)
    elif source.is_diagonal:  # of rows as of columns: a product with all of G would take minutes
        weights = source.gradient_moment.diagonal()[:, None] * source.second_moment[0].float()  # (rows, d + 1)
        error = 0.5 * float((weights * change.float().square()).sum())
    else:
        error = expected_loss(change, source.second_moment.double(), source.gradient_moment.double())
    of_first = None if first is None else FirstFactor(first.values.cpu(), _on_cpu(first.scale))
    return Variant(variant.columns.cpu(), values.cpu(), _on_cpu(scale), variant.bias.cpu(), error, of_first)


def _on_cpu(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.cpu()


def _without_bias(moment: Tensor) -> Tensor:
    """H (g, d + 1, d + 1) of a layer without bias: its constant input is cut off, so the bias stays 0."""
    moment = moment.clone()
    diagonal = moment[:, -1, -1].clone()
    moment[:, -1, :] = 0
    moment[:, :, -1] = 0
    moment[:, -1, -1] = diagonal
    return moment
