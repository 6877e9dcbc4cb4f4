"""Model-based reinforcement learning: real episodes teach a model of the outputs, and plans are made in it.

The Dyna idea (Sutton 1991), where an episode is one plan: between two evaluations of the network, thousands
of plans are tried in the model at no cost, and the most promising one is evaluated next.

A search begins with the simple plans, which believe nothing of labels (`simple_plans`). Then there are two
ways to go on. Where first-order effects are known, the plan that they predict to be the best comes next. Where
nothing is known, an explorer's prices (`explorers`) lead the search, and uncertain plans are taken to be better
than expected (optimism in the face of uncertainty).

Where the plan that was believed to be the best loses far more than expected, the label at fault is looked for by
bisection before anything else (`doubts`), and what is believed of it is corrected.

Three things keep the search from a local optimum. The explorer takes turns with the model, so that the model
also learns of plans that it would not have chosen. Some descents start from random plans. And first-order
effects around the original are wrong far away from it, so they are refreshed around the best plan. That takes
about half of a long search's allowance at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import numpy as np

from autocompress.errors import InputError
from autocompress.evaluation.effects import Effects
from autocompress.searchers.base import Evaluated, Recorder, SearchSettings, Task
from autocompress.searchers.explorers import MixedExplorer, Proposal, Trial
from autocompress.searchers.model_based.beliefs import Beliefs
from autocompress.searchers.model_based.doubts import Doubts
from autocompress.searchers.model_based.first_order import Incumbent, predicted_best_plan
from autocompress.searchers.model_based.output_model import OutputModel
from autocompress.searchers.model_based.planning import Planner
from autocompress.searchers.simple_plans import SHARE, affordable, simple_plans
from autocompress_envs.problem import IntArray, Labeling, Outcome, Problem
from autocompress_envs.solver import Solver

STARTS = 3  # best plans from which descents start
RESTART_DEVIATION = 1.0  # standard deviation of the log prices whose solver's plan is a random start


@dataclass(frozen=True)
class Schedule:
    """How a search shares its evaluations between exploring and using what it knows.

    Attributes:
        warm_up: evaluations of simple plans and of the explorer alone, at the start; at least 0.
        explorer_every: one in so many later evaluations is the explorer's; at least 1.
        optimism: standard deviations by which an uncertain plan is taken to be better than expected; at least
            0.
        cautious_share: share of the model's plans, in [0, 1], for which uncertainty raises the expected
            divergence in full (`caution` 1). For the others it does not, which explores.
        restart_probability: probability that a descent starts from a random plan, and not from one of the
            best. Effects are known of all labels, so the model is of use everywhere; descents from the best
            plans alone ended in a local optimum (ResNet-20, 2.4 bits).
    """

    warm_up: int
    explorer_every: int
    optimism: float
    cautious_share: float
    restart_probability: float


# Effects say what single labels do: better plans are near the predicted one, uncertain plans are mostly worse.
FROM_EFFECTS = Schedule(warm_up=0, explorer_every=12, optimism=0.0, cautious_share=0.4, restart_probability=0.2)
FROM_ZERO = Schedule(warm_up=24, explorer_every=4, optimism=1.0, cautious_share=0.0, restart_probability=0.0)
# A policy's plan is close to the best: less is to be explored.
FROM_PRICES = Schedule(warm_up=6, explorer_every=4, optimism=1.0, cautious_share=0.75, restart_probability=0.0)


def search_with_model(task: Task, settings: SearchSettings, recorder: Recorder) -> NoReturn:
    """Search until the recorder ends it.

    The first evaluations are the simple plans, as many as the allowance affords, and the predicted best plan:
    that of the effects, where the task has any, else that of the policy's prices, where it has any. Where fewer
    than `simple_plans.SHARE` evaluations are allowed, the predicted best plan comes first.

    Args:
        task: the problem, its limits and its evaluation, with the uncompressed network's `probabilities`.
        settings: options of the search; `seed` counts here.
        recorder: evaluates plans, and raises `StopSearch` when the search is over.

    Raises:
        InputError: the evaluation keeps no outputs (`Task.probabilities` is None).
        StopSearch: the search is over.
    """
    ModelSearch(task, settings, recorder).run()


class ModelSearch:
    """The state of one search: the model, the explorer, and when effects were last refreshed.

    Args:
        task: the problem, its limits and its evaluation.
        settings: options of the search; `seed` counts here.
        recorder: evaluates plans, and raises `StopSearch` when the search is over.

    Raises:
        InputError: the evaluation keeps no outputs (`Task.probabilities` is None).
    """

    def __init__(self, task: Task, settings: SearchSettings, recorder: Recorder) -> None:
        if task.probabilities is None:
            raise InputError(
                f"`agent` {settings.agent} needs an evaluation that keeps outputs, got none; "
                "choose another, such as posterior-ppo."
            )
        self._recorder, self._settings = recorder, settings
        self._rng = np.random.default_rng(settings.seed)
        self._solver = Solver(task.problem, task.limits)
        self._explorer = MixedExplorer(task.problem, self._rng, task.prices)
        self._no_prices = np.zeros((len(task.problem.layers), 2))
        self._first = None if task.prices is None else Proposal(task.prices, "policy")
        self._task, self._effects = task, None if task.effects is None else task.effects(None)
        self._schedule = FROM_EFFECTS if self._effects else FROM_ZERO if task.prices is None else FROM_PRICES
        self._model = OutputModel(task.problem, task.probabilities, task.prices, self._effects)
        self._planner = Planner(task.problem, task.limits, self._model)
        self._problem = task.problem  # with the layer errors that are taken for true
        self._doubts = Doubts(Beliefs(task.problem, task.limits, task.probabilities, self._effects, task.prices))
        self._known: set[bytes] = set()  # codes of the plans evaluated
        self._is_repeating = False  # whether the last evaluation was of a plan seen before
        self._refreshed_around: Evaluated | None = None
        self._refreshed_at = 0  # evaluations before the last refresh

    def run(self) -> NoReturn:
        """Search until the recorder ends it."""
        self.begin()
        while True:
            if self.follow_doubts():
                continue
            if self.is_time_to_refresh():
                self.refresh_effects()
            elif self.is_explorers_turn():
                self.explore()
            else:
                self.plan()

    def begin(self) -> None:
        """Evaluate the plans to begin with, the simple ones and the predicted best one.

        Where few evaluations are allowed, the predicted best plan comes before the simple ones.
        """
        task, settings = self._task, self._settings
        for plan in task.begin_with:
            self._evaluate(plan)
        plans = affordable(simple_plans(task.problem, task.limits), settings)
        steps: list[Callable[[], None]] = [partial(self._evaluate, plan) for plan in plans]
        steps.insert(len(steps) if settings.episodes >= SHARE else 0, self._evaluate_predicted_best)
        for step in steps:
            step()
        self._is_repeating = False  # a plan that comes twice here says nothing of the explorer

    def _evaluate_predicted_best(self) -> None:
        """Evaluate the plan that effects around the original, or else the policy's prices, predict to be the best."""
        if self._effects is not None:
            self._evaluate(self._doubts.beliefs.best())
        elif self._task.prices is not None:
            self.explore()

    def follow_doubts(self) -> bool:
        """Evaluate the plan that tells what is believed falsely, where there are doubts; whether there are any."""
        plan = self._doubts.next_plan()
        if self._doubts.beliefs.problem is not self._problem:
            self._believe(self._doubts.beliefs.problem)
        if plan is not None:
            self._evaluate(plan)
        return plan is not None

    def _believe(self, problem: Problem) -> None:
        """Take corrected layer errors for true from now on."""
        self._problem, self._solver = problem, Solver(problem, self._task.limits)
        self._model.believe(problem)

    def is_time_to_refresh(self) -> bool:
        """Whether effects around the best plan are worth their time.

        Three things must hold. The best plan is another than at the last refresh. Since then, as many
        evaluations went by as the last effects took forward passes; the first refresh waits for none. And
        more evaluations are left than that. Effects around a plan never take more passes than those around
        the original: fewer classes, and only labels nearby.
        """
        best, effects = self._recorder.best, self._effects
        if effects is None or best is None or best is self._refreshed_around:
            return False
        waited = len(self._model) - self._refreshed_at if self._refreshed_around else math.inf
        return effects.passes <= waited and effects.passes < self._recorder.left

    def refresh_effects(self) -> None:
        """Take effects around the best plan, and evaluate the plan that they predict to be the best."""
        best = self._recorder.best
        assert best is not None
        self._effects = self._effects_around(best)
        self._recorder.spend(math.ceil(self._effects.passes))
        self._refreshed_around, self._refreshed_at = best, len(self._model)
        self._evaluate(self._predicted_best_around(best))

    def _effects_around(self, best: Evaluated) -> Effects:
        """Effects around the best plan, on which the model is recentred."""
        assert self._task.effects is not None
        effects = self._task.effects(best.labeling)
        assert effects is not None, "there are some around the original"
        self._model.recentre(effects, best.labeling)
        return effects

    def _predicted_best_around(self, best: Evaluated) -> Labeling:
        """The plan that effects around the best plan predict to be the best."""
        task, shift = self._task, best.outcome.shift
        assert task.probabilities is not None
        assert self._effects is not None
        assert shift is not None
        incumbent = Incumbent(best.labeling, shift.astype(np.float64))
        return predicted_best_plan(
            self._problem, task.limits, task.probabilities, self._effects, task.prices, incumbent
        )

    def is_explorers_turn(self) -> bool:
        """Whether the explorer's plan comes next.

        The explorer loses its turn where it has just proposed a plan seen before: the model knows one that is
        new.
        """
        if self._is_repeating:
            return False
        return len(self._model) < self._schedule.warm_up or len(self._model) % self._schedule.explorer_every == 0

    def explore(self) -> None:
        """Evaluate the solver's plan under the prices that the explorer proposes."""
        proposal, self._first = self._first or self._explorer.propose(), None
        self._evaluate(self._solver.solve(*np.exp(proposal.prices).T), proposal)

    def plan(self) -> None:
        """Evaluate the model's most promising plan, or the explorer's where the model has no new one."""
        labeling = self._most_promising()
        if labeling is None:
            self.explore()
        else:
            self._evaluate(labeling)

    def _most_promising(self) -> Labeling | None:
        """The new plan of least optimistic divergence on one descent; None where all were evaluated."""
        model = self._model
        caution = 1.0 if self._rng.random() < self._schedule.cautious_share else 0.0
        candidates = self._new(self._planner.descend(self._start(), caution))
        if not len(candidates):
            return None
        expected, deviation = model.predict(candidates, caution)
        optimism = self._schedule.optimism if model.is_calibrated else 0.0
        return model.encoding.decode(candidates[int((expected - optimism * deviation).argmin())])

    def _start(self) -> IntArray:
        """(2L,) the start of a descent: the best plan, one of the `STARTS` best, or a random plan."""
        restart_probability = self._schedule.restart_probability
        if restart_probability and self._rng.random() < restart_probability:
            return self._random_start()
        best = self._model.losses.argsort(kind="stable")[:STARTS]
        start: IntArray = self._model.codes[best[0] if self._rng.random() < 0.5 else self._rng.choice(best)]
        return start

    def _random_start(self) -> IntArray:
        """(2L,) the solver's plan under random prices, around the policy's where there is one."""
        noise = self._rng.normal(0.0, RESTART_DEVIATION, (len(self._task.problem.layers), 2))
        prices = noise if self._task.prices is None else noise + self._task.prices
        return self._model.encoding.encode(self._solver.solve(*np.exp(prices).T))

    def _new(self, candidates: IntArray) -> IntArray:
        """(m, 2L) those of the candidates (M, 2L) that were not evaluated yet."""
        new: IntArray = candidates[[key not in self._known for key in map(_key, candidates)]]
        return new

    def _measure(self, labeling: Labeling) -> Outcome:
        """The measurement of a plan."""
        return self._recorder(labeling)

    def _evaluate(self, labeling: Labeling, proposal: Proposal | None = None) -> None:
        """Evaluate a plan; the model learns from it where it is new, and the explorer in any case.

        Args:
            labeling: the plan.
            proposal: the explorer's prices that gave it. Default: None, for a plan without prices from which to
                climb.
        """
        best, evaluations = self._recorder.best, self._recorder.evaluations
        outcome = self._measure(labeling)
        is_new, is_best = self._recorder.evaluations > evaluations, self._recorder.best is not best
        if is_new:
            self._model.add(labeling, outcome)
            self._doubts.add(labeling, outcome.kl)
            self._known.add(_key(self._model.codes[-1]))
        self._is_repeating = not is_new
        prices, origin = (self._no_prices, "model") if proposal is None else (proposal.prices, proposal.origin)
        self._explorer.learn(Trial(prices, origin, labeling, outcome.kl, is_new, is_best and proposal is not None))


def _key(codes: IntArray) -> bytes:
    """The codes (2L,) of a plan as a value that can be an element of a set."""
    return codes.astype(np.int64).tobytes()
