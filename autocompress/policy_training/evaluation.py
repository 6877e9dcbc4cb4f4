"""After the training of a policy: it is compared with the solver on networks that it was not trained on."""

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
from autocompress.policies.use import policy_plan, zero_shot_plan
from autocompress.progress import Progress, Silent
from autocompress.searchers.base import Task
from autocompress.searchers.search import run_search
from autocompress_envs.problem import FloatArray
from autocompress_envs.solver import Solver

_OF_NETWORKS = frozenset(names_of(NetworkOptions, MenuOptions, MachineOptions))
_SMALLEST_KL = 1e-6  # nats: plans below it are as good as the original, and the ratio of two of them is noise


@dataclass(frozen=True)
class Score:
    """Quality of a policy's plans on one network under one budget, all measured on the search split.

    Attributes:
        network: network as the option `model` names it.
        budget: budget in its normal form, such as `size=10%`.
        solver_kl: KL divergence of the solver's plan from the original, in nats; that plan needs no
            evaluation either.
        policy_kl: KL divergence of the policy's zero-shot plan, in nats.
        few_shot_kl: KL divergence of the best plan of a search that begins with the policy, in nats; NaN
            without such a search.
        solver_accuracy: accuracy of the solver's plan, in [0, 1]; NaN without labels.
        policy_accuracy: accuracy of the policy's zero-shot plan, in [0, 1]; NaN without labels.
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
    """Summary of the scores of one policy.

    Attributes:
        zero_shot: geometric mean of `policy_kl / solver_kl`; below 1, the policy is better than the solver.
        better: share of the scores with `policy_kl < solver_kl`, in [0, 1].
        few_shot: geometric mean of `few_shot_kl / solver_kl`; NaN without searches.
    """

    zero_shot: float
    better: float
    few_shot: float


def evaluate_policy(
    saved: SavedPolicy, on: str | Path, *, episodes: int = 0, seed: int = 0, progress: Progress | None = None
) -> list[Score]:
    """Measure a policy on the networks of a file.

    Args:
        saved: policy to measure.
        on: path of a YAML file with a list of `networks`. Each one has a list of `budgets`, and options of
            `search` that name the network, its data, its menus and the machine.
        episodes: number of evaluations of a search that begins with the policy, for every network and budget;
            0: only zero-shot plans are measured.
        seed: seed of these searches.
        progress: observer that is told of every network and budget. Default: nobody.

    Returns:
        One score for each network and budget, in the order of the file.

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
    """Measure the policy's zero-shot plan and the solver's plan under one budget.

    Args:
        saved: policy to measure.
        job: network with its menus.
        evaluator: evaluator of the job, which measures both plans.
        limits: absolute upper bounds by resource.
        network: name of the network in the score.
        budget: budget in the score.
        watcher: observer that is told of unknown layer kinds and of first-order effects.

    Returns:
        The score, without a few-shot search.
    """
    solver = evaluator(Solver(job.problem, limits).solve())
    policy = evaluator(zero_shot_plan(saved, job.problem, limits, evaluator, watcher))
    return Score(network, budget, solver.kl, policy.kl, math.nan, solver.accuracy, policy.accuracy)


def summarised(scores: Sequence[Score]) -> Summary:
    """Summary of at least one score; a KL below 1e-6 nats counts as 1e-6 nats."""
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
    """KL of the best plan of a search of the method `rl` that begins with the policy, in nats."""
    prices = policy_plan(saved, job.problem, limits, Silent()).prices
    task = Task(job.problem, dict(limits), evaluator, math.nan, evaluator.probabilities, prices, evaluator.effects)
    settings = replace(asked.settings, seed=seed)
    found = run_search(task, settings, method="rl").best.outcome.kl
    evaluator.forget()
    return found


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
