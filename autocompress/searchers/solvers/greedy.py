"""Greedy descent from the mildest labels: what a few lines of code do without any solver."""

from __future__ import annotations

import numpy as np

from autocompress.errors import InputError
from autocompress.searchers.base import Recorder, SearchSettings, StopSearch, Task
from autocompress_envs.problem import Labeling, Problem
from autocompress_envs.solver import Solver


def search_greedy(task: Task, settings: SearchSettings, recorder: Recorder) -> None:
    """From the mildest labels, the change of least layer error per excess removed until all limits hold: one plan.

    A change takes one layer's sparsity, or its bits, to any other entry of the menu. Excess is the sum over resources
    of the share of the limit that is used beyond it. What room the last change leaves is filled in the same way.

    Raises:
        InputError: single changes do not lead within the limits.
    """
    labeling = Solver(task.problem, task.limits).repair(mildest(task.problem))
    if labeling is None:
        raise InputError(
            f"`budget` must be within reach of single changes for the method greedy, got {task.limits}; "
            "leave out `memory`, or choose the method solver."
        )
    recorder(labeling)
    raise StopSearch("greedy has one plan")


def mildest(problem: Problem) -> Labeling:
    """Nothing pruned, and the most bits on every menu."""
    layers = problem.layers
    return Labeling(
        np.zeros(len(layers), dtype=np.int64),
        np.array([len(layer.weight_bits) - 1 for layer in layers]),
        np.array([len(layer.activation_bits) - 1 for layer in layers]),
    )
