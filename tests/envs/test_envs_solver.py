"""The Lagrangian solver against hand-made and brute-force optima."""

from __future__ import annotations

import numpy as np
import pytest

from autocompress_envs.problem import Labeling, Problem
from autocompress_envs.problem.tables import Tables
from autocompress_envs.solver import InfeasibleBudgetError, Solver
from autocompress_envs.testing import (
    TOY_LIMITS,
    LayerShape,
    Menu,
    additive_error,
    all_errors,
    all_labelings,
    all_resources,
    build_problem,
    random_problem,
    toy_problem,
)

KINDS = ["chain", "residual", "concat", "depthwise", "element"]
RESOURCE_NAMES = ["size", "macs", "bitops", "memory"]


def tiny_problem(rng: np.random.Generator, kind: str) -> Problem:
    while True:
        problem = random_problem(rng, 4, kind)
        if 30 <= np.prod(Tables(problem).counts) <= 40_000:
            return problem


def separable_problem() -> Problem:
    """Four linear layers of 10 weights a row and 10 rows, bits 2, 4, 8; convex expected losses: e, e / 10, 0."""
    shapes = [LayerShape("linear", (), None, 1, (10, 10), 1)] * 4
    at_bits = np.array([1.0, 0.1, 0.0])
    errors = [(scale * at_bits)[None, :, None] for scale in (0.8, 0.4, 0.2, 0.1)]
    return build_problem(shapes, np.zeros(0, dtype=np.int64), Menu((0.0,), (2, 4, 8), (8,)), errors)


# A layer costs 100 weights x bits x 8 activation bits: 1,600, 3,200 or 6,400. Every budget below is met exactly by a
# point of the convex hull: upgrades to 4 bits save 0.9 e for 1,600, those to 8 bits 0.1 e for 3,200.
@pytest.mark.parametrize(
    ("bitops", "weight_bits", "error"),
    [
        (6_400, [0, 0, 0, 0], 1.5),
        (8_000, [1, 0, 0, 0], 0.78),
        (9_600, [1, 1, 0, 0], 0.42),
        (11_200, [1, 1, 1, 0], 0.24),
        (12_800, [1, 1, 1, 1], 0.15),
        (16_000, [2, 1, 1, 1], 0.07),
        (25_600, [2, 2, 2, 2], 0.0),
        (99_999_999, [2, 2, 2, 2], 0.0),
    ],
)
def test_exact_on_the_convex_hull(bitops: int, weight_bits: list[int], error: float) -> None:
    solver = Solver(separable_problem(), {"bitops": bitops})
    labeling = solver.solve()
    assert labeling.weight_bits.tolist() == weight_bits
    assert solver.error(labeling) == pytest.approx(error, abs=1e-12)


def test_slack_between_hull_points_is_filled() -> None:
    # 9,599 is one short of two upgrades: one upgrade, 1,599 unspent, nothing else fits.
    assert Solver(separable_problem(), {"bitops": 9_599}).solve().weight_bits.tolist() == [1, 0, 0, 0]
    # 15,999 is one short of the fifth; four upgrades stay.
    assert Solver(separable_problem(), {"bitops": 15_999}).solve().weight_bits.tolist() == [1, 1, 1, 1]


def test_weights_move_bits_between_layers() -> None:
    solver = Solver(separable_problem(), {"bitops": 8_000})
    assert solver.solve(bits_weights=[1.0, 3.0, 1.0, 1.0]).weight_bits.tolist() == [0, 1, 0, 0]  # 1.2 against 0.8
    assert solver.solve(bits_weights=[1.0, 1.9, 1.0, 1.0]).weight_bits.tolist() == [1, 0, 0, 0]  # 0.76 against 0.8


def test_sparsity_weight_belongs_to_the_owner() -> None:
    problem, _ = toy_problem()
    solver = Solver(problem, {"bitops": 2_000})
    pruned = Labeling(np.array([1, 0, 0]), np.array([2, 0, 2]), np.array([0, 0, 0]))
    # conv2's expected loss is 0.6 of pruning (weighed by conv1, the owner) and 0.12 of 2 bits (weighed by conv2).
    assert solver.error(pruned) == pytest.approx(0.72)
    assert solver.error(pruned, sparsity_weights=[3.0, 1.0, 1.0]) == pytest.approx(1.92)
    assert solver.error(pruned, sparsity_weights=[1.0, 9.0, 9.0]) == pytest.approx(0.72)
    assert solver.error(pruned, bits_weights=[9.0, 2.0, 1.0]) == pytest.approx(0.84)


def test_toy_solution_is_the_additive_optimum() -> None:
    problem, evaluate = toy_problem()
    labeling = Solver(problem, TOY_LIMITS).solve()
    assert (labeling.sparsity.tolist(), labeling.weight_bits.tolist()) == ([0, 0, 0], [0, 0, 1])
    assert problem.resources(labeling)["bitops"] == 512
    assert additive_error(problem, labeling) == pytest.approx(0.26)
    assert evaluate(labeling).kl == pytest.approx(0.76)


def test_toy_true_optimum_by_brute_force() -> None:
    problem, evaluate = toy_problem()
    plans = all_labelings(problem)
    within = all_resources(problem, plans)["bitops"] <= TOY_LIMITS["bitops"]
    stacked = zip(plans.sparsity[within], plans.weight_bits[within], plans.activation_bits[within], strict=True)
    measured = {(*s.tolist(), *w.tolist()): evaluate(Labeling(s, w, a)).kl for s, w, a in stacked}
    best = min(measured, key=lambda key: measured[key])
    assert best == (0, 0, 0, 0, 1, 0)
    assert measured[best] == pytest.approx(0.512)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit_count", [1, 2])
def test_gap_to_brute_force(kind: str, limit_count: int) -> None:
    """At least 7 of 10 exact; on average within 5 % and always within 60 % of the optimum."""
    ratios = gap_ratios(np.random.default_rng(KINDS.index(kind) * 10 + limit_count), kind, limit_count)
    assert min(ratios) >= 1.0 - 1e-9
    assert sum(ratio < 1.0 + 1e-9 for ratio in ratios) >= 7
    assert np.mean(ratios) < 1.05
    assert max(ratios) < 1.6


@pytest.mark.parametrize("kind", KINDS)
def test_gap_with_all_limits_tight(kind: str) -> None:
    """Four limits taken from one labelling leave no slack at all: half exact, the limits still never broken."""
    ratios = gap_ratios(np.random.default_rng(KINDS.index(kind) * 10 + 4), kind, 4)
    assert min(ratios) >= 1.0 - 1e-9
    assert sum(ratio < 1.0 + 1e-9 for ratio in ratios) >= 5


def gap_ratios(rng: np.random.Generator, kind: str, limit_count: int) -> list[float]:
    """Expected loss over the least one, for 10 problems whose limits are the amounts of a random labelling."""
    ratios = []
    for _ in range(10):
        problem = tiny_problem(rng, kind)
        plans = all_labelings(problem)
        resources, errors = all_resources(problem, plans), all_errors(problem, plans)
        reachable = rng.integers(len(errors))
        names = rng.choice(RESOURCE_NAMES, limit_count, replace=False)
        limits = {str(name): int(resources[name][reachable]) for name in names}
        within = np.all([resources[name] <= limit for name, limit in limits.items()], axis=0)
        labeling = Solver(problem, limits).solve()
        amounts = problem.resources(labeling)
        assert all(amounts[name] <= limit for name, limit in limits.items())
        ratios.append(additive_error(problem, labeling) / errors[within].min())
    return ratios


def test_every_limit_binds_when_it_should() -> None:
    problem = random_problem(np.random.default_rng(5), 8, "residual")
    cheapest = {name: Solver(problem, {name: 10**12}).reach for name in ("size", "bitops")}
    blank = Labeling(*np.zeros((3, 8), dtype=np.int64))
    smallest = {name: reach.smallest(blank, 0)[name] for name, reach in cheapest.items()}
    original = problem.original()
    limits = {name: (3 * smallest[name] + original[name]) // 4 for name in smallest}
    error = {}
    for chosen in (["size"], ["bitops"], ["size", "bitops"]):
        subset = {name: limits[name] for name in chosen}
        labeling = Solver(problem, subset).solve()
        assert all(problem.resources(labeling)[name] <= limit for name, limit in subset.items())
        error[tuple(chosen)] = additive_error(problem, labeling)
    assert error["size", "bitops"] >= max(error["size",], error["bitops",]) - 1e-12


def test_tables_count_like_the_problem() -> None:
    rng = np.random.default_rng(3)
    for kind in KINDS:
        problem = random_problem(rng, 7, kind)
        tables = Tables(problem)
        for _ in range(20):
            labeling = Labeling(*rng.integers(0, tables.counts).T)
            assert tables.resources(labeling) == problem.resources(labeling)


def test_same_weights_same_labels() -> None:
    problem = random_problem(np.random.default_rng(8), 9, "chain")
    solver = Solver(problem, {"size": problem.original()["size"] // 5})
    weights = np.exp(np.random.default_rng(1).uniform(-2, 2, (2, 9)))
    first = solver.solve(*weights)
    solver.solve(*weights[::-1])
    again, fresh = solver.solve(*weights), Solver(problem, solver.limits).solve(*weights)
    for name in ("sparsity", "weight_bits", "activation_bits"):
        assert getattr(first, name).tolist() == getattr(again, name).tolist() == getattr(fresh, name).tolist()


def test_infeasible_message() -> None:
    problem, _ = toy_problem()
    # Half of the group gone and 2 bits: 4 + 4 + 8 weights x 2 x 8.
    assert Solver(problem, {"bitops": 256}).solve().weight_bits.tolist() == [0, 0, 0]
    with pytest.raises(InfeasibleBudgetError) as caught:
        Solver(problem, {"bitops": 255})
    assert str(caught.value) == (
        "`bitops` budget must be at least 256 bit operations (the smallest plan of this network), got 255; "
        "raise it or allow fewer bits or more sparsity."
    )


def test_infeasible_only_together() -> None:
    # One weight a row: 16 bits (2 bytes, no scale) are fewer bytes than 2 bits (1 byte for 4 rows, 16 of scales).
    shapes = [LayerShape("linear", (), None, 1, (1, 4), 1)]
    menu = Menu((0.0,), (2, 16), (8,))
    problem = build_problem(shapes, np.zeros(0, dtype=np.int64), menu, [np.zeros((1, 2, 1))], has_bias=False)
    # 16 bits: 100 fixed + 8 of weights + 8 of range = 116 bytes, 512 bitops; 2 bits: 100 + 1 + 16 + 8 = 125, 64.
    assert Solver(problem, {"size": 116}).solve().weight_bits.tolist() == [1]
    assert Solver(problem, {"bitops": 64}).solve().weight_bits.tolist() == [0]
    assert Solver(problem, {"size": 125, "bitops": 64}).solve().weight_bits.tolist() == [0]
    with pytest.raises(InfeasibleBudgetError) as caught:
        Solver(problem, {"size": 116, "bitops": 64})
    assert str(caught.value) == (
        "`size` budget must be at least 125 bytes (the smallest plan found that meets the other limits), got 116; "
        "raise it or allow fewer weight bits."
    )


@pytest.mark.parametrize(
    ("kind", "resource", "advice"),
    [
        ("chain", "size", "fewer weight bits or more sparsity"),
        ("chain", "macs", "more sparsity or low ranks"),
        ("chain", "bitops", "fewer bits or more sparsity"),
        ("chain", "memory", "fewer activation bits or more sparsity"),
        ("element", "size", "fewer weight bits or more sparsity"),
        ("element", "macs", "sparsity of whole channels or low ranks"),
    ],
)
def test_what_is_advised_changes_the_resource(kind: str, resource: str, advice: str) -> None:
    problem = random_problem(np.random.default_rng(0), 4, kind)
    with pytest.raises(InfeasibleBudgetError) as caught:
        Solver(problem, {resource: 1})
    assert str(caught.value).endswith(f", got 1; raise it or allow {advice}.")


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "`limits` must hold at least one of size, macs, bitops, memory, latency, energy, got none."),
        (
            {"parameters": 3},
            "`limits` must name resources among size, macs, bitops, memory, latency, energy, got 'parameters'.",
        ),
        ({"latency": 3}, "`limits` of latency need a cost model with `kernels`, got one without."),
        ({"energy": 3}, "`limits` of energy need a cost model with `energy`, got one without."),
        ({"size": 0}, "`limits` of size must be a positive whole number, got 0."),
        ({"size": 0.5}, "`limits` of size must be a positive whole number, got 0.5."),
    ],
)
def test_malformed_limits(limits: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match="limits") as caught:
        Solver(toy_problem()[0], limits)
    assert str(caught.value) == message


@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0, 0.0, 1.0], [1.0, float("nan"), 1.0]])
def test_malformed_weights(weights: list[float]) -> None:
    solver = Solver(toy_problem()[0], TOY_LIMITS)
    with pytest.raises(ValueError, match="bits_weights") as caught:
        solver.solve(bits_weights=weights)
    assert str(caught.value) == f"`bits_weights` must hold 3 positive finite numbers, got {weights}."
