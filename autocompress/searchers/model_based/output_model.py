"""A model of the network's outputs under any plan, learned from the plans that were evaluated.

Every evaluation gives more than one number: how each class's log-probability moved on each sample, d(p) in R^(N x K).
Layers disturb the outputs nearly additively, so d is modelled as a Gaussian process over plans whose kernel says which
plans disturb alike, the same for all N x K outputs:

    k(p, p') = a + c a^2,   a(p, p') = sum over layers of sqrt(e(o) e(o')) r^|o - o'|

with o the option that a plan takes in a layer (a sparsity, or bits), e(o) its layer error, r how alike neighbouring
options are, and the square for pairs of layers. (Rasmussen & Williams 2006, ch. 2; outputs that share one kernel:
Bonilla et al. 2008.) The mean for a plan never seen is a mixture of measured outputs, sum_n alpha_n(p) d(p_n) with
alpha = (K + s I)^-1 k(p), and its divergence, to second order around the best plan b measured so far,

    KL(p) = KL_b + g'z + z'H z / 2,   z = alpha(p) - onehot(b),
    g_n = E_samples[(q - p0)' d_n],   H_nm = E_samples[d_n' (diag q - q q') d_m],

p0 the original's and q the best plan's probabilities. So one candidate costs O(n^2) operations for n evaluations,
however many samples there are: thousands of candidates for the price of one evaluation.

Where first-order effects are known (`evaluation.effects`), the process only models what they miss: r(p) = d(p) - s D(p)
with D(p) the sum of the effects of the plan's labels and s one slope, fitted by least squares, for large disturbances
saturate. The rows of effects then stand beside the residuals r_n, and z, g and H are over both:

    z = (s (labels of p - labels of b), alpha(p) - onehot(b)).

So what single labels do need not be learned: a good plan is found in a tenth of the evaluations. Effects around a plan
b say what others do instead, r(p) = d(p) - d(b) - D_b(p); nothing saturates nearby, so their slope is 1.

What is not known of d(p) can only do harm, for a divergence is convex: its expectation is higher by v(p) h / 2, with v
the variance k(p, p) - k(p)' alpha(p) and h = tr(K^-1 H) / n the harm of one unit of kernel, as measured so far.
`caution` is the share of it that counts: 1 is the expectation, and 0 takes what is unknown to be harmless, which
explores.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from autocompress.evaluation.effects import Effects
from autocompress.searchers.model_based.cells import Cells, Matrix
from autocompress.searchers.model_based.divergence import centred, shifted, slopes
from autocompress_envs.problem import FloatArray, IntArray, Labeling, Outcome, Problem

REFIT = 24  # evaluations between two looks for better kernel settings, and a better slope
TRUST = 0.5  # power of a policy's prices by which layer errors are multiplied: between none and all
_NO_ENERGY = 1e-9  # nats: plans that are foreseen to do nothing say nothing of the slope
RECENT = 40  # predictions whose misses calibrate the uncertainty


@dataclass(frozen=True)
class KernelSettings:
    """The kernel's free numbers, chosen by leave-one-out error.

    Attributes:
        pruning: r of neighbouring sparsities, which remove nested sets of channels: close to 1.
        rounding: r of neighbouring bit-widths, whose rounding errors have little in common.
        pairs: c.
        noise: s, relative to the mean of K's diagonal.
    """

    pruning: float = 0.95
    rounding: float = 0.3
    pairs: float = 1.0
    noise: float = 1e-2


CHOICES = tuple(
    itertools.starmap(KernelSettings, itertools.product((0.9, 0.97), (0.1, 0.5), (1.0, 10.0), (1e-3, 1e-2)))
)


class OutputModel:
    """Predicts the divergence of plans from the outputs of others.

    Plans are codes; see `cells`.

    Args:
        problem: menus and costs.
        probabilities: (N, K) of the original; see `Task.probabilities`.
        prices: (L, 2) log prices of layers' pruning and rounding that a policy expects, or None.
        effects: of all labels on the same samples, or None.
    """

    def __init__(
        self,
        problem: Problem,
        probabilities: FloatArray,
        prices: FloatArray | None = None,
        effects: Effects | None = None,
    ) -> None:
        self.cells = Cells(problem, None if prices is None else TRUST * prices)
        self._probabilities = np.clip(probabilities, 1e-30, None)
        self._settings = KernelSettings()
        self._columns: FloatArray
        self._effects = (
            np.zeros((0, probabilities.size), dtype=np.float32) if effects is None else self.cells.effects(effects)
        )
        self._slope = 1.0  # s
        self._offset = np.zeros(probabilities.size, dtype=np.float32)  # d of the plan around which the effects are
        self._is_around_plan = False
        self._shifts = np.zeros((0, probabilities.size), dtype=np.float32)
        self._foreseen = np.zeros((0, probabilities.size), dtype=np.float32)  # D of the measured plans
        self.codes: IntArray = np.zeros((0, len(self.cells.offsets)), dtype=np.int64)
        self.losses = np.zeros(0)
        self._best = -1
        self._metric = np.zeros((0, 0))
        self._misses: list[float] = []
        self._rebuild()

    def __len__(self) -> int:
        return len(self.losses)

    @property
    def is_calibrated(self) -> bool:
        """Whether a prediction was ever compared with a measurement: before, deviations have no scale."""
        return bool(self._misses)

    def add(self, labeling: Labeling, outcome: Outcome) -> None:
        """Learn what a plan did to the outputs."""
        assert outcome.shift is not None, "agents check before they ask for a model"
        codes = self.cells.encode(labeling)
        if self._best >= 0:
            predicted, deviation = self.predict(codes[None])
            self._misses.append(float((outcome.kl - predicted[0]) / max(deviation[0], 1e-12) * self._calibration()))
        self.codes = np.vstack([self.codes, codes])
        self.losses = np.append(self.losses, outcome.kl)
        self._shifts = np.vstack([self._shifts, outcome.shift.astype(np.float32).reshape(1, -1)])
        self._foreseen = np.vstack([self._foreseen, self._sums(codes)])
        self._columns = np.hstack([self._columns, self._column(codes)[:, None]])
        is_time = not self._is_around_plan and (len(self) % REFIT == 0 or len(self).bit_count() == 1)
        self._look_from(int(self.losses.argmin()), anew=is_time and len(self._effects) > 0)
        if len(self) % REFIT == 0:
            self._choose_settings()
        self._solve()

    def move(self, effects: Effects, labeling: Labeling) -> None:
        """Go on with effects around a plan that was measured."""
        codes = self.cells.encode(labeling)
        self._effects, self._is_around_plan = self.cells.effects(effects), True
        self._offset = self._shifts[int((self.codes == codes).all(1).argmax())]
        self._foreseen = np.stack([self._sums(each) for each in self.codes])
        self._look_from(self._best, anew=True)
        self._solve()

    def predict(self, codes: IntArray, caution: float = 0.0) -> tuple[FloatArray, FloatArray]:
        """(M,) expected divergence in nats, and (M,) standard deviation, of plans (M, 2L)."""
        chosen = self.cells.chosen(codes)
        overlap = chosen @ self._columns
        kernel = overlap + self._settings.pairs * overlap**2
        variance = np.maximum(self._prior(codes) - ((kernel @ self._inverse) * kernel).sum(1), 0.0)
        expected = self._expected(chosen, kernel) + 0.5 * caution * self._harm * variance
        return expected, self._calibration() * np.sqrt(variance)

    def _expected(self, chosen: FloatArray, kernel: FloatArray) -> FloatArray:
        """(M,) divergence, from cells (M, cells) and kernel values (M, n) with the plans measured."""
        weights = self._weights(chosen, kernel)
        curvature = ((weights @ self._metric) * weights).sum(1)
        loss: FloatArray = self.losses[self._best] + weights @ self._gradient + 0.5 * curvature
        return loss

    def _weights(self, chosen: FloatArray, kernel: FloatArray) -> FloatArray:
        """(M, rows of the basis) what plans add to the outputs of the best."""
        known = len(self._effects)
        foreseen = chosen[:, :known] - self.cells.chosen(self.codes[self._best][None])[:, :known]
        measured = kernel @ self._inverse
        measured[:, self._best] -= 1.0
        return np.hstack([self._slope * foreseen, measured])

    def moves(
        self, codes: IntArray, feature: IntArray, option: IntArray, caution: float = 0.0
    ) -> tuple[FloatArray, FloatArray]:
        """What single changes (M,) of one plan (2L,) do to its divergence, to second order.

        Returns:
            (M,) the change that each makes alone, and (M, M) what two make on top of the sum of their own.
        """
        chosen = self.cells.chosen(codes[None])
        base = (chosen @ self._columns)[0]
        before, after = self.cells.changed(codes, feature, option)
        change = self._columns[after] - self._columns[before]
        pairs, known = self._settings.pairs, len(self._effects)
        kernel, moved = base + pairs * base**2, change * (1.0 + 2.0 * pairs * base) + pairs * change**2
        weights = moved @ self._inverse
        slope = self._gradient + self._metric @ self._weights(chosen, kernel[None])[0]
        alone = weights @ slope[known:]
        joint = (weights @ self._missed_metric) @ weights.T
        if known:
            rows = self._slope * (self._metric[after] - self._metric[before])
            crossed = rows[:, known:] @ weights.T
            joint += crossed + crossed.T + self._slope * (rows[:, after] - rows[:, before])
            alone += self._slope * (slope[after] - slope[before])
        alone += 0.5 * np.diag(joint)
        if caution > 0:
            row = self.cells.row
            own, prior = row[self.cells.of(codes)].sum(), row[after] - row[before]
            measured, weight = weights @ moved.T, 0.5 * caution * self._harm
            changed = prior * (1.0 + 2.0 * pairs * own) + pairs * prior**2
            alone += weight * (changed - 2.0 * weights @ kernel - np.diag(measured))
            joint += 2.0 * weight * (pairs * np.outer(prior, prior) - measured)
        return alone, joint

    @property
    def _missed_metric(self) -> FloatArray:
        """(n, n) the part of the metric that is of residuals."""
        known = len(self._effects)
        return self._metric[known:, known:]

    def _look_from(self, best: int, anew: bool = False) -> None:
        """Slope, gradient and metric of the divergence at the best plan; only one new row where it stays the best."""
        if anew or best != self._best:
            self._best = best
            shift = self._shifts[best].reshape(self._probabilities.shape)
            self._best_probabilities = np.exp(shifted(np.log(self._probabilities), shift))
            self._slope = self._fitted_slope()
            self._basis = np.vstack([self._effects, self._missed(self._shifts, self._foreseen)])
            self._centred = self._centre(self._basis)
            self._metric = (self._centred @ self._centred.T).astype(np.float64)
        else:
            missed = self._missed(self._shifts[-1:], self._foreseen[-1:])
            self._basis = np.vstack([self._basis, missed])
            self._centred = np.vstack([self._centred, self._centre(missed)])
            row = (self._centred @ self._centred[-1]).astype(np.float64)
            self._metric = np.block([[self._metric, row[:-1, None]], [row[None]]])
        self._gradient = slopes(self._basis, self._best_probabilities, self._probabilities)

    def _sums(self, codes: IntArray) -> Matrix:
        """(N * K,) the effects of a plan's labels (2L,)."""
        if not len(self._effects):
            return np.zeros_like(self._offset)
        summed: Matrix = self._effects[self.cells.of(codes)].sum(0)
        return summed

    def _missed(self, shifts: Matrix, foreseen: Matrix) -> Matrix:
        """(n, N * K) what effects do not tell of measured shifts (n, N * K)."""
        return shifts - self._offset - np.float32(self._slope) * foreseen

    def _fitted_slope(self) -> float:
        """Of measured shifts over foreseen ones, by least squares in the metric: large disturbances saturate."""
        if not len(self._effects):
            return 0.0
        if self._is_around_plan:
            return 1.0
        foreseen = self._centre(self._foreseen)
        energy = float((foreseen**2).sum())
        if energy < _NO_ENERGY:
            return 1.0
        return max(0.0, float((self._centre(self._shifts) * foreseen).sum()) / energy)

    def _centre(self, shifts: Matrix) -> Matrix:
        """(n, N * K) of shifts (n, N * K), under the best plan's predictions."""
        return centred(shifts, self._best_probabilities)

    def _choose_settings(self) -> None:
        """The kernel settings with the least leave-one-out error, in the metric of the divergence."""
        errors = []
        for settings in CHOICES:
            self._settings = settings
            self._rebuild()
            self._solve()
            errors.append(self._left_out())
        self._settings = CHOICES[int(np.argmin(errors))]
        self._rebuild()

    def _left_out(self) -> float:
        """Mean squared leave-one-out error (Rasmussen & Williams 2006, eq. 5.12), the better half of plans only."""
        missed = ((self._inverse @ self._missed_metric) * self._inverse).sum(1) / np.diag(self._inverse) ** 2
        return float(missed[self.losses <= np.median(self.losses)].mean())

    def _rebuild(self) -> None:
        likeness = (self._settings.pruning, self._settings.rounding)
        self._blocks = [_block(errors, r) for errors, r in zip(self.cells.errors, likeness, strict=True)]
        columns = [self._column(codes) for codes in self.codes]
        self._columns = np.array(columns).T.reshape(self.cells.row.size, len(columns))

    def _column(self, codes: IntArray) -> FloatArray:
        """(cells,) the kernel between every option of every layer and a plan's own."""
        rows = np.arange(self.cells.tables.layer_count)
        parts = zip(self._blocks, np.split(codes, 2), strict=True)
        return np.concatenate([block[rows, :, chosen].ravel() for block, chosen in parts])

    def _prior(self, codes: IntArray) -> FloatArray:
        """(M,) k(p, p)."""
        own: FloatArray = self.cells.row[self.cells.of(codes)].sum(1)
        return own + self._settings.pairs * own**2

    def _solve(self) -> None:
        overlap = self.cells.chosen(self.codes) @ self._columns
        kernel = overlap + self._settings.pairs * overlap**2
        noise = self._settings.noise * max(float(np.diag(kernel).mean()), 1e-12)
        self._inverse = np.linalg.inv(kernel + noise * np.eye(len(kernel)))
        self._harm = float((self._inverse * self._missed_metric).sum()) / max(len(self), 1)

    def _calibration(self) -> float:
        """How many times larger misses were than the kernel says."""
        recent = self._misses[-RECENT:]
        return float(np.sqrt(np.mean(np.square(recent)))) if recent else 1.0


def _block(errors: FloatArray, likeness: float) -> FloatArray:
    """(L, O, O) sqrt(e e') r^|o - o'|."""
    options = np.arange(errors.shape[1])
    alike = likeness ** np.abs(options[:, None] - options)
    root = np.sqrt(errors)
    block: FloatArray = root[:, :, None] * root[:, None, :] * alike
    return block
