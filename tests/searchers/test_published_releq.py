"""ReLeQ's reward, state and agent, by hand."""

import numpy as np
import pytest

from autocompress.searchers.base import Recorder, SearchSettings, Task
from autocompress.searchers.published.releq import ReleqEnv, build_releq, shaped_reward
from autocompress.searchers.search import run_search
from autocompress_envs.problem import Outcome
from autocompress_envs.testing import additive_error, random_problem, toy_problem

SETTINGS = SearchSettings(episodes=50)


def toy_env(size=220):
    problem, evaluate = toy_problem()
    recorder = Recorder(Task(problem, {"size": size}, evaluate, 1.0), SETTINGS, [])
    return ReleqEnv(Task(problem, {"size": size}, evaluate, 1.0), recorder), recorder


def walk(env, actions):
    state, _ = env.reset()
    states = [state]
    for action in actions:
        state, reward, done, _, _ = env.step(np.int64(action))
        states.append(state)
    assert done
    return states, reward


@pytest.mark.parametrize(
    ("quantization", "accuracy", "reward"),
    [
        (0.25, 1.0, 1.0),  # the fewest bits, nothing lost
        (0.75, 1.0, 2 * (1 - 0.5**0.8) - 1),
        (0.5, 0.8, 2 * ((1 - 0.25**0.8) * 0.8**1.25) - 1),  # 1 / 0.8
        (0.25, 0.4, 2 * 0.4**2.5 - 1),
        (0.25, 0.399, -1.0),
        (1.0, 0.0, -1.0),
    ],
)
def test_shaped_reward(quantization, accuracy, reward):
    assert shaped_reward(quantization, accuracy, 0.25) == pytest.approx(reward)


def test_states_and_reward():
    env, recorder = toy_env()
    states, reward = walk(env, [2, 1, 0])
    # at the fewest bits the layers lose 0.10, 0.12 and 0.40 nats
    middle = np.log10(0.12 / 0.10) / np.log10(0.40 / 0.10)
    assert states[0] == pytest.approx([1 / 3, 1, 1, 1, 1, 0, 0, 0])
    assert states[1] == pytest.approx([2 / 3, 1, 1, 1, 0, 1, 0, middle])
    assert states[2] == pytest.approx([1, 1, (8 + 4 + 8) / 24, 1, 1, 0, 0, 1])
    assert recorder.best.labeling.weight_bits.tolist() == [2, 1, 0]
    accuracy = np.exp(-0.412)  # 0.012 + 0.4
    assert reward == pytest.approx(shaped_reward(14 / 24, accuracy, 2 / 8))
    assert env.reset()[0][2:4] == pytest.approx([1.0, accuracy])


def test_the_nearest_bits_that_the_budget_leaves():
    env, recorder = toy_env(204)  # one layer at 4 bits, the others at 2
    walk(env, [2, 2, 2])
    assert recorder.best.labeling.weight_bits.tolist() == [1, 0, 0]


def test_the_agent_as_released():
    env, _ = toy_env()
    agent = build_releq(env, SETTINGS)
    assert (agent.n_steps, agent.batch_size, agent.n_epochs) == (3, 3, 1)
    assert (agent.gamma, agent.gae_lambda, agent.clip_range(1.0)) == (0.999, 1.0, 0.3)
    assert agent.policy.lstm_actor.hidden_size == 128
    assert agent.policy.lstm_critic is None
    widths = [[layer.out_features for layer in net if hasattr(layer, "out_features")] for net in heads(agent)]
    assert widths == [[128, 128], [128, 64]]


def heads(agent):
    return agent.policy.mlp_extractor.policy_net, agent.policy.mlp_extractor.value_net


@pytest.mark.parametrize("method", ["amc", "haq", "galen", "releq"])
def test_a_seed_is_a_walk(method):
    problem = random_problem(np.random.default_rng(3), 8, "chain")
    limits = {"size": problem.original()["size"] * 2 // 5}

    def plans(seed):
        seen = []

        def evaluate(labeling):
            kl = additive_error(problem, labeling)
            return Outcome(kl, float(np.exp(-kl)), 0.5, problem.resources(labeling))

        run_search(
            Task(problem, limits, evaluate, 1.0),
            SearchSettings(episodes=8, seed=seed),
            method=method,
            observe=lambda evaluated: seen.append((evaluated.labeling.key(), evaluated.outcome.resources["size"])),
        )
        return seen

    first = plans(0)
    assert plans(0) == first
    assert plans(1) != first
    assert max(size for _, size in first) <= limits["size"]
