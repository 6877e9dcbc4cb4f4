"""The last choice: of the plans that led a search and the simple ones, the one that is best on unused samples.

A search compares hundreds of plans on the same samples, so its winner is in part the plan that these flatter, the more
so the longer it looks. The plans that it led by on its way are few, and none of them was found on other samples: their
order there is honest, as where training is stopped early. The simple plans (`searchers.simple_plans`) stand beside
them, so that no search ends worse than plain 4 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from autocompress.evaluation import Evaluator
from autocompress.job.options import SearchRequest
from autocompress.job.prepare import Job
from autocompress.job.time_budget import TimeBudget, accepted
from autocompress.progress import Progress
from autocompress.searchers.base import Evaluated
from autocompress_envs.problem import Labeling, Outcome
from autocompress_envs.problem.tables import is_within
from autocompress_envs.rewards import RewardContext, compute


class Candidates:
    """The evaluated plans of a search that may be its result.

    Args:
        simple: the simple plans; empty where the search evaluates none on purpose.
        limits: absolute upper bounds by resource.

    Attributes:
        leaders: the plans that were the best so far at some time, in that order.
        simple: the simple plans within the limits that never led, as they were measured.
    """

    def __init__(self, simple: Iterable[Labeling], limits: Mapping[str, int]) -> None:
        self._simple_keys = {labeling.key() for labeling in simple}
        self._limits = limits
        self.leaders: list[Evaluated] = []
        self.simple: list[Evaluated] = []

    def observe(self, evaluated: Evaluated) -> None:
        """Keep an evaluated plan where it may be the result."""
        if evaluated.is_best:
            self.leaders.append(evaluated)
        elif self.is_simple(evaluated) and is_within(evaluated.outcome.resources, self._limits):
            self.simple.append(evaluated)

    def is_simple(self, evaluated: Evaluated) -> bool:
        """Whether an evaluated plan is a simple one, whether it led or not."""
        return evaluated.labeling.key() in self._simple_keys


@dataclass(frozen=True)
class Selection:
    """What was chosen.

    Attributes:
        chosen: one of the candidates, with its outcome on the search split.
        leaders: number of plans that led.
        samples: number of unused samples that they were compared on; 0 where the search split decided.
        simple: number of simple plans that never led, and were compared as well. Default: 0.
        is_simple: whether the chosen plan is a simple one. Default: False.
        ranked: all candidates, the best first. Default: none.
        is_tighter: whether no candidate was fast enough, so that the best plan under a tighter limit of time was
            taken. Default: False.
    """

    chosen: Evaluated
    leaders: int
    samples: int
    simple: int = 0
    is_simple: bool = False
    ranked: tuple[Evaluated, ...] = ()
    is_tighter: bool = False

    def __str__(self) -> str:
        if self.is_tighter:
            return "; none of the best plans was fast enough, so the best plan under a tighter limit was taken"
        place = f"that of evaluation {self.chosen.index + 1}{', a simple plan,' if self.is_simple else ''}"
        if self.samples:
            compared = _compared(self.leaders, self.simple)
            return f"; of {compared}, {place} is the best on {self.samples:,} unused samples"
        return f"; {place} is the best" if self.is_simple else ""


def _compared(leaders: int, simple: int) -> str:
    """The number of candidates in words.

    >>> _compared(3, 0), _compared(1, 2)
    ('3 plans that led', '1 plan that led and 2 simple plans')
    """
    words = f"{leaders} plan{'s' if leaders != 1 else ''} that led"
    return f"{words} and {simple} simple plan{'s' if simple != 1 else ''}" if simple else words


def select(
    job: Job,
    evaluator: Evaluator,
    asked: SearchRequest,
    candidates: Candidates,
    limits: Mapping[str, int],
    watcher: Progress,
) -> Selection:
    """The best of the candidates of a search on samples of neither split.

    The last leader, the best on the search split, is taken without a look where there is no other candidate, where
    `selection_samples` is 0, and where fewer unused samples are left than it wants and than the search split has.

    Args:
        job: the network that was searched.
        evaluator: measured the plans on the search split.
        asked: the search that was asked for.
        candidates: the plans that led, at least one, and the simple plans that were evaluated.
        limits: absolute upper bounds by resource.
        watcher: observer that is told of stages, notes and evaluations.
    """
    leaders, simple = candidates.leaders, candidates.simple
    wanted = asked.config.selection_samples
    unused = job.data.unused(wanted)
    enough = min(wanted, len(job.data.search_indices))
    if len(leaders) + len(simple) == 1 or not unused or len(unused) < enough:
        as_found = (*reversed(leaders), *simple)
        return Selection(leaders[-1], len(leaders), 0, 0, candidates.is_simple(leaders[-1]), as_found)
    watcher.stage(f"selection: {_compared(len(leaders), len(simple))}, on {len(unused):,} unused samples")
    reward = _reward_on(unused, job, evaluator, asked, limits)
    ranked = sorted([*reversed(leaders), *simple], key=reward, reverse=True)  # of equals, the best on the search split
    simplest = candidates.is_simple(ranked[0])
    return Selection(ranked[0], len(leaders), len(unused), len(simple), simplest, tuple(ranked))


def counted(evaluator: Evaluator, job: Job) -> Callable[[Labeling], Outcome]:
    """Measures plans as an evaluator does, with the resources of this job.

    The evaluator may serve other searches too, and predictions of time are corrected near the limit of each.
    """
    return lambda labeling: replace(evaluator(labeling), resources=job.problem.resources(labeling))


def fast_enough(
    selection: Selection,
    job: Job,
    evaluator: Evaluator,
    candidates: Candidates,
    budget: TimeBudget,
    limits: Mapping[str, int],
    watcher: Progress,
) -> Selection:
    """The selection with the best candidate whose file is within the limit of time.

    Args:
        selection: candidates in their order.
        job: the network that was searched.
        evaluator: measures the plan that is taken where no candidate is fast enough.
        candidates: the plans that may be the result.
        budget: the limit of time.
        limits: limits that the search had.
        watcher: observer that is told of stages, notes and evaluations.

    Raises:
        InputError: no plan is fast enough.
    """
    ranked = {each.labeling.key(): each for each in reversed(selection.ranked)}
    plans = [each.labeling for each in selection.ranked]
    measure = counted(evaluator, job)
    labeling = accepted(job, budget, plans, limits, watcher, lambda plan: measure(plan).kl)
    chosen = ranked.get(labeling.key())
    if chosen is not None:
        return replace(selection, chosen=chosen, is_simple=candidates.is_simple(chosen))
    chosen = replace(selection.chosen, labeling=labeling, outcome=measure(labeling), is_best=False)
    return replace(selection, chosen=chosen, is_simple=False, is_tighter=True)


def _reward_on(
    indices: Sequence[int], job: Job, evaluator: Evaluator, asked: SearchRequest, limits: Mapping[str, int]
) -> Callable[[Evaluated], float]:
    inputs, labels = job.data.train.load(indices)
    fresh = Evaluator(
        job.base,
        job.network,
        job.menus,
        inputs,
        labels,
        reference=job.outputs(inputs),
        renormalized_on=job.inputs,
        device=asked.config.device,
        dtype=evaluator.dtype,
        batch_size=evaluator.batch_size,
        memory=job.memory,
    )
    context = RewardContext(0.0, job.problem.original(), limits)  # an original's accuracy moves all rewards alike
    return lambda leader: compute(asked.settings.reward, fresh(leader.labeling), context)
