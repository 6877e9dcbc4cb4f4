"""A Gaussian process over plans for the network's outputs, learned from the plans that were evaluated.

Every evaluation gives more than one number: the change d(p) in R^(N x K) of each class's log-probability on
each sample. Layers disturb the outputs nearly additively. So d is modelled as a Gaussian process over plans,
whose kernel says which plans disturb alike, the same kernel for all N x K outputs:

    k(p, p') = a + c a^2,   a(p, p') = sum over features of sqrt(e(o) e(o')) r^|o - o'|

with o and o' the options that the two plans take in a feature (a layer's sparsity, or its bits), e(o) the
layer error of an option, r the correlation of neighbouring options, and the square for pairs of layers.
(Rasmussen & Williams 2006, "Gaussian Processes for Machine Learning", ch. 2; outputs that share one kernel:
Bonilla et al. 2008.)

**Prediction.** After n evaluations with Gram matrix K_y = K + s I, the posterior mean for a plan p never seen
is a mixture of measured shifts, sum_n alpha_n(p) d(p_n) with alpha(p) = K_y^-1 k(p) (eq. 2.25). The model
expands the divergence to second order around its *expansion point*, the best plan b measured so far:

    KL(p) = KL(b) + g'z + z'H z / 2,   z = alpha(p) - onehot(b),
    g_n = E[(q - p0)' d_n],   H_nm = E[d_n' (diag(q) - q q') d_m],

with the mean E over samples, the original's predictions p0 and b's predictions q. H is the Gram matrix of the
shifts in the Fisher metric (`divergence`). So one candidate costs O(n^2) operations, however many samples
there are: thousands of candidates for the price of one evaluation.

**First-order effects** (`evaluation.effects`), where they are known, are the process's mean function
(Rasmussen & Williams, sec. 2.7): the process only models the residual r(p) = d(p) - s D(p). D(p) is the sum
of the effects of the plan's labels. The slope s is fitted by least squares, for large disturbances saturate.
Effects taken around a plan b0 say what other labels do instead of b0's: r(p) = d(p) - d(b0) - D_b0(p).
Nothing saturates nearby, so their slope is 1.

The *basis* then has one row for the effect of every slot, followed by one row for the residual of every
measured plan. The coefficients z, the gradient g and the metric H are over all rows:

    z = (s (indicators of p - indicators of b), alpha(p) - onehot(b)).

So what single labels do need not be learned: a good plan is found in a tenth of the evaluations. Where the
basis would take too much memory, a part of the samples counts (`basis.affordable_samples`).

**Uncertainty.** The divergence is convex, so what is uncertain about d(p) raises its expectation. The rise is
h v(p) / 2, with the posterior variance v(p) = k(p, p) - k(p)' K_y^-1 k(p) (eq. 2.26) in units of the kernel,
and the signal variance h in nats a unit of the kernel. Its maximum-likelihood estimate is
h = tr(K_y^-1 H) / n, with the part of H between residuals. `caution` is the share of the rise that counts: 1
gives the expected divergence, and 0 the divergence at the posterior mean, which explores.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from autocompress.evaluation.effects import Effects
from autocompress.searchers.model_based.basis import Basis, affordable_samples, fitted_slope
from autocompress.searchers.model_based.divergence import shifted
from autocompress.searchers.model_based.encoding import Matrix, PlanEncoding
from autocompress.searchers.model_based.kernel import CHOICES, KernelSettings, option_kernel, variance_changes
from autocompress_envs.problem import FloatArray, IntArray, Labeling, Outcome, Problem

REFIT = 24  # evaluations between two choices of kernel settings
TRUST = 0.5  # power of a policy's prices by which layer errors are multiplied: between none (0) and all (1)
RECENT = 40  # latest standardised errors that calibrate the standard deviation


class OutputModel:
    """Predicts the divergence of plans from the measured outputs of others; a `PlanModel` for the planner.

    Args:
        problem: menus, layer errors and costs of the network.
        probabilities: (N, K) the uncompressed network's predictions, as in `Task.probabilities`.
        prices: (L, 2) a policy's log prices of pruning and of rounding. Layer errors in the kernel are
            multiplied by their `TRUST`-th power. Default: None, which leaves the layer errors as they are.
        effects: first-order effects of all labels around the original, on the first of the same samples, which
            alone count then. Default: None, for a process with mean 0.

    Attributes:
        encoding: codes and slots of the problem's plans.
        codes: (n, 2L) the plans measured, in the order in which they were added.
        losses: (n,) their measured divergences in nats.
        settings: hyper-parameters of the kernel.
        slope: the slope s of the effects; 0 where there are none.
        signal_variance: factor h, in nats, that turns variances in units of the kernel into variances in the
            Fisher metric; at least 0.
    """

    def __init__(
        self,
        problem: Problem,
        probabilities: FloatArray,
        prices: FloatArray | None = None,
        effects: Effects | None = None,
    ) -> None:
        self._prices = None if prices is None else TRUST * prices
        self.encoding = PlanEncoding(problem, self._prices)
        slots = 0 if effects is None else self.encoding.slot_errors.size
        known = len(probabilities) if effects is None else min(effects.samples, len(probabilities))
        self._samples = affordable_samples(known, slots, probabilities.shape[1])  # N of them count here
        probabilities = probabilities[self._samples]
        self._original = np.clip(probabilities, 1e-30, None)  # p0, (N, K)
        self.settings = KernelSettings()
        self._slot_kernel: FloatArray  # (S, n) a's terms for every slot and the option that each measured plan takes
        self._effects = (  # (S, N * K) by slot, or (0, N * K)
            np.zeros((0, probabilities.size), dtype=np.float32)
            if effects is None
            else self.encoding.slot_effects(effects, self._samples)
        )
        self.slope = 1.0
        self._offset = np.zeros(probabilities.size, dtype=np.float32)  # d of the plan around which the effects are
        self._is_around_plan = False
        self._shifts = np.zeros((0, probabilities.size), dtype=np.float32)  # d of the measured plans, (n, N * K)
        self._first_order = np.zeros((0, probabilities.size), dtype=np.float32)  # D of the measured plans, (n, N * K)
        self.codes: IntArray = np.zeros((0, len(self.encoding.offsets)), dtype=np.int64)
        self.losses = np.zeros(0)
        self._best = -1  # number of the expansion point among the measured plans
        self._basis = Basis((), self._original, self._original)
        self.signal_variance = 0.0
        self._standardised_errors: list[float] = []
        self._build_kernel()

    def __len__(self) -> int:
        """The number n of measured plans."""
        return len(self.losses)

    @property
    def is_calibrated(self) -> bool:
        """Whether a prediction was ever compared with a measurement; before, deviations have no scale."""
        return bool(self._standardised_errors)

    @property
    def calibration(self) -> float:
        """Factor on standard deviations: the root mean square of the latest standardised errors."""
        recent = self._standardised_errors[-RECENT:]
        return float(np.sqrt(np.mean(np.square(recent)))) if recent else 1.0

    def add(self, labeling: Labeling, outcome: Outcome) -> None:
        """Learn what a plan did to the outputs.

        Args:
            labeling: the plan.
            outcome: its measurement; with `shift` (N, K), or else nothing can be learned.
        """
        assert outcome.shift is not None, "agents check before they ask for a model"
        codes = self.encoding.encode(labeling)
        if self._best >= 0:
            predicted, deviation = self.predict(codes[None])
            error = float((outcome.kl - predicted[0]) / max(deviation[0], 1e-12) * self.calibration)
            self._standardised_errors.append(error)
        self.codes = np.vstack([self.codes, codes])
        self.losses = np.append(self.losses, outcome.kl)
        self._shifts = np.vstack([self._shifts, outcome.shift[self._samples].astype(np.float32).reshape(1, -1)])
        self._first_order = np.vstack([self._first_order, self._summed_effects(codes)])
        self._slot_kernel = np.hstack([self._slot_kernel, self._kernel_column(codes)[:, None]])
        is_time = not self._is_around_plan and (len(self) % REFIT == 0 or len(self).bit_count() == 1)
        self._expand_around(int(self.losses.argmin()), anew=is_time and len(self._effects) > 0)
        if len(self) % REFIT == 0:
            self._choose_settings()
        self._factorise()

    def recentre(self, effects: Effects, labeling: Labeling) -> None:
        """Replace the mean function: effects around a measured plan instead of those known so far.

        Args:
            effects: first-order effects around the plan, on the same N samples.
            labeling: the plan; it was added before.
        """
        codes = self.encoding.encode(labeling)
        self._basis = Basis((), self._original, self._original)  # makes room
        self._effects = np.zeros((0, self._original.size), dtype=np.float32)
        self._effects, self._is_around_plan = self.encoding.slot_effects(effects, self._samples), True
        self._offset = self._shifts[int((self.codes == codes).all(1).argmax())]
        self._first_order = np.stack([self._summed_effects(each) for each in self.codes])
        self._expand_around(self._best, anew=True)
        self._factorise()

    def expand_around(self, number: int) -> None:
        """Make another measured plan the expansion point, until the next plan is added.

        The best plan of all is far from plans under a much smaller budget, and the expansion is wrong there.

        Args:
            number: number of the plan, in the order in which they were added.
        """
        if number != self._best:
            self._expand_around(number)
            self._factorise()

    def believe(self, problem: Problem) -> None:
        """Replace the layer errors by corrected ones, after at least one plan was added.

        Where a label is believed to do nothing, the kernel holds plans with and without it to be alike, whatever
        was measured.

        Args:
            problem: the same menus and costs with other layer errors.
        """
        self.encoding = PlanEncoding(problem, self._prices)
        self._build_kernel()
        self._factorise()

    def predict(self, codes: IntArray, caution: float = 0.0) -> tuple[FloatArray, FloatArray]:
        """Expected divergence of plans, and its uncertainty, after at least one plan was added.

        With K_y^-1 as explicit inverse and one row a plan, alpha = k K_y^-1 and v = k(p, p) - alpha . k.

        Args:
            codes: (M, 2L) the plans.
            caution: share of the rise h v / 2 by uncertainty that counts, at least 0. Default: 0.

        Returns:
            (M,) the divergence in nats, and (M,) its standard deviation: the root of v, times `calibration`.
        """
        indicators = self.encoding.indicators(codes)  # (M, S)
        overlap = indicators @ self._slot_kernel  # a, (M, n)
        kernel = overlap + self.settings.pairs * overlap**2  # k(p), (M, n)
        alpha = kernel @ self._inverse  # (M, n)
        variance = np.maximum(self._prior_variance(codes) - (alpha * kernel).sum(1), 0.0)  # v, (M,)
        expected = self._expanded(indicators, alpha) + 0.5 * caution * self.signal_variance * variance
        return expected, self.calibration * np.sqrt(variance)

    def _expanded(self, indicators: FloatArray, alpha: FloatArray) -> FloatArray:
        """(M,) KL(b) + g'z + z'H z / 2 in nats, from indicators (M, S) and alpha (M, n) of plans."""
        z = self._coefficients(indicators, alpha)  # (M, S + n)
        curvature = ((z @ self._basis.metric) * z).sum(1)
        loss: FloatArray = self.losses[self._best] + z @ self._basis.gradient + 0.5 * curvature
        return loss

    def _coefficients(self, indicators: FloatArray, alpha: FloatArray) -> FloatArray:
        """(M, S + n) coefficients z of the basis, from indicators (M, S) and alpha (M, n) of plans.

        The first S are s times the slots that a plan gains (1) or loses (-1) against the expansion point;
        without effects there are none. The last n are alpha - onehot(b).
        """
        count = len(self._effects)  # S, or 0
        at_best = self.encoding.indicators(self.codes[self._best][None])
        gained = indicators[:, :count] - at_best[:, :count]
        mixture = alpha.copy()
        mixture[:, self._best] -= 1.0
        return np.hstack([self.slope * gained, mixture])

    def moves(
        self, codes: IntArray, feature: IntArray, option: IntArray, caution: float = 0.0
    ) -> tuple[FloatArray, FloatArray]:
        """What M single changes of one plan do to its expected divergence, to second order.

        A change adds a vector u to the plan's coefficients z, and so changes the divergence by

            u'(g + H z) + u'H u / 2,

        and two changes i and j together add u_i'H u_j to the sum of their own. Only what changes is computed.
        In the first S coefficients, u is -s at the slot that is left and s at the slot that is taken. In the
        last n it is m' K_y^-1, with m the change of the kernel's values: where a changes by x, k = a + c a^2
        changes by m = x (1 + 2 c a) + c x^2.

        Two changes of x and y together also change k by 2 c x y more than alone. That is left out here;
        `predict`, which decides among the best candidates, has it.

        Args:
            codes: (2L,) the plan.
            feature: (M,) the feature that each change sets.
            option: (M,) the option to which each change sets it.
            caution: share of the rise by uncertainty that counts, as in `predict`.

        Returns:
            (M,) the change in nats that each makes alone, and (M, M) what two make on top of the sum of their
            own.
        """
        indicators = self.encoding.indicators(codes[None])  # (1, S)
        overlap = (indicators @ self._slot_kernel)[0]  # a, (n,)
        before, after = self.encoding.changed_slots(codes, feature, option)  # (M,)
        change = self._slot_kernel[after] - self._slot_kernel[before]  # x, (M, n)
        pairs, count = self.settings.pairs, len(self._effects)
        kernel = overlap + pairs * overlap**2  # k, (n,)
        kernel_change = change * (1.0 + 2.0 * pairs * overlap) + pairs * change**2  # m, (M, n)
        alpha = kernel_change @ self._inverse  # the last n coefficients of u, (M, n)
        z = self._coefficients(indicators, kernel[None] @ self._inverse)[0]  # (S + n,)
        metric = self._basis.metric
        slope = self._basis.gradient + metric @ z  # g + H z, (S + n,)
        alone = alpha @ slope[count:]  # (M,)
        joint = (alpha @ self._residual_metric) @ alpha.T  # (M, M)
        if count:
            rows = self.slope * (metric[after] - metric[before])  # u'H of the first S alone, (M, S + n)
            crossed = rows[:, count:] @ alpha.T  # (M, M)
            joint += crossed + crossed.T + self.slope * (rows[:, after] - rows[:, before])
            alone += self.slope * (slope[after] - slope[before])
        alone += 0.5 * np.diag(joint)
        if caution > 0:
            weight = 0.5 * caution * self.signal_variance
            errors = self.encoding.slot_errors
            total, error_change = errors[self.encoding.slots(codes)].sum(), errors[after] - errors[before]
            variance_alone, variance_joint = variance_changes(pairs, total, error_change, kernel, kernel_change, alpha)
            alone += weight * variance_alone
            joint += weight * variance_joint
        return alone, joint

    @property
    def _residual_metric(self) -> FloatArray:
        """(n, n) the part of the metric between residuals."""
        count = len(self._effects)
        return self._basis.metric[count:, count:]

    def _expand_around(self, best: int, anew: bool = False) -> None:
        """Make a measured plan the expansion point: basis, metric H and gradient g at its predictions.

        Where it is the expansion point already, only the row of the latest plan is added, unless `anew`.
        """
        if anew or best != self._best:
            self._best = best
            shift = self._shifts[best].reshape(self._original.shape)
            self._best_probabilities = np.exp(shifted(np.log(self._original), shift))  # q, (N, K)
            self.slope = self._fitted_slope()
            self._basis = Basis((), self._original, self._original)  # two at a time would take twice the memory
            parts = self._effects, self._residuals(self._shifts, self._first_order)
            self._basis = Basis(parts, self._best_probabilities, self._original)
        else:
            self._basis.append(self._residuals(self._shifts[-1:], self._first_order[-1:]))

    def _summed_effects(self, codes: IntArray) -> Matrix:
        """(N * K,) the sum D of the effects of a plan's labels (2L,); zeros without effects."""
        if not len(self._effects):
            return np.zeros_like(self._offset)
        summed: Matrix = self._effects[self.encoding.slots(codes)].sum(0)
        return summed

    def _residuals(self, shifts: Matrix, first_order: Matrix) -> Matrix:
        """(n, N * K) what the mean function does not explain of measured shifts, given both (n, N * K)."""
        return shifts - self._offset - np.float32(self.slope) * first_order

    def _fitted_slope(self) -> float:
        """The slope s of the effects: fitted around the original, 1 around a plan, 0 without effects."""
        if not len(self._effects) or self._is_around_plan:
            return 1.0 if len(self._effects) else 0.0
        return fitted_slope(self._first_order, self._shifts, self._best_probabilities)

    def _choose_settings(self) -> None:
        """Set the kernel settings to those of `CHOICES` with the least leave-one-out error."""
        errors = []
        for settings in CHOICES:
            self.settings = settings
            self._build_kernel()
            self._factorise()
            errors.append(self._leave_one_out_error())
        self.settings = CHOICES[int(np.argmin(errors))]
        self._build_kernel()

    def _leave_one_out_error(self) -> float:
        """Mean squared leave-one-out error in the Fisher metric, over the better half of the plans.

        Without plan i, the others predict its residual with the error [K_y^-1 r]_i / [K_y^-1]_ii (Rasmussen &
        Williams 2006, eq. 5.12). So no prediction is repeated.
        """
        squared = ((self._inverse @ self._residual_metric) * self._inverse).sum(1)  # of [K_y^-1 r]_i, (n,)
        errors = squared / np.diag(self._inverse) ** 2
        return float(errors[self.losses <= np.median(self.losses)].mean())

    def _build_kernel(self) -> None:
        """Compute the kernel's terms under the present settings, for all slots and all measured plans."""
        correlations = (self.settings.pruning, self.settings.rounding)
        self._blocks = [option_kernel(errors, r) for errors, r in zip(self.encoding.errors, correlations, strict=True)]
        columns = [self._kernel_column(codes) for codes in self.codes]
        self._slot_kernel = np.array(columns).T.reshape(self.encoding.slot_errors.size, len(columns))

    def _kernel_column(self, codes: IntArray) -> FloatArray:
        """(S,) a's terms for every slot and the option that a plan (2L,) takes in the slot's feature."""
        rows = np.arange(self.encoding.tables.layer_count)
        parts = zip(self._blocks, np.split(codes, 2), strict=True)
        return np.concatenate([block[rows, :, chosen].ravel() for block, chosen in parts])

    def _prior_variance(self, codes: IntArray) -> FloatArray:
        """(M,) k(p, p) of plans (M, 2L)."""
        errors: FloatArray = self.encoding.slot_errors[self.encoding.slots(codes)].sum(1)
        return errors + self.settings.pairs * errors**2

    def _factorise(self) -> None:
        """Invert K_y = K + s I of the measured plans by its Cholesky factor, and estimate the signal variance h."""
        overlap = self.encoding.indicators(self.codes) @ self._slot_kernel  # (n, n)
        kernel = overlap + self.settings.pairs * overlap**2  # K
        noise = self.settings.noise * max(float(np.diag(kernel).mean()), 1e-12)
        factor = cho_factor(kernel + noise * np.eye(len(kernel)), lower=True)
        self._inverse = cho_solve(factor, np.eye(len(kernel)))  # explicit: every prediction multiplies by it
        self.signal_variance = float((self._inverse * self._residual_metric).sum()) / max(len(self), 1)
