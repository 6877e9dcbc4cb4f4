"""Pruning criteria: in which order a group's channels, or a layer's single weights, are removed.

A criterion only ranks. Whatever the criterion, the weights that stay are re-fitted afterwards
(`algebra.refit`). W, H and G are those of `algebra`; n is the number of a group's channels, m that of the
weight columns that read one channel (1 for a linear layer behind a pool, 9 for a 3x3 convolution).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.errors import InputError
from autocompress.menus.algebra import cholesky_factor, inverse
from autocompress.registry import Registry

_REMOVAL_STEPS = 64  # at most; groups with more channels lose several in a step


@dataclass(frozen=True)
class Consumer:
    """One layer that reads a group; removing the group's channels costs what it does to such layers.

    Attributes:
        weight: (r, d + 1) float64 W, the bias last.
        second_moment: (d + 1, d + 1) float64 H, damped; of a layer with more than 8,192 inputs its diagonal alone,
            (1, d + 1).
        gradient_moment: (r, r) float64 G.
        columns: (n, m) int64, the weight columns that read each of the group's channels.
        activation: (n,) mean absolute activation of each channel, at least 0.
    """

    weight: Tensor
    second_moment: Tensor
    gradient_moment: Tensor
    columns: Tensor
    activation: Tensor

    @property
    def is_diagonal(self) -> bool:
        """Whether only the diagonal of H is known."""
        return len(self.second_moment) == 1 < self.second_moment.shape[1]

    def moments_of_channels(self) -> Tensor:
        """(n, m, m) the block H_CC of the columns C of each channel."""
        if self.is_diagonal:
            return torch.diag_embed(self.second_moment[0, self.columns])
        return self.second_moment[self.columns[:, :, None], self.columns[:, None, :]]


ChannelCriterion = Callable[[Sequence[Consumer], torch.Generator], Tensor]
"""From the layers that read a group, and a generator for random draws: the group's channels (n,) int64 in the
order of their removal.
"""


def obs_order(consumers: Sequence[Consumer], generator: torch.Generator) -> Tensor:
    """Optimal Brain Surgeon on channels: every step removes those that cost all readers together least.

    Let C be the columns that read one channel, and S = (H⁻¹)_CC, (m, m). Where the columns C of W are set to
    0 and all others are free to make up for it, the expected loss grows by

        ½ tr(G W_C S⁻¹ W_Cᵀ)

    and the best others are found by the updates

        W   ← W - W_C S⁻¹ (H⁻¹)_C:
        H⁻¹ ← H⁻¹ - (H⁻¹)_:C S⁻¹ (H⁻¹)_C:

    after which the next channel is costed with what is left: two channels that carry the same information are
    cheap one by one and expensive together. Sources: Optimal Brain Compression (Frantar & Alistarh 2022, eq.
    6 and 7) and ZipLM (Kurtic et al. 2023); the weight by G, the Fisher factor of the layer's outputs, is
    added here.

    Args:
        consumers: layers that read the group, at least one.
        generator: not used; nothing is drawn.

    Returns:
        (n,) channels, the first removed first.
    """
    states = [_Uncorrelated(each) if each.is_diagonal else _Elimination(each) for each in consumers]
    count = len(consumers[0].columns)
    left = torch.arange(count, device=consumers[0].weight.device)
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
    """W and H⁻¹ of one reader while channels are removed, in the columns that read them: no cost needs any other.

    W is kept as Rᵀ W, with a root R of G = R Rᵀ: then tr(G W_C S⁻¹ W_Cᵀ) = tr((Rᵀ W_C) S⁻¹ (Rᵀ W_C)ᵀ), and
    the updates of W, which work on its columns, are the same for Rᵀ W.
    """

    def __init__(self, consumer: Consumer) -> None:
        root = cholesky_factor(consumer.gradient_moment)  # (r, r)
        own = consumer.columns.flatten()  # (n · m,); a layer behind a concatenation reads other groups, too
        self.weight = root.T @ consumer.weight[:, own]  # (r, n · m)
        self.inverse = inverse(consumer.second_moment)[own][:, own]  # (n · m, n · m)
        self.columns = torch.arange(len(own), device=own.device).view_as(consumer.columns)  # (n, m)

    def removal_cost(self, channels: Tensor) -> Tensor:
        """½ tr(G W_C S⁻¹ W_Cᵀ) of each of the (c,) channels alone, (c,)."""
        columns = self.columns[channels]  # (c, m)
        block = self.inverse[columns[:, :, None], columns[:, None, :]]  # (c, m, m) S
        weight = self.weight[:, columns].transpose(0, 1)  # (c, r, m)
        solved = torch.linalg.solve(block, weight, left=False)  # (c, r, m) W_C S⁻¹
        cost: Tensor = (weight * solved).sum((1, 2))
        return cost / 2

    def remove(self, channels: Tensor) -> None:
        """Update W and H⁻¹ to those without the (c,) channels, all at once."""
        columns = self.columns[channels].flatten()  # (c · m,)
        factor = torch.linalg.solve(self.inverse[columns][:, columns], self.inverse[columns])  # S⁻¹ (H⁻¹)_C:
        self.weight.addmm_(self.weight[:, columns], factor, alpha=-1)
        self.inverse.addmm_(self.inverse[:, columns], factor, alpha=-1)


class _Uncorrelated:
    """A reader of which only the diagonal of H is known: no input makes up for another, so removing changes nothing."""

    def __init__(self, consumer: Consumer) -> None:
        weight = _channel_weights(consumer).permute(1, 0, 2)  # (n, r, m)
        scales = consumer.second_moment[0, consumer.columns]  # (n, m)
        self._cost: Tensor = (consumer.gradient_moment.diagonal()[:, None] * weight.square() * scales[:, None]).sum(
            (1, 2)
        ) / 2

    def removal_cost(self, channels: Tensor) -> Tensor:
        """½ Σ G_rr W_rj² H_jj over the columns j of each of the (c,) channels, (c,)."""
        return self._cost[channels]

    def remove(self, channels: Tensor) -> None:
        """Nothing follows."""


def _by_score(score: Callable[[Consumer], Tensor]) -> ChannelCriterion:
    """The criterion that removes channels by ascending score (n,), summed over the group's readers."""

    def order(consumers: Sequence[Consumer], generator: torch.Generator) -> Tensor:
        return torch.stack([score(consumer) for consumer in consumers]).sum(0).argsort(stable=True)

    return order


def _channel_weights(consumer: Consumer) -> Tensor:
    """Weights (r, n, m) that read each of the group's channels."""
    return consumer.weight[:, consumer.columns]


def _l1(consumer: Consumer) -> Tensor:
    """Sum (n,) of the magnitudes of the weights that read each channel (Li et al. 2017)."""
    return _channel_weights(consumer).abs().sum((0, 2))


def _l2(consumer: Consumer) -> Tensor:
    """Sum (n,) of the squares of the weights that read each channel."""
    return _channel_weights(consumer).square().sum((0, 2))


def _activation(consumer: Consumer) -> Tensor:
    """Mean absolute activation (n,) of each channel (Hu et al. 2016, who take the share of zeros instead)."""
    return consumer.activation


def _taylor(consumer: Consumer) -> Tensor:
    """Expected square (n,) of the loss's first-order change without each channel: tr(G W_C H_CC W_Cᵀ).

    Molchanov et al. 2019 take it over samples; here the Fisher factors H and G stand for the samples.
    """
    weight = _channel_weights(consumer).permute(1, 0, 2)  # (n, r, m)
    return (consumer.gradient_moment @ weight * (weight @ consumer.moments_of_channels())).sum((1, 2))


def _random(consumers: Sequence[Consumer], generator: torch.Generator) -> Tensor:
    """The channels (n,) in a random order."""
    return torch.randperm(len(consumers[0].columns), generator=generator)


@dataclass(frozen=True)
class ElementContext:
    """The numbers from which a criterion scores single weights.

    Attributes:
        weight: (r, d) W without the bias.
        inverse_diagonal: (r, d) or (d,), diagonal of H⁻¹, the same in all rows of one group of a convolution.
        moment_diagonal: (r, d) or (d,), diagonal of H, likewise.
        gradient_diagonal: (r,) diagonal of G.
    """

    weight: Tensor
    inverse_diagonal: Tensor
    moment_diagonal: Tensor
    gradient_diagonal: Tensor

    def to_cpu(self) -> ElementContext:
        """The same on the CPU, where scores are ranked."""
        numbers = (self.weight, self.inverse_diagonal, self.moment_diagonal, self.gradient_diagonal)
        return ElementContext(*(number.cpu() for number in numbers))


ElementCriterion = Callable[[ElementContext, torch.Generator], Tensor]
"""From the numbers of a layer, and a generator for random draws: scores (r, d) of its single weights, of which the
lowest are removed first.
"""


@dataclass(frozen=True)
class Criterion:
    """A pruning criterion.

    Attributes:
        channels: function that gives the order in which a group's channels are removed.
        elements: function that scores single weights, for the granularities `element` and `n:m`; None where
            the criterion ranks whole channels only.
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
    """Mask (r, d) bool, False for exactly `remove` weights, those of the lowest scores.

    >>> element_mask(torch.tensor([[3.0, 1.0], [2.0, 4.0]]), remove=2)
    tensor([[ True, False],
            [False,  True]])
    """
    keep = torch.ones(score.numel(), dtype=torch.bool)
    keep[score.flatten().argsort(stable=True)[:remove]] = False
    return keep.view_as(score)


def block_mask(score: Tensor, kept: int, block: int) -> Tensor:
    """Mask (r, d) bool, True for the `kept` highest scores of every `block` consecutive columns.

    >>> block_mask(torch.tensor([[3.0, 1.0, 2.0, 4.0, 0.0, 1.0, 2.0, 3.0]]), kept=2, block=4)
    tensor([[ True, False, False,  True, False, False,  True,  True]])

    Args:
        score: (r, d) scores; d is a multiple of `block`.
        kept: number of weights that stay in a block.
        block: number of columns of a block.
    """
    blocks = score.view(score.shape[0], -1, block)  # (r, d / block, block)
    rank = blocks.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    stays: Tensor = rank < kept
    return stays.view_as(score)


def channel_order(name: str, consumers: Sequence[Consumer], generator: torch.Generator) -> Tensor:
    """A group's channels (n,) int64 in the order in which a criterion removes them.

    Args:
        name: name of the criterion.
        consumers: the layers that read the group.
        generator: for random draws.

    Raises:
        InputError: the criterion, which may be from outside, gives anything but each channel once.
    """
    order, width = CRITERIA[name].channels(consumers, generator), len(consumers[0].columns)
    order = order.cpu() if isinstance(order, Tensor) else order  # type: ignore[redundant-expr]
    if not isinstance(order, Tensor) or order.dtype != torch.int64 or order.shape != (width,):
        raise _fault(name, f"int64 ({width},) for a group of {width} channels", order)
    if not torch.equal(order.sort().values, torch.arange(width)):
        raise _fault(name, f"each of the channels 0 to {width - 1} once", order)
    return order


def element_scores(name: str, context: ElementContext, generator: torch.Generator) -> Tensor:
    """Scores (r, d) that a criterion gives the single weights of a layer.

    Args:
        name: name of a criterion that scores single weights.
        context: the numbers of the layer.
        generator: for random draws.

    Raises:
        InputError: the criterion, which may be from outside, gives anything but (r, d) numbers.
    """
    criterion = CRITERIA[name].elements
    assert criterion is not None, "checked by the settings"
    scores, shape = criterion(context, generator), tuple(context.weight.shape)
    if not isinstance(scores, Tensor) or scores.shape != shape or scores.isnan().any():
        raise _fault(name, f"a number for each of {shape} weights", scores)
    return scores


def _fault(name: str, wanted: str, found: object) -> InputError:
    got = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
    if isinstance(found, Tensor) and found.dtype == torch.int64:
        got += f" {found.flatten()[:8].tolist()}"
    return InputError(
        f"The criterion {name} must give {wanted}, got {got}; "
        "autocompress.testing.check_criterion tries it on small groups."
    )
