"""The agents of the method `rl`, by name: their abilities, and their searches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autocompress.errors import InputError, unknown_name
from autocompress.registry import Registry
from autocompress.searchers.base import Recorder, SearchSettings, Task
from autocompress.searchers.stable_baselines.specs import SPECS, AgentSpec

Search = Callable[[Task, SearchSettings, Recorder], None]
"""Evaluates plans by calling the recorder, until that raises `StopSearch` or there is no further plan.

The contract and an example stand at `Recorder`.
"""


@dataclass(frozen=True)
class Agent:
    """An agent of the method `rl`.

    Attributes:
        search: function that runs its search.
        actions: kinds of action that it can take, some of `price`, `label` and `discrete`. Default: `price`
            alone.
        rewards: names of the rewards that it can maximise. Default: None, for any.
        begins_with_policy: whether it can begin with the prices that a policy gives (`Task.prices`). Default:
            False.
        needs_outputs: whether it models the network's outputs. The task then brings `probabilities` and
            `effects`, and every outcome its `shift`. Default: False.
    """

    search: Search
    actions: tuple[str, ...] = ("price",)
    rewards: tuple[str, ...] | None = None
    begins_with_policy: bool = False
    needs_outputs: bool = False


def _model_based(task: Task, settings: SearchSettings, recorder: Recorder) -> None:
    """The search of the agent `model-based`, imported where it is used."""
    from autocompress.searchers.model_based.search import search_with_model

    search_with_model(task, settings, recorder)


def _labeling(task: Task, settings: SearchSettings, recorder: Recorder) -> None:
    """The search of the agent `labeling`, imported where it is used."""
    from autocompress.searchers.model_based.labeling import search_by_labeling

    search_by_labeling(task, settings, recorder)


def _stable_baselines(spec: AgentSpec) -> Agent:
    """The agent of a spec, whose library is imported where it searches."""

    def search(task: Task, settings: SearchSettings, recorder: Recorder) -> None:
        from autocompress.searchers.stable_baselines.agents import search_with_stable_baselines  # a second to import

        search_with_stable_baselines(spec, task, settings, recorder)

    return Agent(search, spec.actions, begins_with_policy=bool(spec.explorer))


AGENTS: Registry[Agent] = Registry(
    "agent",
    {
        "labeling": Agent(_labeling, rewards=("kl",), begins_with_policy=True, needs_outputs=True),
        "model-based": Agent(_model_based, rewards=("kl",), begins_with_policy=True, needs_outputs=True),
        **{name: _stable_baselines(spec) for name, spec in SPECS.items()},
    },
)


def check_agent(settings: SearchSettings) -> None:
    """Check that there is an agent of the settings' name, and that it can take their action and reward.

    Args:
        settings: options of the search.

    Raises:
        InputError: there is no such agent, or it can't take such actions or rewards.
    """
    agent = AGENTS.find(settings.agent)
    if settings.action not in ("auto", *agent.actions):
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
    """Whether the settings' agent can begin with a policy's prices: it acts by prices, around an explorer's.

    Args:
        settings: options of the search.

    Raises:
        InputError: there is no such agent.
    """
    return settings.action in ("auto", "price") and AGENTS.find(settings.agent).begins_with_policy


def search_with_agent(task: Task, settings: SearchSettings, recorder: Recorder) -> None:
    """Let the agent of the settings search: the method `rl`.

    Args:
        task: the problem, its limits and its evaluation.
        settings: options of the search.
        recorder: evaluates plans, and raises `StopSearch` when the search is over.

    Raises:
        InputError: there is no such agent, it can't take such actions or rewards, or it models the network's
            outputs and the evaluation keeps none.
        StopSearch: the search is over.
    """
    check_agent(settings)
    AGENTS[settings.agent].search(task, settings, recorder)
