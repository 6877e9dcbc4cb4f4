"""Policies on families of networks that they were not trained on, leave-one-family-out, beside what does without them.

python benchmarks/policy_transfer.py --training runs/policy --out transfer.json

`--training` is the folder of `autocompress train-policy`, whose measurements are read. For every family of the recipe a
policy is trained on the others, and its plans are measured on the family's networks, in every task, at `--budgets` of
the budgets of the training. No constant was chosen on any of these numbers.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Mapping
from pathlib import Path

from autocompress.cache import default_cache
from autocompress.data import Data
from autocompress.policies.files import SavedPolicy, save_policy
from autocompress.policy_training.evaluation import WRITERS, Score, compared, measured
from autocompress.policy_training.gathering import ExploredNetwork, Gathered, Workers, gather, load_all
from autocompress.policy_training.recipe import Recipe, read_recipe
from autocompress.policy_training.training import EXPERIENCE, RECIPE, learn
from autocompress.progress import Silent
from autocompress_envs.labeling.observation import KINDS

MOST_KL = 1.0  # nats, of the solver's plan: beyond it a network only guesses


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=None)
    parser.add_argument("--budgets", type=int, default=2, help="budgets of every network and task (default: 2)")
    parser.add_argument("--only", default="", help="names of families, with commas between")
    parser.add_argument("--out", type=Path, default=None, help="JSON file of all scores, and folder of the policies")
    asked = parser.parse_args()
    recipe, cache = read_recipe(asked.training / RECIPE), asked.cache or default_cache()
    splits = load_all(recipe)
    gathered, _ = gather(recipe, splits, asked.training / EXPERIENCE, cache, Workers("cpu"), Silent())
    families = {network.name: network.family for network in recipe.networks}
    rows: list[dict[str, object]] = []
    for family in asked.only.split(",") if asked.only else sorted(set(families.values())):
        started = time.monotonic()
        others = [found for (network, _), found in gathered.items() if families[network] != family]
        saved = SavedPolicy(learn(recipe, others, lambda *point: None, Silent()), {"kinds": list(KINDS)}, family)
        if asked.out:
            save_policy(asked.out.with_suffix("") / family.replace(" ", "-"), saved.policy, {"kinds": list(KINDS)})
        seconds = time.monotonic() - started
        scores = _scores(recipe, splits, saved, family, gathered, cache, asked.budgets)
        print(f"{family}: trained on {len(others)} networks and tasks in {seconds:.0f} s")
        _report(scores)
        rows += [{"family": family, **vars(score), "kl": dict(score.kl)} for score in scores]
        if asked.out:
            asked.out.write_text(json.dumps(rows, indent=1) + "\n")
    print("all families")
    _report([Score(str(row["network"]), str(row["budget"]), row["kl"]) for row in rows])  # type: ignore[arg-type]
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")


def _scores(
    recipe: Recipe,
    splits: Mapping[str, Data],
    saved: SavedPolicy,
    family: str,
    gathered: Gathered,
    cache: Path,
    budgets: int,
) -> list[Score]:
    """One score for each network of the family, task and budget."""
    scores = []
    for zoo in recipe.networks:
        if zoo.family != family:
            continue
        network = ExploredNetwork(recipe, zoo, splits[zoo.data], cache, "cpu", Silent())
        for task in recipe.tasks:
            if (zoo.name, task.name) not in gathered:
                continue
            job, evaluator = network.job(task)
            for limits in gathered[zoo.name, task.name].budgets[:budgets]:
                kl = measured(saved, job, evaluator, limits, Silent())
                if kl["solver"] <= MOST_KL:
                    budget = ",".join(f"{resource}={amount}" for resource, amount in limits.items())
                    scores.append(Score(f"{zoo.name} {task.name}", budget, kl))
                evaluator.forget()
    return scores


def _report(scores: list[Score]) -> None:
    for writer in WRITERS:
        if writer != "solver" and scores:
            row = compared(scores, writer, "solver")
            print(
                f"  {writer:8s} over the solver {row.ratio:.3f} ({row.low:.3f} to {row.high:.3f}), "
                f"better in {row.better:.0%} of {row.rows}",
                flush=True,
            )


if __name__ == "__main__":
    main()
