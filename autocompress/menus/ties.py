"""Ties on the menus: one label for layers that runtimes run as one.

The first layer of a tie has the label of all: its expected losses are the sums of theirs, and in the cost model it has
the rows of all. The others keep their places, so that arrays over layers stay as they are, with one label each, which
costs nothing and loses nothing. So whatever searches and plans under a budget respects ties without knowing of any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from autocompress_envs.problem import CostModel, LayerNumbers, Problem


def tied(problem: Problem, leaders: Mapping[int, int]) -> Problem:
    """The problem with one label for every tie.

    Args:
        problem: menus of layers that know of no ties.
        leaders: index of the first layer of its tie, by the index of each other layer of a tie.
    """
    if not leaders:
        return problem
    layers = list(problem.layers)
    for index, leader in leaders.items():
        layers[leader] = _sum(layers[leader], layers[index])
        layers[index] = _without_choice(layers[index])
    return Problem(tuple(layers), _tied_costs(problem.costs, leaders))


def label_places(count: int, leaders: Mapping[int, int]) -> Sequence[int]:
    """(count,) the index of the layer whose label each layer has: its own, or that of the first of its tie."""
    return [leaders.get(index, index) for index in range(count)]


def _sum(leader: LayerNumbers, other: LayerNumbers) -> LayerNumbers:
    return replace(
        leader, errors=leader.errors + other.errors, extra_sources=leader.extra_sources + other.extra_sources
    )


def _without_choice(layer: LayerNumbers) -> LayerNumbers:
    """The layer with one label, of the fewest activation bits: where bits are below 32, a range in the file counts."""
    return replace(
        layer,
        weight_bits=layer.weight_bits[-1:],
        ranks=layer.weight_ranks[-1:],
        activation_bits=layer.activation_bits[:1],
        source=None,
        errors=np.zeros((1, 1, 1)),
        extra_sources=(),
    )


def _tied_costs(costs: CostModel, leaders: Mapping[int, int]) -> CostModel:
    """The costs with the rows of all layers of a tie at its first; the tensor that they read, it reads, too."""
    const, coef, readers = costs.out_const.copy(), costs.out_coef.copy(), costs.tensor_readers.copy()
    members = costs.first_factors.copy()
    for index, leader in leaders.items():
        const[leader] += const[index]
        coef[leader] += coef[index]
        members[leader] += members[index]
        const[index], coef[index], readers[:, index] = 0, 0, False
    return replace(costs, out_const=const, out_coef=coef, tensor_readers=readers, members=members)
