"""The divergence of shifted predictions to second order: what models of plans share."""

from __future__ import annotations

import numpy as np

from autocompress.searchers.cells import Matrix
from autocompress_envs.numbers import FloatArray


def shifted(log_probabilities: FloatArray, shift: FloatArray | Matrix) -> FloatArray:
    """(…, N, K) log-probabilities (N, K) after shifts (…, N, K), normalised."""
    logits = log_probabilities + shift
    logits -= logits.max(-1, keepdims=True)
    predicted: FloatArray = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return predicted


def centred(shifts: Matrix, probabilities: FloatArray) -> Matrix:
    """(M, N * K) such that products of rows are covariances of shifts (M, N * K) under predictions (N, K), averaged."""
    cube = shifts.reshape(len(shifts), *probabilities.shape)
    mean = (cube * probabilities.astype(np.float32)).sum(2, keepdims=True)
    root = np.sqrt(probabilities / len(probabilities)).astype(np.float32)
    found: Matrix = ((cube - mean) * root).reshape(len(shifts), -1)
    return found


def slopes(shifts: Matrix, probabilities: FloatArray, original: FloatArray) -> FloatArray:
    """(M,) how fast the divergence from `original` grows along shifts (M, N * K) of the predictions, both (N, K)."""
    pull = ((probabilities - original) / len(original)).astype(np.float32).ravel()
    slope: FloatArray = (shifts @ pull).astype(np.float64)
    return slope
