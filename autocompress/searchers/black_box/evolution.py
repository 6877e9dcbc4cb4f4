"""Regularised evolution of plans (Real et al. 2019, arXiv:1802.01548): the oldest plan dies, not the worst."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from autocompress.searchers.base import Evaluated, Recorder, SearchSettings, Task
from autocompress_envs.actions import LabelActions, label_at, menu_coordinates
from autocompress_envs.problem import IntArray, Labeling
from autocompress_envs.solver import Solver

POPULATION = 24
SAMPLE = 6  # plans that compete to be a parent
MOST_CHANGED = 3  # layers of one mutation
CROSSED = 0.5  # share of children with two parents
ATTEMPTS = 20  # at a child within the limits that was not seen before


def search_evolution(task: Task, settings: SearchSettings, recorder: Recorder) -> None:
    """Mutate and cross plans of a population that starts with the solver's plan and random ones.

    Differs from the paper by crossover, and by repair (`repaired`): each evaluated plan meets every limit.
    """
    solver = Solver(task.problem, task.limits)
    nursery = Nursery(solver, np.random.default_rng(settings.seed))
    population = deque([recorder.record(solver.solve())], maxlen=POPULATION)
    while True:
        is_young = len(population) < POPULATION
        child = nursery.stranger() if is_young else nursery.child(population)
        population.append(recorder.record(child))


class Nursery:
    """Makes plans within the limits, each different from all before it where that takes few attempts."""

    def __init__(self, solver: Solver, rng: np.random.Generator) -> None:
        self._solver, self._rng = solver, rng
        self._counts = solver.tables.counts
        self._choices = np.argwhere(self._counts > 1)  # (n, 2): layer, axis of its label
        self._known = {solver.solve().key()}

    def stranger(self) -> Labeling:
        """A label drawn uniformly from the menu of every layer, repaired."""
        return self._first_new(lambda: self._rng.integers(self._counts))

    def child(self, population: Sequence[Evaluated]) -> Labeling:
        """A mutated plan, half of the time of a crossing of two; the winners of samples of the population."""
        parent = self._winner(population)

        def bred() -> IntArray:
            genes = genes_of(parent.labeling)
            if self._rng.random() < CROSSED:
                other = genes_of(self._winner(population).labeling)
                genes = np.where(self._rng.random(len(genes))[:, None] < 0.5, genes, other)
            return self._mutated(genes)

        return self._first_new(bred)

    def _first_new(self, draw: Callable[[], IntArray]) -> Labeling:
        """The first draw that, repaired, was not seen before, or else the last of `ATTEMPTS`."""
        for _ in range(ATTEMPTS):
            labeling = repaired(self._solver, labeling_of_genes(draw()))
            if labeling.key() not in self._known:
                break
        self._known.add(labeling.key())
        return labeling

    def _winner(self, population: Sequence[Evaluated]) -> Evaluated:
        sample = self._rng.choice(len(population), min(SAMPLE, len(population)), replace=False)
        candidates = [population[int(place)] for place in sample]
        return max(candidates, key=lambda evaluated: evaluated.reward)

    def _mutated(self, genes: IntArray) -> IntArray:
        """Another entry of the menu for one sparsity or bit-width each of 1 to `MOST_CHANGED` layers."""
        genes = genes.copy()
        layers = np.unique(self._choices[:, 0])
        changed = min(int(self._rng.integers(1, MOST_CHANGED + 1)), len(layers))
        for layer in self._rng.choice(layers, changed, replace=False):
            axis = self._rng.choice(self._choices[self._choices[:, 0] == layer, 1])
            count = self._counts[layer, axis]
            genes[layer, axis] = (genes[layer, axis] + self._rng.integers(1, count)) % count
        return genes


def repaired(solver: Solver, labeling: Labeling) -> Labeling:
    """The labelling, trimmed to the limits and with the room that is left filled, by single changes.

    Where these lead nowhere (a peak memory), layer by layer the nearest label that leaves every limit within reach.
    """
    single = solver.repair(labeling)
    if single is not None:
        return single
    walk = LabelActions(solver)
    for index in range(solver.tables.layer_count):
        wanted = menu_coordinates(solver.tables, index)[np.arange(3), label_at(labeling, index)]
        walk.apply(index, wanted)
    return walk.finish()


def genes_of(labeling: Labeling) -> IntArray:
    """(L, 3) indices of sparsity, weight bits and activation bits."""
    return np.stack([labeling.sparsity, labeling.weight_bits, labeling.activation_bits], axis=1)


def labeling_of_genes(genes: IntArray) -> Labeling:
    """The inverse of `genes_of`."""
    return Labeling(*genes.T)
