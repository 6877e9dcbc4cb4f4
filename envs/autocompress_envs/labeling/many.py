"""Many networks in one environment, one after the other: what an agent of Stable-Baselines3 learns from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium

from autocompress_envs.labeling.environment import Info, LabelingEnv
from autocompress_envs.labeling.observation import Arrays
from autocompress_envs.problem import BoolArray


class ManyNetworks(gymnasium.Env[Arrays, Any]):
    """An environment that labels one network after another.

    Args:
        draw: function that gives the next network's environment; all of them have the same observation space.
        episodes: episodes of one network before the next one's turn, at least 1.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own convention

    def __init__(self, draw: Callable[[], LabelingEnv], episodes: int) -> None:
        self._draw, self._episodes = draw, episodes
        self._env, self._left = draw(), episodes
        self.observation_space, self.action_space = self._env.observation_space, self._env.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Arrays, Info]:
        """Begin an episode, of another network where this one has had its turn; `options` are ignored."""
        super().reset(seed=seed)
        if not self._left:
            self._env, self._left = self._draw(), self._episodes
        self._left -= 1
        return self._env.reset()

    def step(self, action: Any) -> tuple[Arrays, float, bool, bool, Info]:
        """A step of the network's own environment."""
        return self._env.step(action)

    def action_masks(self) -> BoolArray:
        """(most options,) which actions are legal now."""
        return self._env.action_masks()
