"""The plans that anyone would try by hand, on networks whose plans can all be listed."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from autocompress.searchers.agents import AGENTS
from autocompress.searchers.base import SearchSettings, Task
from autocompress.searchers.search import run_search
from autocompress.searchers.simple_plans import affordable, best_mix, fitted, simple_plans
from autocompress.searchers.solvers.baselines import uniform_frontier
from autocompress_envs.problem import Labeling
from autocompress_envs.problem.tables import is_within
from autocompress_envs.solver import InfeasibleBudgetError, Solver
from autocompress_envs.testing import (
    LayerShape,
    Menu,
    additive_error,
    build_problem,
    fair_coins,
    random_problem,
    toy_problem,
)

KINDS = ["chain", "residual", "concat", "depthwise", "element"]


def worlds():
    """Ten small random problems, each under tight and loose limits."""
    for kind, seed, share in itertools.product(KINDS, (0, 1), (0.12, 0.2, 0.35)):
        problem = random_problem(np.random.default_rng(seed), 5, kind)
        limits = {"size": int(share * problem.original()["size"])}
        try:
            Solver(problem, limits)
        except InfeasibleBudgetError:
            continue
        yield problem, limits


def test_they_fit_each_comes_once_and_the_most_promising_first():
    found = 0
    for problem, limits in worlds():
        plans = simple_plans(problem, limits)
        assert all(is_within(problem.resources(plan), limits) for plan in plans)
        assert len({plan.key() for plan in plans}) == len(plans)
        errors = [additive_error(problem, plan) for plan in plans]
        assert errors == sorted(errors)
        assert Solver(problem, limits).solve().key() in {plan.key() for plan in plans}
        found += 1
    assert found >= 15


def test_every_bit_width_that_fits_has_the_uniform_plan_that_prunes_least():
    """At most one for each; every plan of the frontier is matched by one of its bits that prunes no more."""
    for problem, limits in worlds():
        plans = {plan.key() for plan in simple_plans(problem, limits)}
        frontier = uniform_frontier(problem, limits)
        kept = [plan for plan in frontier if plan.key() in plans]
        for plan in frontier:
            alike = [other for other in kept if (other.weight_bits == plan.weight_bits).all()]
            assert any((other.sparsity <= plan.sparsity).all() for other in alike)
        widths = {int(bits) for layer in problem.layers for bits in layer.weight_bits}
        assert len(plans) <= len(widths) + 2


def two_activation_widths():
    """Two linear layers: halving is allowed, 2, 4 or 8 weight bits and 4 or 8 activation bits."""
    shape = LayerShape("linear", (), None, 1, (16, 16), 1)
    errors = np.array([[[0.9, 0.8], [0.2, 0.1], [0.02, 0.01]]])
    problem = build_problem([shape, shape], np.zeros(0, dtype=np.int64), Menu((0.0,), (2, 4, 8), (4, 8)),
                            [errors, 0.5 * errors], has_bias=False)  # fmt: skip
    return problem


def test_of_one_bit_width_the_most_activation_bits_are_taken():
    """4 x 8 and 8 x 4 cost 32 bit operations a weight; 512 weights."""
    problem = two_activation_widths()
    plans = simple_plans(problem, {"bitops": 32 * 512})
    uniform = {(int(p.weight_bits[0]), int(p.activation_bits[0])) for p in plans if len(set(p.weight_bits)) == 1}
    assert uniform == {(1, 1), (2, 0)}  # indices: 4 weight with 8 activation bits, 8 with 4


def unpruned(problem):
    """All plans that remove nothing, with their weight bits in numbers."""
    options = [range(len(layer.weight_bits)) for layer in problem.layers]
    activations = [range(len(layer.activation_bits)) for layer in problem.layers]
    zeros = np.zeros(len(problem.layers), dtype=np.int64)
    for bits in itertools.product(*options):
        values = [int(layer.weight_bits[index]) for layer, index in zip(problem.layers, bits, strict=True)]
        for reading in itertools.product(*activations):
            yield values, Labeling(zeros, np.array(bits), np.array(reading))


def test_the_mix_is_the_best_of_two_neighbouring_bit_widths():
    """Of all plans that mix some two neighbours; the solver may miss the best by a little, mostly it does not."""
    ratios = []
    for problem, limits in worlds():
        widths = sorted({int(bits) for layer in problem.layers for bits in layer.weight_bits})
        pairs = [set(pair) for pair in itertools.pairwise(widths)]
        errors = [
            additive_error(problem, plan)
            for values, plan in unpruned(problem)
            if any(set(values) <= pair for pair in pairs) and is_within(problem.resources(plan), limits)
        ]
        mix = best_mix(problem, limits)
        assert (mix is None) == (not errors)
        if mix is not None:
            assert not mix.sparsity.any()
            assert is_within(problem.resources(mix), limits)
            ratios.append(additive_error(problem, mix) / min(errors))
    assert len(ratios) >= 6
    assert np.median(ratios) == pytest.approx(1.0)
    assert max(ratios) < 1.2


def test_few_evaluations_afford_few_plans_but_one():
    plans = list("abcdefgh")
    counts = [len(affordable(plans, SearchSettings(episodes=count))) for count in (1, 2, 3, 9, 40)]
    assert counts == [1, 1, 1, 3, 8]
    assert len(affordable(plans, SearchSettings(patience=1))) == 1
    assert len(affordable(plans, SearchSettings(patience=6))) == 3


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_every_agent_evaluates_them_first(name):
    problem, evaluate = toy_problem()
    task = Task(problem, {"size": 204}, evaluate, 1.0, fair_coins(4))
    plans, seen = simple_plans(problem, task.limits), []
    settings = SearchSettings(name, AGENTS[name].actions[0], episodes=3 * len(plans))
    run_search(task, settings, observe=seen.append)
    assert len(plans) >= 3
    assert [each.labeling.key() for each in seen[: len(plans)]] == [plan.key() for plan in plans]


def test_no_search_ends_worse_than_they_where_expected_losses_lie():
    """Where the solver's plan keeps 4 bits, in the last layer, ten times the expected loss is measured."""
    problem, _ = toy_problem()
    limits = {"size": 204}

    def evaluate(labeling):
        lie = 1.0 + 9.0 * (labeling.weight_bits[2] == 1)
        outcome = toy_problem()[1](labeling)
        return replace(outcome, kl=lie * outcome.kl)

    best = min(evaluate(plan).kl for plan in simple_plans(problem, limits))
    solver = evaluate(Solver(problem, limits).solve()).kl
    assert best < 0.5 * solver
    for name in ("posterior-ppo", "model-based"):
        task = Task(problem, limits, evaluate, 1.0, fair_coins(4))
        assert run_search(task, SearchSettings(name, episodes=9)).best.outcome.kl <= best


def test_plans_of_other_budgets_are_made_to_fit():
    """Of a looser budget: trimmed. Of a tighter one: as it is, and with the room that is left filled."""
    trimmed = filled = 0
    for problem, limits in worlds():
        half = {"size": limits["size"] * 3 // 4}
        try:
            loose, tight = Solver(problem, limits).solve(), Solver(problem, half).solve()
        except InfeasibleBudgetError:
            continue
        for plan in fitted(problem, half, [loose]):
            assert is_within(problem.resources(plan), half)
            trimmed += plan.key() != loose.key()
        kept, *more = fitted(problem, limits, [tight])
        assert kept.key() == tight.key()
        for plan in more:
            assert is_within(problem.resources(plan), limits)
            assert additive_error(problem, plan) < additive_error(problem, tight)
            filled += 1
    assert trimmed >= 5
    assert filled >= 5


@pytest.mark.parametrize("name", ["labeling", "model-based", "ppo"])
def test_agents_evaluate_given_plans_first(name):
    problem, evaluate = toy_problem()
    limits = {"size": 204}
    given = fitted(problem, limits, [Solver(problem, {"size": 180}).solve()])
    seen = []
    task = Task(problem, limits, evaluate, 1.0, fair_coins(4), begin_with=given)
    run_search(task, SearchSettings(name, AGENTS[name].actions[0], episodes=4), observe=seen.append)
    assert len(given) == 2
    assert [each.labeling.key() for each in seen[:2]] == [plan.key() for plan in given]
