"""The least of a resource at a loss that is tolerated: bisection over budgets, each plan's network tested.

A network passes where it loses no more than is tolerated with confidence: the upper bound of a one-sided test on
samples that no search, fit or selection has seen. The tests share an error of 5 %, so that all of them together are
wrong that often at most.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autocompress.budget import ABSOLUTE, RESOURCES, Budget
from autocompress.config import Config
from autocompress.errors import InputError, unknown_name
from autocompress.execute.tuning import FineTuning
from autocompress.files import write_atomically
from autocompress.job.front import FrontPoint, Shared, episodes_of_a_point, finished_point, span
from autocompress.job.held_out import LossTest
from autocompress.job.options import SearchRequest
from autocompress.job.prepare import Job
from autocompress.progress import Progress
from autocompress.run.names import TOLERANCE
from autocompress.targets.timing import TimeLimit
from autocompress.version import versions

TRIES = 6  # most budgets that are tried
ERROR = 0.05  # probability that a network that passes loses more than is tolerated, of all tests together
CLOSE = 1.03  # ratio of a budget that passes to one that does not, at which the bisection ends


@dataclass(frozen=True)
class Try:
    """One budget that was tried.

    Attributes:
        point: its run.
        bound: upper bound of the loss: a drop of the accuracy, or nats.
        passed: whether that is within what is tolerated.
        samples: number of held-out samples that it was tested on.
    """

    point: FrontPoint
    bound: float
    passed: bool
    samples: int

    def data(self) -> dict[str, Any]:
        """The try as plain data."""
        return {**self.point.data(), "bound": self.bound, "passed": self.passed, "tested_on": self.samples}


@dataclass(frozen=True)
class Smallest:
    """The least of a resource at a loss that is tolerated.

    Attributes:
        resource: resource that was minimised.
        tolerated: largest loss: a drop of the accuracy (`max_drop`), or nats (`max_kl`).
        measure: `max_drop` or `max_kl`.
        samples: number of held-out samples that there are for the test.
        tries: budgets that were tried, in that order.
        chosen: the smallest that passed.
    """

    resource: str
    tolerated: float
    measure: str
    samples: int
    tries: tuple[Try, ...]
    chosen: Try

    def data(self) -> dict[str, Any]:
        """The result as plain data, ready for JSON."""
        fields = ("resource", "tolerated", "measure", "samples")
        return {
            **{name: getattr(self, name) for name in fields},
            "confidence": 1 - ERROR,
            "chosen": self.chosen.data(),
            "tries": [each.data() for each in self.tries],
        }


def check_tolerance(config: Config) -> None:
    """Raise InputError where the options of a tolerance contradict each other."""
    if (config.max_drop is None) == (config.max_kl is None):
        got = "none" if config.max_drop is None else "both"
        raise InputError(f"`max_drop` or `max_kl` must go with `minimize`, and one of them only, got {got}.")
    if config.minimize is None:
        raise InputError("`minimize` must be given with `max_drop` and `max_kl`, such as --minimize size.")
    if config.minimize not in RESOURCES:
        raise unknown_name("resource", config.minimize, RESOURCES)
    if config.budget is not None and Budget.parse(config.budget).of(config.minimize) is not None:
        raise InputError(f"`minimize` must be another resource than the budget's, got {config.minimize} in both.")
    if config.stages > 1 or config.l1_epochs:
        raise InputError("`stages` and `l1_epochs` must be left out with `max_drop` and `max_kl`.")


def smallest(job: Job, asked: SearchRequest, tuning: FineTuning | None, path: Path, watcher: Progress) -> Smallest:
    """Find the least of a resource at a loss that is tolerated.

    Args:
        job: the network with its menus; where time counts, it was timed. Its data keeps the samples of the test out.
        asked: what every search is asked for; its budget holds for all.
        tuning: settings of fine-tuning; None: none.
        path: folder of the result, which this process alone writes; every try is a run in it.
        watcher: observer that is told of stages, notes and evaluations.

    Raises:
        InputError: even the mildest plan loses more.
    """
    config = asked.config
    assert config.minimize is not None, "options are checked"
    test = LossTest(job, config, job.data.kept_out, ERROR / TRIES)
    tries: list[Try] = []
    attempt = _attempts(job, asked, tuning, path, watcher, test)
    least, most = span(config.minimize, job)
    failing, passing = float(least), float(most)
    while _may_go_on(tries) and passing / failing > CLOSE:
        tries.append(attempt(math.sqrt(failing * passing), len(tries)))
        if tries[-1].passed:
            passing = min(passing, tries[-1].point.amount[config.minimize])
        else:
            failing = math.sqrt(failing * passing)
    if not any(each.passed for each in tries):
        tries.append(attempt(float(most), len(tries)))
    passed = [each for each in tries if each.passed]
    name = "max_drop" if config.max_drop is not None else "max_kl"
    if not passed:
        raise InputError(
            f"`{name}` must be within reach, got {test.tolerated:g}; the mildest plan may lose up to "
            f"{math.ceil(1e4 * tries[-1].bound) / 1e4:g} on {len(test.indices):,} held-out samples. Raise it, allow "
            "more bits, or fine-tune."
        )
    chosen = min(passed, key=lambda each: each.point.amount[config.minimize or ""])
    found = Smallest(config.minimize, test.tolerated, name, len(test.indices), tuple(tries), chosen)
    write_atomically(path / TOLERANCE, json.dumps({**found.data(), "versions": versions()}, indent=1) + "\n")
    return found


def _may_go_on(tries: Sequence[Try]) -> bool:
    """Whether another budget may be tried; the last try is the mildest plan's until one has passed."""
    return len(tries) < TRIES - (not any(each.passed for each in tries))


def _attempts(
    job: Job, asked: SearchRequest, tuning: FineTuning | None, path: Path, watcher: Progress, test: LossTest
) -> Callable[[float, int], Try]:
    """A function that searches under a budget, makes the plan real and tests it."""
    config = asked.config
    resource = config.minimize or ""
    share = Shared(job, config, [path / f"try-{number + 1}" for number in range(TRIES)], watcher)
    episodes = episodes_of_a_point(config.episodes, TRIES)

    def attempt(amount: float, number: int) -> Try:
        own, request = _budget(resource, amount, job), asked
        if resource == "latency":
            limit = TimeLimit(amount / job.original["latency"], None, config.batch, config.threads)
            request = replace(asked, time=limit)
        whole = ",".join(filter(None, (own, config.budget)))
        watcher.stage(f"try {number + 1} of at most {TRIES}: {whole}")
        folder = path / f"try-{number + 1}"
        point = finished_point(job, request, tuning, (own, whole), folder, episodes, share, watcher)
        loss = test(point.run_folder)
        watcher.note(
            f"{whole}: loses at most {loss.bound:.4f} with confidence ({loss.samples:,} samples), {test.tolerated:g} "
            "are tolerated"
        )
        return Try(point, loss.bound, loss.bound <= test.tolerated, loss.samples)

    return attempt


def _budget(resource: str, amount: float, job: Job) -> str:
    """The text of a budget."""
    if resource == "latency":
        return f"latency={amount / job.original['latency']:.4f}"
    return f"{resource}={int(amount)}{ABSOLUTE.get(resource, '')}"
