"""A Gaussian posterior of the layers' true prices, given the plans evaluated so far.

Prices are natural logarithms of the weights that `Solver.solve` takes, shape (L, 2). A price says how much
more a layer's pruning (column 0, for the layer that owns the sparsity) or quantization (column 1) hurts than
its layer error says. With prices of 0 the solver returns the Lagrangian solution of the layer-error problem
itself.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from autocompress_envs.problem import BoolArray, FloatArray

PRICE_LIMIT = 4.0
"""Largest absolute log price that a search tries: a weight of exp(4) = 55 already decides every choice."""


class PriceBelief:
    """A Gaussian posterior of the prices that explain the measured divergences.

    - Model: log KL = log sum_i exp(price_i) part_i + noise, with the plan's loss parts (`LossParts`), one for
      each of the P active prices.
    - Prior: prices scatter by `SPREAD` around a policy's, or around 0. Their common mean is free, since only
      ratios of prices change a plan.
    - Noise: plans far worse than the best have more, because the additive model need only be right for good
      plans.
    - Posterior: the Laplace approximation at its mode (MacKay 2003, ch. 27), found by Gauss-Newton steps from
      the last mode.

    Args:
        active: (L, 2) whether a price weighs any error at all.
        expected: (L, 2) a policy's prices. Default: None, for zeros.

    Attributes:
        mean: (P,) the posterior's mode, for the active prices.
    """

    SPREAD = 0.8  # standard deviation of the prior
    NOISE = 0.08  # relative error of the additive model near the best plan
    FORGIVENESS = 0.5  # additional noise per unit of log KL above the best
    STEPS = 3  # Gauss-Newton steps after every evaluation
    FREE_MEAN = 1e-3  # precision of the common mean: next to nothing

    def __init__(self, active: BoolArray, expected: FloatArray | None = None) -> None:
        self._active = active
        size = int(active.sum())
        self._expected = np.zeros(size) if expected is None else expected[active]
        self.mean = self._expected.copy()
        self._prior = (np.eye(size) - 1.0 / max(size, 1)) / self.SPREAD**2 + np.eye(size) * self.FREE_MEAN
        self._precision = self._prior
        self._parts: list[FloatArray] = []
        self._log_losses: list[float] = []

    def add(self, parts: FloatArray, loss: float) -> None:
        """Learn from one evaluation.

        Args:
            parts: (L, 2) loss parts of the plan in nats, at prices of 0.
            loss: the plan's measured divergence in nats.
        """
        if parts[self._active].sum() <= 0.0:
            return  # an untouched network says nothing about prices
        self._parts.append(parts[self._active])
        self._log_losses.append(float(np.log(max(loss, 1e-9))))
        self._fit()

    def _fit(self) -> None:
        """Move the mode by `STEPS` Gauss-Newton steps, each price by at most 1 a step.

        With the log of the modelled loss f, its slope J = df / d price and the noise's precisions W, a step
        is (J'WJ + prior)^-1 (J'W (log KL - f) - prior (price - expected)). The matrix that is inverted is the
        posterior's precision.
        """
        parts, log_losses = np.array(self._parts), np.array(self._log_losses)  # (N, P), (N,)
        weights = 1.0 / (self.NOISE**2 + (self.FORGIVENESS * (log_losses - log_losses.min())) ** 2)
        for _ in range(self.STEPS):
            weighted = parts * np.exp(self.mean)
            totals = weighted.sum(1)
            slope = weighted / totals[:, None]  # J, (N, P)
            gradient = (slope * weights[:, None]).T @ (log_losses - np.log(totals))
            gradient -= self._prior @ (self.mean - self._expected)
            self._precision = (slope * weights[:, None]).T @ slope + self._prior
            self.mean = self.mean + np.clip(np.linalg.solve(self._precision, gradient), -1.0, 1.0)

    def sample(self, rng: np.random.Generator, temperature: float) -> FloatArray:
        """(L, 2) prices drawn from the posterior, with mean 0 over the active ones; 0 where not active.

        With the Cholesky factor C C' of the precision, C'^-1 z has the posterior's covariance for standard
        normal z.

        Args:
            rng: random generator of the draw.
            temperature: factor on the posterior's standard deviations, at least 0.
        """
        factor = np.linalg.cholesky(self._precision)
        draw = self.mean + temperature * np.linalg.solve(factor.T, rng.normal(size=len(self.mean)))
        return self._spread_out(draw - draw.mean())

    def moments(self) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation of the prices relative to their common mean.

        Returns:
            (L, 2) means, and (L, 2) standard deviations; 0 where not active.
        """
        centre = np.eye(len(self.mean)) - 1.0 / max(len(self.mean), 1)
        covariance = centre @ cho_solve(cho_factor(self._precision, lower=True), centre)
        deviation = np.sqrt(np.maximum(np.diag(covariance), 0.0))
        return self._spread_out(centre @ self.mean), self._spread_out(deviation)

    def _spread_out(self, values: FloatArray) -> FloatArray:
        """(L, 2) values (P,) of the active prices at their places, zeros elsewhere."""
        full = np.zeros(self._active.shape)
        full[self._active] = values
        return full
