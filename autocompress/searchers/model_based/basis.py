"""The basis of a model of outputs: rows of shifts, with their Fisher metric and gradient, in bounded memory."""

from __future__ import annotations

import numpy as np

from autocompress.searchers.model_based.divergence import directional_derivatives, fisher_coordinates
from autocompress.searchers.model_based.encoding import Matrix
from autocompress_envs.problem import FloatArray, IntArray

MOST_BYTES = 800_000_000  # bytes that a model may hold: its effects, and the coordinates and metric of its basis
SPARE = 64  # rows by which the arrays grow at a time: copying them at every row would take as long as a search
CHUNK = 512  # rows whose coordinates are computed at a time
MEASURED = 500  # measured plans for which there has to be room
LEAST_SAMPLES = 64  # samples that are used whatever they take
_NO_ENERGY = 1e-9  # nats: plans whose effects are smaller than this say nothing of the slope


def affordable_samples(samples: int, slots: int, classes: int) -> IntArray:
    """Numbers of the samples that a model of outputs can use within `MOST_BYTES`, ascending; all where they fit.

    In bytes, with S slots, n measured plans, N samples and K classes: effects 4 S N K, coordinates 4 (S + n) N K,
    the shifts of plans and their first-order part 8 n N K, the metric 8 (S + n)^2. At least `LEAST_SAMPLES`
    are used.

    >>> len(affordable_samples(1000, slots=500, classes=10))
    1000
    >>> len(affordable_samples(1000, slots=7_500, classes=10))  # 250 layers with 8 sparsities and 22 bit-widths
    436

    Args:
        samples: number of samples that there are.
        slots: number S of slots; 0 for a model without effects.
        classes: number K of classes.
    """
    left = MOST_BYTES - 8 * (slots + MEASURED) ** 2
    most = max(LEAST_SAMPLES, left // (4 * classes * (2 * slots + 3 * MEASURED)))
    if samples <= most:
        return np.arange(samples)
    chosen: IntArray = np.sort(np.random.default_rng(0).choice(samples, most, replace=False))
    return chosen


class Basis:
    """Rows of shifts around one expansion point.

    Args:
        parts: matrices of shifts (m, N * K), whose rows follow each other.
        probabilities: (N, K) the predictions q of the expansion point.
        original: (N, K) the uncompressed network's predictions.

    Attributes:
        gradient: (m,) derivatives of the divergence along the m rows.
    """

    def __init__(self, parts: tuple[Matrix, ...], probabilities: FloatArray, original: FloatArray) -> None:
        self._probabilities, self._original = probabilities, original
        count = sum(map(len, parts))
        self._coordinates = np.empty((count + SPARE, probabilities.size), dtype=np.float32)
        self._metric = np.empty((count + SPARE, count + SPARE))
        self.gradient = np.zeros(0)
        for part in parts:
            for first in range(0, len(part), CHUNK):
                self._add_coordinates(part[first : first + CHUNK])
        coordinates, metric = self._coordinates[:count], self._metric[:count, :count]
        for first in range(0, count, CHUNK):
            metric[first : first + CHUNK] = coordinates[first : first + CHUNK] @ coordinates.T

    @property
    def metric(self) -> FloatArray:
        """(m, m) inner products of the rows in the Fisher metric."""
        return self._metric[: len(self.gradient), : len(self.gradient)]

    def append(self, row: Matrix) -> None:
        """Add one row of shifts (1, N * K)."""
        count = len(self.gradient)
        if count == len(self._coordinates):
            self._coordinates = np.pad(self._coordinates, ((0, SPARE), (0, 0)))
            self._metric = np.pad(self._metric, (0, SPARE))
        self._add_coordinates(row)
        products = self._coordinates[: count + 1] @ self._coordinates[count]
        self._metric[count, : count + 1] = self._metric[: count + 1, count] = products

    def _add_coordinates(self, rows: Matrix) -> None:
        """Write the Fisher coordinates of further rows, and the derivatives along them."""
        count = len(self.gradient)
        self._coordinates[count : count + len(rows)] = fisher_coordinates(rows, self._probabilities)
        derivatives = directional_derivatives(rows, self._probabilities, self._original)
        self.gradient = np.concatenate([self.gradient, derivatives])


def fitted_slope(first_order: Matrix, shifts: Matrix, probabilities: FloatArray) -> float:
    """The slope of measured over first-order shifts, by least squares in the Fisher metric; at least 0.

    1 where the effects are next to nothing.

    Args:
        first_order: (n, N * K) sums of the effects of plans' labels.
        shifts: (n, N * K) shifts that were measured for them.
        probabilities: (N, K) the predictions at which they are compared.
    """
    coordinates = fisher_coordinates(first_order, probabilities)
    energy = float((coordinates**2).sum())
    if energy < _NO_ENERGY:
        return 1.0
    return max(0.0, float((fisher_coordinates(shifts, probabilities) * coordinates).sum()) / energy)
