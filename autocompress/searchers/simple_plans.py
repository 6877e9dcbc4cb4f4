"""The plans that anyone would try by hand: every agent evaluates them first, so that no search ends worse.

An agent chooses by what it believes of labels, and beliefs can be false: on one network a search of 40
evaluations ended eight times worse than plain 4 bits. Uniform plans believe nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np

from autocompress.searchers.base import SearchSettings
from autocompress.searchers.solvers.baselines import common_weight_bits, uniform_frontier_by_values, uniform_plan
from autocompress_envs.problem import IntArray, Labeling, LayerNumbers, Problem
from autocompress_envs.problem.tables import is_within
from autocompress_envs.solver import InfeasibleBudgetError, Solver

SHARE = 3  # simple plans take at most one in so many evaluations


def simple_plans(problem: Problem, limits: dict[str, int]) -> list[Labeling]:
    """The simple plans within the limits, each once, that of least expected loss first.

    They are the solver's plan, the best mix of two neighbouring bit-widths with nothing pruned
    (`best_mix`), and the uniform plans: at most one for every weight bit-width, of `uniform_frontier` the
    one that prunes least, and of these the one with most activation bits.

    Args:
        problem: menus, layer errors and costs of the network.
        limits: upper bound of every limited resource, in absolute units.

    Raises:
        InfeasibleBudgetError: no plan meets the limits.
    """
    solver = Solver(problem, limits)
    mix = best_mix(problem, limits)
    plans = [solver.solve(), *([] if mix is None else [mix]), *_uniform_plans(problem, limits)]
    unique = {plan.key(): plan for plan in plans}
    return sorted(unique.values(), key=solver.error)


def affordable(plans: list[Labeling], settings: SearchSettings) -> list[Labeling]:
    """The first of the simple plans, at least one, that a search can afford.

    They take a `SHARE`-th of its allowance at most, and half of its patience: else it could end among them.

    >>> [len(affordable(["a", "b", "c"], SearchSettings(episodes=count))) for count in (1, 6, 40)]
    [1, 2, 3]
    >>> len(affordable(["a", "b", "c"], SearchSettings(patience=4)))
    2

    Args:
        plans: the simple plans, the most promising first.
        settings: options of the search; `episodes` and `patience` count here.
    """
    most = settings.episodes // SHARE
    if settings.patience:
        most = min(most, settings.patience // 2)
    return plans[: max(1, most)]


def fitted(problem: Problem, limits: dict[str, int], plans: Iterable[Labeling]) -> list[Labeling]:
    """Plans from elsewhere, such as those of another budget: as they are, and by single changes made to fit.

    A plan that breaks a limit is trimmed; in one that leaves room, the room is filled (`Solver.repair`).

    Args:
        problem: menus, layer errors and costs of the network.
        limits: upper bound of every limited resource, in absolute units.
        plans: the plans, within the limits or not.

    Returns:
        The plans within the limits, each once; a plan that single changes don't make fit is not among them.
    """
    solver = Solver(problem, limits)
    found = {}
    for plan in plans:
        repaired = solver.repair(plan)
        for each in (plan, *([] if repaired is None else [repaired])):
            if is_within(problem.resources(each), limits):
                found[each.key()] = each
    return list(found.values())


def best_mix(problem: Problem, limits: dict[str, int]) -> Labeling | None:
    """The plan of least expected loss that prunes nothing and mixes two neighbouring weight bit-widths.

    Of all pairs of neighbours it takes the highest that fits: lower ones can only lose more.
    A layer whose menu lacks a bit-width takes the next higher one, or else its highest.

    Args:
        problem: menus, layer errors and costs of the network.
        limits: upper bound of every limited resource, in absolute units.

    Returns:
        The plan, or None where none fits with nothing pruned.
    """
    for allowed in _pairs(problem):
        try:
            found = Solver(_restricted(problem, allowed), limits).solve()
        except InfeasibleBudgetError:
            continue
        bits = np.array([kept[index] for kept, index in zip(allowed, found.weight_bits, strict=True)])
        return Labeling(found.sparsity, bits, found.activation_bits)
    return None


def _pairs(problem: Problem) -> Iterator[list[IntArray]]:
    """For pairs of neighbouring bit-widths, highest first: indices of every layer's weight bits to choose from."""
    at = [uniform_plan(problem, 0.0, width, 0).weight_bits for width in common_weight_bits(problem)]
    for lower, higher in reversed(list(pairwise(at))):
        yield [np.unique(both) for both in zip(lower, higher, strict=True)]


def _restricted(problem: Problem, allowed: list[IntArray]) -> Problem:
    """The problem without pruning, with the weight bits at the allowed indices alone."""
    layers = [_restricted_layer(layer, kept) for layer, kept in zip(problem.layers, allowed, strict=True)]
    return replace(problem, layers=tuple(layers))


def _restricted_layer(layer: LayerNumbers, allowed: IntArray) -> LayerNumbers:
    """One layer with its first sparsity, 0, and the weight bits at the allowed indices alone."""
    return replace(
        layer,
        sparsities=layer.sparsities[:1],
        kept=layer.kept[:1],
        weight_bits=layer.weight_bits[allowed],
        ranks=layer.weight_ranks[allowed],
        errors=layer.errors[:1, allowed],
        extra_sources=tuple((owner, errors[:1]) for owner, errors in layer.extra_sources),
    )


def _uniform_plans(problem: Problem, limits: dict[str, int]) -> list[Labeling]:
    """Of the frontier of uniform plans, one for every weight bit-width: least pruned, then most activation bits."""
    mildest: dict[int, tuple[tuple[float, int], Labeling]] = {}
    for (sparsity, bits, activations), plan in uniform_frontier_by_values(problem, limits):
        harshness = (sparsity, -activations)
        if bits not in mildest or harshness < mildest[bits][0]:
            mildest[bits] = harshness, plan
    return [plan for _, plan in mildest.values()]
