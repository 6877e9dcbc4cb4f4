"""The third step of training a policy: episodes, which explore a network under randomly drawn budgets.

An episode is one plan by prices, its expected loss split into parts, and the loss that was measured for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from autocompress.policies.network import observations_of
from autocompress.searchers.explorers import PosteriorExplorer, Trial
from autocompress_envs.problem import FloatArray, Labeling, Outcome, Problem
from autocompress_envs.problem.loss_parts import LossParts
from autocompress_envs.solver import Solver

MOST_LOSS = 3.0  # nats: a network with a larger loss only guesses, and its plans teach nothing about prices
_EXACT = 1 + 1e-12  # rounding in log and exp must not make a budget one unit smaller than the plan that it comes from


@dataclass(frozen=True)
class BudgetRange:
    """Range that budgets are drawn from.

    Attributes:
        resource: resource that the budgets limit.
        low: smallest budget, as a share in [0, 1] of the way, on a logarithmic scale, from the cost of the
            cheapest plan to the cost of the plan with the most expensive label in every layer.
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

        The plan with the cheapest label in every layer is the cheapest of all, so some plan meets every such
        budget.

        Args:
            problem: the network in numbers.
            share: share of the way on a logarithmic scale, in [0, 1].

        Returns:
            The absolute upper bound, by the name of the resource.
        """
        least, most = np.log([problem.resources(labeling)[self.resource] for labeling in _extremes(problem)])
        amount = np.exp(least + share * (most - least))
        return {self.resource: int(amount * _EXACT)}


@dataclass(frozen=True)
class EpisodesUnderBudget:
    """The episodes of one network under one budget.

    Attributes:
        limits: absolute upper bound, by the name of the resource.
        observations: (L, F) observations of all layers under the budget.
        parts: (E, L, 2) expected loss of every episode's plan in nats, split by layer into pruning and
            rounding; the first plan is the solver's at log prices of 0.
        losses: (E,) measured loss of every episode's plan, in nats.
    """

    limits: Mapping[str, int]
    observations: FloatArray
    parts: FloatArray
    losses: FloatArray


def episodes(
    problem: Problem,
    evaluate: Callable[[Labeling], Outcome],
    budgets: BudgetRange,
    count: int,
    each: int,
    seed: int,
) -> Iterator[EpisodesUnderBudget]:
    """Explore a network under budgets that are drawn at random.

    The log prices of the first episode under a budget are 0. The others are drawn from the posterior given
    all episodes of this network so far (`PosteriorExplorer`), so most plans are near the best, where prices
    matter. A budget under which the solver's plan loses more than `MOST_LOSS` is left out.

    Args:
        problem: the network in numbers.
        evaluate: function that measures a plan.
        budgets: range that the budgets are drawn from.
        count: number of budgets.
        each: number of episodes under each budget; different episodes that lead to one plan are kept once.
        seed: seed of the budgets and of the prices.

    Yields:
        The episodes under each budget, in the order in which the budgets are drawn.
    """
    rng = np.random.default_rng(seed)
    explorer, parts = PosteriorExplorer(problem, rng), LossParts(problem)
    for _ in range(count):
        limits = budgets.draw(problem, rng)
        solver = Solver(problem, limits)
        reference = solver.solve()
        found: dict[bytes, tuple[FloatArray, float]] = {}
        for number in range(each):
            prices = explorer.propose().prices if number else np.zeros((len(problem.layers), 2))
            labeling = solver.solve(*np.exp(prices).T) if number else reference
            is_new = labeling.key() not in found
            if is_new:
                found[labeling.key()] = parts(labeling), evaluate(labeling).kl
            loss = found[labeling.key()][1]
            if found[reference.key()][1] > MOST_LOSS:
                break
            explorer.learn(Trial(prices, explorer.NAME, labeling, loss, is_new, is_best=False))
        stacked, losses = zip(*found.values(), strict=True)
        if losses[0] <= MOST_LOSS:
            yield EpisodesUnderBudget(limits, observations_of(solver, reference), np.stack(stacked), np.array(losses))


def _extremes(problem: Problem) -> tuple[Labeling, Labeling]:
    """The plan with the cheapest label in every layer, and the plan with the most expensive one."""
    first = np.zeros(len(problem.layers), dtype=np.int64)
    last = [np.array([len(getattr(layer, name)) - 1 for layer in problem.layers]) for name in _MENUS]
    return Labeling(last[0], first, first), Labeling(first, last[1], last[2])


_MENUS = ("sparsities", "weight_bits", "activation_bits")
