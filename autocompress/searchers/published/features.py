"""What the published agents' states say of layers, as far as a problem's numbers hold it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autocompress_envs.problem import FloatArray, IntArray, Problem


@dataclass(frozen=True)
class LayerFeatures:
    """Each (L,). `columns` are input channels times the kernel's area, `rows` output channels, `positions` pixels."""

    columns: FloatArray
    rows: FloatArray
    positions: FloatArray
    weights: FloatArray
    macs: FloatArray
    is_linear: FloatArray
    is_depthwise: FloatArray


def layer_features(problem: Problem, kept: IntArray | None = None) -> LayerFeatures:
    """Features of all layers with `kept` (G,) channels left; all of them by default."""
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
    """Every column of (N, F) scaled to [0, 1]; 0 where it is the same for all rows."""
    low, spread = features.min(axis=0), np.ptp(features, axis=0)
    shares: FloatArray = (features - low) / np.where(spread > 0, spread, 1.0)
    return shares
