"""Random functions of a network's outputs whose gradients have the Fisher matrix as their second moment.

With log-probabilities l_k of K classes, p = exp(l), and independent random signs ε_k,

    f = Σ_k ε_k √p_k l_k   has   E[∇f ∇fᵀ] = Σ_k p_k ∇l_k ∇l_kᵀ,

the Fisher matrix of a sample (p and ε are held fixed in the derivative); with P rows of K classes each, f / √P has that
of their mean. A class drawn from p gives the same in
expectation; but where a network is sure, it almost always draws the likeliest class, whose gradient says next to
nothing, and once in a while one whose gradient is huge. The signs look at all classes at once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MULTIPLY_ADDS = 50_000_000_000
"""Work of a forward pass over the samples whose gradients are taken: some seconds on a CPU."""

_LEAST = 64  # samples whose gradients are taken, where there are as many


def random_functions(outputs: Tensor, draws: int, generator: torch.Generator) -> list[Tensor]:
    """`draws` such functions, each summed over the samples: numbers to take gradients of.

    Args:
        outputs: (N, K) logits or (N, P, K) rows, part of an autograd graph.
        draws: number of functions, at least 1.
        generator: generator of the signs, on the CPU.
    """
    logs = outputs.float().log_softmax(-1)
    roots = logs.detach().mul(0.5).exp() / math.sqrt(logs[0, ..., 0].numel())
    signs = (torch.randint(0, 2, (draws, *logs.shape), generator=generator) * 2 - 1).to(roots)
    return [(each * roots * logs).sum() for each in signs]


def gradient_samples(macs: int, available: int) -> int:
    """Number of samples whose gradients are taken: fewer of a network that takes longer, but at least 64.

    >>> gradient_samples(40_000_000, 512), gradient_samples(400_000_000, 512), gradient_samples(4_000_000_000, 512)
    (512, 125, 64)

    Args:
        macs: multiply-accumulates of a forward pass of one sample.
        available: number of samples that there are.
    """
    return min(available, max(_LEAST, _MULTIPLY_ADDS // max(1, macs)))
