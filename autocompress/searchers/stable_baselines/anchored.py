"""Price actions as offsets from where an explorer looks next: the environment wrapper that makes agents quick."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from autocompress.searchers.base import Recorder
from autocompress.searchers.explorers import Explorer, Trial
from autocompress.searchers.prices import PRICE_LIMIT
from autocompress_envs.environment import LayerLabelingEnv

Observation = npt.NDArray[np.float32]


class AnchoredPrices(gym.Wrapper[Observation, npt.NDArray[np.float32], Observation, npt.NDArray[np.float32]]):
    """The price environment around an anchor.

    At reset an explorer draws the anchor: one price vector for the whole episode, so exploration is correlated over
    layers instead of independent noise that averages out. The agent's action is an offset from it: the price of
    layer l is `anchor[l] + reach * action`. What the agent learns is therefore the mean of a residual (residual policy
    learning: Johannink et al. 2019, Silver et al. 2018) that any network's layers share, because it depends
    on what the layer looks like; what is particular to this network, the explorer learns.

    Reward: the improvement over the best plan so far, clipped to [-1, 1], at the end of the episode.

    Observation: the environment's own, then the explorer's knowledge of the layer (2 prices, 2 uncertainties),
    then the layer's anchor (2 prices), all divided by `PRICE_LIMIT`.

    Args:
        env: with action `price` and price scale `PRICE_LIMIT`.
        explorer: shared by environments in lockstep.
        recorder: knows which plans are new and best.
        reach: natural-log price of an offset of 1.
    """

    def __init__(self, env: LayerLabelingEnv, explorer: Explorer, recorder: Recorder, reach: float) -> None:
        super().__init__(env)
        self._explorer = explorer
        self._recorder = recorder
        self._reach = reach
        inner = env.observation_space
        assert isinstance(inner, spaces.Box)
        extra = np.ones(6, dtype=np.float32)
        self.observation_space = spaces.Box(
            np.concatenate([inner.low, -extra]), np.concatenate([inner.high, extra]), dtype=np.float32
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._proposal = self._explorer.propose()
        self._knowledge = self._explorer.knowledge()
        self._prices = np.zeros_like(self._proposal.prices)
        self._layer = 0
        return self._extended(observation), info

    def step(self, action: npt.NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        executed = np.clip(np.asarray(action, dtype=np.float32), -1.0, 1.0)
        prices = np.clip(self._proposal.prices[self._layer] + self._reach * executed, -PRICE_LIMIT, PRICE_LIMIT)
        self._prices[self._layer] = prices
        best, evaluations = self._recorder.best, self._recorder.evaluations
        observation, reward, terminated, truncated, info = self.env.step((prices / PRICE_LIMIT).astype(np.float32))
        info = {**info, "executed_action": executed}
        self._layer += 1
        gain = 0.0
        if terminated:
            assert best is not None, "a search starts with the solver's plan"
            self._learn(info, is_new=self._recorder.evaluations > evaluations, is_best=self._recorder.best is not best)
            gain = float(np.clip(float(reward) - best.reward, -1.0, 1.0))
        return self._extended(observation), gain, terminated, truncated, info

    def _learn(self, info: dict[str, Any], *, is_new: bool, is_best: bool) -> None:
        proposal, loss = self._proposal, info["outcome"].kl
        self._explorer.learn(Trial(self._prices, proposal.origin, info["labeling"], loss, is_new, is_best))

    def _extended(self, observation: Observation) -> Observation:
        layer = min(self._layer, len(self._prices) - 1)
        extra = np.concatenate([self._knowledge[layer], self._proposal.prices[layer]]) / PRICE_LIMIT
        return np.concatenate([observation, np.clip(extra, -1.0, 1.0)]).astype(np.float32)
