"""What is believed about the true price of every layer, from the plans evaluated so far.

Prices are natural logarithms of the weights that `Solver.solve` takes, shape (L, 2): how much more a layer's pruning
(column 0, of the layer that owns the sparsity) and quantization (column 1) hurt than its layer error says. All zeros
is the Lagrangian solution of the layer-error problem.
"""

from __future__ import annotations

import numpy as np

from autocompress_envs.problem import BoolArray, FloatArray

PRICE_LIMIT = 4.0  # prices stay in [-4, 4]: a weight of exp(4) = 55 already decides every choice


class PriceBelief:
    """A Gaussian belief about the prices that explain the measured losses.

    Model: log KL = log sum_i exp(price_i) part_i + noise, with the plan's loss parts. Prior: prices scatter by
    `SPREAD` around what a policy says, or 0, up to a common offset that is free (only ratios of prices change a
    plan). The posterior is the Laplace approximation at its mode, found by Gauss-Newton steps from the last mode.
    Plans far worse than the best count less, because the additive model need only be right where good plans are.

    Args:
        active: (L, 2) which prices have anything to weigh.
        expected: (L, 2) the policy's prices.
    """

    SPREAD = 0.8
    NOISE = 0.08  # relative error of the additive model near the best plan
    FORGIVENESS = 0.5  # additional noise per nat of log KL above the best
    STEPS = 3
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
        """Learn that a plan with these loss parts (L, 2) lost `loss` nats."""
        if parts[self._active].sum() <= 0.0:
            return  # an untouched network says nothing about prices
        self._parts.append(parts[self._active])
        self._log_losses.append(float(np.log(max(loss, 1e-9))))
        self._fit()

    def _fit(self) -> None:
        parts, log_losses = np.array(self._parts), np.array(self._log_losses)  # (N, P), (N,)
        weights = 1.0 / (self.NOISE**2 + (self.FORGIVENESS * (log_losses - log_losses.min())) ** 2)
        for _ in range(self.STEPS):
            weighted = parts * np.exp(self.mean)
            totals = weighted.sum(1)
            slope = weighted / totals[:, None]  # d log sum / d price
            gradient = (slope * weights[:, None]).T @ (log_losses - np.log(totals))
            gradient -= self._prior @ (self.mean - self._expected)
            self._precision = (slope * weights[:, None]).T @ slope + self._prior
            self.mean = self.mean + np.clip(np.linalg.solve(self._precision, gradient), -1.0, 1.0)

    def sample(self, rng: np.random.Generator, temperature: float) -> FloatArray:
        """(L, 2) prices drawn from the belief, its standard deviations scaled by `temperature`."""
        factor = np.linalg.cholesky(self._precision)
        draw = self.mean + temperature * np.linalg.solve(factor.T, rng.normal(size=len(self.mean)))
        return self._spread_out(draw - draw.mean())

    def moments(self) -> tuple[FloatArray, FloatArray]:
        """(mean, standard deviation) of prices relative to their common mean, (L, 2) each; 0 where not active."""
        centre = np.eye(len(self.mean)) - 1.0 / max(len(self.mean), 1)
        covariance = centre @ np.linalg.inv(self._precision) @ centre
        deviation = np.sqrt(np.maximum(np.diag(covariance), 0.0))
        return self._spread_out(centre @ self.mean), self._spread_out(deviation)

    def _spread_out(self, values: FloatArray) -> FloatArray:
        full = np.zeros(self._active.shape)
        full[self._active] = values
        return full
