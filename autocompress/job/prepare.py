"""Preparing: the menus of a loaded network, its costs on the target's file, and what measures plans of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.budget import COUNTED, RESOURCES, Budget, format_bytes
from autocompress.cache import LIMIT, cache_limit, default_cache, trim
from autocompress.config import MachineOptions
from autocompress.errors import ExportError, InputError
from autocompress.evaluation import Evaluator, choose_dtype, samples_that_fit, torch_device
from autocompress.evaluation.number_format import BATCHES
from autocompress.evaluation.renormalize import renormalizing_samples
from autocompress.job.load import Loaded, loaded_fields
from autocompress.job.memory import menu_threads
from autocompress.menus import Menus, MenuSettings, build_menus
from autocompress.menus.store import Store, content_key
from autocompress.progress import Progress
from autocompress.targets import counted_on_file
from autocompress_envs import InfeasibleBudgetError, Problem, Solver

_FEW_JUDGED = 32  # samples; with two random functions of each, a loss is then known within about a third


@dataclass(frozen=True)
class Job(Loaded):
    """A network with its menus.

    Attributes:
        menus: menus of the network; their `size` is counted on the target's file.
        problem: the menus in numbers.
        original: every resource of the original; `size` is that of its float32 file.
    """

    menus: Menus
    problem: Problem
    original: Mapping[str, int]


def prepare(
    loaded: Loaded, settings: MenuSettings, machine: MachineOptions, watcher: Progress, *, must_export: bool = True
) -> Job:
    """Build the menus, and count `size` on the target's file.

    The labels' expected losses are judged on the search split: it is what no weight was fitted to, and the plans are
    compared on it anyway.

    Args:
        loaded: the network and its data.
        settings: settings of the menus.
        machine: threads that build them, and where they are kept.
        watcher: observer that is told of stages, notes and evaluations.
        must_export: whether a network that the target can't hold is an error; else its `size` is counted on weights.

    Raises:
        ExportError: the target can't hold the network.
        InputError: `AUTOCOMPRESS_CACHE_LIMIT` is no number of bytes.
        WriteError: the cache can't be written.
    """
    cache, limit = machine.cache or default_cache(), cache_limit()
    judging, _ = loaded.data.search()
    if len(judging) < _FEW_JUDGED:
        watcher.note(
            f"the labels' expected losses are judged on {len(judging)} samples only, and may be off by a factor of 2 "
            f"and more; {_FEW_JUDGED} or more would do (--search-samples)"
        )
    menus = build_menus(
        loaded.base,
        loaded.network,
        loaded.inputs,
        settings,
        data_fingerprint=loaded.data.fingerprint,
        judging_inputs=judging,
        cache=cache,
        jobs=menu_threads(loaded.network, machine.jobs, loaded.memory),
        device=str(loaded.device),
        progress=watcher.advance,
    )
    try:
        menus, original_bytes = counted_on_file(loaded.target, menus, loaded.folded, loaded.inputs)
    except ExportError as error:
        if must_export:
            raise
        watcher.note(f"{error} Until then `size` counts the weights alone")
        original_bytes = menus.problem().original()["size"]
    tell_damaged(menus.store, watcher)
    if menus.store.written:
        _trim(cache, limit, watcher)
    problem = menus.problem()
    original = problem.original() | {"size": original_bytes}
    return Job(**{**loaded_fields(loaded), "network": menus.network}, menus=menus, problem=problem, original=original)


def tell_damaged(store: Store, watcher: Progress) -> None:
    """Tell of files in the cache that were damaged, once."""
    if store.damaged:
        watcher.note(
            f"files of the cache without a checksum that matches were made anew: {len(store.damaged)}, "
            f"the first is {store.damaged[0]}"
        )
        store.damaged.clear()


def _trim(cache: Path, limit: int | None, watcher: Progress) -> None:
    """Keep the cache within its limit, and tell of what had to go."""
    removed = trim(cache, limit)
    if removed and limit is not None:
        watcher.note(
            f"the cache {cache} was above its limit of {format_bytes(limit)} ({LIMIT}), so the least recently used "
            f"{format_bytes(sum(entry.bytes for entry in removed))} went"
        )


def build_evaluator(
    job: Job, machine: MachineOptions, before: Mapping[str, Any] | None = None, watcher: Progress | None = None
) -> Evaluator:
    """The evaluator of a job on the search split.

    Args:
        job: the network with its menus.
        machine: device and dtype.
        before: `dtype` and `batch_size` of the run that is resumed, in place of those that a measurement would pick.
        watcher: observer that is told of what the user has to know. Default: nobody.
    """
    inputs, labels = job.data.search()
    settled = before or {}
    return Evaluator(
        job.base,
        job.network,
        job.menus,
        inputs,
        labels,
        reference=job.search_outputs(),
        renormalized_on=job.inputs,
        device=machine.device,
        dtype=settled.get("dtype", machine.dtype),
        batch_size=settled.get("batch_size"),
        note=None if watcher is None else watcher.note,
        memory=job.memory,
    )


def tuning_dtype(loaded: Loaded, machine: MachineOptions) -> str:
    """The dtype of fine-tuning where nothing has been evaluated: `auto` picks as an evaluator would."""
    if machine.dtype != "auto":
        return machine.dtype
    most = samples_that_fit(loaded.network, loaded.memory, BATCHES[-1], torch_device(machine.device))
    return choose_dtype(loaded.folded, loaded.data.search()[0], loaded.model, machine.device, most)


def feasible_limits(budget: Budget, job: Job, watcher: Progress) -> dict[str, int]:
    """Absolute limits. Raises InputError where no plan can meet them, before a run folder is made."""
    limits = budget.resolve(job.original)
    counted = {name: limit for name, limit in limits.items() if name in COUNTED}  # time is measured, not foretold
    try:
        if counted:
            Solver(job.problem, counted)
    except InfeasibleBudgetError as error:
        raise InputError(str(error)) from error
    for name, limit in limits.items():
        if limit >= job.original[name]:
            amounts = f"{limit:,} {RESOURCES[name]}, of which the original has {job.original[name]:,}"
            watcher.note(f"the {name} budget limits nothing: {amounts}")
    return limits


def limits_to_check(budget: str | None, job: Job) -> dict[str, int]:
    """Absolute limits of a budget that a given plan may break, without that of time; empty without one."""
    limits = Budget.parse(budget).limits if budget else ()
    return {
        limit.resource: limit.resolve(job.original[limit.resource]) for limit in limits if limit.resource in COUNTED
    }


def made_on(job: Job, evaluator: Evaluator) -> dict[str, Any]:
    """What a resumed run must find again."""
    return {
        "network": job.network.fingerprint,
        "data": job.data.fingerprint,
        "menus": content_key(job.base, job.network, job.data.fingerprint, job.menus.settings),
        "dtype": evaluator.dtype,
        "batch_size": evaluator.batch_size,
        "renormalized_on": min(renormalizing_samples(job.network), len(job.inputs)),
    }
