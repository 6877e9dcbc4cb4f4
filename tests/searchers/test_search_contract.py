"""What every searcher must keep, whatever it does inside."""

import dataclasses
import functools
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from autocompress.errors import InputError
from autocompress.searchers import base
from autocompress.searchers.agents import AGENTS
from autocompress.searchers.base import SearchSettings, Task
from autocompress.searchers.search import SEARCHERS, run_search
from autocompress_envs.problem import Outcome
from autocompress_envs.testing import additive_error, coin_shift, fair_coins, layer_errors, random_problem, toy_problem

METHODS = sorted(set(SEARCHERS) - {"rl"})
WAYS = [(method, "", "price") for method in METHODS] + [
    ("rl", name, action) for name, spec in sorted(AGENTS.items()) for action in spec.actions
]
MEASURING = ("measured", "local-measured")  # also evaluate single changes of the uncompressed network
LIMITS = {"size": 204}  # optimum 0.512, solver 0.76 nats: see test_toy_optimum


def toy_task(limits=LIMITS, change=None):
    problem, evaluate = toy_problem()
    measure = evaluate if change is None else lambda labeling: change(evaluate(labeling))
    return Task(problem, dict(limits), measure, original_accuracy=1.0, probabilities=fair_coins(4))


def settings_of(agent, action, **changes):
    return SearchSettings(**{"action": action, "episodes": 6, **({"agent": agent} if agent else {}), **changes})


def walk(way, task=None, **changes):
    """The (plan, reward, outcome) triples in the order of evaluation, and the result."""
    method, agent, action = way
    seen = []
    result = run_search(
        task or toy_task(),
        settings_of(agent, action, **changes),
        method=method,
        observe=lambda e: seen.append((as_tuple(e.labeling), e.reward, e.outcome)),
    )
    return seen, result


def as_tuple(labeling):
    return tuple(np.concatenate([labeling.sparsity, labeling.weight_bits, labeling.activation_bits]).tolist())


@pytest.fixture(autouse=True)
def few_repeats(monkeypatch):
    monkeypatch.setattr(base, "MOST_REPEATS", 8)  # the toy has few plans; quick tests need not see all of them


@pytest.fixture(params=WAYS, ids=lambda way: "-".join(filter(None, way)))
def way(request):
    return request.param


@functools.cache
def walked(way):
    return walk(way)


def test_every_plan_meets_the_budget(way):
    seen, result = walked(way)
    resources = [outcome.resources for _, _, outcome in seen]
    if way[0] in MEASURING:
        resources = [result.best.outcome.resources, resources[-1]]
    assert max(amounts["size"] for amounts in resources) <= 204


def test_best_is_the_best_of_all_evaluated(way):
    seen, result = walked(way)
    rewards = [reward if outcome.resources["size"] <= 204 else -np.inf for _, reward, outcome in seen]
    assert result.best.reward == max(rewards)
    assert result.best.index == rewards.index(max(rewards))
    assert as_tuple(result.best.labeling) == seen[result.best.index][0]


def test_counts_distinct_plans_and_never_exceeds_the_allowance(way):
    calls = []
    problem, evaluate = toy_problem()

    def counted(labeling):
        calls.append(as_tuple(labeling))
        return evaluate(labeling)

    task = Task(problem, dict(LIMITS), counted, original_accuracy=1.0, probabilities=fair_coins(4))
    result = run_search(task, settings_of(way[1], way[2], episodes=5), method=way[0])
    assert len(calls) == len(set(calls)) == result.evaluations <= 5


def test_same_seed_same_plans_and_global_random_state_is_left_alone(way):
    first = walked(way)[0]
    before = global_random_state()
    assert walk(way)[0] == first
    assert global_random_state() == before


def global_random_state():
    legacy = np.random.get_state()  # noqa: NPY002
    return random.getstate(), legacy[1].tolist(), legacy[2], torch.get_rng_state().tolist()


def test_nan_is_one_clear_line(way):
    task = toy_task(change=lambda outcome: dataclasses.replace(outcome, kl=float("nan")))
    with pytest.raises(InputError) as caught:
        walk(way, task)
    assert str(caught.value) == (
        "Evaluation 0: `kl` of an outcome must be finite and at least 0, got nan; check the evaluation."
    )


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_agents_start_with_the_solver(name):
    action = AGENTS[name].actions[0]
    solver = walk(("solver", "", "price"))[0]
    assert walk(("rl", name, action), episodes=1)[0] == solver
    assert walked(("rl", name, action))[1].best.reward >= solver[0][1]


def test_another_process_walks_the_same_way():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_search_contract import walk, base;"
        "base.MOST_REPEATS = 8; print(walk(('rl', 'model-based', 'price'))[0])"
    )
    folder = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(walked(("rl", "model-based", "price"))[0])


@pytest.mark.parametrize("agent", ["model-based", "posterior-ppo"])
def test_different_seeds_walk_differently(agent):
    problem = random_problem(np.random.default_rng(0), 12, "chain")
    limits = {"size": problem.original()["size"] // 6}

    def evaluate(labeling):
        shift = coin_shift(layer_errors(problem, labeling))
        return Outcome(additive_error(problem, labeling), 0.5, 0.5, problem.resources(labeling), shift)

    task = Task(problem, limits, evaluate, probabilities=fair_coins(12))
    first, second = (walk(("rl", agent, "price"), task, seed=seed)[0] for seed in (0, 1))
    assert first[0] == second[0]  # the solver's plan
    assert first[1:] != second[1:]
