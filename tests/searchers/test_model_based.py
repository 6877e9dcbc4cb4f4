"""The model-based agent on small problems, where the explorer's prices soon lead to plans seen before."""

import numpy as np
import pytest

from autocompress.searchers.base import SearchSettings, Task
from autocompress.searchers.search import run_search
from autocompress_envs.numbers import Labeling, Outcome
from autocompress_envs.toy import all_labelings, coin_shift, fair_coins, layer_errors, random_problem

PRICES = np.log([[1.0, 3.0], [0.3, 1.0], [1.0, 0.5], [2.0, 1.0]])


class Interacting:
    """A chain of four layers whose bits disturb each other at random, so that the solver's plan is not the best."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.problem = random_problem(rng, 4, "chain")
        self.limits = {"size": int(0.5 * self.problem.original()["size"])}
        self.pairs = rng.exponential(1.0, (4, 4, 5, 5))

    def evaluate(self, labeling):
        bits = labeling.weight_bits
        disturbed = [1.0 + sum(self.pairs[i, j, bits[i], bits[j]] for j in range(4)) for i in range(4)]
        losses = 0.05 * layer_errors(self.problem, labeling) * disturbed
        return Outcome(float(losses.sum()), 0.5, 0.5, self.problem.resources(labeling), coin_shift(losses))

    def feasible(self):
        """The KL of every plan within the limits, least first."""
        every = all_labelings(self.problem)
        plans = map(Labeling, every.sparsity, every.weight_bits, every.activation_bits)
        outcomes = [
            self.evaluate(plan) for plan in plans if self.problem.resources(plan)["size"] <= self.limits["size"]
        ]
        return np.sort([outcome.kl for outcome in outcomes])


@pytest.mark.parametrize("prices", [None, PRICES], ids=["from zero", "from prices"])
@pytest.mark.parametrize("seed", [3, 17, 30, 33])  # networks on which it is not
def test_finds_the_best_of_many_plans_where_prices_lead_to_few(seed, prices):
    """Of 432 to 1,631 plans within the limits; the explorer alone brings 1 to 3 and then repeats itself."""
    network = Interacting(seed)
    task = Task(network.problem, network.limits, network.evaluate, probabilities=fair_coins(4), prices=prices)
    best = network.feasible()[0]
    solved = run_search(task, SearchSettings(), method="solver").best.outcome.kl
    assert solved > 1.04 * best
    found = run_search(task, SearchSettings("model-based", "price", episodes=60))
    assert found.best.outcome.kl == pytest.approx(best)
    assert (found.evaluations, found.stopped_because) == (60, "all 60 evaluations are used")
