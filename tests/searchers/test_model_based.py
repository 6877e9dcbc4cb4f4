"""The model-based agent on small problems, where the explorer's prices soon lead to plans seen before."""

from dataclasses import replace

import numpy as np
import pytest
from output_toys import LinearNetwork

from autocompress.searchers.base import SearchSettings, Task
from autocompress.searchers.model_based.first_order import predicted_best_plan
from autocompress.searchers.search import run_search
from autocompress.searchers.simple_plans import simple_plans
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

    def inside(self):
        """Whether each of all plans is within the limits."""
        return all_resources(self.problem, all_labelings(self.problem))["size"] <= self.limits["size"]

    def feasible(self):
        """The KL of every plan within the limits, least first."""
        every, inside = all_labelings(self.problem), self.inside()
        labels = (every.sparsity, every.weight_bits, every.activation_bits)
        return np.sort([self.evaluate(Labeling(*plan)).kl for plan in zip(*(of[inside] for of in labels), strict=True)])


@pytest.fixture(scope="module")
def interacting():
    """Tasks, and the best plans' divergences, of the small ones among 36 networks whose solver's plan is not the best.

    On most networks it is; here it is more than 4 % worse.
    """
    found = []
    for seed in range(36):
        network = Interacting(seed)
        if np.count_nonzero(network.inside()) > 2_000:
            continue
        task = Task(network.problem, network.limits, network.evaluate, probabilities=fair_coins(4))
        best = network.feasible()[0]
        if run_search(task, SearchSettings(), method="solver").best.outcome.kl > 1.04 * best:
            found.append((task, best))
    return found


@pytest.mark.parametrize("prices", [None, PRICES], ids=["from zero", "from prices"])
def test_finds_the_best_of_many_plans_where_prices_lead_to_few(interacting, prices):
    """Of up to 2,000 plans within the limits; the explorer alone brings a few plans and then repeats itself."""
    ratios, explored = [], []
    for task, best in interacting:
        found = run_search(replace(task, prices=prices), SearchSettings("model-based", "price", episodes=60))
        assert (found.evaluations, found.stopped_because) == (60, "all 60 evaluations are used")
        ratios.append(found.best.outcome.kl / best)
        explored.append(run_search(task, SearchSettings(episodes=60), method="mixed").evaluations)
    assert len(ratios) >= 4
    assert np.median(explored) <= 10
    assert np.median(ratios) == pytest.approx(1.0)
    assert sum(ratio < 1.0001 for ratio in ratios) >= len(ratios) - 1


class Linear:
    """Four layers whose effects add up, by 0.8 of what is predicted, under a limit that a third of the plans meet."""

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
def test_the_predicted_plan_comes_first(linear, prices):
    network = linear.network
    effects = network.effects(0.8)
    (first,) = linear.searched(lambda around: effects, prices, episodes=1)
    expected = predicted_best_plan(network.problem, linear.limits, network.probabilities, effects, prices)
    assert first.labeling.key() == expected.key()


def noisy(episodes, seed=0):
    """All that a search from a policy's prices evaluates where effects miss half; the plan of the prices; the task."""
    network, rng = LinearNetwork(8, seed=3, kind="chain"), np.random.default_rng(0)
    prices, effects = rng.normal(size=(8, 2)), replace(network.effects(0.8, missed=0.5), passes=np.inf)
    sizes = [network.problem.resources(network.random(rng))["size"] for _ in range(200)]
    limits = {"size": int(np.quantile(sizes, 0.4))}
    task = Task(network.problem, limits, network.evaluate, np.nan, network.probabilities, prices, lambda _: effects)
    seen = []
    run_search(task, SearchSettings("model-based", "price", episodes=episodes, seed=seed), observe=seen.append)
    return keys(seen), Solver(network.problem, limits).solve(*np.exp(prices).T).key(), task


def test_the_simple_plans_come_first_then_the_predicted_one_and_every_twelfth_is_the_explorers():
    """The explorer begins with the plan of the policy's prices. Effects are never refreshed."""
    seen, of_prices, task = noisy(25)
    simple = [plan.key() for plan in simple_plans(task.problem, task.limits)]
    predicted = predicted_best_plan(task.problem, task.limits, task.probabilities, task.effects(None), task.prices)
    assert len(simple) == 4
    assert seen[: len(simple)] == simple
    assert seen[len(simple)] == predicted.key()
    assert seen.index(of_prices) == 12


@pytest.mark.parametrize(("episodes", "simple"), [(1, 0), (2, 1), (3, 1), (6, 2), (9, 3)])
def test_simple_plans_take_a_third_of_few_evaluations_and_leave_room_for_the_predicted_one(episodes, simple):
    seen, _, task = noisy(episodes)
    plans = [plan.key() for plan in simple_plans(task.problem, task.limits)]
    predicted = predicted_best_plan(task.problem, task.limits, task.probabilities, task.effects(None), task.prices)
    assert seen.index(predicted.key()) == (0 if episodes < 3 else simple)
    assert [key for key in seen if key in plans] == plans[:simple]


def test_effects_save_most_of_the_evaluations():
    """Until the best of all plans within the limits is found, on two networks of every kind.

    On half of them the solver's plan is the best, and it comes first; on the others, effects save most evaluations.
    """
    worlds = [Linear(kind, seed) for kind in ("chain", "residual", "concat", "depthwise", "element") for seed in (0, 1)]
    known, unknown = np.array([(world.needed(world.effects), world.needed(None)) for world in worlds]).T
    assert known.max() <= 4
    is_hard = unknown > 1
    assert is_hard.sum() >= 4
    assert 3 * np.median(known[is_hard]) <= np.median(unknown[is_hard])


def test_a_seed_is_a_search_with_effects_too(linear):
    def plans(seed):
        return keys(linear.searched(linear.effects, PRICES, seed=seed))

    assert plans(0) == plans(0)
    assert plans(0) != plans(1)


@pytest.mark.parametrize("prices", [None, PRICES], ids=["from zero", "from prices"])
def test_a_network_without_effects_is_searched_as_before(linear, prices):
    """Menus that are built lazily have none to give."""
    assert keys(linear.searched(lambda around: None, prices)) == keys(linear.searched(None, prices))
