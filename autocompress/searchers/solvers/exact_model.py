"""The layer-error problem as a mixed-integer linear program: columns, rows, and the way back to a plan.

One binary column for every (layer, own sparsity) and one for every cell of a layer: a choice of its bits together with
all the sparsities that its cost depends on. Exactly one sparsity a layer; the cells of a layer with a given sparsity
sum to the column of that sparsity. So every additive resource is linear and exact, byte rounding included. Peak memory
is linear through one continuous column a tensor, at least what every reader's cell makes of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from autocompress.errors import InputError
from autocompress_envs.problem import BoolArray, FloatArray, IntArray, Labeling, layer_resources
from autocompress_envs.problem.tables import ADDITIVE, Tables
from autocompress_envs.solver import Solver

MOST_CELLS = 20_000  # of one layer: beyond it the program is too large for a solver
ROW_SCALE = 100.0  # what a limit becomes: HiGHS lets a row be off by 1e-6, which is then 1e-8 of the limit
ROUNDING = 1e-9  # relative tolerance where cells worse than a known plan are left out


@dataclass(frozen=True)
class Cells:
    """n choices of one layer's bits and of the D sparsities that it depends on; or of one tensor that none reads.

    Attributes:
        layer: index of the layer, or None for a tensor.
        deciders: the D layers that own those sparsities.
        sparsity: (n, D) their indices. weight_bits, activation_bits: (n,) indices into the layer's menus.
        error: (n,) nats. costs: (n,) by limited additive resource. memory: (n,) bytes by tensor.
    """

    layer: int | None
    deciders: tuple[int, ...]
    sparsity: IntArray
    weight_bits: IntArray
    activation_bits: IntArray
    error: FloatArray
    costs: dict[str, FloatArray]
    memory: dict[int, IntArray]

    def only(self, rows: BoolArray) -> Cells:
        """The cells where `rows` (n,) is true."""
        return Cells(
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
    """Minimise `objective` @ x with `low` <= `matrix` @ x <= `high` and x >= 0; `integral` columns are 0 or 1.

    Attributes:
        cells_start: first column of every block. blocks: the cells that these columns stand for.
    """

    objective: FloatArray
    integral: BoolArray
    matrix: Any  # scipy.sparse.csr_array
    low: FloatArray
    high: FloatArray
    cells_start: list[int]
    blocks: list[Cells]

    def labeling(self, solution: FloatArray, layers: int) -> Labeling:
        """The plan of a solution."""
        chosen = np.zeros((3, layers), dtype=np.int64)
        for start, cells in zip(self.cells_start, self.blocks, strict=True):
            best = int(np.argmax(solution[start : start + len(cells.error)]))
            chosen[0, list(cells.deciders)] = cells.sparsity[best]
            if cells.layer is not None:
                chosen[1:, cells.layer] = cells.weight_bits[best], cells.activation_bits[best]
        return Labeling(*chosen)


def build_program(solver: Solver, most_error: float) -> Program:
    """The program of the solver's problem and limits.

    Args:
        solver: the problem.
        most_error: nats, above 0; a plan of this error is known, so worse cells are left out. Scales the objective.

    Raises:
        InputError: a layer's cost depends on too many sparsities together.
    """
    return _Builder(solver, most_error).program()


class _Builder:
    """Numbers the columns and collects the rows."""

    def __init__(self, solver: Solver, most_error: float) -> None:
        tables = solver.tables
        self._solver, self._tables, self._most_error = solver, tables, most_error
        self._deciders = [int(layer) for layer in np.flatnonzero(tables.counts[:, 0] > 1)]
        self._blocks = layer_cells(solver, most_error)
        counts = [int(tables.counts[layer, 0]) for layer in self._deciders]
        starts = np.cumsum([0, *counts, *(len(cells.error) for cells in self._blocks)]).tolist()
        self._sparsity_start = dict(zip(self._deciders, starts, strict=False))
        self._cells_start = starts[len(counts) : -1]
        tensors = sorted({tensor for cells in self._blocks for tensor in cells.memory})
        self._tensor_column = {tensor: starts[-1] + place for place, tensor in enumerate(tensors)}
        self._binaries, self._columns = starts[-1], starts[-1] + len(tensors)
        self._rows: list[tuple[IntArray, FloatArray]] = []
        self._bounds: list[tuple[float, float]] = []

    def program(self) -> Program:
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
        return Program(self._objective(), integral, matrix, low, high, self._cells_start, self._blocks)

    def _add(self, columns: IntArray, values: FloatArray, low: float, high: float) -> None:
        self._rows.append((columns, values))
        self._bounds.append((low, high))

    def _of_sparsity(self, layer: int) -> IntArray:
        columns: IntArray = self._sparsity_start[layer] + np.arange(self._tables.counts[layer, 0])
        return columns

    def _of_cells(self, block: int) -> IntArray:
        columns: IntArray = self._cells_start[block] + np.arange(len(self._blocks[block].error))
        return columns

    def _objective(self) -> FloatArray:
        objective = np.zeros(self._columns)
        for layer in self._deciders:
            columns = self._of_sparsity(layer)
            objective[columns] = self._tables.extra_errors[layer, : len(columns)]
        for block, cells in enumerate(self._blocks):
            objective[self._of_cells(block)] = cells.error
        return objective * (1e3 / self._most_error)  # HiGHS stops at an absolute gap of 1e-6 as well

    def _choose_one(self) -> None:
        for layer in self._deciders:
            columns = self._of_sparsity(layer)
            self._add(columns, np.ones(len(columns)), 1.0, 1.0)
        for block, cells in enumerate(self._blocks):
            columns = self._of_cells(block)
            if not cells.deciders:
                self._add(columns, np.ones(len(columns)), 1.0, 1.0)
            for axis, decider in enumerate(cells.deciders):
                for index, column in enumerate(self._of_sparsity(decider)):
                    those = columns[cells.sparsity[:, axis] == index]
                    self._add(np.append(those, column), np.append(np.ones(len(those)), -1.0), 0.0, 0.0)

    def _limit_additive(self) -> None:
        for name, limit in self._solver.limits.items():
            if name not in ADDITIVE:
                continue
            columns = [self._of_cells(block) for block, cells in enumerate(self._blocks) if cells.layer is not None]
            amounts = [cells.costs[name] for cells in self._blocks if cells.layer is not None]
            if name == "size":
                columns += [self._of_sparsity(layer) for layer in self._deciders]
                amounts += [self._group_bytes(layer) for layer in self._deciders]
                limit -= self._fixed_bytes()
            scale = ROW_SCALE / self._solver.limits[name]
            self._add(np.concatenate(columns), np.concatenate(amounts) * scale, -math.inf, limit * scale)

    def _group_bytes(self, layer: int) -> FloatArray:
        """(S,) bytes beside the layers' own that an owner's sparsity leaves."""
        return self._solver.lagrangian.group_bytes[layer, : self._tables.counts[layer, 0]]

    def _fixed_bytes(self) -> int:
        """Bytes that no layer holds and no sparsity changes."""
        costs = self._tables.problem.costs
        kept = self._tables.kept_channels(np.zeros(self._tables.layer_count, dtype=np.int64))
        deciding = sum(int(self._group_bytes(layer)[0]) for layer in self._deciders)
        return costs.fixed_bytes + int(kept @ costs.fixed_bytes_coef) - deciding

    def _limit_memory(self) -> None:
        if not self._tensor_column:
            return
        limit = self._solver.limits["memory"]
        scale = ROW_SCALE / limit  # tensor columns are counted in it too
        for block, cells in enumerate(self._blocks):
            for tensor, amounts in cells.memory.items():
                columns = np.append(self._of_cells(block), self._tensor_column[tensor])
                self._add(columns, np.append(amounts * scale, -1.0), -math.inf, 0.0)
        for moment in self._tables.problem.costs.alive:
            columns = np.array([self._tensor_column[int(tensor)] for tensor in np.flatnonzero(moment)], dtype=np.int64)
            self._add(columns, np.ones(len(columns)), -math.inf, limit * scale)


def layer_cells(solver: Solver, most_error: float) -> list[Cells]:
    """The cells of every layer and, where memory is limited, of every tensor that no layer reads.

    Cells of more error than `most_error`, and such that another cell beats in error and in every limited resource,
    are left out.
    """
    tables, costs = solver.tables, solver.tables.problem.costs
    tensors = np.arange(len(costs.tensor_const)) if "memory" in solver.limits else np.arange(0)
    blocks = []
    for layer in range(tables.layer_count):
        reads = [int(tensor) for tensor in tensors if costs.tensor_readers[tensor, layer]]
        cells = _cells_of_layer(solver, layer, reads)
        blocks.append(cells.only(_worth_it(cells) & (cells.error <= most_error * (1 + ROUNDING))))
    unread = [int(tensor) for tensor in tensors if not costs.tensor_readers[tensor].any()]
    return blocks + [_cells_of_tensor(tables, tensor) for tensor in unread]


def _cells_of_layer(solver: Solver, layer: int, reads: list[int]) -> Cells:
    """All cells of a layer, those of one combination of sparsities after another."""
    tables, costs = solver.tables, solver.tables.problem.costs
    deciders = set(solver.lagrangian.deciders_of[layer]).union(*(_tensor_deciders(tables, t) for t in reads))
    ordered = tuple(sorted(deciders))
    _, weight_count, activation_count = (int(count) for count in tables.counts[layer])
    combined = _combinations(tables, ordered, weight_count * activation_count, tables.problem.layers[layer].name)
    shape = (len(combined), weight_count, activation_count)
    combination, weight_bits, activation_bits = np.indices(shape).reshape(3, -1)
    sparsity = _all_sparsities(tables, ordered, combined)  # (N, L)
    kept = tables.kept_channels(sparsity)
    amounts = layer_resources(
        (costs.fan_in_const[layer] + kept @ costs.fan_in_coef[layer])[combination],
        (costs.out_const[layer] + kept @ costs.out_coef[layer])[combination],
        costs.positions[layer],
        costs.has_bias[layer],
        tables.weight_bits[layer, weight_bits],
        tables.activation_bits[layer, activation_bits],
        tables.sparsities[layer, sparsity[:, layer]][combination],
        costs.granularity,
    )
    rows = sparsity[:, tables.source[layer]][combination]
    bits = tables.activation_bits[layer, activation_bits]
    return Cells(
        layer,
        ordered,
        combined[combination],
        weight_bits,
        activation_bits,
        tables.errors[layer, rows, weight_bits, activation_bits],
        {name: amounts[name].astype(np.float64) for name in ADDITIVE if name in solver.limits},
        {tensor: _tensor_bytes(tables, tensor, kept[combination], bits) for tensor in reads},
    )


def _cells_of_tensor(tables: Tables, tensor: int) -> Cells:
    """A tensor that no layer reads, with 32 bits."""
    deciders = tuple(sorted(_tensor_deciders(tables, tensor)))
    combined = _combinations(tables, deciders, 1, f"tensor {tensor}")
    kept = tables.kept_channels(_all_sparsities(tables, deciders, combined))
    zeros = np.zeros(len(combined), dtype=np.int64)
    memory = {tensor: _tensor_bytes(tables, tensor, kept, zeros + 32)}
    return Cells(None, deciders, combined, zeros, zeros, zeros.astype(np.float64), {}, memory)


def _tensor_deciders(tables: Tables, tensor: int) -> set[int]:
    owners = tables.owner[tables.problem.costs.tensor_coef[tensor] > 0]
    return {int(owner) for owner in owners if owner >= 0 and tables.counts[owner, 0] > 1}


def _tensor_bytes(tables: Tables, tensor: int, kept: IntArray, bits: IntArray) -> IntArray:
    """(n,) bytes for `kept` (n, G) channels and `bits` (n,) an element."""
    costs = tables.problem.costs
    amounts: IntArray = -(-(costs.tensor_const[tensor] + kept @ costs.tensor_coef[tensor]) * bits // 8)
    return amounts


def _combinations(tables: Tables, deciders: tuple[int, ...], bits: int, name: str) -> IntArray:
    """(N, D) all combinations of the deciders' sparsity indices; one of length 0 where there are none.

    Raises:
        InputError: they, times `bits`, are more than `MOST_CELLS`.
    """
    counts = [int(tables.counts[decider, 0]) for decider in deciders]
    cells = math.prod(counts) * bits
    if cells > MOST_CELLS:
        raise InputError(
            f"`method` can be exact only where a layer has at most {MOST_CELLS:,} combinations of its bits and of the "
            f"sparsities that its cost depends on, got {cells:,} of {len(deciders)} sparsities at {name}; choose the "
            "method solver or local-measured, or shorter menus."
        )
    return np.indices(counts).reshape(len(counts), -1).T if counts else np.zeros((1, 0), dtype=np.int64)


def _all_sparsities(tables: Tables, deciders: tuple[int, ...], combined: IntArray) -> IntArray:
    """(N, L) sparsity indices of all layers: `combined` (N, D) at the deciders, 0 elsewhere."""
    sparsity = np.zeros((len(combined), tables.layer_count), dtype=np.int64)
    sparsity[:, list(deciders)] = combined
    return sparsity


def _worth_it(cells: Cells) -> BoolArray:
    """(n,) whether no cell with the same sparsities has at most the error and at most every cost.

    Of equals, the first is worth it.
    """
    values = [cells.error, *cells.costs.values(), *cells.memory.values()]
    combinations = len({tuple(row) for row in cells.sparsity.tolist()})
    amounts = np.stack(values).astype(np.float64).reshape(len(values), combinations, -1)  # (K, N, bits)
    shape = (combinations, amounts.shape[2], amounts.shape[2])
    beats, equals = np.ones(shape, dtype=bool), np.ones(shape, dtype=bool)  # the first beats, or equals, the second
    for amount in amounts:
        np.logical_and(beats, amount[:, :, None] <= amount[:, None, :], out=beats)
        np.logical_and(equals, amount[:, :, None] == amount[:, None, :], out=equals)
    earlier = np.triu(np.ones(beats.shape[1:], dtype=bool), 1)
    beaten = np.asarray((beats & (~equals | earlier)).any(axis=1))
    return ~beaten.ravel()
