"""AMC's state, wall, rounding and overshoot, by hand."""

import dataclasses
import itertools

import numpy as np
import pytest

from autocompress.errors import InputError
from autocompress.searchers.base import Recorder, SearchSettings, Task
from autocompress.searchers.published.amc import AmcEnv, AmcOptions, amc_searcher
from autocompress.searchers.published.menus import offer
from autocompress.searchers.search import run_search
from autocompress_envs.problem import Labeling, Outcome
from autocompress_envs.testing import LayerShape, Menu, additive_error, build_problem, random_problem, toy_problem

SETTINGS = SearchSettings(episodes=50)


def chain(sparsities=(0.0, 0.5, 0.75), weight_bits=(4, 8)):
    """conv0 2 -> 4 over 4 pixels, conv1 4 -> 8 over 2, fc 8 -> 4: 32 + 64 + 32 multiply-accumulates."""
    shapes = [
        LayerShape("conv", (), 0, 1, (2, 0), 4, owns=True),
        LayerShape("conv", (0,), 1, 1, (0, 0), 2, owns=True),
        LayerShape("linear", (1,), None, 1, (0, 4), 1),
    ]
    rows = [1, len(sparsities), len(sparsities)]
    errors = [0.01 * (1 + np.arange(n * len(weight_bits))).reshape(n, len(weight_bits), 1) for n in rows]
    problem = build_problem(shapes, np.array([4, 8]), Menu(sparsities, weight_bits, (8,)), errors, has_bias=False)

    def evaluate(labeling):
        kl = additive_error(problem, labeling)
        return Outcome(kl, float(np.exp(-kl)), 0.5, problem.resources(labeling))

    return problem, evaluate


def env_of(limits, options=None, **changes):
    problem, evaluate = chain(**changes)
    task = Task(problem, limits, evaluate)
    recorder = Recorder(task, SETTINGS, [])
    return AmcEnv(task, recorder, options or AmcOptions()), recorder


def act(env, *ratios):
    """The states and rewards that the ratios lead to."""
    states, rewards = [env.reset()[0]], []
    for ratio in ratios:
        state, reward, _, _, _ = env.step(np.array([ratio]))
        states.append(state)
        rewards.append(reward)
    return states, rewards


def test_states():
    env, _ = env_of({"macs": 128})
    states, _ = act(env, 0.5)
    # first conv: fewer columns (2 < 4), rows (4 < 8), weights (8 < 32), macs (32 < 64), more positions (4 > 2); 96 of
    # the 128 multiply-accumulates follow
    assert states[0] == pytest.approx([0, 0, 0, 0, 1, 0, 0, 0, 0.75, 1])
    # halved: 16 left; conv1 with a quarter of its 8 rows 2 * 2 * 2 = 8, fc 2 * 4 = 8: 32 of 128; then fc follows
    assert states[1] == pytest.approx([1, 0, 1, 1, 0, 1, 1, 0.75, 0.25, 0.5])


def test_wall_is_what_the_rest_at_its_least_leaves():
    env, recorder = env_of({"macs": 41})
    env.reset()
    # conv0 32 a, conv1 (a quarter of 8 rows) 16 a, fc 8: 48 a + 8 <= 41
    assert env.wall(0) == pytest.approx(33 / 48)
    env.step(np.array([1.0]))  # 0.6875: nearer to 0.5 than to 1
    # conv0 16, conv1 2 * 8 b * 2, fc 8 b * 4: 16 + 64 b <= 41
    assert env.wall(1) == pytest.approx(25 / 64)
    env.step(np.array([1.0]))  # 0.39 is nearest to 0.5, which costs 48; a quarter costs 32
    assert recorder.best.labeling.sparsity.tolist() == [1, 2, 0]
    assert recorder.best.outcome.resources["macs"] == 32


def test_below_the_wall_the_nearest_ratio_is_taken():
    env, recorder = env_of({"macs": 128})
    act(env, 0.8, 0.3)
    assert recorder.best.labeling.sparsity.tolist() == [0, 2, 0]  # 0.8 -> 1, 0.3 -> 0.25
    assert recorder.best.labeling.weight_bits.tolist() == [1, 1, 1]  # the highest


def test_no_wall_is_below_the_least_ratio():
    env, _ = env_of({"macs": 20}, AmcOptions(overshoot=True))
    env.reset()
    assert env.wall(0) == 0.25  # 48 * 0.25 + 8 = 20: nothing less is on the menu
    env, _ = env_of({"macs": 12}, AmcOptions(overshoot=True))
    env.reset()
    assert env.wall(0) == 0.25


def test_overshoot_rounds_after_the_wall():
    env, recorder = env_of({"macs": 41}, AmcOptions(overshoot=True))
    act(env, 1.0, 1.0)
    assert recorder.evaluations == 1
    assert recorder.best is None  # 48 of 41: never the best


def test_overshoot_as_a_search_keeps_its_best_within_the_limits():
    problem, evaluate = chain()
    seen = []
    found = run_search(
        Task(problem, {"macs": 41}, evaluate),
        SETTINGS,
        method=amc_searcher(AmcOptions(overshoot=True)),
        observe=lambda evaluated: seen.append(evaluated.outcome.resources["macs"]),
    )
    assert max(seen) == 48
    assert found.best.outcome.resources["macs"] <= 41


def test_reward_is_minus_the_error_after_the_last_layer():
    env, _ = env_of({"macs": 128})
    _, rewards = act(env, 0.5, 1.0)
    # highest bits: conv0 0.02; conv1 at its source's sparsity 0.5 0.04; fc unpruned 0.02
    assert rewards == [0.0, pytest.approx(np.exp(-0.08) - 1.0)]


def test_levels_below_a_fifth_are_not_offered():
    problem, _ = chain(sparsities=(0.0, 0.5, 0.75, 0.875))  # of 4 channels: 4, 2, 1, 1 (never none); of 8: 8, 4, 2, 1
    offered = offer(problem, 0.2, slice(-1, None), slice(-1, None))
    assert [layer.kept.tolist() for layer in offered.problem.layers[:2]] == [[4, 2, 1, 1], [8, 4, 2]]
    assert offered.problem.layers[2].errors.shape == (3, 1, 1)
    ones = np.array([3, 2, 0]), np.zeros(3, dtype=int), np.zeros(3, dtype=int)
    assert offered.full(Labeling(*ones)).weight_bits.tolist() == [1, 1, 1]
    assert additive_error(offered.problem, Labeling(*ones)) == pytest.approx(
        additive_error(problem, offered.full(Labeling(*ones)))
    )


def test_overshoot_is_off_unless_asked_for():
    for seed, kind in itertools.product(range(3), ("chain", "residual", "concat", "depthwise", "element")):
        problem = random_problem(np.random.default_rng(seed), 6, kind)
        resource = "size" if kind == "element" else "macs"
        least = offer(problem, 0.2, slice(-1, None), slice(-1, None))
        spread = problem.resources(least.full(least.harshest()))[resource], problem.original()[resource]
        limits = {resource: spread[0] + (spread[1] - spread[0]) // 3}
        task = Task(problem, limits, lambda at, problem=problem: Outcome(1.0, 0.5, 0.5, problem.resources(at)))
        env = AmcEnv(task, Recorder(task, SETTINGS, []), AmcOptions())
        rng = np.random.default_rng(0)
        for _ in range(4):
            state, done = env.reset()[0], False
            while not done:
                assert state.min() >= 0.0
                assert state.max() <= 1.0
                state, _, done, _, _ = env.step(rng.random(1))
        recorded = env._recorder
        assert recorded.best is not None
        assert max(e.outcome.resources[resource] for e in recorded._seen.values()) <= limits[resource]


def test_nothing_to_prune():
    with pytest.raises(InputError) as caught:
        env_of({"macs": 128}, sparsities=(0.0,))
    assert str(caught.value) == (
        "`method` amc needs several sparsities that leave a fifth or more on the menu of a layer, got one for each "
        "(0); offer more or choose another method."
    )


def test_budget_that_pruning_alone_does_not_meet():
    problem, evaluate = toy_problem()
    with pytest.raises(InputError) as caught:
        run_search(Task(problem, {"size": 187}, evaluate), SETTINGS, method="amc")
    # 100 + 8 * 2 fixed; 4 + 8 + 8, 4 + 8 + 8 and 8 + 16 + 8 for the layers
    assert str(caught.value) == (
        "`size` budget must be at least 188 bytes for the method amc (it only prunes, to no less than a fifth of a "
        "layer), got 187; raise it or choose another method."
    )


def test_labels_are_needed():
    problem, evaluate = toy_problem()

    def unlabelled(labeling):
        return dataclasses.replace(evaluate(labeling), accuracy=float("nan"))

    with pytest.raises(InputError) as caught:
        run_search(Task(problem, {"size": 204}, unlabelled), SETTINGS, method="amc")
    assert str(caught.value) == (
        "`method` amc needs labelled data for its reward, got accuracy nan; choose another method."
    )
