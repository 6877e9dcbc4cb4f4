"""What every searcher shares: settings, the task, and the recorder that counts evaluations and keeps the best plan.

A search is a deterministic function of (task, settings). A killed search therefore resumes by replay: the caller
passes an `evaluate` that answers from the journal of earlier evaluations, and the search walks the same way again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from autocompress.errors import InputError
from autocompress.evaluation.effects import Effects
from autocompress.registry import Registry
from autocompress_envs import rewards
from autocompress_envs.problem import FloatArray, Labeling, Outcome, Problem
from autocompress_envs.problem.tables import is_within
from autocompress_envs.rewards import Reward, RewardContext, compute

Evaluate = Callable[[Labeling], Outcome]

REWARDS: Registry[Reward] = Registry("reward", rewards.REWARDS)
"""The environment's own table: what is registered here, the environment knows too."""

# Plans seen before are free, so an agent that has converged, or has seen all that its actions can reach, would go on
# for ever: this many of them in a row end the search.
MOST_REPEATS = 50


@dataclass(frozen=True)
class SearchSettings:
    """How to search.

    Attributes:
        agent: name in `agents.AGENTS`; used by the method `rl` only.
        action: `price`, `label` or `discrete`: what one step of the environment decides.
        reward: name in `REWARDS`.
        episodes: most network evaluations, everything included; at least 1. A plan seen before is free; other work
            on a plan's network counts as the evaluations that it takes as long as.
        seed: of every random choice, at least 0.
        patience: stop after this many evaluations without improvement; 0 = never.
        environments: environments in lockstep; 0 = what suits the agent. Off-policy agents always use one.
        price_scale: action 1 weighs a layer's error `exp(price_scale)` times as much; above 0, below 20. Anchored
            agents' offsets reach a share of it.

    Raises:
        InputError: a value is out of range.
    """

    agent: str = "model-based"
    action: str = "price"
    reward: str = "kl"
    episodes: int = 200
    seed: int = 0
    patience: int = 0
    environments: int = 0
    price_scale: float = 2.0

    def __post_init__(self) -> None:
        for name, least in {"episodes": 1, "seed": 0, "patience": 0, "environments": 0}.items():
            value = getattr(self, name)
            if value < least:
                raise InputError(f"`{name}` must be at least {least}, got {value}.")
        if not 0 < self.price_scale < 20:
            raise InputError(f"`price_scale` must be above 0 and below 20, got {self.price_scale}.")
        REWARDS.find(self.reward)


@dataclass(frozen=True)
class Task:
    """What to search.

    Attributes:
        problem: the network in numbers.
        limits: absolute upper bound by resource.
        evaluate: measures one plan; called once for every distinct plan.
        original_accuracy: task metric of the uncompressed network in [0, 1]; the reward `haq` needs it.
        probabilities: (N, K) the uncompressed network's predictions on the samples of `Outcome.shift`; rows sum to 1.
            Agents that model the network's outputs need both.
        prices: (L, 2) log prices that a policy gives the network's layers, where agents that act by prices begin.
        effects: gives what every label does to the network's outputs, to first order, on the samples of
            `probabilities`, around a plan or, given None, around the original; for agents that model these. Those
            around the original depend on no plan: they are part of the calibration. Those around a plan count.
    """

    problem: Problem
    limits: dict[str, int]
    evaluate: Evaluate
    original_accuracy: float = math.nan
    probabilities: FloatArray | None = None
    prices: FloatArray | None = None
    effects: Callable[[Labeling | None], Effects | None] | None = None


@dataclass(frozen=True)
class Evaluated:
    """One evaluated plan.

    Attributes:
        index: counts distinct evaluations from 0.
        labeling: the plan.
        outcome: what was measured.
        reward: higher is better.
        is_best: whether it is within the limits, and better than all before it that are.
        spent: of the allowance up to now on other work than evaluations.
    """

    index: int
    labeling: Labeling
    outcome: Outcome
    reward: float
    is_best: bool
    spent: int = 0

    @property
    def used(self) -> int:
        """Of the allowance up to now, this evaluation included."""
        return self.index + 1 + self.spent


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        best: the evaluated plan within the limits with the highest reward, whenever it was found.
        evaluations: distinct plans evaluated.
        stopped_because: one sentence.
        policy_state: parameters of the agent's policy at the end; None for searchers without one.
    """

    best: Evaluated
    evaluations: int
    stopped_because: str
    policy_state: dict[str, torch.Tensor] | None = None


class StopSearch(Exception):
    """Raised through the searcher, Stable-Baselines3's learn loop included, when the search is over."""


class Recorder:
    """Counts distinct evaluations, keeps the best within the limits, and ends the search. Call it like `evaluate`."""

    def __init__(self, task: Task, settings: SearchSettings, observers: Sequence[Callable[[Evaluated], None]]) -> None:
        self._task = task
        self._settings = settings
        self._observers = observers
        self._context = RewardContext(task.original_accuracy, task.problem.original(), task.limits)
        self._seen: dict[bytes, Evaluated] = {}
        self._repeats = 0
        self._spent = 0
        self.best: Evaluated | None = None
        self.policy_state: dict[str, torch.Tensor] | None = None

    @property
    def evaluations(self) -> int:
        """Distinct plans evaluated so far."""
        return len(self._seen)

    @property
    def left(self) -> int:
        """Of the allowance."""
        return self._settings.episodes - self.evaluations - self._spent

    def spend(self, evaluations: int) -> None:
        """Count other work on the network as so many evaluations, at least 0; at most what is left is counted."""
        self._spent += max(0, min(evaluations, self.left))

    def __call__(self, labeling: Labeling) -> Outcome:
        return self.record(labeling).outcome

    def record(self, labeling: Labeling) -> Evaluated:
        """The evaluation of a plan, from memory where it was seen before.

        Raises:
            StopSearch: the plan is new and the allowance or the patience is used up, or `MOST_REPEATS` in a row
                were not new.
            InputError: the evaluation gave no number that the reward can use, such as NaN.
        """
        key = labeling.key()
        if key in self._seen:
            self._repeats += 1
            if self._repeats >= MOST_REPEATS:
                raise StopSearch(f"{MOST_REPEATS} episodes in a row brought only plans seen before")
        else:
            self._check_allowance()
            self._seen[key] = self._evaluate(labeling)
            self._repeats = 0
        return self._seen[key]

    def _check_allowance(self) -> None:
        settings = self._settings
        if self.left <= 0:
            on_effects = f", {self._spent} of them on first-order effects" if self._spent else ""
            raise StopSearch(f"all {settings.episodes} evaluations are used{on_effects}")
        if settings.patience and self.best and self.evaluations - 1 - self.best.index >= settings.patience:
            raise StopSearch(f"{settings.patience} evaluations brought no improvement")

    def _evaluate(self, labeling: Labeling) -> Evaluated:
        outcome = self._task.evaluate(labeling)
        reward = self._reward(outcome)
        fits = is_within(outcome.resources, self._task.limits)  # measurements of single layers need not
        is_best = fits and (self.best is None or reward > self.best.reward)
        evaluated = Evaluated(self.evaluations, labeling, outcome, reward, is_best, self._spent)
        self.best = evaluated if is_best else self.best
        for observe in self._observers:
            observe(evaluated)
        return evaluated

    def _reward(self, outcome: Outcome) -> float:
        try:
            return compute(self._settings.reward, outcome, self._context)
        except ValueError as error:
            raise InputError(f"Evaluation {self.evaluations}: {error}") from error
