"""What a plan is expected to lose, followed label by label.

    J(p) = |Z|^2 / 2 + e + e^2

with Z the sum of the labels' effects (`sketch`), and e the sum of their expected losses, which stand for what is not
first order and grow faster the more of them there are. It is the form by which the planner of the default search
predicts plans. Layers that are not labelled yet count with the labels of a reference plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from autocompress_envs.labeling.sketch import Sketch
from autocompress_envs.problem import FloatArray, IntArray, Labeling
from autocompress_envs.problem.tables import Tables


@dataclass(frozen=True)
class OptionLosses:
    """What the O options of one layer are expected to do, beside the labels of all other layers.

    Attributes:
        effects: (O, D) effects of every option.
        pruning: (O,) expected losses of its sparsity in nats, over all layers that read the group.
        rounding: (O,) expected losses of its bits in nats.
    """

    effects: FloatArray
    pruning: FloatArray
    rounding: FloatArray

    @cached_property
    def expected(self) -> FloatArray:
        """(O,) expected losses in nats."""
        return np.asarray(self.pruning + self.rounding)

    @cached_property
    def squared(self) -> FloatArray:
        """(O,) squared lengths of the effects."""
        return np.asarray((self.effects**2).sum(1))


class Forecast:
    """The expected divergence J of the labels so far, completed by a reference plan.

    Args:
        tables: padded menus of the problem.
        sketch: effects of all labels.
        reference: plan that stands for the layers that are not labelled.

    Attributes:
        options: what the options of every layer do, L entries; options in the order of `actions.DiscreteActions`.
        reference_options: (L,) position of the reference's label on every layer's menu.
        prefix: (D,) effect of the labels so far.
        others: (D,) effect of all labels but the next layer's.
    """

    def __init__(self, tables: Tables, sketch: Sketch, reference: Labeling) -> None:
        self.options = [_option_losses(tables, sketch, layer) for layer in range(tables.layer_count)]
        self.reference_options = positions_of(tables, reference)
        at = self.reference_options
        effects = np.stack([each.effects[o] for each, o in zip(self.options, at, strict=True)])  # (L, D)
        losses = np.array([each.expected[o] for each, o in zip(self.options, at, strict=True)])  # (L,)
        self._rest_effects = _sums_from(effects)  # (L + 1, D)
        self._rest_losses = _sums_from(losses[:, None])[:, 0]  # (L + 1,)
        self.start()

    def start(self) -> None:
        """Forget the labels so far."""
        self.prefix = np.zeros(self._rest_effects.shape[1])
        self._prefix_loss, self._step = 0.0, 0

    @property
    def others(self) -> FloatArray:
        """(D,) effect of all labels but the next layer's: those so far, and the reference's of later layers."""
        return np.asarray(self.prefix + self._rest_effects[self._step + 1])

    def add(self, option: int) -> None:
        """Label the next layer."""
        chosen = self.options[self._step]
        self.prefix = self.prefix + chosen.effects[option]
        self._prefix_loss += float(chosen.expected[option])
        self._step += 1

    def value(self) -> float:
        """J of the labels so far, completed by the reference, in nats."""
        total = self.prefix + self._rest_effects[self._step]
        return _divergence(float(total @ total), self._prefix_loss + float(self._rest_losses[self._step]))

    def first_order(self) -> FloatArray:
        """(O,) |Z|^2 / 2 in nats with each option of the next layer."""
        others, options = self.others, self.options[self._step]
        squared = others @ others + 2.0 * (options.effects @ others) + options.squared
        return np.asarray(0.5 * squared)

    def values(self, first_order: FloatArray | None = None) -> FloatArray:
        """(O,) J in nats with each option of the next layer; `first_order` is what the method of this name says."""
        first = self.first_order() if first_order is None else first_order
        expected = self.options[self._step].expected + (self._prefix_loss + self._rest_losses[self._step + 1])
        return np.asarray(first + expected + expected**2)

    def plan_value(self, positions: IntArray) -> float:
        """J in nats of a whole plan, given as positions (L,) on the menus."""
        chosen = list(zip(self.options, positions, strict=True))
        total = np.sum([each.effects[o] for each, o in chosen], axis=0)
        return _divergence(float(total @ total), float(sum(each.expected[o] for each, o in chosen)))


def positions_of(tables: Tables, labeling: Labeling) -> IntArray:
    """(L,) positions of labels on the layers' menus: (s * B + b) * A + a, as in `actions.DiscreteActions`."""
    _, bits, activations = tables.counts.T
    found: IntArray = (labeling.sparsity * bits + labeling.weight_bits) * activations + labeling.activation_bits
    return found


def labels_at(tables: Tables, layer: int) -> tuple[IntArray, IntArray, IntArray]:
    """(O,) each: indices of sparsity, weight bits and activation bits of all options of a layer."""
    first, second, third = np.unravel_index(np.arange(int(tables.counts[layer].prod())), tuple(tables.counts[layer]))
    return first, second, third


def _option_losses(tables: Tables, sketch: Sketch, layer: int) -> OptionLosses:
    sparsity, bits, activations = labels_at(tables, layer)
    effects = (
        sketch.pruning[layer, sparsity] + sketch.rounding[layer, bits * tables.activation_bits.shape[1] + activations]
    )
    pruning = np.maximum(tables.errors_by_owner()[layer, sparsity], 0.0)
    return OptionLosses(effects, pruning, np.maximum(tables.errors[layer, 0, bits, activations], 0.0))


def _sums_from(rows: FloatArray) -> FloatArray:
    """(L + 1, …) sums of the rows (L, …) from each on; zeros in the end."""
    return np.concatenate([np.cumsum(rows[::-1], axis=0)[::-1], np.zeros_like(rows[:1])])


def _divergence(squared_length: float, expected: float) -> float:
    return 0.5 * squared_length + expected + expected**2
