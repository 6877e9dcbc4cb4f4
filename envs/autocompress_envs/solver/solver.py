"""The Lagrangian solver: the labels of least weighted error within every budget, from one common price.

The `price` action, the baseline and the policy's starting point all use it.
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
    Prices,
    choice_of,
    labeling_of,
    weighted_errors,
)

__all__ = ["InfeasibleBudgetError", "Solver"]

BISECTIONS = 25
BRACKETINGS = 40
CLOSE = 1.002  # ratio of the bracketing prices at which bisection stops as well
ROUNDS = 5  # of re-weighing several limited resources
TIGHT = 0.9995  # share of a budget at which bisection stops; `Filler` spends the rest


class Solver:
    """Solves `minimise sum of weighted errors subject to all limits`, many times for the same problem.

    One price per unit of every resource's limit is bisected until the budget is met, then what is left of the budget
    is spent on the single changes of most error per cost. With several limits the resources' relative prices are
    corrected a few times. Sources: Everett 1963 (generalised Lagrange multipliers), Shoham & Gersho 1988.

    Args:
        problem: the menus and costs.
        limits: absolute amounts by resource (`size`, `macs`, `bitops`, `memory`), at least one.

    Raises:
        ValueError: `limits` is empty, names an unknown resource or holds no positive whole number.
        InfeasibleBudgetError: no labelling meets the limits.
    """

    def __init__(self, problem: Problem, limits: Mapping[str, int]) -> None:
        self.problem = problem
        self.limits = checked_limits(limits)
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
        """The labelling of least weighted error that was found within the limits.

        Args:
            sparsity_weights: (L,) positive; how much the pruning error of the group that a layer owns weighs, in the
                tables of all its consumers. Ones by default.
            bits_weights: (L,) positive; how much the layer's own quantization error weighs. Ones by default.

        Raises:
            ValueError: weights of the wrong shape, or not positive and finite.
        """
        errors = weighted_errors(
            self.tables,
            self._checked("sparsity_weights", sparsity_weights),
            self._checked("bits_weights", bits_weights),
        )
        filled = [self._filler.fill(errors, choice) for choice in self._relaxed(errors)]
        best = min(filled, key=lambda choice: errors.total(self.tables, choice))
        labeling = labeling_of(self.tables, best)
        assert is_within(self.problem.resources(labeling), self.limits), "the solver broke a budget"
        return labeling

    def repair(self, labeling: Labeling) -> Labeling | None:
        """The labelling, trimmed to the limits where it breaks any, with the room that is left filled.

        Trimming takes the single changes of least layer error per excess removed, filling those of most error removed
        per cost. None where single changes lead nowhere: a peak memory beyond its limit is not trimmed.
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
        """The weighted error (nats, for weights of one) that `solve` minimises."""
        errors = weighted_errors(
            self.tables,
            self._checked("sparsity_weights", sparsity_weights),
            self._checked("bits_weights", bits_weights),
        )
        return errors.total(self.tables, choice_of(self.tables, labeling))

    def _checked(self, name: str, weights: npt.ArrayLike | None) -> FloatArray:
        if weights is None:
            return self._ones
        array = np.asarray(weights, dtype=np.float64)
        if array.shape != self._ones.shape or not (np.isfinite(array) & (array > 0)).all():
            raise ValueError(f"`{name}` must hold {len(self._ones)} positive finite numbers, got {array.tolist()}.")
        return array

    def _relaxed(self, errors: Errors) -> list[Choice]:
        """The best labels of all common prices within the limits, and others just beyond, trimmed to the limits."""
        relative = dict.fromkeys(self.limits, 1.0)
        best, beyond, least = choice_of(self.tables, self.reach.cheapest), None, np.inf
        price: float | None = None
        for _ in range(ROUNDS if len(self.limits) > 1 else 1):
            bisection = _Bisection(self, errors, relative)
            price = bisection.run(price)
            total = errors.total(self.tables, bisection.best)
            if total < least:
                best, beyond, least = bisection.best, bisection.beyond, total
            if price == 0.0:
                break  # the least error of all meets every limit
            relative = {name: relative[name] * max(bisection.usage[name], 0.05) ** 3 for name in relative}
        trimmed = None if beyond is None or self._is_tight(best) else self._filler.trim(errors, beyond)
        return [best] if trimmed is None else [best, trimmed]

    def _is_tight(self, choice: Choice) -> bool:
        return max(self.usage(choice).values()) >= TIGHT

    def usage(self, choice: Choice) -> dict[str, float]:
        """Share of every limit that is used."""
        amounts = self.tables.resources(labeling_of(self.tables, choice), self.limits)
        return {name: amounts[name] / limit for name, limit in self.limits.items()}


class _Bisection:
    """Finds the smallest common price that meets all limits, for fixed relative prices."""

    def __init__(self, solver: Solver, errors: Errors, relative: Mapping[str, float]) -> None:
        self._solver, self._errors = solver, errors
        scaled = {name: relative[name] / solver.limits[name] for name in relative}
        self._prices = Prices({k: v for k, v in scaled.items() if k in ADDITIVE}, scaled.get("memory", 0.0))
        self._cost = solver.lagrangian.single_cost(self._prices)
        self._at = self.best = choice_of(solver.tables, solver.reach.cheapest)
        self.usage = solver.usage(self.best)
        self.beyond: Choice | None = None
        self._least = np.inf

    def run(self, price: float | None) -> float:
        """The smallest price found that meets the limits.

        Then `best` are the labels of least error within the limits, `usage` their share of every limit, and `beyond`
        the labels at the last price that broke a limit, if any did.
        """
        if price is None and self._fits(0.0):
            return 0.0
        low, high = self._bracket(price or self._slope())
        for _ in range(BISECTIONS):
            if max(self.usage.values()) >= TIGHT or high / low < CLOSE:
                break
            middle = float(np.sqrt(low * high))
            low, high = (low, middle) if self._fits(middle) else (middle, high)
        return high

    def _slope(self) -> float:
        """Error that the cheapest labels cost, as a first guess of the price of the whole budget."""
        return max(self._errors.total(self._solver.tables, self.best), 1e-12)

    def _bracket(self, price: float) -> tuple[float, float]:
        if self._fits(price):
            low = price / 8
            for _ in range(BRACKETINGS):
                if not self._fits(low):
                    break
                low, price = low / 8, low
            return low, price
        high = price * 8
        for _ in range(BRACKETINGS):
            if self._fits(high):
                break
            high, price = high * 8, high
        return price, high

    def _fits(self, price: float) -> bool:
        self._at = self._solver.lagrangian.minimise(self._errors, self._prices, price, self._cost, self._at)
        usage = self._solver.usage(self._at)
        if max(usage.values()) > 1.0:
            self.beyond = self._at
            return False
        total = self._errors.total(self._solver.tables, self._at)
        if total < self._least:
            self.best, self.usage, self._least = self._at, usage, total
        return True
