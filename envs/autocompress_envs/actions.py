"""Action schemes, by name: how the actions of an episode become a labelling.

`price` weighs the expected losses of every layer and leaves the labels to the solver. `label` and `discrete`
choose every layer's label directly. One instance serves one problem and budget; `start` begins an episode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces

from autocompress_envs.problem import BoolArray, FloatArray, IntArray, Labeling
from autocompress_envs.problem.tables import Tables
from autocompress_envs.solver import Solver


class Actions(Protocol):
    """Interface of an action scheme, as the environment uses it."""

    @staticmethod
    def space(tables: Tables) -> spaces.Space[Any]:
        """The space of all actions that the scheme takes, for the menus of a problem."""

    def start(self) -> None:
        """Begin an episode: no layer has an action."""

    def apply(self, index: int, action: Any) -> Any:
        """Take the action of layer `index`.

        Returns:
            The action that was executed, an element of the action space. It differs from the given one where
            that was out of bounds or against the limits.

        Raises:
            ValueError: the action is malformed or not legal.
        """

    def coordinates(self) -> FloatArray:
        """(3,) the last executed action as the observation shows it, in [-1, 1]; zeros before the first."""

    def so_far(self) -> Labeling:
        """Labels, of which those before the current layer are decided (or expected, with `price`)."""

    def finish(self) -> Labeling:
        """The labelling of the episode, after the last layer; it meets every limit."""

    def mask(self, index: int) -> BoolArray:
        """(n,) which of the n discrete actions are legal at layer `index`.

        Raises:
            ValueError: the actions of this scheme are not discrete.
        """


class PriceActions:
    """The scheme `price`: two log-prices per layer, from which one solver run labels all layers in the end.

    The actions are Box(-1, 1, (2,)). With action a at layer l, the solver weighs

    | index | price       | weighs the                                           |
    | ----- | ----------- | ---------------------------------------------------- |
    | 0     | exp(c a[0]) | expected pruning loss of the group that layer l owns |
    | 1     | exp(c a[1]) | expected quantization loss of layer l                |

    where c is `price_scale`. Prices of 1 (action 0 everywhere) give exactly the solver's own plan. A layer
    with a higher price tends to get more bits, or to keep more channels, at the expense of the others.

    Args:
        solver: solver of the problem under its budget.
        reference: the solver's labelling at action 0, which stands for the labels until the end of the
            episode.
        price_scale: natural logarithm of the price at action 1, above 0.
    """

    def __init__(self, solver: Solver, reference: Labeling, price_scale: float) -> None:
        self._solver, self._reference, self._scale = solver, reference, price_scale
        self.start()

    @staticmethod
    def space(tables: Tables) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (2,), np.float32)

    def start(self) -> None:
        self._exponents = np.zeros((self._solver.tables.layer_count, 2))
        self._last = np.zeros(3)

    def apply(self, index: int, action: Any) -> Any:
        executed = checked_box_action(action, 2)
        self._exponents[index] = executed
        self._last = np.array([*executed, 0.0])
        return executed

    def coordinates(self) -> FloatArray:
        return self._last

    def so_far(self) -> Labeling:
        return self._reference

    def finish(self) -> Labeling:
        sparsity_weights, bits_weights = np.exp(self._scale * self._exponents).T
        return self._solver.solve(sparsity_weights, bits_weights)

    def mask(self, index: int) -> BoolArray:
        raise ValueError("`action` must be discrete for action masks, got price.")


class _SequentialLabels:
    """Labels chosen one layer at a time, always such that the rest can still meet every limit.

    A completion within the limits is remembered throughout. Its label is always allowed, so no episode gets
    stuck.

    Args:
        solver: solver of the problem under its budget; its tables and its `reach` are used.
    """

    def __init__(self, solver: Solver) -> None:
        self._tables, self._reach = solver.tables, solver.reach
        self.start()

    def start(self, plan: Labeling | None = None) -> None:
        """Begin an episode.

        Args:
            plan: labelling within the limits whose labels stay legal as long as they are followed. Default: None, for
                the cheapest.
        """
        count = self._tables.layer_count
        self._chosen: IntArray = np.zeros((3, count), dtype=np.int64)
        self._witness = plan or self._reach.cheapest  # a completion of what is chosen, within the limits
        self._allowed: tuple[int, BoolArray] | None = None
        self._last: tuple[int, tuple[int, int, int]] | None = None  # layer and label that were chosen last

    def allowed(self, index: int) -> BoolArray:
        """(S, B, A) which labels of layer `index` leave every limit within reach."""
        if self._allowed is None or self._allowed[0] != index:
            allowed = self._reachable(index)
            allowed[label_at(self._witness, index)] = True
            self._allowed = index, allowed
        return self._allowed[1]

    def choose(self, index: int, label: tuple[int, int, int]) -> None:
        """Give layer `index` an allowed label: indices of sparsity, weight bits and activation bits."""
        self._chosen[:, index] = label
        if label != label_at(self._witness, index):
            self._witness = self._completion(index, label)
        self._last = index, label

    def coordinates(self) -> FloatArray:
        if self._last is None:
            return np.zeros(3)
        index, label = self._last
        return menu_coordinates(self._tables, index)[np.arange(3), label]

    def so_far(self) -> Labeling:
        return Labeling(*self._chosen)

    def finish(self) -> Labeling:
        return Labeling(*self._chosen.copy())

    def _reachable(self, index: int) -> BoolArray:
        """(S, B, A) which labels of layer `index` can be completed."""
        return self._reach.allowed(self.so_far(), index)

    def _completion(self, index: int, label: tuple[int, int, int]) -> Labeling:
        """A plan within the limits of the labels so far, the allowed `label` of layer `index` among them."""
        completion = self._reach.complete(self.so_far(), index + 1)
        assert completion is not None, f"the allowed label {label} has no completion"
        return completion


class LabelActions(_SequentialLabels):
    """The scheme `label`: a continuous action per layer, of which the nearest legal label is taken.

    The actions are Box(-1, 1, (3,)), each linear from the lowest to the highest entry of the layer's menu:

    | index | -1                       | 1                         |
    | ----- | ------------------------ | ------------------------- |
    | 0     | sparsity 0               | highest sparsity          |
    | 1     | fewest weight bits       | most weight bits          |
    | 2     | fewest activation bits   | most activation bits      |

    The nearest label, by the sum of the three distances, among those that leave every limit within reach is
    taken. The executed action differs from the given one only in the coordinates that the limits moved.

    Args:
        solver: solver of the problem under its budget.
    """

    @staticmethod
    def space(tables: Tables) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (3,), np.float32)

    def apply(self, index: int, action: Any) -> Any:
        wanted = checked_box_action(action, 3)
        counts = self._tables.counts[index]
        menu = menu_coordinates(self._tables, index)
        distances = np.abs(menu - wanted[:, None])  # (3, longest menu)
        axes = [distances[axis, :count] for axis, count in enumerate(counts)]
        total = axes[0][:, None, None] + axes[1][:, None] + axes[2]  # (S, B, A)
        total = np.where(self.allowed(index), total, np.inf)
        first, second, third = np.unravel_index(int(total.argmin()), total.shape)
        label = int(first), int(second), int(third)
        unlimited = tuple(int(axis.argmin()) for axis in axes)
        self.choose(index, label)
        return np.where(np.array(label) == unlimited, wanted, self.coordinates()).astype(np.float32)

    def mask(self, index: int) -> BoolArray:
        raise ValueError("`action` must be discrete for action masks, got label.")


class DiscreteActions(_SequentialLabels):
    """The scheme `discrete`: the index of a label.

    The actions are Discrete(n), with n the most labels of any layer. Action (s * B + b) * A + a stands for
    sparsity s, weight bits b and activation bits a of a layer with B weight bits and A activation bits on its
    menu.

    Args:
        solver: solver of the problem under its budget.
    """

    @staticmethod
    def space(tables: Tables) -> spaces.Discrete:
        return spaces.Discrete(int(tables.counts.prod(axis=1).max()))

    def apply(self, index: int, action: Any) -> Any:
        allowed, chosen = self.allowed(index), int(action)
        if not 0 <= chosen < allowed.size:
            raise ValueError(f"`action` must be in the layer's menu of {allowed.size} labels, got {chosen}.")
        first, second, third = np.unravel_index(chosen, allowed.shape)
        label = int(first), int(second), int(third)
        if not allowed[label]:
            raise ValueError(
                f"`action` must leave every budget within reach, got {chosen} at layer {index}; see `action_masks`."
            )
        self.choose(index, label)
        return chosen

    def mask(self, index: int) -> BoolArray:
        mask = np.zeros(int(self.space(self._tables).n), dtype=bool)
        allowed = self.allowed(index).ravel()
        mask[: allowed.size] = allowed
        return mask


ACTIONS: Mapping[str, Callable[[Solver, Labeling, float], Actions]] = {
    "price": PriceActions,
    "label": lambda solver, reference, price_scale: LabelActions(solver),
    "discrete": lambda solver, reference, price_scale: DiscreteActions(solver),
}
"""Factories of action schemes by name, from the solver, its labelling at price 1 and the price scale."""


def checked_box_action(action: Any, size: int) -> FloatArray:
    """(size,) float32 copy of a continuous action, clipped to [-1, 1].

    Args:
        action: numbers, as an array or a sequence.
        size: number of numbers that there must be.

    Raises:
        ValueError: the shape is wrong or a number is NaN.
    """
    array = np.asarray(action, dtype=np.float32)
    if array.shape != (size,) or np.isnan(array).any():
        raise ValueError(f"`action` must hold {size} numbers in [-1, 1], got {np.asarray(action).tolist()}.")
    clipped: FloatArray = np.clip(array, -1.0, 1.0)
    return clipped


def menu_coordinates(tables: Tables, index: int) -> FloatArray:
    """The menu entries of a layer on the scale of the actions.

    Args:
        tables: padded menus of the problem.
        index: the layer.

    Returns:
        (3, longest menu) sparsities, weight bits and activation bits, each linear from -1 at the lowest entry
        to 1 at the highest. The entry of a menu of one lies at 0, and so does what is beyond the end of a
        shorter row.
    """
    menus = (tables.sparsities[index], tables.weight_bits[index], tables.activation_bits[index])
    coordinates = np.zeros((3, max(len(menu) for menu in menus)))
    for row, menu in zip(coordinates, menus, strict=True):
        low, high = float(menu[0]), float(menu[-1])
        if high > low:
            row[: len(menu)] = 2.0 * (menu - low) / (high - low) - 1.0
    return coordinates


def label_at(labeling: Labeling, index: int) -> tuple[int, int, int]:
    """The label of layer `index`: indices of sparsity, weight bits and activation bits."""
    return (
        int(labeling.sparsity[index]),
        int(labeling.weight_bits[index]),
        int(labeling.activation_bits[index]),
    )
