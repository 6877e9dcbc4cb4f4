"""Searchers without a learned policy, under the same recorder as the agents."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from autocompress.searchers.base import Recorder, SearchSettings, StopSearch, Task
from autocompress.searchers.explorers import EXPLORERS, Proposal, Trial
from autocompress_envs.environment import LayerLabelingEnv
from autocompress_envs.problem import IntArray, Labeling, Problem
from autocompress_envs.problem.tables import is_within
from autocompress_envs.solver import Solver

UniformValues = tuple[float, int, int]
"""The common values of a uniform plan: sparsity, weight bits, activation bits."""


def search_uniform(task: Task, settings: SearchSettings, recorder: Recorder) -> None:
    """The method `uniform`: the same label for every layer, for all plans of `uniform_frontier`.

    Args:
        task: the problem, its limits and its evaluation.
        settings: options of the search; none counts here.
        recorder: evaluates plans, and raises `StopSearch` when the search is over.

    Raises:
        StopSearch: all these plans are evaluated, or the search is over.
    """
    for labeling in uniform_frontier(task.problem, task.limits):
        recorder(labeling)
    raise StopSearch("every uniform plan worth it is evaluated")


def search_random(task: Task, settings: SearchSettings, recorder: Recorder) -> None:
    """The method `random`: in every layer, a uniform draw from the labels that leave the budget within reach.

    Args:
        task: the problem, its limits and its evaluation.
        settings: options of the search; `seed` counts here.
        recorder: evaluates plans, and raises `StopSearch` when the search is over.

    Raises:
        StopSearch: the search is over.
        InfeasibleBudgetError: no plan meets the limits.
    """
    rng = np.random.default_rng(settings.seed)
    env = LayerLabelingEnv(task.problem, recorder, task.limits, "discrete")  # its reward is the recorder's business
    while True:
        env.reset(seed=settings.seed)
        finished = False
        while not finished:
            action = rng.choice(np.flatnonzero(env.action_masks()))
            _, _, finished, _, _ = env.step(action)


def search_solver(task: Task, settings: SearchSettings, recorder: Recorder) -> None:
    """The method `solver`: the Lagrangian solution of the layer-error problem, in one evaluation.

    Args:
        task: the problem, its limits and its evaluation.
        settings: options of the search; none counts here.
        recorder: evaluates plans, and raises `StopSearch` when the search is over.

    Raises:
        StopSearch: the plan is evaluated.
        InfeasibleBudgetError: no plan meets the limits.
    """
    recorder(Solver(task.problem, task.limits).solve())
    raise StopSearch("the solver has one plan")


def search_prices(explorer_name: str) -> Callable[[Task, SearchSettings, Recorder], None]:
    """A searcher that evaluates the solver's plans under the prices that an explorer proposes.

    The first plan is the solver's own, with prices of 0.

    Args:
        explorer_name: name in `explorers.EXPLORERS`.
    """

    def search(task: Task, settings: SearchSettings, recorder: Recorder) -> None:
        solver = Solver(task.problem, task.limits)
        explorer = EXPLORERS[explorer_name](task.problem, np.random.default_rng(settings.seed), None)
        proposal = Proposal(np.zeros((len(task.problem.layers), 2)), "solver")
        while True:
            labeling = solver.solve(*np.exp(proposal.prices).T)
            best, evaluations = recorder.best, recorder.evaluations
            loss = recorder(labeling).kl
            is_new, is_best = recorder.evaluations > evaluations, recorder.best is not best
            explorer.learn(Trial(proposal.prices, proposal.origin, labeling, loss, is_new, is_best))
            proposal = explorer.propose()

    return search


def uniform_frontier(problem: Problem, limits: dict[str, int]) -> list[Labeling]:
    """Uniform plans within the limits than which no other such plan is milder.

    A plan is milder than another where its sparsity is at most the other's, its bits are at least the
    other's, and one of them differs. A layer whose menu lacks the common value takes the next milder one, or
    else its harshest.

    Args:
        problem: menus, layer errors and costs of the network.
        limits: upper bound of every limited resource, in absolute units.
    """
    return [labeling for _, labeling in uniform_frontier_by_values(problem, limits)]


def uniform_frontier_by_values(problem: Problem, limits: dict[str, int]) -> list[tuple[UniformValues, Labeling]]:
    """The plans of `uniform_frontier`, each with its common sparsity, weight bits and activation bits.

    Args:
        problem: menus, layer errors and costs of the network.
        limits: upper bound of every limited resource, in absolute units.
    """
    sparsities = sorted({float(value) for layer in problem.layers for value in layer.sparsities})
    weight_bits = common_weight_bits(problem)
    activation_bits = sorted({int(bits) for layer in problem.layers for bits in layer.activation_bits})
    feasible: list[tuple[UniformValues, Labeling]] = []
    for triple in itertools.product(sparsities, weight_bits, activation_bits):
        labeling = uniform_plan(problem, *triple)
        if is_within(problem.resources(labeling), limits):
            feasible.append((triple, labeling))
    # Higher is milder in each of the three.
    values = np.array([(-sparsity, bits, activations) for (sparsity, bits, activations), _ in feasible])
    return [
        plan
        for row, plan in zip(values, feasible, strict=True)
        if not ((values >= row).all(1) & (values > row).any(1)).any()
    ]


def common_weight_bits(problem: Problem) -> list[int]:
    """Weight bits that any layer may have without a low rank, ascending.

    Args:
        problem: menus of the network.
    """
    return sorted({int(bits) for layer in problem.layers for bits in layer.weight_bits[layer.weight_ranks == 0]})


def uniform_plan(problem: Problem, sparsity: float, weight_bits: int, activation_bits: int) -> Labeling:
    """The labelling of these values in every layer, or else of the next milder ones, or of the harshest.

    No layer gets a low rank.

    Args:
        problem: menus, layer errors and costs of the network.
        sparsity: common sparsity.
        weight_bits: common weight bits.
        activation_bits: common activation bits.
    """
    layers = problem.layers
    lows = np.array([np.count_nonzero(layer.weight_ranks) for layer in layers])  # (L,) low ranks stand first
    return Labeling(
        np.array([np.flatnonzero(layer.sparsities <= sparsity + 1e-9)[-1] for layer in layers]),
        lows
        + _mildest_at_least([layer.weight_bits[low:] for layer, low in zip(layers, lows, strict=True)], weight_bits),
        _mildest_at_least([layer.activation_bits for layer in layers], activation_bits),
    )


def _mildest_at_least(menus: list[IntArray], bits: int) -> IntArray:
    """(L,) the index of `bits` in every menu, or else of the next higher value, or of the highest."""
    return np.array([min(int(np.searchsorted(menu, bits)), len(menu) - 1) for menu in menus])
