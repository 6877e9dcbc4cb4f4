"""Planning in the model: the best plans that one or two changes at a time lead to, none of them evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from autocompress.searchers.model_based.cells import Cells
from autocompress_envs.problem import FloatArray, IntArray, Problem

CANDIDATES = 96  # best pairs of changes whose costs and divergence are computed exactly, a step
LONGEST_WALK = 40


class PlanModel(Protocol):
    """What the planner asks of a model of plans; see `OutputModel`."""

    cells: Cells

    def predict(self, codes: IntArray, caution: float = 0.0) -> tuple[FloatArray, FloatArray]: ...

    def moves(
        self, codes: IntArray, feature: IntArray, option: IntArray, caution: float = 0.0
    ) -> tuple[FloatArray, FloatArray]: ...


class Planner:
    """Steepest descent over plans within the limits.

    Args:
        problem: menus and costs.
        limits: absolute.
        model: that predicts divergences.
    """

    def __init__(self, problem: Problem, limits: Mapping[str, int], model: PlanModel) -> None:
        self._model, self._limits = model, dict(limits)
        self._names = tuple(limits)
        self._most = np.array([limits[name] for name in self._names])
        sparsities, bits, activations = model.cells.tables.counts.T
        count, longest = len(problem.layers), model.cells.tables.activation_bits.shape[1]
        cells = [(layer, option) for layer in range(count) for option in range(sparsities[layer])]
        cells += [
            (count + layer, bit * longest + activation)
            for layer in range(count)
            for bit in range(bits[layer])
            for activation in range(activations[layer])
        ]
        self._feature, self._option = np.array(cells).T

    def walk(self, codes: IntArray, caution: float = 0.0) -> IntArray:
        """(M, 2L) plans within the limits, met on the way down from a plan (2L,): the best of every step."""
        model, met = self._model, []
        current = float(model.predict(codes[None], caution)[0][0])
        for _ in range(LONGEST_WALK):
            candidates = self._steps(codes, caution)
            if not len(candidates):
                break
            expected = model.predict(candidates, caution)[0]
            met.append(candidates)
            best = int(expected.argmin())
            if expected[best] >= current - 1e-9:
                break
            codes, current = candidates[best], float(expected[best])
        return np.concatenate(met) if met else np.zeros((0, len(codes)), dtype=np.int64)

    def _steps(self, codes: IntArray, caution: float) -> IntArray:
        """(M, 2L) the most promising plans within the limits that one or two changes lead to."""
        moves = np.flatnonzero(self._option != codes[self._feature])
        feature, option = self._feature[moves], self._option[moves]
        alone, joint = self._model.moves(codes, feature, option, caution)
        change = self._costs(_changed(codes, feature[:, None], option[:, None])) - self._costs(codes[None])
        slack = self._most - self._costs(codes[None])[0]
        value = np.where(_fit(change, slack), alone[:, None] + alone + joint, np.inf)
        value[feature[:, None] == feature] = np.inf
        np.fill_diagonal(value, np.where((change <= slack).all(1), alone, np.inf))
        first, second = self._most_promising(value)
        pairs = [np.stack([of[first], of[second]], axis=1) for of in (feature, option)]
        plans = _changed(codes, *pairs)
        return plans[(self._costs(plans) <= self._most).all(1)]

    def _most_promising(self, value: FloatArray) -> tuple[IntArray, IntArray]:
        """Rows and columns of the least entries of a symmetric matrix, each pair once."""
        allowed = np.flatnonzero(np.isfinite(value))
        count = 2 * CANDIDATES  # every pair is there twice
        best = np.argpartition(value.ravel()[allowed], count)[:count] if len(allowed) > count else ...
        rows, columns = np.divmod(allowed[best], len(value))
        once = rows <= columns
        return rows[once], columns[once]

    def _costs(self, codes: IntArray) -> IntArray:
        """(M, R) limited resources of plans (M, 2L)."""
        amounts = self._model.cells.tables.amounts(self._model.cells.decode(codes), self._names)
        return np.stack([amounts[name] for name in self._names], axis=-1)


def _changed(codes: IntArray, features: IntArray, options: IntArray) -> IntArray:
    """(M, 2L) a plan with the features (M, n) set to the options (M, n)."""
    plans = np.repeat(codes[None], len(features), axis=0)
    np.put_along_axis(plans, features, options, axis=1)
    return plans


def _fit(change: IntArray, slack: IntArray) -> FloatArray:
    """(M, M) whether two changes (M, R) together stay within the slack (R,), were their costs to add up."""
    fits = np.ones((len(change), len(change)), dtype=bool)
    for cost, room in zip(change.T, slack, strict=True):
        fits &= cost[:, None] + cost <= room
    return fits
