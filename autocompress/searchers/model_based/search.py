"""Model-based reinforcement learning: real episodes teach a model of the network's outputs, and plans are made in it.

The Dyna idea (Sutton 1991) where an episode is one plan: between two evaluations of the network, thousands of plans are
tried in the model for nothing, and the one that is evaluated next is the most promising. Where nothing is known
beforehand, that is under optimism in the face of uncertainty, and prices drawn by an explorer (see `explorers`) begin
the search. First-order effects tell the model what single labels do, and which plan to begin with. Far from the
original they are no longer true, so they are taken anew around the best plan, for about half of a long search's
allowance at most. The explorer goes on taking turns with the model, so that it also learns of plans it would not have
chosen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from autocompress.errors import InputError
from autocompress.evaluation.effects import Effects
from autocompress.searchers.base import Evaluated, Recorder, SearchSettings, Task
from autocompress.searchers.explorers import MixedExplorer, Proposal, Trial
from autocompress.searchers.model_based.foresight import Known, foreseen
from autocompress.searchers.model_based.output_model import OutputModel
from autocompress.searchers.model_based.planning import Planner
from autocompress_envs.problem import IntArray, Labeling
from autocompress_envs.solver import Solver

STARTS = 3  # best plans from which planning begins
AFAR = 1.0  # standard deviation of the log prices of plans anywhere


@dataclass(frozen=True)
class Habits:
    """How a search shares its evaluations between learning and using what it knows.

    Attributes:
        first: evaluations of the explorer alone.
        every: one in so many evaluations is the explorer's, later on.
        optimism: standard deviations by which an uncertain plan is taken to be better than expected.
        cautious: share of later plans that are made with the harm which the unknown is expected to do; for the others
            it counts for nothing, which explores.
        afar: share of later plans whose walk begins at any plan, not at the best ones: what effects tell of holds
            everywhere, and descents from the best alone ended in a local optimum (ResNet-20, 2.4 bits).
    """

    first: int
    every: int
    optimism: float
    cautious: float
    afar: float


# What single labels do is known: better plans are near, and what is uncertain is mostly worse.
FROM_EFFECTS = Habits(first=0, every=12, optimism=0.0, cautious=0.4, afar=0.2)
FROM_ZERO = Habits(first=24, every=4, optimism=1.0, cautious=0.0, afar=0.0)
# A policy's plan is close to the best: less is to be explored.
FROM_PRICES = Habits(first=6, every=4, optimism=1.0, cautious=0.75, afar=0.0)


def search_with_model(task: Task, settings: SearchSettings, recorder: Recorder) -> NoReturn:
    """Search until the recorder ends it. The first evaluation is the foreseen plan, where effects are to be had; the
    explorer's first are the plan of the policy, where the task brings prices, and the solver's.

    Raises:
        InputError: the evaluation keeps no outputs.
    """
    if task.probabilities is None:
        raise InputError(
            "`agent` model-based needs an evaluation that keeps outputs, got none; "
            "choose another, such as posterior-ppo."
        )
    search = _Search(task, settings, recorder)
    search.foresee()
    while True:
        if search.is_time_to_look():
            search.look()
        elif search.is_explorers_turn():
            search.explore()
        else:
            search.plan()


class _Search:
    def __init__(self, task: Task, settings: SearchSettings, recorder: Recorder) -> None:
        assert task.probabilities is not None
        self._recorder = recorder
        self._rng = np.random.default_rng(settings.seed)
        self._solver = Solver(task.problem, task.limits)
        self._explorer = MixedExplorer(task.problem, self._rng, task.prices)
        self._first = [Proposal(np.zeros((len(task.problem.layers), 2)), "solver")]
        if task.prices is not None:
            self._first.insert(0, Proposal(task.prices, "policy"))
        self._proposal = self._first.pop(0)
        self._task, self._effects = task, None if task.effects is None else task.effects(None)
        self._habits = FROM_EFFECTS if self._effects else FROM_ZERO if task.prices is None else FROM_PRICES
        self._model = OutputModel(task.problem, task.probabilities, task.prices, self._effects)
        self._planner = Planner(task.problem, task.limits, self._model)
        self._known: set[bytes] = set()
        self._is_repeating = False
        self._looked_from: Evaluated | None = None
        self._looked_at = 0

    def foresee(self) -> None:
        """Evaluate the plan that is foreseen to be the best, where effects are to be had."""
        task = self._task
        if self._effects is not None:
            assert task.probabilities is not None
            labeling = foreseen(task.problem, task.limits, task.probabilities, self._effects, task.prices)
            self._evaluate(labeling, Proposal(self._proposal.prices, "model"))

    def is_time_to_look(self) -> bool:
        """Whether effects around the best plan are to be had, and as many evaluations went by as they take.

        Those around a plan never take more than those around the original: fewer classes, and only labels nearby.
        """
        best, effects = self._recorder.best, self._effects
        if effects is None or best is None or best is self._looked_from:
            return False
        waited = len(self._model) - self._looked_at if self._looked_from else math.inf
        return effects.passes <= waited and effects.passes < self._recorder.left

    def look(self) -> None:
        """Effects around the best plan, and the plan that they foresee."""
        best = self._recorder.best
        assert best is not None
        self._effects = self._around(best)
        self._recorder.spend(math.ceil(self._effects.passes))
        self._looked_from, self._looked_at = best, len(self._model)
        self._evaluate(self._foreseen_around(best), Proposal(self._proposal.prices, "model"))

    def _around(self, best: Evaluated) -> Effects:
        """Effects around the best plan, for the model too."""
        assert self._task.effects is not None
        effects = self._task.effects(best.labeling)
        assert effects is not None, "there are some around the original"
        self._model.move(effects, best.labeling)
        return effects

    def _foreseen_around(self, best: Evaluated) -> Labeling:
        task, shift = self._task, best.outcome.shift
        assert task.probabilities is not None
        assert self._effects is not None
        assert shift is not None
        known = Known(best.labeling, shift.astype(np.float64))
        return foreseen(task.problem, task.limits, task.probabilities, self._effects, task.prices, known)

    def is_explorers_turn(self) -> bool:
        """It passes where the explorer has just brought a plan seen before: the model knows one that is new."""
        if self._is_repeating:
            return False
        return len(self._model) < self._habits.first or len(self._model) % self._habits.every == 0

    def explore(self) -> None:
        """Evaluate what the explorer proposes."""
        proposal = self._proposal
        self._evaluate(self._solver.solve(*np.exp(proposal.prices).T), proposal)
        self._proposal = self._first.pop(0) if self._first else self._explorer.propose()

    def plan(self) -> None:
        """Evaluate the plan that the model holds most promising; the explorer's where the model has no new one."""
        labeling = self._most_promising()
        if labeling is None:
            self.explore()
        else:
            self._evaluate(labeling, Proposal(self._proposal.prices, "model"))

    def _most_promising(self) -> Labeling | None:
        model = self._model
        caution = 1.0 if self._rng.random() < self._habits.cautious else 0.0
        candidates = self._new(self._planner.walk(self._start(), caution))
        if not len(candidates):
            return None
        expected, deviation = model.predict(candidates, caution)
        optimism = self._habits.optimism if model.is_calibrated else 0.0
        return model.cells.decode(candidates[int((expected - optimism * deviation).argmin())])

    def _start(self) -> IntArray:
        """Of a walk: the best plan, or one of the best, or any."""
        if self._habits.afar and self._rng.random() < self._habits.afar:
            noise = self._rng.normal(0.0, AFAR, (len(self._task.problem.layers), 2))
            prices = noise if self._task.prices is None else noise + self._task.prices
            return self._model.cells.encode(self._solver.solve(*np.exp(prices).T))
        best = self._model.losses.argsort(kind="stable")[:STARTS]
        start: IntArray = self._model.codes[best[0] if self._rng.random() < 0.5 else self._rng.choice(best)]
        return start

    def _new(self, candidates: IntArray) -> IntArray:
        new: IntArray = candidates[[key not in self._known for key in map(_key, candidates)]]
        return new

    def _evaluate(self, labeling: Labeling, proposal: Proposal) -> None:
        best, evaluations = self._recorder.best, self._recorder.evaluations
        outcome = self._recorder(labeling)
        is_new, is_best = self._recorder.evaluations > evaluations, self._recorder.best is not best
        if is_new:
            self._model.add(labeling, outcome)
            self._known.add(_key(self._model.codes[-1]))
        self._is_repeating = not is_new
        is_explorers = proposal.origin != "model"  # the model's plans have no prices to climb from
        self._explorer.learn(
            Trial(proposal.prices, proposal.origin, labeling, outcome.kl, is_new, is_best and is_explorers)
        )


def _key(codes: IntArray) -> bytes:
    return codes.astype(np.int64).tobytes()
