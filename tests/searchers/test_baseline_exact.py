"""The exact solver against hand-made and brute-force optima."""

import numpy as np
import pytest

from autocompress.errors import InputError
from autocompress.searchers.base import SearchSettings, Task
from autocompress.searchers.search import run_search
from autocompress.searchers.solvers import exact_model
from autocompress.searchers.solvers.exact import GAP, solve_exactly
from autocompress_envs.problem import Labeling
from autocompress_envs.problem.tables import Tables, is_within
from autocompress_envs.solver import InfeasibleBudgetError, Solver
from autocompress_envs.testing import (
    additive_error,
    all_errors,
    all_labelings,
    all_resources,
    random_problem,
    toy_problem,
)

KINDS = ["chain", "residual", "concat", "depthwise", "element"]


def tiny_problem(rng, kind):
    while True:
        problem = random_problem(rng, 4, kind)
        if 30 <= np.prod(Tables(problem).counts) <= 20_000:
            return problem


def drawn_limits(rng, resources, names):
    """Somewhere between the least and the most of each of the named resources."""
    ranges = {name: (int(resources[name].min()), int(resources[name].max())) for name in names}
    return {name: low + 1 + int(rng.uniform(0.05, 0.6) * (high - low)) for name, (low, high) in ranges.items()}


# The toy takes 196 + b1 + b2 + b3 bytes unpruned and 172 + b1 / 2 + b2 / 2 + b3 pruned: 8 weights a layer of b bits, a
# scale for each of 10 rows (8 pruned), 3 input ranges, 100 fixed bytes and 8 for each of 4 channels (2 pruned).
@pytest.mark.parametrize(
    ("limits", "sparsity", "weight_bits", "error"),
    [
        ({"size": 220}, 0, [2, 2, 2], 0.0),  # everything at 8 bits: 196 + 24
        ({"size": 219}, 0, [1, 2, 2], 0.01),
        ({"size": 206}, 0, [0, 1, 1], 0.152),
        ({"size": 204}, 0, [0, 0, 1], 0.26),
        ({"size": 202}, 1, [2, 2, 2], 0.6),  # 2 bits everywhere would lose 0.62
        ({"bitops": 512}, 0, [0, 0, 1], 0.26),  # 8 weights x 8 bits of inputs x 8 bits in all
        ({"size": 210, "bitops": 512}, 0, [0, 0, 1], 0.26),
        ({"size": 204, "macs": 23}, 1, [2, 2, 2], 0.6),  # 24 unpruned
    ],
)
def test_toy_by_hand(limits, sparsity, weight_bits, error):
    problem, _ = toy_problem()
    labeling = solve_exactly(problem, limits)
    assert (int(labeling.sparsity[0]), labeling.weight_bits.tolist()) == (sparsity, weight_bits)
    assert additive_error(problem, labeling) == pytest.approx(error)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "names", [["size"], ["size", "macs"], ["bitops", "memory"], ["size", "macs", "bitops", "memory"]]
)
def test_equals_brute_force(kind, names):
    rng = np.random.default_rng([KINDS.index(kind), len(names)])
    solved = 0
    while solved < 2:
        problem = tiny_problem(rng, kind)
        labelings = all_labelings(problem)
        resources = all_resources(problem, labelings)
        limits = drawn_limits(rng, resources, names)
        fits = np.all([resources[name] <= limit for name, limit in limits.items()], axis=0)
        if not fits.any():
            continue
        least = all_errors(problem, labelings)[fits].min()
        labeling = solve_exactly(problem, limits)
        assert is_within(problem.resources(labeling), limits)
        assert least * (1 - 1e-9) <= additive_error(problem, labeling) <= least * (1 + GAP)
        solved += 1


@pytest.mark.parametrize("kind", ["chain", "residual", "depthwise", "element"])
def test_never_worse_than_the_lagrangian_solution(kind):
    problem = random_problem(np.random.default_rng(5), 16, kind)
    original = problem.original()
    cheapest = Solver(problem, original).reach.smallest(all_zero(problem), 0)
    limits = {name: (cheapest[name] * 4 + original[name]) // 5 for name in ("size", "bitops")}
    labeling, relaxed = solve_exactly(problem, limits), Solver(problem, limits).solve()
    assert is_within(problem.resources(labeling), limits)
    assert additive_error(problem, labeling) <= additive_error(problem, relaxed)


def all_zero(problem):
    zeros = np.zeros(len(problem.layers), dtype=np.int64)
    return Labeling(zeros, zeros, zeros)


def test_dominated_and_hopeless_options_are_left_out():
    problem, _ = toy_problem()
    solver = Solver(problem, {"size": 204})
    # Rows of conv2: 3 bit-widths for each of the 2 widths of its input; those pruned lose 0.6 at least.
    sizes = {
        most: [len(options.error) for options in exact_model.joint_options(solver, most)] for most in (1.0, 0.26, 0.05)
    }
    assert sizes == {1.0: [6, 6, 3], 0.26: [6, 3, 2], 0.05: [4, 2, 2]}
    unlimited_bits = exact_model.joint_options(Solver(problem, {"macs": 24}), 1.0)
    assert [len(options.error) for options in unlimited_bits] == [2, 2, 1]  # bits cost nothing: 8 beats 2 and 4


def test_exact_is_one_evaluation():
    problem, evaluate = toy_problem()
    result = run_search(Task(problem, {"size": 202}, evaluate), SearchSettings(), method="exact")
    assert (result.evaluations, result.stopped_because) == (1, "the layer errors have one exact plan")
    assert result.best.outcome.kl == pytest.approx(0.6)


def test_too_many_sparsities_together():
    rng = np.random.default_rng(0)
    problem = next(p for p in (random_problem(rng, 10, "concat") for _ in range(99)) if shape(p) == (4, 2, 2))
    limits = {"size": problem.original()["size"] // 3}
    with pytest.raises(InputError) as caught:
        solve_exactly(problem, limits)
    # layer6 reads the groups of 6 layers and writes its own: 4 ** 7 * 2 * 2
    assert str(caught.value) == (
        "`method` can be exact only where a layer has at most 20,000 combinations of its bits and of the sparsities "
        "that its cost depends on, got 65,536 of 7 sparsities at layer6; choose the method solver or local-measured, "
        "or shorter menus."
    )


def shape(problem):
    layer = problem.layers[0]
    return len(layer.sparsities), len(layer.weight_bits), len(layer.activation_bits)


def test_no_time():
    problem = random_problem(np.random.default_rng(5), 16, "chain")
    limits = {"size": problem.original()["size"] // 5}
    with pytest.raises(InputError) as caught:
        solve_exactly(problem, limits, seconds=0.0)
    assert str(caught.value) == (
        "`method` exact or measured needs HiGHS to find a plan within 0 seconds, got none (scipy's status 1); choose "
        "the method solver or local-measured, or shorter menus."
    )


def test_no_plan_within_the_limits():
    problem, _ = toy_problem()
    with pytest.raises(InfeasibleBudgetError, match="budget must be at least 176 bytes"):
        solve_exactly(problem, {"size": 175})
