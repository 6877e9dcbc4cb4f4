"""A search in its run folder, from a prepared job and limits to verified files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from autocompress.config import Config
from autocompress.evaluation import Evaluator
from autocompress.execute.pipeline import Execution
from autocompress.execute.tuning import FineTuning
from autocompress.files import write_atomically
from autocompress.job.ending import write_ending
from autocompress.job.finish import execute_and_finish
from autocompress.job.options import SearchRequest
from autocompress.job.prepare import Job, made_on
from autocompress.job.result_data import result_data
from autocompress.job.results import Finished, Result
from autocompress.job.search import find, plans_to_begin_with, policy_digest, write_policy
from autocompress.job.time_budget import STEP, TimeBudget, tighter, within_time
from autocompress.progress import Progress
from autocompress.run.folder import RunFolder
from autocompress.run.names import CHECKPOINT, CHECKPOINTS, PLAN
from autocompress.version import versions
from autocompress_envs.problem import Labeling


def search_and_finish(
    job: Job,
    asked: SearchRequest,
    tuning: FineTuning | None,
    limits: Mapping[str, int],
    evaluator_of: Callable[[], Evaluator],
    path: Path,
    watcher: Progress,
) -> Result:
    """Search within limits, make the plan real, verify it and write everything down.

    Args:
        job: the network with its menus; where the budget has a limit of time, it was timed.
        asked: the search that was asked for.
        tuning: settings of fine-tuning; None: none.
        limits: absolute upper bounds by resource.
        evaluator_of: function that gives what measures plans; it is let go before the plan is made real, since its
            samples and ready-made weights take a gigabyte and more.
        path: folder of the run, which this process alone writes.
        watcher: observer that is told of stages, notes and evaluations.

    Raises:
        InputError: no plan is fast enough, or one of those to begin with is not on the menus.
    """
    time, inner, config = None, limits, asked.config
    if asked.time is not None:
        job, inner, time = within_time(job, asked.time, limits, watcher)
    begin_with = plans_to_begin_with(job, asked, inner, watcher)
    evaluator = evaluator_of()
    with RunFolder(path, config, versions(), made_on(job, evaluator) | policy_digest(asked.policy)) as folder:
        found = find(job, evaluator, asked, inner, folder, watcher, time, begin_with)
        write_policy(folder, asked, found.policy_state)
        execution = execution_of(config, tuning, evaluator.dtype, path)
        del evaluator
        made = _made(job, found.labeling, limits, execution, path, watcher, time)
        result = Result(
            **vars(made),
            search_outcome=found.outcome,
            evaluations=found.evaluations,
            stopped_because=found.stopped_because,
        )
        write_ending(path, job, found.labeling, limits, asked, result_data(result), found.by_policy)
    return result


def execution_of(config: Config, tuning: FineTuning | None, dtype: str, path: Path) -> Execution:
    """How a plan is made real in a run folder."""
    memory, checkpoint = config.memory_bytes(), path / CHECKPOINT
    return Execution(config.recalibration_samples, tuning, config.device, dtype, checkpoint, memory)


def _made(
    job: Job,
    labeling: Labeling,
    limits: Mapping[str, int],
    execution: Execution,
    path: Path,
    watcher: Progress,
    time: TimeBudget | None,
) -> Finished:
    """A plan made real. Where its file does not keep the limit of time after all, tighter plans follow it.

    The plan's file was timed before, so this happens where the machine has changed meanwhile.
    """
    if time is None:
        return execute_and_finish(job, labeling, limits, execution, path, watcher)
    made = execute_and_finish(job, labeling, limits, execution, path, watcher, time.limit)
    latency = int(STEP * job.problem.resources(labeling)["latency"])
    spare = tighter(job, {**limits, "latency": latency}, labeling)
    for (following, *_), checkpoint in zip(spare, CHECKPOINTS[1:], strict=False):
        if not any(check.name == "latency" for check in made.verification.checks if not check.passed):
            break
        watcher.note("the finished file did not keep the limit of time; its plan, made to fit a tighter one, follows")
        write_atomically(path / PLAN, job.menus.plan(following).to_yaml())
        execution = replace(execution, checkpoint=path / checkpoint)  # a resumed run needs those before as well
        made = execute_and_finish(job, following, limits, execution, path, watcher, time.limit)
    return made
