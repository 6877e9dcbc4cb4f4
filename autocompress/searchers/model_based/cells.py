"""Plans as whole numbers, and every option's own numbers in one row of cells: what models of plans compute with.

A plan's *codes* are (2L,) integers: the sparsity of every layer, then its flat index of (weight bits, activation bits).
Every option of every one of these 2L features has a *cell*; cells lie in one row, feature after feature.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from autocompress.evaluation.effects import Effects
from autocompress_envs.problem import FloatArray, IntArray, Labeling, Problem
from autocompress_envs.problem.tables import Tables
from autocompress_envs.solver.lagrangian import Choice, choice_of, labeling_of

Matrix = npt.NDArray[np.float32]

SMALLEST_ERROR = 1e-3  # of a layer's largest: an estimate of no error at all would hide what an option does


class Cells:
    """The cells of a problem.

    Args:
        problem: menus and costs.
        prices: (L, 2) log prices by which layer errors are multiplied, of pruning and of rounding; or None.

    Attributes:
        tables: of the problem.
        errors: (L, S) of every owner's sparsities over all layers that read its group, and (L, B * A) of bits,
            unpruned; in nats.
        row: (cells,) all of them.
        offsets: (2L,) of every feature's first cell.
    """

    def __init__(self, problem: Problem, prices: FloatArray | None = None) -> None:
        self.tables = Tables(problem)
        rounding = self.tables.errors[:, 0].reshape(self.tables.layer_count, -1)
        rounding = rounding - rounding.min(1, keepdims=True)
        self.errors = _floored(self.tables.errors_by_owner()), _floored(rounding)
        if prices is not None:
            of_pruning, of_rounding = np.exp(prices).T[:, :, None]
            self.errors = self.errors[0] * of_pruning, self.errors[1] * of_rounding
        self.row = np.concatenate([errors.ravel() for errors in self.errors])
        options = np.array([errors.shape[1] for errors in self.errors for _ in range(self.tables.layer_count)])
        self.offsets = np.cumsum(options) - options

    def encode(self, labeling: Labeling) -> IntArray:
        """(2L,) of a labelling, or (..., 2L) of stacked ones."""
        choice = choice_of(self.tables, labeling)
        return np.concatenate([choice.sparsity, choice.bits], axis=-1)

    def decode(self, codes: IntArray) -> Labeling:
        """The inverse of `encode`."""
        sparsity, bits = np.split(codes, 2, axis=-1)
        return labeling_of(self.tables, Choice(sparsity.copy(), bits))

    def of(self, codes: IntArray) -> IntArray:
        """(..., 2L) the cells that plans (..., 2L) take."""
        cells: IntArray = self.offsets + codes
        return cells

    def changed(self, codes: IntArray, feature: IntArray, option: IntArray) -> tuple[IntArray, IntArray]:
        """(M,) the cells that single changes (M,) of a plan (2L,) leave, and those that they take."""
        first = self.offsets[feature]
        return first + codes[feature], first + option

    def chosen(self, codes: IntArray) -> FloatArray:
        """(M, cells) one at the cells that plans (M, 2L) take, and zero elsewhere."""
        chosen = np.zeros((len(codes), self.row.size))
        np.put_along_axis(chosen, self.of(codes), 1.0, axis=1)
        return chosen

    def effects(self, effects: Effects) -> Matrix:
        """(cells, N * K) first-order effects of every cell."""
        parts = [part.reshape(len(part) * part.shape[1], -1) for part in (effects.pruning, effects.rounding)]
        return np.concatenate(parts).astype(np.float32)


def _floored(errors: FloatArray) -> FloatArray:
    """At least a small share of the layer's largest, but for the option that changes least."""
    floor = SMALLEST_ERROR * errors.max(1, keepdims=True)
    mildest = errors.argmin(1)[:, None] == np.arange(errors.shape[1])
    return np.where(mildest, 0.0, np.maximum(errors, floor))
