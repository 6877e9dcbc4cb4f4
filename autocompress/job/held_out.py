"""The test of a finished network: the upper bound of what it loses, on samples that nothing else has seen.

Samples are taken in looks, the first few thousand, then twice as many, and so on. A network that passes early, or whose
loss on these samples is more than is tolerated, takes no more of them. The looks share the probability of an error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor, nn

from autocompress.config import Config
from autocompress.data import Data
from autocompress.errors import InputError
from autocompress.evaluation import measured_at_once
from autocompress.evaluation.batches import running
from autocompress.evaluation.measure import Kept
from autocompress.job.prepare import Job
from autocompress.network.interface import raw
from autocompress.targets.loading import load
from autocompress_envs.problem import FloatArray

FIRST_LOOK = 4_000  # samples
SAMPLES = 16_000  # most samples of all looks
SHARE = 0.25  # of the training samples, at most, where these are more than the first look: the rest is to train on
LEAST_SAMPLES = 100
_AT_ONCE = 500  # samples in memory
_RESAMPLES = 4_000


def held_out(config: Config, data: Data) -> tuple[int, ...]:
    """Indices of the training samples of the test: neither searched, fitted nor selected on.

    Raises:
        InputError: there are too few, or no labels for a drop of the accuracy.
    """
    if config.max_drop is not None and not data.classes:
        raise InputError(
            f"`max_drop` needs labelled classes, got {data.name} without; pass --max-kl, which needs none, instead."
        )
    most = max(FIRST_LOOK, min(SAMPLES, int(SHARE * len(data.train))))
    found = data.unused(config.selection_samples + most)[config.selection_samples :]
    if len(found) < LEAST_SAMPLES:
        raise InputError(
            f"`data` must have at least {LEAST_SAMPLES} training samples beside the splits and `selection_samples`, "
            f"got {len(found)}; pass --selection-samples 0, or lower --search-samples."
        )
    return found


def looks(count: int) -> tuple[int, ...]:
    """Numbers of samples after which a network is judged: `FIRST_LOOK`, twice that, and so on, and all of them.

    >>> looks(500), looks(4_100), looks(12_000)
    ((500,), (4000, 4100), (4000, 8000, 12000))
    """
    found = [FIRST_LOOK]
    while 2 * found[-1] < count:
        found.append(2 * found[-1])
    return (*(each for each in found if each < count), count)


@dataclass(frozen=True)
class Loss:
    """What a network loses.

    Attributes:
        bound: upper bound: a drop of the accuracy, or nats.
        samples: number of samples that it comes from.
    """

    bound: float
    samples: int


class LossTest:
    """The test of a finished network on held-out samples.

    Args:
        job: the original and its data.
        config: options, of which `max_drop` or `max_kl` says what is tolerated.
        indices: training samples of the test.
        error: probability that a network passes which loses more than is tolerated.

    Raises:
        InputError: the task has no classes and a drop of the accuracy is tolerated, or so few samples could not show so
            small a drop.
    """

    def __init__(self, job: Job, config: Config, indices: Sequence[int], error: float) -> None:
        self._job, self.indices = job, indices
        self._is_drop = config.max_drop is not None
        if self._is_drop and not job.reading.of_classes:
            raise InputError(
                f"`max_drop` needs a task with classes, got {job.reading.task.name}; pass --max-kl instead."
            )
        self.tolerated = float(config.max_drop if config.max_drop is not None else config.max_kl or 0.0)
        self._looks = looks(len(indices))
        self._error = error / len(self._looks)
        self._check_count()
        self._original: list[Tensor] = []  # rows of every look so far
        self._labels: list[Tensor] = []

    def _check_count(self) -> None:
        """Raise InputError where so few samples could not show so small a drop, were there none at all."""
        z, count = float(ndtri(1 - self._error)), len(self.indices)
        least = z / (count + 2)  # `drop_bound` of equal answers
        if self._is_drop and least > self.tolerated:
            raise InputError(
                f"`max_drop` must be at least {math.ceil(1e4 * least) / 1e4:g} with {count:,} held-out samples, got "
                f"{self.tolerated:g}; raise it, or hold out {math.ceil(z / self.tolerated) - 2:,} samples: give more "
                "training data, pass --selection-samples 0, or lower --search-samples."
            )

    def __call__(self, run: Path) -> Loss:
        """What the network of a run loses."""
        network, compressed = load(run), list[Tensor]()
        for number, (start, end) in enumerate(pairwise((0, *self._looks))):
            indices = self.indices[start:end]
            if number == len(self._original):
                rows, labels = self._outputs(self._job.model, indices)
                self._original.append(rows)
                self._labels.append(labels)
            compressed.append(self._outputs(network, indices)[0])
            estimate, bound = self._loss(torch.cat(compressed), number + 1)
            if bound <= self.tolerated or estimate > self.tolerated:
                break
        return Loss(bound, end)

    def _loss(self, compressed: Tensor, seen: int) -> tuple[float, float]:
        """The loss on the samples of the first `seen` looks, and its upper bound."""
        original, labels = torch.cat(self._original[:seen]), torch.cat(self._labels[:seen])
        if self._is_drop:
            was, now = (float((rows.argmax(-1) == labels).double().mean()) for rows in (original, compressed))
            return was - now, drop_bound(original, compressed, labels, self._error)
        each = divergences(original, compressed)
        return float(each.mean()), mean_bound(each, self._error)

    def _outputs(self, network: nn.Module, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """A network's rows (n, …) on training samples, and these samples' labels; none where they are no classes."""
        job, kept = self._job, Kept(self._job.reading)
        at_once = measured_at_once(job.network, job.memory, job.device)
        with running(raw(network), torch.device(job.device), None, at_once) as run:
            for start in range(0, len(indices), _AT_ONCE):
                inputs, labels = job.data.train.load(list(indices[start : start + _AT_ONCE]))
                kept.add(run(inputs), inputs, labels)
        return kept.rows(), torch.cat(kept.labels) if kept.labels else torch.empty(0)


def drop_bound(original: Tensor, compressed: Tensor, labels: Tensor, error: float) -> float:
    """Upper bound of the drop of accuracy from one network to another on the same population of samples.

    Samples on which both are right, or both are wrong, tell nothing. Of the others half a sample is added to either
    side, so that the bound is honest where few differ (Agresti & Min 2005, adjusted Wald for matched pairs).

    >>> import torch
    >>> right, wrong = torch.eye(2)[[0] * 100], torch.eye(2)[[1] * 10 + [0] * 90]
    >>> round(drop_bound(right, wrong, torch.zeros(100, dtype=torch.int64), 0.05), 3)
    0.149

    Args:
        original: (N, K) logits of the original.
        compressed: (N, K) logits of the compressed network.
        labels: (N,) classes.
        error: probability that the bound is too low.
    """
    was, now = (outputs.argmax(-1) == labels for outputs in (original, compressed))
    lost, won = float((was & ~now).sum()) + 0.5, float((~was & now).sum()) + 0.5
    count = len(labels) + 2
    drop = (lost - won) / count
    variance = ((lost + won) - (lost - won) ** 2 / count) / count**2
    return drop + float(ndtri(1 - error)) * math.sqrt(variance)


def divergences(original: Tensor, compressed: Tensor) -> FloatArray:
    """(N,) divergences in nats of the samples' rows (N, K) or (N, P, K); of several rows a sample, their mean."""
    log_p, log_q = (rows.double().log_softmax(-1) for rows in (original, compressed))
    each = (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)
    found: FloatArray = each.flatten(1).mean(1).numpy() if each.ndim > 1 else each.numpy()
    return found


def mean_bound(samples: FloatArray, error: float) -> float:
    """Upper bound of the mean of a population, by bootstrap.

    Args:
        samples: (N,) numbers.
        error: probability that the bound is too low.
    """
    rng = np.random.default_rng(0)
    means = [samples[rng.integers(len(samples), size=len(samples))].mean() for _ in range(_RESAMPLES)]
    return float(np.quantile(means, 1 - error))
