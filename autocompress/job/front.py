"""A front: one prepared job, a search for each of many budgets, and the files of every point.

Menus, effects, the evaluator and what was evaluated are shared; each point is a run folder of its own inside the
front's, which `verify`, `finetune` and `export` take like any other. A killed front goes on where it was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.budget import ABSOLUTE, COUNTED, Budget
from autocompress.config import Config
from autocompress.errors import InputError, unknown_name
from autocompress.evaluation import Evaluator
from autocompress.execute.tuning import FineTuning
from autocompress.files import is_passing, strict_json, write_atomically
from autocompress.job.options import SearchRequest
from autocompress.job.prepare import Job, build_evaluator, feasible_limits
from autocompress.job.searching import search_and_finish
from autocompress.progress import Progress
from autocompress.run.folder import default_path
from autocompress.run.journal import journal_header
from autocompress.run.names import FRONT, JOURNAL, OUTCOME
from autocompress.run.opening import opened
from autocompress.version import versions
from autocompress_envs.problem import Labeling
from autocompress_envs.problem.tables import Tables
from autocompress_envs.rewards import balanced_prices
from autocompress_envs.solver.feasibility import Reach

SHARE = 1.5  # evaluations of all points together, in units of one search's
LEAST_EPISODES = 8  # evaluations of a point, at least
_ROOM = 1.05  # of the smallest budget above the smallest plan


@dataclass(frozen=True)
class FrontPoint:
    """One budget of a front.

    Attributes:
        budget: the budget in its normal form.
        run_folder: folder of its run, with the files.
        outcome: content of its `outcome.json`.
    """

    budget: str
    run_folder: Path
    outcome: Mapping[str, Any]

    @property
    def amount(self) -> Mapping[str, int]:
        """Resources of the finished network."""
        found: Mapping[str, int] = self.outcome["compressed"]["resources"]
        return found

    def data(self) -> dict[str, Any]:
        """The point as plain data."""
        return {
            "budget": self.budget,
            "run_folder": str(self.run_folder),
            **{name: self.outcome[name] for name in ("compressed", "fraction_of_original", "runtime", "verified")},
        }


@dataclass(frozen=True)
class Front:
    """Points of a front, from the strictest budget to the mildest.

    Attributes:
        resource: resource whose budgets differ.
        points: finished points.
        folder: folder of the front.
    """

    resource: str
    points: tuple[FrontPoint, ...]
    folder: Path

    @property
    def verified(self) -> bool:
        """Whether every claim of every point holds."""
        return all(point.outcome["verified"] for point in self.points)

    @property
    def prices(self) -> list[tuple[float, float] | None]:
        """The prices at which each point has the highest reward `balanced` of all (`prices_of`)."""
        return prices_of([point.outcome for point in self.points], self.resource)

    def data(self) -> dict[str, Any]:
        """The front as plain data, ready for JSON; a price without an upper end has None there."""
        points = [
            {**point.data(), "balanced_prices": price and [price[0], price[1] if math.isfinite(price[1]) else None]}
            for point, price in zip(self.points, self.prices, strict=True)
        ]
        return {"resource": self.resource, "points": points}


def prices_of(outcomes: Sequence[Mapping[str, Any]], resource: str) -> list[tuple[float, float] | None]:
    """The prices at which each point of a front has the highest reward `balanced` of all, which needs no budget.

    A price is what all of the original's amount of the resource is worth in accuracy, or where there are no labels in
    exp(-KL). A point that is the best at no price has None.

    Args:
        outcomes: contents of the points' `outcome.json`.
        resource: resource whose budgets differ.
    """
    compressed = [each["compressed"] for each in outcomes]
    labelled = all(each["accuracy"] is not None for each in compressed)
    kept = [each["accuracy"] if labelled else math.exp(-each["kl"]) for each in compressed]
    return balanced_prices(kept, [each["fraction_of_original"][resource] for each in outcomes])


def check_front(config: Config) -> None:
    """Raise InputError where the options of a front contradict each other."""
    if config.resource not in COUNTED:
        raise unknown_name("resource", config.resource, COUNTED)
    if (config.budgets is None) == (config.points is None):
        got = "none" if config.budgets is None else "both"
        raise InputError(f"`budgets` or `points` must be given, and one of them only, got {got}.")
    if config.budget is not None and Budget.parse(config.budget).of(config.resource) is not None:
        raise InputError(
            f"`budget` must be of other resources than the front's, got {config.resource} in both; leave it out of one."
        )
    if config.stages > 1 or config.l1_epochs:
        raise InputError("`stages` and `l1_epochs` must be left out of a front: its points share one network.")


def front_path(config: Config) -> Path:
    """The folder of a front.

    Raises:
        InputError: it holds one and neither `force` nor `resume` is given, or there is nothing to resume.
    """
    path = config.out or default_path(config.model, "front")
    if config.resume and not path.is_dir():
        raise InputError(f"`resume` needs the folder of a front, got {path}, which does not exist.")
    is_taken = path.is_dir() and not all(is_passing(each.name) for each in path.iterdir())
    if is_taken and not (config.resume or config.force):
        raise InputError(
            f"`out` must be a new or empty folder, got {path}; pass --resume to continue a front, or --force to "
            "replace its runs."
        )
    return path


def budgets_of(config: Config, job: Job) -> list[str]:
    """The budgets in their normal form, the strictest first.

    Raises:
        InputError: one is no budget, or stands there twice.
    """
    texts = config.budgets or _spaced(config.resource, config.points or 2, job)
    parsed = [Budget.parse(f"{config.resource}={text}") for text in texts]
    ordered = sorted(parsed, key=lambda each: each.resolve(job.original)[config.resource])
    amounts = [each.resolve(job.original)[config.resource] for each in ordered]
    for first, second in pairwise(amounts):
        if first == second:
            raise InputError(f"`budgets` must be different ones, got {first:,} of {config.resource} twice.")
    return [str(each) for each in ordered]


def _spaced(resource: str, count: int, job: Job) -> list[str]:
    """Budgets at equal ratios over the span of a resource."""
    least, most = span(resource, job)
    unit = ABSOLUTE.get(resource, "")
    return [f"{round(least * (most / least) ** (step / (count - 1)))}{unit}" for step in range(count)]


def span(resource: str, job: Job) -> tuple[int, int]:
    """Amounts of a resource: a little above the smallest plan's, and the mildest plan's.

    Raises:
        InputError: labels don't change it.
    """
    none = np.zeros(len(job.problem.layers), dtype=np.int64)
    blank = Labeling(none, none, none)
    tables = Tables(job.problem)
    counts = tables.counts - 1
    mildest = Labeling(none, counts[:, 1], counts[:, 2])
    most = max(tables.resources(plan)[resource] for plan in (blank, mildest))
    least = math.ceil(_ROOM * Reach(tables, {resource: most}).smallest(blank, 0)[resource])
    if least >= most:
        raise InputError(f"`resource` must be one that labels change, got {resource}, which they don't.")
    return least, most


def episodes_of_a_point(episodes: int, points: int) -> int:
    """Evaluations of one point, so that all points together cost little more than one search.

    >>> episodes_of_a_point(200, 8), episodes_of_a_point(20, 8), episodes_of_a_point(0, 8)
    (38, 8, 0)
    """
    return max(LEAST_EPISODES, math.ceil(SHARE * episodes / points)) if episodes else 0


def search_front(
    job: Job, asked: SearchRequest, tuning: FineTuning | None, budgets: Sequence[str], path: Path, watcher: Progress
) -> Front:
    """Search under every budget, and write the files of every point.

    Args:
        job: the network with its menus; where the budget has a limit of time, it was timed.
        asked: what every search was asked for; its budget holds for all points.
        tuning: settings of fine-tuning; None: none.
        budgets: budgets of the front's resource, in their normal form.
        path: folder of the front, which this process alone writes.
        watcher: observer that is told of stages, notes and evaluations.
    """
    config = asked.config
    wholes = [",".join(filter(None, (budget, config.budget))) for budget in budgets]
    for whole in wholes:  # before anything is searched
        feasible_limits(Budget.parse(whole), job, watcher)
    share = Shared(job, config, [path / _name(budget) for budget in budgets], watcher)
    points: list[FrontPoint] = []
    episodes = episodes_of_a_point(config.episodes, len(budgets))
    for budget, whole in zip(budgets, wholes, strict=True):
        watcher.stage(f"point {len(points) + 1} of {len(budgets)}: {whole}")
        folder = path / _name(budget)
        points.append(finished_point(job, asked, tuning, (budget, whole), folder, episodes, share, watcher))
        front = Front(config.resource, tuple(points), path)
        write_atomically(path / FRONT, json.dumps({**front.data(), "versions": versions()}, indent=1) + "\n")
    return front


def finished_point(
    job: Job,
    asked: SearchRequest,
    tuning: FineTuning | None,
    budget: tuple[str, str],
    folder: Path,
    episodes: int,
    share: Shared,
    watcher: Progress,
) -> FrontPoint:
    """A search under one budget in a folder of its own; what is finished there, or begun, is not done again.

    Args:
        job: the network with its menus; where the budget has a limit of time, it was timed.
        asked: what the search is asked for.
        tuning: settings of fine-tuning; None: none.
        budget: budget of the front's resource, and the whole budget.
        folder: folder of the run.
        episodes: evaluations.
        share: what the points share.
        watcher: observer that is told of stages, notes and evaluations.
    """
    config, (own, whole) = asked.config, budget
    if not (config.resume and (folder / OUTCOME).is_file()):
        changes = {"budget": whole, "budgets": None, "points": None, "out": folder, "episodes": episodes}
        changes |= {"max_drop": None, "max_kl": None, "minimize": None}
        resumed = config.resume and (folder / JOURNAL).is_file()
        one = config.model_copy(update={**changes, "resume": resumed, "force": not resumed})
        limits = feasible_limits(Budget.parse(whole), job, watcher)
        with opened(one, "search", versions()) as (where, begun):
            request = replace(asked, config=begun, settings=replace(asked.settings, episodes=max(1, episodes)))
            search_and_finish(job, request, tuning, limits, share.evaluator, where, watcher)
    return FrontPoint(own, folder, strict_json((folder / OUTCOME).read_bytes()))


def _name(budget: str) -> str:
    """Name of a point's folder.

    >>> _name("size=5%"), _name("macs=20000")
    ('size-5pc', 'macs-20000')
    """
    return budget.replace("=", "-").replace("%", "pc")


class Shared:
    """One evaluator for all points, made when it is first needed; it knows the plans that it has evaluated."""

    def __init__(self, job: Job, config: Config, folders: Sequence[Path], watcher: Progress) -> None:
        self._make: Callable[[Mapping[str, Any] | None], Evaluator] = lambda before: build_evaluator(
            job, config, before, watcher
        )
        self._folders = folders if config.resume else ()
        self._made: Evaluator | None = None

    def evaluator(self) -> Evaluator:
        """The evaluator; its dtype and batch size are those of the points that were begun before."""
        if self._made is None:
            begun = next((folder for folder in self._folders if (folder / JOURNAL).is_file()), None)
            self._made = self._make(None if begun is None else journal_header(begun))
        return self._made
