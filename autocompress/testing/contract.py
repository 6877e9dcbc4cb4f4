"""What the checks share: one kind of error, and random tensors that are always the same."""

from __future__ import annotations

import torch
from torch import Tensor


class ContractError(AssertionError):
    """An entry breaks a rule of its extension point. The message says the rule and what was found."""


def require(holds: bool, rule: str, found: object) -> None:
    """Raises ContractError where a rule does not hold.

    Args:
        holds: whether the rule holds.
        rule: the rule, a sentence without its full stop, such as "`order` must be a permutation".
        found: value that was found instead.
    """
    if not holds:
        raise ContractError(f"{rule}, got {found}.")


def seeded(seed: int) -> torch.Generator:
    """A random generator."""
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    """Normally distributed numbers of that shape, float64."""
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def second_moment(columns: int, seed: int) -> Tensor:
    """(columns + 1, columns + 1) second moment of 200 samples of correlated inputs and a constant 1, float64."""
    inputs = normal(200, columns, seed=seed) @ normal(columns, columns, seed=seed + 1) / columns**0.5 + 0.5
    inputs = torch.cat([inputs, torch.ones(200, 1, dtype=torch.float64)], 1)
    return inputs.T @ inputs / 200


def gradient_moment(rows: int, seed: int) -> Tensor:
    """(rows, rows) second moment of gradients at a layer's outputs, float64."""
    gradients = normal(3 * rows, rows, seed=seed)
    return gradients.T @ gradients / len(gradients)
