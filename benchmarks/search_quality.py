"""KL and accuracy that every method reaches on one task, at the same number of evaluations, over seeds.

    python benchmarks/search_quality.py resnet20-2.6bits --shared ../shared --episodes 400 --seeds 5

One line a method and seed, as it ends; the test split is read once for each, for the plan that the search chose.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from tasks import TASKS, Job, prepare

from autocompress.searchers.base import SearchSettings, Task
from autocompress.searchers.search import run_search
from autocompress_envs.numbers import Labeling, Outcome

SEEDLESS = ("solver", "uniform")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--search-samples", type=int, default=1000)
    parser.add_argument("--methods", default="uniform,solver,random,local,rl")
    parser.add_argument("--agent", default=SearchSettings.agent)
    options = parser.parse_args()
    job = prepare(options.task, options.shared, options.search_samples)
    print(f"# {options.task}: {job.limits}, {options.search_samples} search images, {job.evaluator.dtype}", flush=True)
    for method in options.methods.split(","):
        seeds = 1 if method in SEEDLESS else options.seeds
        results = [run(job, method, options.agent, options.episodes, seed) for seed in range(seeds)]
        summary = {key: round(float(np.mean([r[key] for r in results])), 4) for key in ("kl", "test_kl", "test_drop")}
        print("#", method, "mean", summary, "worst kl", max(r["kl"] for r in results), flush=True)


def run(job: Job, method: str, agent: str, episodes: int, seed: int) -> dict[str, float]:
    """Search once, measure the choice on the test split, print a line."""
    forward = 0.0

    def evaluate(labeling: Labeling) -> Outcome:
        nonlocal forward
        before = job.evaluator.forward_seconds
        outcome = job.evaluator(labeling)
        forward += job.evaluator.forward_seconds - before
        return outcome

    settings = SearchSettings(agent=agent, episodes=episodes, seed=seed)
    started = time.perf_counter()
    found = run_search(Task(job.problem, job.limits, evaluate), settings, method=method)
    seconds = time.perf_counter() - started
    best = found.best.outcome
    assert all(best.resources[name] <= limit for name, limit in job.limits.items())
    test = job.on_test(found.best.labeling)
    line = {
        "method": method,
        "agent": agent if method == "rl" else "",
        "seed": seed,
        "evaluations": found.evaluations,
        "kl": round(best.kl, 5),
        "accuracy": round(best.accuracy, 4),
        "test_kl": round(test.kl, 5),
        "test_accuracy": round(test.accuracy, 4),
        "test_drop": round(100 * (test.original_accuracy - test.accuracy), 2),
        "found_at": found.best.index,
        "seconds": round(seconds, 1),
        "overhead_share": round(1 - forward / seconds, 3),
    }
    print(json.dumps(line), flush=True)
    return line


if __name__ == "__main__":
    main()
