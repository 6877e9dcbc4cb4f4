"""Checks of what searches: search methods, agents and rewards, on a toy network of three layers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from autocompress.errors import InputError
from autocompress.searchers.agents import AGENTS, Agent, Search
from autocompress.searchers.base import Evaluated, SearchSettings, Task
from autocompress.searchers.search import Searcher, run_search
from autocompress.testing.contract import require
from autocompress_envs.problem import Labeling, Outcome
from autocompress_envs.problem.tables import is_within
from autocompress_envs.rewards import RewardContext, RewardFunction
from autocompress_envs.testing import fair_coins, toy_problem

_LIMITS = {"size": 204}  # bytes: 31 of the toy's 54 plans meet them
_EPISODES = 6
_NAME = "autocompress.testing"


def check_searcher(search: Search, **abilities: bool) -> None:
    """Check a search method on a toy of three layers.

    It must evaluate plans by calling the recorder, at least one that meets the budget; evaluate no more different plans
    than it is allowed; evaluate the same plans in the same order for the same seed; and let `StopSearch` through. (That
    the global random generators are left alone is seen to by `run_search`.)

    Args:
        search: as for `autocompress.register_searcher`.
        **abilities: as for `autocompress.register_searcher`.

    Raises:
        ContractError: a rule is broken.
    """
    searcher = Searcher(search, **abilities)
    _check_search(searcher, SearchSettings(episodes=_EPISODES))


def check_agent(search: Search, **abilities: Any) -> None:
    """Check an agent of the method `rl`, with every kind of action that it takes, as `check_searcher` does.

    Args:
        search: as for `autocompress.register_agent`.
        **abilities: as for `autocompress.register_agent`.

    Raises:
        ContractError: a rule is broken.
    """
    agent = Agent(search, **abilities)
    wrong = set(agent.actions) - {"price", "label", "discrete"}
    require(bool(agent.actions) and not wrong, "`actions` must be some of price, label and discrete", agent.actions)
    AGENTS.register(_NAME, agent)
    try:
        for action in agent.actions:
            reward = "kl" if agent.rewards is None else agent.rewards[0]
            settings = SearchSettings(agent=_NAME, action=action, reward=reward, episodes=_EPISODES)
            _check_search(Searcher(lambda *given: AGENTS[_NAME].search(*given)), settings)
    finally:
        AGENTS.unregister(_NAME)


def _check_search(searcher: Searcher, settings: SearchSettings) -> None:
    plans, measured = _searched(searcher, settings)
    require(bool(plans), "A searcher must evaluate at least one plan", "none")
    count = len(measured)
    require(count <= _EPISODES, f"At most {_EPISODES} different plans may be evaluated", count)
    require(count == len(set(measured)), "Every plan must be evaluated by calling the recorder", "one measured twice")
    fits = any(is_within(each.outcome.resources, _LIMITS) for each in plans)
    require(fits, f"A searcher must evaluate a plan within {_LIMITS}", "none")
    again = _searched(searcher, settings)[1]
    require(again == measured, "The same seed must lead to the same plans in the same order", "others")
    fewer = _searched(searcher, replace(settings, episodes=2))[1]
    require(
        len(fewer) <= 2, "The search must end when the recorder raises StopSearch", f"{len(fewer)} evaluations of 2"
    )


def _searched(searcher: Searcher, settings: SearchSettings) -> tuple[list[Evaluated], list[bytes]]:
    """The evaluated plans, and the keys of those that were really measured, both in order."""
    problem, evaluate = toy_problem()
    measured: list[bytes] = []
    seen: list[Evaluated] = []

    def measure(labeling: Labeling) -> Outcome:
        measured.append(labeling.key())
        return evaluate(labeling)

    task = Task(problem, dict(_LIMITS), measure, original_accuracy=1.0, probabilities=fair_coins(4))
    try:
        run_search(task, settings, method=searcher, observe=seen.append)
    except InputError:
        if any(each.is_best for each in seen):
            raise  # else no plan met the budget, which the caller says in the words of the contract
    return seen, measured


def check_reward(
    function: RewardFunction, *, needs_labels: bool = False, needs_original_accuracy: bool = False
) -> None:
    """Check a reward on outcomes with and without an accuracy.

    It must give finite numbers, the same ones for the same outcome, for every outcome that it says it can do with; and
    must not be better for a plan that is worse in divergence, accuracy and agreement at equal cost.

    Args:
        function: as for `autocompress.register_reward`.
        needs_labels: as for `autocompress.register_reward`.
        needs_original_accuracy: as for `autocompress.register_reward`.

    Raises:
        ContractError: a rule is broken.
    """
    resources = {"size": 1_000, "macs": 5_000, "bitops": 40_000, "memory": 300}
    original = {name: 4 * amount for name, amount in resources.items()}
    known = 0.9 if needs_original_accuracy else math.nan
    context = RewardContext(known, original, {"size": 1_100})
    accuracies = (0.88, 0.6, 0.1) if needs_labels else (math.nan,) * 3
    given = [
        Outcome(kl, accuracy, agreement, dict(resources))
        for kl, accuracy, agreement in zip((0.01, 0.5, 3.0), accuracies, (0.97, 0.7, 0.1), strict=True)
    ]
    rewards = [float(function(outcome, context)) for outcome in given]
    require(all(map(math.isfinite, rewards)), "A reward must be finite", rewards)
    again = [float(function(outcome, context)) for outcome in given]
    require(again == rewards, "A reward must be the same for the same outcome", again)
    require(rewards == sorted(rewards, reverse=True), "A better plan must not earn less", rewards)
