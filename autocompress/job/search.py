"""From a budget to a plan: the policy's plan, and the search that goes on from there."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from autocompress.budget import shown_name
from autocompress.errors import InputError
from autocompress.evaluation import Evaluator, measure, measured_at_once
from autocompress.job.journaled import JournaledEvaluation
from autocompress.job.options import SearchRequest
from autocompress.job.prepare import Job, tell_damaged
from autocompress.job.select import Candidates, counted, fast_enough, select
from autocompress.job.time_budget import TimeBudget, accepted
from autocompress.models.weights import weights_bytes
from autocompress.policies.files import SavedPolicy
from autocompress.policies.use import PolicySays, effects_with_progress, policy_says, zero_shot_plan
from autocompress.progress import Progress
from autocompress.run.folder import RunFolder
from autocompress.run.names import PLAN, POLICY, POLICY_WEIGHTS, SHIFTS, TENSORBOARD
from autocompress.run.shifts import ShiftFile
from autocompress.searchers.base import Evaluated, SearchResult, Task
from autocompress.searchers.search import run_search
from autocompress.searchers.simple_plans import fitted, simple_plans
from autocompress.version import versions
from autocompress_envs.problem import Labeling, Outcome


@dataclass(frozen=True)
class Found:
    """The plan of a search.

    Attributes:
        labeling: the plan.
        outcome: measurement of the plan on the search split; None where nothing was evaluated.
        evaluations: number of different plans evaluated.
        stopped_because: why the search ended, in a few words.
        policy_state: parameters of the agent's own policy; None for agents without one.
        by_policy: plan that the policy wrote before anything was evaluated; None without a policy.
    """

    labeling: Labeling
    outcome: Outcome | None
    evaluations: int
    stopped_because: str
    policy_state: Mapping[str, Tensor] | None = None
    by_policy: Labeling | None = None


def find(
    job: Job,
    evaluator: Evaluator,
    asked: SearchRequest,
    limits: Mapping[str, int],
    folder: RunFolder,
    watcher: Progress,
    time: TimeBudget | None = None,
    begin_with: Sequence[Labeling] = (),
) -> Found:
    """The policy's plan, and what a search makes of it; every evaluated plan is written down.

    Args:
        job: the network with its menus.
        evaluator: measures plans of the job.
        asked: the search that was asked for.
        limits: absolute upper bounds by resource.
        folder: folder of the run.
        watcher: observer that is told of stages, notes and evaluations.
        time: limit of time, which the plan's file must meet. Default: none.
        begin_with: plans within the limits that the agent evaluates first. Default: none.

    Raises:
        InputError: no plan is fast enough.
    """
    watcher.stage(f"search: {_described(limits, job.original)}; run folder {folder.path}")
    if not asked.config.episodes:
        assert asked.policy is not None, "chosen_policy asks for one"
        labeling = zero_shot_plan(asked.policy, job.problem, limits, evaluator, watcher)
        if time is not None:
            labeling = accepted(job, time, [labeling], limits, watcher)
        folder.write(PLAN, job.menus.plan(labeling).to_yaml())
        return Found(labeling, None, 0, "the policy decided alone")
    says = _asked_policy(job, evaluator, asked, limits, watcher)
    found, candidates = _searched(job, evaluator, asked, says, begin_with, limits, folder, watcher)
    tell_damaged(job.menus.store, watcher)  # effects are kept beside the menus
    selection = select(job, evaluator, asked, candidates, limits, watcher)
    if time is not None:
        selection = fast_enough(selection, job, evaluator, candidates, time, limits, watcher)
    best = selection.chosen
    folder.write(PLAN, job.menus.plan(best.labeling).to_yaml())
    why = f"{found.stopped_because}{selection}"
    by_policy = None if says is None else says.labeling
    return Found(best.labeling, best.outcome, found.evaluations, why, found.policy_state, by_policy)


def _searched(
    job: Job,
    evaluator: Evaluator,
    asked: SearchRequest,
    says: PolicySays | None,
    begin_with: Sequence[Labeling],
    limits: Mapping[str, int],
    folder: RunFolder,
    watcher: Progress,
) -> tuple[SearchResult, Candidates]:
    """What the search found, and the plans that may be its result.

    Simple plans are candidates of agents alone: the other methods are the baselines that agents are compared with.
    """
    simple = simple_plans(job.problem, dict(limits)) if asked.searcher.has_agent else []
    candidates = Candidates([*begin_with, *simple], limits)
    with ShiftFile(folder.path / SHIFTS, evaluator.probabilities.shape) as shifts:
        journaled = JournaledEvaluation(
            folder, counted(evaluator, job), job.menus.plan, shifts, limits, asked.config.episodes, watcher
        )

        def observe(evaluated: Evaluated) -> None:
            journaled.observe(evaluated)
            candidates.observe(evaluated)

        task = Task(
            job.problem,
            dict(limits),
            journaled.evaluate,
            original_accuracy(job) if asked.compares_with_original else math.nan,
            evaluator.probabilities,
            None if says is None else says.prices,
            lambda around: effects_with_progress(evaluator, watcher, around),
            None if says is None else says.copy,
            None if says is None else says.environment,
            begin_with,
        )
        log = folder.path / TENSORBOARD
        found = run_search(task, asked.settings, method=asked.searcher, observe=observe, tensorboard=log)
    return found, candidates


def plans_to_begin_with(job: Job, asked: SearchRequest, limits: Mapping[str, int], watcher: Progress) -> list[Labeling]:
    """The plans that the agent evaluates first, within the limits.

    Args:
        job: the network with its menus.
        asked: the search that was asked for.
        limits: absolute upper bounds by resource.
        watcher: observer that is told of a plan that can't be made to fit.

    Raises:
        InputError: a plan is for another network, or has a label that is not on the menu.
    """
    found = []
    for path, plan in asked.begin_with.items():
        try:
            labeling = job.menus.labeling(plan)
        except InputError as error:
            raise InputError(f"`begin_with` must be plans on this network's menus, got {path}: {error}") from None
        plans = fitted(job.problem, dict(limits), [labeling])
        if not plans:
            watcher.note(f"the plan of {path} can't be made to fit the budget; the search begins without it")
        found += plans
    return found


def _asked_policy(
    job: Job, evaluator: Evaluator, asked: SearchRequest, limits: Mapping[str, int], watcher: Progress
) -> PolicySays | None:
    """What the policy says of the network, also by first-order effects where the agent uses them; None without one."""
    if asked.policy is None:
        return None
    effects = effects_with_progress(evaluator, watcher) if asked.searcher.wants_outputs(asked.settings) else None
    return policy_says(asked.policy, job.problem, limits, evaluator.probabilities, effects, watcher)


def policy_digest(policy: SavedPolicy | None) -> dict[str, Any]:
    """What of the policy a resumed run must find again."""
    if policy is None:
        return {"policy": None}
    return {"policy": hashlib.sha256(weights_bytes(policy.policy.state_dict())).hexdigest()[:16]}


def original_accuracy(job: Job) -> float:
    """Accuracy of the original on the search split."""
    at_once = measured_at_once(job.network, job.memory, job.device)
    return measure(job.model, job.model, [job.data.search()], job.device, at_once=at_once).accuracy


def write_policy(folder: RunFolder, asked: SearchRequest, policy: Mapping[str, Tensor] | None) -> None:
    """Write the trained agent's own policy into the run folder, where there is one."""
    if policy is None:
        return
    made_with = asked.config.model_dump(mode="json", include={"model", "budget", "agent", "action", "reward", "seed"})
    folder.write(POLICY_WEIGHTS, weights_bytes(policy))
    folder.write(POLICY, json.dumps({"version": 1, **made_with, "versions": versions()}, indent=1) + "\n")


def _described(limits: Mapping[str, int], original: Mapping[str, int]) -> str:
    return ", ".join(f"{shown_name(name)} at most {limit:,} of {original[name]:,}" for name, limit in limits.items())
