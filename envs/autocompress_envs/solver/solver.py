"""The Lagrangian solver: the labels of least weighted expected loss within every budget.

The `price` action, the baseline method `solver` and a policy's starting point all use it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from autocompress_envs.problem import FloatArray, Labeling, Problem
from autocompress_envs.problem.tables import ADDITIVE, Tables, checked_limits, is_within
from autocompress_envs.solver.feasibility import InfeasibleBudgetError, Reach
from autocompress_envs.solver.fill import Filler
from autocompress_envs.solver.lagrangian import (
    Choice,
    Errors,
    Lagrangian,
    Multipliers,
    choice_of,
    labeling_of,
    weighted_errors,
)

__all__ = ["InfeasibleBudgetError", "Solver"]

BISECTIONS = 25  # most halvings of the bracket
BRACKETINGS = 40  # most steps, each by a factor of BRACKET_STEP, in search of a bracket
BRACKET_STEP = 8
CLOSE = 1.002  # ratio of the bracketing multipliers at which bisection stops as well
ROUNDS = 5  # bisections with several limits, after each of which the relative multipliers are corrected
LEAST_USAGE = 0.05  # least share of a limit that counts as used in a correction
TIGHT = 0.9995  # share of a budget at which bisection stops; `Filler` spends the rest


class Solver:
    """Solver of one budgeted labelling problem, for any weights of the expected losses.

    The problem, over all labellings x of the menus, is

        minimise  E(x) = sum over layers of (sparsity weight * pruning loss + bits weight * quantization loss)
        subject to  C_r(x) <= limit_r  for every limited resource r

    It is solved in three steps, after Everett (1963, generalised Lagrange multipliers) and Shoham & Gersho
    (1988):

    1. Relax: `Lagrangian` minimises E(x) + m C(x) layer by layer. C(x) is the sum over r of u_r C_r(x) /
       limit_r, m the common Lagrange multiplier and u_r the relative multiplier of resource r.
    2. Bisect: the larger m is, the less the solution costs. The smallest m whose solution meets every limit
       gives the least loss. With several limits the relative multipliers are corrected in up to 5 rounds.
    3. Fill: relaxed solutions jump over part of the budget, as they lie on the convex hull of (C, E) only.
       `Filler` spends what is left on the single changes of most gain per cost.

    An example: two layers of 100 weights that read 8 bits, at 2 or 4 weight bits, cost 1,600 or 3,200 bit
    operations each. They lose 0.8 and 0.4 nats at 2 bits, and a tenth of that at 4. If a bit operation costs
    c nats, a layer takes 4 bits where that saves more than 1,600 c nats: the first one where 1,600 c < 0.72,
    the second one where 1,600 c < 0.36. So 3,200 bit operations buy (2, 2) bits, 4,800 buy (4, 2), and 6,400
    buy (4, 4). If the second layer's loss weighs 3 times as much, 4,800 buy (2, 4), as 3 * 0.36 is above
    0.72.

    >>> from autocompress_envs.testing import LayerShape, Menu, build_problem
    >>> shape = LayerShape("linear", reads=(), writes=None, columns=1, fixed=(10, 10), positions=1)
    >>> losses = [np.array([[[0.8], [0.08]]]), np.array([[[0.4], [0.04]]])]  # (1, weight bits, activation bits)
    >>> problem = build_problem([shape, shape], np.zeros(0, dtype=np.int64), Menu((0.0,), (2, 4), (8,)), losses)
    >>> for limit in (3_200, 4_800, 6_400):
    ...     print(limit, Solver(problem, {"bitops": limit}).solve().weight_bits.tolist())  # indices into (2, 4)
    3200 [0, 0]
    4800 [1, 0]
    6400 [1, 1]
    >>> Solver(problem, {"bitops": 4_800}).solve(bits_weights=[1.0, 3.0]).weight_bits.tolist()
    [0, 1]

    Args:
        problem: the layers' menus and the cost model.
        limits: absolute upper bounds by resource (`size`, `macs`, `bitops`, `memory`, `latency`,
            `energy`), at least one.

    Attributes:
        problem: the problem that was given.
        limits: a checked copy of the limits.
        tables: padded menus of the problem.
        reach: feasibility of completions under the limits.
        lagrangian: solver of the relaxed problem.

    Raises:
        ValueError: `limits` is empty, names an unknown resource or one that is not counted, or holds no positive whole
            number.
        InfeasibleBudgetError: no labelling meets the limits.
    """

    def __init__(self, problem: Problem, limits: Mapping[str, int]) -> None:
        self.problem = problem
        self.limits = checked_limits(limits)
        if "latency" in self.limits and problem.costs.kernels is None:
            raise ValueError("`limits` of latency need a cost model with `kernels`, got one without.")
        if "energy" in self.limits and problem.costs.energy is None:
            raise ValueError("`limits` of energy need a cost model with `energy`, got one without.")
        self.tables = Tables(problem)
        self.reach = Reach(self.tables, self.limits)
        self.lagrangian = Lagrangian(self.tables)
        self._filler = Filler(self.tables, self.lagrangian, self.limits)
        self._ones = np.ones(len(problem.layers))

    def solve(
        self,
        sparsity_weights: npt.ArrayLike | None = None,
        bits_weights: npt.ArrayLike | None = None,
    ) -> Labeling:
        """The labelling of least weighted expected loss that was found within the limits.

        The result is near the optimum, not always at it; it always meets every limit.

        Args:
            sparsity_weights: (L,) positive factors of the pruning losses, by the owner of the pruned group:
                the weight applies to the losses of all layers that read the group. Ones by default.
            bits_weights: (L,) positive factors of the layers' own quantization losses. Ones by default.

        Raises:
            ValueError: weights of the wrong shape, or not positive and finite.
        """
        errors = self._weighted(sparsity_weights, bits_weights)
        filled = [self._filler.fill(errors, choice) for choice in self._relaxed(errors)]
        best = min(filled, key=lambda choice: errors.total(self.tables, choice))
        labeling = labeling_of(self.tables, best)
        assert is_within(self.problem.resources(labeling), self.limits), "the solver broke a budget"
        return labeling

    def repair(self, labeling: Labeling) -> Labeling | None:
        """A labelling within the limits that is near the given one.

        Where it breaks a limit, it is trimmed by the single changes of least expected loss per excess
        removed. Then the room that is left is filled by the single changes that save most expected loss per
        cost.

        Returns:
            The labelling, or None where single changes lead nowhere: peak memory beyond its limit is not
            trimmed.
        """
        errors = weighted_errors(self.tables, self._ones, self._ones)
        trimmed = self._filler.trim(errors, choice_of(self.tables, labeling))
        return None if trimmed is None else labeling_of(self.tables, self._filler.fill(errors, trimmed))

    def error(
        self,
        labeling: Labeling,
        sparsity_weights: npt.ArrayLike | None = None,
        bits_weights: npt.ArrayLike | None = None,
    ) -> float:
        """The weighted expected loss E(x) that `solve` minimises, in nats where all weights are one.

        Args:
            labeling: any labelling of the problem, whether it meets the limits or not.
            sparsity_weights: as for `solve`.
            bits_weights: as for `solve`.

        Raises:
            ValueError: weights of the wrong shape, or not positive and finite.
        """
        errors = self._weighted(sparsity_weights, bits_weights)
        return errors.total(self.tables, choice_of(self.tables, labeling))

    def usage(self, choice: Choice) -> dict[str, float]:
        """The share of every limit that a choice uses, by resource: above 1 where it breaks the limit."""
        amounts = self.tables.resources(labeling_of(self.tables, choice), self.limits)
        return {name: amounts[name] / limit for name, limit in self.limits.items()}

    def _weighted(self, sparsity_weights: npt.ArrayLike | None, bits_weights: npt.ArrayLike | None) -> Errors:
        """The expected losses of all options, weighted."""
        return weighted_errors(
            self.tables,
            self._checked("sparsity_weights", sparsity_weights),
            self._checked("bits_weights", bits_weights),
        )

    def _checked(self, name: str, weights: npt.ArrayLike | None) -> FloatArray:
        """(L,) the weights as an array, ones by default; a ValueError where they are malformed."""
        if weights is None:
            return self._ones
        array = np.asarray(weights, dtype=np.float64)
        if array.shape != self._ones.shape or not (np.isfinite(array) & (array > 0)).all():
            raise ValueError(f"`{name}` must hold {len(self._ones)} positive finite numbers, got {array.tolist()}.")
        return array

    def _relaxed(self, errors: Errors) -> list[Choice]:
        """One or two choices within the limits, from which to fill.

        The first one has the least loss of all relaxed solutions within the limits that were found in any
        round. The second one is the relaxed solution just beyond the limits of the same round, trimmed to
        them; it is left out where the first one already uses the whole budget.

        At the optimum a resource that is not used up has multiplier 0 (complementary slackness). So after
        each round a relative multiplier is scaled by the cube of the share of its limit that was used: where
        a half was used, it falls to an eighth.
        """
        relative = dict.fromkeys(self.limits, 1.0)
        best, beyond, least = choice_of(self.tables, self.reach.cheapest), None, np.inf
        multiplier: float | None = None
        for _ in range(ROUNDS if len(self.limits) > 1 else 1):
            bisection = _Bisection(self, errors, relative)
            multiplier = bisection.run(multiplier)
            total = errors.total(self.tables, bisection.best)
            if total < least:
                best, beyond, least = bisection.best, bisection.beyond, total
            if multiplier == 0.0:
                break  # the least loss of all meets every limit
            relative = {name: relative[name] * max(bisection.usage[name], LEAST_USAGE) ** 3 for name in relative}
        trimmed = None if beyond is None or self._is_tight(best) else self._filler.trim(errors, beyond)
        return [best] if trimmed is None else [best, trimmed]

    def _is_tight(self, choice: Choice) -> bool:
        """Whether a choice uses some limit up, to within 0.05 %."""
        return max(self.usage(choice).values()) >= TIGHT


class _Bisection:
    """Search for the smallest common multiplier whose relaxed solution meets all limits.

    Let x minimise E + m C, and y minimise E + n C, with m < n. Then

        E(x) + m C(x) <= E(y) + m C(y)   and   E(y) + n C(y) <= E(x) + n C(x)

    The sum of both says (n - m) (C(y) - C(x)) <= 0. So a larger multiplier never costs more, and bisection
    works. It works on logarithms, as multipliers span magnitudes. `Lagrangian.minimise` may be inexact; so
    the best choice of all that were tried is kept.

    Args:
        solver: solver of the same problem and limits.
        errors: weighted expected losses of all options.
        relative: relative multipliers by resource, in units of 1 / limit.

    Attributes:
        best: choice of least loss within the limits; the cheapest labels before any was found.
        usage: share of every limit that `best` uses, by resource.
        beyond: last choice that broke a limit, or None.
    """

    def __init__(self, solver: Solver, errors: Errors, relative: Mapping[str, float]) -> None:
        self._solver, self._errors = solver, errors
        per_unit = {name: relative[name] / solver.limits[name] for name in relative}
        additive = {name: weight for name, weight in per_unit.items() if name in ADDITIVE}
        self._costs = solver.lagrangian.weighted_costs(Multipliers(additive, per_unit.get("memory", 0.0)))
        self._at = self.best = choice_of(solver.tables, solver.reach.cheapest)
        self.usage = solver.usage(self.best)
        self.beyond: Choice | None = None
        self._least = np.inf

    def run(self, guess: float | None) -> float:
        """The smallest common multiplier found whose relaxed solution meets the limits; sets the attributes.

        Args:
            guess: multiplier to begin at, such as that of another round. None begins at 0, then at the loss
                of the cheapest labels.
        """
        if guess is None and self._fits(0.0):
            return 0.0
        low, high = self._bracket(guess or self._first_guess())
        for _ in range(BISECTIONS):
            is_tight = max(self.usage.values()) >= TIGHT
            if is_tight or high / low < CLOSE:
                break
            middle = float(np.sqrt(low * high))
            low, high = (low, middle) if self._fits(middle) else (middle, high)
        return high

    def _first_guess(self) -> float:
        """The loss of the cheapest labels in nats: what the whole budget (C = 1) may be worth."""
        return max(self._errors.total(self._solver.tables, self.best), 1e-12)

    def _bracket(self, multiplier: float) -> tuple[float, float]:
        """Two multipliers a factor of 8 apart: the lower one breaks a limit, the higher one meets all.

        Where none does within 40 steps, they are the last two that were tried.
        """
        if self._fits(multiplier):
            low = multiplier / BRACKET_STEP
            for _ in range(BRACKETINGS):
                if not self._fits(low):
                    break
                low, multiplier = low / BRACKET_STEP, low
            return low, multiplier
        high = multiplier * BRACKET_STEP
        for _ in range(BRACKETINGS):
            if self._fits(high):
                break
            high, multiplier = high * BRACKET_STEP, high
        return multiplier, high

    def _fits(self, multiplier: float) -> bool:
        """Whether the relaxed solution at a multiplier meets the limits; it updates `best` or `beyond`."""
        lagrangian, tables = self._solver.lagrangian, self._solver.tables
        self._at = lagrangian.minimise(self._errors, self._costs, multiplier, self._at)
        usage = self._solver.usage(self._at)
        if max(usage.values()) > 1.0:
            self.beyond = self._at
            return False
        total = self._errors.total(tables, self._at)
        if total < self._least:
            self.best, self.usage, self._least = self._at, usage, total
        return True
