"""Reinforcement learning in the environment, from nothing, on toys whose optimum is known: `make policy-smoke`.

A toy's layers move the outputs forwards or backwards; which ones is drawn anew for every toy. The optimum has as many
forward as backward layers at few bits, so only a policy finds it that sees how far the outputs have been moved so far.
The policy is trained by masked PPO on 320 toys, and compared with the solver on 64 others. Exits with 1 where it is not
better.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3.common.vec_env import DummyVecEnv

from autocompress.policies.labeling import PolicyInSearch
from autocompress.policies.masked_policy import MaskedLabelPolicy
from autocompress_envs import LabelingEnv
from autocompress_envs.labeling.many import ManyNetworks
from autocompress_envs.problem import Labeling
from autocompress_envs.testing import cancelling_toy

LAYERS, TRAINED_ON, LEFT_OUT, ENVIRONMENTS = 6, 320, 64, 8


def toy(rng: np.random.Generator) -> LabelingEnv:
    """A toy with as many forward as backward layers, in random order."""
    problem, sketch, evaluate, limits = cancelling_toy(rng.permutation([1, -1] * (LAYERS // 2)))
    return LabelingEnv(problem, evaluate, limits, sketch)


def losses(toys: list[LabelingEnv], plans: list[Labeling]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Measured divergences of one plan for each toy, in nats."""
    return np.array([env._evaluate(plan).kl for env, plan in zip(toys, plans, strict=True)])


def optimum(env: LabelingEnv) -> Labeling:
    """The best of all plans within the limits."""
    none = np.zeros(LAYERS, dtype=np.int64)
    plans = [Labeling(none, np.array(bits), none) for bits in itertools.product((0, 1), repeat=LAYERS)]
    fitting = [plan for plan in plans if env.problem.resources(plan)["bitops"] <= env.limits["bitops"]]
    return min(fitting, key=lambda plan: env._evaluate(plan).kl)


def main() -> None:
    """Train, compare, print, and exit with 1 where the policy is no better than the solver."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=16_000, help="steps in the environment (default: 16,000)")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    started, rng = time.monotonic(), np.random.default_rng(asked.seed)
    torch.set_num_threads(1)
    toys, others = ([toy(rng) for _ in range(count)] for count in (TRAINED_ON, LEFT_OUT))

    def make(number: int) -> Callable[[], ManyNetworks]:
        rng, own = np.random.default_rng(asked.seed + number), toys[number::ENVIRONMENTS]
        return lambda: ManyNetworks(lambda: own[int(rng.integers(len(own)))], episodes=1)

    agent = MaskablePPO(
        MaskedLabelPolicy, DummyVecEnv([make(number) for number in range(ENVIRONMENTS)]), n_steps=48, batch_size=96,
        n_epochs=4, learning_rate=lambda left: 1e-3 * left, gamma=1.0, ent_coef=0.01, target_kl=0.05, seed=asked.seed,
        device="cpu", policy_kwargs={"features_extractor_kwargs": {"width": 32}},
    )  # fmt: skip
    agent.learn(asked.steps)
    assert isinstance(agent.policy, MaskedLabelPolicy)
    policy = PolicyInSearch(agent.policy.labels, others[0].problem)
    rows = {
        "the solver": losses(others, [env.reference for env in others]),
        "the policy": losses(others, policy.plans(others, None)),
        "the optimum": losses(others, [optimum(env) for env in others]),
    }
    for name, kl in rows.items():
        print(f"{name:<12} mean KL {kl.mean():.4f} nats on {LEFT_OUT} toys that were left out")
    found = float(np.isclose(rows["the policy"], rows["the optimum"], rtol=0.01).mean())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"the policy is within 1 % of the optimum on {found:.0%}; {time.monotonic() - started:.0f} s, {peak:.1f} GB")
    sys.exit(0 if rows["the policy"].mean() < rows["the solver"].mean() else 1)


if __name__ == "__main__":
    main()
