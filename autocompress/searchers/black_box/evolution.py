"""Regularised evolution of plans: the oldest plan dies, not the worst (Real et al. 2019, arXiv:1802.01548)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from autocompress.searchers.base import Evaluated, Recorder, SearchSettings, Task
from autocompress_envs.actions import LabelActions, label_at, menu_coordinates
from autocompress_envs.problem import IntArray, Labeling
from autocompress_envs.solver import Solver

POPULATION = 24  # plans
SAMPLE = 6  # plans of the population that compete to be a parent
MOST_CHANGED = 3  # layers that one mutation changes at most
CROSSED = 0.5  # share of children with two parents
ATTEMPTS = 20  # draws for one child, until one was not seen before


def search_evolution(task: Task, settings: SearchSettings, recorder: Recorder) -> None:
    """The method `evolution`: mutate and cross the plans of a population.

    It starts with the solver's plan and random ones.

    Differs from the paper by crossover, and by repair (`repaired`): each evaluated plan meets every limit.

    Args:
        task: the problem, its limits and its evaluation.
        settings: options of the search; `seed` counts here.
        recorder: evaluates plans, and raises `StopSearch` when the search is over.

    Raises:
        StopSearch: the search is over.
        InfeasibleBudgetError: no plan meets the limits.
    """
    solver = Solver(task.problem, task.limits)
    generator = PlanGenerator(solver, np.random.default_rng(settings.seed))
    population = deque([recorder.record(solver.solve())], maxlen=POPULATION)
    while True:
        is_growing = len(population) < POPULATION
        plan = generator.random_plan() if is_growing else generator.child(population)
        population.append(recorder.record(plan))


class PlanGenerator:
    """Makes plans within the limits, each different from all before it as far as `ATTEMPTS` draws suffice.

    Args:
        solver: the problem and its limits.
        rng: random generator of every draw.
    """

    def __init__(self, solver: Solver, rng: np.random.Generator) -> None:
        self._solver, self._rng = solver, rng
        self._counts = solver.tables.counts
        self._choices = np.argwhere(self._counts > 1)  # (n, 2): layer, axis of its label
        self._known = {solver.solve().key()}

    def random_plan(self) -> Labeling:
        """A plan with labels drawn uniformly from the menu of every layer, repaired."""
        return self._first_new(lambda: self._rng.integers(self._counts))

    def child(self, population: Sequence[Evaluated]) -> Labeling:
        """A mutated plan, from one parent or (with probability `CROSSED`) from two, repaired.

        Args:
            population: evaluated plans; a parent is the one of highest reward in a random sample of `SAMPLE`.
        """
        parent = self._winner(population)

        def bred() -> IntArray:
            genes = genes_of(parent.labeling)
            if self._rng.random() < CROSSED:
                other = genes_of(self._winner(population).labeling)
                genes = np.where(self._rng.random(len(genes))[:, None] < 0.5, genes, other)
            return self.mutated(genes)

        return self._first_new(bred)

    def _first_new(self, draw: Callable[[], IntArray]) -> Labeling:
        """The first draw of genes (L, 3) that, repaired, is a new plan, or else the last of `ATTEMPTS`."""
        for _ in range(ATTEMPTS):
            labeling = repaired(self._solver, labeling_of_genes(draw()))
            if labeling.key() not in self._known:
                break
        self._known.add(labeling.key())
        return labeling

    def _winner(self, population: Sequence[Evaluated]) -> Evaluated:
        """The plan of highest reward in a random sample of the population."""
        sample = self._rng.choice(len(population), min(SAMPLE, len(population)), replace=False)
        candidates = [population[int(place)] for place in sample]
        return max(candidates, key=lambda evaluated: evaluated.reward)

    def mutated(self, genes: IntArray) -> IntArray:
        """(L, 3) genes with another sparsity or another bit-width in each of 1 to `MOST_CHANGED` layers.

        Args:
            genes: (L, 3) genes of the parent, which stay as they are.
        """
        genes = genes.copy()
        layers = np.unique(self._choices[:, 0])
        changed = min(int(self._rng.integers(1, MOST_CHANGED + 1)), len(layers))
        for layer in self._rng.choice(layers, changed, replace=False):
            axis = self._rng.choice(self._choices[self._choices[:, 0] == layer, 1])
            count = self._counts[layer, axis]
            genes[layer, axis] = (genes[layer, axis] + self._rng.integers(1, count)) % count
        return genes


def repaired(solver: Solver, labeling: Labeling) -> Labeling:
    """A labelling within the limits, near the one given.

    Single changes lower the costs until the limits hold, then fill the room that is left. Where these lead
    nowhere, which a limit on peak memory can cause, every layer in turn takes the nearest label that leaves
    every limit within reach.

    Args:
        solver: the problem and its limits.
        labeling: the labelling to repair.

    Raises:
        InfeasibleBudgetError: no plan meets the limits.
    """
    single = solver.repair(labeling)
    if single is not None:
        return single
    actions = LabelActions(solver)
    for index in range(solver.tables.layer_count):
        wanted = menu_coordinates(solver.tables, index)[np.arange(3), label_at(labeling, index)]
        actions.apply(index, wanted)
    return actions.finish()


def genes_of(labeling: Labeling) -> IntArray:
    """(L, 3) indices of every layer's sparsity, weight bits and activation bits."""
    return np.stack([labeling.sparsity, labeling.weight_bits, labeling.activation_bits], axis=1)


def labeling_of_genes(genes: IntArray) -> Labeling:
    """The labelling of genes (L, 3), the inverse of `genes_of`."""
    return Labeling(*genes.T)
