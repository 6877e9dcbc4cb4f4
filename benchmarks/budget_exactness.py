"""10,000 random walks over three networks and random budgets: none may be over budget by one byte or one MAC.

    python benchmarks/budget_exactness.py --shared ../shared

Budgets lie between the cheapest plan and the original; actions are `price`, `label` and `discrete` in turn by chance.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from tasks import CACHE, JOINT, PRUNING_ONLY, load_network

from autocompress.data import load_data
from autocompress.menus import MenuSettings, build_menus
from autocompress.models import load_model
from autocompress.network import trace
from autocompress_envs import LayerLabelingEnv
from autocompress_envs.problem import Labeling, Outcome, Problem
from autocompress_envs.solver import InfeasibleBudgetError

ACTIONS = ("price", "label", "discrete")
RESOURCES = ("size", "macs", "bitops", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--walks", type=int, default=10_000)
    options = parser.parse_args()
    problems = load_problems(options.shared)
    rng = np.random.default_rng(0)
    walks = over = refused = 0
    while walks < options.walks:
        name = list(problems)[walks % len(problems)]
        try:
            over += walk(problems[name], ACTIONS[int(rng.integers(3))], rng)
            walks += 1
        except InfeasibleBudgetError:
            refused += 1
    print(f"{walks} walks on {', '.join(problems)}: {over} over budget; {refused} budgets refused at reset")


def load_problems(shared: Path) -> dict[str, Problem]:
    digits = load_model("digits"), load_data("digits")
    networks = {"digits": (*digits, JOINT), "resnet20": (*load_network(20, shared), JOINT)}
    networks["resnet56"] = (*load_network(56, shared), PRUNING_ONLY)
    problems = {}
    for name, (model, data, kind) in networks.items():
        inputs, _ = data.calibration()
        settings = MenuSettings(**kind)
        network = trace(model, inputs[:1])
        menus = build_menus(model, network, inputs, settings, data_fingerprint=data.fingerprint, cache=CACHE)
        problems[name] = menus.problem()
    return problems


def walk(problem: Problem, action: str, rng: np.random.Generator) -> bool:
    """One walk with random actions under one to three random budgets; whether its plan is over one of them."""
    original = problem.original()
    cheapest = cheapest_resources(problem)
    chosen = rng.choice(RESOURCES, size=int(rng.integers(1, 4)), replace=False)
    limits = {str(r): int(cheapest[r] + rng.random() * (original[r] - cheapest[r])) for r in chosen}

    def evaluate(labeling: Labeling) -> Outcome:
        return Outcome(1.0, 0.5, 0.5, problem.resources(labeling))

    env = LayerLabelingEnv(problem, evaluate, limits, action=action)
    env.reset(seed=int(rng.integers(2**31)))
    env.action_space.seed(int(rng.integers(2**31)))
    done = False
    while not done:
        move = env.action_space.sample()
        if action == "discrete":
            move = int(rng.choice(np.flatnonzero(env.action_masks())))
        _, _, done, _, info = env.step(move)
    amounts = problem.resources(info["labeling"])
    return any(amounts[name] > limit for name, limit in limits.items())


def cheapest_resources(problem: Problem) -> dict[str, int]:
    """Of the labelling with the fewest channels and bits."""
    zeros = np.zeros(len(problem.layers), dtype=np.int64)
    last = np.array([len(layer.sparsities) - 1 for layer in problem.layers])
    return problem.resources(Labeling(last, zeros, zeros))


if __name__ == "__main__":
    main()
