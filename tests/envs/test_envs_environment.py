"""The environment's contract, its guarantee, and its masks against brute force."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as check_gymnasium
from stable_baselines3.common.env_checker import check_env as check_stable_baselines

from autocompress_envs import InfeasibleBudgetError, LayerLabelingEnv, Solver
from autocompress_envs.problem import Labeling, Outcome, Problem
from autocompress_envs.testing import (
    TOY_LIMITS,
    LayerShape,
    Menu,
    all_labelings,
    all_resources,
    build_problem,
    random_problem,
    toy_problem,
)

ACTION_NAMES = ["price", "label", "discrete"]
NO_OUTCOME = Outcome(0.1, 0.9, 0.9, {})


def toy_env(action: str, **settings: Any) -> LayerLabelingEnv:
    problem, evaluate = toy_problem()
    return LayerLabelingEnv(problem, evaluate, settings.pop("limits", TOY_LIMITS), action, **settings)


def as_lists(labeling: Labeling) -> list[list[int]]:
    return [labeling.sparsity.tolist(), labeling.weight_bits.tolist(), labeling.activation_bits.tolist()]


def even_problem() -> Problem:
    """Three layers with the same menu of three labels, so that every discrete action is legal under a wide budget."""
    shapes = [LayerShape("linear", (), None, 1, (10, 10), 1)] * 3
    errors = [np.array([[[0.5], [0.1], [0.0]]])] * 3
    return build_problem(shapes, np.zeros(0, dtype=np.int64), Menu((0.0,), (2, 4, 8), (8,)), errors)


@pytest.mark.parametrize("action", ACTION_NAMES)
def test_contract(action: str) -> None:
    problem = even_problem()
    env = gymnasium.make(
        "autocompress/LayerLabeling-v0",
        problem=problem,
        evaluate=lambda labeling: NO_OUTCOME,
        limits=problem.original(),
        action=action,
    ).unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*not having the same spec.*")
        check_gymnasium(env, skip_render_check=True)
        check_stable_baselines(env)


def test_price_zero_is_the_lagrangian_solution() -> None:
    for seed in range(10):
        problem = random_problem(np.random.default_rng(seed), 8)
        blank = Labeling(*np.zeros((3, 8), dtype=np.int64))
        smallest = Solver(problem, {"size": 10**12}).reach.smallest(blank, 0)["size"]
        limits = {"size": (smallest + problem.original()["size"]) // 2}
        env = LayerLabelingEnv(problem, lambda labeling: NO_OUTCOME, limits)
        env.reset(seed=0)
        for _ in range(8):
            *_, info = env.step(np.zeros(2, dtype=np.float32))
        assert as_lists(info["labeling"]) == as_lists(env.reference) == as_lists(Solver(problem, limits).solve())


def test_episode_of_prices_finds_what_the_solver_cannot_see() -> None:
    env = toy_env("price")
    env.reset()
    rewards = []
    for action in ([0, 0], [0, 1], [0, -0.5]):  # conv2's bits weigh e^2 as much, fc's 1 / e
        _, reward, terminated, truncated, info = env.step(np.array(action, dtype=np.float32))
        rewards.append(reward)
        assert not truncated
    assert terminated
    assert info["labeling"].weight_bits.tolist() == [0, 1, 0]
    assert info["outcome"].kl == pytest.approx(0.512)
    assert rewards == [0.0, 0.0, pytest.approx(-np.log10(0.5121))]


@pytest.mark.parametrize("chunk", range(4))
def test_random_walks_meet_every_budget(chunk: int) -> None:
    """4 x 250 walks, random problems, reachable budgets of one to four resources, all three actions.

    A budget of several resources with not one byte to spare may be refused though a labelling meets it (see
    `feasibility`); that must stay rare.
    """
    rng = np.random.default_rng(100 + chunk)
    walks = refusals = 0
    while walks < 250:
        problem = random_problem(rng, int(rng.integers(3, 8)))
        limits = random_limits(rng, problem)
        try:
            envs = {name: LayerLabelingEnv(problem, lambda labeling: NO_OUTCOME, limits, name) for name in ACTION_NAMES}
        except InfeasibleBudgetError:
            assert len(limits) > 1
            refusals += 1
            continue
        for action in ["price"] * 2 + ["label"] * 9 + ["discrete"] * 9:
            amounts = problem.resources(walk(rng, envs[action]))
            assert {n: amounts[n] for n, limit in limits.items() if amounts[n] > limit} == {}, (action, limits)
            walks += 1
    assert refusals <= 1


def random_limits(rng: np.random.Generator, problem: Problem) -> dict[str, int]:
    """The amounts of a random labelling, of one to four resources; often hardly above the smallest."""
    sizes = [(len(x.sparsities), len(x.weight_bits), len(x.activation_bits)) for x in problem.layers]
    labels = rng.integers(0, np.array(sizes)) * (rng.random((len(sizes), 1)) < rng.random())
    amounts = problem.resources(Labeling(*labels.T))
    names = rng.choice(["size", "macs", "bitops", "memory"], rng.integers(1, 5), replace=False)
    return {str(name): amounts[name] for name in names}


def walk(rng: np.random.Generator, env: LayerLabelingEnv) -> Labeling:
    env.action_space.seed(int(rng.integers(2**31)))
    env.reset()
    terminated = False
    while not terminated:
        is_discrete = isinstance(env.action_space, gymnasium.spaces.Discrete)
        action = rng.choice(np.flatnonzero(env.action_masks())) if is_discrete else env.action_space.sample()
        observation, _, terminated, _, info = env.step(action)
        assert env.observation_space.contains(observation)
        assert env.action_space.contains(info["executed_action"])
    labeling: Labeling = info["labeling"]
    return labeling


@pytest.mark.parametrize("kind", ["chain", "residual", "concat", "depthwise", "element"])
def test_masks_are_exact(kind: str) -> None:
    """With one limit, at random prefixes: legal if and only if some completion meets the limit."""
    rng = np.random.default_rng(sum(map(ord, kind)))
    checked = refused = 0
    while checked < 12 or refused < 12:
        problem = random_problem(rng, 4, kind)
        if np.prod([len(x.sparsities) * len(x.weight_bits) * len(x.activation_bits) for x in problem.layers]) > 50_000:
            continue
        plans, limits = all_labelings(problem), random_limits(rng, problem)
        limits = dict(list(limits.items())[:1])
        within = np.all([all_resources(problem, plans)[n] <= limit for n, limit in limits.items()], axis=0)
        env = LayerLabelingEnv(problem, lambda labeling: NO_OUTCOME, limits, "discrete")
        env.reset()
        for index, layer in enumerate(problem.layers):
            mask = env.action_masks()
            shape = (len(layer.sparsities), len(layer.weight_bits), len(layer.activation_bits))
            completable = np.zeros(mask.size, dtype=bool)
            of_layer = plans.sparsity[:, index], plans.weight_bits[:, index], plans.activation_bits[:, index]
            completable[np.ravel_multi_index([column[within] for column in of_layer], shape)] = True
            assert mask.tolist() == completable.tolist()
            checked += 1
            refused += int((~mask[: np.prod(shape)]).sum())
            action = int(rng.choice(np.flatnonzero(mask)))
            within &= np.ravel_multi_index(list(of_layer), shape) == action
            env.step(action)


def test_illegal_actions_are_refused() -> None:
    env = toy_env("discrete")
    env.reset()
    # conv1 is 2 sparsities x 3 bits. Unpruned at 8 bits it takes 8 x 8 x 8 = 512, all of the budget.
    assert env.action_masks().tolist() == [True, True, False, True, True, True]
    with pytest.raises(ValueError, match="budget") as caught:
        env.step(2)
    assert str(caught.value) == ("`action` must leave every budget within reach, got 2 at layer 0; see `action_masks`.")
    env.step(1)
    assert env.action_masks().tolist() == [True, False, False, False, False, False]  # 4 + 2 + 2 bits
    with pytest.raises(ValueError, match="menu") as caught:
        env.step(3)
    assert str(caught.value) == "`action` must be in the layer's menu of 3 labels, got 3."


def test_label_actions_are_clipped_to_the_budget() -> None:
    env = toy_env("label")
    env.reset()
    wish = np.array([-1.0, 1.0, 0.25], dtype=np.float32)  # no sparsity, 8 bits: takes the whole budget
    *_, info = env.step(wish)
    # Menu bits 2, 4, 8 lie at -1, -1/3, 1. 4 bits unpruned are 4/3 away, 8 bits pruned 2: 4 bits it is.
    assert info["executed_action"].tolist() == pytest.approx([-1.0, -1 / 3, 0.25])
    *_, info = env.step(np.array([0.0, -0.9, 0.0], dtype=np.float32))
    assert info["executed_action"].tolist() == pytest.approx([0.0, -0.9, 0.0])  # nothing clipped: as given
    *_, info = env.step(np.array([0.0, 0.0, 0.0], dtype=np.float32))
    assert info["executed_action"].tolist() == [0.0, -1.0, 0.0]
    assert info["labeling"].weight_bits.tolist() == [1, 0, 0]


def test_actions_beyond_the_box_are_recorded_as_executed() -> None:
    env = toy_env("price")
    env.reset()
    *_, info = env.step(np.array([3.0, -0.5]))
    assert info["executed_action"].tolist() == [1.0, -0.5]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ([0.0], "`action` must hold 2 numbers in [-1, 1], got [0.0]."),
        ([0.0, float("nan")], "`action` must hold 2 numbers in [-1, 1], got [0.0, nan]."),
    ],
)
def test_malformed_actions(action: list[float], message: str) -> None:
    env = toy_env("price")
    env.reset()
    with pytest.raises(ValueError, match="action") as caught:
        env.step(np.array(action))
    assert str(caught.value) == message


def test_budget_of_an_episode() -> None:
    env = toy_env("price")
    env.reset(options={"budget": {"bitops": 256}})
    assert env.limits == {"bitops": 256}
    for _ in range(3):
        *_, info = env.step(np.zeros(2))
    assert (info["labeling"].sparsity.tolist(), info["labeling"].weight_bits.tolist()) == ([1, 0, 0], [0, 0, 0])
    with pytest.raises(InfeasibleBudgetError) as caught:
        env.reset(options={"budget": {"bitops": 255}})
    assert str(caught.value) == (
        "`bitops` budget must be at least 256 bit operations (the smallest plan of this network), got 255; "
        "raise it or allow fewer bits or more sparsity."
    )
    with pytest.raises(ValueError, match="options") as unknown:
        env.reset(options={"budgets": {}})
    assert str(unknown.value) == "`options` must hold nothing but budget, got budgets."


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="action") as caught:
        toy_env("prize")
    assert str(caught.value) == "`action` must be one of discrete, label, price, got 'prize'."
    with pytest.raises(ValueError, match="reward") as caught:
        toy_env("price", reward="speed")
    assert str(caught.value) == (
        "`reward` must be one of accuracy, amc_error, amc_flops, balanced, galen, haq, kl, got 'speed'."
    )


def test_step_without_reset() -> None:
    with pytest.raises(ValueError, match="reset") as caught:
        toy_env("price").step(np.zeros(2))
    assert str(caught.value) == "`step` must follow `reset`: no episode is running."


def test_broken_evaluation_is_an_error() -> None:
    problem, _ = toy_problem()
    env = LayerLabelingEnv(problem, lambda labeling: Outcome(float("nan"), 0.5, 0.5, {}), TOY_LIMITS)
    env.reset()
    env.step(np.zeros(2))
    env.step(np.zeros(2))
    with pytest.raises(ValueError, match="kl") as caught:
        env.step(np.zeros(2))
    assert str(caught.value) == "`kl` of an outcome must be finite and at least 0, got nan; check the evaluation."


@pytest.mark.parametrize("action", ACTION_NAMES)
def test_same_seed_same_episode(action: str) -> None:
    problem = random_problem(np.random.default_rng(4), 7, "chain")
    smallest = Solver(problem, {"size": 10**12}).reach.smallest(Labeling(*np.zeros((3, 7), dtype=np.int64)), 0)["size"]
    limits = {"size": smallest * 3 // 2}
    env = LayerLabelingEnv(problem, lambda labeling: NO_OUTCOME, limits, action)
    first, second = (as_lists(walk(np.random.default_rng(9), env)) for _ in range(2))
    assert first == second
    assert first != as_lists(walk(np.random.default_rng(10), env))
