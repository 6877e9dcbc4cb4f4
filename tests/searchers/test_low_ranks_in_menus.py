"""Low ranks on the menus of search methods: simple and published plans have none, all others may."""

from dataclasses import replace

import numpy as np
import pytest

from autocompress.errors import InputError
from autocompress.searchers.model_based.beliefs import Beliefs, Label
from autocompress.searchers.published.menus import offer
from autocompress.searchers.simple_plans import best_mix, simple_plans
from autocompress.searchers.solvers.baselines import common_weight_bits, uniform_frontier, uniform_plan
from autocompress.searchers.solvers.exact import solve_exactly
from autocompress_envs.problem import Labeling, Problem
from autocompress_envs.problem.tables import is_within
from autocompress_envs.solver import Solver
from autocompress_envs.testing import LayerShape, Menu, all_errors, all_labelings, all_resources, build_problem


def problem() -> Problem:
    """Three linear layers of 10 x 10 weights at 2, 4 and 8 bits; the last two may have rank 3, and lose more by it."""
    shapes = [LayerShape("linear", (), None, 1, (10, 10), 1)] * 3
    at_bits = np.array([1.0, 0.1, 0.0])
    errors = [(scale * at_bits)[None, :, None] for scale in (0.8, 0.4, 0.2)]
    whole = build_problem(shapes, np.zeros(0, np.int64), Menu((0.0,), (2, 4, 8), (8,)), errors)

    def cut(layer):
        return replace(
            layer,
            weight_bits=np.array([2, 4, 8, 2, 4, 8]),
            ranks=np.array([3, 3, 3, 0, 0, 0]),
            errors=np.concatenate([layer.errors + 0.3, layer.errors], axis=1),
        )

    return replace(whole, layers=(whole.layers[0], *map(cut, whole.layers[1:])))


def ranks(of: Problem, plan: Labeling) -> list[int]:
    return [int(layer.weight_ranks[index]) for layer, index in zip(of.layers, plan.weight_bits, strict=True)]


def test_uniform_plans_and_mixes_have_none():
    of = problem()
    assert common_weight_bits(of) == [2, 4, 8]
    assert uniform_plan(of, 0.0, 4, 8).weight_bits.tolist() == [1, 4, 4]
    limits = {"size": 530}
    mix = best_mix(of, limits)
    assert mix is not None
    for plan in (mix, *uniform_frontier(of, limits)):
        assert ranks(of, plan) == [0, 0, 0]
        assert is_within(of.resources(plan), limits)


def test_simple_plans_beyond_reach_of_bits_are_the_solvers():
    """Multiply-accumulates are no matter of bits."""
    of = problem()
    plans = simple_plans(of, {"macs": 260})
    assert [sum(rank > 0 for rank in ranks(of, plan)) for plan in plans] == [1]


def test_published_methods_are_offered_none():
    of = problem()
    offered = offer(of, least_preserved=1.0)
    assert [len(layer.weight_bits) for layer in offered.problem.layers] == [3, 3, 3]
    assert not any(layer.weight_ranks.any() for layer in offered.problem.layers)
    none = np.zeros(3, np.int64)
    full = offered.full(Labeling(none, none + 2, none))
    assert full.weight_bits.tolist() == [2, 5, 5]
    assert offered.problem.resources(Labeling(none, none + 2, none)) == of.resources(full)


def test_a_correction_of_one_rank_leaves_the_others():
    beliefs = Beliefs(problem(), {"size": 530}, np.full((1, 2), 0.5), None, None)
    corrected = beliefs.corrected([Label(1, 1, 0)], 0.2).problem.layers[1].errors[0, :, 0]
    before = problem().layers[1].errors[0, :, 0]
    assert corrected[0] == pytest.approx(before[0] + 0.2)
    assert corrected[3:].tolist() == before[3:].tolist()


def test_exact_plans_don_t_count_what_factors_hand_on():
    with pytest.raises(InputError) as error:
        solve_exactly(problem(), {"memory": 100_000})
    assert str(error.value).startswith(
        "`ranks` must be none for the methods exact and measured where memory is limited"
    )


@pytest.mark.parametrize("limits", [{"macs": 260}, {"size": 530}, {"macs": 230, "size": 530}])
def test_exact_plans_are_the_best(limits):
    of = problem()
    every = all_labelings(of)
    amounts = all_resources(of, every)
    fits = np.all([amounts[name] <= limit for name, limit in limits.items()], axis=0)
    least = all_errors(of, every)[fits].min()
    assert Solver(of, limits).error(solve_exactly(of, limits)) == pytest.approx(least)
