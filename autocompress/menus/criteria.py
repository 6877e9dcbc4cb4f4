"""Pruning criteria: in which order a group's channels, or a layer's weights, are removed.

A criterion ranks; the weights that stay are re-fitted afterwards (`algebra.refit`) whatever the criterion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.menus.algebra import inverse
from autocompress.registry import Registry

_REMOVAL_STEPS = 64  # groups wider than this lose several channels a step


@dataclass(frozen=True)
class Consumer:
    """One layer that reads a group.

    Attributes:
        weight: (r, d + 1) float64, the bias last.
        second_moment: (d + 1, d + 1), damped.
        gradient_moment: (r, r).
        columns: (n, m) the columns of each of the group's n channels.
        activation: (n,) mean absolute activation of each channel.
    """

    weight: Tensor
    second_moment: Tensor
    gradient_moment: Tensor
    columns: Tensor
    activation: Tensor


ChannelCriterion = Callable[[Sequence[Consumer], torch.Generator], Tensor]
"""(n,) int64, the channels of a group in the order of their removal, from the layers that read the group."""


def obs_order(consumers: Sequence[Consumer], generator: torch.Generator) -> Tensor:
    """Optimal Brain Surgeon on channel blocks, what the removal costs all consumers summed.

    Removing columns C of W costs ½ tr(G W_C S⁻¹ W_Cᵀ) with S = (H⁻¹)_CC, and changes
    W by -W_C S⁻¹ (H⁻¹)_C: and H⁻¹ by -(H⁻¹)_:C S⁻¹ (H⁻¹)_C: (Optimal Brain Compression, Frantar & Alistarh 2022,
    eq. 6-7; ZipLM, Kurtic et al. 2023), here weighted by the Fisher factor G of the layer's outputs.

    Returns:
        (n,) channels, first removed first.
    """
    states = [_Elimination(consumer) for consumer in consumers]
    count = len(consumers[0].columns)
    left = torch.arange(count)
    order: list[Tensor] = []
    step = max(1, count // _REMOVAL_STEPS)
    while len(left):
        cost = torch.stack([state.removal_cost(left) for state in states]).sum(0)
        chosen = cost.argsort(stable=True)[:step]
        gone = left[chosen]
        for state in states:
            state.remove(gone)
        order.append(gone)
        left = left[~torch.isin(left, gone)]
    return torch.cat(order)


class _Elimination:
    """W and H⁻¹ of one consumer while channels go; W is kept multiplied by a root of G."""

    def __init__(self, consumer: Consumer) -> None:
        values, vectors = torch.linalg.eigh(consumer.gradient_moment)
        root = vectors * values.clamp(min=0).sqrt()  # G = root rootᵀ
        self.weight = root.T @ consumer.weight
        self.inverse = inverse(consumer.second_moment)
        self.columns = consumer.columns

    def removal_cost(self, channels: Tensor) -> Tensor:
        """(c,) ½ tr(G W_C S⁻¹ W_Cᵀ) of each of the channels."""
        columns = self.columns[channels]  # (c, m)
        block = self.inverse[columns[:, :, None], columns[:, None, :]]  # (c, m, m)
        weight = self.weight[:, columns].transpose(0, 1)  # (c, r, m)
        solved = torch.linalg.solve(block, weight, left=False)
        cost: Tensor = (weight * solved).sum((1, 2))
        return cost / 2

    def remove(self, channels: Tensor) -> None:
        columns = self.columns[channels].flatten()
        factor = torch.linalg.solve(self.inverse[columns][:, columns], self.inverse[columns])  # S⁻¹ (H⁻¹)_C:
        self.weight -= self.weight[:, columns] @ factor
        self.inverse -= self.inverse[:, columns] @ factor


def _by_score(score: Callable[[Consumer], Tensor]) -> ChannelCriterion:
    def order(consumers: Sequence[Consumer], generator: torch.Generator) -> Tensor:
        return torch.stack([score(consumer) for consumer in consumers]).sum(0).argsort(stable=True)

    return order


def _channel_weights(consumer: Consumer) -> Tensor:
    return consumer.weight[:, consumer.columns]  # (r, n, m)


def _l1(consumer: Consumer) -> Tensor:
    """Li et al. 2017."""
    return _channel_weights(consumer).abs().sum((0, 2))


def _l2(consumer: Consumer) -> Tensor:
    return _channel_weights(consumer).square().sum((0, 2))


def _activation(consumer: Consumer) -> Tensor:
    """Channels that hardly fire go first (Hu et al. 2016, by mean instead of by share of zeros)."""
    return consumer.activation


def _taylor(consumer: Consumer) -> Tensor:
    """Expected squared first-order change of the loss (Molchanov et al. 2019), through the Fisher factors."""
    weight = _channel_weights(consumer).permute(1, 0, 2)  # (n, r, m)
    moment = consumer.second_moment[consumer.columns[:, :, None], consumer.columns[:, None, :]]  # (n, m, m)
    return (consumer.gradient_moment @ weight * (weight @ moment)).sum((1, 2))


def _random(consumers: Sequence[Consumer], generator: torch.Generator) -> Tensor:
    return torch.randperm(len(consumers[0].columns), generator=generator)


@dataclass(frozen=True)
class ElementContext:
    """What a criterion for single weights may look at.

    Attributes:
        weight: (r, d) W.
        inverse_diagonal: (r, d) or (d,), the diagonal of H⁻¹.
        moment_diagonal: (r, d) or (d,), the diagonal of H.
        gradient_diagonal: (r,) the diagonal of G.
    """

    weight: Tensor
    inverse_diagonal: Tensor
    moment_diagonal: Tensor
    gradient_diagonal: Tensor


ElementCriterion = Callable[[ElementContext, torch.Generator], Tensor]
"""Scores (r, d) of single weights: the lowest are removed first."""


@dataclass(frozen=True)
class Criterion:
    """A pruning criterion.

    Attributes:
        channels: the order in which a group's channels are removed.
        elements: scores of single weights, for the granularities `element` and `n:m`; None: whole channels only.
    """

    channels: ChannelCriterion
    elements: ElementCriterion | None = None


CRITERIA: Registry[Criterion] = Registry(
    "criterion",
    {
        # Elements: SparseGPT (Frantar & Alistarh 2023, eq. 3), weighted by how much the row matters.
        "obs": Criterion(obs_order, lambda c, _: c.gradient_diagonal[:, None] * c.weight.square() / c.inverse_diagonal),
        "l1": Criterion(_by_score(_l1), lambda c, _: c.weight.abs()),
        "l2": Criterion(_by_score(_l2), lambda c, _: c.weight.square()),
        # Elements: Wanda (Sun et al. 2024): magnitude times the input's norm.
        "activation": Criterion(_by_score(_activation), lambda c, _: c.weight.abs() * c.moment_diagonal.sqrt()),
        "taylor": Criterion(
            _by_score(_taylor), lambda c, _: c.gradient_diagonal[:, None] * c.weight.square() * c.moment_diagonal
        ),
        "random": Criterion(
            _random, lambda c, generator: torch.rand(c.weight.shape, generator=generator, dtype=c.weight.dtype)
        ),
    },
)


def element_mask(score: Tensor, remove: int) -> Tensor:
    """(r, d) bool, True where a weight stays; exactly `remove` of the lowest scores go."""
    keep = torch.ones(score.numel(), dtype=torch.bool)
    keep[score.flatten().argsort(stable=True)[:remove]] = False
    return keep.view_as(score)


def block_mask(score: Tensor, kept: int, block: int) -> Tensor:
    """(r, d) bool: the `kept` highest scores of every `block` consecutive columns stay; d divides by `block`."""
    blocks = score.view(score.shape[0], -1, block)
    rank = blocks.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    stays: Tensor = rank < kept
    return stays.view_as(score)
