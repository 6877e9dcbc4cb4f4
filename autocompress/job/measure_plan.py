"""Measuring a plan: the menus' weights, renormalized, beside the original."""

from __future__ import annotations

from collections.abc import Mapping

from autocompress.evaluation import Evaluator, measure, measured_at_once
from autocompress.job.finish import split_used
from autocompress.job.prepare import Job
from autocompress.job.results import Measurement
from autocompress.network.interface import plain
from autocompress.progress import Progress
from autocompress_envs import Labeling, Outcome


def measure_plan(
    job: Job, evaluator: Evaluator, labeling: Labeling, limits: Mapping[str, int], split: str, watcher: Progress
) -> Measurement:
    """Measure the menus' weights of a plan, renormalized, and the original together.

    Args:
        job: the network with its menus.
        evaluator: stitches the plan.
        labeling: the plan.
        limits: absolute upper bounds by resource; empty without a budget.
        split: `test` or `search`.
        watcher: observer that is told of stages, notes and evaluations.
    """
    split = split_used(job.data, split, watcher)
    watcher.stage(f"measuring the original and the plan on the {split} split")
    compressed = evaluator.stitched(labeling)
    batches = job.data.test_batches() if split == "test" else [job.data.search()]
    at_once = measured_at_once(job.network, job.memory, job.device)
    measured = measure(job.model, compressed, batches, job.device, watcher.note, at_once, job.reading)
    resources = job.problem.resources(labeling)
    outcome = Outcome(measured.kl, measured.accuracy, measured.agreement, resources)
    original = Outcome(0.0, measured.original_accuracy, measured.original_agreement, dict(job.original))
    plan = job.menus.plan(labeling)
    return Measurement(
        plan=plan,
        model=plain(compressed),
        outcome=outcome,
        original_outcome=original,
        split=split,
        limits=limits,
        network=job.network,
        problem=job.problem,
        labeling=labeling,
        metrics=measured.metrics_by_name(),
        task=job.reading.task.name,
    )
