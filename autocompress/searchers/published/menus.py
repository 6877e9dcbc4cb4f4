"""The part of a task's menus that a published agent may use, and the plans that its choices stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from autocompress.errors import InputError
from autocompress.searchers.base import Recorder, Task
from autocompress_envs.problem import FloatArray, IntArray, Labeling, LayerNumbers, Outcome, Problem
from autocompress_envs.problem.tables import RESOURCES, is_within
from autocompress_envs.rewards import RewardContext

ALL: slice = slice(None)  # all entries of a menu of bits
HIGHEST: slice = slice(-1, None)  # the most bits alone


@dataclass(frozen=True)
class Offer:
    """A problem with shorter menus, and where their entries stand in the full menus.

    Attributes:
        problem: the problem with the menus that the agent may use.
        sparsity: L arrays, one a layer: for every sparsity on the short menu, its index on the full one.
        weight_bits: L arrays, one a layer: the same for weight bits.
        activation_bits: L arrays, one a layer: the same for activation bits.
    """

    problem: Problem
    sparsity: tuple[IntArray, ...]
    weight_bits: tuple[IntArray, ...]
    activation_bits: tuple[IntArray, ...]

    def full(self, labeling: Labeling) -> Labeling:
        """The labelling with full menus' indices, from one with short menus' indices."""
        return Labeling(
            _picked(self.sparsity, labeling.sparsity),
            _picked(self.weight_bits, labeling.weight_bits),
            _picked(self.activation_bits, labeling.activation_bits),
        )

    def harshest(self) -> Labeling:
        """The labelling of the most sparsity and the fewest bits everywhere, with short menus' indices."""
        none = np.zeros(len(self.problem.layers), dtype=np.int64)
        most = np.array([len(indices) - 1 for indices in self.sparsity], dtype=np.int64)
        return Labeling(most, none, none.copy())


def offer(problem: Problem, least_preserved: float, weight_bits: slice = ALL, activation_bits: slice = ALL) -> Offer:
    """A problem with shorter menus. Low ranks are left out: none of the published methods knows of them.

    Args:
        problem: the problem with full menus.
        least_preserved: smallest preserve ratio (`preserve_ratios`) on the short menus, in [0, 1]; 1 leaves
            sparsity 0 alone.
        weight_bits: slice of the entries of every layer's weight bits that stay. Default: `ALL`.
        activation_bits: slice of the entries of every layer's activation bits that stay. Default: `ALL`.
    """
    layers = problem.layers
    kept = [np.flatnonzero(preserve_ratios(problem, index) >= least_preserved - 1e-9) for index in range(len(layers))]
    weights = tuple(np.flatnonzero(layer.weight_ranks == 0)[weight_bits] for layer in layers)
    activations = tuple(np.arange(len(layer.activation_bits))[activation_bits] for layer in layers)
    shorter = tuple(_shorter(layers, kept, index, weights[index], activations[index]) for index in range(len(layers)))
    return Offer(replace(problem, layers=shorter), tuple(kept), weights, activations)


def preserve_ratios(problem: Problem, index: int) -> FloatArray:
    """(S,) shares of channels that a layer's sparsities leave; of weights where the layer has no group.

    Args:
        problem: menus and costs of the network.
        index: index of the layer.
    """
    layer = problem.layers[index]
    if layer.group is None:
        return 1.0 - np.asarray(layer.sparsities, dtype=np.float64)
    ratios: FloatArray = layer.kept / problem.costs.group_width[layer.group]
    return ratios


def require_reachable(task: Task, offered: Offer, method: str, why: str) -> None:
    """Check that a method can meet the limits.

    Args:
        task: the problem and its limits.
        offered: the menus that the method may use.
        method: name of the method, for the error.
        why: reason why its menus are shorter, for the error.

    Raises:
        InputError: even the harshest labels on the offered menus exceed a limit.
    """
    least = offered.problem.resources(offered.harshest())
    if is_within(least, task.limits):
        return
    name = next(name for name, limit in task.limits.items() if least[name] > limit)
    raise InputError(
        f"`{name}` budget must be at least {least[name]:,} {RESOURCES[name]} for the method {method} ({why}), "
        f"got {task.limits[name]:,}; raise it or choose another method."
    )


def require_choice(menus: Sequence[IntArray] | Sequence[FloatArray], method: str, what: str) -> None:
    """Check that there is something to choose.

    Args:
        menus: entries of every layer's menu.
        method: name of the method, for the error.
        what: plural noun for the entries, such as `weight bit-widths`, for the error.

    Raises:
        InputError: no layer's menu has more than one entry.
    """
    if all(len(menu) < 2 for menu in menus):
        entries = ", ".join(f"{entry:g}" for entry in sorted({float(entry) for menu in menus for entry in menu}))
        raise InputError(
            f"`method` {method} needs several {what} on the menu of a layer, got one for each ({entries}); "
            "offer more or choose another method."
        )


def require_original_accuracy(task: Task, method: str) -> None:
    """Check that a reward can compare with the original network.

    Args:
        task: the task, with `original_accuracy`.
        method: name of the method, for the error.

    Raises:
        InputError: the original network's accuracy is unknown, or 0.
    """
    if not 0.0 < task.original_accuracy <= 1.0:
        raise InputError(
            f"`method` {method} needs the original network's accuracy in (0, 1], got {task.original_accuracy}; "
            "use data with the labels that it was trained for, or choose another method."
        )


def measured(recorder: Recorder, offered: Offer, labeling: Labeling, method: str) -> Outcome:
    """The outcome of labels on the offered menus.

    Args:
        recorder: evaluates the plan.
        offered: the menus from which the labels were chosen.
        labeling: the labels, with short menus' indices.
        method: name of the method, for the error.

    Raises:
        InputError: the outcome holds no accuracy, since the data have no labels.
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
    """Numbers with which published rewards compare an outcome: original accuracy and costs, and limits."""
    return RewardContext(task.original_accuracy, task.problem.original(), task.limits)


def _picked(menus: tuple[IntArray, ...], chosen: IntArray) -> IntArray:
    """(L,) the chosen entry of every layer's array, given the index (L,) of each."""
    return np.array([menu[index] for menu, index in zip(menus, chosen, strict=True)], dtype=np.int64)


def _shorter(
    layers: tuple[LayerNumbers, ...], kept: list[IntArray], index: int, weights: IntArray, activations: IntArray
) -> LayerNumbers:
    """A layer with shorter menus.

    Args:
        layers: all layers of the problem.
        kept: indices of the sparsities that stay, by layer.
        index: index of the layer.
        weights: indices of its weight bits that stay.
        activations: indices of its activation bits that stay.
    """
    layer, own = layers[index], kept[index]
    rows = np.arange(1) if layer.source is None else kept[layer.source]
    return replace(
        layer,
        sparsities=layer.sparsities[own],
        kept=layer.kept if layer.group is None else layer.kept[own],
        weight_bits=layer.weight_bits[weights],
        ranks=layer.weight_ranks[weights],
        activation_bits=layer.activation_bits[activations],
        errors=layer.errors[np.ix_(rows, weights, activations)],
        extra_sources=tuple((owner, error[kept[owner]]) for owner, error in layer.extra_sources),
    )
