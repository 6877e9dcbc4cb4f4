"""Policies on networks that they were not trained on, leave-one-network-out, beside the solver.

python benchmarks/policy_transfer.py --training runs/policy --shared ../shared

`--training` is the folder of `autocompress train-policy`, whose episodes are read. For every network of the zoo (and
for ResNet-20 and ResNet-56 of `--shared`, which are in no zoo) a policy is fitted without it, once a seed, and its
zero-shot plan is measured at 5 budgets of every task.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.cache import default_cache
from autocompress.data import Data, load_data
from autocompress.job.load import load
from autocompress.job.options import request
from autocompress.job.prepare import build_evaluator, prepare
from autocompress.models import load_model
from autocompress.policies.files import SavedPolicy
from autocompress.policies.network import PricePolicy
from autocompress.policy_training.episodes import BudgetRange
from autocompress.policy_training.evaluation import Score, measured, summarised
from autocompress.policy_training.fitting import fit
from autocompress.policy_training.recipe import Fitting, Recipe, ZooTask, read_recipe
from autocompress.policy_training.training import EPISODES, RECIPE, ExploredNetwork, Gathered, gather, load_all
from autocompress.progress import Silent
from autocompress_envs.observation import KINDS
from autocompress_envs.solver import Solver

BUDGETS = 5
MOST_KL = 1.0  # nats, of the solver's plan: beyond it a network only guesses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=Path, required=True)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--cache", type=Path, default=None)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--network", choices=("layer", "sequence"), default="layer")
    parser.add_argument("--only", default="", help="names of networks, with commas between")
    parser.add_argument("--out", type=Path, default=None, help="JSON file of all scores")
    arguments = parser.parse_args()
    recipe, cache = read_recipe(arguments.training / RECIPE), arguments.cache or default_cache()
    fitting = recipe.fitting.model_copy(update={"network": arguments.network})
    splits = load_all(recipe)
    gathered, _ = gather(recipe, splits, arguments.training / EPISODES, cache, "cpu", Silent())
    rows = []
    for name in _names(recipe, arguments.only):
        policies = [_fitted(gathered, name, fitting, seed) for seed in range(arguments.seeds)]
        for task, scores in _scores(recipe, splits, name, policies, cache, arguments.shared):
            summaries = [summarised([each[seed] for each in scores]) for seed in range(arguments.seeds)]
            ratios = [summary.zero_shot for summary in summaries]
            better = float(np.mean([summary.better for summary in summaries]))
            print(f"{name:20s} {task:14s} {np.mean(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}), "
                  f"better in {better:.0%} of {len(scores)} budgets", flush=True)  # fmt: skip
            rows += [{"task": task, "seed": seed, **vars(score)} for each in scores for seed, score in enumerate(each)]
    _report(rows, arguments.seeds)
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


def _names(recipe: Recipe, only: str) -> list[str]:
    names = [network.name for network in recipe.networks] + ["resnet20", "resnet56"]
    return [name for name in names if not only or name in only.split(",")]


def _fitted(gathered: Gathered, without: str, fitting: Fitting, seed: int) -> PricePolicy:
    others = [found for (network, _), found in gathered.items() if network != without]
    return fit(others, fitting.model_copy(update={"seed": seed}), lambda step, loss: None)


def _scores(
    recipe: Recipe, splits: Mapping[str, Data], name: str, policies: list[PricePolicy], cache: Path, shared: Path
) -> Iterator[tuple[str, list[list[Score]]]]:
    """By task: for every budget, one score a policy."""
    zoo = {network.name: network for network in recipe.networks}
    home = ExploredNetwork(recipe, zoo[name], splits[zoo[name].data], cache, "cpu", Silent()) if name in zoo else None
    for task in recipe.tasks:
        job, evaluator = home.job(task) if home else _shared_job(name, task, cache, shared)
        scores = []
        for limits in _budgets(job.problem, task):
            if evaluator(Solver(job.problem, limits).solve()).kl > MOST_KL:
                continue
            saved = [SavedPolicy(policy, {"kinds": list(KINDS)}, "left out") for policy in policies]
            budget = ",".join(f"{resource}={amount}" for resource, amount in limits.items())
            scores.append([measured(each, job, evaluator, limits, name, budget, Silent()) for each in saved])
            evaluator.forget()
        if scores:
            yield task.name, scores


def _budgets(problem, task: ZooTask) -> Iterator[dict[str, int]]:  # type: ignore[no-untyped-def]
    """Five, evenly spread over the task's range."""
    for share in np.linspace(task.low, task.high, BUDGETS):
        yield BudgetRange(task.resource, task.low, task.high).at(problem, float(share))


def _shared_job(name: str, task: ZooTask, cache: Path, shared: Path):  # type: ignore[no-untyped-def]
    model = load_model(name, shared / f"models/{name}-cifar10-jpeg.safetensors")
    data = load_data(f"parquet:{shared / 'data/cifar10-jpeg'}")
    asked = request(model, data, {**task.options, "cache": cache})
    job = prepare(load(asked, data, Silent()), asked.menus, asked.config, Silent(), must_export=False)
    return job, build_evaluator(job, asked.config)


def _report(rows: list[dict[str, Any]], seeds: int) -> None:
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    for label, chosen in [("all", rows), *((task, [row for row in rows if row["task"] == task]) for task in tasks)]:
        of_seed = [summarised([_score(row) for row in chosen if row["seed"] == seed]) for seed in range(seeds)]
        ratios, better = [each.zero_shot for each in of_seed], [each.better for each in of_seed]
        spread = f"{np.mean(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f} over {seeds} seeds)"
        print(
            f"{label:14s} policy over solver {spread}, better in {np.mean(better):.1%} of {len(chosen) // seeds} cells"
        )


def _score(row: dict[str, Any]) -> Score:
    return Score(**{name: row[name] for name in Score.__dataclass_fields__})


if __name__ == "__main__":
    main()
