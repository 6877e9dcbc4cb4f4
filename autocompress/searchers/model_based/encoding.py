"""Plans as vectors of integers, and one row of numbers over all options: what models of plans compute with.

A plan's *codes* are (2L,) integers, one for each *feature*. The first L features are the layers' sparsities,
as indices into their menus. The last L are the layers' bits, as flat indices of (weight bits, activation
bits).

Every option of every feature has a *slot*. All slots lie in one row of S entries, feature after feature. So a
plan is also a vector of S zeros and ones with 2L ones, and what is additive over layers is a product with
that vector.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from autocompress.evaluation.effects import Effects
from autocompress_envs.problem import FloatArray, IntArray, Labeling, Problem
from autocompress_envs.problem.tables import Tables
from autocompress_envs.solver.lagrangian import Choice, choice_of, labeling_of

Matrix = npt.NDArray[np.float32]

SMALLEST_ERROR = 1e-3
"""Least layer error of an option, as a share of the layer's largest.

Only the option of least error has an error of 0. An estimate of no error at all would hide from the models
that the option changes the outputs.
"""


class PlanEncoding:
    """Codes and slots of the plans of one problem.

    The toy has three layers: two sparsities each (slots 0 to 5), then three bit-widths each (slots 6 to 14).

    >>> from autocompress_envs.testing import toy_problem
    >>> encoding = PlanEncoding(toy_problem()[0])
    >>> encoding.offsets
    array([ 0,  2,  4,  6,  9, 12])
    >>> encoding.slots(np.array([1, 0, 0, 2, 0, 1]))
    array([ 1,  2,  4,  8,  9, 13])

    Args:
        problem: menus, layer errors and costs of the network.
        prices: (L, 2) logarithms of the factors on layer errors: column 0 for pruning, column 1 for rounding.
            Default: None, which leaves the layer errors as they are.

    Attributes:
        tables: the problem's numbers as arrays.
        errors: layer errors in nats, a pair of arrays. (L, sparsities): of an owner's sparsity, over all
            layers that read its group. (L, B * A): of a layer's bits, unpruned.
        slot_errors: (S,) the same layer errors in one row, by slot.
        offsets: (2L,) the first slot of every feature.
    """

    def __init__(self, problem: Problem, prices: FloatArray | None = None) -> None:
        self.tables = Tables(problem)
        rounding = self.tables.errors[:, 0].reshape(self.tables.layer_count, -1)
        rounding = rounding - rounding.min(1, keepdims=True)
        self.errors = _floored(self.tables.errors_by_owner()), _floored(rounding)
        if prices is not None:
            of_pruning, of_rounding = np.exp(prices).T[:, :, None]
            self.errors = self.errors[0] * of_pruning, self.errors[1] * of_rounding
        self.slot_errors = np.concatenate([errors.ravel() for errors in self.errors])
        options = np.array([errors.shape[1] for errors in self.errors for _ in range(self.tables.layer_count)])
        self.offsets = np.cumsum(options) - options

    def encode(self, labeling: Labeling) -> IntArray:
        """(2L,) codes of a labelling, or (..., 2L) codes of stacked labellings."""
        choice = choice_of(self.tables, labeling)
        return np.concatenate([choice.sparsity, choice.bits], axis=-1)

    def decode(self, codes: IntArray) -> Labeling:
        """The labelling of codes (2L,), or the stacked labellings of codes (..., 2L)."""
        sparsity, bits = np.split(codes, 2, axis=-1)
        return labeling_of(self.tables, Choice(sparsity.copy(), bits))

    def slots(self, codes: IntArray) -> IntArray:
        """(..., 2L) the slots that plans with codes (..., 2L) occupy."""
        slots: IntArray = self.offsets + codes
        return slots

    def changed_slots(self, codes: IntArray, feature: IntArray, option: IntArray) -> tuple[IntArray, IntArray]:
        """The slots that M single changes of one plan leave, and the slots that they take instead.

        Args:
            codes: (2L,) the plan.
            feature: (M,) the feature that each change sets.
            option: (M,) the option to which each change sets it.

        Returns:
            (M,) slots before the change, and (M,) slots after it.
        """
        first = self.offsets[feature]
        return first + codes[feature], first + option

    def indicators(self, codes: IntArray) -> FloatArray:
        """(M, S) ones at the slots that plans with codes (M, 2L) occupy, zeros elsewhere."""
        indicators = np.zeros((len(codes), self.slot_errors.size))
        np.put_along_axis(indicators, self.slots(codes), 1.0, axis=1)
        return indicators

    def slot_effects(self, effects: Effects, samples: IntArray | None = None) -> Matrix:
        """(S, N * K) first-order effects on the log-probabilities, by slot.

        Args:
            effects: the effects, by layer and option.
            samples: (N,) numbers of the samples to take. Default: None, for all.
        """
        chosen = [part if samples is None else part[:, :, samples] for part in (effects.pruning, effects.rounding)]
        parts = [part.reshape(len(part) * part.shape[1], -1) for part in chosen]
        return np.concatenate(parts).astype(np.float32, copy=False)


def _floored(errors: FloatArray) -> FloatArray:
    """(L, options) errors of at least `SMALLEST_ERROR` of the largest; 0 for the option of least error."""
    floor = SMALLEST_ERROR * errors.max(1, keepdims=True)
    mildest = errors.argmin(1)[:, None] == np.arange(errors.shape[1])
    return np.where(mildest, 0.0, np.maximum(errors, floor))
