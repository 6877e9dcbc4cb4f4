"""Low ranks in the environment's problem: costs by hand, and solvers against brute force."""

from dataclasses import replace

import numpy as np
import pytest
from envs_toys import ranked

from autocompress_envs.problem import CostModel, Labeling, LayerNumbers, Problem, layer_resources
from autocompress_envs.problem.tables import Tables, is_within
from autocompress_envs.solver import InfeasibleBudgetError, Solver
from autocompress_envs.testing import (
    LayerShape,
    Menu,
    all_errors,
    all_labelings,
    all_resources,
    build_problem,
    random_problem,
)


def tiny(rng: np.random.Generator, kind: str) -> Problem:
    while True:
        problem = ranked(random_problem(rng, 3, kind), rng)
        if 30 <= np.prod(Tables(problem).counts) <= 20_000:
            return problem


def test_costs_by_hand():
    """12 columns and 10 rows at rank 3: 36 + 30 weights, 3 + 10 scales, 10 biases; 7 positions; 4 bits, inputs in 8."""
    numbers = (np.array(each) for each in (12, 10, 7, True, 4, 8))
    found = layer_resources(*numbers, sparsity=0.0, granularity="channel", rank=np.array([0, 3]))
    assert found["size"].tolist() == [60 + 10 * 8 + 8, 18 + 15 + 13 * 4 + 10 * 4 + 8]
    assert found["macs"].tolist() == [120 * 7, 66 * 7]
    assert found["bitops"].tolist() == [120 * 7 * 32, 36 * 7 * 4 * 8 + 30 * 7 * 4 * 32]


def test_factors_are_rounded_up_to_bytes_each_and_floats_have_no_scales():
    sizes = [
        int(layer_resources(*map(np.array, (3, 3, 1, False, bits, 32)), 0.0, "channel", rank=1)["size"])
        for bits in (3, 16)
    ]
    assert sizes == [2 + 2 + 4 + 3 * 4, 6 + 6]


def test_a_tie_has_a_first_factor_for_each_member():
    """Three layers of 4 columns and 5 rows each, as one of 15 rows: three first factors of 2 x 4, and 15 x 2."""
    found = layer_resources(*map(np.array, (4, 15, 1, False, 8, 8)), 0.0, "channel", rank=2, members=3)
    assert int(found["macs"]) == 3 * 2 * 4 + 2 * 15
    assert int(found["size"]) == 24 + 30 + 4 * (3 * 2 + 15) + 8


def test_what_factors_hand_on_counts_while_the_input_is_alive():
    """Tensors of 10, 20 and 30 elements one after the other, read in 8 bits but for the last, which is in 32.

    At rank 4, layer 0 hands on 4 floats: 16 bytes beside 10 + 20 of its input and output; layer 1's 20 + 120 stay the
    most until it has a rank, too.
    """
    zero = np.zeros(2, np.int64)
    none = np.zeros((2, 0), np.int64)
    costs = CostModel(
        group_width=np.zeros(0, np.int64),
        fan_in_const=np.array([10, 20]),
        fan_in_coef=none,
        out_const=np.array([20, 30]),
        out_coef=none,
        positions=np.array([1, 1]),
        has_bias=np.array([False, False]),
        fixed_bytes=0,
        fixed_bytes_coef=np.zeros(0, np.int64),
        tensor_const=np.array([10, 20, 30]),
        tensor_coef=np.zeros((3, 0), np.int64),
        tensor_readers=np.array([[True, False], [False, True], [False, False]]),
        alive=np.array([[True, True, False], [False, True, True]]),
    )
    eight = zero + 8
    found = [int(costs.memory(zero[:0], eight, np.array(rank))) for rank in ([0, 0], [4, 0], [40, 0], [4, 4])]
    # Layer 1 reads a tensor that lives in both moments, so what it hands on counts in both.
    assert found == [140, 140, 190, 156]


def one_layer() -> Problem:
    """10 x 10 weights used once, no bias, at 4 and 8 bits; rank 2 has 40 weights and loses twice as much."""
    shape = LayerShape("linear", (), None, 1, (10, 10), 1)
    problem = build_problem(
        [shape], np.zeros(0, np.int64), Menu((0.0,), (4, 8), (8,)), [np.array([[[0.2], [0.1]]])], has_bias=False
    )
    layer = problem.layers[0]
    return replace(
        problem,
        layers=(
            replace(
                layer,
                weight_bits=np.array([4, 8, 4, 8]),
                ranks=np.array([2, 2, 0, 0]),
                errors=np.array([[[0.4], [0.3], [0.2], [0.1]]]),
            ),
        ),
    )


@pytest.mark.parametrize(
    ("limits", "chosen"),
    [
        ({"macs": 100}, 3),
        ({"macs": 99}, 1),
        ({"macs": 40}, 1),
        ({"macs": 99, "size": 12 * 4 + 20 + 8 + 100}, 0),
        ({"size": 100 + 50 + 40 + 8}, 2),
    ],
)
def test_the_solver_takes_a_rank_where_a_budget_asks_for_it(limits, chosen):
    assert Solver(one_layer(), limits).solve().weight_bits.tolist() == [chosen]


def test_the_smallest_budget_is_that_of_a_low_rank():
    with pytest.raises(InfeasibleBudgetError) as error:
        Solver(one_layer(), {"macs": 39})
    assert "at least 40 multiply-accumulates" in str(error.value)


@pytest.mark.parametrize("kind", ["chain", "residual", "concat", "depthwise"])
def test_all_ways_to_count_agree(kind):
    rng = np.random.default_rng(3)
    for _ in range(4):
        problem = tiny(rng, kind)
        every = all_labelings(problem)
        expected = all_resources(problem, every)
        found = Tables(problem).amounts(every)
        for name, amounts in expected.items():
            np.testing.assert_array_equal(found[name], amounts)
        for index in rng.integers(0, len(every.sparsity), 5):
            plan = Labeling(*(part[index] for part in (every.sparsity, every.weight_bits, every.activation_bits)))
            assert problem.resources(plan) == {name: int(amounts[index]) for name, amounts in expected.items()}


@pytest.mark.parametrize("kind", ["chain", "residual", "concat", "depthwise"])
@pytest.mark.parametrize("names", [("macs",), ("size",), ("macs", "memory"), ("size", "bitops")])
def test_solutions_fit_and_are_near_the_optimum(kind, names):
    """Within every limit always; over 6 problems, the median loss is at most 1.05 times the least."""
    rng = np.random.default_rng(7)
    ratios = []
    for _ in range(6):
        problem = tiny(rng, kind)
        every = all_labelings(problem)
        amounts, losses = all_resources(problem, every), all_errors(problem, every)
        limits = {}
        fits = np.ones(len(losses), bool)
        for name in names:
            limits[name] = int(np.quantile(amounts[name][fits], 0.3))
            fits &= amounts[name] <= limits[name]
        found = Solver(problem, limits).solve()
        assert is_within(problem.resources(found), limits)
        ratios.append(Solver(problem, limits).error(found) / losses[fits].min())
    assert np.median(ratios) <= 1.05


@pytest.mark.parametrize("names", [("macs",), ("memory",), ("size",)])
def test_allowed_labels_are_those_that_can_be_completed(names):
    rng = np.random.default_rng(11)
    for _ in range(4):
        problem = tiny(rng, "chain")
        every = all_labelings(problem)
        amounts = all_resources(problem, every)
        limits = {name: int(np.quantile(amounts[name], 0.2)) for name in names}
        fits = np.all([amounts[name] <= limit for name, limit in limits.items()], axis=0)
        solver = Solver(problem, limits)
        blank = Labeling(*np.zeros((3, len(problem.layers)), np.int64))
        allowed = solver.reach.allowed(blank, 0)
        expected = np.zeros_like(allowed)
        first = [part[fits, 0] for part in (every.sparsity, every.weight_bits, every.activation_bits)]
        expected[tuple(first)] = True
        np.testing.assert_array_equal(allowed, expected)


def test_menus_without_ranks_say_zero():
    layer: LayerNumbers = random_problem(np.random.default_rng(0)).layers[0]
    assert layer.weight_ranks.tolist() == [0] * len(layer.weight_bits)
