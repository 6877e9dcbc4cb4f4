"""One layer, fitted to the original's outputs and judged on samples that it was not fitted to.

The layer's input gets a new range, that of least error on what the compressed network gives it. Candidates are the
layer with its weights as they are; the layer with a new bias; and the rounded least-squares fit with one of several
strengths λ of the prior W₀ (the original's weights):

    W* = argmin E‖y - W x̂‖² + λ‖W - W₀‖²  =  W₀ + E[r x̂ᵀ] (E[x̂ x̂ᵀ] + λ I)⁻¹,    r = y - W₀ x̂,

with its rows scaled so that outputs keep their spread. Expectations are over positions and, as errors of one sample act
together, over the means of samples (`menus.coherence`), as far as these are many beside the fan-in (`Sums.coherent`).

The samples are cut into four folds, and each fold judges what was fitted to the three others. First λ is chosen so, by
the loss before rounding, then the candidate, by that of its rounded weights; the winner is made again from all samples.
So weights change only where the change carries over to samples that they have not seen. The loss is ½ tr(G E[e eᵀ]),
the divergence in nats that an error e at the layer's output is expected to cause (`menus.calibration`).

A weaker prior, and the fit itself, may lose by a tenth: three folds say less than all four, to which the winner is
fitted, and what a layer mends, later layers need not. On the digits network, five plans fitted to 48 (160) samples so
came to 29 (18) % of the menus' divergence, without that tenth to 37 (21) %, always fitted with λ = 0.01 to 30 (19) %.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from autocompress.execute.compressed import LayerWeights
from autocompress.execute.following import Batch
from autocompress.execute.layer_moments import Sums, drawn_columns, drawn_positions, in_pieces
from autocompress.execute.layer_site import Site
from autocompress.menus.activations import ActivationRange, calibrate_range
from autocompress.menus.algebra import cholesky_factor, damped
from autocompress.menus.quantizers import QUANTIZERS
from autocompress.menus.rounding import Rounding

PRIORS = (1e-2, 1e-1, 1.0)  # λ as fractions of the mean diagonal of E[x̂ x̂ᵀ]
FOLDS = 4  # parts of the samples; each judges what the three others were fitted to

_LARGE = 2_048  # inputs of a layer, whose fits take the cube of their number
_FOLDS_OF_LARGE = 2  # folds that judge such a layer
_SLACK = 1.1  # by which the more thorough fit may lose on held-out samples; see the module's text
_MOST_SCALED = 1.25  # factor of a row that is scaled to the spread that it should have
_RANGE_SAMPLE = 65_536  # values of a layer's input that its range is taken from


def fitted(site: Site, layer: LayerWeights, batches: Sequence[Batch]) -> LayerWeights:
    """The layer as it does best on samples that it was not fitted to; with its own weights where nothing does better.

    Args:
        site: the layer; the original has run it, the compressed network everything before it.
        layer: its weights so far.
        batches: batches of samples.
    """
    if layer.is_empty:
        return _with_mean_as_bias(site, layer, batches)
    new = None if layer.input_range is None else _range_of(site, layer.input_range.bits, batches)
    folds = _collect(site, new, batches)
    if min(fold.samples for fold in folds) == 0:
        return layer
    anew = replace(layer, input_range=new)

    strength = _best_strength(site, folds)
    judging = FOLDS if site.shrunk.fan_in <= _LARGE else _FOLDS_OF_LARGE
    as_it_is, biased, refitted = 0.0, 0.0, 0.0
    for fold, others in islice(_held_out(folds), judging):
        as_it_is += _loss(site, anew, fold)
        biased += _loss(site, _with_bias(site, anew, others), fold)
        refitted += _loss(site, _refitted(site, anew, others, strength), fold)
    if refitted <= _SLACK * min(as_it_is, biased):
        return _refitted(site, anew, Sums.total(folds), strength)
    return _with_bias(site, anew, Sums.total(folds)) if biased < as_it_is else anew


def _best_strength(site: Site, folds: Sequence[Sums]) -> float:
    """The weakest λ, as a fraction of the mean diagonal of E[x̂ x̂ᵀ], whose loss before rounding is about the least.

    Of a layer with many inputs the middle one: every λ is solved for once a fold, which takes the cube of their number.
    """
    if site.shrunk.fan_in > _LARGE:
        return PRIORS[1]
    losses = dict.fromkeys(PRIORS, 0.0)
    for fold, others in _held_out(folds):
        moment, cross = _equations(site, others)
        for strength in PRIORS:
            change = _solve(moment + _anchor(moment, strength), cross, None)  # where no single weight is removed
            losses[strength] += fold.loss(change, site.gradient_moment)
    return min(strength for strength in PRIORS if losses[strength] <= _SLACK * min(losses.values()))


def _held_out(folds: Sequence[Sums]) -> Iterator[tuple[Sums, Sums]]:
    """Every fold, with the sums of all others."""
    for fold in folds:
        yield fold, Sums.total([other for other in folds if other is not fold])


def _loss(site: Site, layer: LayerWeights, sums: Sums) -> float:
    """Expected loss of a layer's weights on some samples, in nats summed over their columns."""
    return sums.loss(_extended(site, layer) - site.prior, site.gradient_moment)


def _collect(site: Site, found: ActivationRange | None, batches: Sequence[Batch]) -> list[Sums]:
    """The sums over the samples of each fold, inputs being rounded to a range."""
    groups, rows, columns = site.prior.shape
    device = batches[0].reference[site.before].device
    folds = [Sums.empty(groups, rows, columns, device) for _ in range(FOLDS)]
    wanted = -(-site.columns_wanted // sum(batch.size for batch in batches))  # of each sample
    prior = site.prior.mT.float().to(device)[:, None]
    for batch in batches:
        for x, y, fold in _drawn(site, batch, wanted):
            x = _rounded_columns(x, found)
            miss = y - x @ prior
            for number in range(FOLDS):
                is_of_fold = fold == number
                folds[number].add_(x[:, is_of_fold], miss[:, is_of_fold])
    folds = [each.completed() for each in folds]
    if any(not fold.means for fold in folds):
        return folds
    total = Sums.total(folds)
    seen, share = total.seen_means(), site.coherence * (1 - columns / total.samples)
    return [each.coherent(share, seen) for each in folds]


def _drawn(site: Site, batch: Batch, wanted: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """What the layer reads and should give at drawn positions, piece by piece of a batch.

    Args:
        site: the layer.
        batch: some samples.
        wanted: number of positions to draw in each sample.

    Yields:
        Columns (g, e, p, k + 1) not rounded, wanted outputs (g, e, p, r), and (e,) the fold of each entry's sample.
    """
    x = site.entries(batch.current[site.node.all_input_nodes[0]], batch.size)
    y = site.entries(batch.reference[site.before], batch.size)
    shape = site.positions(y)
    per_entry = -(-wanted * batch.size // len(y))
    drawn = drawn_positions(len(y), math.prod(shape), per_entry, seed=batch.start).to(y.device)
    sample = batch.start + torch.arange(len(y)) * batch.size // len(y)
    fold = (sample % FOLDS).to(y.device)
    groups, rows, columns = site.prior.shape
    for piece in in_pieces(len(y), drawn.shape[1] * groups * max(rows, columns)):
        read = drawn_columns(x[piece], site.window, drawn[piece], 1 if site.is_linear else shape[-1])
        given = site.wanted_outputs(batch, drawn[piece], piece)
        yield read, given.unflatten(2, (groups, rows)).permute(2, 0, 1, 3), fold[piece]


def _rounded_columns(x: Tensor, found: ActivationRange | None) -> Tensor:
    """Columns with all but the last entry, the 1 for the bias, rounded to a range; None: they are not rounded."""
    if found is None:
        return x
    rounded = found.apply(x)
    rounded[..., -1] = 1
    return rounded


def _range_of(site: Site, bits: int, batches: Sequence[Batch]) -> ActivationRange:
    """The range of least error on the layer's inputs: at most 65,536 drawn values, the smallest and the largest."""
    read = [batch.current[site.node.all_input_nodes[0]] for batch in batches]
    share = min(1.0, _RANGE_SAMPLE / sum(x.numel() for x in read))
    parts = []
    for batch, x in zip(batches, read, strict=True):
        generator = torch.Generator().manual_seed(batch.start)
        drawn = torch.randint(x.numel(), (math.ceil(share * x.numel()),), generator=generator)
        parts.append(torch.cat([x.flatten()[drawn.to(x.device)], x.amin()[None], x.amax()[None]]).cpu())
    return calibrate_range(torch.cat(parts).sort().values, bits)


def _with_mean_as_bias(site: Site, layer: LayerWeights, batches: Sequence[Batch]) -> LayerWeights:
    """A layer that only has its bias left, which becomes the mean of the wanted outputs."""
    if layer.bias is None:
        return layer
    total, count = torch.zeros(len(site.rows), dtype=torch.float64), 0
    for batch in batches:
        y = site.entries(batch.reference[site.before], batch.size)
        everywhere = torch.arange(math.prod(site.positions(y)), device=y.device).expand(len(y), -1)
        wanted = site.wanted_outputs(batch, everywhere, slice(None)).flatten(0, 1)  # (e · positions, rows)
        total += wanted.double().sum(0).cpu()
        count += len(wanted)
    return replace(layer, bias=(total / count).float())


def _extended(site: Site, layer: LayerWeights) -> Tensor:
    """(g, r, k + 1) float64 weights of a layer, the bias last."""
    bias = torch.zeros(len(layer.values)) if layer.bias is None else layer.bias
    return torch.cat([layer.weight().flatten(1), bias[:, None]], 1).double().view_as(site.prior)


def _with_bias(site: Site, layer: LayerWeights, sums: Sums) -> LayerWeights:
    """The layer with a bias that leaves no mean error on some samples, where it has one."""
    if layer.bias is None:
        return layer
    missed = (_extended(site, layer) - site.prior) @ sums.moment[..., -1:]  # (g, r, 1)
    left = (sums.cross[..., -1:] - missed).flatten() / sums.columns
    return replace(layer, bias=(layer.bias.double() + left).float())


def _refitted(site: Site, layer: LayerWeights, sums: Sums, strength: float) -> LayerWeights:
    """The layer fitted to some samples and rounded.

    Args:
        site: the layer.
        layer: its weights so far, with its new input range.
        sums: sums over the samples.
        strength: λ as a fraction of the mean diagonal of E[x̂ x̂ᵀ].
    """
    moment, cross = _equations(site, sums)
    weighed = moment + _anchor(moment, strength)
    weight = _solve(weighed, cross + site.prior @ weighed, site.kept)  # W*: (g, r, k + 1)
    weight = _with_spread(site, weight, sums)
    rounding = Rounding(weight, damped(moment, site.menus.settings.damping), site.kept)
    return _rounded(rounding, layer, site.menus.settings.quantizer)


def _with_spread(site: Site, weight: Tensor, sums: Sums) -> Tensor:
    """Fitted weights (g, r, k + 1), each row scaled so that its output has the spread that it should have.

    Least squares on inputs with errors attenuates: what the inputs don't tell of an output is missing from its
    variance, and after many layers features are faint (as between merged networks, Jordan et al. 2023). With
    y = W₀ x̂ + r, each row is scaled by √(Var(y) / Var(W* x̂)), at most by a quarter; its mean stays. Where the layer has
    no bias to keep the mean, E[y²] takes the place of Var(y).
    """
    moment, cross, square = (each / sums.columns for each in (sums.moment, sums.cross, sums.square))
    mean, missed = moment[..., -1:], cross[..., -1:]
    if site.layer.has_bias:
        moment, cross, square = moment - mean @ mean.mT, cross - missed @ mean.mT, square - missed @ missed.mT
    squares = square.diagonal(dim1=-2, dim2=-1)[..., None]
    wanted = ((site.prior @ moment + 2 * cross) * site.prior).sum(-1, keepdim=True) + squares
    given = ((weight @ moment) * weight).sum(-1, keepdim=True)
    scale = (wanted.clamp(min=0) / given.clamp(min=1e-30)).sqrt().clamp(1 / _MOST_SCALED, _MOST_SCALED)
    scaled = weight * scale
    if site.layer.has_bias:
        scaled[..., -1:] = weight[..., -1:] + (weight - scaled)[..., :-1] @ mean[:, :-1]
    return scaled


def _anchor(moment: Tensor, strength: float) -> Tensor:
    """λ I (g, k + 1, k + 1); the bias's λ is a millionth."""
    return strength * (damped(moment, 1.0) - moment)


def _equations(site: Site, sums: Sums) -> tuple[Tensor, Tensor]:
    """E[x̂ x̂ᵀ] (g, k + 1, k + 1) and E[r x̂ᵀ] (g, r, k + 1), float64.

    Where the layer has no bias, the bias column is made independent of all others, and its weight comes out as 0.
    """
    moment, cross = sums.moment / sums.columns, sums.cross / sums.columns
    if not site.layer.has_bias:
        moment[:, -1, :-1] = moment[:, :-1, -1] = 0
        cross[:, :, -1] = 0
    return moment, cross


def _solve(moment: Tensor, cross: Tensor, kept: Tensor | None) -> Tensor:
    """(g, r, k + 1) rows w with w H = c; where weights are removed, on the columns that are left in each row.

    Args:
        moment: (g, k + 1, k + 1) H, positive definite.
        cross: (g, r, k + 1) right-hand sides c.
        kept: (g, r, k) False where a weight is removed; None: all are kept.
    """
    if kept is None:
        return torch.cholesky_solve(cross.mT, cholesky_factor(moment)).mT
    rows = cross.shape[1]
    support = torch.cat([kept.flatten(0, 1), torch.ones(len(cross) * rows, 1, dtype=torch.bool)], 1)
    weight = torch.zeros_like(cross)
    for row in range(len(support)):
        index, (group, member) = support[row].nonzero()[:, 0], divmod(row, rows)
        factor = cholesky_factor(moment[group][index][:, index])  # of H on the row's own columns
        found = torch.cholesky_solve(cross[group, member, index][:, None], factor)
        weight[group, member, index] = found[:, 0]
    return weight


def _rounded(rounding: Rounding, layer: LayerWeights, quantizer: str) -> LayerWeights:
    """The layer with weights fitted anew, rounded to its label's codes, or as floats.

    Args:
        rounding: fitted weights (g, r, k + 1), and H for the quantizer.
        layer: layer with its bits and shape.
        quantizer: name of the quantizer.
    """
    shape, weight = layer.values.shape, rounding.weight
    if layer.scale is None:
        values = weight[..., :-1].flatten(0, 1).float().view(shape)
        values = values.half().float() if layer.bits == 16 else values
        bias = weight[..., -1].flatten()
        return replace(layer, values=values, bias=None if layer.bias is None else bias.float())
    (found,) = QUANTIZERS[quantizer](rounding, [layer.bits])
    return replace(
        layer,
        values=found.codes.flatten(0, 1).view(shape),
        scale=found.scale.flatten().float(),
        bias=None if layer.bias is None else found.bias.flatten().float(),
    )
