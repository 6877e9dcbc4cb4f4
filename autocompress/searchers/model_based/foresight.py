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
from scipy.sparse import csr_array

from autocompress.evaluation.effects import Effects
from autocompress.searchers.model_based.cells import Cells, Matrix
from autocompress.searchers.model_based.divergence import centred, shifted, slopes
from autocompress.searchers.model_based.planning import Planner
from autocompress_envs.problem import FloatArray, IntArray, Labeling, Problem
from autocompress_envs.solver import Solver

SHARE = 0.7
FACTORS = (0.25, 1.0, 4.0)  # of pruning's price where descents begin: they stay near the share of bits they begin with
SAMPLES = 256  # that are looked at, at most: a plan is to be foreseen in seconds
FEW = 64  # of these, on which changes are compared to second order: it only decides which plans are looked at whole


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
        self._weights = self._probabilities.astype(np.float32).ravel()  # of log-probabilities in the divergence
        self._certainty = float((self._probabilities * self._logs).sum())  # the part that no plan changes
        self._base, share = self._logs, SHARE
        self._own: IntArray | None = None  # cells of the plan
        if around is not None:
            self._base, share = shifted(self._logs, around.shift[:SAMPLES]), 1.0
            self._own = self.cells.of(self.cells.encode(around.labeling))
        self._shifts = np.float32(share) * self.cells.effects(effects.first(SAMPLES))
        self._base = self._base.astype(np.float32)
        self._few = np.arange(0, len(self._logs), max(1, len(self._logs) // FEW))
        self._shifts_of_few = np.ascontiguousarray(self._cube(self._shifts)[:, self._few]).reshape(
            len(self._shifts), -1
        )

    def predict(self, codes: IntArray, caution: float = 0.0) -> tuple[FloatArray, FloatArray]:
        """(M,) J of plans (M, 2L), in nats; nothing is known of how far it is off, hence (M,) zeros."""
        expected = self._predicted(codes).reshape(len(codes), -1) @ self._weights
        divergence = (self._certainty - expected.astype(np.float64)) / len(self._logs)
        return divergence + self._missed(self.cells.of(codes)), np.zeros(len(codes))

    def moves(
        self, codes: IntArray, feature: IntArray, option: IntArray, caution: float = 0.0
    ) -> tuple[FloatArray, FloatArray]:
        """What single changes (M,) of one plan (2L,) do to J, to second order; see `OutputModel.moves`."""
        cells = self.cells
        before, after = cells.changed(codes, feature, option)
        predicted = np.exp(self._predicted(codes[None])[0])
        rows = centred(self._shifts_of_few[after] - self._shifts_of_few[before], predicted[self._few])
        joint = (rows @ rows.T).astype(np.float64)
        slope = slopes(self._shifts, predicted, self._probabilities)
        alone = slope[after] - slope[before] + 0.5 * np.diag(joint)
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
        """(M, N, K) log-probabilities under plans (M, 2L), in float32; quick where these differ in few labels."""
        cells, usual = self.cells.of(codes), self.cells.of(np.median(codes, axis=0).astype(np.int64))
        plan, feature = np.nonzero(cells != usual)
        signs = np.repeat(np.array([1.0, -1.0], dtype=np.float32), len(plan))
        columns = np.concatenate([cells[plan, feature], usual[feature]])
        others = csr_array((signs, (np.tile(plan, 2), columns)), shape=(len(codes), len(self._shifts)))
        return shifted(self._base, self._cube(others @ self._shifts + self._shifts[usual].sum(0)))

    def _cube(self, shifts: Matrix) -> Matrix:
        """(M, N, K) of shifts (M, N * K)."""
        return shifts.reshape(len(shifts), *self._logs.shape)


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
    solver = Solver(problem, limits)
    pruning, rounding = np.exp(np.zeros((len(problem.layers), 2)) if prices is None else prices).T
    return [solver.solve(), *(solver.solve(factor * pruning, rounding) for factor in FACTORS)]
