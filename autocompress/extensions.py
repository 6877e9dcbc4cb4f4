"""Extension points: what packages from outside can add to autocompress, by name.

An entry that is registered here works like a built-in one everywhere: in options, YAML files and on the command line.
From the command line, entries are found in installed packages that name a module under the entry-point group
`autocompress.plugins`; in Python, it is enough to have registered them. `autocompress.testing` has a check for each
kind of entry. Names of letters, digits, dots, dashes and underscores are allowed; built-in entries can't be replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from autocompress.data.registry import DATA_SOURCES, source_of_function
from autocompress.errors import InputError
from autocompress.menus.criteria import CRITERIA, ChannelCriterion, Criterion, ElementCriterion
from autocompress.menus.quantizers import QUANTIZERS, Quantizer, RoundingFunction
from autocompress.models.registry import MODELS, Model
from autocompress.searchers.agents import AGENTS, Agent, Search
from autocompress.searchers.base import REWARDS
from autocompress.searchers.search import SEARCHERS, Searcher
from autocompress.targets.target import TARGETS, Target
from autocompress.tasks import TASKS, Task
from autocompress.tasks.metrics import find_metrics
from autocompress_envs.rewards import Reward, RewardFunction


def register_criterion(name: str, channels: ChannelCriterion, elements: ElementCriterion | None = None) -> None:
    """Add a pruning criterion (`--criterion NAME`).

    Args:
        name: name of the criterion.
        channels: gives (n,) the channels of a group in the order of their removal, from the layers that read it; see
            `autocompress.menus.criteria.Consumer`.
        elements: scores (r, d) single weights, the lowest of which are removed first. Default: the criterion prunes
            whole channels only.

    Raises:
        InputError: the name is not allowed or built in, or no function is given.
    """
    _check_functions(channels=channels, elements=elements)
    CRITERIA.register(name, Criterion(channels, elements))


def register_quantizer(name: str, rounding: RoundingFunction, bits: tuple[int, ...] | None = None) -> None:
    """Add a quantizer (`--quantizer NAME`).

    Args:
        name: name of the quantizer.
        rounding: rounds a weight for several bit-widths; see `autocompress.menus.rounding.Rounding` and `Rounded`.
        bits: bit-widths below 16 that it can round to. Default: 1 to 8.

    Raises:
        InputError: the name is not allowed or built in, or no function is given.
    """
    _check_functions(rounding=rounding)
    QUANTIZERS.register(name, Quantizer(rounding, bits))


def register_searcher(name: str, search: Search, **abilities: bool) -> None:
    """Add a search method (`--method NAME`). `autocompress.search(method=search)` works without registering it.

    Args:
        name: name of the method.
        search: takes (task, settings, recorder) and evaluates plans by calling the recorder, which raises `StopSearch`
            when the allowance is used up; see `autocompress.searchers.base`.
        **abilities: `is_random`, `needs_labels`, `needs_original_accuracy`, `needs_outputs`; see
            `autocompress.searchers.search.Searcher`.

    Raises:
        InputError: the name is not allowed or built in, or no function is given.
        TypeError: an unknown ability.
    """
    _check_functions(search=search)
    SEARCHERS.register(name, Searcher(search, **abilities))


def register_agent(name: str, search: Search, **abilities: Any) -> None:
    """Add an agent of the method `rl` (`--agent NAME`).

    Args:
        name: name of the agent.
        search: as for `register_searcher`.
        **abilities: `actions`, `rewards`, `begins_with_policy`, `needs_outputs`; see
            `autocompress.searchers.agents.Agent`.

    Raises:
        InputError: the name is not allowed or built in, or no function is given.
        TypeError: an unknown ability.
    """
    _check_functions(search=search)
    AGENTS.register(name, Agent(search, **abilities))


def register_reward(
    name: str, function: RewardFunction, *, needs_labels: bool = False, needs_original_accuracy: bool = False
) -> None:
    """Add a reward (`--reward NAME`).

    Args:
        name: name of the reward.
        function: gives the terminal reward of one measured plan, higher is better; see
            `autocompress_envs.rewards.RewardContext`.
        needs_labels: whether it looks at the outcome's accuracy.
        needs_original_accuracy: whether it compares with the original's accuracy.

    Raises:
        InputError: the name is not allowed or built in, or no function is given.
    """
    _check_functions(function=function)
    REWARDS.register(name, Reward(function, needs_labels, needs_original_accuracy))


def register_data(name: str, load: Callable[..., Any]) -> None:
    """Add a source of data (`--data NAME:PLACE`).

    Args:
        name: name of the source, the part of a spec before the colon.
        load: takes the place and the keyword arguments of `--data-args`; returns (train, test) or (train, test, class
            names), both of them a map-style dataset or a pair of tensors (inputs, labels).

    Raises:
        InputError: the name is not allowed or built in, or no function is given.
    """
    _check_functions(load=load)
    DATA_SOURCES.register(name, source_of_function(name, load))


def register_model(name: str, build: Callable[..., nn.Module]) -> None:
    """Add a network (`autocompress search NAME`).

    Args:
        name: name of the network.
        build: takes the keyword arguments of `--model-args`, and returns a module; weights come from `--weights`, or
            are those that it returns.

    Raises:
        InputError: the name is not allowed or built in, or no function is given.
    """
    _check_functions(build=build)
    MODELS.register(name, Model(build))


def register_target(target: Target) -> None:
    """Add a target (`--target NAME`).

    Args:
        target: under its own name.

    Raises:
        InputError: the name is not allowed or built in, or the file has the name of one that the package writes.
    """
    TARGETS.register(target.name, target)


def register_task(task: Task) -> None:
    """Add a task (`--task NAME`): what outputs mean, and how two networks' outputs are compared.

    Args:
        task: under its own name.

    Raises:
        InputError: the name is not allowed or built in, or a metric has an unknown name.
    """
    _check_functions(rows=task.rows, decode=task.decode)
    find_metrics(task.metrics)
    TASKS.register(task.name, task)


def _check_functions(**given: object) -> None:
    for argument, function in given.items():
        if function is not None and not callable(function):
            raise InputError(f"`{argument}` must be a function, got {function!r}.")


def list_criteria() -> list[str]:
    """Names of the pruning criteria."""
    return list(CRITERIA)


def list_quantizers() -> list[str]:
    """Names of the quantizers."""
    return list(QUANTIZERS)


def list_searchers() -> list[str]:
    """Names of the search methods."""
    return list(SEARCHERS)


def list_agents() -> list[str]:
    """Names of the agents of the method `rl`."""
    return list(AGENTS)


def list_rewards() -> list[str]:
    """Names of the rewards."""
    return list(REWARDS)


def list_data() -> list[str]:
    """Names of the sources of data, what stands before the colon of a spec."""
    return list(DATA_SOURCES)


def list_models() -> list[str]:
    """Names of the package's own networks and of those that were registered."""
    return list(MODELS)


def list_targets() -> list[str]:
    """Names of the targets."""
    return list(TARGETS)


def list_tasks() -> list[str]:
    """Names of the tasks."""
    return list(TASKS)
