"""The layer-error problem as a mixed-integer linear program: columns, rows, and the way back to a plan.

There is one binary column for every sparsity of every layer that has a choice, and exactly one of a layer's
is 1. A layer's cost also depends on the sparsities of the layers before it. So there is one more binary
column for every *joint option* of a layer: one choice of its bits together with all sparsities that its cost
depends on (its *deciders*).

Let y[l, i] be the column of sparsity i of layer l, and x[m, o] that of joint option o of layer m. The program is

    minimise    sum of error[l, i] y[l, i] + sum of error[m, o] x[m, o]
    such that   sum over i of y[l, i] = 1                  for every layer l with a choice,
                sum over o with i of x[m, o] = y[l, i]     for every layer m, its deciders l, and their sparsities i,
                sum of cost[l, i] y[l, i] + sum of cost[m, o] x[m, o] <= limit     for every additive resource.

So every additive resource is linear and exact, byte rounding included. Peak memory is linear through one
continuous column a tensor, its bytes, which are at least what every reader's joint option makes of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from autocompress.errors import InputError
from autocompress_envs.problem import BoolArray, FloatArray, IntArray, Labeling
from autocompress_envs.problem.tables import ADDITIVE, Tables
from autocompress_envs.solver import Solver

MOST_OPTIONS = 20_000  # joint options of one layer; with more, the program is too large for a solver
ROW_SCALE = 100.0  # a row's limit after scaling: HiGHS lets a row be off by 1e-6, which is then 1e-8 of the limit
ROUNDING = 1e-9  # relative tolerance where options worse than a known plan are left out


@dataclass(frozen=True)
class JointOptions:
    """n joint options of one layer: its bits, together with the sparsities of its D deciders.

    Where memory is limited, also those of one tensor that no layer reads: its deciders' sparsities alone.

    Attributes:
        layer: index of the layer, or None for a tensor.
        deciders: indices of the D layers that own the sparsities.
        sparsity: (n, D) indices of the deciders' sparsities.
        weight_bits: (n,) indices into the layer's menu of weight bits.
        activation_bits: (n,) indices into the layer's menu of activation bits.
        error: (n,) layer errors in nats.
        costs: (n,) amounts, by limited additive resource.
        memory: (n,) bytes that the layer makes of a tensor that it reads, by tensor; empty where memory is
            not limited.
    """

    layer: int | None
    deciders: tuple[int, ...]
    sparsity: IntArray
    weight_bits: IntArray
    activation_bits: IntArray
    error: FloatArray
    costs: dict[str, FloatArray]
    memory: dict[int, IntArray]

    def only(self, rows: BoolArray) -> JointOptions:
        """The joint options where `rows` (n,) is true."""
        return JointOptions(
            self.layer,
            self.deciders,
            self.sparsity[rows],
            self.weight_bits[rows],
            self.activation_bits[rows],
            self.error[rows],
            {name: amount[rows] for name, amount in self.costs.items()},
            {tensor: amount[rows] for tensor, amount in self.memory.items()},
        )


@dataclass(frozen=True)
class Program:
    """Minimise `objective` @ x with `low` <= `matrix` @ x <= `high`, x >= 0, and `integral` columns 0 or 1.

    Attributes:
        objective: (columns,) layer errors, scaled so that a known plan has 1,000.
        integral: (columns,) whether a column is binary; else it is the bytes of a tensor, scaled like
            memory's limit.
        matrix: (rows, columns) sparse array of the constraints.
        low: (rows,) lower bounds.
        high: (rows,) upper bounds.
        block_start: first column of every block of joint options.
        blocks: the joint options that the columns stand for, one block for every layer, and for tensors that
            none reads.
    """

    objective: FloatArray
    integral: BoolArray
    matrix: Any  # scipy.sparse.csr_array
    low: FloatArray
    high: FloatArray
    block_start: list[int]
    blocks: list[JointOptions]

    def labeling(self, solution: FloatArray, layers: int) -> Labeling:
        """The plan that a solution (columns,) stands for, of a network with that many layers."""
        chosen = np.zeros((3, layers), dtype=np.int64)
        for start, options in zip(self.block_start, self.blocks, strict=True):
            best = int(np.argmax(solution[start : start + len(options.error)]))
            chosen[0, list(options.deciders)] = options.sparsity[best]
            if options.layer is not None:
                chosen[1:, options.layer] = options.weight_bits[best], options.activation_bits[best]
        return Labeling(*chosen)


def build_program(solver: Solver, most_error: float) -> Program:
    """The program of the solver's problem and limits.

    Args:
        solver: the problem and its limits.
        most_error: total layer error of a known plan in nats, above 0. Joint options that are worse alone are
            left out, and the objective is scaled by it.

    Raises:
        InputError: a layer's cost depends on too many sparsities together.
    """
    return _Builder(solver, most_error).program()


class _Builder:
    """Numbers the columns and collects the rows.

    The columns are, in this order: the deciders' sparsities, layer by layer; the joint options, block by
    block; the tensors.
    """

    def __init__(self, solver: Solver, most_error: float) -> None:
        tables = solver.tables
        self._solver, self._tables, self._most_error = solver, tables, most_error
        self._deciders = [int(layer) for layer in np.flatnonzero(tables.counts[:, 0] > 1)]
        self._blocks = joint_options(solver, most_error)
        counts = [int(tables.counts[layer, 0]) for layer in self._deciders]
        starts = np.cumsum([0, *counts, *(len(options.error) for options in self._blocks)]).tolist()
        self._sparsity_start = dict(zip(self._deciders, starts, strict=False))
        self._block_start = starts[len(counts) : -1]
        tensors = sorted({tensor for options in self._blocks for tensor in options.memory})
        self._tensor_column = {tensor: starts[-1] + place for place, tensor in enumerate(tensors)}
        self._binaries, self._columns = starts[-1], starts[-1] + len(tensors)
        self._rows: list[tuple[IntArray, FloatArray]] = []  # columns and their values, row by row
        self._bounds: list[tuple[float, float]] = []  # lowest and highest sum, row by row

    def program(self) -> Program:
        """All rows and columns as one program."""
        from scipy.sparse import csr_array

        self._choose_one()
        self._limit_additive()
        self._limit_memory()
        lengths = [len(columns) for columns, _ in self._rows]
        columns = np.concatenate([columns for columns, _ in self._rows])
        values = np.concatenate([values for _, values in self._rows])
        rows = np.repeat(np.arange(len(lengths)), lengths)
        matrix = csr_array((values, (rows, columns)), shape=(len(lengths), self._columns))
        low, high = np.array(self._bounds).T
        integral = np.arange(self._columns) < self._binaries
        return Program(self._objective(), integral, matrix, low, high, self._block_start, self._blocks)

    def _add(self, columns: IntArray, values: FloatArray, low: float, high: float) -> None:
        """Add the row `low` <= sum of `values` (k,) times the `columns` (k,) <= `high`."""
        self._rows.append((columns, values))
        self._bounds.append((low, high))

    def _sparsity_columns(self, layer: int) -> IntArray:
        """(number of sparsities,) the columns of a decider's sparsities."""
        columns: IntArray = self._sparsity_start[layer] + np.arange(self._tables.counts[layer, 0])
        return columns

    def _option_columns(self, block: int) -> IntArray:
        """(n,) the columns of a block's joint options."""
        columns: IntArray = self._block_start[block] + np.arange(len(self._blocks[block].error))
        return columns

    def _objective(self) -> FloatArray:
        """(columns,) layer errors, scaled by the known plan's.

        A layer's error stands at its joint options. What an owner's sparsity costs at layers that read
        several groups stands at the sparsity, for these errors add up over groups.
        """
        objective = np.zeros(self._columns)
        for layer in self._deciders:
            columns = self._sparsity_columns(layer)
            objective[columns] = self._tables.extra_errors[layer, : len(columns)]
        for block, options in enumerate(self._blocks):
            objective[self._option_columns(block)] = options.error
        return objective * (1e3 / self._most_error)  # HiGHS stops at an absolute gap of 1e-6 as well

    def _choose_one(self) -> None:
        """One sparsity for every decider, and joint options that agree with it; else one joint option."""
        for layer in self._deciders:
            columns = self._sparsity_columns(layer)
            self._add(columns, np.ones(len(columns)), 1.0, 1.0)
        for block, options in enumerate(self._blocks):
            columns = self._option_columns(block)
            if not options.deciders:
                self._add(columns, np.ones(len(columns)), 1.0, 1.0)
            for axis, decider in enumerate(options.deciders):
                for index, column in enumerate(self._sparsity_columns(decider)):
                    with_it = columns[options.sparsity[:, axis] == index]
                    self._add(np.append(with_it, column), np.append(np.ones(len(with_it)), -1.0), 0.0, 0.0)

    def _limit_additive(self) -> None:
        """One row for every limited additive resource."""
        for name, limit in self._solver.limits.items():
            if name not in ADDITIVE:
                continue
            of_layers = [(block, options) for block, options in enumerate(self._blocks) if options.layer is not None]
            columns = [self._option_columns(block) for block, _ in of_layers]
            amounts = [options.costs[name] for _, options in of_layers]
            if name == "size":
                columns += [self._sparsity_columns(layer) for layer in self._deciders]
                amounts += [self._group_bytes(layer) for layer in self._deciders]
            limit -= self._fixed(name)
            scale = ROW_SCALE / self._solver.limits[name]
            self._add(np.concatenate(columns), np.concatenate(amounts) * scale, -math.inf, limit * scale)

    def _group_bytes(self, layer: int) -> FloatArray:
        """(sparsities,) bytes beside the layers' own that each sparsity of an owner leaves."""
        return self._solver.lagrangian.group_bytes[layer, : self._tables.counts[layer, 0]]

    def _fixed(self, name: str) -> int:
        """The part of an additive resource that no layer has and no sparsity changes."""
        kept = self._tables.kept_channels(np.zeros(self._tables.layer_count, dtype=np.int64))
        fixed = int(self._tables.problem.costs.fixed(name, kept))
        deciding = sum(int(self._group_bytes(layer)[0]) for layer in self._deciders)
        return fixed - deciding if name == "size" else fixed

    def _limit_memory(self) -> None:
        """Bytes of every tensor that are enough for all readers, and that meet the limit at every moment."""
        if not self._tensor_column:
            return
        limit = self._solver.limits["memory"]
        scale = ROW_SCALE / limit  # tensor columns are counted in it too
        for block, options in enumerate(self._blocks):
            for tensor, amounts in options.memory.items():
                columns = np.append(self._option_columns(block), self._tensor_column[tensor])
                self._add(columns, np.append(amounts * scale, -1.0), -math.inf, 0.0)
        for moment in self._tables.problem.costs.alive:
            columns = np.array([self._tensor_column[int(tensor)] for tensor in np.flatnonzero(moment)], dtype=np.int64)
            self._add(columns, np.ones(len(columns)), -math.inf, limit * scale)


def joint_options(solver: Solver, most_error: float) -> list[JointOptions]:
    """The joint options of every layer and, where memory is limited, of every tensor that no layer reads.

    Options of more error than `most_error` are left out. So are those than which another option with the same
    sparsities is no worse in error and in every limited resource.

    Args:
        solver: the problem and its limits.
        most_error: total layer error of a known plan in nats.

    Raises:
        InputError: a layer has more than `MOST_OPTIONS`.
    """
    tables, costs = solver.tables, solver.tables.problem.costs
    tensors = np.arange(len(costs.tensor_const)) if "memory" in solver.limits else np.arange(0)
    blocks = []
    for layer in range(tables.layer_count):
        reads = [int(tensor) for tensor in tensors if costs.tensor_readers[tensor, layer]]
        options = _layer_options(solver, layer, reads)
        is_kept = _not_dominated(options) & (options.error <= most_error * (1 + ROUNDING))
        blocks.append(options.only(is_kept))
    unread = [int(tensor) for tensor in tensors if not costs.tensor_readers[tensor].any()]
    return blocks + [_tensor_options(tables, tensor) for tensor in unread]


def _layer_options(solver: Solver, layer: int, reads: list[int]) -> JointOptions:
    """All n = N * B * A joint options of a layer, one combination of sparsities after another.

    Args:
        solver: the problem and its limits.
        layer: index of the layer.
        reads: tensors that the layer reads, where memory is limited; else none.
    """
    tables, costs = solver.tables, solver.tables.problem.costs
    deciders = set(solver.lagrangian.deciders_of[layer]).union(*(_tensor_deciders(tables, t) for t in reads))
    ordered = tuple(sorted(deciders))
    _, weight_count, activation_count = (int(count) for count in tables.counts[layer])
    bit_count = weight_count * activation_count
    combined = _combinations(tables, ordered, bit_count, tables.problem.layers[layer].name)  # (N, D)
    shape = (len(combined), weight_count, activation_count)
    combination, weight_bits, activation_bits = np.indices(shape).reshape(3, -1)  # (n,)
    sparsity = _all_sparsities(tables, ordered, combined)  # (N, L)
    kept = tables.kept_channels(sparsity)  # (N, G)
    amounts = costs.of_layers(
        np.array(layer),
        (costs.fan_in_const[layer] + kept @ costs.fan_in_coef[layer])[combination],
        (costs.out_const[layer] + kept @ costs.out_coef[layer])[combination],
        tables.weight_bits[layer, weight_bits],
        tables.activation_bits[layer, activation_bits],
        tables.sparsities[layer, sparsity[:, layer]][combination],
        tables.ranks[layer, weight_bits],
    )
    rows = sparsity[:, tables.source[layer]][combination]
    bits = tables.activation_bits[layer, activation_bits]
    return JointOptions(
        layer,
        ordered,
        combined[combination],
        weight_bits,
        activation_bits,
        tables.errors[layer, rows, weight_bits, activation_bits],
        {name: amounts[name].astype(np.float64) for name in ADDITIVE if name in solver.limits},
        {tensor: _tensor_bytes(tables, tensor, kept[combination], bits) for tensor in reads},
    )


def _tensor_options(tables: Tables, tensor: int) -> JointOptions:
    """The joint options of a tensor that no layer reads: its deciders' sparsities, at 32 bits an element."""
    deciders = tuple(sorted(_tensor_deciders(tables, tensor)))
    combined = _combinations(tables, deciders, 1, f"tensor {tensor}")
    kept = tables.kept_channels(_all_sparsities(tables, deciders, combined))
    zeros = np.zeros(len(combined), dtype=np.int64)
    memory = {tensor: _tensor_bytes(tables, tensor, kept, zeros + 32)}
    return JointOptions(None, deciders, combined, zeros, zeros, zeros.astype(np.float64), {}, memory)


def _tensor_deciders(tables: Tables, tensor: int) -> set[int]:
    """Indices of the layers whose sparsity decides how many channels a tensor has."""
    owners = tables.owner[tables.problem.costs.tensor_coef[tensor] > 0]
    return {int(owner) for owner in owners if owner >= 0 and tables.counts[owner, 0] > 1}


def _tensor_bytes(tables: Tables, tensor: int, kept: IntArray, bits: IntArray) -> IntArray:
    """(n,) bytes of a tensor, rounded up, for `kept` (n, G) channels of all groups and `bits` (n,) an element."""
    costs = tables.problem.costs
    amounts: IntArray = -(-(costs.tensor_const[tensor] + kept @ costs.tensor_coef[tensor]) * bits // 8)
    return amounts


def _combinations(tables: Tables, deciders: tuple[int, ...], bits: int, name: str) -> IntArray:
    """(N, D) all combinations of the deciders' sparsity indices; one of length 0 where there are no deciders.

    Args:
        tables: the problem's numbers as arrays.
        deciders: indices of the D layers that own the sparsities.
        bits: number of choices of bits that go with every combination.
        name: name of the layer or tensor, for the error.

    Raises:
        InputError: the combinations, times `bits`, are more than `MOST_OPTIONS`.
    """
    counts = [int(tables.counts[decider, 0]) for decider in deciders]
    options = math.prod(counts) * bits
    if options > MOST_OPTIONS:
        raise InputError(
            f"`method` can be exact only where a layer has at most {MOST_OPTIONS:,} combinations of its bits and of "
            f"the sparsities that its cost depends on, got {options:,} of {len(deciders)} sparsities at {name}; choose "
            "the method solver or local-measured, or shorter menus."
        )
    return np.indices(counts).reshape(len(counts), -1).T if counts else np.zeros((1, 0), dtype=np.int64)


def _all_sparsities(tables: Tables, deciders: tuple[int, ...], combined: IntArray) -> IntArray:
    """(N, L) sparsity indices of all layers: `combined` (N, D) at the deciders, 0 elsewhere."""
    sparsity = np.zeros((len(combined), tables.layer_count), dtype=np.int64)
    sparsity[:, list(deciders)] = combined
    return sparsity


def _not_dominated(options: JointOptions) -> BoolArray:
    """(n,) whether no option with the same sparsities has at most the error and at most every cost.

    Of options that are equal in all of these, the first is kept.
    """
    values = [options.error, *options.costs.values(), *options.memory.values()]
    combinations = len({tuple(row) for row in options.sparsity.tolist()})
    amounts = np.stack(values).astype(np.float64).reshape(len(values), combinations, -1)  # (K, N, bits)
    shape = (combinations, amounts.shape[2], amounts.shape[2])  # (N, bits, bits): the first option, the second
    is_no_worse, is_equal = np.ones(shape, dtype=bool), np.ones(shape, dtype=bool)  # the first than the second
    for amount in amounts:
        np.logical_and(is_no_worse, amount[:, :, None] <= amount[:, None, :], out=is_no_worse)
        np.logical_and(is_equal, amount[:, :, None] == amount[:, None, :], out=is_equal)
    is_earlier = np.triu(np.ones(shape[1:], dtype=bool), 1)
    dominates = is_no_worse & (~is_equal | is_earlier)
    is_dominated = np.asarray(dominates.any(axis=1))  # (N, bits)
    return ~is_dominated.ravel()
