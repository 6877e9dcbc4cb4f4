"""The last choice: of the plans that led a search one after the other, the one that is best on unused samples.

A search compares hundreds of plans on the same samples, so its winner is in part the plan that these flatter, the more
so the longer it looks. The plans that it led by on its way are few, and none of them was found on other samples: their
order there is honest, as where training is stopped early.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autocompress.evaluation import Evaluator
from autocompress.job.options import SearchRequest
from autocompress.job.prepare import Job
from autocompress.progress import Progress
from autocompress.searchers.base import Evaluated
from autocompress_envs.rewards import RewardContext, compute


@dataclass(frozen=True)
class Selection:
    """What was chosen.

    Attributes:
        chosen: one of the leaders, with its outcome on the search split.
        leaders: number of leaders.
        samples: number of unused samples that they were compared on; 0 where the search split decided.
    """

    chosen: Evaluated
    leaders: int
    samples: int

    def __str__(self) -> str:
        if not self.samples:
            return ""
        place = f"of {self.leaders} plans that led, that of evaluation {self.chosen.index + 1}"
        return f"; {place} is the best on {self.samples:,} unused samples"


def select(
    job: Job,
    evaluator: Evaluator,
    asked: SearchRequest,
    leaders: Sequence[Evaluated],
    limits: Mapping[str, int],
    watcher: Progress,
) -> Selection:
    """The best of the leaders of a search on samples of neither split.

    The last leader, the best on the search split, is taken without a look where there is no other, where
    `selection_samples` is 0, and where fewer unused samples are left than it wants and than the search split has.

    Args:
        job: the network that was searched.
        evaluator: measured the plans on the search split.
        asked: the search that was asked for.
        leaders: the plans that were the best so far at some time, in that order; at least one.
        limits: absolute upper bounds by resource.
        watcher: observer that is told of stages, notes and evaluations.
    """
    wanted = asked.config.selection_samples
    unused = job.data.unused(wanted)
    enough = min(wanted, len(job.data.search_indices))
    if len(leaders) == 1 or not unused or len(unused) < enough:
        return Selection(leaders[-1], len(leaders), 0)
    watcher.stage(f"selection: {len(leaders)} plans that led, on {len(unused):,} unused samples")
    reward = _reward_on(unused, job, evaluator, asked, limits)
    chosen = max(reversed(leaders), key=reward)  # of equals, the best on the search split
    return Selection(chosen, len(leaders), len(unused))


def _reward_on(
    indices: Sequence[int], job: Job, evaluator: Evaluator, asked: SearchRequest, limits: Mapping[str, int]
) -> Callable[[Evaluated], float]:
    fresh = Evaluator(
        job.base,
        job.network,
        job.menus,
        *job.data.train.load(indices),
        reference=job.model,
        device=asked.config.device,
        dtype=evaluator.dtype,
        batch_size=evaluator.batch_size,
    )
    context = RewardContext(0.0, job.problem.original(), limits)  # an original's accuracy moves all rewards alike
    return lambda leader: compute(asked.settings.reward, fresh(leader.labeling), context)
