"""The relaxed problem: one Lagrange multiplier in place of the budgets.

The problem with budgets is hard: minimise E(x) over all labellings x, subject to C_r(x) <= limit_r for every
resource r. Here E is the weighted expected loss in nats and C_r the amount of resource r. The relaxed problem
has no budgets:

    minimise  E(x) + m C(x)   with   C(x) = sum over r of w_r C_r(x)

Here m >= 0 is the common multiplier, and w_r are the relative multipliers of the resources.

It helps because of Everett (1963): if x minimises E + m C, then x has the least loss of all labellings that
cost no more than C(x). For if C(y) <= C(x), then E(x) <= E(y) + m (C(y) - C(x)) <= E(y). So it is enough to
find the m at which C(x) just meets the budget, which `Solver` does. Shoham & Gersho (1988) chose the bits of
quantizers so.

It is easy because E and C are sums over layers (peak memory is made one). The deciders of a layer
(`solver.dependencies`) are the layers whose chosen sparsity changes its loss or cost. There are two cases.

- A layer with at most one decider (inside a residual block, or where only bits are chosen) is solved exactly.
  For every sparsity of the decider its best bits are looked up in a table, and these minima are added up by
  decider.
- A layer with several deciders (in chains and concatenations) couples their sparsities, as its cost is a
  product of widths. Coupled sparsities are found by coordinate descent; those that share no layer move
  together.

Shapes: L layers; S sparsities, B weight bits and A activation bits on the longest menus; G groups of
channels; T activation tensors, alive in P moments. Bits are flat: option b * A + a has weight bits b,
activation bits a.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from autocompress_envs.problem import (
    BIAS_BYTES,
    FLOAT_BYTES,
    RANGE_BYTES,
    SCALE_BYTES,
    FloatArray,
    IntArray,
    Labeling,
)
from autocompress_envs.problem.tables import Tables
from autocompress_envs.solver.dependencies import colours, dependencies, pair_widths
from autocompress_envs.solver.terms import EnergyTerms, LayerTerms, TimeTerms

SWEEPS = 4  # most passes of the coordinate descent over all coupled sparsities
PEAK_POWER = 8  # the peak is smoothed to this norm over moments, whose gradient says which tensors matter


@dataclass(frozen=True)
class Errors:
    """Weighted expected losses of every option, in nats.

    Attributes:
        table: (B*A, L, S) loss of every layer by its bits and by the sparsity of its source.
        owner: (L, S) loss that an owner's sparsity adds at layers that read its group besides another one.
    """

    table: FloatArray
    owner: FloatArray

    def total(self, tables: Tables, choice: Choice) -> float:
        """The weighted expected loss of a choice in nats: the sum over all layers."""
        rows = np.arange(tables.layer_count)
        layers = self.table[choice.bits, rows, choice.sparsity[tables.source]]  # (L,)
        return float(layers.sum() + self.owner[rows, choice.sparsity].sum())


@dataclass(frozen=True)
class Choice:
    """A labelling with both bit-widths of a layer in one index.

    Attributes:
        sparsity: (L,) indices into the layers' menus of sparsities.
        bits: (L,) flat indices b * A + a of the weight bits b and the activation bits a.
    """

    sparsity: IntArray
    bits: IntArray


@dataclass(frozen=True)
class Multipliers:
    """Relative Lagrange multipliers w_r: what one unit of every resource contributes to the cost C(x).

    Attributes:
        additive: weights by name of the resources that are sums over layers (`size`, `macs`, `bitops`, `latency`,
            `energy`).
        memory: weight of one byte of peak memory; 0 where memory has no limit.
    """

    additive: Mapping[str, float]
    memory: float


@dataclass(frozen=True)
class WeightedCosts:
    """The costs sum_r w_r C_r of every option for fixed relative multipliers, without peak memory.

    Attributes:
        multipliers: the relative multipliers w_r.
        layers: (B*A, L, S) cost of a layer with at most one decider, by its bits and that decider's sparsity;
            0 for layers with several deciders.
        owners: (L, S) cost of the bytes that belong to a group and to no layer, by the owner's sparsity.
    """

    multipliers: Multipliers
    layers: FloatArray
    owners: FloatArray


def labeling_of(tables: Tables, choice: Choice) -> Labeling:
    """The labelling of a choice: weight bits and activation bits apart."""
    bits, activations = np.divmod(choice.bits, tables.activation_bits.shape[1])
    return Labeling(choice.sparsity, bits, activations)


def choice_of(tables: Tables, labeling: Labeling) -> Choice:
    """The choice of a labelling: the inverse of `labeling_of`."""
    return Choice(labeling.sparsity, labeling.weight_bits * tables.activation_bits.shape[1] + labeling.activation_bits)


def weighted_errors(tables: Tables, sparsity_weights: FloatArray, bits_weights: FloatArray) -> Errors:
    """Expected losses, pruning weighted by the owner of the group and quantization by the layer itself.

    The pruning part of a table T[s, b, a] is T[s, -1, -1] - T[0, -1, -1]; the rest is the quantization part.

    Args:
        tables: padded menus of the problem.
        sparsity_weights: (L,) factors of the pruning parts, by owner.
        bits_weights: (L,) factors of the quantization parts, by layer.

    Returns:
        Weighted expected losses, at least 0 at every layer.
    """
    pruning = tables.pruning_errors[..., None, None]  # (L, S, 1, 1)
    quantization = tables.errors - pruning  # (L, S, B, A)
    weighted = sparsity_weights[tables.source, None, None, None] * pruning
    table = np.maximum(weighted + bits_weights[:, None, None, None] * quantization, 0.0)
    table = np.ascontiguousarray(table.reshape(*table.shape[:2], -1).transpose(2, 0, 1))  # (B*A, L, S)
    return Errors(table, sparsity_weights[:, None] * tables.extra_errors)


class Lagrangian:
    """Solver of the relaxed problem. It holds all that depends on neither weights nor multipliers.

    Attributes:
        tables: padded menus of the problem.
        pairs: all pairs of a layer and one of its deciders.
        deciders_of: deciders of every layer, L sets.
        coupled: indices of the layers with several deciders.
        group_bytes: (L, S) bytes that belong to the owned group and to no layer, by the owner's sparsity.
        bits: (B*A, L) weight bits of every flat option.
        activations: (B*A, L) activation bits of every flat option.
        ranks: (B*A, L) rank of every flat option, 0 for a layer as it is.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.pairs, self.deciders_of = dependencies(tables)
        count = np.array([len(deciders) for deciders in self.deciders_of])
        self.coupled = np.flatnonzero(count > 1)
        self._single = np.flatnonzero(count <= 1)
        # The anchor of a layer with one decider is that decider; without any it is the layer itself.
        self._anchor = np.array([min(d, default=layer) for layer, d in enumerate(self.deciders_of)])
        self._incidence = np.zeros((tables.layer_count, tables.layer_count))  # row: anchor, column: layer
        self._incidence[self._anchor[self._single], self._single] = 1.0
        coupled_pairs = self.pairs.where(np.isin(self.pairs.layer, self.coupled))
        self._coupled_deciders = np.unique(coupled_pairs.decider)
        self._moves = [(c, coupled_pairs.of(c)) for c in colours(self._coupled_deciders, self.deciders_of)]
        self._costs = self._single_costs()
        self.group_bytes = self._group_bytes()
        bits = tables.weight_bits[:, :, None] + 0 * tables.activation_bits[:, None, :]  # (L, B, A)
        activations = tables.activation_bits[:, None, :] + 0 * tables.weight_bits[:, :, None]
        self.bits = bits.reshape(tables.layer_count, -1).T  # (B*A, L)
        self.activations = activations.reshape(tables.layer_count, -1).T
        ranks = tables.ranks[:, :, None] + 0 * tables.activation_bits[:, None, :]
        self.ranks = ranks.reshape(tables.layer_count, -1).T
        self._positions = tables.problem.costs.positions.astype(np.float64)

    def weighted_costs(self, multipliers: Multipliers) -> WeightedCosts:
        """The costs of all options for given relative multipliers, once for many common multipliers."""
        layers = np.zeros(next(iter(self._costs.values())).shape)
        for name, weight in multipliers.additive.items():
            layers += weight * self._costs[name]
        return WeightedCosts(multipliers, layers, multipliers.additive.get("size", 0.0) * self.group_bytes)

    def minimise(self, errors: Errors, costs: WeightedCosts, multiplier: float, start: Choice) -> Choice:
        """The labels x that minimise E(x) + multiplier C(x).

        Exact where no layer has several deciders and memory has no weight. Otherwise a local minimum near
        `start`: coupled sparsities are moved one after the other, and peak memory is linearised at `start`.

        The toy below has three layers of 8 weights that read 8 bits: b bits cost 64 b bit operations. Going
        from 2 to 4 bits costs 128 and saves 0.09, 0.108 and 0.36 nats; going from 4 to 8 costs 256 and saves
        0.01, 0.012 and 0.04. Removing half of the group costs 0.6 nats and, at 2 bits, saves 128 bit
        operations. So:

        - at 0.01 nats a bit operation, 128 are worth 1.28 nats: 2 bits everywhere, and the group is pruned;
        - at 0.001, 128 are worth 0.128 nats: only the last layer goes to 4 bits, and nothing is pruned;
        - at 0.0001, 256 are worth 0.0256 nats: all layers go to 4 bits, and the last one to 8.

        >>> from autocompress_envs.testing import toy_problem
        >>> tables = Tables(toy_problem()[0])
        >>> lagrangian, errors = Lagrangian(tables), weighted_errors(tables, np.ones(3), np.ones(3))
        >>> costs = lagrangian.weighted_costs(Multipliers({"bitops": 1.0}, memory=0.0))
        >>> start = Choice(np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.int64))
        >>> for multiplier in (0.01, 0.001, 0.0001):
        ...     found = lagrangian.minimise(errors, costs, multiplier, start)
        ...     print(found.sparsity.tolist(), found.bits.tolist())  # indices into (0, 0.5) and (2, 4, 8)
        [1, 0, 0] [0, 0, 0]
        [0, 0, 0] [0, 0, 1]
        [0, 0, 0] [1, 1, 2]

        Args:
            errors: weighted expected losses, as `weighted_errors` gives them.
            costs: weighted costs, as `weighted_costs` gives them.
            multiplier: common multiplier m, at least 0.
            start: labels at which coordinate descent begins and peak memory is linearised.
        """
        by_bits, by_kept = self._memory_costs(costs.multipliers.memory, start)
        by_layer = errors.table + multiplier * (costs.layers + by_bits[:, :, None])  # (B*A, L, S)
        by_owner = errors.owner + multiplier * (costs.owners + by_kept)  # (L, S)
        by_owner = by_owner + self._incidence @ by_layer.min(0)  # with the best bits of all layers anchored there
        sparsity = np.minimum(by_owner.argmin(1), self.tables.counts[:, 0] - 1)  # (L,)
        bits = np.empty_like(sparsity)
        if self._moves:
            sparsity[self._coupled_deciders] = start.sparsity[self._coupled_deciders]
            terms = self._layer_terms(costs.multipliers, multiplier, by_bits)
            sparsity = self._descend(errors.table, by_owner, terms, sparsity)
            bits[self.coupled] = self._coupled_bits(errors.table, terms, sparsity)
        at_anchor = by_layer[:, self._single, sparsity[self._anchor[self._single]]]
        bits[self._single] = at_anchor.argmin(0)
        return Choice(sparsity, bits)

    def _descend(self, table: FloatArray, by_owner: FloatArray, terms: LayerTerms, sparsity: IntArray) -> IntArray:
        """(L,) sparsities, the coupled ones improved by coordinate descent.

        One move sets the sparsity of a decider d to the s that minimises

            by_owner[d, s] + sum over l of min over bits of (table[bits, l, source of l] + cost(bits, l))

        over the coupled layers l that d decides, with the other sparsities as they are. Deciders of one
        colour share no layer, so their sums have no term in common and they move together. A move never
        raises the objective; the descent ends when nothing moves, or after `SWEEPS` passes.

        Args:
            table: (B*A, L, S) weighted expected losses by the source's sparsity.
            by_owner: (L, S) all of the objective that depends on one sparsity alone.
            terms: costs of the layers as linear functions of their widths.
            sparsity: (L,) sparsities to begin from, changed in place.
        """
        tables, options = self.tables, np.arange(self.tables.kept.shape[1])
        gathered = [terms.of(pairs.layer).by_option() for _, pairs in self._moves]
        for _ in range(SWEEPS):
            before = sparsity.copy()
            for (deciders, pairs), pair_terms in zip(self._moves, gathered, strict=True):
                fan_in, out = pair_widths(tables, pairs, sparsity)  # (n, S)
                source = tables.source[pairs.layer]  # (n,)
                at_source = np.where((source == pairs.decider)[:, None], options, sparsity[source][:, None])  # (n, S)
                losses = table[:, pairs.layer[:, None], at_source]  # (B*A, n, S)
                values = losses + pair_terms.cost(fan_in, out)
                total = by_owner.copy()
                np.add.at(total, pairs.decider, values.min(0))
                sparsity[deciders] = np.minimum(total[deciders].argmin(1), tables.counts[deciders, 0] - 1)
            if (before == sparsity).all():
                break
        return sparsity

    def _coupled_bits(self, table: FloatArray, terms: LayerTerms, sparsity: IntArray) -> IntArray:
        """(n,) best flat bits of the n coupled layers, for the sparsities (L,) of all layers."""
        layers = self.coupled
        fan_in, out = self.tables.problem.costs.widths(self.tables.kept_channels(sparsity))  # (L,)
        losses = table[:, layers, sparsity[self.tables.source[layers]]]  # (B*A, n)
        values = losses + terms.of(layers).cost(fan_in[layers], out[layers])
        bits: IntArray = values.argmin(0)
        return bits

    def _layer_terms(self, multipliers: Multipliers, multiplier: float, by_bits: FloatArray) -> LayerTerms:
        """The costs of all layers, times the common multiplier, as functions of their widths.

        With n = fan_in * out weights, b weight bits and a activation bits, a layer has

            size   = n b / 8 + out (4 [b < 16] + 4 [has a bias]) + 8 [a < 32]      bytes, not rounded up here
            macs   = n positions
            bitops = n positions b a

        Of a low rank r there are r fan_in weights in each first factor, with r scales, and r out in the second one,
        which reads 32 bits. Time is what `KernelCosts` says, energy what `EnergyCosts` says.

        Args:
            multipliers: relative multipliers of the resources.
            multiplier: common multiplier.
            by_bits: (B*A, L) weighted memory costs by the layer's bits.
        """
        additive = {name: multiplier * weight for name, weight in multipliers.additive.items()}
        size, macs, bitops, energy = (additive.get(name, 0.0) for name in ("size", "macs", "bitops", "energy"))
        costs = self.tables.problem.costs
        has_bias, members, is_low = costs.has_bias, costs.first_factors, self.ranks > 0
        joules = EnergyTerms.of(costs.energy, energy, self.bits, self.activations)
        byte = size + joules.byte
        per_mac = macs + bitops * self.bits * self.activations + joules.mac
        per_weight = byte * self.bits / 8 + self._positions * per_mac
        of_second = byte * self.bits / 8 + self._positions * (macs + bitops * self.bits * 32 + joules.float_mac)
        handed_on = self.ranks * members * self._positions * FLOAT_BYTES * joules.handed_byte
        per_scale = byte * SCALE_BYTES * (self.bits < 16)
        kernels, latency = costs.kernels, additive.get("latency", 0.0)
        time = None
        if kernels is not None and latency:
            time = TimeTerms(kernels, latency, np.arange(self.tables.layer_count), self.bits, self.activations)
        return LayerTerms(
            per_weight=np.where(is_low, 0.0, per_weight),
            per_column=self.ranks * members * per_weight + joules.column,
            per_row=per_scale + byte * BIAS_BYTES * has_bias + self.ranks * of_second + joules.row,
            per_layer=byte * RANGE_BYTES * (self.activations < 32)
            + self.ranks * members * per_scale
            + handed_on
            + multiplier * by_bits,
            time=time,
        )

    def _memory_costs(self, weight: float, at: Choice) -> tuple[FloatArray, FloatArray]:
        """Weighted peak memory, linearised at a choice.

        The peak max over p of M_p is no sum over layers: M_p = sum over tensors t alive at p of elements_t
        bits_t / 8. So it is smoothed to a norm over moments, whose gradient by the bytes of tensor t is (up
        to a common factor, which the multiplier absorbs)

            slope_t = sum over p of (M_p / max M)^(q - 1) alive[p, t]      with q = PEAK_POWER

        A tensor that is alive at the peak has a slope of at least 1, one that is alive at 3/4 of it 0.13. The
        bytes of a tensor are then shared out evenly among the layers that read it, and charged to the owners
        of its channels. What two factors hand on has the slope of what their layer reads.

        Returns:
            (B*A, L) costs by a reader's bits, and (L, S) costs by an owner's kept channels.
        """
        tables, costs = self.tables, self.tables.problem.costs
        by_bits, by_kept = np.zeros(self.bits.shape), np.zeros(tables.kept.shape)
        if weight == 0.0 or not costs.alive.size:
            return by_bits, by_kept
        activations = self.activations[at.bits, np.arange(tables.layer_count)]  # (L,)
        read = np.where(costs.tensor_readers, activations, 0).max(-1, initial=0)  # (T,)
        bits = np.where(read > 0, read, 32)  # a tensor that no layer reads stays at 32 bits
        elements = costs.tensor_const + tables.kept_channels(at.sparsity) @ costs.tensor_coef.T  # (T,)
        moments = costs.alive @ (elements * bits / 8)  # (P,) bytes
        slope = (moments / max(moments.max(), 1.0)) ** (PEAK_POWER - 1) @ costs.alive  # (T,)
        readers = np.maximum(costs.tensor_readers.sum(1), 1)  # (T,)
        per_bit = weight * (slope * elements / readers / 8)  # (T,) cost of one more bit at one reader
        of_layers = slope / readers @ costs.tensor_readers  # (L,) slope at what a layer reads
        by_bits = per_bit @ costs.tensor_readers * self.activations
        by_bits = by_bits + weight * of_layers * costs.handed_on(self.ranks)
        by_group = weight * (slope * bits / 8) @ costs.tensor_coef  # (G,) cost of one more channel
        owned = tables.group >= 0
        by_kept[owned] = by_group[tables.group[owned], None] * tables.kept[owned]
        return by_bits, by_kept

    def _single_costs(self) -> dict[str, FloatArray]:
        """(B*A, L, S) amounts by resource of layers with at most one decider; 0 for coupled layers.

        Row s gives every layer its sparsity s at once. A layer with one decider depends on no other sparsity,
        so it costs in that row what it costs when its decider alone has sparsity s.
        """
        tables = self.tables
        options = np.minimum(np.arange(tables.kept.shape[1])[:, None], tables.counts[:, 0] - 1)  # (S, L)
        fan_in, out = tables.problem.costs.widths(tables.kept_channels(options))  # (S, L)
        rows = np.arange(len(options))
        own = np.zeros_like(rows) if tables.by_channel else rows  # sparsity inside the layer: only without channels
        costs = {}
        for name, amount in tables.option_costs(fan_in, out).items():  # (S, L, O, B, A)
            chosen = amount[rows, :, own]  # (S, L, B, A)
            flat = chosen.reshape(*options.shape, -1).transpose(2, 1, 0).astype(np.float64)  # (B*A, L, S)
            flat[:, self.coupled] = 0.0
            costs[name] = np.ascontiguousarray(flat)
        return costs

    def _group_bytes(self) -> FloatArray:
        """(L, S) bytes that belong to the owned group and to no layer; 0 where a layer owns no group."""
        tables = self.tables
        coef = np.append(tables.problem.costs.fixed_bytes_coef, 0)  # group -1 reads the 0
        return np.asarray(coef[tables.group][:, None] * tables.kept, dtype=np.float64)
