"""Replay of what the environment executed, not of what the agent asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.buffers import ReplayBuffer


class ExecutedReplayBuffer(ReplayBuffer):
    """Stores `info["executed_action"]`: where a budget moved an action, the value function learns the moved one.

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
        executed = np.stack([info["executed_action"] for info in infos]).astype(action.dtype)
        super().add(obs, next_obs, executed, reward, done, infos)
