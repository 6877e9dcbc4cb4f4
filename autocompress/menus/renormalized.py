"""What renormalization makes of one layer's label, from the layer's second moment and without running the network.

A label's weights give a layer outputs with other means and spreads: a fit shrinks what it can't reproduce, and rounds
rows to coarse steps. Wherever a plan is measured or made real, that is taken back (`evaluation.renormalize`). Errors
that are left cancel over a sample's positions; a shrunken output does not, so that it would seem to cost several times
what it does. Losses and effects are therefore those of the layer's renormalized weights. What renormalization of the
layers behind it mends is not counted.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from autocompress.menus.variants import LayerSource, Variant
from autocompress.network.structure import EMBEDDING, RECURRENT, Layer

MOST_SCALED = 1.25  # a row that would need more is wrong in other ways, and its errors would grow as well


def renormalized_change(source: LayerSource, variant: Variant) -> Tensor:
    """(rows, d + 1) float32 dW of a variant, its outputs renormalized; it includes the columns that are gone.

    Args:
        source: numbers that the layer's variants are made from.
        variant: one of them.
    """
    original = source.weight.float()
    return renormalized(source, original + source.change(variant)) - original


def renormalized(source: LayerSource, weight: Tensor) -> Tensor:
    """Weights (rows, d + 1) of a layer, the bias last, that give its outputs the original's means and spreads.

    Args:
        source: numbers of the original layer.
        weight: (rows, d + 1) float32 weights as they are.
    """
    scale, shift = renormalization(source, weight)
    result = weight * scale[:, None]
    result[:, -1] += shift
    return result


def renormalization(source: LayerSource, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Scale, within 0.8 to 1.25, and shift (rows,) that give outputs the original's spreads and means.

    Outputs that are constant keep their scale. Layers that plans leave as they are keep all: embeddings, parts of
    recurrent ones, and those that run several times; so do those whose moment is known by its diagonal alone.

    Args:
        source: numbers of the original layer.
        weight: (rows, d + 1) float32 weights, the bias last.
    """
    if source.is_diagonal or not _runs_once(source.layer):
        return weight.new_ones(len(weight)), weight.new_zeros(len(weight))
    (mean, variance), (wanted_mean, wanted_variance) = source.moments_of(weight), source.output_moments
    varies = (variance > 0) & (wanted_variance > 0)
    scale = torch.where(varies, (wanted_variance / variance).sqrt(), 1.0).clamp(1 / MOST_SCALED, MOST_SCALED)
    return scale, (wanted_mean - scale * mean) * source.layer.has_bias


def _runs_once(layer: Layer) -> bool:
    """Whether a layer's outputs are those of one call, which renormalization can change."""
    return layer.kind not in (EMBEDDING, RECURRENT) and layer.positions * layer.rows == math.prod(layer.output_shape)
