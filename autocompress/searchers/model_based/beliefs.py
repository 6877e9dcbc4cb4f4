"""What is believed of plans before they are measured, and how a measured loss corrects it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from autocompress.evaluation.effects import Effects
from autocompress.searchers.model_based.first_order import FirstOrderModel, predicted_best_plan
from autocompress_envs.problem import FloatArray, IntArray, Labeling, LayerNumbers, Problem
from autocompress_envs.problem.tables import Tables
from autocompress_envs.solver import Solver

PARTS = ("sparsity", "weight_bits", "activation_bits")
"""Fields of a labelling, in the order of `Label.part`."""


@dataclass(frozen=True)
class Label:
    """One label of one layer.

    Attributes:
        part: position in `PARTS` of what it sets.
        layer: index of the layer.
        index: index into the layer's menu.
    """

    part: int
    layer: int
    index: int


class Beliefs:
    """Expected divergences of plans: by first-order effects where there are any, else by the layer errors alone.

    Args:
        problem: menus, layer errors and costs of the network, as they are believed to be.
        limits: upper bound of every limited resource, in absolute units.
        probabilities: (N, K) the uncompressed network's predictions.
        effects: first-order effects around the original, on the same N samples; None for none.
        prices: (L, 2) a policy's log prices; None for prices of 0.

    Attributes:
        problem: the problem that was given.
    """

    def __init__(
        self,
        problem: Problem,
        limits: Mapping[str, int],
        probabilities: FloatArray,
        effects: Effects | None,
        prices: FloatArray | None,
    ) -> None:
        self.problem = problem
        self._limits, self._probabilities, self._effects, self._prices = dict(limits), probabilities, effects, prices
        self._weights = np.exp(np.zeros((len(problem.layers), 2)) if prices is None else prices).T
        self._solver: Solver | None = None
        self._model: FirstOrderModel | None = None

    def losses(self, plans: list[Labeling]) -> FloatArray:
        """(n,) expected divergences of n plans in nats."""
        if self._effects is None:
            self._solver = self._solver or Solver(self.problem, self._limits)
            return np.array([self._solver.error(plan, *self._weights) for plan in plans])
        self._model = self._model or FirstOrderModel(self.problem, self._probabilities, self._effects, self._prices)
        encode = self._model.encoding.encode
        return self._model.predict(np.stack([encode(plan) for plan in plans]))[0]

    def best(self) -> Labeling:
        """The plan within the limits that is believed to be the best."""
        if self._effects is None:
            self._solver = self._solver or Solver(self.problem, self._limits)
            return self._solver.solve(*self._weights)
        return predicted_best_plan(self.problem, self._limits, self._probabilities, self._effects, self._prices)

    def corrected(self, labels: Iterable[Label], loss: float) -> Beliefs:
        """The same beliefs, but labels lose more than was expected of them, and so do their neighbours.

        Other labels of the same layers follow the common laws: an error falls fourfold with every bit, and grows
        with the square of the sparsity. No expectation is lowered.

        Args:
            labels: the labels.
            loss: nats that each loses on top of what was expected of it.
        """
        problem = self.problem
        for label in labels:
            correct = _with_pruning_loss if PARTS[label.part] == "sparsity" else _with_rounding_loss
            problem = replace(problem, layers=correct(problem, label, loss))
        return Beliefs(problem, self._limits, self._probabilities, self._effects, self._prices)


def mildness(labeling: Labeling) -> IntArray:
    """(3, L) numbers that are higher for milder labels of the same layer, part by part."""
    return np.stack([-labeling.sparsity, labeling.weight_bits, labeling.activation_bits])


def _with_rounding_loss(problem: Problem, label: Label, loss: float) -> tuple[LayerNumbers, ...]:
    """The layers in which a bit-width of one layer loses `loss` nats more than was expected of it."""
    layers = list(problem.layers)
    layer, axis = layers[label.layer], label.part
    bits = layer.weight_bits if PARTS[axis] == "weight_bits" else layer.activation_bits  # (B,) or (A,)
    expected = layer.errors.take([label.index], axis)  # (S, 1, A) or (S, B, 1)
    factors = np.minimum(4.0 ** (bits[label.index] - bits.astype(float)), 1.0)
    if PARTS[axis] == "weight_bits":
        factors = factors * (layer.weight_ranks == layer.weight_ranks[label.index])  # other ranks have other errors
    least = (expected + loss) * factors.reshape(-1, *[1] * (2 - axis))
    layers[label.layer] = replace(layer, errors=np.maximum(layer.errors, least))
    return tuple(layers)


def _with_pruning_loss(problem: Problem, label: Label, loss: float) -> tuple[LayerNumbers, ...]:
    """The layers in which a sparsity of one owner loses `loss` nats more than was expected of it.

    The loss is added where the first reader of the group loses; nothing changes where no layer depends on it.
    """
    layers, sparsities = list(problem.layers), problem.layers[label.layer].sparsities
    expected = Tables(problem).errors_by_owner()[label.layer][: len(sparsities)]  # (S,)
    factors = np.minimum((sparsities / sparsities[label.index]) ** 2, 1.0)
    added = np.maximum((expected[label.index] + loss) * factors - expected, 0.0)  # (S,)
    for index, layer in enumerate(layers):
        if layer.source == label.layer:
            layers[index] = replace(layer, errors=layer.errors + added[:, None, None])
            break
        if any(owner == label.layer for owner, _ in layer.extra_sources):
            extra = [(owner, errors + added * (owner == label.layer)) for owner, errors in layer.extra_sources]
            layers[index] = replace(layer, extra_sources=tuple(extra))
            break
    return tuple(layers)
