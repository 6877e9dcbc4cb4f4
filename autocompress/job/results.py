"""What the package gives back: plain data, and the compressed network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from autocompress.execute.pipeline import Executed
from autocompress.job.inspection import LayerReport
from autocompress.job.measured_labels import MeasuredLabels
from autocompress.network import Network
from autocompress.plan import Plan
from autocompress.targets.timing import Machine, TimeLimit
from autocompress.targets.verify import Verification
from autocompress_envs import Labeling, Outcome, Problem
from autocompress_envs.problem.tables import is_within


@dataclass(frozen=True)
class Measurement:
    """A plan beside the original, measured together.

    Attributes:
        plan: the labels.
        model: the compressed network in float32: the plan's weights, and activations rounded as the plan says.
        outcome: measurement of the compressed network.
        original_outcome: measurement of the original.
        split: split that both were measured on: `test` or `search`.
        limits: absolute upper bounds by resource; empty without a budget.
        network: as traced.
        problem: the network's menus in numbers.
        labeling: the plan in indices into the menus.
        metrics: (original, compressed) of the task's metrics by name; empty without labels, and for classes, which have
            an accuracy.
        task: name of the task, which says what outputs are.
    """

    plan: Plan
    model: nn.Module
    outcome: Outcome
    original_outcome: Outcome
    split: str
    limits: Mapping[str, int]
    network: Network
    problem: Problem
    labeling: Labeling
    metrics: Mapping[str, tuple[float, float]]
    task: str

    @property
    def meets_budget(self) -> bool:
        return is_within(self.outcome.resources, self.limits)


@dataclass(frozen=True)
class TimeClaim:
    """A limit of time that a finished network keeps, and where.

    Attributes:
        limit: the limit.
        machine: machine on which it was kept before. Default: none, so it has to be kept here.
    """

    limit: TimeLimit
    machine: Machine | None = None


@dataclass(frozen=True)
class Finished(Measurement):
    """A plan made real: its files lie in a run folder and were verified in their runtime.

    `outcome` is of the finished network in PyTorch, its `size` the bytes of the target's file.

    Attributes:
        run_folder: folder of the files.
        executed: result of re-calibration and fine-tuning.
        verification: the files in their runtime, and every claim that was looked at.
        time: limit of time; None where the budget has none.
    """

    run_folder: Path
    executed: Executed
    verification: Verification
    time: TimeClaim | None


@dataclass(frozen=True)
class Result(Finished):
    """What a search found: its best plan, made real, and how it came to it.

    Attributes:
        search_outcome: measurement of the plan on the search split with the menus' weights, renormalized, by which it
            was chosen; None where a policy decided without an evaluation.
        evaluations: number of different plans evaluated.
        stopped_because: reason why the search ended, in a few words.
    """

    search_outcome: Outcome | None
    evaluations: int
    stopped_because: str


@dataclass(frozen=True)
class Inspection:
    """What can be compressed, what it costs, and how much each label is expected to hurt.

    Attributes:
        network: as traced.
        problem: the network's menus in numbers.
        original: every resource of the original.
        layers: one report a layer, in network order.
        measured: labels that were measured; None where none were asked for.
    """

    network: Network
    problem: Problem
    original: Mapping[str, int]
    layers: tuple[LayerReport, ...]
    measured: MeasuredLabels | None = None
