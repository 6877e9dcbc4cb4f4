"""How close a compressed network's outputs are to the original's: two networks on the same samples, in float32."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.evaluation.batches import Note, running
from autocompress.samples import Inputs

Batch = tuple[Inputs, Tensor | None]

AT_ONCE = 64  # samples of a forward pass where nobody says more


@dataclass(frozen=True)
class Closeness:
    """How close a network's outputs are to the original's on some samples: means over these samples.

    Attributes:
        kl: divergence KL(original || compressed) of the class probabilities, in nats, at least 0.
        accuracy: share of samples whose label is the compressed network's top-1 answer, in [0, 1]; NaN without labels.
        agreement: share of samples on which both networks have the same top-1 answer, in [0, 1].
        original_accuracy: share of samples whose label is the original's top-1 answer; NaN without labels.
    """

    kl: float
    accuracy: float
    agreement: float
    original_accuracy: float


def measure(
    original: nn.Module,
    compressed: nn.Module,
    batches: Iterable[Batch],
    device: torch.device | str = "cpu",
    note: Note | None = None,
    at_once: int = AT_ONCE,
) -> Closeness:
    """Run two networks on the same samples, in eval mode, and compare their outputs.

    Args:
        original: network whose outputs are the reference.
        compressed: network whose outputs are compared with them.
        batches: (inputs (n, …), labels (n,) or None) of the samples; all batches have labels, or none has.
        device: device that both networks run on.
        note: function that is told once where batches had to become smaller for the device's memory. Default: nobody.
        at_once: number of samples in a forward pass, at most, however large a batch is.

    Returns:
        Means over all samples. Both networks are left where they are and in the mode that they were in.

    Raises:
        InputError: there are no samples, or outputs are not finite.
    """
    parts, there = [], torch.device(device)
    with running(original, there, note, at_once) as reference, running(compressed, there, note, at_once) as measured:
        for inputs, labels in batches:
            parts.append((reference(inputs), measured(inputs), None if labels is None else labels.cpu()))
    if not parts:
        raise InputError("`data` must hold at least one sample to measure on, got none.")
    labels = None if parts[0][2] is None else torch.cat([part[2] for part in parts if part[2] is not None])
    return compare(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]), labels)


def compare(reference: Tensor, outputs: Tensor, labels: Tensor | None) -> Closeness:
    """Compare outputs of two networks on the same N samples.

    Args:
        reference: (N, classes) logits of the original.
        outputs: (N, classes) logits of the compressed network.
        labels: (N,) int64 classes, or None.

    Raises:
        InputError: outputs are not finite.
    """
    if not (torch.isfinite(reference).all() and torch.isfinite(outputs).all()):
        raise InputError("`model` must give finite outputs, got NaN or infinity; check the weights and the data.")
    log_p, log_q = reference.double().log_softmax(1), outputs.double().log_softmax(1)  # (N, classes)
    answers, reference_answers = outputs.argmax(1), reference.argmax(1)
    return Closeness(
        kl=float((log_p.exp() * (log_p - log_q)).sum(1).mean().clamp(min=0)),
        accuracy=_share(answers, labels),
        agreement=_share(answers, reference_answers),
        original_accuracy=_share(reference_answers, labels),
    )


def _share(answers: Tensor, expected: Tensor | None) -> float:
    """The share of answers that are as expected, in [0, 1]; NaN where nothing is expected."""
    return float("nan") if expected is None else float((answers == expected).double().mean())
