"""Episodes on one network: plans near the best, at budgets drawn at random, and what they did to the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from autocompress.policies.network import observations_of
from autocompress.searchers.explorers import PosteriorExplorer, Trial
from autocompress_envs.problem import FloatArray, Labeling, Outcome, Problem
from autocompress_envs.problem.loss_parts import LossParts
from autocompress_envs.solver import Solver

MOST_LOSS = 3.0  # nats: beyond it a network only guesses, and nothing can be learned of prices
_EXACT = 1 + 1e-12  # a logarithm and back must not lose the unit that a plan needs


@dataclass(frozen=True)
class BudgetRange:
    """Budgets to draw.

    Attributes:
        resource: that is limited.
        low: least budget, as a share of the way (in logs) from the cheapest plan to all the labels of most cost.
        high: largest budget, likewise.
    """

    resource: str
    low: float
    high: float

    def draw(self, problem: Problem, rng: np.random.Generator) -> dict[str, int]:
        """Limits at random."""
        return self.at(problem, rng.uniform(self.low, self.high))

    def at(self, problem: Problem, share: float) -> dict[str, int]:
        """Limits at a share of the way, in logs, from the cheapest plan to all the labels of most cost.

        The cheapest labels of every layer are the cheapest plan, so that some plan meets them.
        """
        least, most = np.log([problem.resources(labeling)[self.resource] for labeling in _extremes(problem)])
        amount = np.exp(least + share * (most - least))
        return {self.resource: int(amount * _EXACT)}


@dataclass(frozen=True)
class Budgeted:
    """Episodes under one budget.

    Attributes:
        limits: absolute.
        observations: (L, F) of the network under the budget.
        parts: (E, L, 2) loss parts of every episode's plan; the first is the solver's.
        losses: (E,) measured, nats.
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
) -> Iterator[Budgeted]:
    """Explore a network: `count` budgets, `each` episodes under every one of them.

    The prices of the first episode are 0, those of the others are drawn from what the network's own episodes so far
    let believe (`PosteriorExplorer`), so that plans are good ones, where prices matter.
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
            yield Budgeted(limits, observations_of(solver, reference), np.stack(stacked), np.array(losses))


def _extremes(problem: Problem) -> tuple[Labeling, Labeling]:
    """The labels of least and of most cost in every layer."""
    first = np.zeros(len(problem.layers), dtype=np.int64)
    last = [np.array([len(getattr(layer, name)) - 1 for layer in problem.layers]) for name in _MENUS]
    return Labeling(last[0], first, first), Labeling(first, last[1], last[2])


_MENUS = ("sparsities", "weight_bits", "activation_bits")
