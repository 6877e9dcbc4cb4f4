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


class _Ahead(NamedTuple):
    """What the S sparsities of the next layer would change, and whether its options are within reach.

    Attributes:
        rows: (n,) layers whose costs depend on the sparsity, the next one among them.
        place: position of the next layer among them.
        fan_in, out: (2, S, n) their columns and rows; empty where the next layer owns no group.
        costs: (R, 2, S or 1, n, O * B * A) what every option of these layers costs.
        change: (2, S) channels that each sparsity adds to the group of the next layer.
        least: (R, S or 1, n) the least that these layers need of every resource, with the cheapest rest.
        picks: (Q, S or 1, n) cheapest option of these layers by every score, with the cheapest rest.
        picked: (R, Q, S or 1, n) what these options cost.
        is_reachable: (Q, S, B, A) whether an option is within all limits with the cheapest rest by every score.
    """

    rows: IntArray
    place: int
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
        self._taken = np.take_along_axis(self._costs, self._options[None, ..., None], -1)[..., 0]  # (R, 2, L)
        self._fixed = np.stack([np.broadcast_to(costs.fixed(name, self._kept), 2) for name in self._names])  # (R, 2)
        self._least = self._costs[:, _CHEAPEST].min(-1)  # (R, L)
        self._picks, self._picked = self._cheapest(self._costs[:, _CHEAPEST], np.arange(tables.layer_count))
        self._elements = costs.tensor_const + self._kept[_CHEAPEST] @ costs.tensor_coef.T  # (T,)
        self._read_bits = np.zeros(len(self._elements), dtype=np.int64)  # by layers with a label
        self.positions: IntArray = np.zeros(tables.layer_count, dtype=np.int64)

    def spent(self) -> tuple[FloatArray, FloatArray]:
        """Amounts that the labels so far take, and that the whole network needs at least, as `observation.progress`.

        Returns:
            (5,) and (5,), in the order of `RESOURCES`; 0 for a latency that nothing was timed of.
        """
        step = self._step
        spent = self._taken[:, _CHEAPEST, :step].sum(-1) + self._fixed[:, _CHEAPEST]
        least = spent + self._least[:, step:].sum(-1)
        all_bits = np.maximum(self._read_bits, self._memory_of_rest[step])
        bits = np.stack([self._read_bits, np.where(all_bits > 0, all_bits, 32)])
        memory = (-(-self._elements * bits // 8) @ self._alive).max(-1, initial=0)  # (2,)
        found = np.zeros((2, len(RESOURCES)))
        found[:, :3], found[:, 3] = (spent[:3], least[:3]), memory
        if len(self._names) > 3:
            found[:, 4] = spent[3], least[3]
        return found[0], found[1]

    def amounts(self, so_far: Labeling) -> IntArray:
        """(limited resources, O) what the labels so far, each option of the next layer and the reference's rest take.

        Args:
            so_far: labels, of which the first ones count.
        """
        ahead, step, limited = self._look(so_far), self._step, self._limited
        sparsities, bits, activations = self._tables.counts[step]
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
        place = sum(number < 3 for number in limited)  # RESOURCES has the latency behind the memory
        return np.concatenate([found[:place], memory, found[place:]])

    def reachable(self, so_far: Labeling) -> BoolArray:
        """(S, B, A) which options of the next layer leave every limit within reach, as `Reach.allowed`."""
        found: BoolArray = self._look(so_far).is_reachable.any(0)
        return found

    def completion(self, so_far: Labeling, label: tuple[int, int, int]) -> Labeling:
        """A plan within all limits: the labels so far, a reachable label of the next layer, and a cheapest rest.

        Args:
            so_far: labels, of which the first ones and the next layer's count.
            label: indices of sparsity, weight bits and activation bits of the next layer.
        """
        ahead, first = self._look(so_far), self._step + 1
        score = int(ahead.is_reachable[(slice(None), *label)].argmax())
        picks = self._picks[score].copy()
        picks[ahead.rows] = ahead.picks[score, min(label[0], ahead.picks.shape[1] - 1)]
        own, bits, activations = np.unravel_index(picks[first:], self._shape)
        rest = self._fewest[first:] if self._tables.by_channel else own
        parts = zip(_parts(so_far), (rest, bits, activations), strict=True)
        return Labeling(*(np.concatenate([before[:first], after]) for before, after in parts))

    def choose(self, so_far: Labeling, label: tuple[int, int, int]) -> None:
        """Label the next layer; the arguments are those of `completion`."""
        ahead, step, costs = self._look(so_far), self._step, self._tables.problem.costs
        sparsity, bits, activations = label
        if ahead.fan_in.size and ahead.change[:, sparsity].any():
            rows, group = ahead.rows, self._tables.group[step]
            change = ahead.change[:, sparsity]
            self._kept[:, group] += change
            self._widths[:, :, rows] = ahead.fan_in[:, sparsity], ahead.out[:, sparsity]
            self._costs[:, :, rows] = ahead.costs[:, :, sparsity]
            self._taken[:, :, rows] = _at_options(ahead.costs[:, :, sparsity], self._options[:, rows])
            self._fixed[0] += change * costs.fixed_bytes_coef[group]
            self._least[:, rows] = ahead.least[:, sparsity]
            self._picks[:, rows], self._picked[:, :, rows] = ahead.picks[:, sparsity], ahead.picked[:, :, sparsity]
            self._elements = self._elements + change[_CHEAPEST] * costs.tensor_coef[:, group]
        self._options[:, step] = option = int(self._flat(sparsity, bits, activations))
        self._taken[:, :, step] = self._costs[:, :, step, option]
        read = costs.tensor_readers[:, step] * self._tables.activation_bits[step, activations]
        self._read_bits = np.maximum(self._read_bits, read)
        _, bits_count, activation_count = self._tables.counts[step]
        self.positions[step] = (sparsity * bits_count + bits) * activation_count + activations
        self._step, self._seen = step + 1, False

    def _look(self, so_far: Labeling) -> _Ahead:
        """What the options of the next layer would change; computed once a step."""
        if not self._seen:
            self._ahead, self._seen = self._looked(so_far), True
        return self._ahead

    def _looked(self, so_far: Labeling) -> _Ahead:
        tables, step = self._tables, self._step
        rows, place, per_column, per_row = self._readers[step]
        count, group = int(tables.counts[step, 0]), tables.group[step]
        change = np.zeros((2, count), dtype=np.int64)
        fan_in = out = np.zeros((2, count, 0), dtype=np.int64)
        if group < 0:
            costs = self._costs[:, :, None, rows]
            least, picks, picked = (
                self._least[:, None, rows],
                self._picks[:, None, rows],
                self._picked[:, :, None, rows],
            )
        else:
            change = tables.kept[step, :count] - self._kept[:, group, None]
            fan_in = self._widths[0][:, None, rows] + change[..., None] * per_column
            out = self._widths[1][:, None, rows] + change[..., None] * per_row
            amounts = tables.option_costs(fan_in, out, rows)
            costs = np.stack([each.reshape(2, count, len(rows), -1) for each in amounts.values()])
            least = costs[:, _CHEAPEST].min(-1)
            picks, picked = self._cheapest(costs[:, _CHEAPEST], rows)
        ahead = _Ahead(rows, place, fan_in, out, costs, change, least, picks, picked, np.zeros(0, dtype=bool))
        return ahead._replace(is_reachable=self._within_reach(ahead, so_far))

    def _within_reach(self, ahead: _Ahead, so_far: Labeling) -> BoolArray:
        """(Q, S, B, A) the field `is_reachable`."""
        limited, step, later = self._limited, self._step, ahead.rows > self._step
        own = self._own(ahead, _CHEAPEST)[limited]  # (r, S, B, A)
        rest = self._picked[limited, :, step + 1 :].sum(-1)[..., None]  # (r, Q, 1)
        if ahead.fan_in.size:
            rest = rest + (ahead.picked[limited] - self._picked[limited][:, :, None, ahead.rows]) @ later
        total = self._elsewhere(ahead, _CHEAPEST)[limited][:, None] + rest  # (r, Q, S)
        fits: BoolArray = (own[:, None] + total[..., None, None] <= self._limits[:, None, None, None, None]).all(0)
        if self._most_memory is None:
            return fits
        kept, rows = self._kept_ahead(ahead, _CHEAPEST), np.arange(step + 1, self._tables.layer_count)
        found = np.broadcast_to(fits, (len(self._picks), *own.shape[1:])).copy()
        for score, is_within in enumerate(found):
            picks = np.repeat(self._picks[score][None], len(kept), axis=0)  # (S, L)
            picks[:, ahead.rows] = ahead.picks[score]
            _, bits, activations = np.unravel_index(picks[:, step + 1 :], self._shape)
            rest_bits, rest_ranks = self._tables.activation_bits[rows, activations], self._tables.ranks[rows, bits]
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
        rows = ahead.rows
        counts = (rows < stop) & (rows != self._step)
        now = _at_options(ahead.costs[:, rest], self._options[rest, rows])  # (R, S, n)
        found: IntArray = total[:, None] + (now - self._taken[:, rest][:, None, rows]) @ counts
        group = self._tables.group[self._step]
        found[0] += ahead.change[rest] * self._tables.problem.costs.fixed_bytes_coef[group]
        return found

    def _own(self, ahead: _Ahead, rest: int) -> IntArray:
        """(R, S, B, A) what every option of the next layer takes there."""
        sparsities, bits, activations = self._tables.counts[self._step]
        own = ahead.costs[:, rest, :, ahead.place].reshape(len(self._names), -1, *self._shape)  # (R, S or 1, O, B, A)
        own = own[:, :, 0] if self._tables.by_channel else own[:, 0]
        found = own[:, :sparsities, :bits, :activations]
        return found if found.shape[1] == sparsities else np.repeat(found, sparsities, axis=1)

    def _kept_ahead(self, ahead: _Ahead, rest: int) -> IntArray:
        """(S, G) channels left in every group, by the sparsity of the next layer."""
        kept = np.repeat(self._kept[rest][None], ahead.change.shape[1], axis=0)
        if ahead.fan_in.size:
            kept[:, self._tables.group[self._step]] += ahead.change[rest]
        return kept

    def _cheapest(self, costs: IntArray, rows: IntArray) -> tuple[IntArray, IntArray]:
        """(Q, …, n) cheapest options of layers by every score, and (R, Q, …, n) their costs, of costs (R, …, n, K)."""
        options = dict(zip(self._names, costs, strict=True))
        picks = np.stack(self._reach.picks(options, rows))
        return picks, np.take_along_axis(costs[:, None], picks[None, ..., None], -1)[..., 0]

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


def _readers(solver: Solver, layer: int) -> tuple[IntArray, int, IntArray, IntArray]:
    """Layers (n,) whose widths the sparsity of a layer changes, its own place, and (n,) columns and rows a channel."""
    tables, costs = solver.tables, solver.tables.problem.costs
    group = tables.group[layer]
    if group < 0:
        return np.array([layer]), 0, np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    is_reader = (costs.fan_in_coef[:, group] != 0) | (costs.out_coef[:, group] != 0)
    is_reader[layer] = True
    rows = np.flatnonzero(is_reader)
    return rows, int(is_reader[:layer].sum()), costs.fan_in_coef[rows, group], costs.out_coef[rows, group]


def _memory_of_rest(solver: Solver) -> IntArray:
    """(L + 1, T) most of the fewest activation bits by which layers read a tensor, from each layer on."""
    tables = solver.tables
    fewest = tables.problem.costs.tensor_readers * tables.activation_bits.min(1)  # (T, L)
    found = np.zeros((tables.layer_count + 1, len(fewest)), dtype=np.int64)
    found[:-1] = np.maximum.accumulate(fewest.T[::-1])[::-1]
    return found


def _at_options(costs: IntArray, options: IntArray) -> IntArray:
    """(…, n) what one option of each layer costs, of costs (…, n, K) and options (n,) or (…, n)."""
    wanted = np.broadcast_to(options, costs.shape[:-1])[..., None]
    found: IntArray = np.take_along_axis(costs, wanted, -1)[..., 0]
    return found


def _parts(labeling: Labeling) -> tuple[IntArray, IntArray, IntArray]:
    return labeling.sparsity, labeling.weight_bits, labeling.activation_bits
