"""The relaxed problem: for one price, the labels that minimise weighted error + price x cost.

Layers whose error and cost depend on at most one sparsity (within residual blocks, or bits only) fall apart into
independent choices, solved exactly by table look-ups. Layers that couple several sparsities (chains, concatenations)
are solved by coordinate descent over these sparsities; such that share no layer move at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from autocompress_envs.problem import BIAS_BYTES, RANGE_BYTES, SCALE_BYTES, FloatArray, IntArray, Labeling
from autocompress_envs.problem.tables import ADDITIVE, Tables

SWEEPS = 4
PEAK_POWER = 8  # the peak is smoothed to this norm over moments, whose gradient says which tensors matter


@dataclass(frozen=True)
class Errors:
    """Weighted errors: `table` (B*A, L, S) by the source's sparsity, `owner` (L, S) by the owner's own."""

    table: FloatArray
    owner: FloatArray

    def total(self, tables: Tables, choice: Choice) -> float:
        rows = np.arange(tables.layer_count)
        layers = self.table[choice.bits, rows, choice.sparsity[tables.source]]
        return float(layers.sum() + self.owner[rows, choice.sparsity].sum())


@dataclass(frozen=True)
class Choice:
    """Indices of every layer: sparsity (L,), and flat (weight bits, activation bits) (L,)."""

    sparsity: IntArray
    bits: IntArray


@dataclass(frozen=True)
class Prices:
    """Error per unit of every cost: `additive` by resource, and `memory` per byte of the peak."""

    additive: Mapping[str, float]
    memory: float


@dataclass(frozen=True)
class Pairs:
    """n (layer, decider) pairs: coupled layers and the sparsities that they depend on."""

    layer: IntArray
    decider: IntArray
    fan_in_coef: IntArray  # (n,) columns per kept channel of the decider's group
    out_coef: IntArray  # (n,)

    def of(self, deciders: IntArray) -> Pairs:
        rows = np.isin(self.decider, deciders)
        return Pairs(self.layer[rows], self.decider[rows], self.fan_in_coef[rows], self.out_coef[rows])


def labeling_of(tables: Tables, choice: Choice) -> Labeling:
    """The same labels with weight and activation bits apart."""
    bits, activations = np.divmod(choice.bits, tables.activation_bits.shape[1])
    return Labeling(choice.sparsity, bits, activations)


def choice_of(tables: Tables, labeling: Labeling) -> Choice:
    """The inverse of `labeling_of`."""
    return Choice(labeling.sparsity, labeling.weight_bits * tables.activation_bits.shape[1] + labeling.activation_bits)


def weighted_errors(tables: Tables, sparsity_weights: FloatArray, bits_weights: FloatArray) -> Errors:
    """Scale every pruning error by the weight of its owner and every quantization error by its layer's weight.

    The pruning part of errors T[s, b, a] is T[s, -1, -1] - T[0, -1, -1]; the rest is the quantization part.
    """
    errors = tables.errors
    pruning = tables.pruning_errors
    quantization = errors - pruning[..., None, None]
    weighted = sparsity_weights[tables.source, None, None, None] * pruning[..., None, None]
    table = np.maximum(weighted + bits_weights[:, None, None, None] * quantization, 0.0)
    table = np.ascontiguousarray(table.reshape(*table.shape[:2], -1).transpose(2, 0, 1))
    return Errors(table, sparsity_weights[:, None] * tables.extra_errors)


class Lagrangian:
    """Everything of the relaxed problem that depends on neither weights nor prices."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.pairs, self.deciders_of = _dependencies(tables)
        count = np.array([len(deciders) for deciders in self.deciders_of])
        self.coupled = np.flatnonzero(count > 1)
        self._single = np.flatnonzero(count <= 1)
        self._anchor = np.array([min(d, default=layer) for layer, d in enumerate(self.deciders_of)])
        self._incidence = np.zeros((tables.layer_count, tables.layer_count))
        self._incidence[self._anchor[self._single], self._single] = 1.0
        in_coupled = np.isin(self.pairs.layer, self.coupled)
        self._coupled_deciders = np.unique(self.pairs.decider[in_coupled])
        coupled_pairs = Pairs(*(getattr(self.pairs, name)[in_coupled] for name in Pairs.__dataclass_fields__))
        self._moves = [(c, coupled_pairs.of(c)) for c in _colours(self._coupled_deciders, self.deciders_of)]
        self._costs = self._single_costs()
        self.group_bytes = self._fixed_bytes()
        bits = tables.weight_bits[:, :, None] + 0 * tables.activation_bits[:, None, :]
        activations = tables.activation_bits[:, None, :] + 0 * tables.weight_bits[:, :, None]
        self.bits = bits.reshape(tables.layer_count, -1).T  # (B*A, L)
        self.activations = activations.reshape(tables.layer_count, -1).T
        self._positions = tables.problem.costs.positions.astype(np.float64)

    def single_cost(self, prices: Prices) -> tuple[FloatArray, FloatArray]:
        """Priced costs: (B*A, L, S) of layers with one decider by its sparsity; (L, S) of owners."""
        total = np.zeros(next(iter(self._costs.values())).shape)
        for name, price in prices.additive.items():
            total += price * self._costs[name]
        return total, prices.additive.get("size", 0.0) * self.group_bytes

    def minimise(self, errors: Errors, prices: Prices, price: float, cost: tuple[FloatArray, FloatArray],
                 start: Choice) -> Choice:  # fmt: skip
        """The labels with least weighted error + price x priced cost.

        Exact where no layer couples several sparsities and memory is not priced; otherwise a local minimum near
        `start`, with memory linearised there.

        Args:
            errors: of `weighted_errors`. prices: relative prices of the resources. price: the common price.
            cost: of `single_cost` for the same prices. start: labels to begin from.
        """
        by_bits, by_kept = self._memory_prices(prices.memory, start)
        objective = errors.table + price * (cost[0] + by_bits[:, :, None])
        owner = errors.owner + price * (cost[1] + by_kept)
        owner = owner + self._incidence @ objective.min(0)
        sparsity = np.minimum(owner.argmin(1), self.tables.counts[:, 0] - 1)
        if self._moves:
            sparsity[self._coupled_deciders] = start.sparsity[self._coupled_deciders]
            terms = self._linear_terms(prices, price, by_bits)
            sparsity = self._descend(errors.table, owner, terms, sparsity)
        bits = np.empty_like(sparsity)
        single = self._single
        bits[single] = objective[:, single, sparsity[self._anchor[single]]].argmin(0)
        if self._moves:
            fan_in, out = self.tables.problem.costs.widths(self.tables.kept_channels(sparsity))
            rows = self.coupled
            at_source = errors.table[:, rows, sparsity[self.tables.source[rows]]]
            bits[rows] = (at_source + _priced(tuple(term[:, rows] for term in terms), fan_in[rows], out[rows])).argmin(
                0
            )
        return Choice(sparsity, bits)

    def _descend(
        self, table: FloatArray, owner: FloatArray, terms: tuple[FloatArray, ...], sparsity: IntArray
    ) -> IntArray:
        """Coordinate descent over the coupled sparsities; `owner` (L, S) holds all that depends on one alone."""
        tables, options = self.tables, np.arange(self.tables.kept.shape[1])
        gathered = [tuple(term[:, pairs.layer, None] for term in terms) for _, pairs in self._moves]
        for _ in range(SWEEPS):
            before = sparsity.copy()
            for (deciders, pairs), move_terms in zip(self._moves, gathered, strict=True):
                fan_in, out = pair_widths(tables, pairs, sparsity)
                source = tables.source[pairs.layer]
                at_source = np.where((source == pairs.decider)[:, None], options, sparsity[source][:, None])
                values = table[:, pairs.layer[:, None], at_source] + _priced(move_terms, fan_in, out)
                total = owner.copy()
                np.add.at(total, pairs.decider, values.min(0))
                sparsity[deciders] = np.minimum(total[deciders].argmin(1), tables.counts[deciders, 0] - 1)
            if (before == sparsity).all():
                break
        return sparsity

    def _linear_terms(self, prices: Prices, price: float, by_bits: FloatArray) -> tuple[FloatArray, ...]:
        """(B*A, L) price per weight, per weight row and per layer; bytes are not rounded up here."""
        get = {name: price * prices.additive.get(name, 0.0) for name in ADDITIVE}
        per_weight = (
            get["size"] * self.bits / 8
            + self._positions * (get["macs"] + get["bitops"] * self.bits * self.activations)
        )  # fmt: skip
        per_row = get["size"] * (SCALE_BYTES * (self.bits < 16) + BIAS_BYTES * self.tables.problem.costs.has_bias)
        per_layer = get["size"] * RANGE_BYTES * (self.activations < 32) + price * by_bits
        return per_weight, per_row, per_layer

    def _memory_prices(self, price: float, at: Choice) -> tuple[FloatArray, FloatArray]:
        """The smoothed peak's gradient: (B*A, L) by a reader's bits, (L, S) by an owner's kept channels."""
        tables, costs = self.tables, self.tables.problem.costs
        by_bits, by_kept = np.zeros(self.bits.shape), np.zeros(tables.kept.shape)
        if price == 0.0 or not costs.alive.size:
            return by_bits, by_kept
        activations = self.activations[at.bits, np.arange(tables.layer_count)]
        read = np.where(costs.tensor_readers, activations, 0).max(-1, initial=0)
        bits = np.where(read > 0, read, 32)
        elements = costs.tensor_const + tables.kept_channels(at.sparsity) @ costs.tensor_coef.T
        moments = costs.alive @ (elements * bits / 8)
        slope = (moments / max(moments.max(), 1.0)) ** (PEAK_POWER - 1) @ costs.alive  # (T,)
        readers = np.maximum(costs.tensor_readers.sum(1), 1)
        by_bits = price * (slope * elements / readers / 8) @ costs.tensor_readers * self.activations
        by_group = price * (slope * bits / 8) @ costs.tensor_coef
        owned = tables.group >= 0
        by_kept[owned] = by_group[tables.group[owned], None] * tables.kept[owned]
        return by_bits, by_kept

    def _single_costs(self) -> dict[str, FloatArray]:
        """(B*A, L, S) costs by resource, for layers with one decider by its sparsity; 0 for the others."""
        tables = self.tables
        options = np.minimum(np.arange(tables.kept.shape[1])[:, None], tables.counts[:, 0] - 1)  # (S, L)
        fan_in, out = tables.problem.costs.widths(tables.kept_channels(options))
        costs = {}
        for name, amount in tables.option_costs(fan_in, out).items():  # (S, L, O, B, A)
            rows = np.arange(len(options))
            chosen = amount[rows, :, 0 * rows if tables.by_channel else rows]
            flat = chosen.reshape(*options.shape, -1).transpose(2, 1, 0).astype(np.float64)  # (B*A, L, S)
            flat[:, self.coupled] = 0.0
            costs[name] = np.ascontiguousarray(flat)
        return costs

    def _fixed_bytes(self) -> FloatArray:
        tables = self.tables
        coef = np.append(tables.problem.costs.fixed_bytes_coef, 0)  # group -1 reads the 0
        return np.asarray(coef[tables.group][:, None] * tables.kept, dtype=np.float64)


def pair_widths(tables: Tables, pairs: Pairs, sparsity: IntArray) -> tuple[IntArray, IntArray]:
    """(n, S) widths of the pairs' layers for every sparsity of the decider, all others as in `sparsity`."""
    fan_in, out = tables.problem.costs.widths(tables.kept_channels(sparsity))
    change = tables.kept[pairs.decider] - tables.kept[pairs.decider, sparsity[pairs.decider]][:, None]
    return (
        fan_in[pairs.layer][:, None] + pairs.fan_in_coef[:, None] * change,
        out[pairs.layer][:, None] + pairs.out_coef[:, None] * change,
    )


def _priced(terms: tuple[FloatArray, ...], fan_in: IntArray, out: IntArray) -> FloatArray:
    """(B*A, *widths) priced costs of layers, for widths that broadcast with the terms' last axes."""
    per_weight, per_row, per_layer = terms
    priced: FloatArray = per_weight * (fan_in * out) + per_row * out + per_layer
    return priced


def _dependencies(tables: Tables) -> tuple[Pairs, list[frozenset[int]]]:
    """Which sparsities every layer's error and cost depend on."""
    costs = tables.problem.costs
    decides = tables.counts[:, 0] > 1
    rows: list[tuple[int, int, int, int]] = []
    deciders_of = []
    for layer in range(tables.layer_count):
        groups = np.flatnonzero(costs.fan_in_coef[layer] | costs.out_coef[layer])
        candidates = {int(tables.owner[g]) for g in groups}
        if tables.problem.layers[layer].source is not None or not tables.by_channel:
            candidates.add(int(tables.source[layer]))
        deciders = {d for d in candidates if d >= 0 and decides[d]}
        deciders_of.append(frozenset(deciders))
        for decider in sorted(deciders):
            group = tables.group[decider]
            coefs = (0, 0) if group < 0 else (costs.fan_in_coef[layer, group], costs.out_coef[layer, group])
            rows.append((layer, decider, int(coefs[0]), int(coefs[1])))
    columns = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    return Pairs(*columns), deciders_of


def _colours(deciders: IntArray, deciders_of: list[frozenset[int]]) -> list[IntArray]:
    """Greedy colouring: deciders of one colour share no layer, so they may move at once."""
    colours: list[set[int]] = []
    for decider in deciders.tolist():
        neighbours: set[int] = set().union(*(group for group in deciders_of if decider in group))
        home = next((colour for colour in colours if not colour & neighbours), None)
        if home is None:
            colours.append(home := set())
        home.add(decider)
    return [np.array(sorted(colour)) for colour in colours]
