"""Ways to explore prices: around the best plan, or where the belief says that better plans may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from autocompress.searchers.prices import PRICE_LIMIT, PriceBelief
from autocompress_envs.problem import FloatArray, Labeling, Problem
from autocompress_envs.problem.loss_parts import LossParts


@dataclass(frozen=True)
class Proposal:
    """Log prices (L, 2) to try, and the name of the explorer that drew them."""

    prices: FloatArray
    origin: str


@dataclass(frozen=True)
class Trial:
    """What became of prices (L, 2): the plan, its measured loss (nats), and whether it was new, and the best so far."""

    prices: FloatArray
    origin: str
    labeling: Labeling
    loss: float
    is_new: bool
    is_best: bool


class Explorer(Protocol):
    """Proposes log prices, and learns from what became of them, in whatever order that comes back."""

    def propose(self) -> Proposal:
        """What to try next."""

    def learn(self, trial: Trial) -> None:
        """Take in one trial, also one that another explorer proposed."""

    def knowledge(self) -> FloatArray:
        """(L, 2 * 2) for the policy's eyes: the prices that it explores from, and how unsure it is of each."""


class LocalExplorer:
    """Stochastic hill-climb over prices: perturb some of the best plan's prices, keep what is better.

    SPDY (Frantar & Alistarh 2022, arXiv:2201.13096) with a step size that adapts to success like the 1/5 rule
    (Rechenberg 1973, the exponents as in Kern et al. 2004): one success in five leaves it as it is.
    """

    NAME = "local"
    SHARE = 0.2  # of the prices, perturbed at once
    STEP = 0.7
    STEP_RANGE = (0.1, 2.0)
    GROWTH = 1.5
    REPEATED = 1.1  # a step that changed no label was too small

    def __init__(self, problem: Problem, rng: np.random.Generator, expected: FloatArray | None = None) -> None:
        self._active = LossParts(problem).active
        self._rng = rng
        self._step = self.STEP
        self._anchor = np.zeros(self._active.shape) if expected is None else expected

    def propose(self) -> Proposal:
        chosen = self._active & (self._rng.random(self._active.shape) < self.SHARE)
        candidates = np.argwhere(self._active)
        if not chosen.any() and len(candidates):
            chosen[tuple(candidates[self._rng.integers(len(candidates))])] = True
        offset = chosen * self._rng.normal(0.0, self._step, self._active.shape)
        return Proposal(np.clip(self._anchor + offset, -PRICE_LIMIT, PRICE_LIMIT), self.NAME)

    def learn(self, trial: Trial) -> None:
        if trial.is_best:
            self._anchor = trial.prices
        if trial.origin == self.NAME:
            self._adapt(trial)

    def _adapt(self, trial: Trial) -> None:
        success = 1.0 if trial.is_best else 0.0
        factor = self.GROWTH ** (success - 0.2) if trial.is_new else self.REPEATED
        self._step = float(np.clip(self._step * factor, *self.STEP_RANGE))

    def knowledge(self) -> FloatArray:
        return np.concatenate([self._anchor, self._active * self._step], axis=1)


class PosteriorExplorer:
    """Posterior sampling: solve for prices drawn from the belief, so that doubt is what drives exploration.

    Thompson 1933; for reinforcement learning, Osband, Russo & Van Roy 2013 (arXiv:1306.0940): draw one model from
    the posterior, act optimally under it for an episode. The solver inside the price environment is the optimal actor.
    """

    NAME = "posterior"
    TEMPERATURE = 0.5  # below 1: there are too few evaluations to explore everything that is possible
    REPEATED = 1.2  # a draw that gave a plan seen before was too timid
    COOLING = 0.95
    HOTTEST = 5.0

    def __init__(self, problem: Problem, rng: np.random.Generator, expected: FloatArray | None = None) -> None:
        self._parts = LossParts(problem)
        self._belief = PriceBelief(self._parts.active, expected)
        self._rng = rng
        self._temperature = self.TEMPERATURE

    def propose(self) -> Proposal:
        prices = self._belief.sample(self._rng, self._temperature)
        return Proposal(np.clip(prices, -PRICE_LIMIT, PRICE_LIMIT), self.NAME)

    def learn(self, trial: Trial) -> None:
        if trial.is_new:
            self._belief.add(self._parts(trial.labeling), trial.loss)
        if trial.origin == self.NAME:
            self._adapt(trial)

    def _adapt(self, trial: Trial) -> None:
        if trial.is_new:
            self._temperature = max(self._temperature * self.COOLING, self.TEMPERATURE)
        else:
            self._temperature = min(self._temperature * self.REPEATED, self.HOTTEST)

    def knowledge(self) -> FloatArray:
        return np.concatenate(self._belief.moments(), axis=1)


class MixedExplorer:
    """Draws from the belief and hill-climbs from the best plan by turns, each learning from the other's trials.

    The belief finds the right region fast; the hill-climb does not need the additive model to be right.
    """

    def __init__(self, problem: Problem, rng: np.random.Generator, expected: FloatArray | None = None) -> None:
        self._posterior = PosteriorExplorer(problem, rng, expected)
        self._local = LocalExplorer(problem, rng, expected)
        self._turn = 0

    def propose(self) -> Proposal:
        self._turn += 1
        return self._posterior.propose() if self._turn % 2 else self._local.propose()

    def learn(self, trial: Trial) -> None:
        self._posterior.learn(trial)
        self._local.learn(trial)

    def knowledge(self) -> FloatArray:
        return self._posterior.knowledge()


EXPLORERS: dict[str, Callable[[Problem, np.random.Generator, FloatArray | None], Explorer]] = {
    "local": LocalExplorer,
    "posterior": PosteriorExplorer,
    "mixed": MixedExplorer,
}
"""By name: made from the problem, a random generator, and the prices (L, 2) that a policy expects, if there is one."""
