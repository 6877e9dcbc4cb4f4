"""One policy along a line of budgets: does accuracy fall where the budget grows? And how long does a plan take?

python benchmarks/policy_budgets.py --network resnet20 --resource size --low 0.05 --high 0.15
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from autocompress.data import load_data
from autocompress.evaluation import measure
from autocompress.job.load import load
from autocompress.job.options import request
from autocompress.job.prepare import build_evaluator, prepare
from autocompress.models import load_model
from autocompress.policies.files import load_policy
from autocompress.policies.use import zero_shot_plan
from autocompress.progress import Silent
from autocompress_envs.solver import Solver

BUDGETS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=("resnet20", "resnet56"), default="resnet20")
    parser.add_argument("--resource", default="size")
    parser.add_argument("--low", type=float, default=0.05)
    parser.add_argument("--high", type=float, default=0.15)
    parser.add_argument("--policy", default="default")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    arguments = parser.parse_args()
    model = load_model(arguments.network, arguments.shared / f"models/{arguments.network}-cifar10-jpeg.safetensors")
    data = load_data(f"parquet:{arguments.shared / 'data/cifar10-jpeg'}")
    asked = request(model, data)
    job = prepare(load(asked, data, Silent()), asked.menus, asked.config, Silent())
    evaluator, saved = build_evaluator(job, asked.config), load_policy(arguments.policy)
    accuracies, passes, plans = [], [], []
    for share in np.geomspace(arguments.low, arguments.high, BUDGETS):
        limits = {arguments.resource: int(job.original[arguments.resource] * share)}
        started = time.perf_counter()
        zero_shot_plan(saved, job.problem, limits, evaluator, Silent(), descends=False)
        passes.append(time.perf_counter() - started)
        started = time.perf_counter()
        labeling = zero_shot_plan(saved, job.problem, limits, evaluator, Silent())
        plans.append(time.perf_counter() - started)
        solver = evaluator(Solver(job.problem, limits).solve())
        found = measure(model, evaluator.stitched(labeling), data.test_batches())
        accuracies.append(found.accuracy)
        kl = evaluator(labeling).kl
        print(f"{arguments.resource}={share:.4f}: test accuracy {found.accuracy:.2%}, "
              f"KL on the search split {kl:.4f} (solver {solver.kl:.4f})", flush=True)  # fmt: skip
    before = np.maximum.accumulate(accuracies)
    print(f"largest fall below a smaller budget's accuracy: {100 * (before - accuracies).max():.2f} points")
    print(f"labels of the policy alone: {np.median(passes):.3f} s median")
    print(f"a plan: {np.median(plans):.3f} s median, {max(plans):.1f} s at most, with the effects")


if __name__ == "__main__":
    main()
