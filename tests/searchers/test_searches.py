"""What searchers find where the best plan is known."""

import dataclasses
import itertools

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from autocompress.errors import InputError
from autocompress.searchers.base import SearchSettings, Task
from autocompress.searchers.search import SEARCHERS, run_search
from autocompress.searchers.solvers.baselines import uniform_frontier
from autocompress_envs.problem import Labeling
from autocompress_envs.testing import fair_coins, toy_problem

OPTIMUM, SOLVER = 0.512, 0.76  # nats at 204 bytes: bits 2 4 2 against 2 2 4, nothing pruned


def toy_task():
    problem, evaluate = toy_problem()
    return Task(problem, {"size": 204}, evaluate, probabilities=fair_coins(4))


def test_toy_optimum():
    task = toy_task()
    zeros = np.zeros(3, dtype=np.int64)
    plans = [
        Labeling(np.array([pruned, 0, 0]), np.array(bits), zeros)
        for pruned, bits in itertools.product((0, 1), itertools.product(range(3), repeat=3))
    ]
    feasible = [plan for plan in plans if task.problem.resources(plan)["size"] <= 204]
    assert min(task.evaluate(plan).kl for plan in feasible) == pytest.approx(OPTIMUM)


@pytest.mark.parametrize(
    ("method", "agent", "action"),
    [
        ("rl", "model-based", "price"),
        ("rl", "posterior-ppo", "price"),
        ("rl", "anchored-ppo", "price"),
        ("rl", "ppo", "label"),
        ("rl", "maskable-ppo", "discrete"),
        ("local", "posterior-ppo", "price"),
        ("mixed", "posterior-ppo", "price"),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_finds_the_optimum(method, agent, action, seed):
    settings = SearchSettings(agent, action, episodes=40, seed=seed)
    result = run_search(toy_task(), settings, method=method)
    assert result.best.outcome.kl == pytest.approx(OPTIMUM)


@pytest.mark.parametrize("method", sorted(set(SEARCHERS) - {"rl"}))
def test_every_method_takes_a_reward_that_compares_with_the_original(method):
    task = dataclasses.replace(toy_task(), original_accuracy=0.75)
    best = run_search(task, SearchSettings(reward="haq", episodes=6), method=method).best
    assert best.reward == pytest.approx(10.0 * (best.outcome.accuracy - 0.75))


def test_solver_is_one_evaluation():
    result = run_search(toy_task(), SearchSettings(), method="solver")
    assert (result.evaluations, result.stopped_because) == (1, "the solver has one plan")
    assert result.best.outcome.kl == pytest.approx(SOLVER)
    assert result.policy_state is None


def test_policy_state_is_handed_back_with_trained_parameters():
    fresh, trained = (
        run_search(toy_task(), SearchSettings(agent="posterior-ppo", episodes=count)).policy_state for count in (1, 20)
    )
    assert fresh.keys() == trained.keys()
    assert not all((fresh[name] == trained[name]).all() for name in fresh)
    assert all(value.isfinite().all() for value in trained.values())


def test_uniform_frontier_keeps_what_nothing_dominates():
    problem, _ = toy_problem()
    amounts = {bits: problem.resources(uniform)["size"] for bits, uniform in uniform_plans(problem).items()}
    frontier = uniform_frontier(problem, {"size": amounts[0, 1]})  # 4 bits, unpruned, just fits
    chosen = [(int(plan.sparsity[0]), plan.weight_bits.tolist()) for plan in frontier]
    assert amounts[0, 2] > amounts[0, 1] > amounts[1, 2]
    assert chosen == [(0, [1, 1, 1]), (1, [2, 2, 2])]


def uniform_plans(problem):
    zeros = np.zeros(3, dtype=np.int64)
    return {
        (pruned, bits): Labeling(np.array([pruned, 0, 0]), np.full(3, bits), zeros)
        for pruned, bits in itertools.product(range(2), range(3))
    }


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda task: run_search(task, SearchSettings(), method="magic"),
            f"`method` must be one of {', '.join(sorted(SEARCHERS))}, got 'magic'.",
        ),
        (
            lambda task: run_search(task, SearchSettings(agent="pop")),
            "`agent` must be one of a2c, anchored-ppo, anchored-td3, ddpg, labeling, maskable-ppo, model-based, "
            "posterior-ppo, posterior-td3, ppo, sac, td3, got 'pop' (did you mean ppo?).",
        ),
        (
            lambda task: run_search(task, SearchSettings(agent="ddpg", action="discrete")),
            "`agent` must be one that takes discrete actions (maskable-ppo), got 'ddpg'; choose one of these, or "
            "`action` price or label.",
        ),
        (
            lambda task: run_search(task, SearchSettings(agent="maskable-ppo", action="price")),
            "`agent` must be one that takes price actions (a2c, anchored-ppo, anchored-td3, ddpg, labeling, "
            "model-based, posterior-ppo, posterior-td3, ppo, sac, td3), got 'maskable-ppo'; choose one of these, "
            "or `action` discrete.",
        ),
        (
            lambda task: run_search(task, SearchSettings(reward="accuracy")),
            "`reward` must be kl with the agent labeling, got accuracy; choose another agent, such as posterior-ppo.",
        ),
        (
            lambda task: run_search(dataclasses.replace(task, probabilities=None), SearchSettings()),
            "`agent` labeling needs an evaluation that keeps outputs, got none; choose another, such as posterior-ppo.",
        ),
        (
            lambda task: run_search(task, SearchSettings(action="dance")),
            "`action` must be one of discrete, label, price, got 'dance'.",
        ),
    ],
)
def test_wrong_names(call, message):
    with pytest.raises(InputError) as caught:
        call(toy_task())
    assert str(caught.value) == message


def test_tensorboard_scalars(tmp_path):
    seen = []
    run_search(toy_task(), SearchSettings(episodes=6), observe=seen.append, tensorboard=tmp_path)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert sorted(events.Tags()["scalars"]) == [
        "search/accuracy",
        "search/best_kl",
        "search/cost_size",
        "search/kl",
        "search/reward",
    ]
    kls = [event.value for event in events.Scalars("search/kl")]
    assert kls == pytest.approx([e.outcome.kl for e in seen])
    assert [e.value for e in events.Scalars("search/best_kl")] == pytest.approx(np.minimum.accumulate(kls))
    assert [e.value for e in events.Scalars("search/cost_size")] == pytest.approx(
        [e.outcome.resources["size"] / 204 for e in seen]
    )
