"""Exploration of the published agents: truncated normal noise that decays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from autocompress_envs.problem import FloatArray


@dataclass(frozen=True)
class Exploration:
    """The schedule of exploration: random actions at first, then noise around the actor's answer that decays.

    Attributes:
        random_episodes: number of first episodes whose actions are uniform in [0, 1].
        first_exponent: exponent of `decay` in the first episode after these.
        decay: factor on the standard deviation from one episode to the next, in (0, 1].
        deviation: standard deviation of the noise at exponent 0. Default: 0.5.
    """

    random_episodes: int
    first_exponent: int
    decay: float
    deviation: float = 0.5

    def is_random(self, episode: int) -> bool:
        """Whether all actions of an episode, counted from 0, are random."""
        return episode < self.random_episodes

    def deviation_at(self, episode: int) -> float:
        """Standard deviation, before truncation, of the noise in a later episode, counted from 0."""
        return float(self.deviation * self.decay ** (episode - self.random_episodes + self.first_exponent))

    def limited_to(self, episodes: int) -> Exploration:
        """The same schedule with at most half of `episodes` random, so that short searches learn too."""
        fewer = min(self.random_episodes, episodes // 2)
        return Exploration(fewer, self.first_exponent, self.decay, self.deviation)


def truncated_normal(rng: np.random.Generator, mean: FloatArray, deviation: float) -> FloatArray:
    """Draws from normal distributions that are truncated to [0, 1], of the shape of `mean`.

    By inversion: the normal quantile of a uniform draw between the probabilities of the two ends. Unlike
    clipping, this does not favour the ends.

    Args:
        rng: random generator of the draws.
        mean: means of the distributions before truncation, in [0, 1].
        deviation: their standard deviation before truncation, at least 0.
    """
    if deviation < 1e-12:  # after hundreds of episodes; a division by it would overflow
        return mean
    low, high = ndtr((0.0 - mean) / deviation), ndtr((1.0 - mean) / deviation)
    drawn = mean + deviation * ndtri(low + (high - low) * rng.random(mean.shape))
    clipped: FloatArray = np.clip(drawn, 0.0, 1.0)  # against rounding errors only
    return clipped
