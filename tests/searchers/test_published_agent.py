"""What AMC, HAQ and Galen share: exploration, the replay, the updates."""

import dataclasses
from statistics import NormalDist

import numpy as np
import pytest
import torch

from autocompress.searchers.published import amc, galen, haq
from autocompress.searchers.published.ddpg import Ddpg, DdpgOptions, Replay, Step, run_episodes
from autocompress.searchers.published.noise import Exploration, truncated_normal


class Stop(Exception):
    pass


class OneStep:
    """Rewards actions near 0.3: a bandit whose optimum is known."""

    def __init__(self, episodes):
        self.actions, self._left = [], episodes

    def reset(self):
        return np.ones(2), {}

    def step(self, action):
        if len(self.actions) == self._left:
            raise Stop
        self.actions.append(float(action[0]))
        return np.ones(2), -10.0 * (action[0] - 0.3) ** 2, True, False, {}


def steps_of(count, actions=1):
    return [Step(np.full(2, i / 10), np.full(actions, 0.5), np.full(2, 0.1), i == count - 1) for i in range(count)]


def agent_of(options, actions=1, seed=0):
    return Ddpg(options, 2, actions, seed)


@pytest.mark.parametrize(
    ("exploration", "last_random", "deviations"),
    [
        (amc.EXPLORATION, 100, (0.475, 0.45125)),  # 0.5 * 0.95, 0.5 * 0.95^2
        (haq.EXPLORATION, 20, (0.495, 0.49005)),  # 0.5 * 0.99, 0.5 * 0.99^2
        (galen.EXPLORATION, 9, (0.5, 0.475)),  # 0.5, 0.5 * 0.95
    ],
)
def test_random_episodes_and_noise_as_published(exploration, last_random, deviations):
    assert exploration.is_random(last_random)
    assert not exploration.is_random(last_random + 1)
    found = [exploration.deviation_at(last_random + 1 + later) for later in range(2)]
    assert found == pytest.approx(deviations, rel=1e-12)


def test_short_searches_act_at_random_for_half_of_their_episodes():
    assert amc.EXPLORATION.limited_to(800) == amc.EXPLORATION
    assert amc.EXPLORATION.limited_to(202) == amc.EXPLORATION
    assert amc.EXPLORATION.limited_to(60).random_episodes == 30
    assert amc.EXPLORATION.limited_to(60).deviation_at(30) == pytest.approx(0.475)


class Half:
    @staticmethod
    def random(shape):
        return np.full(shape, 0.5)


def test_truncated_normal_is_the_middle_of_what_is_left():
    normal = NormalDist()
    at_end = 0.5 * normal.inv_cdf((0.5 + normal.cdf(2.0)) / 2)  # around 0: from probability 1/2 to that of 1 / 0.5
    assert truncated_normal(Half(), np.array([0.5, 0.0]), 0.5) == pytest.approx([0.5, at_end])
    assert at_end == pytest.approx(0.3196, abs=1e-4)


def test_truncated_normal_does_not_pile_up_at_the_ends():
    drawn = truncated_normal(np.random.default_rng(0), np.full(20_000, 0.9), 0.5)
    assert 0.0 < drawn.min() < 0.01
    assert 0.99 < drawn.max() < 1.0
    # mean of a cut normal distribution: 0.9 + 0.5 * (phi(-1.8) - phi(0.2)) / (Phi(0.2) - Phi(-1.8))
    assert drawn.mean() == pytest.approx(0.9 + 0.5 * (0.0790 - 0.3910) / (0.5793 - 0.0359), abs=0.008)


def test_truncated_normal_without_noise_is_the_answer():
    assert truncated_normal(Half(), np.array([0.0, 0.4]), 0.0).tolist() == [0.0, 0.4]


def test_the_last_reward_is_stored_with_every_step():
    agent = agent_of(DdpgOptions(amc.EXPLORATION, capacity=10))
    agent.learn(steps_of(3), -0.4, episode=0)
    agent.learn(steps_of(3), -0.2, episode=1)
    assert agent.replay.rewards == pytest.approx([-0.4, -0.4, -0.4, -0.2, -0.2, -0.2])


def test_galen_leaves_the_first_step_out_except_once():
    agent = agent_of(dataclasses.replace(galen.galen_options(galen.EXPLORATION), capacity=10), actions=3)
    agent.learn(steps_of(3, actions=3), 1.0, episode=0)
    agent.learn(steps_of(3, actions=3), 2.0, episode=1)
    assert agent.replay.rewards.tolist() == [1.0, 1.0, 1.0, 2.0, 2.0]


def test_replay_forgets_the_oldest():
    replay = Replay(2, 2, 1)
    for reward, step in enumerate(steps_of(3)):
        replay.add(step, float(reward))
    assert sorted(replay.rewards.tolist()) == [1.0, 2.0]
    _, _, rewards, _, ends = replay.sample(np.random.default_rng(0), 2)
    assert sorted(zip(rewards.tolist(), ends.tolist(), strict=True)) == [(1.0, 0.0), (2.0, 1.0)]


def parameters(agent):
    return torch.cat([each.detach().flatten() for each in (*agent.actor.parameters(), *agent.critic.parameters())])


def test_one_update_a_step_after_the_random_episodes():
    agent = agent_of(DdpgOptions(amc.EXPLORATION, capacity=10))
    before = parameters(agent)
    agent.learn(steps_of(3), 0.0, episode=100)
    assert agent.updates == 0
    assert torch.equal(parameters(agent), before)
    agent.learn(steps_of(3), 0.0, episode=101)
    assert agent.updates == 3
    assert not torch.equal(parameters(agent), before)


def test_galen_updates_once_an_episode():
    agent = agent_of(galen.galen_options(galen.EXPLORATION), actions=3)
    agent.learn(steps_of(3, actions=3), 0.0, episode=9)
    assert agent.updates == 0
    agent.learn(steps_of(3, actions=3), 0.0, episode=10)
    assert agent.updates == 1


def test_the_baseline_follows_the_batches_by_half():
    """A replay of one step gives batches of one reward."""
    agent, baselines = agent_of(DdpgOptions(amc.EXPLORATION, capacity=1)), []
    for reward in (2.0, 4.0, 1.0):
        agent.learn(steps_of(1), reward, episode=101)
        baselines.append(agent.baseline)
    assert baselines == [2.0, 3.0, 2.0]


def test_hyper_parameters_as_published():
    shared = DdpgOptions(amc.EXPLORATION, capacity=1)
    assert (shared.hidden, shared.actor_rate, shared.critic_rate) == ((300, 300), 1e-4, 1e-3)
    assert (shared.tau, shared.batch, shared.discount) == (0.01, 64, 1.0)
    assert (amc.STEPS_A_LAYER, haq.STEPS_A_LAYER) == (100, 128)


def test_galen_starts_narrow():
    agent = agent_of(galen.galen_options(galen.EXPLORATION), actions=3)
    assert agent.actor.layers[4].weight.abs().max().item() == pytest.approx(3e-3, rel=0.02)
    assert agent.critic.layers[3].weight.abs().max().item() == pytest.approx(3e-4, rel=0.02)
    assert agent.critic.layers[3].weight.shape == (3, 300)


def test_finds_the_best_action_of_a_bandit():
    options = DdpgOptions(Exploration(30, 1, 0.97), capacity=300, actor_rate=1e-3, critic_rate=1e-2, hidden=(32, 32))
    first, misses = [], []
    for seed in range(3):
        env = OneStep(300)
        with pytest.raises(Stop):
            run_episodes(env, agent_of(options, seed=seed))
        first += env.actions[:30]
        misses.append(np.mean(np.abs(np.array(env.actions[-20:]) - 0.3)))
    assert np.mean(first) == pytest.approx(0.5, abs=0.1)
    assert np.median(misses) < 0.1


def test_a_seed_is_a_search_and_global_random_state_is_left_alone():
    def actions(seed):
        env = OneStep(12)
        with pytest.raises(Stop):
            run_episodes(env, agent_of(DdpgOptions(Exploration(4, 1, 0.95), capacity=20, hidden=(8, 8)), seed=seed))
        return env.actions

    before = torch.get_rng_state().tolist()
    assert actions(0) == actions(0)
    assert actions(0) != actions(1)
    assert torch.get_rng_state().tolist() == before
