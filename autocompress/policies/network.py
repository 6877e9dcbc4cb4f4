"""The policy: from what every layer looks like to the price of its pruning and of its rounding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.searchers.prices import PRICE_LIMIT
from autocompress_envs.observation import HIGH, KINDS, Observer
from autocompress_envs.problem import FloatArray, Labeling, Problem
from autocompress_envs.solver import Solver

WIDTH = 32
HEADS = 4
_NEAREST: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"depthwise": ("conv", "linear"), "linear": ("conv", "depthwise"), "conv": ("depthwise", "linear")}
)


class LayerNetwork(nn.Module):
    """A perceptron that sees one layer at a time: what the environment's `price` actions can be chosen by."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(len(HIGH), width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.head = _silent_head(width)

    def forward(self, observations: Tensor) -> Tensor:
        """Prices (..., 2) for normalised observations (..., F)."""
        prices: Tensor = self.head(self.body(observations))
        return prices


class SequenceNetwork(nn.Module):
    """The same, with attention over all layers of the network between (Vaswani et al. 2017)."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.embed = nn.Linear(len(HIGH), width)
        self.attend = nn.TransformerEncoderLayer(width, HEADS, 2 * width, dropout=0.0, batch_first=True)
        self.head = _silent_head(width)

    def forward(self, observations: Tensor) -> Tensor:
        """Prices (B, L, 2) for normalised observations (B, L, F) of all layers."""
        prices: Tensor = self.head(self.attend(self.embed(observations)))
        return prices


def _silent_head(width: int) -> nn.Linear:
    """At zero, so that an untrained policy is the solver."""
    head = nn.Linear(width, 2)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


NETWORKS: Mapping[str, type[LayerNetwork] | type[SequenceNetwork]] = MappingProxyType(
    {"layer": LayerNetwork, "sequence": SequenceNetwork}
)


class PricePolicy(nn.Module):
    """Prices from observations, averaged over members that were trained from different weights.

    A price is the natural logarithm of how much more (or less) than its layer error a choice hurts the whole network.

    Args:
        network: name in `NETWORKS`.
        members: at least 1.
        width: of a member's inner layers.
        seed: of the members' weights.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: str = "layer", members: int = 1, width: int = WIDTH, seed: int = 0) -> None:
        super().__init__()
        self.network, self.width = network, width
        self.register_buffer("mean", torch.zeros(len(HIGH)))
        self.register_buffer("deviation", torch.ones(len(HIGH)))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.members = nn.ModuleList(NETWORKS[network](width) for _ in range(members))

    def each(self, observations: Tensor) -> Tensor:
        """Every member's prices (M, B, L, 2) for observations (B, L, F)."""
        normalised = (observations - self.mean) / self.deviation
        return torch.stack([member(normalised) for member in self.members])

    def forward(self, observations: Tensor) -> Tensor:
        """Prices (B, L, 2) for observations (B, L, F), within [-PRICE_LIMIT, PRICE_LIMIT]."""
        return self.each(observations).mean(0).clamp(-PRICE_LIMIT, PRICE_LIMIT)


def observations_of(solver: Solver, reference: Labeling, known: Sequence[str] = KINDS) -> FloatArray:
    """(L, F) what an episode of `price` actions shows, layer by layer, the previous actions left out.

    Args:
        solver: of the problem and its limits.
        reference: its labels at price 0.
        known: kinds of layer; others are shown as the nearest of these.
    """
    observer, nothing = Observer(solver, reference), np.zeros(3)
    count = solver.tables.layer_count
    seen: FloatArray = np.stack([observer.observe(layer, reference, nothing).vector() for layer in range(count)])
    for kind, stand_in in nearest_kinds(solver.problem, known).items():
        rows = [layer.kind == kind for layer in solver.problem.layers]
        seen[rows, : len(KINDS)] = [name == stand_in for name in KINDS]
    return seen


def nearest_kinds(problem: Problem, known: Sequence[str]) -> dict[str, str]:
    """For every kind of layer of the problem that is not known, the nearest that is. Empty where none is known."""
    kinds = sorted({layer.kind for layer in problem.layers} - set(known))
    order = {kind: _NEAREST.get(kind, KINDS) for kind in kinds}
    return {kind: next(near for near in order[kind] if near in known) for kind in kinds if known}


@dataclass(frozen=True)
class Walk:
    """What a policy decides for one network and budget: log prices (L, 2), and the plan that they lead to."""

    prices: FloatArray
    labeling: Labeling


def walk(policy: PricePolicy, problem: Problem, limits: Mapping[str, int], known: Sequence[str] = KINDS) -> Walk:
    """One walk over the network, without evaluating it.

    Args:
        policy: that decides.
        problem: the network in numbers.
        limits: absolute.
        known: kinds of layer that the policy was trained on.

    Raises:
        InfeasibleBudgetError: no plan meets the limits.
    """
    solver = Solver(problem, limits)
    observations = observations_of(solver, solver.solve(), known)
    with torch.inference_mode():
        prices: FloatArray = policy(torch.from_numpy(observations).float()[None])[0].double().numpy()
    return Walk(prices, solver.solve(*np.exp(prices).T))
