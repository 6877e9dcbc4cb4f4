"""Where low ranks pay: the solver's plans with and without them, by the menus' expected losses, under several budgets.

python benchmarks/low_ranks.py MODEL DATA --options '{tokenizer: FOLDER, max_tokens: 32}' \
    --menus '{weight_bits: "8", ranks: "0.25,0.5,0.75"}' --budgets macs=0.8 macs=0.6

Options are those of `autocompress inspect`; menus are read from the cache where a search has made them. No plan is
evaluated.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import yaml

from autocompress.job.load import load, load_splits
from autocompress.job.options import request
from autocompress.job.prepare import prepare
from autocompress.progress import Silent
from autocompress_envs.problem import Labeling, LayerNumbers, Problem
from autocompress_envs.solver import Solver


def without_ranks(problem: Problem) -> Problem:
    """The same menus without low ranks."""
    return replace(problem, layers=tuple(map(_whole, problem.layers)))


def _whole(layer: LayerNumbers) -> LayerNumbers:
    kept = np.flatnonzero(layer.weight_ranks == 0)
    return replace(
        layer, weight_bits=layer.weight_bits[kept], ranks=layer.weight_ranks[kept], errors=layer.errors[:, kept]
    )


def cut(problem: Problem, labeling: Labeling) -> int:
    """Number of layers that a plan cuts in two."""
    ranks = [layer.weight_ranks[index] for layer, index in zip(problem.layers, labeling.weight_bits, strict=True)]
    return int(problem.costs.first_factors[np.array(ranks) > 0].sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--options", type=yaml.safe_load, default={}, help="options of the data and the machine")
    parser.add_argument("--menus", type=yaml.safe_load, required=True, help="options of the menus, ranks among them")
    parser.add_argument("--budgets", nargs="+", required=True, help="one resource each, such as macs=0.6")
    given = parser.parse_args()
    asked = request(given.model, given.data, given.options | given.menus)
    job = prepare(load(asked, load_splits(asked), Silent()), asked.menus, asked.config, Silent())
    ranked, whole = job.problem, without_ranks(job.problem)
    original = ranked.original() | {"size": job.original["size"]}
    print("| budget | expected loss without ranks | with ranks | ratio | layers cut in two |")
    print("| --- | --- | --- | --- | --- |")
    for budget in given.budgets:
        name, _, share = budget.partition("=")
        limits = {name: int(float(share) * original[name])}
        losses, plans = [], []
        for problem in (whole, ranked):
            solver = Solver(problem, limits)
            plans.append(solver.solve())
            losses.append(solver.error(plans[-1]))
        row = (f"`{budget}`", f"{losses[0]:.5f}", f"{losses[1]:.5f}", f"{losses[1] / losses[0]:.3f}")
        print("|", " | ".join(row), "|", cut(ranked, plans[1]), "|", flush=True)


if __name__ == "__main__":
    main()
