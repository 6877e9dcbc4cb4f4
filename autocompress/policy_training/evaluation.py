"""After the training of a policy: it is compared with the solver on networks that it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from autocompress.budget import Budget
from autocompress.config import Config, MachineOptions, MenuOptions, NetworkOptions, make_config, names_of
from autocompress.errors import AutocompressError, InputError
from autocompress.evaluation import Evaluator
from autocompress.files import read_yaml
from autocompress.job.load import load, load_splits
from autocompress.job.options import search_request
from autocompress.job.prepare import Job, build_evaluator, feasible_limits, prepare
from autocompress.memory import reusing_freed
from autocompress.policies.files import SavedPolicy
from autocompress.policies.use import effects_with_progress, policy_says, zero_shot_plan
from autocompress.progress import Progress, Silent
from autocompress.searchers.base import SearchSettings, Task
from autocompress.searchers.model_based.first_order import ALONE, SAMPLES, predicted_best_plan
from autocompress.searchers.search import run_search
from autocompress.searchers.solvers.baselines import uniform_frontier_by_values
from autocompress.workers.executors import executor_of
from autocompress.workers.ray_tasks import check_cluster
from autocompress.workers.tasks import Death, Run, Tell, run_tasks
from autocompress_envs.solver import Solver

_OF_NETWORKS = frozenset(names_of(NetworkOptions, MenuOptions, MachineOptions))
_SMALLEST_KL = 1e-6  # nats: plans below it are as good as the original, and the ratio of two of them is noise
_RESAMPLES = 2000  # of a bootstrap interval


@dataclass(frozen=True)
class Score:
    """Quality of plans on one network under one budget, all measured on the search split.

    Attributes:
        network: network as the option `model` names it.
        budget: budget in its normal form, such as `size=10%`.
        kl: KL divergence from the original in nats, by what wrote the plan (`WRITERS`, and `search_writers`).
    """

    network: str
    budget: str
    kl: Mapping[str, float]


WRITERS: Mapping[str, str] = MappingProxyType(
    {
        "solver": "the Lagrangian solver's plan",
        "uniform": "the best plan with the same labels everywhere; NaN where none fits",
        "effects": "the best plan by first-order effects alone, no policy",
        "policy": "the policy's likeliest labels alone, no planning",
        "both": "the policy's zero-shot plan: its labels, its draws and a descent by first-order effects",
    }
)
"""What writes plans without an evaluation, by name."""


def search_writers(episodes: int) -> tuple[str, str]:
    """Names of a search of so many evaluations, without and with the policy."""
    return f"search {episodes}", f"search {episodes} with the policy"


@dataclass(frozen=True)
class Comparison:
    """One writer of plans beside another, over all scores in which both have a plan.

    Attributes:
        writer: name of the writer.
        beside: name of the writer that it is compared with.
        ratio: geometric mean of its KL divided by the other's; below 1, it is better.
        low: lower bound of the ratio's 95 % bootstrap interval over scores.
        high: upper bound.
        better: share of the scores in which its KL is lower, in [0, 1].
        rows: number of scores.
    """

    writer: str
    beside: str
    ratio: float
    low: float
    high: float
    better: float
    rows: int


@dataclass(frozen=True)
class _Asked:
    """What is to be measured, as every worker gets it.

    Attributes:
        saved: policy to measure.
        episodes: numbers of evaluations of searches.
        seed: seed of the searches.
        networks: options of every network, and its budgets.
    """

    saved: SavedPolicy
    episodes: tuple[int, ...]
    seed: int
    networks: tuple[tuple[Config, tuple[Budget, ...]], ...]

    @property
    def rows(self) -> list[tuple[int, int]]:
        """Positions of a network and of one of its budgets, in the order of the file."""
        return [(n, b) for n, (_, budgets) in enumerate(self.networks) for b in range(len(budgets))]

    def name(self, row: tuple[int, int]) -> str:
        """A row's network and budget."""
        config, budgets = self.networks[row[0]]
        return f"{config.model}: {budgets[row[1]]}"


def evaluate_policy(
    saved: SavedPolicy,
    on: str | Path,
    *,
    episodes: Sequence[int] = (),
    seed: int = 0,
    jobs: int | None = None,
    cluster: str | None = None,
    progress: Progress | None = None,
) -> list[Score]:
    """Measure a policy on the networks of a file, beside what does without it.

    Args:
        saved: policy to measure.
        on: path of a YAML file with a list of `networks`. Each one has a list of `budgets`, and options of
            `search` that name the network, its data, its menus and the machine.
        episodes: numbers of evaluations; for each of them, every network and every budget, two searches are run, one
            without the policy and one with it. Default: none.
        seed: seed of these searches.
        jobs: number of processes that measure, at least 1; PyTorch's threads are divided between them. With
            `cluster`, most rows at once. Default: 1; with `cluster`, as many as it has CPUs.
        cluster: address of a Ray cluster whose workers measure: `local`, `auto` or host:port. They must see the same
            files under the same paths. Default: None, for processes of this machine.
        progress: observer that is told of every network and budget. Default: nobody.

    Returns:
        One score for each network and budget, in the order of the file. A row whose worker died twice is named, and
        left out.

    Raises:
        InputError: the file or something in it breaks a rule, or no plan meets a budget, or the cluster can't be
            reached.
    """
    watcher = progress or Silent()
    if jobs is not None and jobs < 1:
        raise InputError(f"`jobs` must be at least 1, got {jobs}.")
    check_cluster(cluster)
    asked = _Asked(saved, tuple(episodes), seed, tuple(_networks(on)))
    is_alone = cluster is None and min(jobs or 1, len(asked.rows)) == 1
    found = _measured_here(asked, watcher) if is_alone else _measured_by_workers(asked, jobs, cluster, watcher)
    scores: dict[tuple[int, int], Score] = {}
    for row, score in found:
        scores[row] = score
        watcher.advance(len(scores), len(asked.rows), "networks and budgets")
    return [scores[row] for row in asked.rows if row in scores]


def _measured_here(asked: _Asked, watcher: Progress) -> Generator[tuple[tuple[int, int], Score], None, None]:
    """The scores of all rows, in this process."""
    measure = _measurer(asked)
    for row in asked.rows:
        watcher.stage(asked.name(row))
        yield row, measure(row, watcher)


def _measured_by_workers(
    asked: _Asked, jobs: int | None, cluster: str | None, watcher: Progress
) -> Generator[tuple[tuple[int, int], Score], None, None]:
    """The scores of all rows as workers find them; a row whose worker died twice is named, and left out."""
    noted: set[str] = set()

    def told(row: tuple[int, int], note: str | None) -> None:
        if note is None:
            watcher.stage(asked.name(row))
        elif note not in noted:
            noted.add(note)
            watcher.note(note)

    on_gpu = any(config.device.startswith("cuda") for config, _ in asked.networks)
    executor = executor_of(_runner, (asked,), len(asked.rows), jobs, cluster, on_gpu=on_gpu)
    with closing(run_tasks(executor, asked.rows, told)) as done:
        for row, end in done:
            if isinstance(end, Death):
                watcher.note(f"{asked.name(row)} is left out: {end.how}")
            elif isinstance(end.value, str):
                raise InputError(end.value)
            else:
                yield row, end.value


def _runner(asked: _Asked, threads: int) -> Run:
    """What a worker runs, with the network of the last row prepared: the score of a row, or why there is none."""
    torch.set_num_threads(threads)
    measure = _measurer(asked)

    @reusing_freed()
    def run(row: tuple[int, int], tell: Tell) -> Score | str:
        try:
            return measure(row, _Notes(tell))
        except AutocompressError as error:
            return str(error)

    return run


class _Notes(Silent):
    """A worker's observer, which passes notes on."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def note(self, text: str) -> None:
        self._tell(text)


def _measurer(asked: _Asked) -> Callable[[tuple[int, int], Progress], Score]:
    """The function that measures a row; the network of the last row stays prepared."""
    prepared: dict[int, tuple[Job, Evaluator, SearchSettings]] = {}

    def measure(row: tuple[int, int], watcher: Progress) -> Score:
        number, at = row
        config, budgets = asked.networks[number]
        if number not in prepared:
            prepared.clear()  # two networks with their menus at once may be too much for the memory
            request = search_request(config.model, config.data, config.model_dump())
            job = prepare(load(request, load_splits(request), watcher), request.menus, config, watcher)
            prepared[number] = job, build_evaluator(job, config), request.settings
        job, evaluator, settings = prepared[number]
        limits = feasible_limits(budgets[at], job, watcher)
        kl = measured(asked.saved, job, evaluator, limits, watcher)
        for count in asked.episodes:
            wanted = replace(settings, episodes=count, seed=asked.seed)
            for name, policy in zip(search_writers(count), (None, asked.saved), strict=True):
                kl[name] = _searched(policy, job, evaluator, limits, wanted)
        evaluator.forget()
        return Score(str(config.model), str(budgets[at]), kl)

    return measure


def measured(
    saved: SavedPolicy, job: Job, evaluator: Evaluator, limits: Mapping[str, int], watcher: Progress
) -> dict[str, float]:
    """Measure the plans of all `WRITERS` under one budget.

    Args:
        saved: policy to measure.
        job: network with its menus.
        evaluator: evaluator of the job.
        limits: absolute upper bounds by resource.
        watcher: observer that is told of unknown layer kinds and of first-order effects.

    Returns:
        KL divergences in nats, by writer.
    """
    problem = job.problem
    effects = effects_with_progress(evaluator, watcher, samples=SAMPLES)
    uniform = [plan for _, plan in uniform_frontier_by_values(problem, dict(limits))]
    plans = {
        "solver": Solver(problem, limits).solve(),
        "effects": predicted_best_plan(problem, limits, evaluator.probabilities, effects, counting=ALONE),
        "policy": zero_shot_plan(saved, problem, limits, evaluator, watcher, descends=False),
        "both": zero_shot_plan(saved, problem, limits, evaluator, Silent()),
    }
    kl = {name: evaluator(plan).kl for name, plan in plans.items()}
    return {**kl, "uniform": min((evaluator(plan).kl for plan in uniform), default=math.nan)}


def compared(scores: Sequence[Score], writer: str, beside: str, seed: int = 0) -> Comparison:
    """Compare two writers; a KL below 1e-6 nats counts as 1e-6 nats.

    Args:
        scores: scores that hold both.
        writer: name of the one.
        beside: name of the other.
        seed: seed of the bootstrap.
    """
    pairs = np.array([(score.kl[writer], score.kl[beside]) for score in scores if writer in score.kl], dtype=float)
    pairs = np.maximum(pairs[np.isfinite(pairs).all(1)], _SMALLEST_KL)
    if not len(pairs):
        return Comparison(writer, beside, math.nan, math.nan, math.nan, math.nan, 0)
    logs = np.log(pairs[:, 0] / pairs[:, 1])
    drawn = np.random.default_rng(seed).choice(logs, (_RESAMPLES, len(logs))).mean(1)
    low, high = np.exp(np.quantile(drawn, (0.025, 0.975)))
    better = float((pairs[:, 0] < pairs[:, 1]).mean())
    return Comparison(writer, beside, float(np.exp(logs.mean())), float(low), float(high), better, len(pairs))


def summarised(scores: Sequence[Score], episodes: Sequence[int] = ()) -> list[Comparison]:
    """All writers beside the solver, and every search with the policy beside that without it."""
    rows = [compared(scores, name, "solver") for name in WRITERS if name != "solver"]
    for count in episodes:
        without, with_policy = search_writers(count)
        rows += [compared(scores, name, "solver") for name in (without, with_policy)]
        rows.append(compared(scores, with_policy, without))
    return rows


def _searched(
    saved: SavedPolicy | None, job: Job, evaluator: Evaluator, limits: Mapping[str, int], settings: SearchSettings
) -> float:
    """KL of the best plan of a search of the method `rl`, in nats."""
    prices = policy = environment = None
    if saved is not None:
        says = policy_says(saved, job.problem, limits, evaluator.probabilities, evaluator.effects(), Silent())
        prices, policy, environment = says.prices, says.copy, says.environment
    task = Task(
        job.problem, dict(limits), evaluator, math.nan, evaluator.probabilities, prices, evaluator.effects, policy,
        environment,
    )  # fmt: skip
    return run_search(task, settings, method="rl").best.outcome.kl


def _networks(on: str | Path) -> list[tuple[Config, tuple[Budget, ...]]]:
    """Options and budgets of every network in a file.

    All are checked first: a mistake in the last network must not cost what the others took hours for.
    """
    content = read_yaml("on", on)
    networks = content.get("networks") if isinstance(content, Mapping) else None
    if not isinstance(networks, list) or not networks or not all(isinstance(each, Mapping) for each in networks):
        raise InputError(f"`on` must be a mapping with a list of `networks`, got {on} without; see configs/policy.")
    return [_network(each, on) for each in networks]


def _network(given: Mapping[str, Any], on: str | Path) -> tuple[Config, tuple[Budget, ...]]:
    """Options and budgets of one network; InputError where something breaks a rule."""
    options = {str(name).replace("-", "_"): value for name, value in given.items() if name != "budgets"}
    unknown = sorted(options.keys() - _OF_NETWORKS)
    if unknown:
        known = ", ".join(sorted({*_OF_NETWORKS, "budgets"}))
        raise InputError(f"Options of `networks` must be among {known}, got {', '.join(unknown)} in {on}.")
    budgets = given.get("budgets")
    if not isinstance(budgets, list) or not budgets:
        raise InputError(f"`budgets` must be a list such as [size=0.1, macs=50%], got {budgets!r} in {on}.")
    parsed = tuple(Budget.parse(str(budget)).counted("budgets") for budget in budgets)
    return make_config({**options, "episodes": 1}, str(on)), parsed
