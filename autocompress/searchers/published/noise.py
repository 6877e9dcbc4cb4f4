"""Exploration of the published agents: normal noise that is cut off at the ends of the action range, and decays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from autocompress_envs.problem import FloatArray


@dataclass(frozen=True)
class Exploration:
    """When to act at random, and how far from the actor's answer afterwards.

    Attributes:
        random_episodes: first episodes whose actions are uniform in [0, 1]. first_exponent: of the episode after.
        deviation: of the normal distribution at exponent 0. decay: its factor from one episode to the next.
    """

    random_episodes: int
    first_exponent: int
    decay: float
    deviation: float = 0.5

    def is_random(self, episode: int) -> bool:
        """Whether an episode, counted from 0, acts at random."""
        return episode < self.random_episodes

    def deviation_at(self, episode: int) -> float:
        """Standard deviation in an episode that is not random, before the cut."""
        return float(self.deviation * self.decay ** (episode - self.random_episodes + self.first_exponent))

    def limited_to(self, episodes: int) -> Exploration:
        """The same, but with no more than half of `episodes` random: else short searches would learn nothing."""
        fewer = min(self.random_episodes, episodes // 2)
        return Exploration(fewer, self.first_exponent, self.decay, self.deviation)


def truncated_normal(rng: np.random.Generator, mean: FloatArray, deviation: float) -> FloatArray:
    """Draws in [0, 1] from normal distributions around `mean` (in [0, 1]) that are cut off at 0 and 1.

    By inversion: a uniform draw between the two ends' probabilities. No clipping, so the ends are not favoured.
    """
    if deviation < 1e-12:  # after hundreds of episodes; quotients by it would overflow
        return mean
    low, high = ndtr((0.0 - mean) / deviation), ndtr((1.0 - mean) / deviation)
    drawn = mean + deviation * ndtri(low + (high - low) * rng.random(mean.shape))
    clipped: FloatArray = np.clip(drawn, 0.0, 1.0)  # rounding only
    return clipped
