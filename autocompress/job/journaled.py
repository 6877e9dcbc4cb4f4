"""Between a search and its run folder: answers from the journal, times, writes, and tells whoever watches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

from autocompress.plan import Plan
from autocompress.progress import Progress, Step
from autocompress.run.folder import RunFolder
from autocompress.run.journal import Entry, Indices
from autocompress.run.names import PLAN
from autocompress.run.shifts import ShiftFile
from autocompress.searchers.base import Evaluated
from autocompress_envs.problem import Labeling, Outcome


class JournaledEvaluation:
    """The `evaluate` and the `observe` of a search that is kept in a run folder.

    A plan that the journal of a resumed run knows costs nothing. Where the search takes another way than the journal,
    because another machine rounds otherwise, it goes on from there, and still knows every plan that the journal held.
    `plan.yaml` is the best plan at any moment; a replay leaves it alone until it comes to the journal's best.

    Args:
        folder: folder of the run.
        measure: measures a plan that the journal doesn't know.
        make_plan: gives the plan of a labelling.
        shifts: changes of the outputs by the journal's plans; a plan without a record is measured again.
        limits: absolute upper bounds by resource.
        total: evaluations at most.
        progress: observer that is told of every evaluated plan.
    """

    def __init__(
        self,
        folder: RunFolder,
        measure: Callable[[Labeling], Outcome],
        make_plan: Callable[[Labeling], Plan],
        shifts: ShiftFile,
        limits: Mapping[str, int],
        total: int,
        progress: Progress,
    ) -> None:
        self._folder = folder
        self._measure = measure
        self._make_plan = make_plan
        self._shifts = shifts
        self._limits = limits
        self._total = total
        self._progress = progress
        self._known = {entry.labels: entry for entry in folder.replayed}
        self._before = {entry.labels: entry for entry in folder.before}
        self._replayed_best = max((entry.index for entry in folder.replayed if entry.best), default=0)
        self._floor = _best_reward(folder.before)  # that a plan must have to take the place of one that is on disk
        self._seconds = 0.0
        self._best: Evaluated | None = None

    def evaluate(self, labeling: Labeling) -> Outcome:
        """From the journal where it stands there, else measured."""
        started = time.perf_counter()
        indices = _indices(labeling)
        known = self._outcome(self._known.get(indices), self._shifts)
        if known is None and indices in self._before:
            with self._shifts.before() as shifts:
                known = self._outcome(self._before[indices], shifts)
        if known is not None:
            return known
        outcome = self._measure(labeling)
        self._seconds = time.perf_counter() - started
        return outcome

    @staticmethod
    def _outcome(entry: Entry | None, shifts: ShiftFile) -> Outcome | None:
        """The outcome of an entry; None where there is none, or its shift is gone or damaged."""
        shift = None if entry is None else shifts.read(entry.index, entry.shift)
        if entry is None or shift is None:
            return None
        return Outcome(entry.kl, entry.accuracy, entry.agreement, dict(entry.resources), shift)

    def _depart(self, index: int) -> None:
        """Take another way than the journal from an evaluation on."""
        self._progress.note(
            f"the search takes another way than before from evaluation {index} on, as on another machine or by other "
            f"versions; it goes on and knows the {len(self._folder.replayed)} plans of the journal"
        )
        self._floor = max(self._floor, _best_reward(self._folder.replayed))
        self._replayed_best = min(self._replayed_best, index)
        self._shifts.depart(index)
        self._folder.depart(index)
        self._known = {entry.labels: entry for entry in self._folder.replayed}
        self._before = {entry.labels: entry for entry in self._folder.before}

    def observe(self, evaluated: Evaluated) -> None:
        """Write one evaluated plan down and tell of it."""
        outcome = evaluated.outcome
        if self._folder.departs(evaluated.index, _indices(evaluated.labeling)):
            self._depart(evaluated.index)
        checksum = None
        if outcome.shift is not None:  # before the journal, which says how many there are
            checksum = self._shifts.write(evaluated.index, outcome.shift)
        self._folder.append(
            Entry(
                evaluated.index,
                _indices(evaluated.labeling),
                outcome.kl,
                outcome.accuracy,
                outcome.agreement,
                outcome.resources,
                evaluated.reward,
                evaluated.is_best,
                round(self._seconds, 4),
                checksum,
                evaluated.steps or None,
            )
        )
        if evaluated.is_best:
            self._best = evaluated
            if evaluated.index >= self._replayed_best and evaluated.reward >= self._floor:
                self._folder.write(PLAN, self._make_plan(evaluated.labeling).to_yaml())
        self._progress.step(step_of(evaluated, self._best, self._total, self._limits))


def step_of(evaluated: Evaluated, best: Evaluated | None, total: int, limits: Mapping[str, int]) -> Step:
    """How a search of at most `total` evaluations stands; a search may begin with plans beyond the limits, no best."""
    shown = (best or evaluated).outcome
    return Step(evaluated.used - 1, total, evaluated.is_best, shown.kl, shown.accuracy, shown.resources, limits)


def _best_reward(entries: Sequence[Entry]) -> float:
    return max((entry.reward for entry in entries if entry.best), default=-math.inf)


def _indices(labeling: Labeling) -> Indices:
    sparsity, weight_bits, activation_bits = (
        tuple(map(int, indices)) for indices in (labeling.sparsity, labeling.weight_bits, labeling.activation_bits)
    )
    return sparsity, weight_bits, activation_bits
