"""Explorers of prices: hill-climbing around the best plan, posterior sampling, and both by turns."""

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
    """Prices to try next.

    Attributes:
        prices: (L, 2) log prices of pruning and of rounding, in [-`PRICE_LIMIT`, `PRICE_LIMIT`] where an
            explorer drew them.
        origin: name of the explorer that drew them, or of another source: `solver`, `policy` or `model`.
    """

    prices: FloatArray
    origin: str


@dataclass(frozen=True)
class Trial:
    """The result of trying prices.

    Attributes:
        prices: (L, 2) the log prices.
        origin: origin of the proposal from which they came.
        labeling: the solver's plan under the prices.
        loss: the plan's measured divergence in nats.
        is_new: whether the plan had not been evaluated before.
        is_best: whether the plan became the search's best.
    """

    prices: FloatArray
    origin: str
    labeling: Labeling
    loss: float
    is_new: bool
    is_best: bool


class Explorer(Protocol):
    """Proposes log prices, and learns from their trials, in whatever order these come back."""

    def propose(self) -> Proposal:
        """The prices to try next."""

    def learn(self, trial: Trial) -> None:
        """Learn from one trial, also from one that another explorer proposed."""

    def knowledge(self) -> FloatArray:
        """(L, 4) what a policy observes: the two prices around which it explores, and their standard deviations."""


class LocalExplorer:
    """Stochastic hill-climb over prices: perturb some of the best plan's prices, keep what is better.

    SPDY (Frantar & Alistarh 2022, arXiv:2201.13096), with a step size that adapts to success by the 1/5 rule
    (Rechenberg 1973, the exponents as in Kern et al. 2004): one success in five leaves it as it is.

    Args:
        problem: menus, layer errors and costs of the network.
        rng: random generator of every draw.
        expected: (L, 2) log prices where the climb starts, such as a policy's. Default: None, for zeros.
    """

    NAME = "local"
    SHARE = 0.2  # share of the active prices that are perturbed at once
    STEP = 0.7  # standard deviation of a perturbation, at first
    STEP_RANGE = (0.1, 2.0)  # least and largest standard deviation
    GROWTH = 1.5  # factor on it after a success, to the power 0.8; after a failure, to the power -0.2
    REPEATED = 1.1  # factor on it after a plan seen before: a step that changed no label was too small

    def __init__(self, problem: Problem, rng: np.random.Generator, expected: FloatArray | None = None) -> None:
        self._active = LossParts(problem).active
        self._rng = rng
        self._step = self.STEP
        self._anchor = np.zeros(self._active.shape) if expected is None else expected

    def propose(self) -> Proposal:
        """The best prices so far, with about `SHARE` of the active ones perturbed, and at least one."""
        chosen = self._active & (self._rng.random(self._active.shape) < self.SHARE)
        candidates = np.argwhere(self._active)
        if not chosen.any() and len(candidates):
            chosen[tuple(candidates[self._rng.integers(len(candidates))])] = True
        offset = chosen * self._rng.normal(0.0, self._step, self._active.shape)
        return Proposal(np.clip(self._anchor + offset, -PRICE_LIMIT, PRICE_LIMIT), self.NAME)

    def learn(self, trial: Trial) -> None:
        """Climb to the prices of the best plan; own trials also adapt the step."""
        if trial.is_best:
            self._anchor = trial.prices
        if trial.origin == self.NAME:
            self._adapt(trial)

    def _adapt(self, trial: Trial) -> None:
        """Adapt the step to the success of an own trial."""
        success = 1.0 if trial.is_best else 0.0
        factor = self.GROWTH ** (success - 0.2) if trial.is_new else self.REPEATED
        self._step = float(np.clip(self._step * factor, *self.STEP_RANGE))

    def knowledge(self) -> FloatArray:
        """(L, 4) the best prices so far, and the step of each; a step of 0 where a price is not active."""
        return np.concatenate([self._anchor, self._active * self._step], axis=1)


class PosteriorExplorer:
    """Posterior sampling: draws prices from `PriceBelief`, so that uncertainty drives exploration.

    Thompson 1933; for reinforcement learning, Osband, Russo & Van Roy 2013 (arXiv:1306.0940): draw one model
    from the posterior, and act optimally under it for an episode. The solver is the optimal actor.

    Args:
        problem: menus, layer errors and costs of the network.
        rng: random generator of every draw.
        expected: (L, 2) mean of the prior, such as a policy's prices. Default: None, for zeros.
    """

    NAME = "posterior"
    TEMPERATURE = 0.5  # least factor on the posterior's standard deviations: there are too few evaluations for 1
    REPEATED = 1.2  # factor on the temperature after an own draw that gave a plan seen before
    COOLING = 0.95  # factor on it after an own draw that gave a new plan
    HOTTEST = 5.0  # largest temperature

    def __init__(self, problem: Problem, rng: np.random.Generator, expected: FloatArray | None = None) -> None:
        self._parts = LossParts(problem)
        self._belief = PriceBelief(self._parts.active, expected)
        self._rng = rng
        self._temperature = self.TEMPERATURE

    def propose(self) -> Proposal:
        """A draw from the posterior at the present temperature."""
        prices = self._belief.sample(self._rng, self._temperature)
        return Proposal(np.clip(prices, -PRICE_LIMIT, PRICE_LIMIT), self.NAME)

    def learn(self, trial: Trial) -> None:
        """Update the posterior by every new plan; own trials also adapt the temperature."""
        if trial.is_new:
            self._belief.add(self._parts(trial.labeling), trial.loss)
        if trial.origin == self.NAME:
            self._adapt(trial)

    def _adapt(self, trial: Trial) -> None:
        """Cool down after a new plan, heat up after one seen before."""
        if trial.is_new:
            self._temperature = max(self._temperature * self.COOLING, self.TEMPERATURE)
        else:
            self._temperature = min(self._temperature * self.REPEATED, self.HOTTEST)

    def knowledge(self) -> FloatArray:
        """(L, 4) the posterior's means and standard deviations."""
        return np.concatenate(self._belief.moments(), axis=1)


class MixedExplorer:
    """Posterior sampling and hill-climbing by turns, each learning from the other's trials.

    Posterior sampling finds the right region fast; the hill-climb does not need the additive model to be
    right.

    Args:
        problem: menus, layer errors and costs of the network.
        rng: random generator of every draw, shared by both.
        expected: (L, 2) log prices from which both start, such as a policy's. Default: None, for zeros.
    """

    def __init__(self, problem: Problem, rng: np.random.Generator, expected: FloatArray | None = None) -> None:
        self._posterior = PosteriorExplorer(problem, rng, expected)
        self._local = LocalExplorer(problem, rng, expected)
        self._turn = 0

    def propose(self) -> Proposal:
        """The proposal of the explorer whose turn it is; posterior sampling comes first."""
        self._turn += 1
        return self._posterior.propose() if self._turn % 2 else self._local.propose()

    def learn(self, trial: Trial) -> None:
        """Let both learn from the trial."""
        self._posterior.learn(trial)
        self._local.learn(trial)

    def knowledge(self) -> FloatArray:
        """(L, 4) the posterior's means and standard deviations."""
        return self._posterior.knowledge()


EXPLORERS: dict[str, Callable[[Problem, np.random.Generator, FloatArray | None], Explorer]] = {
    "local": LocalExplorer,
    "posterior": PosteriorExplorer,
    "mixed": MixedExplorer,
}
"""Explorers by name, each a function of problem, random generator, and a policy's log prices (L, 2) or None."""
