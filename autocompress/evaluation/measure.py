"""How close a compressed network's outputs are to the original's, in float32."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocompress.borrowed import evaluating
from autocompress.errors import InputError

Batch = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Closeness:
    """Means over samples.

    Attributes:
        kl: divergence KL(original || compressed) in nats, at least 0 up to rounding.
        accuracy: top-1 of the compressed network in [0, 1]; NaN without labels.
        agreement: fraction of samples on which both have the same top-1 answer.
        original_accuracy: top-1 of the original; NaN without labels.
    """

    kl: float
    accuracy: float
    agreement: float
    original_accuracy: float


def measure(original: nn.Module, compressed: nn.Module, batches: Iterable[Batch]) -> Closeness:
    """Compare two networks on (inputs, labels) batches; both keep their mode.

    Raises:
        InputError: there are no samples, or outputs are not finite.
    """
    parts = []
    with evaluating(original), evaluating(compressed):
        for inputs, labels in batches:
            parts.append((original(inputs).flatten(1), compressed(inputs).flatten(1), labels))
    if not parts:
        raise InputError("`data` must hold at least one sample to measure on, got none.")
    labels = None if parts[0][2] is None else torch.cat([part[2] for part in parts if part[2] is not None])
    return compare(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]), labels)


def compare(reference: Tensor, outputs: Tensor, labels: Tensor | None) -> Closeness:
    """The same from outputs: both (N, classes) logits, labels (N,) or None.

    Raises:
        InputError: outputs are not finite.
    """
    if not (torch.isfinite(reference).all() and torch.isfinite(outputs).all()):
        raise InputError("`model` must give finite outputs, got NaN or infinity; check the weights and the data.")
    log_p, log_q = reference.double().log_softmax(1), outputs.double().log_softmax(1)
    answers, reference_answers = outputs.argmax(1), reference.argmax(1)
    return Closeness(
        kl=float((log_p.exp() * (log_p - log_q)).sum(1).mean().clamp(min=0)),
        accuracy=_share(answers, labels),
        agreement=_share(answers, reference_answers),
        original_accuracy=_share(reference_answers, labels),
    )


def _share(answers: Tensor, expected: Tensor | None) -> float:
    return float("nan") if expected is None else float((answers == expected).double().mean())
