"""Features of layers for the published agents' states, as far as a problem's numbers hold them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autocompress_envs.problem import FloatArray, IntArray, Problem


@dataclass(frozen=True)
class LayerFeatures:
    """Features of all layers, (L,) each.

    Attributes:
        columns: weight columns: input channels times the kernel's area.
        rows: weight rows: output channels.
        positions: output positions, such as pixels.
        weights: number of weights.
        macs: multiply-accumulates for one sample.
        is_linear: 1 for linear layers, else 0.
        is_depthwise: 1 for depthwise convolutions, else 0.
    """

    columns: FloatArray
    rows: FloatArray
    positions: FloatArray
    weights: FloatArray
    macs: FloatArray
    is_linear: FloatArray
    is_depthwise: FloatArray


def layer_features(problem: Problem, kept: IntArray | None = None) -> LayerFeatures:
    """Features of all layers of a network.

    Args:
        problem: menus, layer errors and costs of the network.
        kept: (G,) channels that are left of every group. Default: None, for all channels.
    """
    costs = problem.costs
    columns, rows = costs.widths(costs.group_width if kept is None else kept)
    kinds = np.array([layer.kind for layer in problem.layers])
    weights = (columns * rows).astype(np.float64)
    return LayerFeatures(
        columns.astype(np.float64),
        rows.astype(np.float64),
        costs.positions.astype(np.float64),
        weights,
        weights * costs.positions,
        (kinds == "linear").astype(np.float64),
        (kinds == "depthwise").astype(np.float64),
    )


def scaled(features: FloatArray) -> FloatArray:
    """(N, F) features, each scaled to [0, 1] over the rows; 0 where it is the same for all rows.

    Args:
        features: (N, F) features of N layers.
    """
    low, spread = features.min(axis=0), np.ptp(features, axis=0)
    shares: FloatArray = (features - low) / np.where(spread > 0, spread, 1.0)
    return shares
