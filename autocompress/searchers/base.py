"""Classes that all searchers share: settings, task, recorder and result.

A search is a deterministic function of (task, settings). So a killed search resumes by replay: the caller
passes an `evaluate` that answers from the journal of earlier evaluations, and the search takes the same
decisions again.

Who writes a searcher finds the contract and an example at `Recorder`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from autocompress.errors import InputError
from autocompress.evaluation.effects import Effects
from autocompress.registry import Registry
from autocompress_envs import rewards
from autocompress_envs.labeling.environment import Episode, LabelingEnv
from autocompress_envs.problem import FloatArray, Labeling, Outcome, Problem
from autocompress_envs.problem.tables import is_within
from autocompress_envs.rewards import Reward, RewardContext, compute

Evaluate = Callable[[Labeling], Outcome]
"""Measures one plan on the network."""

REWARDS: Registry[Reward] = Registry("reward", rewards.REWARDS)
"""Rewards by name, in the environment's own table: the environment knows what is registered here."""

MOST_REPEATS = 50
"""Plans seen before, in a row, that end the search.

Such plans are free. So an agent that has converged, or has seen all that its actions can reach, would go on
for ever.
"""


@dataclass(frozen=True)
class SearchSettings:
    """Options of a search.

    Attributes:
        agent: name in `agents.AGENTS`; used by the method `rl` only. Default: `labeling`.
        action: kind of action of one step of the environment, `price`, `label` or `discrete`, for agents of
            Stable-Baselines3; `auto`, the default, is the agent's own first.
        reward: name in `REWARDS` of the number that the search maximises. Default: `kl`.
        episodes: the allowance: most network evaluations, everything included, at least 1. A plan seen before
            is free. Other work on a plan's network counts as the number of evaluations that take as long.
            Default: 200.
        seed: seed of every random choice, at least 0. Default: 0.
        patience: number of evaluations without improvement after which the search stops; 0 (default) = never.
        environments: number of environments in lockstep; 0 (default) = what suits the agent. Off-policy
            agents always use one.
        price_scale: log price of action 1, above 0 and below 20: the layer's error then weighs
            `exp(price_scale)` times as much. Anchored agents' offsets reach a share of it. Default: 2.

    Raises:
        InputError: a value is out of range.
    """

    agent: str = "labeling"
    action: str = "auto"
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


class LabelingPolicy(Protocol):
    """What a search asks of a policy that labels layers in the environment."""

    def plans(self, envs: Sequence[LabelingEnv], rng: np.random.Generator | None) -> list[Labeling]:
        """One plan for each environment, each in one episode: drawn by `rng`, or the likeliest labels for None."""

    def imitate(self, episode: Episode) -> None:
        """Make the plan of an episode likelier, by a few gradient steps."""


@dataclass(frozen=True)
class Task:
    """What is to be searched: menus, limits and the evaluation of one network.

    Attributes:
        problem: the network in numbers: menus, layer errors and costs of its L layers.
        limits: upper bound of every limited resource, in absolute units (bytes, MACs, ...).
        evaluate: function that measures one plan on the network; the recorder calls it once for every
            distinct plan.
        original_accuracy: task metric of the uncompressed network in [0, 1]; the reward `haq` needs it.
            Default: NaN, for unknown.
        probabilities: (N, K) predictions of the uncompressed network on the N samples of `Outcome.shift`;
            rows sum to 1. Agents that model the network's outputs need both. Default: None.
        prices: (L, 2) log prices that a policy gives the layers' pruning and rounding, from which agents that
            act by prices start. Default: None, for no policy.
        effects: function that returns the first-order effects of all labels on the network's outputs, on the
            samples of `probabilities`: around a plan or, given None, around the original; it returns None
            where there are none. Effects around the original depend on no plan: they are part of the
            calibration, and free. A searcher that asks for those around a plan counts them by
            `Recorder.spend`. Default: None, for none at all.
        policy: function that gives a fresh copy of the policy that labels layers in the environment. Default: None,
            for labels by the solver's multiplier.
        environment: environment of the problem under these limits, with its effects around the original; its twins
            evaluate nothing or by the recorder. Default: None, for one that the searcher makes itself.
        begin_with: plans within the limits that an agent evaluates before all others. Default: none.
    """

    problem: Problem
    limits: dict[str, int]
    evaluate: Evaluate
    original_accuracy: float = math.nan
    probabilities: FloatArray | None = None
    prices: FloatArray | None = None
    effects: Callable[[Labeling | None], Effects | None] | None = None
    policy: Callable[[], LabelingPolicy] | None = None
    environment: LabelingEnv | None = None
    begin_with: Sequence[Labeling] = ()


@dataclass(frozen=True)
class Evaluated:
    """One evaluated plan.

    Attributes:
        index: number of distinct plans that were evaluated before it.
        labeling: the plan.
        outcome: its measurement: divergence, task metrics and resources.
        reward: the reward of the outcome; higher is better.
        is_best: whether the plan is within the limits, and has a higher reward than all plans before it that
            are.
        spent: evaluations' worth of the allowance that other work has used up to then. Default: 0.
        steps: steps that the search has taken in the environment by then. Default: 0.
    """

    index: int
    labeling: Labeling
    outcome: Outcome
    reward: float
    is_best: bool
    spent: int = 0
    steps: int = 0

    @property
    def used(self) -> int:
        """Evaluations' worth of the allowance that was used up to then, this evaluation included."""
        return self.index + 1 + self.spent


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Attributes:
        best: the evaluated plan within the limits with the highest reward; the first of several.
        evaluations: number of distinct plans that were evaluated.
        stopped_because: reason why the search ended, in one clause.
        policy_state: parameters of the agent's policy at the end, by name. Default: None, for searchers
            without one.
    """

    best: Evaluated
    evaluations: int
    stopped_because: str
    policy_state: dict[str, torch.Tensor] | None = None


class StopSearch(Exception):
    """Raised through the searcher, Stable-Baselines3's learn loop included, when the search is over."""


class Recorder:
    """Evaluates plans for a searcher, counts them, keeps the best one within the limits, and ends the search.

    A searcher is a function of (task, settings, recorder) that returns nothing. What it has to know:

    - It calls `recorder(labeling)` with plans from `task.problem`'s menus, and gets the plan's `Outcome`; or
      `recorder.record(labeling)`, which also has the reward and whether the plan is the best so far. It never
      calls `task.evaluate` itself: only plans that the recorder evaluated are in the journal, count, and can
      be the result.
    - The recorder raises `StopSearch` when the search is over. A searcher lets it through, or catches it to
      clean up and raises it again. A searcher that has no further plan simply returns.
    - A plan seen before comes from memory and is free; `MOST_REPEATS` of them in a row end the search.
    - A plan beyond `task.limits` may be evaluated, and counts, but is never the best. `Solver.solve` of
      `autocompress_envs.solver.pricing` gives a plan within the limits for any prices; `Solver.repair` changes
      a plan until it is within them, or returns None where single changes do not lead there.
    - All randomness comes from `settings.seed`: the same task and settings must give the same plans in the
      same order, or else a killed search can't be resumed.
    - Other work on the network, such as passes for gradients, is told by `spend`.

    An example, random log prices for the solver, that ends by returning:

    >>> import numpy as np
    >>> from autocompress.searchers.search import run_search
    >>> from autocompress_envs.solver import Solver
    >>> from autocompress_envs.testing import TOY_LIMITS, toy_problem
    >>> def random_prices(task, settings, recorder):
    ...     rng, solver = np.random.default_rng(settings.seed), Solver(task.problem, task.limits)
    ...     while recorder.left > 0:
    ...         prices = rng.normal(0.0, 2.0, (len(task.problem.layers), 2))
    ...         recorder(solver.solve(*np.exp(prices).T))
    >>> problem, evaluate = toy_problem()
    >>> result = run_search(Task(problem, TOY_LIMITS, evaluate), SearchSettings(episodes=4), method=random_prices)
    >>> result.evaluations, result.stopped_because
    (4, 'the method has no further plan')

    `autocompress.register_searcher("random-prices", random_prices)` makes it a method by name.

    Args:
        task: the problem, its limits and its evaluation.
        settings: options of the search; `reward`, `episodes` and `patience` count here.
        observers: functions that are called with every new evaluation, in order.

    Attributes:
        best: the evaluated plan within the limits with the highest reward so far; None before there is one.
        policy_state: parameters of the agent's policy, by name; a searcher with a policy sets them before it
            ends, for `SearchResult`. None at first.
        steps: steps that the searcher has taken in the environment; a searcher that acts there counts them.
    """

    def __init__(self, task: Task, settings: SearchSettings, observers: Sequence[Callable[[Evaluated], None]]) -> None:
        self._task = task
        self._settings = settings
        self._observers = observers
        self._context = RewardContext(task.original_accuracy, task.problem.original(), task.limits)
        self._seen: dict[bytes, Evaluated] = {}
        self._repeats = 0
        self._spent = 0
        self.steps = 0
        self.best: Evaluated | None = None
        self.policy_state: dict[str, torch.Tensor] | None = None

    @property
    def evaluations(self) -> int:
        """Number of distinct plans that were evaluated so far."""
        return len(self._seen)

    @property
    def left(self) -> int:
        """Evaluations that are left of the allowance `SearchSettings.episodes`, at least 0."""
        return self._settings.episodes - self.evaluations - self._spent

    def spend(self, evaluations: int) -> None:
        """Count other work on the network against the allowance.

        Args:
            evaluations: number of evaluations that take as long as the work. It is clipped to [0, `left`].
        """
        self._spent += max(0, min(evaluations, self.left))

    def __call__(self, labeling: Labeling) -> Outcome:
        """The measurement of a plan; as `record`, with the same errors."""
        return self.record(labeling).outcome

    def record(self, labeling: Labeling) -> Evaluated:
        """The evaluation of a plan, from memory where the plan was seen before.

        Args:
            labeling: the plan, as indices into the menus of the task's problem.

        Raises:
            StopSearch: the plan is new and the allowance or the patience is used up, or `MOST_REPEATS` plans
                in a row were not new.
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
        """Raises StopSearch where no new plan may be evaluated."""
        settings = self._settings
        if self.left <= 0:
            on_effects = f", {self._spent} of them on first-order effects" if self._spent else ""
            raise StopSearch(f"all {settings.episodes} evaluations are used{on_effects}")
        if settings.patience and self.best and self.evaluations - 1 - self.best.index >= settings.patience:
            raise StopSearch(f"{settings.patience} evaluations brought no improvement")

    def _evaluate(self, labeling: Labeling) -> Evaluated:
        """The evaluation of a plan that was not seen before, told to all observers."""
        outcome = self._task.evaluate(labeling)
        reward = self._reward(outcome)
        fits = is_within(outcome.resources, self._task.limits)  # measurements of single layers need not
        is_best = fits and (self.best is None or reward > self.best.reward)
        evaluated = Evaluated(self.evaluations, labeling, outcome, reward, is_best, self._spent, self.steps)
        self.best = evaluated if is_best else self.best
        for observe in self._observers:
            observe(evaluated)
        return evaluated

    def _reward(self, outcome: Outcome) -> float:
        """The settings' reward of an outcome. Raises InputError, with the evaluation's number, for NaN."""
        try:
            return compute(self._settings.reward, outcome, self._context)
        except ValueError as error:
            raise InputError(f"Evaluation {self.evaluations}: {error}") from error
