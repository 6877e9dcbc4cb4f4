"""From a budget to a plan: a policy's walk over the network, and the search that goes on from there."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from autocompress.config import Config
from autocompress.errors import unknown_name
from autocompress.evaluation import Evaluator, measure
from autocompress.jobs import Job
from autocompress.policies.files import SavedPolicy
from autocompress.policies.use import decided, known_effects, planned
from autocompress.recording import Recording, weights_bytes
from autocompress.report.progress import Progress
from autocompress.run_folder import PLAN, SHIFTS, TENSORBOARD, RunFolder
from autocompress.searchers.agents import check_agent
from autocompress.searchers.base import Evaluated, SearchResult, SearchSettings, Task
from autocompress.searchers.search import COMPARING, SEARCHERS, run_search
from autocompress.selection import select
from autocompress.shift_file import ShiftFile
from autocompress_envs.numbers import FloatArray, Labeling, Outcome


@dataclass(frozen=True)
class Found:
    """The plan of a search; `outcome` is None where nothing was evaluated."""

    labeling: Labeling
    outcome: Outcome | None
    evaluations: int
    stopped_because: str
    policy_state: Mapping[str, Tensor] | None = None


def find(
    job: Job,
    evaluator: Evaluator,
    config: Config,
    policy: SavedPolicy | None,
    limits: Mapping[str, int],
    folder: RunFolder,
    watcher: Progress,
) -> Found:
    """The policy's plan, and what a search makes of it; every evaluated plan is written down.

    Args:
        job: with menus.
        evaluator: of the job.
        config: of the search.
        policy: that it begins with.
        limits: absolute.
        folder: of the run.
        watcher: told what happens.
    """
    watcher.stage(f"search: {_described(limits, job.original)}; run folder {folder.path}")
    if not config.episodes:
        assert policy is not None, "chosen_policy asks for one"
        labeling = planned(policy, job.problem, limits, evaluator, watcher)
        folder.write(PLAN, job.menus.plan(labeling).to_yaml())
        return Found(labeling, None, 0, "the policy decided alone")
    prices = None if policy is None else decided(policy, job.problem, limits, watcher).prices
    found, leaders = _searched(job, evaluator, config, prices, limits, folder, watcher)
    selection = select(job, evaluator, config, leaders, limits, watcher)
    best = selection.chosen
    folder.write(PLAN, job.menus.plan(best.labeling).to_yaml())
    why = f"{found.stopped_because}{selection}"
    return Found(best.labeling, best.outcome, found.evaluations, why, found.policy_state)


def _searched(
    job: Job,
    evaluator: Evaluator,
    config: Config,
    prices: FloatArray | None,
    limits: Mapping[str, int],
    folder: RunFolder,
    watcher: Progress,
) -> tuple[SearchResult, list[Evaluated]]:
    """What the search found, and the plans that were its best so far, in that order."""
    settings, log = search_settings(config), folder.path / TENSORBOARD
    leaders: list[Evaluated] = []
    original = original_accuracy(job, config)
    with ShiftFile(folder.path / SHIFTS, evaluator.probabilities.shape) as shifts:
        recording = Recording(folder, evaluator, job.menus.plan, shifts, limits, config.episodes, watcher)

        def observe(evaluated: Evaluated) -> None:
            recording.observe(evaluated)
            if evaluated.is_best:
                leaders.append(evaluated)

        task = Task(
            job.problem,
            dict(limits),
            recording.evaluate,
            original,
            evaluator.probabilities,
            prices,
            effects=lambda around: known_effects(evaluator, watcher, around),
        )
        return run_search(task, settings, method=config.method, observe=observe, tensorboard=log), leaders


def stamp(policy: SavedPolicy | None) -> dict[str, Any]:
    """What of the policy a resumed run must find again."""
    if policy is None:
        return {"policy": None}
    return {"policy": hashlib.sha256(weights_bytes(policy.policy.state_dict())).hexdigest()[:16]}


def search_settings(config: Config) -> SearchSettings:
    """Raises InputError for unknown names, before anything is loaded."""
    names = ("agent", "action", "reward", "episodes", "seed", "patience", "environments", "price_scale")
    values = {name: getattr(config, name) for name in names}
    settings = SearchSettings(**{**values, "episodes": max(1, config.episodes)})  # 0 is no search: see `find`
    if config.method not in SEARCHERS:
        raise unknown_name("method", config.method, SEARCHERS)
    if config.method == "rl":
        check_agent(settings)
    return settings


def original_accuracy(job: Job, config: Config) -> float:
    """On the search split; NaN where neither the reward nor the method's own one compares with it."""
    if config.reward != "haq" and config.method not in COMPARING:
        return math.nan
    return measure(job.model, job.model, [job.data.search()]).accuracy


def _described(limits: Mapping[str, int], original: Mapping[str, int]) -> str:
    return ", ".join(f"{name} at most {limit:,} of {original[name]:,}" for name, limit in limits.items())
