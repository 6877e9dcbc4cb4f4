"""The third step of training a policy: experience, what was measured of one network with one kind of menu.

Budgets are drawn at random. Under each of them the solver's plan is evaluated, the plan that first-order effects
predict to be the best, and then the most promising plans of a model of the outputs that learns from every evaluation so
far. What
network and menus it depends on are its own: leaving a network out of a training leaves nothing of it behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autocompress.evaluation.effects import Effects
from autocompress.searchers.model_based.first_order import predicted_best_plan
from autocompress.searchers.model_based.output_model import OutputModel
from autocompress.searchers.model_based.planning import Planner
from autocompress_envs.problem import FloatArray, IntArray, Labeling, Outcome, Problem
from autocompress_envs.problem.tables import Tables, is_within
from autocompress_envs.solver import Solver

MOST_LOSS = 3.0  # nats: a network with a larger loss only guesses, and its plans teach nothing
STARTS = 3  # best plans within the limits from which descents start
_EXACT = 1 + 1e-12  # rounding in log and exp must not make a budget one unit smaller than the plan that it comes from
_MENUS = ("sparsities", "weight_bits", "activation_bits")

Limits = Mapping[str, int]


@dataclass(frozen=True)
class BudgetRange:
    """Range that budgets are drawn from.

    Attributes:
        resource: resource that the budgets limit.
        low: smallest budget, as a share in [0, 1] of the way, on a logarithmic scale, from the cost of the cheapest
            plan to the cost of the plan with the most expensive label in every layer.
        high: largest budget, as such a share; above `low`.
    """

    resource: str
    low: float
    high: float

    def draw(self, problem: Problem, rng: np.random.Generator) -> dict[str, int]:
        """Limits of a budget whose share is drawn uniformly from [low, high]."""
        return self.at(problem, rng.uniform(self.low, self.high))

    def at(self, problem: Problem, share: float) -> dict[str, int]:
        """Limits of the budget at a share of the way from the cheapest to the most expensive plan.

        The plan with the cheapest label in every layer is the cheapest of all, so some plan meets every such budget.

        Args:
            problem: the network in numbers.
            share: share of the way on a logarithmic scale, in [0, 1].

        Returns:
            The absolute upper bound, by the name of the resource.
        """
        least, most = np.log([problem.resources(labeling)[self.resource] for labeling in _extremes(problem)])
        amount = np.exp(least + share * (most - least))
        return {self.resource: int(amount * _EXACT)}


@dataclass(frozen=True, eq=False)
class Experience:
    """What is known of one network with one kind of menu.

    Attributes:
        problem: menus, expected losses and costs of the L layers.
        probabilities: (N, K) predictions of the original.
        effects: first-order effects of all labels on the same N samples.
        labelings: the n plans that were evaluated, each field (n, L).
        losses: (n,) their measured divergences in nats.
        shifts: (n, N, K) float16 measured changes of the log-probabilities.
        budgets: budgets under which the plans were looked for.
    """

    problem: Problem
    probabilities: FloatArray
    effects: Effects
    labelings: Labeling
    losses: FloatArray
    shifts: npt.NDArray[np.float16]
    budgets: tuple[Limits, ...]

    def output_model(self) -> OutputModel:
        """The model of the outputs that has learned from all evaluations."""
        model = OutputModel(self.problem, self.probabilities, None, self.effects)
        for number in range(len(self.losses)):
            labeling, shift = plan_at(self.labelings, number), self.shifts[number]
            model.add(labeling, Outcome(float(self.losses[number]), np.nan, np.nan, {}, shift))
        return model

    def within(self, limits: Limits) -> IntArray:
        """Numbers of the evaluated plans within limits, the best first."""
        amounts = Tables(self.problem).amounts(self.labelings, limits)
        fits = np.all([amounts[name] <= limit for name, limit in limits.items()], axis=0)
        order = self.losses.argsort(kind="stable")
        found: IntArray = order[fits[order]]
        return found


def plan_at(labelings: Labeling, number: int) -> Labeling:
    """One of stacked plans."""
    return Labeling(labelings.sparsity[number], labelings.weight_bits[number], labelings.activation_bits[number])


def explore(
    problem: Problem,
    evaluate: Callable[[Labeling], Outcome],
    probabilities: FloatArray,
    effects: Effects,
    ranges: Sequence[BudgetRange],
    count: int,
    each: int,
    seed: int,
    told: Callable[[int], None] = lambda done: None,
) -> Experience | None:
    """Evaluate plans of a network under budgets that are drawn at random.

    Args:
        problem: the network in numbers.
        evaluate: function that measures a plan; its outcomes have shifts.
        probabilities: (N, K) predictions of the original.
        effects: first-order effects of all labels around the original.
        ranges: ranges that budgets are drawn from, by turns.
        count: number of budgets.
        each: number of plans under each budget, at least 2.
        seed: seed of the budgets and of the descents' starts.
        told: function that is called after every budget with the number of budgets done.

    Returns:
        The experience; None where the solver's plan loses more than `MOST_LOSS` under every budget.
    """
    explorer = _Explorer(problem, evaluate, probabilities, effects, np.random.default_rng(seed))
    budgets = []
    for number in range(count):
        limits = ranges[number % len(ranges)].draw(problem, explorer.rng)
        if explorer.run(limits, each):
            budgets.append(limits)
        told(number + 1)
    return explorer.experience(budgets) if budgets else None


class _Explorer:
    """Plans of one network that were evaluated so far, and the model that learns from them."""

    def __init__(
        self,
        problem: Problem,
        evaluate: Callable[[Labeling], Outcome],
        probabilities: FloatArray,
        effects: Effects,
        rng: np.random.Generator,
    ) -> None:
        self._problem, self._evaluate = problem, evaluate
        self._probabilities, self._effects, self.rng = probabilities, effects, rng
        self._model = OutputModel(problem, probabilities, None, effects)
        self._plans: list[Labeling] = []
        self._outcomes: list[Outcome] = []
        self._known: set[bytes] = set()

    def run(self, limits: Limits, each: int) -> bool:
        """Evaluate up to `each` plans under one budget; whether its solver's plan loses at most `MOST_LOSS`."""
        solver = Solver(self._problem, limits)
        if self._measured(solver.solve()).kl > MOST_LOSS:
            return False
        self._measured(predicted_best_plan(self._problem, limits, self._probabilities, self._effects))
        planner = Planner(self._problem, limits, self._model)
        for number in range(each - 2):
            for plan in self._most_promising(planner, limits, caution=float(number % 2)):
                self._measured(plan)
                break
        return True

    def _measured(self, labeling: Labeling) -> Outcome:
        key = labeling.key()
        if key in self._known:
            return next(o for p, o in zip(self._plans, self._outcomes, strict=True) if p.key() == key)
        outcome = self._evaluate(labeling)
        self._known.add(key)
        self._plans.append(labeling)
        self._outcomes.append(outcome)
        self._model.add(labeling, outcome)
        return outcome

    def _most_promising(self, planner: Planner, limits: Limits, caution: float) -> Iterator[Labeling]:
        """Plans within the limits that were not evaluated yet, the most promising first."""
        fitting = [n for n in np.argsort(self._model.losses) if is_within(self._outcomes[n].resources, limits)]
        self._model.expand_around(int(fitting[0]))
        start = self._model.codes[self.rng.choice(fitting[:STARTS])]
        candidates = planner.descend(start, caution)
        if not len(candidates):
            return
        for number in self._model.predict(candidates, caution)[0].argsort(kind="stable"):
            plan = self._model.encoding.decode(candidates[number])
            if plan.key() not in self._known:
                yield plan

    def experience(self, budgets: Sequence[Limits]) -> Experience:
        """All that was measured."""
        fields = ("sparsity", "weight_bits", "activation_bits")
        stacked = Labeling(*(np.stack([getattr(plan, name) for plan in self._plans]) for name in fields))
        losses = np.array([outcome.kl for outcome in self._outcomes])
        shifts = np.stack([outcome.shift for outcome in self._outcomes if outcome.shift is not None])
        return Experience(
            self._problem, self._probabilities, self._effects, stacked, losses, shifts, tuple(map(dict, budgets))
        )


def _extremes(problem: Problem) -> tuple[Labeling, Labeling]:
    """The plan with the cheapest label in every layer, and the plan with the most expensive one."""
    first = np.zeros(len(problem.layers), dtype=np.int64)
    last = [np.array([len(getattr(layer, name)) - 1 for layer in problem.layers]) for name in _MENUS]
    return Labeling(last[0], first, first), Labeling(first, last[1], last[2])
