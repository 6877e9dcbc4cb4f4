"""How good a policy is on networks that it was not trained on: its plans beside the solver's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.budget import Budget
from autocompress.config import MachineOptions, MenuOptions, NetworkOptions, make_config, names_of
from autocompress.errors import InputError
from autocompress.evaluation import Evaluator
from autocompress.files import read_yaml
from autocompress.job.load import load, load_splits
from autocompress.job.options import SearchRequest, search_request
from autocompress.job.prepare import Job, build_evaluator, feasible_limits, prepare
from autocompress.policies.files import SavedPolicy
from autocompress.policies.use import decided, planned
from autocompress.progress import Progress, Silent
from autocompress.searchers.base import Task
from autocompress.searchers.search import run_search
from autocompress_envs.problem import FloatArray
from autocompress_envs.solver import Solver

_OF_NETWORKS = frozenset(names_of(NetworkOptions, MenuOptions, MachineOptions))
_SMALLEST_KL = 1e-6  # nats: below it plans are as good as the original, and ratios of noise


@dataclass(frozen=True)
class Score:
    """A policy on one network under one budget; divergences in nats, accuracies in [0, 1], on the search split.

    Attributes:
        network: its spec.
        budget: in its normal form.
        solver_kl: of the solver's plan, which needs no evaluation either.
        policy_kl: of the policy's plan, zero-shot.
        few_shot_kl: of the best plan of a search that begins with the policy; NaN where none was asked for.
        solver_accuracy: of the solver's plan.
        policy_accuracy: of the policy's plan.
    """

    network: str
    budget: str
    solver_kl: float
    policy_kl: float
    few_shot_kl: float
    solver_accuracy: float
    policy_accuracy: float


@dataclass(frozen=True)
class Summary:
    """All scores in short.

    Attributes:
        zero_shot: geometric mean of the policy's divergence over the solver's.
        better: share of networks and budgets where the policy's is lower.
        few_shot: geometric mean of the search's divergence over the solver's; NaN without searches.
    """

    zero_shot: float
    better: float
    few_shot: float


def evaluate_policy(
    saved: SavedPolicy, on: str | Path, *, episodes: int = 0, seed: int = 0, progress: Progress | None = None
) -> list[Score]:
    """Measure a policy on the networks of a file.

    Args:
        saved: the policy.
        on: YAML file with a list of `networks`: options of `search` by name, of network, data, menus and machine, the
            `seed` of splits and menus, and `budgets`.
        episodes: evaluations of a search that begins with the policy, for every network and budget; 0: zero-shot only.
        seed: of these searches.
        progress: told what happens.

    Raises:
        InputError: the file or something in it breaks a rule, or no plan meets a budget.
    """
    watcher, scores = progress or Silent(), []
    for options, budgets in _networks(on):
        config = make_config({**options, "episodes": max(1, episodes)}, str(on))
        asked = search_request(config.model, config.data, config.model_dump())
        job = prepare(load(asked, load_splits(asked), watcher), asked.menus, config, watcher)
        evaluator = build_evaluator(job, config)
        for budget in budgets:
            watcher.stage(f"{config.model}: {budget}")
            limits = feasible_limits(budget, job, watcher)
            score = measured(saved, job, evaluator, limits, config.model, str(budget), watcher)
            if episodes:
                found = _few_shot(saved, job, evaluator, limits, asked, seed)
                score = Score(**{**vars(score), "few_shot_kl": found})
            scores.append(score)
    return scores


def measured(
    saved: SavedPolicy,
    job: Job,
    evaluator: Evaluator,
    limits: Mapping[str, int],
    network: str,
    budget: str,
    watcher: Progress,
) -> Score:
    """The policy's zero-shot plan beside the solver's."""
    solver = evaluator(Solver(job.problem, limits).solve())
    policy = evaluator(planned(saved, job.problem, limits, evaluator, watcher))
    return Score(network, budget, solver.kl, policy.kl, math.nan, solver.accuracy, policy.accuracy)


def summarised(scores: Sequence[Score]) -> Summary:
    """Over all scores, at least one."""
    solver, policy, few_shot = (
        np.maximum([getattr(score, name) for score in scores], _SMALLEST_KL)
        for name in ("solver_kl", "policy_kl", "few_shot_kl")
    )
    return Summary(
        _geometric_mean(policy / solver), float((policy < solver).mean()), _geometric_mean(few_shot / solver)
    )


def _geometric_mean(values: FloatArray) -> float:
    return float(np.exp(np.log(values).mean()))


def _few_shot(
    saved: SavedPolicy, job: Job, evaluator: Evaluator, limits: Mapping[str, int], asked: SearchRequest, seed: int
) -> float:
    prices = decided(saved, job.problem, limits, Silent()).prices
    task = Task(job.problem, dict(limits), evaluator, math.nan, evaluator.probabilities, prices, evaluator.effects)
    settings = replace(asked.settings, seed=seed)
    found = run_search(task, settings, method="rl").best.outcome.kl
    evaluator.forget()
    return found


def _networks(on: str | Path) -> list[tuple[dict[str, Any], list[Budget]]]:
    content = read_yaml("on", on)
    networks = content.get("networks") if isinstance(content, Mapping) else None
    if not isinstance(networks, list) or not networks or not all(isinstance(each, Mapping) for each in networks):
        raise InputError(f"`on` must be a mapping with a list of `networks`, got {on} without; see configs/policy.")
    return [_network(each, on) for each in networks]


def _network(given: Mapping[str, Any], on: str | Path) -> tuple[dict[str, Any], list[Budget]]:
    options = {str(name).replace("-", "_"): value for name, value in given.items() if name != "budgets"}
    unknown = sorted(options.keys() - _OF_NETWORKS)
    if unknown:
        known = ", ".join(sorted({*_OF_NETWORKS, "budgets"}))
        raise InputError(f"Options of `networks` must be among {known}, got {', '.join(unknown)} in {on}.")
    budgets = given.get("budgets")
    if not isinstance(budgets, list) or not budgets:
        raise InputError(f"`budgets` must be a list such as [size=0.1, macs=50%], got {budgets!r} in {on}.")
    return options, [Budget.parse(str(budget)) for budget in budgets]
