"""Random problems with time, with energy and with low ranks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from autocompress_envs.actions import DiscreteActions
from autocompress_envs.problem import EnergyCosts, KernelCosts, Problem
from autocompress_envs.problem.tables import Tables
from autocompress_envs.solver import Solver
from autocompress_envs.testing import additive_error, all_errors, all_labelings


def kernels_of(count: int, rng: np.random.Generator | None = None) -> KernelCosts:
    """Two kernels for 8-bit inputs: a fast one that wants even columns and two rows or more, else one twice as slow."""
    shape = (2, count)
    each = np.ones(shape) if rng is None else rng.uniform(0.5, 2.0, shape)
    slow = np.array([[1.0], [2.0]])
    return KernelCosts(
        kernel=np.zeros((33, 33), dtype=np.int64),
        instead=np.array([1, 1]),
        column_step=np.array([[2], [1]]).repeat(count, 1),
        row_step=np.ones(shape, dtype=np.int64),
        least_rows=np.array([[2], [1]]).repeat(count, 1),
        per_layer=10 * each * slow,
        per_column=1 * each * slow,
        per_row=2 * each * slow,
        per_weight=0.5 * each * slow,
        fixed=7,
    )


def with_kernels(problem: Problem, rng: np.random.Generator | None = None) -> Problem:
    return replace(problem, costs=replace(problem.costs, kernels=kernels_of(len(problem.layers), rng)))


def ranked(problem: Problem, rng: np.random.Generator) -> Problem:
    """The same problem with one or two low ranks before the entries of every second layer, which lose more."""
    layers = []
    for index, layer in enumerate(problem.layers):
        low = np.sort(rng.choice(np.arange(1, 6), 1 + index % 2, replace=False)) if index % 3 else np.zeros(0, int)
        own = layer.weight_bits
        factors = [1.0 + rng.uniform(0, 3) for _ in low]
        layers.append(
            replace(
                layer,
                weight_bits=np.concatenate([*[own for _ in low], own]),
                ranks=np.concatenate([np.repeat(low, len(own)), 0 * own]),
                errors=np.concatenate([*[layer.errors * factor for factor in factors], layer.errors], axis=1),
            )
        )
    return replace(problem, layers=tuple(layers))


def with_energy(problem: Problem) -> Problem:
    """The problem with a modelled energy, whose memory is the smallest one."""
    costs = problem.costs
    fan_in, out = costs.widths(costs.group_width)
    own = np.array([layer.kind == "depthwise" for layer in problem.layers])
    width = np.where(own, out, fan_in)
    energy = EnergyCosts(3 * width, width, own, np.zeros_like(width), access=1_250, fixed=7)
    return replace(problem, costs=replace(costs, energy=energy))


def solver_excess(problem: Problem, name: str, rng: np.random.Generator) -> float:
    """What the solver's plan loses more than the best one under a random limit of one resource, which it must meet.

    In units of the spread of all plans' losses. Raises InfeasibleBudgetError where the solver finds none.
    """
    every = all_labelings(problem)
    amounts, errors = Tables(problem).amounts(every, [name])[name], all_errors(problem, every)
    limit = int(np.quantile(amounts, rng.uniform(0.05, 0.6)))
    found = Solver(problem, {name: limit}).solve()
    assert problem.resources(found)[name] <= limit
    best = errors[amounts <= limit].min()
    return float((additive_error(problem, found) - best) / max(errors.max() - errors.min(), 1e-12))


def walk_within(problem: Problem, limits: dict[str, int], rng: np.random.Generator) -> None:
    """Five masked random walks, each of which must meet the limits."""
    actions = DiscreteActions(Solver(problem, limits))
    for _ in range(5):
        actions.start()
        for index in range(len(problem.layers)):
            actions.apply(index, rng.choice(np.flatnonzero(actions.mask(index))))
        used = problem.resources(actions.finish())
        assert all(used[name] <= limit for name, limit in limits.items())
