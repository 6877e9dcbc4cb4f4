"""The policy: a network that maps the observations of all layers to log prices, in one forward pass.

A price says how much more (or less) than its expected loss a layer's pruning, or its rounding, hurts the
whole network. The Lagrangian solver of the environment turns prices and a budget into a plan.
"""

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
    {
        "depthwise": ("conv", "linear"),
        "linear": ("conv", "depthwise"),
        "conv": ("depthwise", "linear"),
        "embedding": ("linear", "conv", "depthwise"),
        "recurrent": ("linear", "conv", "depthwise"),
        "transposed": ("conv", "depthwise", "linear"),
    }
)


class LayerNetwork(nn.Module):
    """A perceptron that sees one layer at a time.

    So it can also choose the environment's `price` actions step by step.

    Args:
        width: number of units of both hidden layers.
    """

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(len(HIGH), width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.head = _silent_head(width)

    def forward(self, observations: Tensor) -> Tensor:
        """Log prices (..., 2) for normalised observations (..., F)."""
        prices: Tensor = self.head(self.body(observations))
        return prices


class SequenceNetwork(nn.Module):
    """Self-attention over all layers of the network (Vaswani et al. 2017), between two linear layers.

    Args:
        width: number of features of the attention block; a multiple of `HEADS`.
    """

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.embed = nn.Linear(len(HIGH), width)
        self.attend = nn.TransformerEncoderLayer(width, HEADS, 2 * width, dropout=0.0, batch_first=True)
        self.head = _silent_head(width)

    def forward(self, observations: Tensor) -> Tensor:
        """Log prices (B, L, 2) for normalised observations (B, L, F) of all layers."""
        prices: Tensor = self.head(self.attend(self.embed(observations)))
        return prices


def _silent_head(width: int) -> nn.Linear:
    """A last layer whose weights are 0, so that an untrained policy gives the solver's plan."""
    head = nn.Linear(width, 2)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


NETWORKS: Mapping[str, type[LayerNetwork] | type[SequenceNetwork]] = MappingProxyType(
    {"layer": LayerNetwork, "sequence": SequenceNetwork}
)


class PricePolicy(nn.Module):
    """Log prices from observations: the mean over members that were trained from different initial weights.

    A log price is the natural logarithm of the factor by which a choice hurts the whole network more (or
    less) than its expected loss says.

    Args:
        network: name of the members' architecture, one of `NETWORKS`.
        members: number of members, at least 1.
        width: width of a member's inner layers.
        seed: seed of the members' initial weights.

    Attributes:
        mean: (F,) mean of every feature over the observations that the policy was trained on.
        deviation: (F,) standard deviation of every feature over these observations, above 0.
        members: the member networks.
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
        """Every member's log prices (M, B, L, 2), not clipped, for observations (B, L, F)."""
        normalised = (observations - self.mean) / self.deviation
        return torch.stack([member(normalised) for member in self.members])

    def forward(self, observations: Tensor) -> Tensor:
        """Log prices (B, L, 2), each in [-PRICE_LIMIT, PRICE_LIMIT], for observations (B, L, F)."""
        return self.each(observations).mean(0).clamp(-PRICE_LIMIT, PRICE_LIMIT)


def observations_of(solver: Solver, reference: Labeling, known: Sequence[str] = KINDS) -> FloatArray:
    """Observations (L, F) of all layers, as in an episode of `price` actions, with previous actions of 0.

    Args:
        solver: solver of the problem under its limits.
        reference: plan of the solver at log prices of 0.
        known: kinds of layer that the policy was trained on; layers of another kind are shown as the nearest
            of these.
    """
    observer, nothing = Observer(solver, reference), np.zeros(3)
    count = solver.tables.layer_count
    seen: FloatArray = np.stack([observer.observe(layer, reference, nothing).vector() for layer in range(count)])
    for kind, stand_in in nearest_kinds(solver.problem, known).items():
        rows = [layer.kind == kind for layer in solver.problem.layers]
        seen[rows, : len(KINDS)] = [name == stand_in for name in KINDS]
    return seen


def nearest_kinds(problem: Problem, known: Sequence[str]) -> dict[str, str]:
    """The nearest known kind for every unknown kind of layer of the problem; empty if `known` is empty."""
    kinds = sorted({layer.kind for layer in problem.layers} - set(known))
    order = {kind: _NEAREST.get(kind, KINDS) for kind in kinds}
    return {kind: next(near for near in order[kind] if near in known) for kind in kinds if known}


@dataclass(frozen=True)
class PolicyPlan:
    """What a policy decides for one network and budget.

    Attributes:
        prices: (L, 2) log prices of every layer: of pruning the group that it owns, and of rounding it.
        labeling: plan that the solver makes of these prices; it meets the budget.
    """

    prices: FloatArray
    labeling: Labeling


def plan_in_one_pass(
    policy: PricePolicy, problem: Problem, limits: Mapping[str, int], known: Sequence[str] = KINDS
) -> PolicyPlan:
    """The policy's plan by one forward pass over all layers; no plan is evaluated.

    Args:
        policy: policy that sets the prices.
        problem: the network in numbers.
        limits: absolute upper bounds by resource.
        known: kinds of layer that the policy was trained on.

    Raises:
        InfeasibleBudgetError: no plan meets the limits.
    """
    solver = Solver(problem, limits)
    observations = observations_of(solver, solver.solve(), known)
    with torch.inference_mode():
        prices: FloatArray = policy(torch.from_numpy(observations).float()[None])[0].double().numpy()
    return PolicyPlan(prices, solver.solve(*np.exp(prices).T))
