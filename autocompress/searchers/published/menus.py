"""The part of a task's menus that a published agent may use, and the plan that its choices stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from autocompress.errors import InputError
from autocompress.searchers.base import Recorder, Task
from autocompress_envs.problem import FloatArray, IntArray, Labeling, LayerNumbers, Outcome, Problem
from autocompress_envs.problem.tables import RESOURCES, is_within
from autocompress_envs.rewards import RewardContext

ALL: slice = slice(None)
HIGHEST: slice = slice(-1, None)


@dataclass(frozen=True)
class Offer:
    """A problem with shorter menus: `problem`, and per layer where its entries stand in the full menus.

    Attributes:
        problem: the menus that the agent sees.
        sparsity: (L) arrays: the full menu's index of every sparsity. weight_bits, activation_bits: the same.
    """

    problem: Problem
    sparsity: tuple[IntArray, ...]
    weight_bits: tuple[IntArray, ...]
    activation_bits: tuple[IntArray, ...]

    def full(self, labeling: Labeling) -> Labeling:
        """The same labels as indices into the full menus."""
        return Labeling(
            _picked(self.sparsity, labeling.sparsity),
            _picked(self.weight_bits, labeling.weight_bits),
            _picked(self.activation_bits, labeling.activation_bits),
        )

    def harshest(self) -> Labeling:
        """The most sparsity and the fewest bits everywhere."""
        none = np.zeros(len(self.problem.layers), dtype=np.int64)
        most = np.array([len(indices) - 1 for indices in self.sparsity], dtype=np.int64)
        return Labeling(most, none, none.copy())


def offer(problem: Problem, least_preserved: float, weight_bits: slice = ALL, activation_bits: slice = ALL) -> Offer:
    """Shorter menus.

    Args:
        problem: the full menus.
        least_preserved: the smallest preserve ratio left, in (0, 1]; 1 leaves sparsity 0 alone.
        weight_bits: which entries of every layer's weight bits are left. activation_bits: the same.
    """
    layers = problem.layers
    kept = [np.flatnonzero(preserve_ratios(problem, index) >= least_preserved - 1e-9) for index in range(len(layers))]
    weights = tuple(np.arange(len(layer.weight_bits))[weight_bits] for layer in layers)
    activations = tuple(np.arange(len(layer.activation_bits))[activation_bits] for layer in layers)
    shorter = tuple(_shorter(layers, kept, index, weights[index], activations[index]) for index in range(len(layers)))
    return Offer(replace(problem, layers=shorter), tuple(kept), weights, activations)


def preserve_ratios(problem: Problem, index: int) -> FloatArray:
    """(S,) share of the channels (or of the weights, inside a layer) that every sparsity on a layer's menu leaves."""
    layer = problem.layers[index]
    if layer.group is None:
        return 1.0 - np.asarray(layer.sparsities, dtype=np.float64)
    ratios: FloatArray = layer.kept / problem.costs.group_width[layer.group]
    return ratios


def require_reachable(task: Task, offered: Offer, method: str, why: str) -> None:
    """Raises InputError where even the harshest labels that a method may use exceed a limit."""
    least = offered.problem.resources(offered.harshest())
    if is_within(least, task.limits):
        return
    name = next(name for name, limit in task.limits.items() if least[name] > limit)
    raise InputError(
        f"`{name}` budget must be at least {least[name]:,} {RESOURCES[name]} for the method {method} ({why}), "
        f"got {task.limits[name]:,}; raise it or choose another method."
    )


def require_choice(menus: Sequence[IntArray] | Sequence[FloatArray], method: str, what: str) -> None:
    """Raises InputError where no layer's menu has more than one entry."""
    if all(len(menu) < 2 for menu in menus):
        entries = ", ".join(f"{entry:g}" for entry in sorted({float(entry) for menu in menus for entry in menu}))
        raise InputError(
            f"`method` {method} needs several {what} on the menu of a layer, got one for each ({entries}); "
            "offer more or choose another method."
        )


def require_original_accuracy(task: Task, method: str) -> None:
    """Raises InputError where the original network's accuracy is unknown, or 0."""
    if not 0.0 < task.original_accuracy <= 1.0:
        raise InputError(
            f"`method` {method} needs the original network's accuracy in (0, 1], got {task.original_accuracy}; "
            "use data with the labels that it was trained for, or choose another method."
        )


def measured(recorder: Recorder, offered: Offer, labeling: Labeling, method: str) -> Outcome:
    """What the recorder says of labels on the offered menus.

    Raises:
        InputError: it holds no accuracy, for want of labels.
        StopSearch: the search is over.
    """
    outcome = recorder(offered.full(labeling))
    if not 0.0 <= outcome.accuracy <= 1.0:
        raise InputError(
            f"`method` {method} needs labelled data for its reward, got accuracy {outcome.accuracy}; "
            "choose another method."
        )
    return outcome


def reward_context(task: Task) -> RewardContext:
    """What published rewards compare an outcome with."""
    return RewardContext(task.original_accuracy, task.problem.original(), task.limits)


def _picked(menus: tuple[IntArray, ...], chosen: IntArray) -> IntArray:
    return np.array([menu[index] for menu, index in zip(menus, chosen, strict=True)], dtype=np.int64)


def _shorter(
    layers: tuple[LayerNumbers, ...], kept: list[IntArray], index: int, weights: IntArray, activations: IntArray
) -> LayerNumbers:
    layer, own = layers[index], kept[index]
    rows = np.arange(1) if layer.source is None else kept[layer.source]
    return replace(
        layer,
        sparsities=layer.sparsities[own],
        kept=layer.kept if layer.group is None else layer.kept[own],
        weight_bits=layer.weight_bits[weights],
        activation_bits=layer.activation_bits[activations],
        errors=layer.errors[np.ix_(rows, weights, activations)],
        extra_sources=tuple((owner, error[kept[owner]]) for owner, error in layer.extra_sources),
    )
