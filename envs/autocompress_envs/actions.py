"""How actions become labels, by name. One instance serves one budget; `start` begins an episode."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces

from autocompress_envs.problem import BoolArray, FloatArray, IntArray, Labeling
from autocompress_envs.problem.tables import Tables
from autocompress_envs.solver import Solver


class Actions(Protocol):
    """What the environment asks of an action scheme."""

    @staticmethod
    def space(tables: Tables) -> spaces.Space[Any]:
        """All actions that the scheme takes."""

    def start(self) -> None:
        """Begin an episode."""

    def apply(self, index: int, action: Any) -> Any:
        """Take the action for layer `index`; returns what was executed, an element of the action space."""

    def coordinates(self) -> FloatArray:
        """(3,) the last executed action in [-1, 1], for the observation; zeros before the first."""

    def so_far(self) -> Labeling:
        """Labels of which those before the current layer are decided (or expected, where none is decided yet)."""

    def finish(self) -> Labeling:
        """All labels, after the last layer."""

    def mask(self, index: int) -> BoolArray:
        """(n,) which of n discrete actions are legal at layer `index`."""


class PriceActions:
    """`price`: how much a layer's errors weigh; after the last layer one solver run labels all layers.

    Box(-1, 1, (2,)): the weight exp(price_scale * a[0]) of the pruning error of the group that the layer owns, and the
    weight exp(price_scale * a[1]) of its quantization error. 0 everywhere is exactly the Lagrangian solution.
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


class _Walk:
    """Labels chosen one layer at a time, always such that the rest can still meet every limit."""

    def __init__(self, solver: Solver) -> None:
        self._tables, self._reach = solver.tables, solver.reach
        self.start()

    def start(self) -> None:
        count = self._tables.layer_count
        self._chosen: IntArray = np.zeros((3, count), dtype=np.int64)
        self._witness = self._reach.cheapest  # a completion of what is chosen, within the limits
        self._allowed: tuple[int, BoolArray] | None = None
        self._last = np.zeros(3)

    def allowed(self, index: int) -> BoolArray:
        """(S, B, A) labels of layer `index` that leave the limits within reach."""
        if self._allowed is None or self._allowed[0] != index:
            allowed = self._reach.allowed(self.so_far(), index)
            allowed[label_at(self._witness, index)] = True
            self._allowed = index, allowed
        return self._allowed[1]

    def choose(self, index: int, label: tuple[int, int, int]) -> None:
        self._chosen[:, index] = label
        completion = self._reach.complete(self.so_far(), index + 1)
        if completion is None:
            assert label == label_at(self._witness, index), "an allowed label has no completion"
        else:
            self._witness = completion
        self._last = menu_coordinates(self._tables, index)[np.arange(3), label]

    def coordinates(self) -> FloatArray:
        return self._last

    def so_far(self) -> Labeling:
        return Labeling(*self._chosen)

    def finish(self) -> Labeling:
        return Labeling(*self._chosen.copy())


class LabelActions(_Walk):
    """`label`: Box(-1, 1, (3,)) sparsity, weight bits and activation bits, each linear over the layer's menu.

    The nearest label (sum of distances) among those that leave every limit within reach is taken. The executed
    action differs from the given one only where the limits moved it.
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
        total = axes[0][:, None, None] + axes[1][:, None] + axes[2]
        total = np.where(self.allowed(index), total, np.inf)
        first, second, third = np.unravel_index(int(total.argmin()), total.shape)
        label = int(first), int(second), int(third)
        unlimited = tuple(int(axis.argmin()) for axis in axes)
        self.choose(index, label)
        return np.where(np.array(label) == unlimited, wanted, self._last).astype(np.float32)

    def mask(self, index: int) -> BoolArray:
        raise ValueError("`action` must be discrete for action masks, got label.")


class DiscreteActions(_Walk):
    """`discrete`: Discrete(n), an index into the product of the layer's menus (sparsity slowest)."""

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
"""By name: made from the solver, its solution, and the price scale, both of which only `price` needs."""


def checked_box_action(action: Any, size: int) -> FloatArray:
    """The action as (size,) float32 within [-1, 1]; beyond it is clipped.

    Raises:
        ValueError: the shape is wrong or a number is NaN.
    """
    array = np.asarray(action, dtype=np.float32)
    if array.shape != (size,) or np.isnan(array).any():
        raise ValueError(f"`action` must hold {size} numbers in [-1, 1], got {np.asarray(action).tolist()}.")
    clipped: FloatArray = np.clip(array, -1.0, 1.0)
    return clipped


def menu_coordinates(tables: Tables, index: int) -> FloatArray:
    """(3, longest menu) every menu entry of a layer on [-1, 1]: sparsity from 0, bits from the lowest.

    Menus of one entry lie at 0.
    """
    menus = (tables.sparsities[index], tables.weight_bits[index], tables.activation_bits[index])
    coordinates = np.zeros((3, max(len(menu) for menu in menus)))
    for row, menu in zip(coordinates, menus, strict=True):
        low, high = float(menu[0]), float(menu[-1])
        if high > low:
            row[: len(menu)] = 2.0 * (menu - low) / (high - low) - 1.0
    return coordinates


def label_at(labeling: Labeling, index: int) -> tuple[int, int, int]:
    """The indices of one layer's label."""
    return (
        int(labeling.sparsity[index]),
        int(labeling.weight_bits[index]),
        int(labeling.activation_bits[index]),
    )
