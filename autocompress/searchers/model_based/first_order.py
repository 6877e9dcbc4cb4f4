"""The divergence of plans as first-order effects predict it before any evaluation, and the best plan by that.

The first-order effects of a plan's labels add up to a shift D(p) of the log-probabilities. The shift gives a
divergence in which layers that change the outputs alike cost more than the sum of their own. Two
corrections follow. Large shifts saturate, so D(p) is shrunk. And what is not first-order grows with the layer
errors e(o), faster the more of them there are. In all, the expected divergence of a plan p is

    J(p) = KL(p0 || softmax(log p0 + s D(p))) + h (e(p) + e(p)^2),
    e(p) = sum over labels o of exp(price) e(o),

with the original's predictions p0, and a policy's log prices, learned on other networks; 0 without a policy. How much
shifts (s) and errors (h) count is measured on the zoo that policies are trained on: `ALONE` was best for the one plan
that is taken without an evaluation, until plans were renormalized; since then both are alike. In a search `IN_SEARCH`
was better, likely because the model of the outputs, which counts no errors, proposes the other plans anyway.

Around an incumbent b, a plan that was measured, the shift d(b) is known, and first-order effects D_b around b
are small enough to count in full. What is not first-order grows with the layer errors of the labels that
differ from b's:

    J(p) = KL(p0 || softmax(log p0 + d(b) + D_b(p)))
           + sum over changed labels o of exp(price) max(e(o), e(b's label)).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from autocompress.evaluation.effects import Effects
from autocompress.searchers.model_based.divergence import directional_derivatives, fisher_coordinates, shifted
from autocompress.searchers.model_based.encoding import Matrix, PlanEncoding
from autocompress.searchers.model_based.planning import Planner
from autocompress_envs.problem import FloatArray, IntArray, Labeling, Problem
from autocompress_envs.solver import Solver

PRUNING_FACTORS = (0.25, 1.0, 4.0)
"""Factors on the weight of pruning errors in the solver's plans from which descents start.

A descent hardly changes how much is pruned and how much is rounded, so several shares are tried.
"""
SAMPLES = 256  # most samples that a prediction uses: a plan is to be found in seconds
SUBSAMPLES = 64  # of these, on which changes are ranked to second order before their plans are predicted on all


@dataclass(frozen=True)
class Counting:
    """How much the two parts of the expected divergence around the original count.

    Attributes:
        shift: factor s on the sum of first-order effects.
        errors: factor h on what is not first-order.
    """

    shift: float
    errors: float


IN_SEARCH = Counting(0.7, 1.0)
ALONE = Counting(1.0, 0.3)


@dataclass(frozen=True)
class Incumbent:
    """A plan that was measured, around which effects were taken.

    Attributes:
        labeling: the plan.
        shift: (N, K) the change of the log-probabilities that was measured for it.
    """

    labeling: Labeling
    shift: FloatArray


class FirstOrderModel:
    """Predicts the divergence of plans from first-order effects alone; a `PlanModel` for the planner.

    Args:
        problem: menus, layer errors and costs of the network.
        probabilities: (N, K) the uncompressed network's predictions; the first `SAMPLES` that have effects count.
        effects: first-order effects of all labels on the same N samples.
        prices: (L, 2) a policy's log prices of pruning and of rounding. Default: None, which leaves layer
            errors as they are.
        around: the incumbent around which the effects were taken. Default: None, for effects around the
            original.
        counting: how much the parts of J count around the original. Default: `IN_SEARCH`.

    Attributes:
        encoding: codes and slots of the problem's plans, with layer errors multiplied by the prices.
    """

    def __init__(
        self,
        problem: Problem,
        probabilities: FloatArray,
        effects: Effects,
        prices: FloatArray | None = None,
        around: Incumbent | None = None,
        counting: Counting = IN_SEARCH,
    ) -> None:
        self.encoding = PlanEncoding(problem, prices)
        samples = min(SAMPLES, effects.samples)
        self._original = probabilities[:samples]  # p0, (N, K)
        logs = np.log(np.clip(self._original, 1e-30, None))
        self._weights = self._original.astype(np.float32).ravel()  # (N * K,) of log-probabilities in the divergence
        self._negative_entropy = float((self._original * logs).sum())  # the part that no plan changes
        base, factor = logs, counting.shift
        self._share = counting.errors  # h
        self._incumbent: IntArray | None = None  # (2L,) slots of the incumbent
        if around is not None:
            base, factor = shifted(logs, around.shift[:samples]), 1.0
            self._incumbent = self.encoding.slots(self.encoding.encode(around.labeling))
        self._base = base.astype(np.float32)  # (N, K) log-probabilities where no label has an effect
        self._shifts = np.float32(factor) * self.encoding.slot_effects(effects.first(samples))  # (S, N * K)
        self._some = np.arange(0, len(logs), max(1, len(logs) // SUBSAMPLES))
        some = np.ascontiguousarray(self._cube(self._shifts)[:, self._some])
        self._shifts_of_some = some.reshape(len(self._shifts), -1)  # (S, n * K)

    def predict(self, codes: IntArray, caution: float = 0.0) -> tuple[FloatArray, FloatArray]:
        """The expected divergence J of plans.

        KL(p0 || q) = sum of p0 log p0 - sum of p0 log q, averaged over samples. No plan changes the first sum.

        Args:
            codes: (M, 2L) the plans.
            caution: ignored, for the model knows no uncertainty.

        Returns:
            (M,) J in nats, and (M,) zeros, since nothing is known of how far J is off.
        """
        cross = self._log_probabilities(codes).reshape(len(codes), -1) @ self._weights  # (M,)
        divergence = (self._negative_entropy - cross.astype(np.float64)) / len(self._original)
        return divergence + self._higher_order(self.encoding.slots(codes)), np.zeros(len(codes))

    def moves(
        self, codes: IntArray, feature: IntArray, option: IntArray, caution: float = 0.0
    ) -> tuple[FloatArray, FloatArray]:
        """What M single changes of one plan do to J, to second order.

        A change from slot a to slot b shifts the log-probabilities by d = D_b - D_a. With q the plan's own
        predictions and <., .> the Fisher metric under q, the divergence changes by E[(q - p0)' d] + <d, d> /
        2, and two changes i and j together by <d_i, d_j> more than the sum of their own.

        What is not first-order is exact. Around an incumbent it is a sum over features, so it adds to single
        changes alone. Around the original it is f(e) = h (e + e^2), and a change of e by x adds f(e + x) - f(e) =
        h x (1 + 2 e + x); two changes by x and y together add 2 h x y more.

        Args:
            codes: (2L,) the plan.
            feature: (M,) the feature that each change sets.
            option: (M,) the option to which each change sets it.
            caution: ignored, for the model knows no uncertainty.

        Returns:
            (M,) the change of J in nats that each makes alone, and (M, M) what two make on top of the sum of
            their own.
        """
        encoding = self.encoding
        before, after = encoding.changed_slots(codes, feature, option)  # (M,)
        predicted = np.exp(self._log_probabilities(codes[None])[0])  # q, (N, K)
        changes = self._shifts_of_some[after] - self._shifts_of_some[before]  # (M, n * K)
        coordinates = fisher_coordinates(changes, predicted[self._some])  # (M, n * K)
        joint = (coordinates @ coordinates.T).astype(np.float64)  # (M, M)
        derivatives = directional_derivatives(self._shifts, predicted, self._original)  # (S,)
        alone = derivatives[after] - derivatives[before] + 0.5 * np.diag(joint)  # (M,)
        if self._incumbent is not None:
            return alone + self._change_errors(after, feature) - self._change_errors(before, feature), joint
        errors = encoding.slot_errors[encoding.slots(codes)].sum()  # e
        change = encoding.slot_errors[after] - encoding.slot_errors[before]  # x, (M,)
        alone += self._share * change * (1.0 + 2.0 * errors + change)
        return alone, joint + 2.0 * self._share * np.outer(change, change)

    def _higher_order(self, slots: IntArray) -> FloatArray:
        """(M,) nats that are not first-order, of plans that occupy the slots (M, 2L)."""
        if self._incumbent is not None:
            errors: FloatArray = self._change_errors(slots, np.arange(slots.shape[1])).sum(1)
            return errors
        errors = self.encoding.slot_errors[slots].sum(1)
        return self._share * (errors + errors**2)

    def _change_errors(self, slots: IntArray, feature: IntArray) -> FloatArray:
        """(...) the larger error of a slot (...) and of the incumbent's in its feature; 0 where they are one."""
        assert self._incumbent is not None
        own, errors = self._incumbent[feature], self.encoding.slot_errors
        return np.where(slots == own, 0.0, np.maximum(errors[slots], errors[own]))

    def _log_probabilities(self, codes: IntArray) -> FloatArray:
        """(M, N, K) predicted log-probabilities under plans (M, 2L), in float32.

        The shift of every plan is the sum of its slots' rows. Plans on a descent differ in few labels. So the
        sum is taken once, for the most common plan, and a sparse matrix adds what each plan changes of it.
        """
        from scipy.sparse import csr_array

        usual = self.encoding.slots(np.median(codes, axis=0).astype(np.int64))  # (2L,)
        slots = self.encoding.slots(codes)  # (M, 2L)
        plan, feature = np.nonzero(slots != usual)
        rows = np.tile(plan, 2)
        columns = np.concatenate([slots[plan, feature], usual[feature]])  # slots gained, slots lost
        signs = np.repeat(np.array([1.0, -1.0], dtype=np.float32), len(plan))
        changes = csr_array((signs, (rows, columns)), shape=(len(codes), len(self._shifts)))  # (M, S)
        return shifted(self._base, self._cube(changes @ self._shifts + self._shifts[usual].sum(0)))

    def _cube(self, shifts: Matrix) -> Matrix:
        """(M, N, K) shifts, from rows (M, N * K)."""
        return shifts.reshape(len(shifts), *self._original.shape)


def predicted_best_plan(
    problem: Problem,
    limits: Mapping[str, int],
    probabilities: FloatArray,
    effects: Effects,
    prices: FloatArray | None = None,
    around: Incumbent | None = None,
    counting: Counting = IN_SEARCH,
) -> Labeling:
    """The plan within the limits of least expected divergence, as far as descents find it, without evaluations.

    Args:
        problem: menus, layer errors and costs of the network.
        limits: upper bound of every limited resource, in absolute units.
        probabilities: (N, K) the uncompressed network's predictions.
        effects: first-order effects of all labels on the same N samples.
        prices: (L, 2) a policy's log prices of pruning and of rounding. Default: None, for prices of 0.
        around: the incumbent around which the effects were taken; the descent starts from it. Default: None,
            for effects around the original; descents then start from the solver's plans under the prices.
        counting: how much the parts of J count around the original. Default: `IN_SEARCH`.

    Raises:
        InfeasibleBudgetError: no plan meets the limits.
    """
    model = FirstOrderModel(problem, probabilities, effects, prices, around, counting)
    starts = _solver_plans(problem, limits, prices) if around is None else [around.labeling]
    codes = np.unique(np.stack([model.encoding.encode(start) for start in starts]), axis=0)
    planner = Planner(problem, limits, model)
    met = np.concatenate([codes, *map(planner.descend, codes)])
    return model.encoding.decode(met[int(model.predict(met)[0].argmin())])


def _solver_plans(problem: Problem, limits: Mapping[str, int], prices: FloatArray | None) -> list[Labeling]:
    """The solver's plan, and those under the policy's prices with pruning's weight times `PRUNING_FACTORS`."""
    solver = Solver(problem, limits)
    pruning, rounding = np.exp(np.zeros((len(problem.layers), 2)) if prices is None else prices).T
    return [solver.solve(), *(solver.solve(factor * pruning, rounding) for factor in PRUNING_FACTORS)]
