"""What every searcher must keep, whatever it does inside."""

import dataclasses
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from autocompress.errors import InputError
from autocompress.searchers.agents import AGENTS
from autocompress.searchers.base import SearchSettings, Task
from autocompress.searchers.search import SEARCHERS, run_search
from autocompress_envs.numbers import Labeling, Outcome
from autocompress_envs.toy import toy_problem

METHODS = sorted(set(SEARCHERS) - {"rl"})
WAYS = [(method, "", "price") for method in METHODS] + [
    ("rl", name, action) for name, spec in sorted(AGENTS.items()) for action in spec.actions
]
LIMITS = {"size": 197}  # optimum 0.15, solver 0.4 nats: see test_toy_optimum


def toy_task(limits=LIMITS, change=None):
    problem, evaluate = toy_problem()
    return Task(problem, dict(limits), evaluate if change is None else lambda labeling: change(evaluate(labeling)))


def settings_of(agent, action, **changes):
    return SearchSettings(**{"action": action, "episodes": 12, **({"agent": agent} if agent else {}), **changes})


def walk(way, task=None, **changes):
    """The (plan, reward) pairs in the order of evaluation, and the result."""
    method, agent, action = way
    seen = []
    result = run_search(
        task or toy_task(),
        settings_of(agent, action, **changes),
        method=method,
        observe=lambda e: seen.append((as_tuple(e.labeling), e.reward)),
    )
    return seen, result


def as_tuple(labeling):
    return tuple(np.concatenate([labeling.sparsity, labeling.weight_bits, labeling.activation_bits]).tolist())


@pytest.fixture(params=WAYS, ids=lambda way: "-".join(filter(None, way)))
def way(request):
    return request.param


def test_every_plan_meets_the_budget(way):
    task = toy_task()
    plans = []
    run_search(
        task,
        settings_of(way[1], way[2]),
        method=way[0],
        observe=lambda e: plans.append(task.problem.resources(e.labeling)),
    )
    assert max(resources["size"] for resources in plans) <= 197


def test_best_is_the_best_of_all_evaluated(way):
    seen, result = walk(way)
    rewards = [reward for _, reward in seen]
    assert result.best.reward == max(rewards)
    assert result.best.index == rewards.index(max(rewards))
    assert as_tuple(result.best.labeling) == seen[result.best.index][0]


def test_counts_distinct_plans_and_never_exceeds_the_allowance(way):
    calls = []
    problem, evaluate = toy_problem()

    def counted(labeling):
        calls.append(as_tuple(labeling))
        return evaluate(labeling)

    result = run_search(Task(problem, dict(LIMITS), counted), settings_of(way[1], way[2], episodes=5), method=way[0])
    assert len(calls) == len(set(calls)) == result.evaluations <= 5


def test_same_seed_same_plans_in_the_same_order(way):
    assert walk(way)[0] == walk(way)[0]


def test_global_random_state_is_left_alone(way):
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    walk(way, episodes=3)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


def test_nan_is_one_clear_line(way):
    task = toy_task(change=lambda outcome: dataclasses.replace(outcome, kl=float("nan")))
    with pytest.raises(InputError) as caught:
        walk(way, task)
    assert str(caught.value).startswith("`evaluate` must give numbers for the reward kl, got KL nan and accuracy 0.")
    assert str(caught.value).endswith(" for evaluation 0; check the network's weights and the data.")


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_agents_start_with_the_solver(name):
    action = AGENTS[name].actions[0]
    solver = walk(("solver", "", "price"))[0]
    assert walk(("rl", name, action), episodes=1)[0] == solver
    assert walk(("rl", name, action))[1].best.reward >= solver[0][1]


def test_another_process_walks_the_same_way():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_search_contract import walk;"
        "print(walk(('rl', 'posterior-ppo', 'price'))[0])"
    )
    folder = __file__.rpartition("/")[0]
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(walk(("rl", "posterior-ppo", "price"))[0])


def test_different_seeds_walk_differently():
    assert walk(("rl", "posterior-ppo", "price"))[0] != walk(("rl", "posterior-ppo", "price"), seed=1)[0]


def fake_outcome(kl):
    return Outcome(kl, 0.5, 0.5, {"size": 1})


def labeling_of(*bits):
    zeros = np.zeros(3, dtype=np.int64)
    return Labeling(zeros, np.array(bits), zeros)
