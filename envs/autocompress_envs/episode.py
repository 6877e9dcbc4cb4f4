"""What both environments do at the ends of an episode: check the names that they are made with, and pay the reward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from autocompress_envs import rewards
from autocompress_envs.problem import Labeling, Outcome
from autocompress_envs.problem.tables import Tables, is_within
from autocompress_envs.rewards import RewardContext


def check_choice(what: str, name: str, choices: Iterable[str]) -> None:
    """Raise a ValueError that lists the choices, in their order, where `name` is none of them."""
    if name not in (known := tuple(choices)):
        raise ValueError(f"`{what}` must be one of {', '.join(known)}, got {name!r}.")


def pay(
    labeling: Labeling,
    tables: Tables,
    limits: Mapping[str, int],
    evaluate: Callable[[Labeling], Outcome],
    reward: str,
    original_accuracy: float,
    info: dict[str, Any],
) -> float:
    """The terminal reward of a labelling, which keeps its limits; it and its outcome are put into `info`."""
    assert is_within(tables.resources(labeling, limits), limits), "an episode broke its budget"
    outcome = evaluate(labeling)
    info.update(labeling=labeling, outcome=outcome)
    return rewards.compute(reward, outcome, RewardContext(original_accuracy, tables.problem.original(), limits))
