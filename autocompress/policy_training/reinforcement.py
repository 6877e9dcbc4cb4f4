"""The sixth step of training a policy: reinforcement learning in the environment, across all networks.

Masked PPO (Schulman et al. 2017; Huang & Ontañón 2022) of sb3-contrib, started from the policy that has learned the
lessons. An episode labels one network under one of its budgets; its outcome is what the network's model of the outputs
predicts, so episodes cost no evaluation. Rewards are shaped by the expected divergence: the return is how many decades
a plan loses less than the solver's was expected to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np

from autocompress.policies.network import LabelPolicy
from autocompress.policy_training.experience import Experience
from autocompress.policy_training.lessons import model_environment_of
from autocompress.policy_training.recipe import Reinforcement
from autocompress_envs.labeling.environment import LabelingEnv, longest_menu
from autocompress_envs.labeling.many import ManyNetworks

_EPISODES_EACH = 16  # of one network under one budget, before another one's turn: its model takes a second to build


class Zoo:
    """Draws environments of networks under their budgets, all of the same observation space.

    Args:
        experience: what was measured of the networks.
        seed: seed of the order of networks and budgets.
    """

    def __init__(self, experience: Sequence[Experience], seed: int) -> None:
        self._experience, self._rng = experience, np.random.default_rng(seed)
        self._most_layers = max(len(each.problem.layers) for each in experience)
        self._most_options = max(longest_menu(each.problem) for each in experience)

    def __call__(self) -> LabelingEnv:
        """The environment of a network and one of its budgets, both drawn at random."""
        experience = self._experience[int(self._rng.integers(len(self._experience)))]
        limits = experience.budgets[int(self._rng.integers(len(experience.budgets)))]
        model = experience.output_model()
        model.expand_around(int(experience.within(limits)[0]))
        sketch = experience.effects.sketch(experience.probabilities)
        return model_environment_of(experience, limits, sketch, model, self._most_layers, self._most_options)


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

    def make(number: int) -> Callable[[], gymnasium.Env[Any, Any]]:
        return lambda: ManyNetworks(Zoo(experience, 1000 * seed + number), _EPISODES_EACH)

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
