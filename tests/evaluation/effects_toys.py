"""Networks with menus whose first-order effects are tested, their derivatives in float64, and how effects agree."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from evaluation_toys import NETWORKS, masked, menus_of, network, original_labels, outputs
from torch import Tensor, nn

from autocompress.evaluation import Evaluator
from autocompress.evaluation.effects import Effects, effects_around, first_order_effects
from autocompress.evaluation.predictions import Predictions
from autocompress.evaluation.renormalize import Affine
from autocompress.menus import Menus
from autocompress.network import fold_batch_norms
from autocompress_envs import Labeling


class Twice(nn.Module):
    """Input 6: one layer that runs twice; more classes than are kept apart."""

    def __init__(self) -> None:
        super().__init__()
        self.same, self.head = nn.Linear(6, 6), nn.Linear(6, 12)

    def forward(self, x: Tensor) -> Tensor:
        return 3 * self.head(torch.relu(self.same(torch.relu(self.same(x)))))


class Windows(nn.Module):
    """Input 3x4: a layer that sees every sample as three, as in window attention."""

    def __init__(self) -> None:
        super().__init__()
        self.window, self.head = nn.Linear(4, 6), nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.window(x.reshape(-1, 4))).reshape(-1, 18))


class SequenceFirst(Windows):
    """Input 3x4: a layer that has the samples along its second axis, as recurrent code does."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.window(x.transpose(0, 1))).transpose(0, 1).flatten(1))


OTHERS = {"twice": (Twice, (6,)), "windows": (Windows, (3, 4)), "sequence first": (SequenceFirst, (3, 4))}


@dataclass(frozen=True, eq=False)
class Case:
    model: nn.Module
    folded: nn.Module
    menus: Menus
    x: Tensor
    pooled: Callable[[int, Tensor], Tensor]

    def effects(self) -> Effects:
        return first_order_effects(self.folded, self.menus, self.x, self.pooled)

    def around(self, plan: Labeling, affine: dict[str, Affine] | None = None) -> Effects:
        return effects_around(self.folded, self.menus, plan, self.x, self.pooled, self.far, affine=affine)

    @cached_property
    def far(self) -> Effects:
        """Around the original."""
        return self.effects()

    def derivative(self, direction: dict[str, Tensor], around: Labeling | dict[str, Tensor] | None = None) -> Tensor:
        """(N, K) of all log-probabilities along a change of the original's parameters, or of a plan's, or of those that
        are given; float64."""
        model = copy.deepcopy(self.folded).double()
        whole = around if isinstance(around, dict) else self.parameters(around)

        def run(parameters: dict[str, Tensor]) -> Tensor:
            return self.pooled(0, torch.func.functional_call(model, parameters, (self.x.double(),)))

        return torch.func.jvp(run, (whole,), ({name: direction[name] for name in whole},))[1]

    def parameters(self, labeling: Labeling | None = None) -> dict[str, Tensor]:
        """Float64, in the original's shapes: of the plan, or folded and as they are."""
        model = self.folded if labeling is None else masked(self.model, self.menus, labeling)
        return {name: parameter.detach().double() for name, parameter in model.named_parameters()}


@cache
def case(name: str, granularity: str = "channel", bits: tuple[int, ...] = (2, 8), inputs: int = 4) -> Case:
    if name in OTHERS:
        torch.manual_seed(1)
        build, shape = OTHERS[name]
        model, x = build().eval(), torch.randn(24, *shape)
    else:
        assert name in NETWORKS
        model, x = network(name)
    options = {"weight_bits": bits, "activation_bits": (inputs, 32), "sparsity_levels": 4}
    menus = menus_of(model, x, granularity=granularity, **options)
    folded = fold_batch_norms(model, menus.network).requires_grad_(False)
    return Case(model, folded, menus, x, Predictions(outputs(model, x)).pooled)


def evaluator(given: Case, **options: Any) -> Evaluator:
    return Evaluator(given.model, given.menus.network, given.menus, given.x, None, **options)


def less(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: one[name] - other[name] for name in one}


def at(menus: Menus, **changes: tuple[int, int]) -> Labeling:
    """The original's labels but for (row, position) of some fields."""
    return changed(original_labels(menus.problem()), **changes)


def changed(plan: Labeling, **changes: tuple[int, int]) -> Labeling:
    """A plan but for (row, position) of some fields."""
    labeling = copy.deepcopy(plan)
    for field, (row, position) in changes.items():
        getattr(labeling, field)[row] = position
    return labeling


def agree(found: np.ndarray, expected: np.ndarray) -> None:
    """Every label by itself, (…, N, K): small effects count as much as large ones."""
    missed, size = (np.linalg.norm(each, axis=(-2, -1)) for each in (found - expected, expected))
    assert (missed <= 5e-4 * size + 1e-5).all(), (missed.max(), size.max())
