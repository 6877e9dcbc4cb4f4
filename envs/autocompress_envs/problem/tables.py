"""A problem as padded arrays, so that every solver step is one vectorised expression.

Menus of different lengths are padded with their last entry. A padded option is then a duplicate of a real
one: minima need no masks, and an index beyond a menu's end stands for its last entry.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from autocompress_envs.problem.arrays import FloatArray, IntArray
from autocompress_envs.problem.problem import Labeling, LayerNumbers, Problem

RESOURCES: Mapping[str, str] = {
    "size": "bytes",
    "macs": "multiply-accumulates",
    "bitops": "bit operations",
    "memory": "bytes of activations at the peak",
    "latency": "nanoseconds of a batch",
    "energy": "picojoules a sample, modelled",
}
"""Units of the resources by name, in the order in which all arrays over resources have them."""

ADDITIVE = ("size", "macs", "bitops", "latency", "energy")
"""The resources that are sums over layers; peak memory is none."""


def checked_limits(limits: Mapping[str, int]) -> dict[str, int]:
    """A checked copy of limits, in the order of `RESOURCES`.

    Args:
        limits: absolute upper bounds by resource.

    Raises:
        ValueError: no limit at all, an unknown resource, or an amount that is no positive whole number.
    """
    if not limits:
        raise ValueError(f"`limits` must hold at least one of {', '.join(RESOURCES)}, got none.")
    for name, amount in limits.items():
        if name not in RESOURCES:
            raise ValueError(f"`limits` must name resources among {', '.join(RESOURCES)}, got {name!r}.")
        if isinstance(amount, bool) or not isinstance(amount, (int, np.integer)) or amount <= 0:
            raise ValueError(f"`limits` of {name} must be a positive whole number, got {amount!r}.")
    return {name: int(limits[name]) for name in RESOURCES if name in limits}


def is_within(amounts: Mapping[str, int], limits: Mapping[str, int]) -> bool:
    """Whether amounts by resource meet every limit; a resource without a limit may be missing."""
    return all(amounts[name] <= limit for name, limit in limits.items())


class Tables:
    """Padded menus of L layers, each with at most S sparsities, B weight bits and A activation bits.

    Args:
        problem: the layers' menus and the cost model, with G groups.

    Attributes:
        problem: the problem that was given.
        counts: (L, 3) real menu lengths: sparsities, weight bits, activation bits.
        sparsities: (L, S) sparsities to choose from.
        kept: (L, S) channels left in the layer's own group, 0 where it owns none.
        weight_bits: (L, B) weight bits to choose from.
        activation_bits: (L, A) activation bits to choose from.
        ranks: (L, B) rank that goes with each of the weight bits, 0 for a layer as it is.
        group: (L,) index of the group that a layer owns, -1 for none.
        owner: (G,) index of the layer that owns a group, -1 for none.
        source: (L,) index of the layer whose sparsity selects the row of `errors`; the layer itself where
            there is one row.
        errors: (L, S, B, A) expected losses in nats, rows by the source's sparsity.
        pruning_errors: (L, S) the pruning part of `errors`: what it is above the unpruned layer, at the most
            bits.
        extra_errors: (L, S) expected losses that an owner's sparsity adds at layers that read its group
            besides another one.
        by_channel: whether the granularity is `channel`.
        own: (L, O) sparsities inside a layer. O = 1 for granularity `channel`, which shrinks widths instead.

    Raises:
        ValueError: a layer owns a group although the granularity is not `channel`.
    """

    def __init__(self, problem: Problem) -> None:
        layers, costs = problem.layers, problem.costs
        self.problem = problem
        self.counts = np.array([(len(x.sparsities), len(x.weight_bits), len(x.activation_bits)) for x in layers])
        self.sparsities = _padded([layer.sparsities for layer in layers])
        self.kept = _padded([layer.kept if layer.group is not None else np.zeros(1) for layer in layers]).astype(int)
        self.kept = _widened(self.kept, self.sparsities.shape[1])
        self.weight_bits = _padded([layer.weight_bits for layer in layers]).astype(np.int64)
        self.activation_bits = _padded([layer.activation_bits for layer in layers]).astype(np.int64)
        self.ranks = _padded([layer.weight_ranks for layer in layers]).astype(np.int64)
        self.group = np.array([-1 if layer.group is None else layer.group for layer in layers])
        self.owner = np.full(len(costs.group_width), -1)
        self.owner[self.group[self.group >= 0]] = np.flatnonzero(self.group >= 0)
        self._owned = np.flatnonzero(self.owner >= 0)
        self._owners = self.owner[self._owned]
        self._rows = np.arange(len(layers))
        self.source = np.array([i if layer.source is None else layer.source for i, layer in enumerate(layers)])
        shape = (self.sparsities.shape[1], self.weight_bits.shape[1], self.activation_bits.shape[1])
        self.errors = np.stack([_edge(layer.errors, shape) for layer in layers])
        self.pruning_errors = self.errors[:, :, -1, -1] - self.errors[:, :1, -1, -1]
        self.extra_errors = _extra_errors(layers, shape[0])
        self.by_channel = costs.granularity == "channel"
        self.own = np.zeros((len(layers), 1)) if self.by_channel else self.sparsities
        if not self.by_channel and (self.group >= 0).any():
            raise ValueError(f"A layer may own a group only with granularity channel, got {costs.granularity!r}.")

    @property
    def layer_count(self) -> int:
        """The number L of layers."""
        return len(self.group)

    def errors_by_owner(self) -> FloatArray:
        """(L, S) expected losses that a sparsity adds at all readers of the owned group, at the most bits."""
        total = self.extra_errors.copy()
        np.add.at(total, self.source, self.pruning_errors)
        return total

    def kept_channels(self, sparsity: IntArray) -> IntArray:
        """(..., G) channels left in every group, for sparsity indices (..., L)."""
        kept = np.empty((*sparsity.shape[:-1], len(self.owner)), dtype=np.int64)
        kept[...] = self.problem.costs.group_width
        kept[..., self._owned] = self.kept[self._owners, sparsity[..., self._owners]]
        return kept

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the resources that are counted, in the order of `RESOURCES`.

        `latency` is one only where it was timed, and `energy` where it is modelled.
        """
        return tuple(name for name in RESOURCES if name not in ADDITIVE or name in self.problem.costs.additive)

    def resources(self, labeling: Labeling, names: Iterable[str] | None = None) -> dict[str, int]:
        """The amounts of the named resources that a labelling takes: `Problem.resources` in array operations.

        Args:
            labeling: indices (L,) into the menus.
            names: resources to count, all by default.
        """
        return {name: int(amount) for name, amount in self.amounts(labeling, names).items()}

    def amounts(self, labelings: Labeling, names: Iterable[str] | None = None) -> dict[str, IntArray]:
        """The amounts of the named resources that many labellings take.

        Args:
            labelings: indices (..., L) into the menus.
            names: resources to count, all by default.

        Returns:
            Amounts of shape (...) by resource.
        """
        costs, rows, names = self.problem.costs, self._rows, set(self.names if names is None else names)
        kept = self.kept_channels(labelings.sparsity)
        activation_bits = self.activation_bits[rows, labelings.activation_bits]
        fan_in, out = costs.widths(kept)
        layers = costs.of_layers(
            rows,
            fan_in,
            out,
            self.weight_bits[rows, labelings.weight_bits],
            activation_bits,
            self.sparsities[rows, labelings.sparsity],
            rank := self.ranks[rows, labelings.weight_bits],
        )
        totals = {name: layers[name].sum(-1) + costs.fixed(name, kept) for name in ADDITIVE if name in names}
        if "memory" in names:
            totals["memory"] = costs.memory(kept, activation_bits, rank)
        return totals

    def option_costs(
        self, fan_in: IntArray, out: IntArray, layers: slice | IntArray = slice(None)
    ) -> dict[str, IntArray]:
        """The amounts of the additive resources that every option of some layers takes.

        Args:
            fan_in: (..., n) weight columns of these layers.
            out: (..., n) weight rows.
            layers: the n layers. Default: all.

        Returns:
            `size`, `macs`, `bitops` and, where there are any, `latency` and `energy`, each (..., n, O, B, A).
        """
        wide = (..., None, None, None)
        amounts = self.problem.costs.of_layers(
            self._rows[layers][wide],
            fan_in[wide],
            out[wide],
            self.weight_bits[layers, None, :, None],
            self.activation_bits[layers, None, None, :],
            self.own[layers, :, None, None],
            self.ranks[layers, None, :, None],
        )
        shape = (*fan_in.shape, self.own.shape[1], self.weight_bits.shape[1], self.activation_bits.shape[1])
        return {name: np.broadcast_to(amount, shape) for name, amount in amounts.items()}


def _padded(rows: Sequence[npt.NDArray[np.generic]]) -> npt.NDArray[np.float64]:
    """(n, longest) the n rows, padded with their last entries."""
    width = max(len(row) for row in rows)
    return np.stack([_edge(np.asarray(row, dtype=np.float64), (width,)) for row in rows])


def _widened(table: IntArray, width: int) -> IntArray:
    """(n, width) the table (n, m), its rows padded with their last entries."""
    return np.pad(table, ((0, 0), (0, width - table.shape[1])), mode="edge").astype(np.int64)


def _edge(table: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """The table, padded to `shape` with its last entries along every axis."""
    return np.pad(table, [(0, full - size) for full, size in zip(shape, table.shape, strict=True)], mode="edge")


def _extra_errors(layers: tuple[LayerNumbers, ...], width: int) -> FloatArray:
    """(L, width) expected losses of `extra_sources`, summed by owner."""
    totals = np.zeros((len(layers), width))
    for layer in layers:
        for owner, error in layer.extra_sources:
            totals[owner] += _edge(np.asarray(error, dtype=np.float64), (width,))
    return totals
