"""How true the menus' expected losses are: single labels, drawn at random, expected beside measured.

A search trusts the expected losses before it has measured anything. Here every label stands alone: one layer has it,
and the rest of the network its mildest labels. That network, the base, loses something itself, so the two losses of a
label are compared above those of the base.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from autocompress.config import MachineOptions
from autocompress.job.prepare import Job, build_evaluator
from autocompress.progress import Progress
from autocompress.searchers.solvers.greedy import mildest
from autocompress_envs.problem import FloatArray, Labeling, LayerNumbers, Outcome, Problem
from autocompress_envs.problem.loss_parts import LossParts

NOISE = 1e-4  # nats; labels whose losses are both less than this above the base's say nothing
FACTOR = 2.0  # a ratio within this factor of 1 is called good
_SMALLEST = 1e-12  # nats; stands for expected losses of 0, so that what was not expected at all has a large ratio


@dataclass(frozen=True)
class MeasuredLabel:
    """One label of one layer, with the rest of the network at its mildest labels. Losses are nats a sample.

    Attributes:
        layer: name of the layer.
        label: the label in words, such as `2 weight bits` or `sparsity 0.5`.
        expected: expected loss of the whole network, by the menus.
        measured: KL divergence of the whole network from the original on the search split.
        ratio: measured by expected loss, both above the base's (`ratio_of`); None where they say nothing.
    """

    layer: str
    label: str
    expected: float
    measured: float
    ratio: float | None


@dataclass(frozen=True)
class MeasuredLabels:
    """Labels that were measured.

    Attributes:
        base_expected: expected loss in nats of the network with its mildest labels.
        base_measured: its KL divergence from the original on the search split, in nats.
        labels: the labels, in the order in which they were drawn.
    """

    base_expected: float
    base_measured: float
    labels: tuple[MeasuredLabel, ...]

    @property
    def ratios(self) -> FloatArray:
        """(n,) ratios of the labels that have one."""
        return np.array([label.ratio for label in self.labels if label.ratio is not None], dtype=np.float64)

    @property
    def share_good(self) -> float:
        """Share of the ratios within a factor of 2 of 1, in [0, 1]; NaN without ratios."""
        ratios = self.ratios
        return float(((ratios >= 1 / FACTOR) & (ratios <= FACTOR)).mean()) if len(ratios) else float("nan")

    def worst(self, count: int = 5) -> tuple[MeasuredLabel, ...]:
        """The labels whose ratios are farthest from 1, as factors, the farthest first."""
        known = [label for label in self.labels if label.ratio is not None]
        return tuple(sorted(known, key=lambda label: -abs(np.log(max(label.ratio or 0.0, _SMALLEST))))[:count])


@dataclass(frozen=True)
class Place:
    """A single label: a layer's `level`-th entry of its menu `axis`, one of `AXES`."""

    layer: int
    axis: str
    level: int

    def labeling(self, problem: Problem) -> Labeling:
        """The plan with this label, and the mildest ones everywhere else."""
        labeling = mildest(problem)
        getattr(labeling, self.axis)[self.layer] = self.level
        return labeling

    def label(self, layer: LayerNumbers) -> str:
        """The label in words."""
        return AXES[self.axis](layer, self.level)


AXES: dict[str, Callable[[LayerNumbers, int], str]] = {
    "sparsity": lambda layer, level: f"sparsity {layer.sparsities[level]:g}",
    "weight_bits": lambda layer, level: (
        f"{layer.weight_bits[level]} weight bits"
        + (f", rank {layer.weight_ranks[level]}" if layer.weight_ranks[level] else "")
    ),
    "activation_bits": lambda layer, level: f"{layer.activation_bits[level]} activation bits",
}
"""Text of a label by the menu that it stands in, the name of a field of `Labeling`."""


def measured_labels(job: Job, machine: MachineOptions, count: int, seed: int, watcher: Progress) -> MeasuredLabels:
    """Measure labels of a job on its search split.

    Args:
        job: the network with its menus.
        machine: where networks run. A dtype that is to be picked is float32: the noise of others hides small losses.
        count: number of labels, at least 1.
        seed: seed of the draw.
        watcher: observer that is told of stages, notes and every label.
    """
    if machine.dtype == "auto":
        machine = machine.model_copy(update={"dtype": "float32"})
    evaluator = build_evaluator(job, machine, watcher=watcher)
    places = drawn(job.problem, count, seed)
    watcher.stage(f"measuring {len(places)} single labels on the search split")
    return measure_labels(job.problem, evaluator, places, watcher)


def measure_labels(
    problem: Problem, evaluate: Callable[[Labeling], Outcome], places: list[Place], watcher: Progress
) -> MeasuredLabels:
    """Measure single labels.

    Args:
        problem: the network's menus in numbers.
        evaluate: function that measures a plan.
        places: the labels.
        watcher: observer that is told of every label.
    """
    parts, base = LossParts(problem), mildest(problem)
    base_losses = (float(parts(base).sum()), evaluate(base).kl)
    labels = []
    for place in places:
        labeling, layer = place.labeling(problem), problem.layers[place.layer]
        losses = (float(parts(labeling).sum()), evaluate(labeling).kl)
        labels.append(MeasuredLabel(layer.name, place.label(layer), *losses, ratio_of(losses, base_losses)))
        watcher.advance(len(labels), len(places), "labels")
    return MeasuredLabels(*base_losses, tuple(labels))


def drawn(problem: Problem, count: int, seed: int) -> list[Place]:
    """Labels without the mildest ones, none twice: a random layer, then a random label of it that is left.

    Args:
        problem: the network's menus in numbers.
        count: number of labels; all are taken where there are no more.
        seed: seed of the draw.
    """
    rng = np.random.default_rng(seed)
    left = [[places[i] for i in rng.permutation(len(places))] for places in _places(problem) if places]
    found: list[Place] = []
    while left and len(found) < count:
        index = int(rng.integers(len(left)))
        found.append(left[index].pop())
        left = [places for places in left if places]
    return found


def _places(problem: Problem) -> list[list[Place]]:
    """Every label of every layer but the mildest one of each menu."""
    return [
        [
            *(Place(index, "sparsity", level) for level in range(1, len(layer.sparsities))),
            *(Place(index, "weight_bits", level) for level in range(len(layer.weight_bits) - 1)),
            *(Place(index, "activation_bits", level) for level in range(len(layer.activation_bits) - 1)),
        ]
        for index, layer in enumerate(problem.layers)
    ]


def ratio_of(losses: tuple[float, float], base: tuple[float, float]) -> float | None:
    """Measured by expected loss of a label, both above the base's; None where that is noise of the base.

    Noise is what is at most twice the base's loss, expected and measured, or less than 1e-4 nats above it in both.

    >>> ratio_of((0.25, 0.75), (0.0, 0.25))
    2.0
    >>> ratio_of((0.15, 0.18), (0.1, 0.1)) is None
    True

    Args:
        losses: expected and measured loss with the label, in nats.
        base: the same of the base.
    """
    if all(loss <= 2 * before for loss, before in zip(losses, base, strict=True)):
        return None
    expected, measured = (loss - before for loss, before in zip(losses, base, strict=True))
    if expected < NOISE and measured < NOISE:
        return None
    return measured / max(expected, _SMALLEST)
