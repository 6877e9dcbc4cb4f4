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


def search_uniform(task: Task, settings: SearchSettings, recorder: Recorder) -> None:
    """The same label for every layer: all of them that meet the budget and are not plainly worse than another."""
    for labeling in uniform_frontier(task.problem, task.limits):
        recorder(labeling)
    raise StopSearch("every uniform plan worth it is evaluated")


def search_random(task: Task, settings: SearchSettings, recorder: Recorder) -> None:
    """Random walks: in every layer a label drawn uniformly among those that leave the budget within reach."""
    rng = np.random.default_rng(settings.seed)
    env = LayerLabelingEnv(task.problem, recorder, task.limits, "discrete")  # its reward is the recorder's business
    while True:
        env.reset(seed=settings.seed)
        finished = False
        while not finished:
            action = rng.choice(np.flatnonzero(env.action_masks()))
            _, _, finished, _, _ = env.step(action)


def search_solver(task: Task, settings: SearchSettings, recorder: Recorder) -> None:
    """The Lagrangian solution of the layer-error problem: one evaluation."""
    recorder(Solver(task.problem, task.limits).solve())
    raise StopSearch("the solver has one plan")


def search_prices(explorer_name: str) -> Callable[[Task, SearchSettings, Recorder], None]:
    """A searcher that evaluates what an explorer proposes, starting with the solver's plan."""

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
    """Uniform plans within the limits of which none has at most the sparsity and at least the bits of another.

    A layer whose menu lacks the common value takes the next milder one there is, or its harshest.
    """
    sparsities = sorted({float(value) for layer in problem.layers for value in layer.sparsities})
    weight_bits = sorted({int(bits) for layer in problem.layers for bits in layer.weight_bits})
    activation_bits = sorted({int(bits) for layer in problem.layers for bits in layer.activation_bits})
    feasible: list[tuple[tuple[float, int, int], Labeling]] = []
    for triple in itertools.product(sparsities, weight_bits, activation_bits):
        labeling = _uniform(problem, *triple)
        if is_within(problem.resources(labeling), limits):
            feasible.append((triple, labeling))
    values = np.array([(-sparsity, bits, activations) for (sparsity, bits, activations), _ in feasible])
    return [
        labeling
        for row, (_, labeling) in zip(values, feasible, strict=True)
        if not ((values >= row).all(1) & (values > row).any(1)).any()
    ]


def _uniform(problem: Problem, sparsity: float, weight_bits: int, activation_bits: int) -> Labeling:
    layers = problem.layers
    return Labeling(
        np.array([np.flatnonzero(layer.sparsities <= sparsity + 1e-9)[-1] for layer in layers]),
        _mildest_at_least([layer.weight_bits for layer in layers], weight_bits),
        _mildest_at_least([layer.activation_bits for layer in layers], activation_bits),
    )


def _mildest_at_least(menus: list[IntArray], bits: int) -> IntArray:
    """The index of `bits` in every menu, or of the next higher value, or of the highest."""
    return np.array([min(int(np.searchsorted(menu, bits)), len(menu) - 1) for menu in menus])
