"""The check of tasks: rows and metrics of some outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from autocompress.evaluation.measure import compare
from autocompress.samples import Inputs
from autocompress.tasks import Outputs, Reading, Seen, Task
from autocompress.tasks.outputs import OutputForm
from autocompress.testing.contract import require, seeded

_SAME = 1e-4  # largest difference between rows of a sample in two batches, in their spread


def check_task(
    task: Task, outputs: Sequence[Tensor], inputs: Inputs, labels: Tensor | None = None, names: Sequence[str] = ()
) -> None:
    """Check a task with outputs of a network.

    Rows must be logits, finite, and the same again; a sample's must not depend on the samples beside it. Outputs must
    be no distance from themselves, and some distance, larger for larger disturbances, from others. Gradients must flow
    back to every output. Metrics must be numbers.

    Args:
        task: as for `autocompress.register_task`.
        outputs: outputs that the task is for, each (N, …), N at least 4.
        inputs: inputs (N, …) that they belong to.
        labels: labels (N, …); None: metrics are not looked at.
        names: names of the outputs. Default: `output`, or `output_0` and so on.

    Raises:
        ContractError: a rule is broken.
    """
    given = tuple(each.float() for each in outputs)
    called = tuple(names) or (("output",) if len(given) == 1 else tuple(f"output_{n}" for n in range(len(given))))
    reading = Reading(task, OutputForm(called, task.rows(Seen(called, given, inputs))))
    rows = reading.rows(given, inputs)
    _check_form(rows, len(inputs))
    require(torch.equal(rows, reading.rows(given, inputs)), "Rows must be the same again", "others")
    parts = [reading.rows(tuple(each[at : at + 1] for each in given), inputs[at : at + 1]) for at in range(len(inputs))]
    apart = float((torch.cat(parts) - rows).abs().max())
    require(apart <= _SAME * float(rows.std()), "Rows must not depend on the other samples", apart)
    _check_distances(reading, given, inputs)
    _check_gradients(reading, given, inputs)
    if labels is not None and reading.metrics:
        _check_metrics(reading, given, labels)


def _check_form(rows: Tensor, count: int) -> None:
    is_rows = rows.ndim in (2, 3) and len(rows) == count and rows.shape[-1] >= 2
    require(is_rows, f"Rows must be logits ({count}, P, K) or ({count}, K)", tuple(rows.shape))
    require(bool(torch.isfinite(rows).all()), "Rows must be finite", "NaN or infinity")


def _check_distances(reading: Reading, outputs: Outputs, inputs: Inputs) -> None:
    def distance(strength: float) -> float:
        noise = [torch.randn(each.shape, generator=seeded(0)) * each.std() for each in outputs]
        moved = tuple(each + strength * other for each, other in zip(outputs, noise, strict=True))
        return compare(reading.rows(outputs, inputs), reading.rows(moved, inputs), None).kl

    found = [distance(strength) for strength in (0.0, 0.01, 0.1)]
    require(found[0] == 0.0, "Outputs must be no distance from themselves", found[0])
    require(0 < found[1] < found[2], "Outputs that are disturbed more must be farther away", found)


def _check_gradients(reading: Reading, outputs: Outputs, inputs: Inputs) -> None:
    watched = tuple(each.clone().requires_grad_() for each in outputs)
    probability = reading.rows(watched, inputs).log_softmax(-1)[..., 0].sum()
    if probability.requires_grad:
        probability.backward()  # type: ignore[no-untyped-call]
    flows = all(each.grad is not None and bool(each.grad.abs().sum() > 0) for each in watched)
    require(flows, "Gradients must flow back to every output", "none")


def _check_metrics(reading: Reading, outputs: Outputs, labels: Tensor) -> None:
    meter = reading.meter(outputs)
    meter.update(reading.task.predictions(outputs), labels)
    found = meter.values()
    for name, value in found.items():
        require(value == value, f"The metric {name} must be a number", value)
