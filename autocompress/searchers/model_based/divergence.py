"""The divergence of shifted predictions to second order: what all models of plans share.

For predictions q and the original's p0, both (N, K), a further shift d of the log-probabilities changes the
mean
divergence KL(p0 || q) by

    E[(q - p0)' d] + E[d' (diag(q) - q q') d] / 2,

to second order, with the mean E over the N samples. The matrix in the second term is the Fisher information
of a softmax with respect to its logits. Its product is called the *Fisher metric* here.
"""

from __future__ import annotations

from functools import reduce
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from autocompress.searchers.model_based.encoding import Matrix
from autocompress_envs.problem import FloatArray

Numbers = TypeVar("Numbers", FloatArray, Matrix)


def shifted(log_probabilities: FloatArray | Matrix, shift: FloatArray | Matrix) -> FloatArray:
    """(..., N, K) normalised log-probabilities after shifts.

    Args:
        log_probabilities: (N, K) log-probabilities before the shifts, normalised or not.
        shift: (..., N, K) shifts that are added to them.
    """
    logits: npt.NDArray[Any] = log_probabilities + shift  # in float32 where both are
    # Class by class, and as a product: numpy's own reductions over few neighbouring numbers take ten times as long.
    logits -= reduce(np.maximum, np.moveaxis(logits, -1, 0))[..., None]
    logits -= np.log(_class_sum(np.exp(logits)))
    return logits


def _class_sum(values: Numbers) -> Numbers:
    """(..., N, 1) sums of values (..., N, K) over the classes."""
    found: Numbers = np.matmul(values, np.ones((values.shape[-1], 1), dtype=values.dtype))
    return found


def fisher_coordinates(shifts: Matrix, probabilities: FloatArray) -> Matrix:
    """(M, N * K) coordinates of shifts whose inner products are the Fisher metric E[d' (diag(q) - q q') d].

    d' (diag(q) - q q') d is the variance of d under q. So every shift is centred under q and multiplied by
    the root of q / N. A shift that is the same for all classes changes no probability, and has length 0:

    >>> shifts = np.array([[2.0, -2.0], [3.0, 3.0]], dtype=np.float32)
    >>> coordinates = fisher_coordinates(shifts, np.array([[0.5, 0.5]]))
    >>> (coordinates @ coordinates.T).round(4).tolist()
    [[4.0, 0.0], [0.0, 0.0]]

    Args:
        shifts: (M, N * K) shifts of the log-probabilities.
        probabilities: (N, K) the predictions q around which the divergence is expanded.
    """
    cube = shifts.reshape(len(shifts), *probabilities.shape)  # (M, N, K)
    mean = _class_sum(cube * probabilities.astype(np.float32))  # (M, N, 1)
    root = np.sqrt(probabilities / len(probabilities)).astype(np.float32)  # (N, K)
    found: Matrix = ((cube - mean) * root).reshape(len(shifts), -1)
    return found


def directional_derivatives(shifts: Matrix, probabilities: FloatArray, original: FloatArray) -> FloatArray:
    """(M,) derivatives E[(q - p0)' d] of the mean divergence along shifts d.

    Args:
        shifts: (M, N * K) shifts of the log-probabilities.
        probabilities: (N, K) the predictions q around which the divergence is expanded.
        original: (N, K) the uncompressed network's predictions p0.
    """
    gradient = ((probabilities - original) / len(original)).astype(np.float32).ravel()  # (N * K,)
    derivatives: FloatArray = (shifts @ gradient).astype(np.float64)
    return derivatives
