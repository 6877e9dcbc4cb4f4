"""A task fitted to a network: which outputs count there, how rows are made of them, and the metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from autocompress.errors import InputError
from autocompress.samples import Inputs, tensors_of
from autocompress.tasks.metrics import Meter, Metric, find_metrics, missing_package
from autocompress.tasks.outputs import OutputForm, Outputs, as_tuple
from autocompress.tasks.tasks import TASKS, Seen, Task

AUTO = "auto"  # name that stands for the task that `choose` finds


@dataclass(frozen=True, eq=False)
class Reading:
    """How a network's outputs are read.

    Attributes:
        task: the task.
        form: which outputs count, and how rows are made of them.
        reason: why `auto` took this task, in a few words; empty where the user named it.
    """

    task: Task
    form: OutputForm = field(default_factory=OutputForm)
    reason: str = ""

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """Metrics that are taken where there are labels; none where a package that they need is missing."""
        found = find_metrics(self.task.metrics)
        return () if missing_package(found) else found

    def meter(self, outputs: Outputs) -> Meter:
        """A meter of the metrics, for outputs (N, …) of these shapes."""
        axis = self.task.class_axis
        return Meter(self.metrics, 0 if axis is None else outputs[0].shape[axis])

    @property
    def of_classes(self) -> bool:
        """Whether every sample has one class, which `accuracy` is about."""
        return self.form.rows is None or self.task.name == "classification"

    @property
    def has_answers(self) -> bool:
        """Whether outputs choose among classes, so that two networks can give the same answer; numbers don't."""
        return self.of_classes or self.task.class_axis is not None

    def rows(self, outputs: Tensor | Outputs, inputs: Inputs) -> Tensor:
        """Rows (N, P, K), or logits (N, classes) as they are, of raw outputs and the inputs that they belong to."""
        given = as_tuple(outputs)
        return given[0].float() if self.form.rows is None else self.form.rows(given, tensors_of(inputs))


def read_as(name: str, seen: Seen, reason: str = "") -> Reading:
    """A task fitted to the outputs of the original.

    Args:
        name: name of the task.
        seen: the original on some calibration samples.
        reason: why `auto` took this task; empty where the user named it.

    Raises:
        InputError: an unknown task, outputs that it is not for, or rows that break a rule of tasks.
    """
    found = TASKS.find(name)
    rows = found.rows(seen)
    if rows is not None:
        check_rows(rows(seen.outputs, tensors_of(seen.inputs)), found, len(seen.inputs))
    return Reading(found, OutputForm(seen.names, rows), reason)


def check_rows(rows: Tensor, task: Task, count: int) -> None:
    """Raise InputError where the rows of a task are not finite logits (count, P, K) or (count, K), K at least 2."""
    if rows.ndim not in (2, 3) or len(rows) != count or rows.shape[-1] < 2:
        raise InputError(
            f"`rows` of the task {task.name} must be logits (N, P, K), K at least 2, got shape {tuple(rows.shape)} for "
            f"N = {count}."
        )
    if not bool(torch.isfinite(rows).all()):
        raise InputError("`model` must give finite outputs, got NaN or infinity; check the weights and the data.")
