"""Galen's state, standardization, actions and reward, by hand."""

import numpy as np
import pytest

from autocompress.errors import InputError
from autocompress.searchers.base import Recorder, SearchSettings, Task
from autocompress.searchers.published.galen import GalenEnv, Standardizer, sensitivities
from autocompress.searchers.search import run_search
from autocompress_envs.problem import Outcome
from autocompress_envs.problem.tables import Tables
from autocompress_envs.testing import toy_problem

SETTINGS = SearchSettings(episodes=50)


def toy_env(size=220):
    problem, evaluate = toy_problem()
    task = Task(problem, {"size": size}, evaluate)
    recorder = Recorder(task, SETTINGS, [])
    return GalenEnv(task, recorder), recorder


def walk(env, actions):
    env.reset()
    for action in actions:
        _, reward, done, _, _ = env.step(np.array(action))
    assert done
    return reward


def test_standardizes_by_all_so_far():
    standard = Standardizer(2)
    assert standard(np.array([1.0, 5.0])).tolist() == [0.0, 0.0]
    assert standard(np.array([3.0, 5.0])) == pytest.approx([1.0, 0.0])  # mean 2, deviation 1
    assert standard(np.array([5.0, 8.0])) == pytest.approx([2 / np.sqrt(8 / 3), 2 / np.sqrt(2)])


def test_sensitivities_are_logs_of_layer_errors():
    problem, _ = toy_problem()
    of = sensitivities(problem, Tables(problem))
    # conv1 can be pruned; what that loses, 0.6 nats at half, is conv2's: a straight line in the log from 1e-12 (none)
    floor, half = -12.0, np.log10(0.6)
    assert of[0, :10] == pytest.approx([floor + tenth / 10 * (half - floor) for tenth in range(10)])
    assert of[1, :10].tolist() == [3.0] * 10  # not prunable
    assert of[2, 10:20] == pytest.approx(np.full(10, -12.0))  # activations stay at 8 bits
    # weights from 8 bits (nothing lost) to 2: at 5 and at 2.6 bits, 0.04 nats at 4 and 0.4 at 2
    at_4, at_2 = np.log10(0.04), np.log10(0.4)
    assert of[2, 20] == pytest.approx(-12.0)
    assert of[2, 25] == pytest.approx(at_4 + (5 - 4) / 4 * (-12.0 - at_4))
    assert of[2, 29] == pytest.approx(at_2 + (2.6 - 2) / 2 * (at_4 - at_2))
    assert of[2, 30:] == pytest.approx([-12.0, -12.0])


def test_raw_states():
    env, _ = toy_env()
    env.reset()
    first = env.raw_state(np.zeros(3))
    # 8 multiply-accumulates of 32 x 32 bits; 4 rows of 2; one position, not depthwise; 8 weights; two layers follow
    assert first[:12] == pytest.approx([0, 8, 8192, 4, 2, 1, 0, 8, 0, 2 / 3, 0, 2 / 3])
    env.step(np.array([1.0, 0.0, 1.0]))  # half of the channels, 2 bits
    second = env.raw_state(np.array([1.0, 0.0, 1.0]))
    # 4 of 4 x 2 x 8 bits before; conv2 keeps 2 rows of 2: 4; then 8 at 32 x 32
    before, now, after = 4 * 16, 4 * 1024, 8 * 1024
    shares = [4 / 16, 8 / 16, before / (before + now + after), after / (before + now + after)]
    assert second[:12] == pytest.approx([1, 4, 4096, 2, 2, 1, 0, 4, *shares])
    assert second[44:].tolist() == [1.0, 0.0, 1.0]
    assert len(second) == 47


def test_the_first_state_is_centred_on_itself():
    env, _ = toy_env()
    assert env.reset()[0].tolist() == [0.0] * 47


@pytest.mark.parametrize(
    ("action", "size", "sparsity", "weight_bits"),
    [
        ((0.0, 0.0, 0.0), 220, [0, 0, 0], [2, 2, 2]),  # nothing: 8 bits, all channels
        ((1.0, 0.0, 1.0), 220, [1, 0, 0], [0, 0, 0]),
        ((0.0, 0.0, 0.6), 220, [0, 0, 0], [1, 1, 1]),  # 8 - 0.6 * 6 = 4.4 bits
        ((0.0, 0.0, 0.0), 200, [1, 0, 0], [2, 2, 2]),  # 202 at the fewest bits without pruning
    ],
)
def test_actions_compress_within_the_budget(action, size, sparsity, weight_bits):
    env, recorder = toy_env(size)
    walk(env, [action] * 3)
    assert recorder.best.labeling.sparsity.tolist() == sparsity
    assert recorder.best.labeling.weight_bits.tolist() == weight_bits


def test_reward_punishes_what_stays_below_the_target():
    env, _ = toy_env(220)
    # 4 bits everywhere: 208 of 220 bytes, kl 0.01 + 0.012 + 0.04
    assert walk(env, [(0.0, 0.0, 0.6)] * 3) == pytest.approx(np.exp(-0.062) - 3 * 12 / 220)


def test_labels_are_needed():
    problem, _ = toy_problem()
    task = Task(problem, {"size": 204}, lambda at: Outcome(0.5, float("nan"), 0.5, problem.resources(at)))
    with pytest.raises(InputError) as caught:
        run_search(task, SETTINGS, method="galen")
    assert str(caught.value) == (
        "`method` galen needs labelled data for its reward, got accuracy nan; choose another method."
    )
