"""First-order effects in few dimensions: what each label does to the outputs, as a short vector.

A label shifts the log-probabilities of K classes on N samples by d, (N, K). Shifts of several labels add up, and a
shift d
costs, to second order, half of its squared length in the Fisher metric: E[d' (diag(p) - p p') d] / 2 nats. The metric
is made the plain one by a change of coordinates (centre d under p, multiply by the root of p / N). The coordinates'
first principal components keep most of all lengths and angles, so N K numbers become a few dozen, and a
label's effect is added in microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autocompress_envs.problem import FloatArray

DIMENSIONS = 32  # at most; on the networks of the zoo they hold nine tenths of all squared lengths and more
_SAMPLES = 256  # samples that count at most
_SLOTS = 1024  # principal components are those of so many labels at most, drawn evenly
_SHRINKAGE = 0.7  # effects of whole plans fall short of the sum of their labels', as probabilities saturate


@dataclass(frozen=True)
class Sketch:
    """Effects of every label, in D dimensions in which half of the squared length is a divergence in nats.

    Attributes:
        pruning: (L, S, D) effects of every sparsity, by the layer that owns it.
        rounding: (L, B * A, D) effects of every pair of bits b * A + a.
    """

    pruning: FloatArray
    rounding: FloatArray

    @classmethod
    def of(
        cls,
        pruning: npt.NDArray[np.float32],
        rounding: npt.NDArray[np.float32],
        probabilities: FloatArray,
        dimensions: int = DIMENSIONS,
    ) -> Sketch:
        """The sketch of measured effects.

        Two labels whose effects cancel, on one sample of a fair coin: each alone would cost 0.7^2 * 0.1^2 / 2 nats.

        >>> shift = np.array([[[[0.1, -0.1]], [[-0.1, 0.1]]]], dtype=np.float32)  # one layer, two labels
        >>> sketch = Sketch.of(0 * shift, shift, np.array([[0.5, 0.5]]))
        >>> bool(np.allclose(sketch.rounding.sum(1), 0, atol=1e-9)), round(float((sketch.rounding[0, 0] ** 2).sum()), 6)
        (True, 0.0049)

        Args:
            pruning: (L, S, N, K) effects of sparsities on the log-probabilities.
            rounding: (L, B * A, N, K) effects of bits.
            probabilities: (N, K) predictions of the original.
            dimensions: most dimensions D. Default: `DIMENSIONS`.
        """
        parts = [_coordinates(part, probabilities) for part in (pruning, rounding)]
        rows = np.concatenate([part.reshape(-1, part.shape[-1]) for part in parts])
        longest = np.flatnonzero((rows != 0).any(1))
        chosen = longest[np.linspace(0, len(longest) - 1, min(len(longest), _SLOTS)).astype(int)]
        axes = _principal_axes(rows[chosen], dimensions)  # (D, N * K)
        found = [_SHRINKAGE * (part @ axes.T).astype(np.float64) for part in parts]
        return cls(found[0], found[1])

    @classmethod
    def empty(cls, layers: int, sparsities: int, bits: int) -> Sketch:
        """The sketch of a network whose effects are not known: no dimension at all."""
        return cls(np.zeros((layers, sparsities, 0)), np.zeros((layers, bits, 0)))


def _coordinates(effects: npt.NDArray[np.float32], probabilities: FloatArray) -> npt.NDArray[np.float32]:
    """(L, O, N * K) effects (L, O, N, K) in coordinates whose plain inner product is the Fisher metric under p."""
    few = np.linspace(0, len(probabilities) - 1, min(_SAMPLES, len(probabilities), effects.shape[2])).astype(int)
    shifts, p = effects[:, :, few], probabilities[few].astype(np.float32)
    p = p / p.sum(1, keepdims=True)
    centred = shifts - (shifts * p).sum(-1, keepdims=True)
    coordinates: npt.NDArray[np.float32] = centred * np.sqrt(p / len(p))
    return coordinates.reshape(*effects.shape[:2], -1)


def _principal_axes(rows: npt.NDArray[np.float32], dimensions: int) -> npt.NDArray[np.float32]:
    """(D, M) orthonormal axes along which the rows (n, M) are longest, from the smaller of the two Gram matrices."""
    count, size = rows.shape
    if not count:
        return np.zeros((0, size), dtype=np.float32)
    values, vectors = np.linalg.eigh((rows @ rows.T if count <= size else rows.T @ rows).astype(np.float64))
    kept = np.flatnonzero(values > 1e-9 * max(values[-1], 1e-30))[-dimensions:][::-1]
    axes = vectors[:, kept].T  # of the Gram matrix
    if count <= size:
        axes = (axes / np.sqrt(values[kept])[:, None]) @ rows
    return np.asarray(axes, dtype=np.float32)
