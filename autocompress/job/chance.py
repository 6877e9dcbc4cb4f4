"""A warning before any work is done: the original does no better on the data than answers that ignore the inputs.

Then inputs are prepared otherwise than in training, or labels mean something else, or the weights are untrained.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autocompress.evaluation import measured_at_once
from autocompress.evaluation.batches import running
from autocompress.job.load import Loaded
from autocompress.network.interface import raw
from autocompress.samples import Inputs
from autocompress.tasks import together
from autocompress.tasks.metrics import share_interval
from autocompress.tasks.outputs import as_tuple

_LEVEL = 0.025  # probability of so large a correlation where there is none: one end of a 95 % interval
_ADVICE = (
    "compression keeps what the network gives, so look first whether inputs are prepared as in training "
    "(normalisation, size, order of channels), whether {labels}, and whether the trained weights were loaded"
)


def chance_note(loaded: Loaded) -> str:
    """A note that the original does no better than chance on the search split; empty where it does, or nobody can say.

    Classes: the 95 % interval of the share of right answers (Wilson's score) reaches down to the share that the same
    answers would have if they were dealt out at random, which for a constant answer is its own. Numbers: a constant
    answer would be as good (R² at most 0), or no output goes up with its label (Spearman's correlation). Other tasks
    have no such measure.

    Args:
        loaded: the network and its data.
    """
    inputs, labels = loaded.data.train.load(loaded.data.search_indices)
    of_numbers = loaded.reading.task.name == "regression"
    of_classes = loaded.reading.has_answers and labels is not None and not labels.is_floating_point()
    if labels is None or not (of_numbers or of_classes):
        return ""
    predicted, count = _predictions(loaded, inputs)
    if predicted.numel() != labels.numel():
        return ""
    predicted, labels = predicted.reshape(labels.shape), labels.cpu()
    return _of_numbers(predicted, labels) if of_numbers else _of_classes(predicted, labels, count)


def _predictions(loaded: Loaded, inputs: Inputs) -> tuple[Tensor, int]:
    """What the original predicts of N samples, in the labels' form, and the number of classes (0: there are none)."""
    reading, found, count = loaded.reading, [], 0
    if reading.of_classes:
        rows = loaded.search_outputs()
        return rows.argmax(-1), rows.shape[-1]
    at_once = measured_at_once(loaded.network, loaded.memory, loaded.device)
    with running(raw(loaded.model), loaded.device, None, at_once) as run:
        for part in inputs.split(at_once):
            outputs = as_tuple(run(part))
            found.append(reading.task.predictions(outputs))
            count = 0 if reading.task.class_axis is None else outputs[0].shape[reading.task.class_axis]
    return together(found), count


def _of_classes(predicted: Tensor, labels: Tensor, count: int) -> str:
    """The note on classes of the same shape; labels that are none of `count` classes stand for nothing."""
    known = (labels >= 0) & (labels < count)
    predicted, labels = predicted[known], labels[known]
    shares = [torch.bincount(each, minlength=count) / max(1, len(each)) for each in (predicted, labels)]
    if int((shares[1] > 0).sum()) < 2:  # all labels alike tell nothing
        return ""
    right, chance = float((predicted == labels).double().mean()), float(shares[0] @ shares[1])
    low, high = share_interval(right, len(labels))
    if low > chance:
        return ""
    return (
        f"the original is right on {100 * right:.1f} % of {len(labels):,} labels of the search split (95 % interval "
        f"{100 * low:.1f} to {100 * high:.1f} %); guessing would be on {100 * chance:.1f} %: "
        + _ADVICE.format(labels="labels number the classes as the network does")
    )


def _of_numbers(predicted: Tensor, labels: Tensor) -> str:
    """The note on numbers of the same shape (N, …)."""
    y, found = (each.double().reshape(len(labels), -1) for each in (labels, predicted))  # (N, D)
    varies = y.std(0, correction=0) > 0
    if len(y) < 3 or not bool(varies.any()):
        return ""
    y, found = y[:, varies], found[:, varies]
    explained = float(1 - ((y - found).square().mean(0) / y.var(0, correction=0)).mean())
    if explained > 0 and any(_goes_up(*pair) for pair in zip(found.T, y.T, strict=True)):
        return ""
    return (
        f"the original's R² on {len(y):,} samples of the search split is {explained:.3f}; a constant answer has 0: "
        + _ADVICE.format(labels="labels are in the units of the outputs")
    )


def _goes_up(found: Tensor, y: Tensor) -> bool:
    """Whether numbers (N,) go up with labels (N,), beyond chance."""
    if not bool((found != found[0]).any()):
        return False
    from scipy.stats import spearmanr  # here, because importing it takes half a second

    return bool(spearmanr(found.numpy(), y.numpy(), alternative="greater").pvalue < _LEVEL)
