"""Costs of kernels, fitted to the times of whole networks.

Layers of one kind and one kernel size share their costs: a call, and so much for every position, gathered input, output
and multiply-accumulate. The costs are not negative (Lawson & Hanson's least squares), and errors count relative to the
time. Which widths suit a kernel is not known beforehand: conditions of a small grid are tried, one number changed after
another, and a change is kept where held-out networks are predicted clearly better with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import nnls

from autocompress_envs.problem import BoolArray, FloatArray, IntArray, KernelCosts

FOLDS = 6  # of the cross-validation
CLEARLY = 0.92  # largest ratio of held-out errors at which a condition is taken
RIDGE = 1e-3  # weight that keeps the costs of kernels that nothing tells apart alike small
_STEPS, _LEAST = (1, 4, 8, 16), (1, 8, 16, 32)
_TERMS = 5  # a layer's features: call, position, column, row, weight


@dataclass(frozen=True)
class LayerShapes:
    """What the time of L layers depends on besides their labels.

    Attributes:
        kinds: (L) kinds, such as `conv`; layers of other kinds share nothing.
        areas: (L,) columns that one input channel has: the kernel's positions, 1 for a linear layer.
        positions: (L,) multiply-accumulates a weight and sample.
    """

    kinds: Sequence[str]
    areas: IntArray
    positions: IntArray

    @property
    def column_sizes(self) -> IntArray:
        """(L,) columns that go together: those of a channel; a depthwise layer's are all of one."""
        return np.where([kind == "depthwise" for kind in self.kinds], 1, self.areas)


@dataclass(frozen=True)
class Measured:
    """V networks that were timed.

    Attributes:
        fan_in: (V, L) weight columns of the layers.
        out: (V, L) weight rows.
        weight_bits: (V, L) bits of the weights.
        activation_bits: (V, L) bits of the layers' inputs.
        nanoseconds: (V,) time of the whole network.
    """

    fan_in: IntArray
    out: IntArray
    weight_bits: IntArray
    activation_bits: IntArray
    nanoseconds: FloatArray

    def only(self, index: IntArray) -> Measured:
        """The networks at these indices."""
        return Measured(*(each[index] for each in vars(self).values()))


@dataclass(frozen=True)
class Condition:
    """The widths that suit a kernel.

    Attributes:
        channel_step: number whose multiples of input channels suit it.
        row_step: number whose multiples of rows suit it.
        least_rows: fewest rows that suit it.
    """

    channel_step: int = 1
    row_step: int = 1
    least_rows: int = 1


@dataclass(frozen=True)
class Fit:
    """Fitted costs, and how well they predict.

    Attributes:
        costs: time of every layer in every kernel.
        errors: (V,) relative errors, at least 0, of the networks' times as predicted from the others.
    """

    costs: KernelCosts
    errors: FloatArray

    def is_within(self, errors: Mapping[float, float]) -> bool:
        """Whether these shares of the networks have at most these errors, by share in [0, 1]."""
        return all(np.quantile(self.errors, share) <= error for share, error in errors.items())

    def __str__(self) -> str:
        half, most = np.quantile(self.errors, [0.5, 0.9])
        return (
            f"{len(self.errors)} networks, each predicted from the others: half within {100 * half:.1f} %, nine in ten "
            f"within {100 * most:.1f} %"
        )


def kernel_types(weight_bits: IntArray, activation_bits: IntArray, integer_bits: Sequence[int]) -> IntArray:
    """The type of kernel that runs a label: 0 integer, 1 rounded weights alone, 2 rounded inputs, 3 float.

    Where the runtime has no integer kernel for rounded weights of these bits, the kernel is one of rounded inputs.

    Args:
        weight_bits: bits of the weights.
        activation_bits: bits of the layers' inputs.
        integer_bits: bits of the weights at which there are integer kernels.
    """
    weights, inputs = np.asarray(weight_bits), np.asarray(activation_bits)
    is_rounded = np.where(inputs > 8, weights <= 8, np.isin(weights, integer_bits))
    types: IntArray = 2 * ~is_rounded + (inputs > 8)
    return types


def fit_kernels(shapes: LayerShapes, measured: Measured, integer_bits: Sequence[int] = tuple(range(1, 9))) -> Fit:
    """Costs of kernels from whole networks.

    Args:
        shapes: what is known of the layers.
        measured: networks that were timed, at least 2.
        integer_bits: bits of the weights at which the runtime has integer kernels. Default: 1 to 8.
    """
    conditions: dict[tuple[int, str], Condition] = {}
    best = _held_out(_Model(shapes, conditions, integer_bits), measured)
    types = kernel_types(measured.weight_bits, measured.activation_bits, integer_bits)
    for kind in dict.fromkeys(shapes.kinds):
        rows = np.array([each == kind for each in shapes.kinds])
        for kernel in np.unique(types[:, rows]).tolist():
            improves = True
            while improves:
                condition = conditions.get((kernel, kind), Condition())
                tried = [(conditions | {(kernel, kind): other}) for other in _others(condition)]
                errors = [_held_out(_Model(shapes, each, integer_bits), measured) for each in tried]
                found = int(np.argmin([_score(each) for each in errors]))
                improves = _score(errors[found]) <= CLEARLY * _score(best)
                if improves:
                    conditions, best = tried[found], errors[found]
    model = _Model(shapes, conditions, integer_bits)
    return Fit(model.costs(model.solve(measured)), best)


def _others(condition: Condition) -> Iterator[Condition]:
    """The conditions that differ in one number."""
    for name, choices in (("channel_step", _STEPS), ("row_step", _STEPS), ("least_rows", _LEAST)):
        for choice in choices:
            if choice != getattr(condition, name):
                yield replace(condition, **{name: choice})


def _score(errors: FloatArray) -> float:
    """Mean of the errors, the largest tenth cut to the others' largest: a few bad timings must not decide."""
    return float(np.minimum(errors, np.quantile(errors, 0.9)).mean())


def _held_out(model: _Model, measured: Measured) -> FloatArray:
    """(V,) relative errors of the times as predicted from the other folds."""
    count = len(measured.nanoseconds)
    features, errors = model.features(measured), np.empty(count)
    fold = np.arange(count) % min(FOLDS, count)
    for number in range(fold.max() + 1):
        test, rest = fold == number, fold != number
        found = _solve(features[rest], measured.nanoseconds[rest])
        errors[test] = np.abs(features[test] @ found / measured.nanoseconds[test] - 1)
    return errors


def _solve(features: FloatArray, nanoseconds: FloatArray) -> FloatArray:
    """(F,) costs, at least 0, of least relative squared error."""
    scale = np.maximum(np.abs(features).max(0), 1e-30)
    scaled = features / scale / nanoseconds[:, None]
    size = np.maximum(scaled.max(0), 1e-30)  # of a feature's share of the time at cost 1
    penalty = RIDGE * np.diag(size)
    found, _ = nnls(np.vstack([scaled, penalty]), np.append(np.ones(len(scaled)), np.zeros(len(size))))
    costs: FloatArray = found / scale
    return costs


class _Model:
    """Features of networks, by class of layers, kernel, and whether the widths suit it; and costs from their weights.

    Args:
        shapes: what is known of the layers.
        conditions: widths that suit a kernel, by its type and the layers' kind; all do where nothing is said.
        integer_bits: bits of the weights at which the runtime has integer kernels.
    """

    def __init__(
        self, shapes: LayerShapes, conditions: Mapping[tuple[int, str], Condition], integer_bits: Sequence[int]
    ) -> None:
        self._shapes, self._integer_bits = shapes, integer_bits
        self._conditions = conditions
        self._classes: dict[tuple[str, int], list[int]] = {}
        for layer, key in enumerate(zip(shapes.kinds, shapes.areas.tolist(), strict=True)):
            self._classes.setdefault(key, []).append(layer)
        self._cells = [(kernel, suits, key) for kernel in range(4) for suits in (True, False) for key in self._classes]

    def features(self, measured: Measured) -> FloatArray:
        """(V, 1 + 5 cells) features: a 1, then for each cell its layers' calls, positions, columns, rows, weights."""
        found = [np.ones((len(measured.nanoseconds), 1))]
        types = kernel_types(measured.weight_bits, measured.activation_bits, self._integer_bits)
        suits = self._suits(types, measured)
        alive = (measured.fan_in > 0) & (measured.out > 0)
        for kernel, is_suited, key in self._cells:
            layers = self._classes[key]
            here = (alive & (types == kernel) & (suits == is_suited))[:, layers]
            positions = here * self._shapes.positions[layers]
            fan_in, out = measured.fan_in[:, layers], measured.out[:, layers]
            terms = (here, positions, positions * fan_in, positions * out, positions * (fan_in * out))
            found.append(np.stack([term.sum(1) for term in terms], axis=1).astype(np.float64))
        return np.concatenate(found, axis=1)

    def solve(self, measured: Measured) -> FloatArray:
        """(1 + 5 cells) costs; a cell that no network shows has those of its counterpart."""
        features = self.features(measured)
        costs = _solve(features, measured.nanoseconds)
        for number, (kernel, is_suited, key) in enumerate(self._cells):
            if not features[:, self._slice(number)].any():
                twin = self._cells.index((kernel, not is_suited, key))
                costs[self._slice(number)] = costs[self._slice(twin)]
        return costs

    def costs(self, found: FloatArray) -> KernelCosts:
        """The closed form: 8 kernels, the 4 types where the widths suit them, then the same where they don't."""
        count = len(self._shapes.kinds)
        per = np.zeros((4, 8, count))
        for number, (kernel, is_suited, key) in enumerate(self._cells):
            call, position, column, row, weight = found[self._slice(number)]
            at = self._shapes.positions[self._classes[key]]
            into = kernel if is_suited else kernel + 4
            for term, value in enumerate((call + position * at, column * at, row * at, weight * at)):
                per[term, into, self._classes[key]] = value
        steps = np.ones((3, 8, count), dtype=np.int64)
        for kernel, layer in itertools.product(range(4), range(count)):
            condition = self._condition(kernel, layer)
            size = int(self._shapes.column_sizes[layer])
            steps[:, kernel, layer] = condition.channel_step * size, condition.row_step, condition.least_rows
        bits = np.arange(33)
        return KernelCosts(
            kernel=kernel_types(bits[:, None], bits[None], self._integer_bits),
            instead=np.array([4, 5, 6, 7, 4, 5, 6, 7]),
            column_step=steps[0],
            row_step=steps[1],
            least_rows=steps[2],
            per_layer=per[0],
            per_column=per[1],
            per_row=per[2],
            per_weight=per[3],
            fixed=int(np.ceil(found[0])),
        )

    def _slice(self, number: int) -> slice:
        return slice(1 + _TERMS * number, 1 + _TERMS * (number + 1))

    def _condition(self, kernel: int, layer: int) -> Condition:
        return self._conditions.get((kernel, self._shapes.kinds[layer]), Condition())

    def _suits(self, types: IntArray, measured: Measured) -> BoolArray:
        """(V, L) whether the widths suit the kernels of these types."""
        suits = np.ones(types.shape, dtype=bool)
        for (kernel, kind), condition in self._conditions.items():
            layers = np.array([each == kind for each in self._shapes.kinds])
            step = condition.channel_step * self._shapes.column_sizes
            fits = (measured.fan_in % step == 0) & (measured.out % condition.row_step == 0)
            suits &= ~(layers & (types == kernel)) | (fits & (measured.out >= condition.least_rows))
        return suits
