"""The Stable-Baselines3 agents as plain data; nothing here imports the library.

A few hundred episodes of a few dozen steps are all that an agent sees, so hyper-parameters differ from the
usual: small networks, no discount (the reward comes once, at the end), and few gradient steps, which would
otherwise cost more time than evaluating the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

CONTINUOUS = ("price", "label")


@dataclass(frozen=True)
class AgentSpec:
    """A Stable-Baselines3 agent.

    Attributes:
        algorithm: class of the agent, as `package:name`.
        family: `on-policy` or `off-policy`, which decides the options that the class takes.
        options: hyper-parameters, by the class's argument. Default: none, for the class's defaults.
        actions: kinds of action that the agent can take. Default: `price` and `label`.
        episodes_per_update: number of episodes that are finished between two updates, over all environments.
            For off-policy agents, the number of episodes before learning starts. Default: 8.
        environments: number of environments in lockstep, so that one pass of the policy serves all, where the
            settings leave it open. Default: 4.
        noise: standard deviation of the action noise, for off-policy agents with a deterministic policy.
            Default: 0, for none.
        explorer: name in `explorers.EXPLORERS`, for agents whose actions are offsets (`AnchoredPrices`).
            Default: empty, for agents without an anchor.
        reach: price offset of action 1, as a share of the settings' `price_scale`. Default: 0.25.
    """

    algorithm: str
    family: str
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    actions: tuple[str, ...] = CONTINUOUS
    episodes_per_update: int = 8
    environments: int = 4
    noise: float = 0.0
    explorer: str = ""
    reach: float = 0.25


# gae_lambda 1 and gamma 1: the plain return. With one reward an episode, bootstrapping from a value network that
# has seen a hundred returns only adds its error.
_EPISODIC = {"gamma": 1.0, "gae_lambda": 1.0}
# 4 passes over 8 episodes: more would follow the noise of 8 rewards. log_std -1 is a spread of 0.37.
_PPO = {**_EPISODIC, "n_epochs": 4, "learning_rate": 1e-3, "clip_range": 0.2, "ent_coef": 0.0}
_SPREAD = {"policy_kwargs": {"log_std_init": -1.0}}
# Around an anchor the explorer explores; a spread of exp(-1.5) = 0.22 of the reach is enough to try offsets.
_NARROW = {"policy_kwargs": {"log_std_init": -1.5}}
_A2C = {**_EPISODIC, "learning_rate": 1e-3, "ent_coef": 0.0}
# 4 gradient steps of 64 transitions an episode: more would cost as much as evaluating a small network.
_REPLAY = {"gamma": 1.0, "learning_rate": 1e-3, "batch_size": 64, "gradient_steps": 4, "buffer_size": 50_000}


def _on_policy(algorithm: str, options: Mapping[str, Any], **more: Any) -> AgentSpec:
    """The spec of an on-policy agent."""
    return AgentSpec(algorithm, "on-policy", options, **more)


def _off_policy(algorithm: str, options: Mapping[str, Any] = _REPLAY, **more: Any) -> AgentSpec:
    """The spec of an off-policy agent."""
    return AgentSpec(algorithm, "off-policy", options, environments=1, **more)


_PPO_CLASS, _TD3_CLASS = "stable_baselines3:PPO", "stable_baselines3:TD3"
_ANCHORED_PPO = {**_PPO, **_NARROW}

# What `posterior-ppo` finds, its explorer finds: on synthetic tasks with 250 evaluations, neither PPO's updates nor
# its offsets changed the result beyond seed noise. The method `mixed` is that explorer alone: judge the policy
# against it.
SPECS: Mapping[str, AgentSpec] = MappingProxyType(
    {
        "ddpg": _off_policy("stable_baselines3:DDPG", noise=0.3),
        "td3": _off_policy(_TD3_CLASS, noise=0.3),
        "sac": _off_policy("stable_baselines3:SAC", {**_REPLAY, "ent_coef": 0.01, "gradient_steps": 2}),
        "ppo": _on_policy(_PPO_CLASS, {**_PPO, **_SPREAD}),
        "a2c": _on_policy("stable_baselines3:A2C", {**_A2C, **_SPREAD}),
        "maskable-ppo": _on_policy("sb3_contrib:MaskablePPO", _PPO, actions=("discrete",)),
        "anchored-ppo": _on_policy(_PPO_CLASS, _ANCHORED_PPO, actions=("price",), explorer="local"),
        "anchored-td3": _off_policy(_TD3_CLASS, actions=("price",), noise=0.2, explorer="local"),
        "posterior-ppo": _on_policy(_PPO_CLASS, _ANCHORED_PPO, actions=("price",), explorer="mixed"),
        "posterior-td3": _off_policy(_TD3_CLASS, actions=("price",), noise=0.2, explorer="mixed"),
    }
)
"""Agents of Stable-Baselines3 by name."""
