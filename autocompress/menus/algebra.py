"""Linear algebra behind the menus, in double precision: damped Hessians, inverses, re-fits, expected loss.

For a layer with outputs y = W x + b, the bias is a further column of W whose input is the constant 1. Below,
d is the number of weight columns without it, g the number of a convolution's groups (1 for other layers), and

    H = E[x xᵀ]   (g, d + 1, d + 1)   second moment of the inputs, one matrix for each group
    G = E[γ γᵀ]   (rows, rows)        second moment of the gradients γ at the outputs

`calibration` estimates both. A change ΔW of the weight is expected to cost ½ tr(G ΔW H ΔWᵀ) nats.
"""

from __future__ import annotations

import torch
from torch import Tensor

_STRIP = 512  # rows of a second moment that are computed at a time


def damped(second_moment: Tensor, damping: float) -> Tensor:
    """H + λ I, which is positive definite also where H is not.

    H is singular where an input is always 0, or where there are fewer samples than columns. λ is `damping`
    times the mean of H's diagonal, so that it has H's scale. The bias column gets a millionth of it: the bias
    is never rounded and its input is a constant, so that shrinking it would only lose accuracy.

    >>> damped(torch.diag(torch.tensor([4.0, 0.0, 1.0]))[None], 0.5).diagonal(dim1=1, dim2=2)
    tensor([[5.0000, 1.0000, 1.0000]])

    Args:
        second_moment: (g, d + 1, d + 1) H, the bias last.
        damping: λ as a fraction of the mean of the diagonal, above 0.

    Returns:
        (g, d + 1, d + 1)
    """
    diagonal = second_moment.diagonal(dim1=-2, dim2=-1)[:, :-1]  # (g, d)
    mean = diagonal.mean(-1, keepdim=True).clamp(min=1e-12)  # (g, 1)
    ridge = torch.cat([(damping * mean).expand_as(diagonal), 1e-6 * mean], -1)  # (g, d + 1)
    return second_moment + torch.diag_embed(ridge)


def gram(columns: Tensor) -> Tensor:
    """Sum of x xᵀ over columns x: (g, n, n).

    >>> gram(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
    tensor([[[10., 14.],
             [14., 20.]]])

    Args:
        columns: (g, m, n) m columns of n entries, for each of g groups.
    """
    width = columns.shape[2]
    total = columns.new_zeros(len(columns), width, width)
    add_gram_(total, columns)
    mirror_(total)
    return total


def centred(moment: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Σ a bᵀ - Σ a Σ bᵀ / n (…, p, q) of n pairs of vectors.

    Args:
        moment: (…, p, q) Σ a bᵀ.
        left: (…, p, 1) Σ a.
        right: (…, q, 1) Σ b; the last entry of every b is 1, so that of this is n.
    """
    return moment - left @ right.mT / right[..., -1:, :]


def covariance(moment: Tensor) -> Tensor:
    """Covariance (…, d, d) of inputs, from their second moment H (…, d + 1, d + 1) with a 1 as the last of them.

    It is a sum over as many columns as H is.
    """
    ones = moment[..., -1:]
    return centred(moment, ones, ones)[..., :-1, :-1]


def add_gram_(total: Tensor, columns: Tensor, factor: float = 1.0) -> None:
    """Add the sum of x xᵀ over columns x to the half of a total on and above its diagonal (`mirror_`).

    Wide ones are added in strips: half of the products, and never a second matrix beside the total.

    Args:
        total: (g, n, n) total, in float32 or float64.
        columns: (g, m, n) float32 columns.
        factor: number that the sum is multiplied by. Default: 1.
    """
    for start, stop in _strips(columns.shape[2]):
        product = columns[..., start:stop].mT @ columns[..., start:]
        total[:, start:stop, start:] += product if factor == 1 else product.mul_(factor)


def mirror_(total: Tensor) -> None:
    """Make a (g, n, n) total symmetric: below the diagonal becomes what is above it."""
    for start, stop in _strips(total.shape[2]):
        total[:, stop:, start:stop] = total[:, start:stop, stop:].mT


def _strips(width: int) -> list[tuple[int, int]]:
    """First row and end of each strip of a second moment; a narrow one is one strip.

    >>> _strips(1_024), _strips(1_300)
    ([(0, 1024)], [(0, 512), (512, 1024), (1024, 1300)])
    """
    if width <= 2 * _STRIP:
        return [(0, width)]
    return [(start, min(start + _STRIP, width)) for start in range(0, width, _STRIP)]


def inverse(matrix: Tensor) -> Tensor:
    """Inverse (…, n, n) of a symmetric positive definite matrix, by way of its Cholesky factor.

    Raises:
        ArithmeticError: the matrix is not finite.
    """
    return torch.cholesky_inverse(cholesky_factor(matrix))


def cholesky_factor(matrix: Tensor) -> Tensor:
    """Lower factor L of a symmetric matrix L Lᵀ (…, n, n).

    Where rounding has made the matrix indefinite, a multiple of its mean diagonal is added: 1e-10 at first,
    ten times as much in every further try. The factor of zeros, as of the gradients of a dead layer, is next to zero.

    Raises:
        ArithmeticError: the matrix is not finite.
    """
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    scale = matrix.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None].clamp(min=1e-30)  # (…, 1, 1)
    ridge = 0.0
    for _ in range(12):
        found = torch.linalg.cholesky_ex(matrix + ridge * scale * identity if ridge else matrix)
        if not found.info.any():
            factor: Tensor = found.L
            return factor
        ridge = max(10 * ridge, 1e-10)
    raise ArithmeticError("a damped second moment is not finite")


def refit(weight: Tensor, second_moment: Tensor, kept: Tensor) -> Tensor:
    """Weights on the `kept` columns that reproduce the layer's outputs best once the other columns are gone.

    The least-squares problem is argmin tr((W - W') H (W - W')ᵀ) over W' that is 0 outside `kept` = K. Its
    normal equations are W'_K H_KK = (W H)_K. The kept weights take over what removed inputs had in common
    with kept ones.

    Of two equal inputs, one is removed:

    >>> second_moment = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> refit(torch.tensor([[2.0, 3.0, 7.0]]), second_moment, torch.tensor([0, 2]))
    tensor([[5., 7.]])

    Args:
        weight: (r, d + 1) W, the bias last.
        second_moment: (d + 1, d + 1) H, damped.
        kept: (k,) indices of the columns that stay; the bias column is the last of them.

    Returns:
        (r, k) W'_K
    """
    right = weight @ second_moment[:, kept]  # (r, k)
    return torch.cholesky_solve(right.T, cholesky_factor(second_moment[kept][:, kept])).T


def expected_loss(change: Tensor, second_moment: Tensor, gradient_moment: Tensor) -> float:
    """½ tr(G ΔW H ΔWᵀ): Kullback-Leibler divergence in nats that a change of the weight is expected to cause.

    Outputs of different groups of a convolution are taken as independent, so that only G's diagonal blocks
    count.

    >>> one = torch.ones(1, 1)
    >>> expected_loss(torch.tensor([[2.0, 0.0]]), torch.eye(2)[None], 3 * one)  # ½ · 3 · 2²
    6.0

    Args:
        change: (rows, d + 1) ΔW, the bias last.
        second_moment: (g, d + 1, d + 1) H, not damped.
        gradient_moment: (rows, rows) G.

    Returns:
        The loss, at least 0.
    """
    change = change.view(len(second_moment), -1, change.shape[1])  # (g, r, d + 1)
    moment = diagonal_blocks(gradient_moment, len(second_moment))  # (g, r, r)
    return 0.5 * float(((moment @ change) * (change @ second_moment)).sum().clamp(min=0))


def diagonal_blocks(matrix: Tensor, count: int) -> Tensor:
    """The `count` square blocks (count, r, r) along the diagonal of a (count · r, count · r) matrix.

    >>> diagonal_blocks(torch.arange(16).view(4, 4), 2)
    tensor([[[ 0,  1],
             [ 4,  5]],
    <BLANKLINE>
            [[10, 11],
             [14, 15]]])
    """
    index = torch.arange(len(matrix)).view(count, -1)  # (count, r)
    return matrix[index[:, :, None], index[:, None, :]]
