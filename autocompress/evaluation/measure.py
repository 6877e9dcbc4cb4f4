"""How close a compressed network's outputs are to the original's: two networks on the same samples, in float32.

Outputs are read as their task says (`tasks.Reading`): rows are kept, outputs are not, as those of segmenters and
detectors would fill the memory; metrics are taken as batches pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.evaluation.batches import Note, running
from autocompress.network.interface import raw
from autocompress.samples import Inputs
from autocompress.tasks import TASKS, Outputs, Reading
from autocompress.tasks.metrics import Meter
from autocompress.tasks.outputs import as_tuple

Batch = tuple[Inputs, Tensor | None]

CLASSES = Reading(TASKS["classification"])  # every sample has one class
AT_ONCE = 64  # samples of a forward pass where nobody says more


@dataclass(frozen=True)
class Closeness:
    """How close a network's outputs are to the original's on some samples: means over these samples.

    Attributes:
        kl: divergence KL(original || compressed) of the class probabilities, in nats, at least 0; of several rows a
            sample, their mean. What it means for outputs that are no classes, `tasks.rows` says.
        accuracy: share of samples whose label is the compressed network's top-1 answer, in [0, 1]; NaN without labels.
        agreement: share of samples, or of their rows, on which both networks have the same top-1 answer, in [0, 1]; NaN
            where outputs are numbers or vectors, which have no answers.
        original_accuracy: share of samples whose label is the original's top-1 answer; NaN without labels.
        metrics: the task's metrics of the compressed network by name; empty without labels, and for classes, which have
            an accuracy.
        original_metrics: the same of the original.
        samples: number of samples; 0 where nobody counted. Default: 0.
    """

    kl: float
    accuracy: float
    agreement: float
    original_accuracy: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    original_metrics: Mapping[str, float] = field(default_factory=dict)
    samples: int = 0

    @property
    def original_agreement(self) -> float:
        """The original's agreement with itself: 1, or NaN where there are no answers."""
        return math.nan if math.isnan(self.agreement) else 1.0

    def metrics_by_name(self) -> dict[str, tuple[float, float]]:
        """(original, compressed) of every metric by name."""
        return {name: (self.original_metrics[name], value) for name, value in self.metrics.items()}


def measure(
    original: nn.Module,
    compressed: nn.Module,
    batches: Iterable[Batch],
    device: torch.device | str = "cpu",
    note: Note | None = None,
    at_once: int = AT_ONCE,
    reading: Reading = CLASSES,
) -> Closeness:
    """Run two networks on the same samples, in eval mode, and compare their outputs.

    Args:
        original: network whose outputs are the reference.
        compressed: network whose outputs are compared with them.
        batches: (inputs (n, …), labels (n,) or None) of the samples; all batches have labels, or none has.
        device: device that both networks run on.
        note: function that is told once where batches had to become smaller for the device's memory. Default: nobody.
        at_once: number of samples in a forward pass, at most, however large a batch is.
        reading: form in which outputs are read. Default: as logits of classes.

    Returns:
        Means over all samples. Both networks are left where they are and in the mode that they were in.

    Raises:
        InputError: there are no samples, or outputs are not finite.
    """
    there = torch.device(device)
    models = [raw(each) for each in (original, compressed)]
    seen = [Kept(reading) for _ in models]
    with running(models[0], there, note, at_once) as reference, running(models[1], there, note, at_once) as measured:
        for inputs, labels in batches:
            for run, each in zip((reference, measured), seen, strict=True):
                each.add(run(inputs), inputs, labels)
    if not seen[0].parts:
        raise InputError("`data` must hold at least one sample to measure on, got none.")
    return closeness(*seen)


class Kept:
    """What is kept of a network's outputs, batch by batch: rows, and the task's metrics where there are labels.

    Args:
        reading: form in which outputs are read.

    Attributes:
        parts: rows of every batch.
        labels: classes of every batch, where samples have one and it is known.
    """

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._meter: Meter | None = None
        self.parts: list[Tensor] = []
        self.labels: list[Tensor] = []

    def add(self, outputs: Tensor | Outputs, inputs: Inputs, labels: Tensor | None) -> None:
        """Add a batch: outputs as they are, inputs (n, …), labels (n, …) or None, all on the CPU."""
        self.parts.append(self._reading.rows(outputs, inputs))
        if labels is None:
            return
        if self._reading.of_classes:
            self.labels.append(labels.cpu())
        elif self._reading.metrics:
            given = as_tuple(outputs)
            self._meter = self._meter or self._reading.meter(given)
            self._meter.update(self._reading.task.predictions(given), labels.cpu())

    @property
    def bytes(self) -> int:
        """Bytes of the rows."""
        return sum(part.nbytes for part in self.parts)

    def rows(self) -> Tensor:
        """(N, classes) or (N, P, K) of all samples."""
        return torch.cat(self.parts)

    @property
    def has_answers(self) -> bool:
        """Whether outputs choose among classes; see `Reading.has_answers`."""
        return self._reading.has_answers

    def metrics(self) -> Mapping[str, float]:
        """Metrics by name; empty where there are none, or no labels."""
        return {} if self._meter is None else self._meter.values()


def closeness(original: Kept, compressed: Kept) -> Closeness:
    """How close one network's outputs are to the other's on the same samples."""
    labels = torch.cat(original.labels) if original.labels else None
    found = compare(original.rows(), compressed.rows(), labels)
    if not original.has_answers:
        found = replace(found, agreement=math.nan)
    return replace(found, metrics=compressed.metrics(), original_metrics=original.metrics())


def compare(reference: Tensor, outputs: Tensor, labels: Tensor | None) -> Closeness:
    """Compare outputs of two networks on the same N samples.

    Args:
        reference: (N, classes) logits or (N, P, K) rows of the original.
        outputs: the same of the compressed network.
        labels: (N,) int64 classes, or None.

    Raises:
        InputError: outputs are not finite.
    """
    if not (torch.isfinite(reference).all() and torch.isfinite(outputs).all()):
        raise InputError("`model` must give finite outputs, got NaN or infinity; check the weights and the data.")
    log_p, log_q = reference.double().log_softmax(-1), outputs.double().log_softmax(-1)
    answers, reference_answers = outputs.argmax(-1), reference.argmax(-1)
    return Closeness(
        kl=float((log_p.exp() * (log_p - log_q)).sum(-1).mean().clamp(min=0)),
        accuracy=_share(answers, labels),
        agreement=_share(answers, reference_answers),
        original_accuracy=_share(reference_answers, labels),
        samples=len(outputs),
    )


def _share(answers: Tensor, expected: Tensor | None) -> float:
    """The share of answers that are as expected, in [0, 1]; NaN where nothing is expected."""
    return float("nan") if expected is None else float((answers == expected).double().mean())
