"""Plans whose networks are timed, so that the costs of kernels can be told apart.

They cover what a search may choose: networks that keep nearly everything and networks that keep little, widths that
suit kernels and widths that don't, one format everywhere and formats mixed.
"""

from __future__ import annotations

import numpy as np

from autocompress_envs.problem import IntArray, Labeling, LayerNumbers, Problem

_STEPS = (1, 4, 8, 16)  # widths are drawn among multiples of one of these
_SPREAD = 0.25  # of a layer's sparsity around its network's
_GONE = 0.5  # most probable share of the branches that are removed, where they may be


def draw_variants(problem: Problem, count: int, seed: int = 0) -> list[Labeling]:
    """Different labellings, the unpruned one first.

    Args:
        problem: menus of the network.
        count: number of labellings, at least 1; fewer come back where there are no more.
        seed: seed of the draws.
    """
    rng = np.random.default_rng(seed)
    found = {each.key(): each for each in _uniform(problem)}
    for _ in range(20 * count):
        if len(found) >= count:
            break
        drawn = _drawn(problem, rng)
        found.setdefault(drawn.key(), drawn)
    return list(found.values())[:count]


def _uniform(problem: Problem) -> list[Labeling]:
    """Nothing pruned, with the fewest and with the most bits everywhere."""
    none = np.zeros(len(problem.layers), dtype=np.int64)
    weights = np.array([len(layer.weight_bits) - 1 for layer in problem.layers])
    activations = np.array([len(layer.activation_bits) - 1 for layer in problem.layers])
    return [Labeling(none, none, none), Labeling(none, weights, activations)]


def _drawn(problem: Problem, rng: np.random.Generator) -> Labeling:
    level, gone, step = rng.random(), _GONE * rng.random() * rng.integers(2), int(rng.choice(_STEPS))
    sparsity = [_sparsity(layer, level, gone, step, rng) for layer in problem.layers]
    weight_bits = _mixed([len(layer.weight_bits) for layer in problem.layers], rng)
    activation_bits = _mixed([len(layer.activation_bits) for layer in problem.layers], rng)
    return Labeling(np.array(sparsity, dtype=np.int64), weight_bits, activation_bits)


def _sparsity(layer: LayerNumbers, level: float, gone: float, step: int, rng: np.random.Generator) -> int:
    """Index of a layer's sparsity, near the network's level, with a multiple of `step` channels where there is one."""
    if layer.group is None:
        return int(rng.integers(len(layer.sparsities)))
    if layer.kept[-1] == 0 and rng.random() < gone:
        return len(layer.kept) - 1
    options = np.flatnonzero((layer.kept > 0) & (layer.kept % step == 0))
    if not len(options):
        options = np.flatnonzero(layer.kept > 0)
    wanted = np.clip(rng.normal(level, _SPREAD), 0.0, 1.0)
    return int(options[np.argmin(np.abs(layer.sparsities[options] - wanted))])


def _mixed(counts: list[int], rng: np.random.Generator) -> IntArray:
    """(L,) indices into menus of these lengths: mostly one entry, with a share of others that is drawn too."""
    favourite, share = rng.random(), rng.random() * rng.integers(2)
    drawn = [rng.random() if rng.random() < share else favourite for _ in counts]
    return np.array([int(each * count) for each, count in zip(drawn, counts, strict=True)], dtype=np.int64)
