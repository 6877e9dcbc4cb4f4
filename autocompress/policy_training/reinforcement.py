"""The sixth step of training a policy: reinforcement learning in the environment, across all networks.

Masked PPO (Schulman et al. 2017; Huang & Ontañón 2022) of sb3-contrib, started from the policy that has learned the
lessons. An episode labels one network under one of its budgets; its outcome is what the network's model of the outputs
predicts, so episodes cost no evaluation. Rewards are shaped by the expected divergence: the return is how many decades
a plan loses less than the solver's was expected to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from autocompress.policies.network import LabelPolicy
from autocompress.policy_training.experience import Experience
from autocompress.policy_training.lessons import model_environment_of
from autocompress.policy_training.recipe import Reinforcement
from autocompress_envs.labeling.environment import LabelingEnv, longest_menu
from autocompress_envs.labeling.many import ManyNetworks
from autocompress_envs.problem import FloatArray, Problem
from autocompress_envs.problem.tables import Tables

_EPISODES_EACH = 16  # of one network under one budget, before another one's turn: its model takes a second to build


class Zoo:
    """Draws environments of networks under their budgets, all of the same observation space.

    Args:
        experience: what was measured of the networks.
        seed: seed of the order of networks and budgets.
        steps: steps in which tasks go from those with the fewest kinds of label to all of them, and budgets from the
            mildest of each resource to all of them, evenly; what was drawn counts as steps. Default: 0, for all from
            the start.
    """

    def __init__(self, experience: Sequence[Experience], seed: int, steps: float = 0.0) -> None:
        self._experience, self._rng = experience, np.random.default_rng(seed)
        self._most_layers = max(len(each.problem.layers) for each in experience)
        self._most_options = max(longest_menu(each.problem) for each in experience)
        self._variety = variety([each.problem for each in experience])
        self._harshness = [harshness(each.budgets) for each in experience]
        self._steps, self._drawn = steps, 0

    def __call__(self) -> LabelingEnv:
        """The environment of a network and one of its budgets, both drawn at random."""
        number = self._one_of(self._variety)
        experience = self._experience[number]
        limits = experience.budgets[self._one_of(self._harshness[number])]
        self._drawn += _EPISODES_EACH * len(experience.problem.layers)
        model = experience.output_model()
        model.expand_around(int(experience.within(limits)[0]))
        sketch = experience.effects.sketch(experience.probabilities)
        return model_environment_of(experience, limits, sketch, model, self._most_layers, self._most_options)

    def _one_of(self, difficulty: FloatArray) -> int:
        """One of n numbers whose difficulty (n,) is at most what the steps so far admit; 0 always is admitted."""
        share = 1.0 if self._drawn >= self._steps else self._drawn / self._steps
        allowed = np.flatnonzero(difficulty <= share)
        return int(allowed[self._rng.integers(len(allowed))])


def variety(problems: Sequence[Problem]) -> FloatArray:
    """(n,) how many kinds of label the menus of problems offer, from 0 for the fewest among them to 1 for the most.

    Args:
        problems: networks with their menus.
    """
    kinds = np.array([(Tables(problem).counts > 1).any(0).sum() for problem in problems], dtype=float)
    return np.asarray((kinds - kinds.min()) / max(float(np.ptp(kinds)), 1.0))


def harshness(budgets: Sequence[Mapping[str, int]]) -> FloatArray:
    """(n,) places of budgets among those of the same resources, from 0 for the mildest to 1 for the harshest.

    >>> harshness([{"size": 900}, {"size": 300}, {"macs": 50}, {"size": 600}]).tolist()
    [0.0, 1.0, 0.0, 0.5]

    Args:
        budgets: limits by resource.
    """
    found = np.zeros(len(budgets))
    for names in {tuple(limits) for limits in budgets}:
        alike = [number for number, limits in enumerate(budgets) if tuple(limits) == names]
        amounts = np.array([np.log(list(budgets[number].values())).sum() for number in alike])
        found[alike] = (-amounts).argsort(kind="stable").argsort(kind="stable") / max(len(alike) - 1, 1)
    return found


def reinforce(
    policy: LabelPolicy,
    experience: Sequence[Experience],
    settings: Reinforcement,
    seed: int,
    told: Callable[[int, float], None] = lambda steps, reward: None,
) -> LabelPolicy:
    """The policy after reinforcement learning.

    Args:
        policy: policy to start from; it is not changed.
        experience: what was measured of the networks.
        settings: how long, and how fast, it learns.
        seed: seed of the episodes and of the updates.
        told: function that is called after every update with the steps taken and the mean return of recent episodes.

    Returns:
        The policy, in eval mode.
    """
    from sb3_contrib import MaskablePPO  # seconds to import
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

    from autocompress.policies.masked_policy import MaskedLabelPolicy

    class Telling(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            recent = [each["r"] for each in self.model.ep_info_buffer or []]
            told(self.num_timesteps, float(np.mean(recent)) if recent else 0.0)

    mild = settings.curriculum * settings.steps / settings.environments  # steps of one environment

    def make(number: int) -> Callable[[], gymnasium.Env[Any, Any]]:
        return lambda: ManyNetworks(Zoo(experience, 1000 * seed + number, mild), _EPISODES_EACH)

    envs = VecMonitor(DummyVecEnv([make(number) for number in range(settings.environments)]))
    shape = {"members": len(policy.members), "width": policy.width}
    agent = MaskablePPO(
        MaskedLabelPolicy,
        envs,
        n_steps=settings.rollout,
        batch_size=settings.batch,
        n_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        gamma=1.0,
        gae_lambda=settings.gae_lambda,
        ent_coef=settings.entropy,
        target_kl=settings.target_kl,
        seed=seed,
        device="cpu",
        policy_kwargs={"features_extractor_kwargs": shape},
    )
    assert isinstance(agent.policy, MaskedLabelPolicy)
    agent.policy.start_from(policy)
    agent.learn(settings.steps, callback=Telling())
    return agent.policy.labels.eval()
