"""The kernel of the Gaussian process over plans: hyper-parameters, and values between options of a feature."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from autocompress_envs.problem import FloatArray


@dataclass(frozen=True)
class KernelSettings:
    """Hyper-parameters of the kernel, chosen among `CHOICES` by leave-one-out error.

    Attributes:
        pruning: correlation r of neighbouring sparsities, in (0, 1). They remove nested sets of channels, so
            it is close to 1. Default: 0.95.
        rounding: correlation r of neighbouring bit-widths, in (0, 1). Their rounding errors have little in
            common. Default: 0.3.
        pairs: weight c of the square, at least 0. Default: 1.
        noise: variance s of the measurements' noise, as a share of the mean of K's diagonal, above 0.
            Default: 0.01.
    """

    pruning: float = 0.95
    rounding: float = 0.3
    pairs: float = 1.0
    noise: float = 1e-2


CHOICES = tuple(
    itertools.starmap(KernelSettings, itertools.product((0.9, 0.97), (0.1, 0.5), (1.0, 10.0), (1e-3, 1e-2)))
)


def option_kernel(errors: FloatArray, correlation: float) -> FloatArray:
    """(L, O, O) sqrt(e(o) e(o')) r^|o - o'| between all O options o and o' of a feature.

    >>> option_kernel(np.array([[4.0, 1.0]]), 0.5).tolist()
    [[[4.0, 1.0], [1.0, 1.0]]]

    Args:
        errors: (L, O) layer errors e of the options.
        correlation: r, the correlation of neighbouring options, in (0, 1).
    """
    options = np.arange(errors.shape[1])
    correlations = correlation ** np.abs(options[:, None] - options)  # (O, O)
    root = np.sqrt(errors)
    kernel: FloatArray = root[:, :, None] * root[:, None, :] * correlations
    return kernel


def variance_changes(
    pairs: float,
    total: float,
    error_change: FloatArray,
    kernel: FloatArray,
    kernel_change: FloatArray,
    alpha: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """What M single changes of one plan do to its posterior variance v, to second order.

    The prior variance k(p, p) = t + c t^2, with t the sum of the plan's layer errors, changes by y (1 + 2
    c t) + c y^2 for an error that changes by y, and by 2 c y y' more for two together. The part that
    measurements explain, k' K_y^-1 k, changes by 2 m' K_y^-1 k + m' K_y^-1 m, and by 2 m' K_y^-1 m' more.

    Args:
        pairs: weight c of the square.
        total: sum t of the plan's layer errors.
        error_change: (M,) changes y of the layer errors.
        kernel: (n,) the plan's kernel values k.
        kernel_change: (M, n) changes m of these values.
        alpha: (M, n) m' K_y^-1.

    Returns:
        (M,) the change of v that each makes alone, and (M, M) what two make on top of the sum of their own.
    """
    explained = alpha @ kernel_change.T  # (M, M)
    prior = error_change * (1.0 + 2.0 * pairs * total) + pairs * error_change**2
    alone = prior - 2.0 * alpha @ kernel - np.diag(explained)
    return alone, 2.0 * (pairs * np.outer(error_change, error_change) - explained)
