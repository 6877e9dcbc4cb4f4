"""Least squares behind the menus: damped second moments, inverses, re-fits and layer errors, in double precision."""

from __future__ import annotations

import torch
from torch import Tensor


def damped(second_moment: Tensor, damping: float) -> Tensor:
    """H with `damping` times its mean diagonal added to the weights' diagonal: (g, d + 1, d + 1).

    Dead inputs (all-zero rows) and rank-deficient H become positive definite. The bias column is damped by a
    millionth of that: it is never rounded and stands for a constant, so shrinking it would only lose accuracy.
    """
    diagonal = second_moment.diagonal(dim1=-2, dim2=-1)[:, :-1]
    mean = diagonal.mean(-1, keepdim=True).clamp(min=1e-12)
    ridge = torch.cat([(damping * mean).expand_as(diagonal), 1e-6 * mean], -1)
    return second_moment + torch.diag_embed(ridge)


def inverse(matrix: Tensor) -> Tensor:
    """Inverse of a symmetric positive definite matrix; adds ridge until the factorization succeeds."""
    return torch.cholesky_inverse(cholesky_factor(matrix))


def cholesky_factor(matrix: Tensor) -> Tensor:
    """Lower factor of a symmetric matrix (…, n, n); adds ridge until the factorization succeeds.

    Raises:
        ArithmeticError: the matrix is not finite.
    """
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype)
    scale = matrix.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    ridge = 0.0
    for _ in range(12):
        found = torch.linalg.cholesky_ex(matrix + ridge * scale * identity if ridge else matrix)
        if not found.info.any():
            factor: Tensor = found.L
            return factor
        ridge = max(10 * ridge, 1e-10)
    raise ArithmeticError("a damped second moment is not finite")


def refit(weight: Tensor, second_moment: Tensor, kept: Tensor) -> Tensor:
    """Weights on the `kept` columns that reproduce the layer's output best: argmin tr((W - W') H (W - W')ᵀ).

    Args:
        weight: (r, d + 1), the bias last.
        second_moment: (d + 1, d + 1), damped.
        kept: (k,) indices, the bias column last.

    Returns:
        (r, k)
    """
    right = weight @ second_moment[:, kept]  # (r, k)
    return torch.cholesky_solve(right.T, cholesky_factor(second_moment[kept][:, kept])).T


def expected_loss(change: Tensor, second_moment: Tensor, gradient_moment: Tensor) -> float:
    """½ tr(G ΔW H ΔWᵀ) in nats, for ΔW (rows, d + 1), H (g, d + 1, d + 1) and G (rows, rows).

    Outputs of the different groups of a convolution are taken as independent.
    """
    change = change.view(len(second_moment), -1, change.shape[1])  # (g, r, d + 1)
    moment = diagonal_blocks(gradient_moment, len(second_moment))
    return 0.5 * float(((moment @ change) * (change @ second_moment)).sum().clamp(min=0))


def diagonal_blocks(matrix: Tensor, count: int) -> Tensor:
    """(count, r, r) square blocks along the diagonal of a (count · r, count · r) matrix."""
    index = torch.arange(len(matrix)).view(count, -1)
    return matrix[index[:, :, None], index[:, None, :]]
