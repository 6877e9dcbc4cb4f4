"""The registry of tasks.

A task of your own is an entry of data: how its rows are made from the outputs of the original, and its metrics.

    def rows(seen: Seen) -> Callable[[Outputs, tuple[Tensor, ...]], Tensor]: ...

    autocompress.register_task(Task("depth", rows, "maps of numbers (N, H, W)", metrics=("r2",)))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autocompress.errors import InputError
from autocompress.registry import Registry
from autocompress.samples import Inputs, Samples, tensors_of
from autocompress.tasks.metrics import Metric
from autocompress.tasks.outputs import Outputs
from autocompress.tasks.rows import Several, classes, directions, numbers

RowsFunction = Callable[[Outputs, tuple[Tensor, ...]], Tensor]
"""From (outputs, inputs), tuples of tensors of the same n samples, to logits (n, P, K)."""

_MASK = "attention_mask"


@dataclass(frozen=True)
class Seen:
    """What a task is given to make its rows: the original on some calibration samples.

    Attributes:
        names: names of the outputs that count.
        outputs: these outputs, each (n, …), float32 on the CPU.
        inputs: inputs (n, …) of the samples.
    """

    names: tuple[str, ...]
    outputs: Outputs
    inputs: Inputs

    @property
    def mask(self) -> int | None:
        """Number of the input `attention_mask`, which is 0 at padding; None where there is none."""
        names = self.inputs.names if isinstance(self.inputs, Samples) else ()
        return names.index(_MASK) if _MASK in names else None

    def mask_of(self, output: int) -> int | None:
        """The same, where it says which positions of an output (n, T, K) are valid."""
        mask, shape = self.mask, tuple(self.outputs[output].shape)
        if mask is None or len(shape) != 3 or tuple(tensors_of(self.inputs)[mask].shape) != shape[:2]:
            return None
        return mask


@dataclass(frozen=True)
class Task:
    """What outputs of a network mean.

    Attributes:
        name: name of the task, as in `--task NAME`.
        rows: function from the original on some samples to the function that makes rows: logits (n, P, K) of outputs
            and inputs. It raises InputError for outputs that it is not for. Rows of a sample must not depend on the
            samples beside it, and must be differentiable.
        labels: form of the labels that metrics compare outputs with, for messages.
        metrics: metrics that are taken where the data has labels, or their names; see `tasks.metrics`.
        class_axis: axis of the only output on which classes lie; None: it holds no classes.
        decode: function from outputs to predictions in the labels' form, before metrics are taken. Default: the
            likeliest class along `class_axis`; without it the first output as it is.
    """

    name: str
    rows: Callable[[Seen], RowsFunction | None]
    labels: str
    metrics: tuple[str | Metric, ...] = ()
    class_axis: int | None = None
    decode: Callable[[Outputs], Any] | None = None

    def predictions(self, outputs: Outputs) -> Any:
        """What outputs (N, …) predict, in the labels' form."""
        if self.decode is not None:
            return self.decode(outputs)
        return outputs[0] if self.class_axis is None else outputs[0].argmax(self.class_axis)


def _one(seen: Seen, task: str, form: str, axes: range) -> Tensor:
    """The only output. Raises InputError where there are several, or it has another number of axes."""
    shapes = ", ".join(f"{name} {tuple(each.shape)}" for name, each in zip(seen.names, seen.outputs, strict=True))
    if len(seen.outputs) != 1 or seen.outputs[0].ndim not in axes:
        raise InputError(f"`model` must give one output {form} for the task {task}, got {shapes}.")
    return seen.outputs[0]


def _classification(seen: Seen) -> RowsFunction | None:
    logits = _one(seen, "classification", "(N, classes)", range(1, 3))
    return None if logits[0].numel() > 1 else _two_classes


def _two_classes(outputs: Outputs, inputs: tuple[Tensor, ...]) -> Tensor:
    """Logits (N, 2) of a network that gives one logit, that of class 1 against class 0."""
    logit = outputs[0].float().reshape(-1, 1)
    return torch.cat([torch.zeros_like(logit), logit], 1)


def _tokens(seen: Seen) -> RowsFunction:
    logits = _one(seen, "token-classification", "(N, tokens, classes)", range(3, 4))
    _check_width(logits.shape[-1], "token-classification")
    return classes(seen.outputs, 0, -1, seen.mask_of(0))


def _pixels(seen: Seen) -> RowsFunction:
    logits = _one(seen, "segmentation", "(N, classes, …)", range(3, 6))
    _check_width(logits.shape[1], "segmentation")
    return classes(seen.outputs, 0, 1)


def _check_width(classes: int, task: str) -> None:
    if classes < 2:
        raise InputError(f"`model` must have at least 2 classes for the task {task}, got 1; pass --task regression.")


def _regression(seen: Seen) -> RowsFunction:
    return Several([numbers(seen.outputs, output) for output in range(len(seen.outputs))])


def _embedding(seen: Seen) -> RowsFunction:
    for name, each in zip(seen.names, seen.outputs, strict=True):
        if each.ndim < 2 or each.shape[-1] < 2:
            raise InputError(
                f"`model` must give vectors (N, …, D), D at least 2, for the task embedding, got {name} of shape "
                f"{tuple(each.shape)}."
            )
    inputs = tensors_of(seen.inputs)
    return Several(
        [directions(seen.outputs, inputs, output, seen.mask_of(output)) for output in range(len(seen.outputs))]
    )


TASKS: Registry[Task] = Registry(
    "task",
    {
        "classification": Task("classification", _classification, "classes (N,)"),
        "regression": Task("regression", _regression, "numbers of the output's shape", ("r2", "mae")),
        "embedding": Task("embedding", _embedding, "vectors of the output's shape", ("cosine",)),
        "token-classification": Task(
            "token-classification", _tokens, "classes (N, tokens), -100 where none", ("accuracy", "f1"), -1
        ),
        "segmentation": Task("segmentation", _pixels, "classes (N, …), 255 where none", ("miou", "accuracy"), 1),
        "detection": Task("detection", _regression, "lists of boxes"),
    },
)
"""Tasks by name; `autocompress.register_task` adds one."""
