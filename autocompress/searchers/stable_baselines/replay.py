"""A replay buffer of the actions that the environment executed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.buffers import ReplayBuffer


class ExecutedReplayBuffer(ReplayBuffer):
    """A replay buffer that stores `info["executed_action"]` instead of the action that the agent asked for.

    Where a budget moved an action, the value function so learns the value of the action that was taken.
    Action spaces are boxes in [-1, 1], so executed actions need no rescaling.
    """

    def add(
        self,
        obs: npt.NDArray[Any],
        next_obs: npt.NDArray[Any],
        action: npt.NDArray[Any],
        reward: npt.NDArray[Any],
        done: npt.NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Store one transition of every environment, with the executed actions of `infos` for `action`."""
        executed = np.stack([info["executed_action"] for info in infos]).astype(action.dtype)
        super().add(obs, next_obs, executed, reward, done, infos)
