"""Greedy descent from the mildest labels: a baseline of a few lines, without any solver."""

from __future__ import annotations

import numpy as np

from autocompress.errors import InputError
from autocompress.searchers.base import Recorder, SearchSettings, StopSearch, Task
from autocompress_envs.problem import Labeling, Problem
from autocompress_envs.solver import Solver


def search_greedy(task: Task, settings: SearchSettings, recorder: Recorder) -> None:
    """The method `greedy`: one plan, by single changes from the mildest labels until all limits hold.

    A change takes one layer's sparsity, or its bits, to any other entry of the menu. The next one has the
    least layer error for the excess that it removes. Excess is the sum, over resources, of the amount beyond
    the limit as a share of the limit. The room that the last change leaves is filled in the same way.

    Args:
        task: the problem, its limits and its evaluation.
        settings: options of the search; none counts here.
        recorder: evaluates plans, and raises `StopSearch` when the search is over.

    Raises:
        StopSearch: the plan is evaluated.
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
    """The labelling that prunes nothing and has the most bits on every menu.

    Args:
        problem: menus of the network.
    """
    layers = problem.layers
    return Labeling(
        np.zeros(len(layers), dtype=np.int64),
        np.array([len(layer.weight_bits) - 1 for layer in layers]),
        np.array([len(layer.activation_bits) - 1 for layer in layers]),
    )
