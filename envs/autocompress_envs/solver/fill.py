"""From a relaxed solution to the edge of the budget, by single changes: of most error per cost up, of least down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from autocompress_envs.problem import BoolArray, FloatArray, IntArray, layer_resources
from autocompress_envs.problem.tables import ADDITIVE, Tables, is_within
from autocompress_envs.solver.dependencies import pair_widths
from autocompress_envs.solver.lagrangian import Choice, Errors, Lagrangian, labeling_of

MEMORY_CHUNK = 16  # moves whose peak memory is computed at a time, best first
SMALLEST_GAIN = 1e-12  # relative to the total error: below it, rounding could go round in circles


@dataclass(frozen=True)
class _Moves:
    """n single changes: which layer, to which index, of sparsity or of bits."""

    layer: IntArray
    index: IntArray
    is_sparsity: BoolArray
    gain: FloatArray  # decrease of the weighted error
    cost: FloatArray  # (K, n) increase of every limited resource


class Filler:
    """Greedy single changes within exact limits."""

    def __init__(self, tables: Tables, lagrangian: Lagrangian, limits: Mapping[str, int]) -> None:
        self._tables, self._lagrangian, self._limits = tables, lagrangian, dict(limits)
        self._additive = [name for name in ADDITIVE if name in limits]
        self._rows = np.arange(tables.layer_count)
        self._bits_moves = np.indices((len(lagrangian.bits), tables.layer_count)).reshape(2, -1)  # (index, layer)
        self._sparsity_moves = np.argwhere(np.arange(tables.kept.shape[1]) < tables.counts[:, :1]).T  # (layer, index)

    def fill(self, errors: Errors, choice: Choice) -> Choice:
        """Labels of no more weighted error than `choice`, which meets the limits, and that meet them too."""
        smallest = SMALLEST_GAIN * max(errors.total(self._tables, choice), SMALLEST_GAIN)
        spent = self._spent(choice)
        while True:
            moves = self._moves(errors, choice, smallest)
            slack = np.array([self._limits[name] for name in self._additive]) - spent
            best = self._best(moves, slack, choice)
            if best is None:
                return choice
            choice = _moved(choice, moves, best)
            spent = spent + moves.cost[:, best]

    def trim(self, errors: Errors, choice: Choice) -> Choice | None:
        """Labels within the limits, from labels beyond them: single changes of least error per excess removed.

        None where that leads nowhere (a peak memory beyond its limit is not looked at before the end).
        """
        spent = self._spent(choice)
        limits = np.array([self._limits[name] for name in self._additive], dtype=np.float64)
        while (spent > limits).any():
            moves = self._moves(errors, choice, -np.inf)
            after = np.maximum((spent[:, None] + moves.cost) / limits[:, None] - 1.0, 0.0).sum(0)
            relief = np.maximum(spent / limits - 1.0, 0.0).sum() - after
            useful = np.flatnonzero(relief > SMALLEST_GAIN)
            if not len(useful):
                return None
            best = int(useful[np.argmin(-moves.gain[useful] / relief[useful])])
            choice, spent = _moved(choice, moves, best), spent + moves.cost[:, best]
        labeling = labeling_of(self._tables, choice)
        return choice if is_within(self._tables.resources(labeling, self._limits), self._limits) else None

    def _spent(self, choice: Choice) -> FloatArray:
        """(K,) exact amounts of the limited additive resources; whole numbers below 2**53."""
        amounts = self._tables.resources(labeling_of(self._tables, choice), self._additive)
        return np.array([float(amounts[name]) for name in self._additive])

    def _best(self, moves: _Moves, slack: FloatArray, choice: Choice) -> int | None:
        """The move of most gain per share of the slack among those that fit."""
        fits = np.flatnonzero((moves.cost <= slack[:, None]).all(0))
        if not len(fits):
            return None
        share = (moves.cost[:, fits] / np.maximum(slack, 1.0)[:, None]).max(0, initial=1e-9)
        order = fits[np.argsort(-moves.gain[fits] / share, kind="stable")]
        if "memory" not in self._limits:
            return int(order[0])
        for start in range(0, len(order), MEMORY_CHUNK):
            chunk = order[start : start + MEMORY_CHUNK]
            fitting = chunk[self._memory(moves, chunk, choice) <= self._limits["memory"]]
            if len(fitting):
                return int(fitting[0])
        return None

    def _memory(self, moves: _Moves, chosen: IntArray, choice: Choice) -> IntArray:
        """(n,) peak memory after each of the chosen moves alone."""
        sparsity = np.repeat(choice.sparsity[None], len(chosen), axis=0)
        bits = np.repeat(choice.bits[None], len(chosen), axis=0)
        rows, is_sparsity = np.arange(len(chosen)), moves.is_sparsity[chosen]
        layer, index = moves.layer[chosen], moves.index[chosen]
        sparsity[rows[is_sparsity], layer[is_sparsity]] = index[is_sparsity]
        bits[rows[~is_sparsity], layer[~is_sparsity]] = index[~is_sparsity]
        activations = self._lagrangian.activations[bits, self._rows]
        return self._tables.problem.costs.memory(self._tables.kept_channels(sparsity), activations)

    def _moves(self, errors: Errors, choice: Choice, smallest: float) -> _Moves:
        """All single changes that lower the error by more than `smallest` (negative: that raise it by less)."""
        bits_gain, bits_cost = self._of_bits(errors, choice)
        sparsity_gain, sparsity_cost = self._of_sparsity(errors, choice)
        (index, layer), (owner, option) = self._bits_moves, self._sparsity_moves
        gain = np.concatenate([bits_gain.ravel(), sparsity_gain[owner, option]])
        better = gain > smallest
        cost = np.concatenate(
            [bits_cost.reshape(len(bits_cost), bits_gain.size), sparsity_cost[:, owner, option]], axis=1
        )
        return _Moves(
            np.concatenate([layer, owner])[better],
            np.concatenate([index, option])[better],
            (np.arange(len(gain)) >= bits_gain.size)[better],
            gain[better],
            cost[:, better],
        )

    def _of_bits(self, errors: Errors, choice: Choice) -> tuple[FloatArray, FloatArray]:
        """Gains (B*A, L) and costs (K, B*A, L) of other bits for one layer."""
        tables, lagrangian = self._tables, self._lagrangian
        fan_in, out = tables.problem.costs.widths(tables.kept_channels(choice.sparsity))
        own = tables.sparsities[self._rows, choice.sparsity]
        amounts = self._amounts(self._rows, fan_in, out, lagrangian.bits, lagrangian.activations, own)
        error = errors.table[:, self._rows, choice.sparsity[tables.source]]
        now = error[choice.bits, self._rows], amounts[:, choice.bits, self._rows]
        return now[0] - error, amounts - now[1][:, None]

    def _of_sparsity(self, errors: Errors, choice: Choice) -> tuple[FloatArray, FloatArray]:
        """Gains (L, S) and costs (K, L, S) of another sparsity for one owner, over all layers that it touches."""
        tables, lagrangian, pairs = self._tables, self._lagrangian, self._lagrangian.pairs
        fan_in, out = pair_widths(tables, pairs, choice.sparsity)
        bits = choice.bits[pairs.layer]
        weight_bits = lagrangian.bits[bits, pairs.layer][:, None]
        activations = lagrangian.activations[bits, pairs.layer][:, None]
        amounts = self._amounts(
            pairs.layer[:, None], fan_in, out, weight_bits, activations, tables.sparsities[pairs.decider]
        )
        is_source = (tables.source[pairs.layer] == pairs.decider)[:, None]
        error = errors.table[bits[:, None], pairs.layer[:, None], np.arange(fan_in.shape[1])] * is_source
        total, cost = errors.owner.copy(), np.zeros((len(self._additive), *errors.owner.shape))
        np.add.at(total, pairs.decider, error)
        for added, amount in zip(cost, amounts, strict=True):
            np.add.at(added, pairs.decider, amount)
        if "size" in self._additive:
            cost[self._additive.index("size")] += lagrangian.group_bytes
        now = total[self._rows, choice.sparsity], cost[:, self._rows, choice.sparsity]
        return now[0][:, None] - total, cost - now[1][..., None]

    def _amounts(
        self,
        layer: IntArray,
        fan_in: IntArray,
        out: IntArray,
        weight_bits: IntArray,
        activation_bits: IntArray,
        sparsity: FloatArray,
    ) -> FloatArray:
        """(K, ...) of the limited additive resources."""
        costs = self._tables.problem.costs
        amounts = layer_resources(
            fan_in,
            out,
            costs.positions[layer],
            costs.has_bias[layer],
            weight_bits,
            activation_bits,
            sparsity,
            costs.granularity,
        )
        shape = np.broadcast_shapes(fan_in.shape, weight_bits.shape)
        stacked = [np.broadcast_to(amounts[name], shape) for name in self._additive]
        return np.array(stacked, dtype=np.float64).reshape(len(stacked), *shape)


def _moved(choice: Choice, moves: _Moves, chosen: int) -> Choice:
    sparsity, bits = choice.sparsity.copy(), choice.bits.copy()
    target = sparsity if moves.is_sparsity[chosen] else bits
    target[moves.layer[chosen]] = moves.index[chosen]
    return Choice(sparsity, bits)
