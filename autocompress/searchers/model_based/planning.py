"""Planning in a model of plans: steepest descent by one or two label changes a step, without any evaluation.

Two changes at a time are what a tight budget asks for: one layer gives up the bytes that another one needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from autocompress.searchers.model_based.encoding import PlanEncoding
from autocompress_envs.problem import BoolArray, FloatArray, IntArray, Problem

CANDIDATES = 96  # changes and pairs of changes a step, whose cost and divergence are computed exactly
LEAST_ROOM = 1e-9  # share of the limits that a change takes or gives at least, so that free ones have a finite rank
MOST_STEPS = 40  # steps of one descent
MOST_SINGLES = 1024
"""Most single changes that are paired; matrices over all pairs of 5,500 (250 layers of 22 labels) would take a GB."""
LEAST_IMPROVEMENT = 1e-9  # nats; a step that gains less ends the descent


class PlanModel(Protocol):
    """What the planner asks of a model of plans, such as `OutputModel` or `FirstOrderModel`.

    Attributes:
        encoding: the codes and slots of the problem's plans.
    """

    encoding: PlanEncoding

    def predict(self, codes: IntArray, caution: float = 0.0) -> tuple[FloatArray, FloatArray]:
        """Expected divergence of plans, and its uncertainty.

        Args:
            codes: (M, 2L) the plans.
            caution: share that counts of the rise of the expected divergence by uncertainty. Default: 0.

        Returns:
            (M,) the divergence in nats, and (M,) its standard deviation.
        """
        ...

    def moves(
        self, codes: IntArray, feature: IntArray, option: IntArray, caution: float = 0.0
    ) -> tuple[FloatArray, FloatArray]:
        """What M single changes of one plan do to its expected divergence, to second order.

        Args:
            codes: (2L,) the plan.
            feature: (M,) the feature that each change sets.
            option: (M,) the option to which each change sets it.
            caution: as in `predict`.

        Returns:
            (M,) the change in nats that each makes alone, and (M, M) what changes i and j together make on
            top of the sum of their own. Changes of the same feature exclude each other; their entries have no
            meaning.
        """
        ...


class Planner:
    """Steepest descent over plans within the limits.

    Args:
        problem: menus, layer errors and costs of the network.
        limits: upper bound of every limited resource, in absolute units.
        model: the model that predicts the plans' divergences.
    """

    def __init__(self, problem: Problem, limits: Mapping[str, int], model: PlanModel) -> None:
        self._model, self._limits = model, dict(limits)
        self._names = tuple(limits)
        self._most = np.array([limits[name] for name in self._names])
        sparsities, bits, activations = model.encoding.tables.counts.T
        count, longest = len(problem.layers), model.encoding.tables.activation_bits.shape[1]
        options = [(layer, option) for layer in range(count) for option in range(sparsities[layer])]
        options += [
            (count + layer, bit * longest + activation)
            for layer in range(count)
            for bit in range(bits[layer])
            for activation in range(activations[layer])
        ]
        self._feature, self._option = np.array(options).T  # all options that the menus really offer

    def descend(self, codes: IntArray, caution: float = 0.0) -> IntArray:
        """All candidates met on one descent, for the caller to choose from.

        Every step goes to the candidate of least expected divergence. The descent ends where no candidate is
        better than the plan itself, or after `MOST_STEPS`.

        Args:
            codes: (2L,) the plan from which the descent starts; it need not be within the limits.
            caution: share of the rise by uncertainty that counts, as in `PlanModel.predict`.

        Returns:
            (M, 2L) codes of plans within the limits, step after step; M is 0 where the first step finds none.
        """
        model, met = self._model, []
        current = float(model.predict(codes[None], caution)[0][0])
        for _ in range(MOST_STEPS):
            candidates = self._candidates(codes, caution)
            if not len(candidates):
                break
            expected = model.predict(candidates, caution)[0]
            met.append(candidates)
            best = int(expected.argmin())
            if expected[best] >= current - LEAST_IMPROVEMENT:
                break
            codes, current = candidates[best], float(expected[best])
        return np.concatenate(met) if met else np.zeros((0, len(codes)), dtype=np.int64)

    def _candidates(self, codes: IntArray, caution: float) -> IntArray:
        """(C, 2L) the most promising plans within the limits that one or two changes of a plan (2L,) lead to.

        First, M changes and their M^2 / 2 pairs are ranked, by second order and by the sum of their costs. They
        are all changes, or the most promising ones where there are more than `MOST_SINGLES`. Then the exact
        costs of the best `CANDIDATES` decide: costs of two changes in one layer do not add up.
        """
        is_change = self._option != codes[self._feature]
        feature, option = self._feature[is_change], self._option[is_change]  # (M,)
        if len(feature) > MOST_SINGLES:
            kept = self._promising(codes, feature, option, caution)
            feature, option = feature[kept], option[kept]
        value = self._pair_values(codes, feature, option, caution)
        first, second = self._least(value)
        features = np.stack([feature[first], feature[second]], axis=1)  # (C, 2)
        options = np.stack([option[first], option[second]], axis=1)  # (C, 2)
        plans = _changed(codes, features, options)
        return plans[(self._costs(plans) <= self._most).all(1)]

    def _promising(self, codes: IntArray, feature: IntArray, option: IntArray, caution: float) -> IntArray:
        """(`MOST_SINGLES`,) numbers, ascending, of the changes that the best pairs are likely made of.

        A pair trades: one change gains divergence and takes room, the other one gives room at little loss. So
        three rankings take turns: by gain, by gain per room that is taken, and by loss per room that is given.
        Room is counted in shares of the limits. Changes too large for any partner are left out.
        """
        parts = [slice(first, first + MOST_SINGLES) for first in range(0, len(feature), MOST_SINGLES)]
        alone = np.concatenate([self._model.moves(codes, feature[at], option[at], caution)[0] for at in parts])  # (M,)
        before = self._costs(codes[None])
        cost = self._costs(_changed(codes, feature[:, None], option[:, None])) - before  # (M, R)
        fits = (cost + np.minimum(cost.min(0), 0) <= self._most - before[0]).all(1)
        room = cost / self._most  # taken where above 0, given where below, (M, R)
        taken, given = np.maximum(room, 0.0).sum(1), np.maximum(-room, 0.0).sum(1)
        scores = (
            alone,
            np.where(alone < 0, alone / np.maximum(taken, LEAST_ROOM), np.inf),
            np.where(given > 0, np.maximum(alone, 0.0) / np.maximum(given, LEAST_ROOM), np.inf),
        )
        ranked = np.stack([np.where(fits, score, np.inf).argsort(kind="stable") for score in scores], axis=1)
        _, first = np.unique(ranked, return_index=True)  # where each change comes first, the rankings by turns
        kept: IntArray = np.sort(ranked.ravel()[np.sort(first)[:MOST_SINGLES]])
        return kept

    def _pair_values(self, codes: IntArray, feature: IntArray, option: IntArray, caution: float) -> FloatArray:
        """(M, M) what changes i and j together do, in nats, and what change i does alone on the diagonal.

        Infinite where the costs, were they to add up, exceed the limits, or where i and j set the same
        feature.
        """
        alone, joint = self._model.moves(codes, feature, option, caution)
        before = self._costs(codes[None])
        cost = self._costs(_changed(codes, feature[:, None], option[:, None])) - before  # (M, R)
        room = self._most - before[0]  # (R,)
        value = np.where(_fit(cost, room), alone[:, None] + alone + joint, np.inf)
        value[feature[:, None] == feature] = np.inf
        np.fill_diagonal(value, np.where((cost <= room).all(1), alone, np.inf))
        return value

    def _least(self, value: FloatArray) -> tuple[IntArray, IntArray]:
        """Rows (C,) and columns (C,) of the least finite entries of a symmetric matrix, each pair once."""
        allowed = np.flatnonzero(np.isfinite(value))
        count = 2 * CANDIDATES  # every pair is there twice
        best = np.argpartition(value.ravel()[allowed], count)[:count] if len(allowed) > count else ...
        rows, columns = np.divmod(allowed[best], len(value))
        once = rows <= columns
        return rows[once], columns[once]

    def _costs(self, codes: IntArray) -> IntArray:
        """(M, R) amounts of the limited resources of plans (M, 2L)."""
        amounts = self._model.encoding.tables.amounts(self._model.encoding.decode(codes), self._names)
        return np.stack([amounts[name] for name in self._names], axis=-1)


def _changed(codes: IntArray, features: IntArray, options: IntArray) -> IntArray:
    """(M, 2L) copies of a plan (2L,) with the features (M, n) set to the options (M, n)."""
    plans = np.repeat(codes[None], len(features), axis=0)
    np.put_along_axis(plans, features, options, axis=1)
    return plans


def _fit(cost: IntArray, room: IntArray) -> BoolArray:
    """(M, M) whether the costs (M, R) of two changes together stay within the room (R,) that is left.

    >>> _fit(np.array([[5], [-3], [1]]), np.array([2])).tolist()
    [[False, True, False], [True, True, True], [False, True, True]]
    """
    fits = np.ones((len(cost), len(cost)), dtype=bool)
    for amount, left in zip(cost.T, room, strict=True):
        fits &= amount[:, None] + amount <= left
    return fits
