"""What one process of a comparison keeps loaded (a job and its evaluator), and how it runs a cell on it.

A job is a network with its data and menus. Methods that share these options share the job.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autocompress.budget import Budget
from autocompress.comparison.folder import EVALUATIONS, read_conditions, read_policies
from autocompress.comparison.results import CellResult
from autocompress.comparison.shared import SharedEvaluations
from autocompress.comparison.suite import Cell, Suite
from autocompress.config import Config, MenuOptions, NetworkOptions, names_of
from autocompress.errors import InputError
from autocompress.evaluation import Closeness, Evaluator, measured_at_once
from autocompress.evaluation.batches import running
from autocompress.evaluation.measure import compare
from autocompress.job.journaled import step_of
from autocompress.job.load import check_labels, load, load_splits
from autocompress.job.options import SearchRequest, search_request
from autocompress.job.prepare import Job, build_evaluator, feasible_limits, made_on, prepare
from autocompress.job.search import original_accuracy, policy_digest
from autocompress.policies.use import policy_says
from autocompress.progress import Progress, Silent, Step
from autocompress.samples import Inputs, content
from autocompress.searchers.base import Evaluated, Task
from autocompress.searchers.search import run_search
from autocompress_envs import Labeling

_OF_JOB = {*names_of(NetworkOptions, MenuOptions), "device", "dtype"}

Requests = Mapping[str, SearchRequest]
"""Checked request of each method's searches, by the method's name."""
Observe = Callable[[Step], None]


def job_key(config: Config) -> str:
    """Key of a job, 16 hex digits: equal for cells that share network, data, menus and evaluations."""
    options = config.model_dump(mode="json", include=_OF_JOB)
    return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:16]


def requests_of(suite: Suite) -> Requests:
    """Check the options of every method, as far as that is possible before anything is loaded.

    Returns:
        The requests by the methods' names.

    Raises:
        InputError: an option of a method breaks a rule.
    """
    found = {}
    for method in suite.methods:
        config = suite.configs[method.name]
        with method.named():
            found[method.name] = search_request(config.model, config.required_data(), config.model_dump())
    return found


@dataclass
class Prepared:
    """A job that is ready to be searched.

    Attributes:
        job: network with its data and menus.
        evaluator: evaluator of the job's plans.
        shared: evaluations of the job by all processes; None until they are needed.
        reference: outputs (N, classes) of the original on the test split and the labels (N,), or None without
            labels; None until they are needed.
        accuracy: accuracy of the original on the search split, in [0, 1]; NaN until it is needed, and without
            labels.
    """

    job: Job
    evaluator: Evaluator
    shared: SharedEvaluations | None = None
    reference: tuple[Tensor, Tensor | None] | None = None
    accuracy: float = math.nan

    def original_accuracy(self) -> float:
        """Accuracy of the original on the search split; NaN without labels."""
        if math.isnan(self.accuracy):
            self.accuracy = original_accuracy(self.job)
        return self.accuracy

    def on_test(self, labeling: Labeling) -> Closeness:
        """Compare a plan with the original on the test split."""
        if self.reference is None:
            labels = [labels for _, labels in self.job.data.test_batches()]
            known = [each for each in labels if each is not None]
            self.reference = self._outputs(self.job.model), torch.cat(known) if known else None
        outputs, labels_of_test = self.reference
        return compare(outputs, self._outputs(self.evaluator.stitched(labeling)), labels_of_test)

    def _outputs(self, model: torch.nn.Module) -> Tensor:
        """Outputs (N, classes) of a model on the test split."""
        at_once = measured_at_once(self.job.network, self.job.memory, self.job.device)
        with running(model, self.job.device, batch_size=at_once) as run:
            return torch.cat([run(inputs) for inputs, _ in self.job.data.test_batches()])


class Session:
    """Runs cells of a comparison, one after the other.

    The last job stays loaded, because neighbouring cells usually share it.

    Args:
        suite: suite of the comparison.
        requests: checked request of each method's searches.
        folder: folder of the comparison.
        watcher: observer that is told of loading and of menus. Default: nobody.
        anew: whether to ignore the files that the folder holds.

    Attributes:
        conditions: conditions of every job's evaluations, by the job's key: fingerprints of network, data and
            menus, a digest of the search split, and the dtype and batch size that were picked by measurement.
            All processes, and a resumed comparison, must evaluate under the same conditions.
        policies: digest of the policy that each method's searches begin with, by the method's name; None
            without one. It must not change during a comparison either.
    """

    def __init__(
        self, suite: Suite, requests: Requests, folder: Path, watcher: Progress | None = None, *, anew: bool = False
    ) -> None:
        self.conditions = {} if anew else read_conditions(folder)
        self.policies = {} if anew else read_policies(folder)
        self._suite, self._requests = suite, requests
        self._folder = folder
        self._watcher = watcher or Silent()
        self._key = ""
        self._prepared: Prepared | None = None

    def prepare(self, method: str) -> Prepared:
        """The job of a method's cells, evaluated under the conditions of the comparison.

        Args:
            method: name of the method.

        Raises:
            InputError: network, data or menus can't be loaded, or are not those of the comparison to resume.
        """
        config = self._suite.configs[method]
        key = job_key(config)
        if self._prepared is None or key != self._key:
            self._prepared = None  # frees its memory first: two jobs at once may not fit
            self._key, self._prepared = key, self._loaded(self._requests[method], key)
        return self._prepared

    def check_policy(self, method: str) -> None:
        """Check that the policy that a method's searches begin with is still the one of the comparison.

        Raises:
            InputError: the policy is another one.
        """
        now = policy_digest(self._requests[method].policy)["policy"]
        before = self.policies.setdefault(method, now)
        if now != before:
            raise InputError(
                f"`policy` of {method} must be that of the comparison in {self._folder}, {before}, got {now}; "
                "put it back, or choose another --out."
            )

    def check(self, method: str) -> None:
        """Check what can be checked for a method once its job is loaded.

        Raises:
            InputError: the data lacks labels or a test split that are needed, or a budget is below the
                cheapest plan.
        """
        prepared = self.prepare(method)
        check_labels(self._requests[method], prepared.job.data)
        if self._suite.test and prepared.job.data.test is None:
            raise InputError(f"`test` needs data with a test split, got {prepared.job.data.name}; write test: false.")
        for budget in self._suite.budgets:
            try:
                feasible_limits(Budget.parse(budget), prepared.job, self._watcher)
            except InputError as error:
                raise InputError(f"Budget {budget} of {method}: {error}") from None

    def run(self, cell: Cell, observe: Observe) -> CellResult:
        """Run the search of a cell, and measure the best plan on the test split if the suite says so.

        Args:
            cell: cell to run.
            observe: function that is called after every evaluated plan.

        Raises:
            AutocompressError: the search can't be done.
        """
        asked, prepared = self._requests[cell.method], self.prepare(cell.method)
        self.check_policy(cell.method)
        limits = Budget.parse(cell.budget).resolve(prepared.job.original)
        shared, tracing = self._shared(prepared), _Tracing(asked.config.episodes, limits, observe)
        task = _task(prepared, shared, asked, limits)
        measured, forward = shared.measured, prepared.evaluator.forward_seconds
        started = time.perf_counter()
        settings = replace(asked.settings, seed=cell.seed)
        found = run_search(task, settings, method=asked.searcher, observe=tracing)
        seconds = time.perf_counter() - started
        prepared.evaluator.forget()
        best = found.best.outcome
        return CellResult(
            cell.method,
            asked.config.method,
            cell.budget,
            cell.seed,
            limits=limits,
            original=dict(prepared.job.original),
            evaluations=found.evaluations,
            measured=shared.measured - measured,
            kl=best.kl,
            accuracy=best.accuracy,
            agreement=best.agreement,
            resources=best.resources,
            found_at=found.best.used,
            stopped_because=found.stopped_because,
            trace=tuple(tracing.trace),
            seconds=round(seconds, 3),
            forward_share=round((prepared.evaluator.forward_seconds - forward) / seconds, 4),
            plan=json.dumps(prepared.job.menus.plan(found.best.labeling).to_dict()),
            **(_on_test(prepared, found.best.labeling) if self._suite.test else {}),
        )

    def _loaded(self, asked: SearchRequest, key: str) -> Prepared:
        """Load a job and its evaluator; InputError if its conditions are not those of the comparison."""
        loaded = load(asked, load_splits(asked), self._watcher)
        job = prepare(loaded, asked.menus, asked.config, self._watcher)
        before = self.conditions.get(key, {})
        evaluator = build_evaluator(job, asked.config, before, self._watcher)
        now = {**made_on(job, evaluator), "search_split": _hash(job.data.search()[0])}
        for name, value in now.items():
            if before and before.get(name) != value:
                raise InputError(
                    f"`resume` must find the same {name} as the comparison in {self._folder}, {before.get(name)}, "
                    f"got {value}."
                )
        self.conditions[key] = now
        return Prepared(job, evaluator)

    def _shared(self, prepared: Prepared) -> SharedEvaluations:
        """All evaluations of the job so far, including those of other processes."""
        if prepared.shared is None:
            journal = self._folder / EVALUATIONS / f"{self._key}.jsonl"
            prepared.shared = SharedEvaluations(journal, prepared.evaluator)
        prepared.shared.refresh()
        return prepared.shared


class _Tracing:
    """Observer of a cell's search that keeps the trace and passes a `Step` on after every evaluated plan."""

    def __init__(self, total: int, limits: Mapping[str, int], observe: Observe) -> None:
        self._total = total
        self._limits = limits
        self._observe = observe
        self._best: Evaluated | None = None
        self.trace: list[tuple[int, float]] = []

    def __call__(self, evaluated: Evaluated) -> None:
        if evaluated.is_best:
            self._best = evaluated
            self.trace.append((evaluated.used, evaluated.outcome.kl))
        self._observe(step_of(evaluated, self._best, self._total, self._limits))


def _task(prepared: Prepared, shared: SharedEvaluations, asked: SearchRequest, limits: Mapping[str, int]) -> Task:
    """The problem and limits of a cell's search, its evaluations, and what else its method needs."""
    problem, policy = prepared.job.problem, asked.policy
    needs_outputs = asked.searcher.wants_outputs(asked.settings)
    evaluator = prepared.evaluator
    effects = evaluator.effects() if needs_outputs and policy is not None else None
    says = policy_says(policy, problem, limits, evaluator.probabilities, effects, Silent()) if policy else None
    return Task(
        problem,
        dict(limits),
        shared.whole if needs_outputs else shared.numbers,
        prepared.original_accuracy() if asked.compares_with_original else math.nan,
        evaluator.probabilities if needs_outputs else None,
        None if says is None else says.prices,
        evaluator.effects if needs_outputs else None,
        None if says is None else says.copy,
        None if says is None else says.environment,
    )


def _on_test(prepared: Prepared, labeling: Labeling) -> dict[str, Any]:
    """The fields of a cell's result that are measured on the test split."""
    found = prepared.on_test(labeling)
    drop = 100 * (found.original_accuracy - found.accuracy)
    return {"test_kl": found.kl, "test_accuracy": found.accuracy, "test_drop": drop}


def _hash(inputs: Inputs) -> str:
    """SHA-256 digest of the samples, 16 hex digits."""
    return hashlib.sha256(b"".join(content(inputs))).hexdigest()[:16]
