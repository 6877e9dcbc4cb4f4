"""The learned searchers: Stable-Baselines3 agents in the layer-labelling environment.

A few hundred episodes of a few dozen steps are all that an agent sees, so hyper-parameters differ from the usual:
small networks, no discount (the reward comes once, at the end), and few gradient steps, which would otherwise cost
more time than evaluating the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import gymnasium as gym
import numpy as np
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, DDPG, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv

from autocompress.errors import InputError, unknown_name
from autocompress.searchers.anchored import AnchoredPrices
from autocompress.searchers.base import Recorder, SearchSettings, StopSearch, Task
from autocompress.searchers.explorers import EXPLORERS
from autocompress.searchers.model_based import search_with_model
from autocompress.searchers.prices import PRICE_LIMIT
from autocompress.searchers.replay import ExecutedReplayBuffer
from autocompress_envs.environment import LayerLabelingEnv
from autocompress_envs.pricing import Pricer

ENDLESS = 10**9  # steps; the recorder ends the search
HIDDEN = 64
CONTINUOUS = ("price", "label")
Environment = gym.Env[Any, Any]


@dataclass(frozen=True)
class AgentSpec:
    """An agent as plain data.

    Attributes:
        algorithm: the Stable-Baselines3 class.
        family: `on-policy` or `off-policy`: which options the class takes.
        options: its hyper-parameters.
        actions: kinds of action that it can take.
        episodes_per_update: finished between two updates, over all environments.
        environments: in lockstep, so that one pass of the policy serves all; where the settings leave it open.
        noise: standard deviation of the action noise of off-policy agents with a deterministic policy; 0 = none.
        explorer: name in `explorers.EXPLORERS` where actions are offsets (`AnchoredPrices`), or empty.
        reach: the price offset of action 1, as a share of the settings' `price_scale`.
    """

    algorithm: type[BaseAlgorithm]
    family: str
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    actions: tuple[str, ...] = CONTINUOUS
    episodes_per_update: int = 8
    environments: int = 4
    noise: float = 0.0
    explorer: str = ""
    reach: float = 0.25


# gae_lambda 1 and gamma 1: the plain return. With one reward an episode, bootstrapping from a value network that has
# seen a hundred returns only adds its error.
_EPISODIC = {"gamma": 1.0, "gae_lambda": 1.0}
# 4 passes over 8 episodes: more would follow the noise of 8 rewards. log_std -1 is a spread of 0.37.
_PPO = {**_EPISODIC, "n_epochs": 4, "learning_rate": 1e-3, "clip_range": 0.2, "ent_coef": 0.0}
_SPREAD = {"policy_kwargs": {"log_std_init": -1.0}}
# Around an anchor the explorer explores; a spread of exp(-1.5) = 0.22 of the reach is enough to try offsets.
_NARROW = {"policy_kwargs": {"log_std_init": -1.5}}
_A2C = {**_EPISODIC, "learning_rate": 1e-3, "ent_coef": 0.0}
# 4 gradient steps of 64 transitions an episode: more would cost as much as evaluating a small network.
_REPLAY = {"gamma": 1.0, "learning_rate": 1e-3, "batch_size": 64, "gradient_steps": 4, "buffer_size": 50_000}

MODEL_BASED = "model-based"
"""The agent that is no Stable-Baselines3 class: see `model_based`."""

# What `posterior-ppo` finds, its explorer finds: on synthetic tasks with 250 evaluations neither PPO's updates nor its
# offsets changed the result beyond seed noise (`mixed` without a policy: the same). Judge the policy against `mixed`.
AGENTS: Mapping[str, AgentSpec] = MappingProxyType(
    {
        "ddpg": AgentSpec(DDPG, "off-policy", _REPLAY, environments=1, noise=0.3),
        "td3": AgentSpec(TD3, "off-policy", _REPLAY, environments=1, noise=0.3),
        "sac": AgentSpec(SAC, "off-policy", {**_REPLAY, "ent_coef": 0.01, "gradient_steps": 2}, environments=1),
        "ppo": AgentSpec(PPO, "on-policy", {**_PPO, **_SPREAD}),
        "a2c": AgentSpec(A2C, "on-policy", {**_A2C, **_SPREAD}),
        "maskable-ppo": AgentSpec(MaskablePPO, "on-policy", _PPO, actions=("discrete",)),
        "anchored-ppo": AgentSpec(PPO, "on-policy", {**_PPO, **_NARROW}, actions=("price",), explorer="local"),
        "anchored-td3": AgentSpec(
            TD3, "off-policy", _REPLAY, actions=("price",), environments=1, noise=0.2, explorer="local"
        ),
        "posterior-ppo": AgentSpec(PPO, "on-policy", {**_PPO, **_NARROW}, actions=("price",), explorer="mixed"),
        "posterior-td3": AgentSpec(
            TD3, "off-policy", _REPLAY, actions=("price",), environments=1, noise=0.2, explorer="mixed"
        ),
    }
)


def check_agent(settings: SearchSettings) -> None:
    """Raises InputError where there is no such agent, or it can't take such actions or rewards."""
    able = {MODEL_BASED: ("price",), **{name: spec.actions for name, spec in AGENTS.items()}}
    if settings.agent not in able:
        raise unknown_name("agent", settings.agent, able)
    if settings.action not in able[settings.agent]:
        names = sorted(name for name, actions in able.items() if settings.action in actions)
        if not names:
            raise unknown_name("action", settings.action, {name for actions in able.values() for name in actions})
        raise InputError(
            f"`agent` must be one that takes {settings.action} actions ({', '.join(names)}), got {settings.agent!r}; "
            f"choose one of these, or `action` {' or '.join(able[settings.agent])}."
        )
    if settings.agent == MODEL_BASED and settings.reward != "kl":
        raise InputError(
            f"`reward` must be kl with the agent {MODEL_BASED}, got {settings.reward}; choose another agent, "
            "such as posterior-ppo."
        )


def begins_with_policy(settings: SearchSettings) -> bool:
    """Whether the agent can begin with the prices that a policy gives: it acts by prices, around an explorer's."""
    return settings.action == "price" and (settings.agent == MODEL_BASED or bool(AGENTS[settings.agent].explorer))


def search_with_agent(task: Task, settings: SearchSettings, recorder: Recorder) -> None:
    """Let an agent act until the recorder ends the search.

    The first evaluation is the solver's plan, so that no agent is worse than the solver; before it comes the plan of
    the policy, where the task brings prices.

    Raises:
        InputError: see `check_agent`; or the agent models outputs, and the evaluation keeps none.
    """
    check_agent(settings)
    if settings.agent == MODEL_BASED:
        search_with_model(task, settings, recorder)
    spec = AGENTS[settings.agent]
    pricer = Pricer(task.problem, task.limits)
    if task.prices is not None:
        recorder(pricer.solve(*np.exp(task.prices).T))
    recorder(pricer.solve())
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
    explorer = None
    if spec.explorer:
        explorer = EXPLORERS[spec.explorer](task.problem, np.random.default_rng(settings.seed), task.prices)

    def make() -> Environment:
        scale = settings.price_scale if explorer is None else PRICE_LIMIT
        env = LayerLabelingEnv(
            task.problem, recorder, task.limits, settings.action, settings.reward, scale, task.original_accuracy
        )
        if explorer is None:
            return env
        return AnchoredPrices(env, explorer, recorder, reach=spec.reach * settings.price_scale)

    count = 1 if spec.family == "off-policy" else settings.environments or spec.environments
    return [make] * count


def build_agent(spec: AgentSpec, environments: DummyVecEnv, layers: int, settings: SearchSettings) -> BaseAlgorithm:
    """The agent for episodes of `layers` steps."""
    options = dict(spec.options)
    policy_kwargs = {"net_arch": [HIDDEN, HIDDEN], **options.pop("policy_kwargs", {})}
    # Networks of a few hundred units are fastest on the CPU, whatever evaluates the plans.
    options |= {"seed": settings.seed, "device": "cpu", "policy_kwargs": policy_kwargs}
    if spec.family == "on-policy":
        episodes = max(1, spec.episodes_per_update // environments.num_envs)
        options["n_steps"] = episodes * layers
        if spec.algorithm is not A2C:  # A2C takes the whole rollout at once
            steps = episodes * layers * environments.num_envs
            options["batch_size"] = steps if steps % 2 else steps // 2  # halves; an odd one would leave a batch of 1
    else:
        options |= {"train_freq": (1, "episode"), "learning_starts": spec.episodes_per_update * layers}
        options["replay_buffer_class"] = ExecutedReplayBuffer
        if spec.noise:
            width = int(np.prod(environments.action_space.shape or (1,)))
            options["action_noise"] = NormalActionNoise(np.zeros(width), np.full(width, spec.noise))
    return spec.algorithm("MlpPolicy", environments, **options)
