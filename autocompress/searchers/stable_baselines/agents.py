"""Stable-Baselines3 agents in the layer-labelling environment."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3 import A2C
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv

from autocompress.searchers.base import Recorder, SearchSettings, StopSearch, Task
from autocompress.searchers.explorers import EXPLORERS
from autocompress.searchers.prices import PRICE_LIMIT
from autocompress.searchers.simple_plans import affordable, simple_plans
from autocompress.searchers.stable_baselines.anchored import AnchoredPrices
from autocompress.searchers.stable_baselines.replay import ExecutedReplayBuffer
from autocompress.searchers.stable_baselines.specs import AgentSpec
from autocompress_envs.environment import LayerLabelingEnv
from autocompress_envs.solver import Solver

ENDLESS = 10**9  # steps of the learn loop; the recorder ends the search long before
HIDDEN = 64  # units of each of the two hidden layers
Environment = gym.Env[Any, Any]


def search_with_stable_baselines(spec: AgentSpec, task: Task, settings: SearchSettings, recorder: Recorder) -> None:
    """Let an agent act and learn until the recorder ends the search; the recorder keeps its policy.

    The first evaluations are of the plans to begin with, and the plan of the policy's prices, where the task has any.
    The next ones are the simple plans, so that no agent is worse than these.

    Args:
        spec: the agent.
        task: the problem, its limits and its evaluation.
        settings: options of the search.
        recorder: evaluates plans, and raises `StopSearch` when the search is over.

    Raises:
        StopSearch: the search is over.
        InfeasibleBudgetError: no plan meets the limits.
    """
    for plan in task.begin_with:
        recorder(plan)
    if task.prices is not None:
        recorder(Solver(task.problem, task.limits).solve(*np.exp(task.prices).T))
    for plan in affordable(simple_plans(task.problem, task.limits), settings):
        recorder(plan)
    environments = DummyVecEnv(_environment_makers(task, settings, recorder, spec))
    agent = build_agent(spec, environments, len(task.problem.layers), settings)
    try:
        agent.learn(ENDLESS)
    except StopSearch:
        state = agent.policy.state_dict()
        recorder.policy_state = {name: value.detach().cpu().clone() for name, value in state.items()}
        raise


def _environment_makers(
    task: Task, settings: SearchSettings, recorder: Recorder, spec: AgentSpec
) -> list[Callable[[], Environment]]:
    """One function for every environment in lockstep, which makes it; with an explorer, they share one."""
    explorer = None
    if spec.explorer:
        explorer = EXPLORERS[spec.explorer](task.problem, np.random.default_rng(settings.seed), task.prices)

    def make() -> Environment:
        scale = settings.price_scale if explorer is None else PRICE_LIMIT
        action = spec.actions[0] if settings.action == "auto" else settings.action
        env = LayerLabelingEnv(
            task.problem, recorder, task.limits, action, settings.reward, scale, task.original_accuracy
        )
        if explorer is None:
            return env
        return AnchoredPrices(env, explorer, recorder, reach=spec.reach * settings.price_scale)

    count = 1 if spec.family == "off-policy" else settings.environments or spec.environments
    return [make] * count


def build_agent(spec: AgentSpec, environments: DummyVecEnv, layers: int, settings: SearchSettings) -> BaseAlgorithm:
    """The Stable-Baselines3 agent of a spec.

    Args:
        spec: the agent's class and hyper-parameters.
        environments: the environments in which it acts.
        layers: steps of an episode, one a layer.
        settings: options of the search; `seed` counts here.
    """
    package, _, name = spec.algorithm.partition(":")
    algorithm = getattr(importlib.import_module(package), name)
    options = dict(spec.options)
    policy_kwargs = {"net_arch": [HIDDEN, HIDDEN], **options.pop("policy_kwargs", {})}
    # Networks of a few hundred units are fastest on the CPU, whatever evaluates the plans.
    options |= {"seed": settings.seed, "device": "cpu", "policy_kwargs": policy_kwargs}
    if spec.family == "on-policy":
        episodes = max(1, spec.episodes_per_update // environments.num_envs)
        options["n_steps"] = episodes * layers
        if algorithm is not A2C:  # A2C takes the whole rollout at once
            steps = episodes * layers * environments.num_envs
            options["batch_size"] = steps if steps % 2 else steps // 2  # halves; an odd one would leave a batch of 1
    else:
        options |= {"train_freq": (1, "episode"), "learning_starts": spec.episodes_per_update * layers}
        options["replay_buffer_class"] = ExecutedReplayBuffer
        if spec.noise:
            width = int(np.prod(environments.action_space.shape or (1,)))
            options["action_noise"] = NormalActionNoise(np.zeros(width), np.full(width, spec.noise))
    agent: BaseAlgorithm = algorithm("MlpPolicy", environments, **options)
    return agent
