"""The agents of the method `rl`, by name: what each can do, and how it searches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autocompress.errors import InputError, unknown_name
from autocompress.registry import Registry
from autocompress.searchers.base import Recorder, SearchSettings, Task
from autocompress.searchers.stable_baselines.specs import SPECS, AgentSpec

Search = Callable[[Task, SearchSettings, Recorder], None]
"""Evaluates plans by calling the recorder, until that raises `StopSearch`."""


@dataclass(frozen=True)
class Agent:
    """An agent of the method `rl`.

    Attributes:
        search: how it searches.
        actions: kinds of action that it can take: some of `price`, `label` and `discrete`.
        rewards: names of the rewards that it can maximise; None: any.
        begins_with_policy: whether it can begin with the prices that a policy gives (`Task.prices`).
        needs_outputs: whether it models the network's outputs: the task then brings `probabilities` and `effects`, and
            every outcome its `shift`.
    """

    search: Search
    actions: tuple[str, ...] = ("price",)
    rewards: tuple[str, ...] | None = None
    begins_with_policy: bool = False
    needs_outputs: bool = False


def _model_based(task: Task, settings: SearchSettings, recorder: Recorder) -> None:
    from autocompress.searchers.model_based.search import search_with_model

    search_with_model(task, settings, recorder)


def _stable_baselines(spec: AgentSpec) -> Agent:
    def search(task: Task, settings: SearchSettings, recorder: Recorder) -> None:
        from autocompress.searchers.stable_baselines.agents import search_with_stable_baselines  # a second to import

        search_with_stable_baselines(spec, task, settings, recorder)

    return Agent(search, spec.actions, begins_with_policy=bool(spec.explorer))


AGENTS: Registry[Agent] = Registry(
    "agent",
    {
        "model-based": Agent(_model_based, rewards=("kl",), begins_with_policy=True, needs_outputs=True),
        **{name: _stable_baselines(spec) for name, spec in SPECS.items()},
    },
)


def check_agent(settings: SearchSettings) -> None:
    """Raises InputError where there is no such agent, or it can't take such actions or rewards."""
    agent = AGENTS.find(settings.agent)
    if settings.action not in agent.actions:
        names = sorted(name for name, each in AGENTS.items() if settings.action in each.actions)
        if not names:
            raise unknown_name("action", settings.action, {name for each in AGENTS.values() for name in each.actions})
        raise InputError(
            f"`agent` must be one that takes {settings.action} actions ({', '.join(names)}), got {settings.agent!r}; "
            f"choose one of these, or `action` {' or '.join(agent.actions)}."
        )
    if agent.rewards is not None and settings.reward not in agent.rewards:
        raise InputError(
            f"`reward` must be {' or '.join(agent.rewards)} with the agent {settings.agent}, got {settings.reward}; "
            "choose another agent, such as posterior-ppo."
        )


def begins_with_policy(settings: SearchSettings) -> bool:
    """Whether the agent can begin with the prices that a policy gives: it acts by prices, around an explorer's."""
    return settings.action == "price" and AGENTS.find(settings.agent).begins_with_policy


def search_with_agent(task: Task, settings: SearchSettings, recorder: Recorder) -> None:
    """Let the agent of the settings search.

    Raises:
        InputError: see `check_agent`; or the agent models outputs, and the evaluation keeps none.
    """
    check_agent(settings)
    AGENTS[settings.agent].search(task, settings, recorder)
