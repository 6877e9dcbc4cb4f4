"""Deep deterministic policy gradients as AMC, HAQ and Galen train it (Lillicrap et al. 2016, arXiv 1509.02971).

Written after mit-han-lab/haq `lib/rl/{ddpg,memory}.py`, Microsoft's copy of AMC's `lib/agent.py` (the same agent) and
UniHD-CEG/galen `runtime/agent/{agent,ddpg,memory}.py`. Stable-Baselines3's DDPG is not used because these agents
store the episode's last reward with every step, subtract a moving average of the sampled rewards, and draw truncated
noise around the actor's answer; and because Galen never marks the end of an episode.

As in the code, the replay holds the action that the agent asked for, not what the wall made of it. Differences:
entries that only stand between two episodes are not stored (the code stores one and never samples it), a batch never
waits for its newest step's successor, and Galen draws with replacement, instead of waiting, while its replay holds
less than a batch (tiny networks).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.searchers.published.noise import Exploration, truncated_normal
from autocompress_envs.problem import FloatArray


@dataclass(frozen=True)
class DdpgOptions:
    """Hyper-parameters; the defaults are AMC's and HAQ's.

    Attributes:
        exploration: random episodes and noise.
        capacity: steps that the replay holds.
        hidden: widths of the hidden layers of actor and critic.
        actor_rate, critic_rate: learning rates of Adam. critic_decay: its weight decay for the critic.
        tau: share by which the target networks follow at each update.
        discount: of the next state's value. batch: steps a gradient step.
        baseline_share: share by which the subtracted reward follows a batch's mean reward.
        updates_every_step: one update after each of the episode's steps is stored; else one an episode.
        knows_end: whether the value of what follows the last step is 0; else it is bootstrapped.
        keeps_first_step: of every episode but the very first (Galen drops it).
        narrow_start: bounds of the uniform initial weights of the actor's and the critic's last layers; None leaves
            PyTorch's.
    """

    exploration: Exploration
    capacity: int
    hidden: tuple[int, int] = (300, 300)
    actor_rate: float = 1e-4
    critic_rate: float = 1e-3
    critic_decay: float = 0.0
    tau: float = 0.01
    discount: float = 1.0
    batch: int = 64
    baseline_share: float = 0.5
    updates_every_step: bool = True
    knows_end: bool = True
    keeps_first_step: bool = True
    narrow_start: tuple[float, float] | None = None


@dataclass(frozen=True)
class Step:
    """One step of an episode: state (S,), action (A,) in [0, 1], the state that follows, and whether it is the last."""

    state: FloatArray
    action: FloatArray
    following: FloatArray
    is_last: bool


class Environment(Protocol):
    """What `run_episodes` needs of a preset's environment: Gymnasium's interface."""

    def reset(self) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Act on the next layer."""


class Replay:
    """The last `capacity` steps, each with the reward of its episode's end."""

    def __init__(self, capacity: int, state_size: int, actions: int) -> None:
        self._size, self._next = 0, 0
        self._states = np.zeros((capacity, state_size), dtype=np.float32)
        self._actions = np.zeros((capacity, actions), dtype=np.float32)
        self._rewards = np.zeros(capacity, dtype=np.float32)
        self._followings = np.zeros((capacity, state_size), dtype=np.float32)
        self._ends = np.zeros(capacity, dtype=np.float32)

    def __len__(self) -> int:
        return self._size

    @property
    def rewards(self) -> FloatArray:
        """Of all stored steps, oldest first until the replay is full."""
        return self._rewards[: self._size].astype(np.float64)

    def add(self, step: Step, reward: float) -> None:
        """Store a step; the oldest goes where the replay is full."""
        at = self._next
        self._states[at], self._actions[at], self._followings[at] = step.state, step.action, step.following
        self._rewards[at], self._ends[at] = reward, float(step.is_last)
        self._next = (at + 1) % len(self._rewards)
        self._size = min(self._size + 1, len(self._rewards))

    def sample(self, rng: np.random.Generator, batch: int) -> tuple[FloatArray, ...]:
        """`batch` states, actions, rewards, following states and ends; none twice where there are enough."""
        rows = rng.choice(self._size, batch, replace=self._size < batch)
        fields = self._states, self._actions, self._rewards, self._followings, self._ends
        return tuple(field[rows].astype(np.float64) for field in fields)


class Ddpg:
    """Actor and critic with their targets, the replay, and the noise. Global random state is left alone."""

    def __init__(self, options: DdpgOptions, state_size: int, actions: int, seed: int) -> None:
        self._options, self._actions = options, actions
        self._rng = np.random.default_rng(seed)
        self.replay = Replay(options.capacity, state_size, actions)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.actor = _Actor(state_size, actions, options)
            self.critic = _Critic(state_size, actions, options)
        self._actor_target, self._critic_target = deepcopy(self.actor), deepcopy(self.critic)
        self._actor_adam = torch.optim.Adam(self.actor.parameters(), options.actor_rate, fused=True)
        self._critic_adam = torch.optim.Adam(
            self.critic.parameters(), options.critic_rate, weight_decay=options.critic_decay, fused=True
        )
        self._baseline: float | None = None

    def act(self, state: FloatArray, episode: int) -> FloatArray:
        """The action (A,) in [0, 1] for a state (S,) in an episode, counted from 0."""
        exploration = self._options.exploration
        if exploration.is_random(episode):
            return self._rng.random(self._actions)
        with torch.no_grad():
            answer = self.actor(self._tensor(state[None])).squeeze(0).cpu().numpy().astype(np.float64)
        return truncated_normal(self._rng, answer, exploration.deviation_at(episode))

    def learn(self, steps: Sequence[Step], reward: float, episode: int) -> None:
        """Store a finished episode, the same reward with each of its steps, and train unless it was a random one."""
        options = self._options
        is_training = not options.exploration.is_random(episode)
        for step in steps if options.keeps_first_step or not len(self.replay) else steps[1:]:
            self.replay.add(step, reward)
            if is_training and options.updates_every_step:
                self._update()
        if is_training and not options.updates_every_step and len(self.replay):
            self._update()

    def _update(self) -> None:
        options = self._options
        state, action, reward, following, end = map(self._tensor, self.replay.sample(self._rng, options.batch))
        with torch.no_grad():
            value = self._critic_target(following, self._actor_target(following))  # (batch, A)
            left = (1.0 - end)[:, None] if options.knows_end else 1.0
            target = (reward - self._follow(float(reward.mean())))[:, None] + options.discount * left * value
        _descend(self._critic_adam, nn.functional.mse_loss(self.critic(state, action), target))
        _descend(self._actor_adam, -self.critic(state, self.actor(state)).mean())
        _approach(self._actor_target, self.actor, options.tau)
        _approach(self._critic_target, self.critic, options.tau)

    def _follow(self, mean: float) -> float:
        """The moving-average baseline after a batch of this mean reward."""
        old = mean if self._baseline is None else self._baseline
        self._baseline = old + self._options.baseline_share * (mean - old)
        return self._baseline

    def _tensor(self, array: FloatArray) -> Tensor:
        return torch.as_tensor(array, dtype=torch.float32)


def run_episodes(env: Environment, agent: Ddpg) -> None:
    """Act and learn, episode after episode, until the environment's recorder ends the search."""
    for episode in itertools.count():
        state, _ = env.reset()
        steps: list[Step] = []
        is_last, reward = False, 0.0
        while not is_last:
            action = agent.act(state, episode)
            following, reward, is_last, _, _ = env.step(action)
            steps.append(Step(state, action, following, is_last))
            state = following
        agent.learn(steps, reward, episode)


class _Actor(nn.Module):
    """States to actions in (0, 1)."""

    def __init__(self, state_size: int, actions: int, options: DdpgOptions) -> None:
        super().__init__()
        first, second = options.hidden
        last = _last(second, actions, options.narrow_start and options.narrow_start[0])
        self.layers = nn.Sequential(
            nn.Linear(state_size, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), last, nn.Sigmoid()
        )

    def forward(self, state: Tensor) -> Tensor:
        answer: Tensor = self.layers(state)
        return answer


class _Critic(nn.Module):
    """States and actions to values: one for each action, all with the same target, as in the code."""

    def __init__(self, state_size: int, actions: int, options: DdpgOptions) -> None:
        super().__init__()
        first, second = options.hidden
        self.of_state, self.of_action = nn.Linear(state_size, first), nn.Linear(actions, first)
        last = _last(second, actions, options.narrow_start and options.narrow_start[1])
        self.layers = nn.Sequential(nn.ReLU(), nn.Linear(first, second), nn.ReLU(), last)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        value: Tensor = self.layers(self.of_state(state) + self.of_action(action))
        return value


def _last(width: int, actions: int, bound: float | None) -> nn.Linear:
    layer = nn.Linear(width, actions)
    if bound is not None:
        nn.init.uniform_(layer.weight, -bound, bound)
    return layer


def _descend(adam: torch.optim.Adam, loss: Tensor) -> None:
    adam.zero_grad()
    loss.backward(inputs=adam.param_groups[0]["params"])  # type: ignore[no-untyped-call]  # no gradients of the other
    adam.step()


def _approach(target: nn.Module, source: nn.Module, tau: float) -> None:
    with torch.no_grad():
        for old, new in zip(target.parameters(), source.parameters(), strict=True):
            old.lerp_(new, tau)
