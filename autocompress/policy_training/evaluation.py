"""After the training of a policy: it is compared with the solver on networks that it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from autocompress.budget import Budget
from autocompress.config import MachineOptions, MenuOptions, NetworkOptions, make_config, names_of
from autocompress.errors import InputError
from autocompress.evaluation import Evaluator
from autocompress.files import read_yaml
from autocompress.job.load import load, load_splits
from autocompress.job.options import search_request
from autocompress.job.prepare import Job, build_evaluator, feasible_limits, prepare
from autocompress.policies.files import SavedPolicy
from autocompress.policies.use import effects_with_progress, policy_says, zero_shot_plan
from autocompress.progress import Progress, Silent
from autocompress.searchers.base import SearchSettings, Task
from autocompress.searchers.model_based.first_order import SAMPLES, predicted_best_plan
from autocompress.searchers.search import run_search
from autocompress.searchers.solvers.baselines import uniform_frontier_by_values
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


def evaluate_policy(
    saved: SavedPolicy,
    on: str | Path,
    *,
    episodes: Sequence[int] = (),
    seed: int = 0,
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
        progress: observer that is told of every network and budget. Default: nobody.

    Returns:
        One score for each network and budget, in the order of the file.

    Raises:
        InputError: the file or something in it breaks a rule, or no plan meets a budget.
    """
    watcher, scores = progress or Silent(), []
    for options, budgets in _networks(on):
        config = make_config({**options, "episodes": 1}, str(on))
        asked = search_request(config.model, config.data, config.model_dump())
        job = prepare(load(asked, load_splits(asked), watcher), asked.menus, config, watcher)
        evaluator = build_evaluator(job, config)
        for budget in budgets:
            watcher.stage(f"{config.model}: {budget}")
            limits = feasible_limits(budget, job, watcher)
            kl = measured(saved, job, evaluator, limits, watcher)
            for count in episodes:
                settings = replace(asked.settings, episodes=count, seed=seed)
                for name, policy in zip(search_writers(count), (None, saved), strict=True):
                    kl[name] = _searched(policy, job, evaluator, limits, settings)
            scores.append(Score(config.model, str(budget), kl))
            evaluator.forget()
    return scores


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
        "effects": predicted_best_plan(problem, limits, evaluator.probabilities, effects),
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


def _networks(on: str | Path) -> list[tuple[dict[str, Any], list[Budget]]]:
    """Options and budgets of every network in a file."""
    content = read_yaml("on", on)
    networks = content.get("networks") if isinstance(content, Mapping) else None
    if not isinstance(networks, list) or not networks or not all(isinstance(each, Mapping) for each in networks):
        raise InputError(f"`on` must be a mapping with a list of `networks`, got {on} without; see configs/policy.")
    return [_network(each, on) for each in networks]


def _network(given: Mapping[str, Any], on: str | Path) -> tuple[dict[str, Any], list[Budget]]:
    """Options and budgets of one network; InputError where something breaks a rule."""
    options = {str(name).replace("-", "_"): value for name, value in given.items() if name != "budgets"}
    unknown = sorted(options.keys() - _OF_NETWORKS)
    if unknown:
        known = ", ".join(sorted({*_OF_NETWORKS, "budgets"}))
        raise InputError(f"Options of `networks` must be among {known}, got {', '.join(unknown)} in {on}.")
    budgets = given.get("budgets")
    if not isinstance(budgets, list) or not budgets:
        raise InputError(f"`budgets` must be a list such as [size=0.1, macs=50%], got {budgets!r} in {on}.")
    return options, [Budget.parse(str(budget)).counted("budgets") for budget in budgets]
