"""What fine-tuning is asked for, what it is told of, and what it gives: plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from autocompress.data.training import Augmentation
from autocompress.errors import InputError
from autocompress.execute.compressed import Compressed
from autocompress.execute.distillation import Objective

_LEAST_STEPS = 64  # in an epoch, as far as batches then have …
_LEAST_BATCH, _MOST_BATCH = 8, 128  # … so many samples
_FEATURES_OF_FEW = 3.0  # weight of matched layers where samples are few
_HALF = 0.5  # largest mixup: above it, the other sample would be the first

Method = Literal["standard", "weak", "strong"]


@dataclass(frozen=True)
class FineTuning:
    """Settings of a fine-tuning.

    Attributes:
        epochs: number of passes over the training data without the search split, above 0; fractions are fine.
        learning_rate: peak learning rate of Adam, relative to each tensor's root mean square, above 0: 0.005 changes a
            typical weight by half a percent a step.
        batch_size: number of samples in a step, at least 1; None: what `batch_size_for` says.
        labels: source of the labels for the hard part of the loss: the data, or the original's answers (`teacher`).
        objective: weights of the parts of the loss.
        augmentation: random change of the training samples (`TrainingBatches`).
        mixup: largest share of another sample that is blended into each, in [0, 0.5]. Blended samples are new to the
            original, so its answers teach something even where it knows all its training samples by heart (Beyer et
            al. 2022).
        clip: largest norm of the gradient, above 0; a larger gradient is scaled down to it.
        seed: seed of the order, the augmentation and the mixup of the samples, at least 0.
        method: samples and weights to begin with. `standard`: all training samples, from the weights that were given;
            `weak`: the calibration split alone, from the same; `strong`: all training samples, from the original's own
            kept weights.

    Raises:
        InputError: a value is out of range.
    """

    epochs: float = 2.0
    learning_rate: float = 5e-3
    batch_size: int | None = None
    labels: Literal["data", "teacher"] = "data"
    objective: Objective = field(default_factory=Objective)
    augmentation: Augmentation = "shift"
    mixup: float = 0.0
    clip: float = 1.0
    seed: int = 0
    method: Method = "standard"

    def __post_init__(self) -> None:
        for name in ("epochs", "learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise InputError(f"`{name}` must be above 0, got {getattr(self, name)}.")
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError(f"`batch_size` must be at least 1, got {self.batch_size}.")
        if not 0 <= self.mixup <= _HALF:
            raise InputError(f"`mixup` must be from 0 to {_HALF}, got {self.mixup}.")
        if self.seed < 0:
            raise InputError(f"`seed` must be at least 0, got {self.seed}.")


@dataclass(frozen=True, eq=False)
class KeptParts:
    """What a compressed network kept of the original, by name of the layer, in the order of the network.

    Attributes:
        weights: float32 weights of the original in the compressed network's shapes.
        channels: (k,) int64 output channels, ascending.
    """

    weights: Mapping[str, Tensor]
    channels: Mapping[str, Tensor]


@dataclass(frozen=True)
class TuningStep:
    """How far fine-tuning is.

    Attributes:
        step: number of steps done.
        total: number of all steps.
        loss: training loss, averaged over about the last 20 steps.
        search_loss: lowest loss on the search split so far.
        search_accuracy: accuracy of that network on the search split, in [0, 1]; NaN without labels.
        seconds_left: estimated seconds to the end.
    """

    step: int
    total: int
    loss: float
    search_loss: float
    search_accuracy: float
    seconds_left: float


@dataclass(frozen=True, eq=False)
class Tuned:
    """The result of a fine-tuning.

    Attributes:
        compressed: network with the lowest loss on the search split, taken after every epoch; its loss there is never
            above that of the network that was given.
        steps: number of steps done.
        seconds: seconds taken, those before an interruption included.
        diverged: whether fine-tuning stopped early because the loss was no longer finite.
        best_step: number of the step after which `compressed` was taken; 0: fine-tuning improved nothing, and
            `compressed` is the network that was given.
        unrounded: (weight, bias or None) of `compressed` before rounding, by layer name.
    """

    compressed: Compressed
    steps: int
    seconds: float
    diverged: bool
    best_step: int
    unrounded: Mapping[str, tuple[Tensor, Tensor | None]]


def batch_size_for(samples: int) -> int:
    """The number of samples in a step where nobody says: 128, but where an epoch would have fewer than 64 steps, fewer.

    A few hundred samples are run through in four steps of 128, which change next to nothing.

    >>> [batch_size_for(samples) for samples in (100, 500, 2_000, 50_000)]
    [8, 8, 31, 128]

    Args:
        samples: number of samples in an epoch.
    """
    return min(max(samples // _LEAST_STEPS, _LEAST_BATCH), _MOST_BATCH)


def features_for(samples: int) -> float:
    """The weight of matched layers where nobody says: 3 for fewer samples than 64 steps of 128 take, else 0.

    Outputs of a few hundred samples are soon known by heart; the layers before them say much more of each (Wang & Wu
    2023 of networks that lost blocks).

    >>> [features_for(samples) for samples in (500, 50_000)]
    [3.0, 0.0]

    Args:
        samples: number of samples in an epoch.
    """
    return _FEATURES_OF_FEW if samples < _LEAST_STEPS * _MOST_BATCH else 0.0
