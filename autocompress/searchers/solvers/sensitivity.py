"""Layer errors measured on the network itself: what it loses where a single layer's label is changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from autocompress.searchers.base import Recorder, SearchSettings, Task
from autocompress.searchers.solvers.baselines import search_prices
from autocompress.searchers.solvers.greedy import mildest
from autocompress_envs.problem import FloatArray, IntArray, Labeling, LayerNumbers, Outcome, Problem

SMALLEST = 1e-9  # nats: measured and predicted losses below it are one where their ratio is taken
RESCALED = (
    0.1,
    10.0,
)  # how far pruning may scale a quantization error; beyond it, the table divides by next to nothing


@dataclass(frozen=True)
class Axis:
    """All changes of one layer's sparsity alone, or of its bits alone, by ascending predicted loss.

    Attributes:
        layer: index of the layer whose label changes.
        is_sparsity: whether `levels` are indices into its sparsities, or flat ones into (weight bits, activation bits).
        levels: (n,) indices. predicted: (n,) nats lost above the mildest label, at least 0.
    """

    layer: int
    is_sparsity: bool
    levels: IntArray
    predicted: FloatArray

    def labeling(self, problem: Problem, level: int) -> Labeling:
        """The uncompressed network with the change at place `level` of the axis."""
        labeling, index = mildest(problem), int(self.levels[level])
        if self.is_sparsity:
            labeling.sparsity[self.layer] = index
        else:
            bits = divmod(index, len(problem.layers[self.layer].activation_bits))
            labeling.weight_bits[self.layer], labeling.activation_bits[self.layer] = bits
        return labeling


def search_measured_prices(task: Task, settings: SearchSettings, recorder: Recorder) -> None:
    """Measure single changes with half of the allowance, then hill-climb over prices of the measured errors.

    SPDY (Frantar & Alistarh 2022, arXiv:2201.13096), with measured instead of expected layer errors.
    """
    problem = measured_problem(task.problem, recorder, settings.episodes // 2)
    search_prices("local")(replace(task, problem=problem), settings, recorder)


def measured_problem(problem: Problem, evaluate: Callable[[Labeling], Outcome], allowance: int) -> Problem:
    """The same menus and costs with layer errors that were measured one layer at a time.

    The network with the mildest label everywhere is measured first, then with one change each: an owner's sparsity, or
    a layer's weight and activation bits where nothing is pruned. The KL above the first one's, at least 0, becomes the
    layer error. The pruning part falls on the consumers of the owner's group in the proportion that the problem
    expects; a joint cell is the sum of its two parts, the quantization part scaled by sparsity as expected.

    Where there are more changes than the allowance admits, every axis (one layer's sparsities, or its bits) has an even
    share of measurements, spread over its levels from the harshest down, and log(measured / expected) is interpolated
    between them. Axes for which nothing is left, those of least expected harm, take the median ratio of all
    measurements. With fewer than 2 evaluations nothing can be measured: the problem comes back as it is.

    Args:
        problem: with expected layer errors.
        evaluate: measures one labelling; called at most `allowance` times, never twice for the same.
        allowance: most evaluations, that of the uncompressed network included.
    """
    axes = _axes(problem)
    if allowance < 2 or not axes:
        return problem
    baseline = evaluate(mildest(problem)).kl
    places = [_spread(len(axis.levels), n) for axis, n in zip(axes, _shares(axes, allowance - 1), strict=True)]
    measured = [
        np.array([max(evaluate(axis.labeling(problem, int(place))).kl - baseline, 0.0) for place in chosen])
        for axis, chosen in zip(axes, places, strict=True)
    ]
    ratios = [_log_ratio(loss, axis.predicted[at]) for axis, at, loss in zip(axes, places, measured, strict=True)]
    usual = float(np.median(np.concatenate(ratios)))
    losses = [_interpolated(*parts, usual) for parts in zip(axes, places, measured, ratios, strict=True)]
    return _with_losses(problem, axes, losses)


def _axes(problem: Problem) -> list[Axis]:
    """Every axis with a choice, in network order, sparsities before bits."""
    axes = []
    for index, layer in enumerate(problem.layers):
        pruning = np.sum(list(_pruning_parts(problem, index).values()), axis=0)
        if np.ndim(pruning) and len(pruning) > 1:
            axes.append(_axis(index, True, np.arange(1, len(pruning)), pruning[1:]))
        quantization = _quantization(layer)[0].ravel()
        if len(quantization) > 1:
            axes.append(_axis(index, False, np.arange(len(quantization) - 1), quantization[:-1]))
    return axes


def _axis(layer: int, is_sparsity: bool, levels: IntArray, predicted: FloatArray) -> Axis:
    order = np.argsort(predicted, kind="stable")
    return Axis(layer, is_sparsity, levels[order], predicted[order])


def _pruning_parts(problem: Problem, owner: int) -> dict[tuple[int, int], FloatArray]:
    """(S,) nats, at least 0, that a sparsity is expected to cost at each layer that it touches.

    Keys: (layer, -1) for the layer's table of errors, (layer, n) for its n-th extra source.
    """
    parts = {}
    for index, layer in enumerate(problem.layers):
        if layer.source == owner:
            parts[index, -1] = layer.errors[:, -1, -1]
        for place, (source, errors) in enumerate(layer.extra_sources):
            if source == owner:
                parts[index, place] = np.asarray(errors)
    return {key: np.maximum(errors - errors[0], 0.0) for key, errors in parts.items()}


def _quantization(layer: LayerNumbers) -> FloatArray:
    """(S or 1, B, A) nats, at least 0, expected above the most bits at the same sparsity."""
    return np.maximum(layer.errors - layer.errors[:, -1:, -1:], 0.0)


def _shares(axes: list[Axis], measurements: int) -> list[int]:
    """How many levels of every axis are measured: even shares; what is left over, where most harm is expected."""
    lengths = np.array([len(axis.levels) for axis in axes])
    shares = np.zeros_like(lengths)
    harm = np.argsort([-axis.predicted[-1] for axis in axes], kind="stable")
    while measurements and (shares < lengths).any():
        open_axes = [place for place in harm if shares[place] < lengths[place]][:measurements]
        shares[open_axes] += 1
        measurements -= len(open_axes)
    return [int(share) for share in shares]


def _spread(levels: int, count: int) -> IntArray:
    """`count` places among `levels`, evenly from the harshest down, ascending.

    >>> _spread(6, 2), _spread(6, 1)
    (array([2, 5]), array([5]))
    """
    return levels - 1 - (np.arange(count)[::-1] * levels) // max(count, 1)


def _log_ratio(measured: FloatArray, predicted: FloatArray) -> FloatArray:
    ratio: FloatArray = np.log(np.maximum(measured, SMALLEST)) - np.log(np.maximum(predicted, SMALLEST))
    return ratio


def _interpolated(axis: Axis, places: IntArray, measured: FloatArray, ratios: FloatArray, usual: float) -> FloatArray:
    """(n,) nats by level of the axis; where measured, the measurement itself."""
    at = np.log(np.maximum(axis.predicted, SMALLEST))
    ratio = np.interp(at, at[places], ratios) if len(places) else np.full(len(at), usual)
    losses = axis.predicted * np.exp(ratio)
    losses[places] = measured
    return losses


def _with_losses(problem: Problem, axes: list[Axis], losses: list[FloatArray]) -> Problem:
    """The problem with these losses on its axes instead of the expected ones."""
    pruning: dict[tuple[int, int], FloatArray] = {}
    quantization: dict[int, FloatArray] = {}
    for axis, loss in zip(axes, losses, strict=True):
        by_level = np.zeros(len(axis.levels) + 1)
        by_level[axis.levels] = loss
        if axis.is_sparsity:
            pruning |= _shared_out(_pruning_parts(problem, axis.layer), by_level)
        else:
            quantization[axis.layer] = by_level
    layers = [
        _layer_with(layer, index, pruning, quantization.get(index, np.zeros(1)))
        for index, layer in enumerate(problem.layers)
    ]
    return replace(problem, layers=tuple(layers))


def _shared_out(parts: dict[tuple[int, int], FloatArray], loss: FloatArray) -> dict[tuple[int, int], FloatArray]:
    """The loss (S,) in the proportion of the parts; evenly where all of them are 0."""
    total = np.sum(list(parts.values()), axis=0)
    safe = np.where(total > 0, total, 1.0)
    return {key: loss * np.where(total > 0, part / safe, 1.0 / len(parts)) for key, part in parts.items()}


def _layer_with(
    layer: LayerNumbers, index: int, pruning: dict[tuple[int, int], FloatArray], quantization: FloatArray
) -> LayerNumbers:
    """The layer with measured parts; `quantization` (B * A,) holds where nothing is pruned."""
    expected = _quantization(layer)
    scale = np.where(expected[0] > 0, expected / np.where(expected[0] > 0, expected[0], 1.0), 1.0)
    errors = quantization.reshape(expected.shape[1:]) * np.clip(scale, *RESCALED)
    errors = errors + pruning.get((index, -1), np.zeros(1))[:, None, None]
    extra = tuple(
        (source, pruning.get((index, place), np.zeros(len(unmeasured))))
        for place, (source, unmeasured) in enumerate(layer.extra_sources)
    )
    return replace(layer, errors=errors, extra_sources=extra)
