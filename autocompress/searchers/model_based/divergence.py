"""The divergence of shifted predictions to second order: what models of plans share."""

from __future__ import annotations

from functools import reduce
from typing import TypeVar

import numpy as np

from autocompress.searchers.model_based.cells import Matrix
from autocompress_envs.problem import FloatArray

Numbers = TypeVar("Numbers", FloatArray, Matrix)


def shifted(log_probabilities: FloatArray, shift: FloatArray | Matrix) -> FloatArray:
    """(…, N, K) log-probabilities (N, K) after shifts (…, N, K), normalised."""
    logits = log_probabilities + shift
    # Class by class and as a product: numpy's own reductions over a few neighbouring numbers take ten times as long.
    logits -= reduce(np.maximum, np.moveaxis(logits, -1, 0))[..., None]
    logits -= np.log(_sum(np.exp(logits)))
    return logits


def _sum(values: Numbers) -> Numbers:
    """(…, N, 1) over the classes."""
    found: Numbers = np.matmul(values, np.ones((values.shape[-1], 1), dtype=values.dtype))
    return found


def centred(shifts: Matrix, probabilities: FloatArray) -> Matrix:
    """(M, N * K) such that products of rows are covariances of shifts (M, N * K) under predictions (N, K), averaged."""
    cube = shifts.reshape(len(shifts), *probabilities.shape)
    mean = _sum(cube * probabilities.astype(np.float32))
    root = np.sqrt(probabilities / len(probabilities)).astype(np.float32)
    found: Matrix = ((cube - mean) * root).reshape(len(shifts), -1)
    return found


def slopes(shifts: Matrix, probabilities: FloatArray, original: FloatArray) -> FloatArray:
    """(M,) how fast the divergence from `original` grows along shifts (M, N * K) of the predictions, both (N, K)."""
    pull = ((probabilities - original) / len(original)).astype(np.float32).ravel()
    slope: FloatArray = (shifts @ pull).astype(np.float64)
    return slope
