"""What labels cost, kept up to date label by label: only what one choice changes is computed anew.

Two completions of the labels so far matter. The *reference's* rest says what every option of the next layer would cost
in the end. The *cheapest* rest (the fewest channels, and the cheapest bits) says which options are within reach, and
what is spent. For both the ledger keeps a table of what every option of every layer costs at the channels that are left
by now, and what the chosen options cost. A label changes the columns and rows of the layers that read or write the
group that its layer owns, so a step recounts these few layers, for all sparsities on the menu at once; the one that is
chosen is then written down.

`Tables.amounts`, `Reach.allowed` and `observation.progress` count the same from nothing; tests compare.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from autocompress_envs.actions import DiscreteActions
from autocompress_envs.problem import BoolArray, FloatArray, IntArray, Labeling
from autocompress_envs.problem.tables import RESOURCES
from autocompress_envs.solver import Solver

_REFERENCE, _CHEAPEST = 0, 1  # the two completions, in the order of axes of 2
_MEMORY = list(RESOURCES).index("memory")  # the only resource that is no sum over layers
_NOTHING = np.zeros((2, 1, 0), dtype=np.int64)
_UNKNOWN = np.zeros(0, dtype=bool)


class _Readers(NamedTuple):
    """The n layers whose costs depend on the sparsity of one layer, that layer among them.

    Attributes:
        rows: (n,) indices of these layers.
        place: position of the one layer among them.
        per_column, per_row: (n,) columns and rows that each has per channel of the layer's group; zeros without one.
        counts: sparsities, weight bits and activation bits on the layer's menu.
        group: index of the layer's group, -1 for none.
        elsewhere: (2, n) whether each counts among the other layers: with the reference's rest all but the one layer,
            with the cheapest rest the layers before it.
        later: (n,) whether each comes after it.
    """

    rows: IntArray
    place: int
    per_column: IntArray
    per_row: IntArray
    counts: tuple[int, int, int]
    group: int
    elsewhere: IntArray
    later: IntArray


class _Ahead(NamedTuple):
    """What the S sparsities of the next layer would change, and whether its options are within reach.

    Attributes:
        fan_in, out: (2, S, n) columns and rows of the layers that read its group; empty where it owns none.
        costs: (R, 2, S or 1, n, O * B * A) what every option of these layers costs.
        change: (2, S) channels that each sparsity adds to the group of the next layer.
        least: (R, S or 1, n) the least that these layers need of every resource, with the cheapest rest.
        picks: (Q, S or 1, n) cheapest option of these layers by every score, with the cheapest rest.
        picked: (R, Q, S or 1, n) what these options cost.
        is_reachable: (Q, S, B, A) whether an option is within all limits with the cheapest rest by every score.
    """

    fan_in: IntArray
    out: IntArray
    costs: IntArray
    change: IntArray
    least: IntArray
    picks: IntArray
    picked: IntArray
    is_reachable: BoolArray


class Ledger:
    """Costs of the labels so far and of the next layer's options, under one budget.

    Args:
        solver: solver of the problem under its budget.
        reference: plan that stands for the layers that are not labelled.

    Attributes:
        positions: (L,) positions of the labels so far on the layers' menus; 0 for layers without a label.
    """

    def __init__(self, solver: Solver, reference: Labeling) -> None:
        self._tables, self._reach, self._reference = solver.tables, solver.reach, reference
        tables, costs = solver.tables, solver.tables.problem.costs
        self._names = costs.additive
        self._places = [list(RESOURCES).index(name) for name in self._names]
        self._limited = [number for number, name in enumerate(self._names) if name in solver.limits]
        self._limits = np.array([solver.limits[self._names[number]] for number in self._limited])
        self._most_memory = solver.limits.get("memory")
        self._shape = tables.own.shape[1], tables.weight_bits.shape[1], tables.activation_bits.shape[1]
        self._readers = [_readers(solver, layer) for layer in range(tables.layer_count)]
        empty = np.zeros(tables.layer_count, dtype=np.int64)
        sparsity = np.stack([reference.sparsity, tables.kept.argmin(1)])
        self._fewest = sparsity[_CHEAPEST]
        self._first_kept = tables.kept_channels(sparsity)  # (2, G)
        self._first_widths = np.stack(costs.widths(self._first_kept))  # (2, 2, L): columns and rows
        options = tables.option_costs(*self._first_widths)
        self._first_costs = np.stack([each.reshape(2, len(empty), -1) for each in options.values()])  # (R, 2, L, K)
        self._first_options = np.stack([self._flat(*_parts(reference)), empty])  # (2, L)
        self._memory_of_rest = _memory_of_rest(solver)  # (L + 1, T)
        self._alive = costs.alive.T.astype(np.float64)  # (T, P); exact below 2^53
        self.start()

    def start(self) -> None:
        """Forget the labels so far."""
        tables, costs = self._tables, self._tables.problem.costs
        self._step, self._seen = 0, False
        self._kept, self._widths = self._first_kept.copy(), self._first_widths.copy()
        self._costs, self._options = self._first_costs.copy(), self._first_options.copy()
        layers, both = np.arange(tables.layer_count), np.arange(2)[:, None]
        self._taken = self._costs[:, both, layers, self._options]  # (R, 2, L)
        self._fixed = np.stack([np.broadcast_to(costs.fixed(name, self._kept), 2) for name in self._names])  # (R, 2)
        self._least = self._costs[:, _CHEAPEST].min(-1)  # (R, L)
        self._picks, self._picked = self._cheapest(self._costs[:, _CHEAPEST], layers)
        self._elements = costs.tensor_const + self._kept[_CHEAPEST] @ costs.tensor_coef.T  # (T,)
        self._read_bits = np.zeros(len(self._elements), dtype=np.int64)  # by layers with a label
        self.positions: IntArray = np.zeros(tables.layer_count, dtype=np.int64)

    def spent(self) -> tuple[FloatArray, FloatArray]:
        """Amounts that the labels so far take, and that the whole network needs at least, as `observation.progress`.

        Returns:
            (6,) and (6,), in the order of `RESOURCES`; 0 for a latency that nothing was timed of.
        """
        step = self._step
        spent = self._taken[:, _CHEAPEST, :step].sum(-1) + self._fixed[:, _CHEAPEST]
        least = spent + self._least[:, step:].sum(-1)
        all_bits = np.maximum(self._read_bits, self._memory_of_rest[step])
        bits = np.stack([self._read_bits, np.where(all_bits > 0, all_bits, 32)])
        memory = (-(-self._elements * bits // 8) @ self._alive).max(-1, initial=0)  # (2,)
        found = np.zeros((2, len(RESOURCES)))
        found[:, self._places], found[:, _MEMORY] = (spent, least), memory
        return found[0], found[1]

    def amounts(self, so_far: Labeling) -> IntArray:
        """(limited resources, O) what the labels so far, each option of the next layer and the reference's rest take.

        Args:
            so_far: labels, of which the first ones count.
        """
        ahead, step, limited = self._look(so_far), self._step, self._limited
        sparsities, bits, activations = self._readers[step].counts
        elsewhere = self._elsewhere(ahead, _REFERENCE)[limited]  # (r, S)
        own = self._own(ahead, _REFERENCE)[limited]  # (r, S, B, A)
        found = (own + elsewhere[..., None, None]).reshape(len(limited), sparsities * bits * activations)
        if self._most_memory is None:
            return found
        rows = np.arange(step + 1, self._tables.layer_count)
        rest_bits = self._tables.activation_bits[rows, self._reference.activation_bits[step + 1 :]]
        rest_ranks = self._tables.ranks[rows, self._reference.weight_bits[step + 1 :]]
        kept = self._kept_ahead(ahead, _REFERENCE)
        rest = [np.broadcast_to(each, (sparsities, len(rows))) for each in (rest_bits, rest_ranks)]
        memory = self._reach.memory(so_far, step, kept, *rest)
        memory = np.broadcast_to(memory, (sparsities, bits, activations)).reshape(1, -1)
        place = sum(self._places[number] < _MEMORY for number in limited)
        return np.concatenate([found[:place], memory, found[place:]])

    def reachable(self, so_far: Labeling) -> BoolArray:
        """(S, B, A) which options of the next layer leave every limit within reach, as `Reach.allowed`."""
        return np.asarray(self._look(so_far).is_reachable.any(0))

    def completion(self, so_far: Labeling, label: tuple[int, int, int]) -> Labeling:
        """A plan within all limits: the labels so far, a reachable label of the next layer, and a cheapest rest.

        Args:
            so_far: labels, of which the first ones and the next layer's count.
            label: indices of sparsity, weight bits and activation bits of the next layer.
        """
        ahead, first = self._look(so_far), self._step + 1
        score = int(ahead.is_reachable[(slice(None), *label)].argmax())
        picks = self._picks[score].copy()
        if ahead.fan_in.size:
            picks[self._readers[self._step].rows] = ahead.picks[score, label[0]]
        own, bits, activations = np.unravel_index(picks[first:], self._shape)
        rest = self._fewest[first:] if self._tables.by_channel else own
        parts = zip(_parts(so_far), (rest, bits, activations), strict=True)
        return Labeling(*(np.concatenate([before[:first], after]) for before, after in parts))

    def choose(self, so_far: Labeling, label: tuple[int, int, int]) -> None:
        """Label the next layer; the arguments are those of `completion`."""
        ahead, step, costs = self._look(so_far), self._step, self._tables.problem.costs
        sparsity, bits, activations = label
        if ahead.fan_in.size and ahead.change[:, sparsity].any():
            rows, group = self._readers[step].rows, self._readers[step].group
            change = ahead.change[:, sparsity]
            self._kept[:, group] += change
            self._widths[:, :, rows] = ahead.fan_in[:, sparsity], ahead.out[:, sparsity]
            self._costs[:, :, rows] = ahead.costs[:, :, sparsity]
            both, places = np.arange(2)[:, None], np.arange(len(rows))
            self._taken[:, :, rows] = ahead.costs[:, both, sparsity, places, self._options[:, rows]]
            self._fixed[0] += change * costs.fixed_bytes_coef[group]
            self._least[:, rows] = ahead.least[:, sparsity]
            self._picks[:, rows], self._picked[:, :, rows] = ahead.picks[:, sparsity], ahead.picked[:, :, sparsity]
            self._elements = self._elements + change[_CHEAPEST] * costs.tensor_coef[:, group]
        self._options[:, step] = option = int(self._flat(sparsity, bits, activations))
        self._taken[:, :, step] = self._costs[:, :, step, option]
        read = costs.tensor_readers[:, step] * self._tables.activation_bits[step, activations]
        self._read_bits = np.maximum(self._read_bits, read)
        _, bits_count, activation_count = self._readers[step].counts
        self.positions[step] = (sparsity * bits_count + bits) * activation_count + activations
        self._step, self._seen = step + 1, False

    def _look(self, so_far: Labeling) -> _Ahead:
        """What the options of the next layer would change; computed once a step."""
        if not self._seen:
            self._ahead, self._seen = self._looked(so_far), True
        return self._ahead

    def _looked(self, so_far: Labeling) -> _Ahead:
        tables, step = self._tables, self._step
        rows, (count, _, _), group = self._readers[step].rows, self._readers[step].counts, self._readers[step].group
        if group < 0:
            none = _NOTHING
            costs, change = self._costs[:, :, None, step : step + 1], np.zeros((2, count), dtype=np.int64)
            ahead = _Ahead(none, none, costs, change, none, none, none, _UNKNOWN)
        else:
            change = tables.kept[step, :count] - self._kept[:, group, None]
            fan_in = self._widths[0][:, None, rows] + change[..., None] * self._readers[step].per_column
            out = self._widths[1][:, None, rows] + change[..., None] * self._readers[step].per_row
            amounts = tables.option_costs(fan_in, out, rows)
            costs = np.array(list(amounts.values())).reshape(len(amounts), 2, count, len(rows), -1)
            least = costs[:, _CHEAPEST].min(-1)
            ahead = _Ahead(fan_in, out, costs, change, least, *self._cheapest(costs[:, _CHEAPEST], rows), _UNKNOWN)
        return ahead._replace(is_reachable=self._within_reach(ahead, so_far))

    def _within_reach(self, ahead: _Ahead, so_far: Labeling) -> BoolArray:
        """(Q, S, B, A) the field `is_reachable`."""
        limited, step, rows = self._limited, self._step, self._readers[self._step].rows
        own = self._own(ahead, _CHEAPEST)[limited]  # (r, S, B, A)
        rest = self._picked[limited, :, step + 1 :].sum(-1)[..., None]  # (r, Q, 1)
        if ahead.fan_in.size:
            more = ahead.picked[limited] - self._picked[limited][:, :, None, rows]
            rest = rest + more @ self._readers[step].later
        total = self._elsewhere(ahead, _CHEAPEST)[limited][:, None] + rest  # (r, Q, S)
        fits: BoolArray = (own[:, None] + total[..., None, None] <= self._limits[:, None, None, None, None]).all(0)
        if self._most_memory is None:
            return fits
        kept, after = self._kept_ahead(ahead, _CHEAPEST), np.arange(step + 1, self._tables.layer_count)
        found = np.broadcast_to(fits, (len(self._picks), *own.shape[1:])).copy()
        for score, is_within in enumerate(found):
            picks = np.repeat(self._picks[score][None], len(kept), axis=0)  # (S, L)
            if ahead.fan_in.size:
                picks[:, rows] = ahead.picks[score]
            _, bits, activations = np.unravel_index(picks[:, step + 1 :], self._shape)
            rest_bits, rest_ranks = self._tables.activation_bits[after, activations], self._tables.ranks[after, bits]
            is_within &= self._reach.memory(so_far, step, kept, rest_bits, rest_ranks) <= self._most_memory
        return found

    def _elsewhere(self, ahead: _Ahead, rest: int) -> IntArray:
        """(R, S) what everything but the next layer takes, by its sparsity; of the cheapest rest, what is labelled."""
        stop = self._tables.layer_count if rest == _REFERENCE else self._step
        total = self._taken[:, rest, :stop].sum(-1) + self._fixed[:, rest]  # (R,)
        if rest == _REFERENCE:
            total = total - self._taken[:, rest, self._step]
        if not ahead.fan_in.size:
            return np.repeat(total[:, None], ahead.change.shape[1], axis=1)
        readers = self._readers[self._step]
        now = ahead.costs[:, rest][:, :, np.arange(len(readers.rows)), self._options[rest, readers.rows]]  # (R, S, n)
        found: IntArray = total[:, None] + (now - self._taken[:, rest][:, None, readers.rows]) @ readers.elsewhere[rest]
        found[0] += ahead.change[rest] * self._tables.problem.costs.fixed_bytes_coef[readers.group]
        return found

    def _own(self, ahead: _Ahead, rest: int) -> IntArray:
        """(R, S, B, A) what every option of the next layer takes there."""
        (sparsities, bits, activations), place = self._readers[self._step].counts, self._readers[self._step].place
        own = ahead.costs[:, rest, :, place if ahead.fan_in.size else 0].reshape(
            len(self._names), -1, *self._shape
        )  # (R, S or 1, O, B, A)
        own = own[:, :, 0] if self._tables.by_channel else own[:, 0]
        found = own[:, :sparsities, :bits, :activations]
        return found if found.shape[1] == sparsities else np.repeat(found, sparsities, axis=1)

    def _kept_ahead(self, ahead: _Ahead, rest: int) -> IntArray:
        """(S, G) channels left in every group, by the sparsity of the next layer."""
        kept = np.repeat(self._kept[rest][None], ahead.change.shape[1], axis=0)
        if ahead.fan_in.size:
            kept[:, self._readers[self._step].group] += ahead.change[rest]
        return kept

    def _cheapest(self, costs: IntArray, rows: IntArray) -> tuple[IntArray, IntArray]:
        """(Q, …, n) cheapest options of layers by every score, and (R, Q, …, n) their costs, of costs (R, …, n, K)."""
        options = dict(zip(self._names, costs, strict=True))
        picks = np.array(self._reach.picks(options, rows))
        outer = np.indices(picks.shape[1:], sparse=True)
        return picks, costs[:, *outer, picks]

    def _flat(self, sparsity: IntArray | int, bits: IntArray | int, activations: IntArray | int) -> IntArray:
        """Positions of labels in tables (O, B, A), in which the sparsities of groups have no axis."""
        own = 0 if self._tables.by_channel else sparsity
        return np.asarray((own * self._shape[1] + bits) * self._shape[2] + activations)


class LedgerActions(DiscreteActions):
    """The actions of `DiscreteActions`, counted by a ledger.

    Args:
        solver: solver of the problem under its budget.
        ledger: ledger of the same budget; it is told of every label.
    """

    def __init__(self, solver: Solver, ledger: Ledger) -> None:
        self._ledger = ledger
        super().__init__(solver)

    def start(self, plan: Labeling | None = None) -> None:
        super().start(plan)
        self._ledger.start()

    def choose(self, index: int, label: tuple[int, int, int]) -> None:
        super().choose(index, label)
        self._ledger.choose(self.so_far(), label)

    def _reachable(self, index: int) -> BoolArray:
        return self._ledger.reachable(self.so_far())

    def _completion(self, index: int, label: tuple[int, int, int]) -> Labeling:
        return self._ledger.completion(self.so_far(), label)


def _readers(solver: Solver, layer: int) -> _Readers:
    """The layers whose costs depend on the sparsity of a layer."""
    tables, costs = solver.tables, solver.tables.problem.costs
    group, is_reader = int(tables.group[layer]), np.arange(tables.layer_count) == layer
    per_column = per_row = np.zeros(tables.layer_count, dtype=np.int64)
    if group >= 0:
        per_column, per_row = costs.fan_in_coef[:, group], costs.out_coef[:, group]
        is_reader = is_reader | (per_column != 0) | (per_row != 0)
    rows = np.flatnonzero(is_reader)
    sparsities, bits, activations = map(int, tables.counts[layer])
    return _Readers(
        rows,
        int(is_reader[:layer].sum()),
        per_column[rows],
        per_row[rows],
        (sparsities, bits, activations),
        group,
        np.array([rows != layer, rows < layer]).astype(np.int64),
        (rows > layer).astype(np.int64),
    )


def _memory_of_rest(solver: Solver) -> IntArray:
    """(L + 1, T) most of the fewest activation bits by which layers read a tensor, from each layer on."""
    tables = solver.tables
    fewest = tables.problem.costs.tensor_readers * tables.activation_bits.min(1)  # (T, L)
    found = np.zeros((tables.layer_count + 1, len(fewest)), dtype=np.int64)
    found[:-1] = np.maximum.accumulate(fewest.T[::-1])[::-1]
    return found


def _parts(labeling: Labeling) -> tuple[IntArray, IntArray, IntArray]:
    return labeling.sparsity, labeling.weight_bits, labeling.activation_bits
