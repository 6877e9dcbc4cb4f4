"""Price actions as offsets from an explorer's prices: the environment wrapper of the anchored agents."""

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
    """The price environment, with actions that are offsets from an anchor.

    At reset an explorer draws the anchor: prices (L, 2) for the whole episode. So exploration is correlated
    over layers, where independent noise would average out. The price of layer l is `anchor[l] + reach *
    action`.

    The agent therefore learns a residual (residual policy learning: Johannink et al. 2019, Silver et al.
    2018). It depends on a layer's observation alone, so the layers of any network share it. The explorer
    learns what is particular to this network.

    Reward: the improvement over the best plan so far, clipped to [-1, 1], at the end of the episode; 0
    before.

    Observation: the environment's own, then six numbers in [-1, 1], divided by `PRICE_LIMIT` and clipped:

    | index from the end | meaning                                                       |
    | ------------------ | ------------------------------------------------------------- |
    | -6, -5             | prices of the layer around which the explorer explores        |
    | -4, -3             | standard deviations of these prices                           |
    | -2, -1             | the layer's anchor                                            |

    Args:
        env: the environment, with the action `price` and the price scale `PRICE_LIMIT`.
        explorer: explorer that draws the anchors; environments in lockstep share it.
        recorder: the recorder that evaluates the environment's plans.
        reach: log price of an offset of 1, above 0.
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
        """Begin an episode around a new anchor."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._proposal = self._explorer.propose()
        self._knowledge = self._explorer.knowledge()
        self._prices = np.zeros_like(self._proposal.prices)
        self._layer = 0
        return self._extended(observation), info

    def step(self, action: npt.NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Set the next layer's prices; after the last layer's, let the explorer learn from the plan.

        Args:
            action: (2,) offsets of the prices of pruning and of rounding, clipped to [-1, 1].

        Returns:
            Observation, reward, whether the episode is over, False, and the environment's info with the
            clipped action as `executed_action`.

        Raises:
            StopSearch: the search is over.
        """
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
        """Tell the explorer the result of the episode's prices."""
        proposal, loss = self._proposal, info["outcome"].kl
        self._explorer.learn(Trial(self._prices, proposal.origin, info["labeling"], loss, is_new, is_best))

    def _extended(self, observation: Observation) -> Observation:
        """The environment's observation with the explorer's knowledge and the anchor of the next layer."""
        layer = min(self._layer, len(self._prices) - 1)
        extra = np.concatenate([self._knowledge[layer], self._proposal.prices[layer]]) / PRICE_LIMIT
        return np.concatenate([observation, np.clip(extra, -1.0, 1.0)]).astype(np.float32)
