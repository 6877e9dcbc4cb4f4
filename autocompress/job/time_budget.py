"""Budgets of time that hold: predicted times lead the search, and only a plan whose file was timed is accepted.

Predictions are a few per cent off, and a search finds the plans whose time is predicted too short. So before the
search, plans near the limit are timed and the predictions are corrected there, with a margin for what is left; after
it, the leaders' files are timed, and one is accepted where the upper bound of its interval is within the limit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autocompress.errors import InputError
from autocompress.job.kernel_times import scaled, timing_key
from autocompress.job.prepare import Job
from autocompress.job.timing import Timer
from autocompress.progress import Progress
from autocompress.searchers.simple_plans import fitted
from autocompress.targets.timing import LEADER, VARIANT, PairedTiming, TimeLimit
from autocompress_envs.problem import Labeling
from autocompress_envs.solver import InfeasibleBudgetError, Solver

LATENCY = "latency"
ROUNDS = 4  # most corrections before the search
NEAR = 3  # plans that are timed in each
LEAST_MARGIN = 0.015  # by which predictions stay below the limit
MOST_MARGIN = 0.1
CLOSE = 0.01  # relative correction at which the next round is left out
ROOM = 0.99  # share of the limit that a plan's file may use before the final one is written, which is timed anew
TRIES = 8  # plans that are timed after the search, at most
STEP = 0.97  # by which the limit is tightened where no leader is accepted
_SPREAD = 0.7  # of the random weights that give different plans near the limit


@dataclass(frozen=True)
class TimeBudget:
    """A limit of time under which a job is searched.

    Attributes:
        limit: the limit, as it was asked for.
        nanoseconds: the same in nanoseconds, by the original's time when the variants were timed.
        timer: times plans of the job.
    """

    limit: TimeLimit
    nanoseconds: int
    timer: Timer

    def accepts(self, labeling: Labeling) -> bool:
        """Whether a plan's file is within the limit, with a little room for the next timing."""
        return self.used(labeling) <= ROOM

    def used(self, labeling: Labeling) -> float:
        """Upper bound of the time of a plan's file in units of the limit."""
        return self.limit.used(self.timer.time(labeling, LEADER)).high


def within_time(
    job: Job, limit: TimeLimit, limits: Mapping[str, int], watcher: Progress
) -> tuple[Job, dict[str, int], TimeBudget]:
    """The job with predictions corrected near the limit, limits with a margin for the search, and the budget of time.

    The corrections are kept beside the menus, so that a resumed search has the same.

    Args:
        job: network with its menus, which was timed (`kernel_times.timed`).
        limit: limit of time.
        limits: absolute upper bounds by resource, of which one is `latency`.
        watcher: observer that is told of stages and notes.

    Raises:
        InputError: no plan is fast enough; the message names the time of the fastest.
    """
    timer, nanoseconds = Timer(job, limit), limits[LATENCY]
    digest = hashlib.sha256(json.dumps([timing_key(job, timer, limit), dict(limits), limit.data()]).encode())
    found = job.menus.store.tensors(
        f"near-{digest.hexdigest()[:16]}", lambda: _corrections(job, timer, limit, limits, watcher)
    )
    factor, margin = float(found["factor"].item()), float(found["margin"].item())
    watcher.note(
        f"latency: near the limit, predictions are corrected by a factor of {factor:.3f}, and the search stays "
        f"{100 * margin:.1f} % below it"
    )
    corrected = scaled(job, factor)
    return corrected, _inner(limits, margin), TimeBudget(limit, nanoseconds, Timer(corrected, limit))


def _inner(limits: Mapping[str, int], margin: float) -> dict[str, int]:
    """The limits with a margin of time."""
    return {**limits, LATENCY: max(1, int(limits[LATENCY] * (1 - margin)))}


def _corrections(
    job: Job, timer: Timer, limit: TimeLimit, limits: Mapping[str, int], watcher: Progress
) -> dict[str, Tensor]:
    """`factor` and `margin`, from plans near the limit that are timed."""
    watcher.stage("timing plans near the limit of time")
    factor, margin, ratios = 1.0, LEAST_MARGIN, []
    for _ in range(ROUNDS):
        current = scaled(job, factor)
        plans = _near(current, _inner(limits, margin))
        if not plans:
            factor = min(factor, _fastest_factor(job, timer, limit, limits))
            continue
        nanoseconds = [limits[LATENCY] * limit.used(timer.time(plan, VARIANT)).median for plan in plans]
        predicted = [job.problem.resources(plan)[LATENCY] for plan in plans]
        ratios = [measured / each for measured, each in zip(nanoseconds, predicted, strict=True)]
        before, factor = factor, float(np.median(ratios))
        margin = float(np.clip(max(ratios) / factor - 1, LEAST_MARGIN, MOST_MARGIN))
        if abs(factor / before - 1) <= CLOSE:
            break
    if not _near(scaled(job, factor), _inner(limits, margin)):
        factor = min(factor, _fastest_factor(job, timer, limit, limits))
        margin = LEAST_MARGIN
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in (("factor", factor), ("margin", margin))}


def _near(job: Job, limits: Mapping[str, int]) -> list[Labeling]:
    """Plans that use the limits up: the solver's, and those for random weights; none where no plan meets them."""
    try:
        solver = Solver(job.problem, limits)
    except InfeasibleBudgetError:
        return []
    rng = np.random.default_rng(0)
    plans = [solver.solve()]
    for _ in range(NEAR - 1):
        weights = np.exp(_SPREAD * rng.standard_normal((2, len(job.problem.layers))))
        plans.append(solver.solve(*weights))
    return list({plan.key(): plan for plan in plans}.values())


def _fastest_factor(job: Job, timer: Timer, limit: TimeLimit, limits: Mapping[str, int]) -> float:
    """The factor that makes the fastest plan's prediction what was measured.

    Raises:
        InputError: that is above the limit.
    """
    plan = fastest(job, limits)
    timing = timer.time(plan, LEADER)
    used = limit.used(timing)
    if used.high > ROOM:
        raise InputError(
            f"`budget` of latency must be within reach, got {_asked(limit)}; the fastest plan found takes "
            f"{_taken(limit, timing)}. Raise it, or allow more sparsity or other bits."
        )
    return used.high * limits[LATENCY] / job.problem.resources(plan)[LATENCY] * (1 - 2 * LEAST_MARGIN)


def fastest(job: Job, limits: Mapping[str, int]) -> Labeling:
    """The plan of least predicted time within the other limits.

    Raises:
        InputError: no plan meets the other limits.
    """
    others = {name: amount for name, amount in limits.items() if name != LATENCY}
    low, high = 1, max(2, 2 * job.problem.resources(_unpruned(job))[LATENCY])
    found = None
    while high - low > max(1, high // 500):
        middle = (low + high) // 2
        try:
            found = Solver(job.problem, {**others, LATENCY: middle}).reach.cheapest
            high = middle
        except InfeasibleBudgetError:
            low = middle
    if found is None:
        raise InputError("`budget` must be within reach, got limits that no plan meets together; raise one of them.")
    return found


def _unpruned(job: Job) -> Labeling:
    none = np.zeros(len(job.problem.layers), dtype=np.int64)
    return Labeling(none, none, none)


def _asked(limit: TimeLimit) -> str:
    return f"{limit.share:g}" if limit.share is not None else f"{1e3 * (limit.seconds or 0):g} ms"


def _taken(limit: TimeLimit, timing: PairedTiming) -> str:
    """The upper bound of a timing, in the limit's unit, rounded up."""
    if limit.share is not None:
        return f"{np.ceil(1e4 * timing.ratio.high - 1e-6) / 1e4:.4f} of the original's time"
    return f"{np.ceil(1e6 * timing.compressed.median.high - 1e-6) / 1e3:g} ms"


def accepted(
    job: Job,
    budget: TimeBudget,
    candidates: Sequence[Labeling],
    limits: Mapping[str, int],
    watcher: Progress,
    loss: Callable[[Labeling], float] | None = None,
) -> Labeling:
    """The first of the candidates whose file is within the limit; else the best plan under a tighter one.

    Args:
        job: network with its menus and kernels.
        budget: the limit of time.
        candidates: plans, the best first.
        limits: limits that the search had.
        watcher: observer that is told of stages and notes.
        loss: function that measures what a plan loses, which decides under a tighter limit; None: the first candidate,
            made to fit, is taken there.

    Raises:
        InputError: none was within the limit in so many tries.
    """
    watcher.stage("timing the leading plans' files")
    tried = candidates[:TRIES]
    used = []
    for number, labeling in enumerate(tried):
        used.append(budget.used(labeling))
        if used[-1] <= ROOM:
            if number:
                watcher.note(f"{number} better plans took longer than the limit of time, so they were left out")
            return labeling
    watcher.note(
        f"none of the {len(tried)} best plans is within the limit of time, the best takes {used[0]:.3f} of it; "
        "tighter ones follow"
    )
    measured = used[0] * budget.nanoseconds / job.problem.resources(tried[0])[LATENCY]  # in units of the prediction
    tightest = min(limits[LATENCY], int(ROOM * budget.nanoseconds / measured))
    for plans in tighter(job, {**limits, LATENCY: tightest}, tried[0]):
        labeling = plans[0] if loss is None else min(plans, key=loss)
        if budget.accepts(labeling):
            return labeling
    timing = budget.timer.time(fastest(job, limits), LEADER)
    raise InputError(
        f"`budget` of latency must be within reach, got {_asked(budget.limit)}; no plan's file was within it in "
        f"{2 * TRIES} tries, and the fastest takes {_taken(budget.limit, timing)}. Raise it."
    )


def tighter(job: Job, limits: Mapping[str, int], leader: Labeling) -> Iterator[list[Labeling]]:
    """Plans under limits of time, these first and then tighter and tighter ones; it ends where no plan is left.

    Under each there are two: the best plan, made to fit by single changes, and the solver's.

    Args:
        job: network with its menus and kernels.
        limits: absolute upper bounds by resource, of which one is `latency`.
        leader: the best plan that is known.
    """
    for step in range(TRIES):
        stepped = {**limits, LATENCY: max(1, int(limits[LATENCY] * STEP**step))}
        try:
            solved = Solver(job.problem, stepped).solve()
        except InfeasibleBudgetError:
            return
        yield [*fitted(job.problem, stepped, [leader]), solved]
