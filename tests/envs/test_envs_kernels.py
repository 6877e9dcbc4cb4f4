"""Time as a resource: hand-computed kernels, and the solver beside brute force where kernels have steps."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from envs_toys import kernels_of, solver_excess, walk_within, with_kernels

from autocompress_envs.problem import Labeling
from autocompress_envs.problem.tables import Tables
from autocompress_envs.solver import InfeasibleBudgetError, Solver
from autocompress_envs.testing import all_labelings, random_problem, toy_problem

KINDS = ["chain", "residual", "concat", "depthwise"]


def test_time_by_hand() -> None:
    """4 columns, 3 rows: 10 + 4 + 6 + 6. An odd column: twice 10 + 5 + 6 + 7.5. A single row: twice 10 + 4 + 2 + 2."""
    kernels = kernels_of(1)
    at, eight = np.array(0), np.array(8)
    times = [
        int(kernels.of_layers(at, *map(np.array, widths), eight, eight))
        for widths in ((4, 3), (5, 3), (4, 1), (0, 3), (4, 0))
    ]
    assert times == [26, 57, 36, 0, 0]


def test_a_network_without_kernels_has_no_latency() -> None:
    problem, _ = toy_problem()
    none = np.zeros(3, dtype=np.int64)
    assert "latency" not in problem.resources(Labeling(none, none, none))
    assert "latency" not in Tables(problem).resources(Labeling(none, none, none))


@pytest.mark.parametrize("kind", KINDS)
def test_tables_count_what_the_problem_counts(kind: str) -> None:
    rng = np.random.default_rng(3)
    problem = with_kernels(random_problem(rng, 4, kind), rng)
    tables = Tables(problem)
    every = all_labelings(problem)
    for index in rng.integers(len(every.sparsity), size=20):
        labeling = Labeling(every.sparsity[index], every.weight_bits[index], every.activation_bits[index])
        assert tables.resources(labeling) == problem.resources(labeling)
        by_layer = sum(
            int(tables.problem.costs.kernels.of_layers(np.array(layer), fan_in, out, np.array(8), np.array(8)))
            for layer, (fan_in, out) in enumerate(zip(*problem.costs.widths(problem.kept(labeling)), strict=True))
        )
        assert problem.resources(labeling)["latency"] == by_layer + 7  # both kernels take any bits


@pytest.mark.parametrize("kind", KINDS)
def test_the_solver_meets_limits_of_time_and_comes_close_to_the_best(kind: str) -> None:
    rng = np.random.default_rng(0)
    excess = []
    for _ in range(6):
        problem = with_kernels(random_problem(rng, 4, kind), rng)
        if np.prod(Tables(problem).counts) > 40_000:
            continue
        with suppress(InfeasibleBudgetError):
            excess.append(solver_excess(problem, "latency", rng))
    assert len(excess) >= 3
    assert float(np.median(excess)) <= 0.05


def test_every_masked_episode_meets_the_limit_of_time() -> None:
    rng = np.random.default_rng(1)
    for kind in KINDS:
        problem = with_kernels(random_problem(rng, 5, kind), rng)
        none = np.zeros(len(problem.layers), dtype=np.int64)
        least = Solver(problem, {"latency": 10**9}).reach.smallest(Labeling(none, none, none), 0)["latency"]
        most = problem.resources(Labeling(none, none, none))["latency"]
        walk_within(problem, {"latency": max(least, (least + most) // 2)}, rng)


def test_limits_below_the_fastest_plan_name_it() -> None:
    problem = with_kernels(toy_problem()[0])
    fastest = int(Tables(problem).amounts(all_labelings(problem), ["latency"])["latency"].min())
    with pytest.raises(InfeasibleBudgetError) as caught:
        Solver(problem, {"latency": fastest - 1})
    assert str(caught.value) == (
        f"`latency` budget must be at least {fastest:,} nanoseconds of a batch (the smallest plan of this network), "
        f"got {fastest - 1:,}; raise it or allow other bits or more sparsity."
    )
