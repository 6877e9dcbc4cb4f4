"""Which sparsities a layer depends on, and which of them may move at the same time.

A `decider` of a layer is a layer whose chosen sparsity changes the first one's expected loss or cost: the
owner of a group of channels that the layer reads or writes. Without groups a layer with sparsities to choose
is its own decider.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from autocompress_envs.problem import BoolArray, IntArray
from autocompress_envs.problem.tables import Tables


@dataclass(frozen=True)
class Pairs:
    """n pairs of a layer and one of its deciders.

    Attributes:
        layer: (n,) indices of the layers.
        decider: (n,) indices of the layers whose sparsity changes the first one's loss or cost.
        fan_in_coef: (n,) weight columns of the layer per kept channel of the decider's group.
        out_coef: (n,) weight rows of the layer per kept channel of the decider's group.
    """

    layer: IntArray
    decider: IntArray
    fan_in_coef: IntArray
    out_coef: IntArray

    def where(self, mask: BoolArray) -> Pairs:
        """The pairs at which `mask` (n,) is true."""
        return Pairs(*(getattr(self, column.name)[mask] for column in fields(self)))

    def of(self, deciders: IntArray) -> Pairs:
        """The pairs of the given deciders."""
        return self.where(np.isin(self.decider, deciders))


def pair_widths(tables: Tables, pairs: Pairs, sparsity: IntArray) -> tuple[IntArray, IntArray]:
    """Weight columns and rows of the pairs' layers, each (n, S), for every sparsity of the decider alone.

    Widths are linear in the kept channels, so only the change of the decider's channels has to be added.
    """
    fan_in, out = tables.problem.costs.widths(tables.kept_channels(sparsity))  # (L,)
    now = tables.kept[pairs.decider, sparsity[pairs.decider]]  # (n,)
    change = tables.kept[pairs.decider] - now[:, None]  # (n, S) channels
    return (
        fan_in[pairs.layer][:, None] + pairs.fan_in_coef[:, None] * change,
        out[pairs.layer][:, None] + pairs.out_coef[:, None] * change,
    )


def dependencies(tables: Tables) -> tuple[Pairs, list[frozenset[int]]]:
    """All pairs of a layer and one of its deciders, and the set of deciders of every layer.

    In the toy the first layer owns the group that it writes and the second one reads; the third reads no
    group.

    >>> from autocompress_envs.testing import toy_problem
    >>> pairs, deciders_of = dependencies(Tables(toy_problem()[0]))
    >>> [sorted(deciders) for deciders in deciders_of]
    [[0], [0], []]
    >>> pairs.layer.tolist(), pairs.decider.tolist(), pairs.fan_in_coef.tolist(), pairs.out_coef.tolist()
    ([0, 1], [0, 0], [0, 1], [1, 0])
    """
    costs = tables.problem.costs
    decides = tables.counts[:, 0] > 1
    rows: list[tuple[int, int, int, int]] = []
    deciders_of = []
    for layer in range(tables.layer_count):
        groups = np.flatnonzero(costs.fan_in_coef[layer] | costs.out_coef[layer])
        candidates = {int(tables.owner[g]) for g in groups}
        if tables.problem.layers[layer].source is not None or not tables.by_channel:
            candidates.add(int(tables.source[layer]))
        deciders = {d for d in candidates if d >= 0 and decides[d]}
        deciders_of.append(frozenset(deciders))
        for decider in sorted(deciders):
            group = tables.group[decider]
            coefs = (0, 0) if group < 0 else (costs.fan_in_coef[layer, group], costs.out_coef[layer, group])
            rows.append((layer, decider, int(coefs[0]), int(coefs[1])))
    columns = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    return Pairs(*columns), deciders_of


def colours(deciders: IntArray, deciders_of: list[frozenset[int]]) -> list[IntArray]:
    """Deciders by colour: two of one colour share no layer, so they may move at the same time.

    Greedy colouring: every decider gets the first colour that no decider with a layer in common has.

    >>> chain = [frozenset({0}), frozenset({0, 1}), frozenset({1, 2}), frozenset({2})]  # deciders of four layers
    >>> [colour.tolist() for colour in colours(np.array([0, 1, 2]), chain)]
    [[0, 2], [1]]
    """
    found: list[set[int]] = []
    for decider in deciders.tolist():
        neighbours: set[int] = set().union(*(group for group in deciders_of if decider in group))
        home = next((colour for colour in found if not colour & neighbours), None)
        if home is None:
            found.append(home := set())
        home.add(decider)
    return [np.array(sorted(colour)) for colour in found]
