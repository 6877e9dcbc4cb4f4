"""What plans are expected to do to the network before any of them is evaluated, and the best plan by that.

The first-order effects of a plan's labels add up to a shift D(p) of the log-probabilities, and with it to a divergence,
in which layers that pull the same way do more harm than the sum of their own. Two things are missing. Large shifts
saturate, so only a share of D(p) counts; and what is not first-order is there as well: it grows with the layer errors,
faster the more of them there are. In all,

    J(p) = KL(p0 || softmax(log p0 + SHARE D(p))) + e(p) + e(p)^2,   e(p) = sum over layers of exp(price) error

where the prices are a policy's, learned on other networks, or 0.

Around a plan b that was measured, what it does to the outputs is known, d(b), and effects around it are small enough to
count in full. What is not first-order grows with the layer errors of what is changed:

    J(p) = KL(p0 || softmax(log p0 + d(b) + D_b(p))) + sum over changed labels of exp(price) max(error, error in b).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from autocompress.evaluation.effects import Effects
from autocompress.searchers.cells import Cells
from autocompress.searchers.divergence import centred, shifted, slopes
from autocompress.searchers.planning import Planner
from autocompress_envs.numbers import FloatArray, IntArray, Labeling, Problem
from autocompress_envs.pricing import Pricer

SHARE = 0.7
FACTORS = (0.25, 1.0, 4.0)  # of pruning's price where descents begin: they stay near the share of bits they begin with
SAMPLES = 256  # that are looked at, at most: a plan is to be foreseen in seconds


@dataclass(frozen=True)
class Known:
    """A plan that was measured.

    Attributes:
        labeling: the plan.
        shift: (N, K) what it does to the log-probabilities.
    """

    labeling: Labeling
    shift: FloatArray


class Foresight:
    """Expects divergences of plans; the planner walks in it.

    Args:
        problem: menus and costs.
        probabilities: (N, K) of the original.
        effects: on the same samples.
        prices: (L, 2) a policy's, or None.
        around: the plan around which the effects are; None: the original.
    """

    def __init__(
        self,
        problem: Problem,
        probabilities: FloatArray,
        effects: Effects,
        prices: FloatArray | None = None,
        around: Known | None = None,
    ) -> None:
        self.cells = Cells(problem, prices)
        self._probabilities = probabilities[:SAMPLES]
        self._logs = np.log(np.clip(self._probabilities, 1e-30, None))
        self._base, share = self._logs, SHARE
        self._own: IntArray | None = None  # cells of the plan
        if around is not None:
            self._base, share = shifted(self._logs, around.shift[:SAMPLES]), 1.0
            self._own = self.cells.of(self.cells.encode(around.labeling))
        self._shifts = np.float32(share) * self.cells.effects(effects.first(SAMPLES))

    def predict(self, codes: IntArray, caution: float = 0.0) -> tuple[FloatArray, FloatArray]:
        """(M,) J of plans (M, 2L), in nats; nothing is known of how far it is off, hence (M,) zeros."""
        divergence = self._probabilities * (self._logs - self._predicted(codes))
        return divergence.sum((1, 2)) / len(self._logs) + self._missed(self.cells.of(codes)), np.zeros(len(codes))

    def moves(
        self, codes: IntArray, feature: IntArray, option: IntArray, caution: float = 0.0
    ) -> tuple[FloatArray, FloatArray]:
        """What single changes (M,) of one plan (2L,) do to J, to second order; see `OutputModel.moves`."""
        cells = self.cells
        before, after = cells.changed(codes, feature, option)
        predicted, change = np.exp(self._predicted(codes[None])[0]), self._shifts[after] - self._shifts[before]
        rows = centred(change, predicted)
        joint = (rows @ rows.T).astype(np.float64)
        alone = slopes(change, predicted, self._probabilities) + 0.5 * np.diag(joint)
        if self._own is not None:
            return alone + self._risk(after, feature) - self._risk(before, feature), joint
        errors, own = cells.row[cells.of(codes)].sum(), cells.row[after] - cells.row[before]
        return alone + own * (1.0 + 2.0 * errors + own), joint + 2.0 * np.outer(own, own)

    def _missed(self, cells: IntArray) -> FloatArray:
        """(M,) what is not first-order of plans' cells (M, 2L), in nats."""
        if self._own is not None:
            risk: FloatArray = self._risk(cells, np.arange(cells.shape[1])).sum(1)
            return risk
        errors: FloatArray = self.cells.row[cells].sum(1)
        return errors + errors**2

    def _risk(self, cells: IntArray, feature: IntArray) -> FloatArray:
        """(…,) of cells of the features, instead of the known plan's."""
        assert self._own is not None
        own = self._own[feature]
        return np.where(cells == own, 0.0, np.maximum(self.cells.row[cells], self.cells.row[own]))

    def _predicted(self, codes: IntArray) -> FloatArray:
        """(M, N, K) log-probabilities under plans (M, 2L)."""
        shifts = self.cells.chosen(codes).astype(np.float32) @ self._shifts
        return shifted(self._base, shifts.reshape(len(codes), *self._logs.shape))


def foreseen(
    problem: Problem,
    limits: Mapping[str, int],
    probabilities: FloatArray,
    effects: Effects,
    prices: FloatArray | None = None,
    around: Known | None = None,
) -> Labeling:
    """The plan within the limits that is expected to be the best; no plan is evaluated.

    Args:
        problem: menus and costs.
        limits: absolute.
        probabilities: (N, K) of the original.
        effects: on the same samples.
        prices: (L, 2) a policy's, or None.
        around: the plan around which the effects are, where the descent begins; None: the original, and it begins at
            plans by price.
    """
    model = Foresight(problem, probabilities, effects, prices, around)
    starts = _priced(problem, limits, prices) if around is None else [around.labeling]
    codes = np.unique(np.stack([model.cells.encode(start) for start in starts]), axis=0)
    planner = Planner(problem, limits, model)
    met = np.concatenate([codes, *map(planner.walk, codes)])
    return model.cells.decode(met[int(model.predict(met)[0].argmin())])


def _priced(problem: Problem, limits: Mapping[str, int], prices: FloatArray | None) -> list[Labeling]:
    """The solver's plan, and those of the policy's prices."""
    pricer = Pricer(problem, limits)
    pruning, rounding = np.exp(np.zeros((len(problem.layers), 2)) if prices is None else prices).T
    return [pricer.solve(), *(pricer.solve(factor * pruning, rounding) for factor in FACTORS)]
