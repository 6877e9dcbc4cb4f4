"""From a relaxed solution to the edge of the budget, by single changes.

A single change gives one layer other bits, or one owner another sparsity. Relaxed solutions lie on the convex
hull of cost and loss and so leave part of the budget unused. `Filler.fill` spends it as one fills a knapsack:
again and again the change that saves most loss per share of what is left. `Filler.trim` goes the other way,
from labels beyond the
limits: again and again the change that adds least loss per excess removed. Costs are exact here, rounding
    included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from autocompress_envs.problem import BoolArray, FloatArray, IntArray
from autocompress_envs.problem.tables import ADDITIVE, Tables, is_within
from autocompress_envs.solver.dependencies import pair_widths
from autocompress_envs.solver.lagrangian import Choice, Errors, Lagrangian, labeling_of

MEMORY_CHUNK = 16  # number of moves whose peak memory is computed at a time, best first
SMALLEST_GAIN = 1e-12  # relative to the total loss: below it, rounding could go round in circles
LEAST_SHARE = 1e-9  # share of the budget that a move costs at least, so that free moves have a finite gain per cost


@dataclass(frozen=True)
class _Moves:
    """n single changes of a choice.

    Attributes:
        layer: (n,) layers that change.
        index: (n,) their new index: of the sparsity, or of the flat bits.
        is_sparsity: (n,) whether the sparsity changes; otherwise the bits do.
        gain: (n,) decrease of the weighted expected loss.
        cost: (K, n) increase of each of the K limited additive resources.
    """

    layer: IntArray
    index: IntArray
    is_sparsity: BoolArray
    gain: FloatArray
    cost: FloatArray

    def where(self, mask: BoolArray) -> _Moves:
        """The moves at which `mask` (n,) is true."""
        return _Moves(
            self.layer[mask], self.index[mask], self.is_sparsity[mask], self.gain[mask], self.cost[:, mask]
        )  # fmt: skip

    def applied(self, chosen: int, choice: Choice) -> Choice:
        """A copy of the choice after one of the moves."""
        sparsity, bits = choice.sparsity.copy(), choice.bits.copy()
        target = sparsity if self.is_sparsity[chosen] else bits
        target[self.layer[chosen]] = self.index[chosen]
        return Choice(sparsity, bits)


class Filler:
    """Greedy single changes within exact limits.

    An example: two layers cost 1,600 bit operations at 2 bits and 3,200 at 4 bits. Going from 2 to 4 bits
    saves 0.72 nats at the first one and 0.36 at the second one. The limit is 5,000. From (2, 2) bits there is
    room for one change: the first layer's, which saves more. From (4, 4) bits 1,400 have to go: the second
    layer's change loses less.

    >>> from autocompress_envs.solver.lagrangian import weighted_errors
    >>> from autocompress_envs.testing import LayerShape, Menu, build_problem
    >>> shape = LayerShape("linear", reads=(), writes=None, columns=1, fixed=(10, 10), positions=1)
    >>> losses = [np.array([[[0.8], [0.08]]]), np.array([[[0.4], [0.04]]])]  # (1, weight bits, activation bits)
    >>> problem = build_problem([shape, shape], np.zeros(0, dtype=np.int64), Menu((0.0,), (2, 4), (8,)), losses)
    >>> tables = Tables(problem)
    >>> errors = weighted_errors(tables, np.ones(2), np.ones(2))
    >>> filler = Filler(tables, Lagrangian(tables), {"bitops": 5_000})
    >>> filler.fill(errors, Choice(np.array([0, 0]), np.array([0, 0]))).bits.tolist()  # indices into (2, 4)
    [1, 0]
    >>> filler.trim(errors, Choice(np.array([0, 0]), np.array([1, 1]))).bits.tolist()
    [1, 0]

    Args:
        tables: padded menus of the problem.
        lagrangian: holder of the flat bits and of the pairs of layers and deciders.
        limits: absolute upper bounds by resource.
    """

    def __init__(self, tables: Tables, lagrangian: Lagrangian, limits: Mapping[str, int]) -> None:
        self._tables, self._lagrangian, self._limits = tables, lagrangian, dict(limits)
        self._additive = [name for name in ADDITIVE if name in limits]
        self._rows = np.arange(tables.layer_count)
        self._bits_moves = np.indices((len(lagrangian.bits), tables.layer_count)).reshape(2, -1)  # (index, layer)
        self._sparsity_moves = np.argwhere(np.arange(tables.kept.shape[1]) < tables.counts[:, :1]).T  # (layer, index)

    def fill(self, errors: Errors, choice: Choice) -> Choice:
        """A choice within the limits of no more weighted expected loss than the given one.

        Args:
            errors: weighted expected losses of all options.
            choice: labels that meet the limits.
        """
        smallest = SMALLEST_GAIN * max(errors.total(self._tables, choice), SMALLEST_GAIN)
        limits = np.array([self._limits[name] for name in self._additive])  # (K,)
        spent = self._spent(choice)  # (K,)
        while True:
            moves = self._moves(errors, choice, smallest)
            best = self._best(moves, limits - spent, choice)
            if best is None:
                return choice
            choice, spent = moves.applied(best, choice), spent + moves.cost[:, best]

    def trim(self, errors: Errors, choice: Choice) -> Choice | None:
        """A choice within the limits, from one beyond them.

        The excess is the sum over resources of max(spent / limit - 1, 0). Every step takes the change of
        least added loss per excess removed.

        Args:
            errors: weighted expected losses of all options.
            choice: any labels; those within the limits come back as they are.

        Returns:
            The choice, or None where single changes lead nowhere. Peak memory is no part of the excess: it is
            checked at the end only.
        """
        limits = np.array([self._limits[name] for name in self._additive], dtype=np.float64)  # (K,)
        spent = self._spent(choice)  # (K,)
        while (spent > limits).any():
            moves = self._moves(errors, choice, -np.inf)
            excess = np.maximum(spent / limits - 1.0, 0.0).sum()
            excess_after = np.maximum((spent[:, None] + moves.cost) / limits[:, None] - 1.0, 0.0).sum(0)  # (n,)
            relief = excess - excess_after
            useful = np.flatnonzero(relief > SMALLEST_GAIN)
            if not len(useful):
                return None
            added_loss = -moves.gain[useful]
            best = int(useful[np.argmin(added_loss / relief[useful])])
            choice, spent = moves.applied(best, choice), spent + moves.cost[:, best]
        labeling = labeling_of(self._tables, choice)
        return choice if is_within(self._tables.resources(labeling, self._limits), self._limits) else None

    def _spent(self, choice: Choice) -> FloatArray:
        """(K,) exact amounts of the limited additive resources; whole numbers below 2**53."""
        amounts = self._tables.resources(labeling_of(self._tables, choice), self._additive)
        return np.array([float(amounts[name]) for name in self._additive])

    def _best(self, moves: _Moves, slack: FloatArray, choice: Choice) -> int | None:
        """The move that fits and has the most gain per share of the slack; None where none fits.

        The share of a move is the largest over resources of cost / slack. Peak memory is costly to compute:
        only the moves of most gain per share are checked, 16 at a time, until one fits.

        Args:
            moves: all moves with a gain.
            slack: (K,) what is left of the limits.
            choice: labels before the move.
        """
        fits = np.flatnonzero((moves.cost <= slack[:, None]).all(0))
        if not len(fits):
            return None
        share = (moves.cost[:, fits] / np.maximum(slack, 1.0)[:, None]).max(0, initial=LEAST_SHARE)
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
        """(n,) bytes of peak memory after each of the n chosen moves alone."""
        sparsity = np.repeat(choice.sparsity[None], len(chosen), axis=0)  # (n, L)
        bits = np.repeat(choice.bits[None], len(chosen), axis=0)
        rows, is_sparsity = np.arange(len(chosen)), moves.is_sparsity[chosen]
        layer, index = moves.layer[chosen], moves.index[chosen]
        sparsity[rows[is_sparsity], layer[is_sparsity]] = index[is_sparsity]
        bits[rows[~is_sparsity], layer[~is_sparsity]] = index[~is_sparsity]
        activations, ranks = self._lagrangian.activations[bits, self._rows], self._lagrangian.ranks[bits, self._rows]
        return self._tables.problem.costs.memory(self._tables.kept_channels(sparsity), activations, ranks)

    def _moves(self, errors: Errors, choice: Choice, smallest: float) -> _Moves:
        """All single changes whose gain is above `smallest` nats; minus infinity gives all that there are."""
        bits_gain, bits_cost = self._of_bits(errors, choice)
        sparsity_gain, sparsity_cost = self._of_sparsity(errors, choice)
        (index, layer), (owner, option) = self._bits_moves, self._sparsity_moves
        flat_bits_cost = bits_cost.reshape(len(bits_cost), bits_gain.size)
        gain = np.concatenate([bits_gain.ravel(), sparsity_gain[owner, option]])  # (n,)
        moves = _Moves(
            layer=np.concatenate([layer, owner]),
            index=np.concatenate([index, option]),
            is_sparsity=np.arange(len(gain)) >= bits_gain.size,
            gain=gain,
            cost=np.concatenate([flat_bits_cost, sparsity_cost[:, owner, option]], axis=1),
        )
        return moves.where(gain > smallest)

    def _of_bits(self, errors: Errors, choice: Choice) -> tuple[FloatArray, FloatArray]:
        """Gains (B*A, L) and costs (K, B*A, L) of other bits at one layer."""
        tables, lagrangian = self._tables, self._lagrangian
        fan_in, out = tables.problem.costs.widths(tables.kept_channels(choice.sparsity))  # (L,)
        own = tables.sparsities[self._rows, choice.sparsity]
        options = (lagrangian.bits, lagrangian.activations, own, lagrangian.ranks)
        amounts = self._amounts(self._rows, fan_in, out, *options)
        losses = errors.table[:, self._rows, choice.sparsity[tables.source]]  # (B*A, L)
        loss_now = losses[choice.bits, self._rows]  # (L,)
        amounts_now = amounts[:, choice.bits, self._rows]  # (K, L)
        return loss_now - losses, amounts - amounts_now[:, None]

    def _of_sparsity(self, errors: Errors, choice: Choice) -> tuple[FloatArray, FloatArray]:
        """Gains (L, S) and costs (K, L, S) of another sparsity at one owner, summed over its layers."""
        tables, lagrangian, pairs = self._tables, self._lagrangian, self._lagrangian.pairs
        fan_in, out = pair_widths(tables, pairs, choice.sparsity)  # (n, S)
        bits = choice.bits[pairs.layer]  # (n,)
        weight_bits = lagrangian.bits[bits, pairs.layer][:, None]
        activations = lagrangian.activations[bits, pairs.layer][:, None]
        own, ranks = tables.sparsities[pairs.decider], lagrangian.ranks[bits, pairs.layer][:, None]
        amounts = self._amounts(pairs.layer[:, None], fan_in, out, weight_bits, activations, own, ranks)
        is_source = (tables.source[pairs.layer] == pairs.decider)[:, None]
        losses = errors.table[bits[:, None], pairs.layer[:, None], np.arange(fan_in.shape[1])] * is_source  # (n, S)
        total, cost = errors.owner.copy(), np.zeros((len(self._additive), *errors.owner.shape))
        np.add.at(total, pairs.decider, losses)
        for added, amount in zip(cost, amounts, strict=True):
            np.add.at(added, pairs.decider, amount)
        if "size" in self._additive:
            cost[self._additive.index("size")] += lagrangian.group_bytes
        total_now = total[self._rows, choice.sparsity]  # (L,)
        cost_now = cost[:, self._rows, choice.sparsity]  # (K, L)
        return total_now[:, None] - total, cost - cost_now[..., None]

    def _amounts(
        self,
        layer: IntArray,
        fan_in: IntArray,
        out: IntArray,
        weight_bits: IntArray,
        activation_bits: IntArray,
        sparsity: FloatArray,
        rank: IntArray,
    ) -> FloatArray:
        """(K, ...) amounts of the limited additive resources; all arguments broadcast."""
        costs = self._tables.problem.costs
        amounts = costs.of_layers(layer, fan_in, out, weight_bits, activation_bits, sparsity, rank)
        shape = np.broadcast_shapes(fan_in.shape, weight_bits.shape)
        stacked = [np.broadcast_to(amounts[name], shape) for name in self._additive]
        return np.array(stacked, dtype=np.float64).reshape(len(stacked), *shape)
