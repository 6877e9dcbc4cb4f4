"""Coherence: errors at the positions of one sample act together, as far as gradients there point the same way.

To first order, a layer's errors e_t = ΔW x'_t at the positions t of a sample move a function by Σ_t γ_tᵀ e_t. Taking
errors and gradients as independent, and each sample's errors as its mean ē and what is left at each position,

    E[(Σ_t γ_tᵀ e_t)²] = E[Σ_t e_tᵀ G e_t] + κ T E[ēᵀ G ē],    κ = E‖Σ_t γ_t‖² / E[Σ_t ‖γ_t‖²] - 1,

with G = E[γ γᵀ] and T positions (the spectrum of E[(Σ γ)(Σ γ)ᵀ] is taken as that of G). Where gradients at different
positions have nothing to do with each other, κ is 0; where they are all the same, as in front of a global mean, T - 1.
KFAC's two ways of sharing weights, expand and reduce, are these two ends (Eschenhagen et al. 2023); networks lie
between them. So κ is measured, and H = E[Σ_t x'_t x'_tᵀ] becomes

    H + κ T E[x̄' x̄'ᵀ].

A change of a weight whose errors have the same sign all over an image costs more, then, than one whose errors cancel.

A layer's positions are those of all its runs, as in H.

**Few samples.** Each sample has but one mean, so with few of them the covariance C̄ of the means is full of chance. It
is shrunk towards what it would be if means were like positions, ρ C with the covariance C of the positions and
ρ = tr C̄ / tr C, by the share that chance has in the distance (Ledoit & Wolf 2004 with another target):

    β = Σ Var(C̄_ij) / Σ (C̄_ij - ρ C_ij)²,    Σ Var(C̄_ij) = (E‖z‖⁴ - ‖C̄‖²) / N   for centred means z of N samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.menus.algebra import centred
from autocompress.menus.columns import summed_columns
from autocompress.menus.listening import Window


class Coherence:
    """Sums of what one layer's inputs and gradients are over all positions of each sample, batch by batch."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []  # (g, n, d + 1) by batch, Σ_t x'_t / √T
        self._of_sums, self._of_squares = 0.0, 0.0
        self._inputs: Tensor | float = 0.0  # of the batch that is seen: Σ_t x'_t
        self._gradients: Tensor | float = 0.0  # of the function whose gradients are seen: Σ_t γ_t
        self._is_known = True  # whether all calls have told which positions are a sample's

    def see_input(self, x: Tensor, window: Window | None, samples: int) -> None:
        """Add a call.

        Args:
            x: (N, …) float32 inputs of the operator; N is a multiple of the samples, or nothing is known.
            window: window of a convolution; None for a linear layer.
            samples: number of samples in the batch.
        """
        self._is_known &= len(x) % samples == 0
        if self._is_known:
            self._inputs = self._inputs + summed_columns(x, window).unflatten(1, (samples, -1)).sum(2)

    def see_gradient(self, gradient: Tensor, samples: int) -> None:
        """Add the gradients of one function at the outputs of one call.

        Args:
            gradient: (N, …, rows) gradients.
            samples: number of samples in the batch.
        """
        self._is_known &= len(gradient) % samples == 0
        if self._is_known:
            by_sample = gradient.float().reshape(samples, -1, gradient.shape[-1])
            self._gradients = self._gradients + by_sample.sum(1)
            self._of_squares += float(by_sample.square().sum())

    def end_batch(self) -> None:
        """All calls of a batch are seen."""
        if isinstance(self._inputs, Tensor):
            self._rows.append(self._inputs / self._inputs[..., -1:].sqrt())  # the bias's column counts positions
        self._inputs = 0.0

    def end_function(self) -> None:
        """All gradients of a function are seen."""
        if isinstance(self._gradients, Tensor):
            self._of_sums += float(self._gradients.square().sum())
        self._gradients = 0.0

    @property
    def share(self) -> float:
        """κ, at least 0: by how much more the mean error of a sample counts than errors that differ."""
        if not self._is_known or self._of_squares == 0:
            return 0.0
        return max(0.0, self._of_sums / self._of_squares - 1)

    def added(self, moment: Tensor) -> Tensor:
        """κ T E[x̄' x̄'ᵀ], as `moment`: what is to be added to it.

        Args:
            moment: (g, d + 1, d + 1) H, the mean over samples of their sums over positions; or its diagonal,
                (1, 1, d + 1).
        """
        share = self.share
        if not share or not self._rows:
            return torch.zeros_like(moment)
        rows = torch.cat(self._rows, 1)
        is_diagonal = moment.shape[1] == 1
        return share * (rows.square().mean(1, keepdim=True) if is_diagonal else _shrunk_moment(rows, moment))


def _shrunk_moment(rows: Tensor, moment: Tensor) -> Tensor:
    """T E[x̄' x̄'ᵀ] (g, d + 1, d + 1), its covariance shrunk towards that of the positions.

    Args:
        rows: (g, N, d + 1) √T x̄', whose last entry is √T.
        moment: (g, d + 1, d + 1) H.
    """
    middle, ones = rows.mean(1, keepdim=True), moment[..., -1:]
    z, within = rows - middle, centred(moment, ones, ones)
    between = z.mT @ z / z.shape[1]
    return middle.mT @ middle + Means.of(z, between, within).shrunk(between, within)


@dataclass(frozen=True)
class Means:
    """How the means of samples vary beside their positions.

    Attributes:
        likeness: ρ, the means' variance times T as a part of the positions' summed variance.
        shrinkage: β, the share of the covariance between means that is replaced by ρ times that of the positions.
    """

    likeness: float
    shrinkage: float

    @classmethod
    def of(cls, z: Tensor, between: Tensor, within: Tensor) -> Means:
        """What is found on some samples.

        Args:
            z: (g, N, d) √T times the means, centred.
            between: (g, d, d) their covariance.
            within: (g, d, d) covariance of the positions, times T.
        """
        likeness = _trace(between) / _trace(within).clamp(min=1e-30)
        fourth = z.square().sum(2).square().mean(1).sum()  # E‖z‖⁴
        chance = (fourth - between.square().sum()) / z.shape[1]
        apart = (between - likeness * within).square().sum().clamp(min=1e-30)
        return cls(float(likeness), float((chance / apart).clamp(0, 1)))

    def shrunk(self, between: Tensor, within: Tensor) -> Tensor:
        """The covariance of the means, shrunk.

        Args:
            between: the covariance of the means times T, or a part of it.
            within: the same part of the covariance of the positions, times T.
        """
        return between.lerp(self.likeness * within, self.shrinkage)


def _trace(matrices: Tensor) -> Tensor:
    """The sum of the diagonals of (g, d, d) matrices."""
    return matrices.diagonal(dim1=-2, dim2=-1).sum()
