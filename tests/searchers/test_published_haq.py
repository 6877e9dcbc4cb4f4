"""HAQ's bits, last wall, state and reward, by hand."""

import dataclasses

import numpy as np
import pytest

from autocompress.errors import InputError
from autocompress.searchers.base import Recorder, SearchSettings, Task
from autocompress.searchers.published.haq import HaqEnv, lowered, nearest_bits
from autocompress.searchers.search import run_search
from autocompress_envs.problem import Labeling, Outcome
from autocompress_envs.problem.tables import Tables
from autocompress_envs.testing import LayerShape, Menu, additive_error, build_problem, toy_problem

SETTINGS = SearchSettings(episodes=50)


def toy_env(size=204, **changes):
    problem, evaluate = toy_problem()
    task = dataclasses.replace(Task(problem, {"size": size}, evaluate, original_accuracy=1.0), **changes)
    recorder = Recorder(task, SETTINGS, [])
    return HaqEnv(task, recorder), recorder


def chain_problem():
    """conv0 2 -> 4 over 4 pixels, conv1 4 -> 8 over 2, fc 8 -> 4: 32 + 64 + 32 multiply-accumulates."""
    shapes = [
        LayerShape("conv", (), 0, 1, (2, 0), 4, owns=True),
        LayerShape("conv", (0,), 1, 1, (0, 0), 2, owns=True),
        LayerShape("linear", (1,), None, 1, (0, 4), 1),
    ]
    errors = [np.full((rows, 2, 2), 0.01) for rows in (1, 2, 2)]
    return build_problem(shapes, np.array([4, 8]), Menu((0.0, 0.5), (2, 4), (4, 8)), errors, has_bias=False)


def walk(env, actions):
    """The states before each action, and the last reward."""
    state, _ = env.reset()
    states = []
    for action in actions:
        states.append(state)
        state, reward, done, _, _ = env.step(np.array([action]))
    assert done
    return states, reward


@pytest.mark.parametrize(
    ("menu", "action", "bits"),
    [
        ([2, 3, 4, 5, 6, 7, 8], 0.0, 2),
        ([2, 3, 4, 5, 6, 7, 8], 0.5, 5),  # 1.5 + 7 * 0.5
        ([2, 3, 4, 5, 6, 7, 8], 1.0, 8),
        ([2, 4, 8], 0.5, 4),  # 5 is nearer to 4 than to 8
        ([2, 4, 8], 0.7, 8),  # 6.4
        ([8], 0.0, 8),
    ],
)
def test_actions_are_spread_evenly_over_the_bits(menu, action, bits):
    assert menu[nearest_bits(np.array(menu), action)] == bits


@pytest.mark.parametrize(
    ("size", "bits"),
    [
        (220, (8, 8, 8)),  # 132 fixed; 8 + 16 + 8, 8 + 8 + 8 and 8 + 16 + 8
        (216, (8, 8, 4)),  # 4 less
        (212, (8, 4, 4)),
        (208, (4, 4, 4)),
        (207, (4, 4, 2)),  # the second round: 2 less
        (204, (4, 2, 2)),
        (202, (2, 2, 2)),
        (100, (2, 2, 2)),  # the fewest: no further
    ],
)
def test_the_last_wall_lowers_from_the_last_layer_on(size, bits):
    problem, _ = toy_problem()
    none = np.zeros(3, dtype=int)
    plan = lowered(Tables(problem), Labeling(none, none + 2, none), {"size": size})
    assert [problem.layers[0].weight_bits[index] for index in plan.weight_bits] == list(bits)


def test_the_last_wall_lowers_activations_before_weights():
    tables, none = Tables(chain_problem()), np.zeros(3, dtype=int)
    # all at 4 and 8 bits: 128 * 32 = 4096; fc's activations at 4: 32 * 16 less, then its weights at 2: 32 * 8 less
    for limit, activations, weights in ((3584, [1, 1, 0], [1, 1, 1]), (3583, [1, 1, 0], [1, 1, 0])):
        plan = lowered(tables, Labeling(none, none + 1, none + 1), {"bitops": limit})
        assert (plan.activation_bits.tolist(), plan.weight_bits.tolist()) == (activations, weights)


def test_reward_and_plan_after_the_last_layer():
    env, recorder = toy_env()
    _, reward = walk(env, [1.0, 1.0, 1.0])
    assert recorder.best.labeling.weight_bits.tolist() == [1, 0, 0]  # (4, 2, 2) bits
    assert recorder.best.labeling.sparsity.tolist() == [0, 0, 0]
    assert reward == pytest.approx(10 * (np.exp(-0.53) - 1.0))  # kl 0.01 + 0.12 + 0.40


def test_states_of_weights_alone():
    states, _ = walk(toy_env()[0], [0.0, 0.5, 1.0])
    # 8 weights each, once: nothing differs but the columns 2, 4, 2, the rows 4, 2, 4, the last layer's kind, the place
    assert states[0] == pytest.approx([0, 0, 0, 1, 0, 0, 0, 0, 1, 1])
    assert states[1] == pytest.approx([0, 0, 1, 0, 0, 0, 0, 0.5, 2 / 8, 1])
    assert states[2] == pytest.approx([0, 1, 0, 1, 0, 0, 0, 1, 4 / 8, 1])


def test_weights_and_activations_take_turns():
    problem = chain_problem()
    task = Task(problem, {"bitops": 4096}, lambda at: Outcome(1.0, 0.5, 0.5, problem.resources(at)), 0.75)
    recorder = Recorder(task, SETTINGS, [])
    states, reward = walk(HaqEnv(task, recorder), [0.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    assert [state[9] for state in states] == [1, 0, 1, 0, 1, 0]
    assert [state[8] for state in states] == [1, 2 / 4, 1, 1, 4 / 8, 1]
    assert [state[7] for state in states] == [0, 0, 0.5, 0.5, 1, 1]
    assert recorder.best.labeling.weight_bits.tolist() == [0, 1, 1]
    assert recorder.best.labeling.activation_bits.tolist() == [1, 0, 1]
    assert reward == pytest.approx(0.1 * (50 - 75))


def test_an_episode_begins_like_the_one_before():
    env, _ = toy_env()
    first, _ = walk(env, [0.0, 0.0, 0.0])
    second, _ = walk(env, [1.0, 1.0, 1.0])
    assert first[0].tolist() == second[0].tolist()


def test_bits_must_be_on_the_menu():
    problem, evaluate = toy_problem()
    only = tuple(
        dataclasses.replace(layer, weight_bits=layer.weight_bits[2:], errors=layer.errors[:, 2:])
        for layer in problem.layers
    )
    problem = dataclasses.replace(problem, layers=only)
    for method in ("haq", "releq"):
        with pytest.raises(InputError) as caught:
            run_search(Task(problem, {"size": 204}, evaluate, 1.0), SETTINGS, method=method)
        assert str(caught.value) == (
            f"`method` {method} needs several weight bit-widths on the menu of a layer, got one for each (8); "
            "offer more or choose another method."
        )


def test_budget_that_bits_alone_do_not_meet():
    problem, evaluate = toy_problem()
    for method, why in (("haq", "bits"), ("releq", "weight bits")):
        with pytest.raises(InputError) as caught:
            run_search(Task(problem, {"size": 201}, evaluate, 1.0), SETTINGS, method=method)
        assert str(caught.value) == (
            f"`size` budget must be at least 202 bytes for the method {method} (it only chooses {why}), got 201; "
            "raise it or choose another method."
        )


def test_the_original_accuracy_is_needed():
    problem, evaluate = toy_problem()
    for method in ("haq", "releq"):
        with pytest.raises(InputError) as caught:
            run_search(Task(problem, {"size": 204}, evaluate), SETTINGS, method=method)
        assert str(caught.value) == (
            f"`method` {method} needs the original network's accuracy in (0, 1], got nan; "
            "use data with the labels that it was trained for, or choose another method."
        )


def test_sparsity_stays_at_none():
    problem = chain_problem()
    seen = []

    def evaluate(labeling):
        seen.append(labeling.sparsity.tolist())
        return Outcome(additive_error(problem, labeling), 0.5, 0.5, problem.resources(labeling))

    for method in ("haq", "releq"):
        task = Task(problem, {"bitops": 2500}, evaluate, 0.75)
        run_search(task, SearchSettings(episodes=8), method=method)
    assert seen
    assert np.sum(seen) == 0
