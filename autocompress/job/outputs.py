"""The outputs of a job's network: run once, before anything else, to see what they are and how they are read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from autocompress.borrowed import evaluating
from autocompress.errors import InputError, reason_of
from autocompress.network.interface import outputs_by_name
from autocompress.samples import Inputs, fields_of
from autocompress.tasks import AUTO, Reading, Seen, choose, read_as
from autocompress.tasks.metrics import check_shape

_LOOKED_AT = 2  # samples that tell what outputs are
_FITTED_ON = 64  # samples, at most, that spreads of numbers are taken from …
_FITTED_BYTES = 512_000_000  # … and bytes of their outputs
_AT_ONCE = 8
_UNFITTING = (RuntimeError, ValueError, TypeError, IndexError)  # raised on shapes and arguments that don't fit


def read(model: nn.Module, inputs: Inputs, labels: Tensor | None, classes: Sequence[str], task: str) -> Reading:
    """How the outputs of a network are read.

    Args:
        model: network on the CPU; it is run in eval mode, and left as it was.
        inputs: (N, …) calibration samples.
        labels: labels (N, …) of the samples, whatever they are; None where the data has none.
        classes: class names of the data; empty where labels are not one class a sample.
        task: name of the task, or `auto`.

    Raises:
        InputError: an unknown task, a network that can't take the inputs or whose outputs the task is not for, or
            labels that don't fit the task.
    """
    seen = _seen(model, inputs[:_LOOKED_AT])
    name, reason = choose(seen, labels) if task == AUTO else (task, "")
    if name != "classification":
        size = sum(each[0].nbytes for each in seen.outputs)
        seen = _seen(model, inputs[: max(_LOOKED_AT, min(_FITTED_ON, _FITTED_BYTES // size))])
    reading = read_as(name, seen, reason)
    if reading.of_classes:
        _check_classes(seen, labels, classes)
    elif name == "regression" and labels is not None and len(seen.outputs) == 1:
        check_shape(seen.outputs[0], labels)
    return reading


def _seen(model: nn.Module, inputs: Inputs) -> Seen:
    """The network on samples. Raises InputError where it can't take them, or gives another number of samples back."""
    parts: list[dict[str, Tensor]] = []
    with evaluating(model):
        for batch in inputs.split(_AT_ONCE):
            try:
                found = outputs_by_name(model, batch)
            except InputError:
                raise
            except _UNFITTING as error:
                raise InputError(
                    f"`model` must take inputs of shape {_shapes(inputs)} from `data`, got the error: "
                    f"{reason_of(error)}."
                ) from error
            _check_count(found, len(batch))
            parts.append({name: each.detach().float().cpu() for name, each in found.items()})
    outputs = tuple(torch.cat([part[name] for part in parts]) for name in parts[0])
    return Seen(tuple(parts[0]), outputs, inputs)


def _check_count(outputs: dict[str, Tensor], count: int) -> None:
    for each in outputs.values():
        if each.ndim == 0 or len(each) != count:
            raise InputError(
                f"`model` must give outputs (N, …) with the samples on the first axis, got shape {tuple(each.shape)} "
                f"for N = {count}."
            )


def _check_classes(seen: Seen, labels: Tensor | None, classes: Sequence[str]) -> None:
    """Raise InputError where labels are no classes, or others than the network's."""
    width = max(2, seen.outputs[0][0].numel())
    if labels is not None and not classes:
        raise InputError(
            f"`data` must hold one class a sample, whole numbers (N,), for the task classification, got "
            f"{str(labels.dtype).removeprefix('torch.')} labels {tuple(labels.shape)}; name another --task."
        )
    if classes and width != len(classes):
        raise InputError(f"`model` must have one output for each of the {len(classes)} classes of `data`, got {width}.")


def _shapes(example: Inputs) -> str:
    """Shapes of a sample's tensors, with their names where there are several."""
    fields = fields_of(example)
    return ", ".join(f"{field.name} {field.shape}" for field in fields) if len(fields) > 1 else str(fields[0].shape)
