"""The model-based agent on small problems, where the explorer's prices soon lead to plans seen before."""

from dataclasses import replace

import numpy as np
import pytest
from output_toys import LinearNetwork

from autocompress.searchers.base import SearchSettings, Task
from autocompress.searchers.model_based.foresight import foreseen
from autocompress.searchers.search import run_search
from autocompress_envs.problem import Labeling, Outcome
from autocompress_envs.solver import Solver
from autocompress_envs.testing import all_labelings, all_resources, coin_shift, fair_coins, layer_errors, random_problem

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


class Linear:
    """Four layers whose effects add up, by 0.8 of what is foreseen, under a limit that a third of the plans meet."""

    def __init__(self, kind, seed):
        self.network = LinearNetwork(4, 10, 3, seed, kind, plans=300)
        every = all_labelings(self.network.problem)
        sizes = all_resources(self.network.problem, every)["size"]
        self.limits = {"size": int(np.quantile(sizes, 0.33))}
        inside = sizes <= self.limits["size"]
        plans = zip(every.sparsity[inside], every.weight_bits[inside], every.activation_bits[inside], strict=True)
        self.least = min(self.network.evaluate(Labeling(*plan)).kl for plan in plans)

    def task(self, effects=None, prices=None):
        network = self.network
        return Task(network.problem, self.limits, network.evaluate, np.nan, network.probabilities, prices, effects)

    def effects(self, around):
        """They cost nothing."""
        return self.network.effects(0.8 if around is None else 1.0, around=around)

    def searched(self, effects=None, prices=None, episodes=30, seed=0):
        """All that a search evaluates, in order."""
        seen, settings = [], SearchSettings("model-based", "price", episodes=episodes, seed=seed)
        run_search(self.task(effects, prices), settings, observe=seen.append)
        return seen

    def needed(self, effects):
        """Evaluations until the best of all plans is found."""
        return 1 + next(each.index for each in self.searched(effects) if each.outcome.kl < 1.0005 * self.least)


def keys(seen):
    return [each.labeling.key() for each in seen]


@pytest.fixture(scope="module")
def linear():
    return Linear("concat", 2)


@pytest.mark.parametrize("prices", [None, PRICES], ids=["from zero", "from prices"])
def test_the_foreseen_plan_comes_first(linear, prices):
    network = linear.network
    effects = network.effects(0.8)
    (first,) = linear.searched(lambda around: effects, prices, episodes=1)
    expected = foreseen(network.problem, linear.limits, network.probabilities, effects, prices)
    assert first.labeling.key() == expected.key()


def test_the_explorers_plans_take_their_turns_after_the_foreseen_one():
    """Every twelfth evaluation: of the policy's prices, then the solver's. Nobody looks around the best plan."""
    network, rng = LinearNetwork(8, seed=1, kind="chain"), np.random.default_rng(0)
    prices, effects = rng.normal(size=(8, 2)), replace(network.effects(0.8, missed=0.5), passes=np.inf)
    sizes = [network.problem.resources(network.random(rng))["size"] for _ in range(200)]
    limits = {"size": int(np.quantile(sizes, 0.2))}
    task = Task(network.problem, limits, network.evaluate, np.nan, network.probabilities, prices, lambda _: effects)
    seen = []
    run_search(task, SearchSettings("model-based", "price", episodes=25), observe=seen.append)
    solver = Solver(network.problem, limits)
    plans = [keys(seen).index(plan.key()) for plan in (solver.solve(*np.exp(prices).T), solver.solve())]
    assert plans == [12, 24]


@pytest.mark.parametrize(("kind", "seed"), [("chain", 0), ("concat", 2), ("element", 4), ("chain", 5)])
def test_effects_save_most_of_the_evaluations(kind, seed):
    """Until the best of 143 to 2,168 plans within the limits is found: 8, 22, 8 and 5 without, 1, 4, 1 and 1 with."""
    world = Linear(kind, seed)
    assert world.needed(world.effects) <= 4
    assert world.needed(None) >= 5


def test_a_seed_is_a_search_with_effects_too(linear):
    def plans(seed):
        return keys(linear.searched(linear.effects, PRICES, seed=seed))

    assert plans(0) == plans(0)
    assert plans(0) != plans(1)


@pytest.mark.parametrize("prices", [None, PRICES], ids=["from zero", "from prices"])
def test_a_network_without_effects_is_searched_as_before(linear, prices):
    """Menus that are built lazily have none to give."""
    assert keys(linear.searched(lambda around: None, prices)) == keys(linear.searched(None, prices))
