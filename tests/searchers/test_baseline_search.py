"""Greedy, evolution and the black-box optimisers where the best plan is known."""

import warnings

import numpy as np
import optuna
import pytest

from autocompress.errors import InputError
from autocompress.searchers.base import Evaluated, SearchSettings, Task
from autocompress.searchers.black_box.evolution import MOST_CHANGED, Nursery, genes_of, repaired
from autocompress.searchers.search import run_search
from autocompress_envs.problem import Labeling, Outcome
from autocompress_envs.problem.tables import is_within
from autocompress_envs.solver import Solver
from autocompress_envs.testing import additive_error, random_problem, toy_problem

EVOLVING = ["evolution", "tpe", "cmaes", "nsga2"]


def toy_task(size=204):
    problem, evaluate = toy_problem()
    return Task(problem, {"size": size}, evaluate)


def chain_task():
    problem = random_problem(np.random.default_rng(0), 12, "chain")

    def evaluate(labeling):
        return Outcome(additive_error(problem, labeling), 0.5, 0.5, problem.resources(labeling))

    return Task(problem, {"size": problem.original()["size"] // 6}, evaluate)


def plans_of(method, task, **settings):
    seen = []
    run_search(task, SearchSettings(**settings), method=method, observe=seen.append)
    return [e.labeling.key() for e in seen]


# Steps per byte of excess: 0.0025, 0.003, 0.01 to 4 bits (4 bytes), 0.045 and 0.054 from 4 to 2 (2 bytes).
# At 202 bytes fc follows (0.18 a byte, pruning would be 0.3): 0.62 and the interaction. Pruned at 8 bits: 0.6 in all.
@pytest.mark.parametrize(
    ("size", "sparsity", "weight_bits", "kl"),
    [
        (220, 0, [2, 2, 2], 0.0),
        (216, 0, [1, 2, 2], 0.01),
        (212, 0, [1, 1, 2], 0.022),
        (208, 0, [1, 1, 1], 0.062),
        (206, 0, [0, 1, 1], 0.152),
        (204, 0, [0, 0, 1], 0.76),
        (202, 0, [0, 0, 0], 1.12),
        (200, 1, [2, 2, 2], 0.6),  # pruning leaves 22 bytes of room, which go into bits
    ],
)
def test_greedy_by_hand(size, sparsity, weight_bits, kl):
    result = run_search(toy_task(size), SearchSettings(), method="greedy")
    assert (result.evaluations, result.stopped_because) == (1, "greedy has one plan")
    assert int(result.best.labeling.sparsity[0]) == sparsity
    assert result.best.labeling.weight_bits.tolist() == weight_bits
    assert result.best.outcome.kl == pytest.approx(kl)


def test_greedy_that_leads_nowhere():
    problem, evaluate = toy_problem()
    limits = {"size": 220, "memory": 18}  # the mildest plan holds 18 bytes at once: fc's input and output, 2 and 16
    assert run_search(Task(problem, limits, evaluate), SearchSettings(), method="greedy").best.outcome.kl == 0.0
    task = memory_task()
    with pytest.raises(InputError) as caught:
        run_search(task, SearchSettings(), method="greedy")
    assert str(caught.value) == (
        f"`budget` must be within reach of single changes for the method greedy, got {task.limits}; leave out "
        "`memory`, or choose the method solver."
    )


def memory_task():
    """A chain whose activations must shrink."""
    problem = random_problem(np.random.default_rng(4), 8, "chain")
    solver = Solver(problem, problem.original())
    zeros = np.zeros(8, dtype=np.int64)
    least = solver.reach.smallest(Labeling(zeros, zeros, zeros), 0)
    return Task(problem, {"memory": least["memory"] * 11 // 10}, lambda labeling: None)


def test_repaired_plans_meet_every_limit():
    rng = np.random.default_rng(0)
    for task in (chain_task(), memory_task()):
        solver = Solver(task.problem, task.limits)
        for _ in range(5):
            plan = repaired(solver, Labeling(*rng.integers(solver.tables.counts).T))
            assert is_within(task.problem.resources(plan), task.limits)


def test_repair_keeps_what_is_within_and_full():
    task = chain_task()
    solver = Solver(task.problem, task.limits)
    assert repaired(solver, solver.solve()).key() == solver.solve().key()


def test_children_are_new():
    task = chain_task()
    solver = Solver(task.problem, task.limits)
    nursery = Nursery(solver, np.random.default_rng(0))
    start = solver.solve()
    population = [Evaluated(0, start, task.evaluate(start), 0.0, True)]
    keys = {start.key(), *(nursery.child(population).key() for _ in range(20))}
    assert len(keys) == 21


def test_a_mutation_changes_few_layers():
    task = chain_task()
    solver = Solver(task.problem, task.limits)
    nursery = Nursery(solver, np.random.default_rng(0))
    genes = genes_of(solver.solve())
    mutants = [nursery._mutated(genes) for _ in range(60)]
    assert {int((mutant != genes).sum()) for mutant in mutants} == set(range(1, MOST_CHANGED + 1))
    assert {int((mutant != genes).any(1).sum()) for mutant in mutants} == set(range(1, MOST_CHANGED + 1))
    assert all((mutant >= 0).all() and (mutant < solver.tables.counts).all() for mutant in mutants)


# The toy's few plans are plateaus to CMA-ES: in 2 of 6 seeds it saw 50 known plans in a row before the fourth plan.
@pytest.mark.parametrize(
    ("method", "seed"), [*((method, seed) for method in ("evolution", "tpe", "nsga2") for seed in (0, 1)), ("cmaes", 0)]
)
def test_finds_the_optimum(method, seed):
    result = run_search(toy_task(), SearchSettings(episodes=40, seed=seed), method=method)
    assert result.best.outcome.kl == pytest.approx(0.512)


@pytest.mark.parametrize("method", EVOLVING)
def test_starts_with_the_solver_and_then_follows_the_seed(method):
    task = chain_task()
    first, second = (plans_of(method, task, episodes=6, seed=seed) for seed in (0, 1))
    assert first[0] == second[0] == Solver(task.problem, task.limits).solve().key()
    assert first[1:] != second[1:]
    assert len(first) == len(second) == 6


@pytest.mark.parametrize("method", ["tpe", "cmaes", "nsga2"])
def test_optuna_is_quiet_and_left_as_it_was(method, capfd):
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    filters = list(warnings.filters)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            plans_of(method, chain_task(), episodes=25)
        assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
    finally:
        optuna.logging.set_verbosity(before)
    assert warnings.filters == filters
    assert [str(warning.message) for warning in caught] == []
    assert capfd.readouterr() == ("", "")
