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
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor, nn

from autocompress.budget import ABSOLUTE, RESOURCES, Budget
from autocompress.config import Config
from autocompress.data import Data
from autocompress.errors import InputError, unknown_name
from autocompress.evaluation import measured_at_once
from autocompress.evaluation.batches import running
from autocompress.evaluation.measure import Kept
from autocompress.execute.finetune import FineTuning
from autocompress.files import write_atomically
from autocompress.job.front import FrontPoint, Shared, episodes_of_a_point, finished_point, span
from autocompress.job.options import SearchRequest
from autocompress.job.prepare import Job
from autocompress.network.interface import raw
from autocompress.progress import Progress
from autocompress.run.names import TOLERANCE
from autocompress.targets.loading import load
from autocompress.targets.timing import TimeLimit
from autocompress.version import versions
from autocompress_envs.problem import FloatArray

TRIES = 6  # most budgets that are tried
ERROR = 0.05  # probability that a network that passes loses more than is tolerated, of all tests together
SAMPLES = 4_000  # most samples of the test
LEAST_SAMPLES = 100
CLOSE = 1.03  # ratio of a budget that passes to one that does not, at which the bisection ends
_RESAMPLES = 4_000


@dataclass(frozen=True)
class Try:
    """One budget that was tried.

    Attributes:
        point: its run.
        bound: upper bound of the loss: a drop of the accuracy, or nats.
        passed: whether that is within what is tolerated.
    """

    point: FrontPoint
    bound: float
    passed: bool

    def data(self) -> dict[str, Any]:
        """The try as plain data."""
        return {**self.point.data(), "bound": self.bound, "passed": self.passed}


@dataclass(frozen=True)
class Smallest:
    """The least of a resource at a loss that is tolerated.

    Attributes:
        resource: resource that was minimised.
        tolerated: largest loss: a drop of the accuracy (`max_drop`), or nats (`max_kl`).
        measure: `max_drop` or `max_kl`.
        samples: number of held-out samples of the test.
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


def held_out(config: Config, data: Data) -> tuple[int, ...]:
    """Indices of the training samples of the test: neither searched, fitted nor selected on.

    Raises:
        InputError: there are too few, or no labels for a drop of the accuracy.
    """
    if config.max_drop is not None and not data.classes:
        raise InputError(
            f"`max_drop` needs labelled classes, got {data.name} without; pass --max-kl, which needs none, instead."
        )
    found = data.unused(config.selection_samples + SAMPLES)[config.selection_samples :]
    if len(found) < LEAST_SAMPLES:
        raise InputError(
            f"`data` must have at least {LEAST_SAMPLES} training samples beside the splits and `selection_samples`, "
            f"got {len(found)}; pass --selection-samples 0, or lower --search-samples."
        )
    return found


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
    test = _Test(job, config, job.data.kept_out)
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
    job: Job, asked: SearchRequest, tuning: FineTuning | None, path: Path, watcher: Progress, test: _Test
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
        bound = test(point.run_folder)
        watcher.note(f"{whole}: loses at most {bound:.4f} with confidence, {test.tolerated:g} are tolerated")
        return Try(point, bound, bound <= test.tolerated)

    return attempt


def _budget(resource: str, amount: float, job: Job) -> str:
    """The text of a budget."""
    if resource == "latency":
        return f"latency={amount / job.original['latency']:.4f}"
    return f"{resource}={int(amount)}{ABSOLUTE.get(resource, '')}"


class _Test:
    """The test of a finished network on held-out samples.

    Args:
        job: the original and its data.
        config: what is tolerated.
        indices: training samples of the test.
    """

    def __init__(self, job: Job, config: Config, indices: Sequence[int]) -> None:
        self._job, self.indices = job, indices
        self._is_drop = config.max_drop is not None
        if self._is_drop and not job.reading.of_classes:
            raise InputError(
                f"`max_drop` needs a task with classes, got {job.reading.task.name}; pass --max-kl instead."
            )
        self.tolerated = float(config.max_drop if config.max_drop is not None else config.max_kl or 0.0)
        self._check_count()
        self._inputs, self._labels = job.data.train.load(list(indices))

    def _check_count(self) -> None:
        """Raise InputError where so few samples could not show so small a drop, were there none at all."""
        z, count = float(norm.ppf(1 - ERROR / TRIES)), len(self.indices)
        least = z / (count + 2)  # `drop_bound` of equal answers
        if self._is_drop and least > self.tolerated:
            raise InputError(
                f"`max_drop` must be at least {math.ceil(1e4 * least) / 1e4:g} with {count:,} held-out samples, got "
                f"{self.tolerated:g}; raise it, or hold out {math.ceil(z / self.tolerated) - 2:,} samples: give more "
                "training data, pass --selection-samples 0, or lower --search-samples."
            )

    def __call__(self, run: Path) -> float:
        """Upper bound of what the network of a run loses."""
        compressed = self._outputs(load(run))
        if self._is_drop:
            assert self._labels is not None, "checked before"
            return drop_bound(self._original, compressed, self._labels, ERROR / TRIES)
        return mean_bound(divergences(self._original, compressed), ERROR / TRIES)

    @cached_property
    def _original(self) -> Tensor:
        """The original's outputs, the same for every try."""
        return self._outputs(self._job.model)

    def _outputs(self, network: nn.Module) -> Tensor:
        """Outputs of a network on the held-out samples, as rows (N, …)."""
        job, kept = self._job, Kept(self._job.reading)
        at_once = measured_at_once(job.network, job.memory, job.device)
        with running(raw(network), torch.device(job.device), None, at_once) as run:
            kept.add(run(self._inputs), self._inputs, self._labels)
        return kept.rows()


def drop_bound(original: Tensor, compressed: Tensor, labels: Tensor, error: float) -> float:
    """Upper bound of the drop of accuracy from one network to another on the same population of samples.

    Samples on which both are right, or both are wrong, tell nothing. Of the others half a sample is added to either
    side, so that the bound is honest where few differ (Agresti & Min 2005, adjusted Wald for matched pairs).

    >>> import torch
    >>> right, wrong = torch.eye(2)[[0] * 100], torch.eye(2)[[1] * 10 + [0] * 90]
    >>> round(drop_bound(right, wrong, torch.zeros(100, dtype=torch.int64), 0.05), 3)
    0.149

    Args:
        original: (N, K) logits of the original.
        compressed: (N, K) logits of the compressed network.
        labels: (N,) classes.
        error: probability that the bound is too low.
    """
    was, now = (outputs.argmax(-1) == labels for outputs in (original, compressed))
    lost, won = float((was & ~now).sum()) + 0.5, float((~was & now).sum()) + 0.5
    count = len(labels) + 2
    drop = (lost - won) / count
    variance = ((lost + won) - (lost - won) ** 2 / count) / count**2
    return drop + float(norm.ppf(1 - error)) * math.sqrt(variance)


def divergences(original: Tensor, compressed: Tensor) -> FloatArray:
    """(N,) divergences in nats of the samples' rows (N, K) or (N, P, K); of several rows a sample, their mean."""
    log_p, log_q = (rows.double().log_softmax(-1) for rows in (original, compressed))
    each = (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)
    found: FloatArray = each.flatten(1).mean(1).numpy() if each.ndim > 1 else each.numpy()
    return found


def mean_bound(samples: FloatArray, error: float) -> float:
    """Upper bound of the mean of a population, by bootstrap.

    Args:
        samples: (N,) numbers.
        error: probability that the bound is too low.
    """
    rng = np.random.default_rng(0)
    means = [samples[rng.integers(len(samples), size=len(samples))].mean() for _ in range(_RESAMPLES)]
    return float(np.quantile(means, 1 - error))
