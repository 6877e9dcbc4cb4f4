"""What is measured of the networks of a recipe: read from disk, or measured and written there, task by task."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, MutableMapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autocompress.cache import ZOO
from autocompress.data import Data, load_data
from autocompress.errors import AutocompressError, InputError, reason_of
from autocompress.evaluation import Evaluator
from autocompress.files import sweep, writing
from autocompress.job.load import load
from autocompress.job.options import request
from autocompress.job.prepare import Job, build_evaluator, prepare
from autocompress.policy_training.experience import MOST_LOSS, BudgetRange, Experience, explore
from autocompress.policy_training.experience_files import load_experience, save_experience
from autocompress.policy_training.number_formats import NUMBER_FORMATS, NumberFormats
from autocompress.policy_training.recipe import Recipe, ZooNetwork, ZooTask
from autocompress.policy_training.zoo import in_memory, trained, weights_file
from autocompress.progress import Progress, Silent
from autocompress.searchers.model_based.first_order import SAMPLES
from autocompress.workers.executors import executor_of
from autocompress.workers.tasks import Death, Run, Tell, run_tasks

EXPERIENCE_VERSION = 2  # of how plans are looked for and evaluated; what another version measured is measured anew
_FAILURES = (AutocompressError, RuntimeError, ValueError, TypeError)  # what networks and their training raise

Gathered = Mapping[tuple[str, str], Experience]
"""What was measured, by the names of network and task."""


def load_all(recipe: Recipe) -> dict[str, Data]:
    """Load the data of a recipe.

    Returns:
        The data by the recipe's names.

    Raises:
        InputError: some data can't be read.
    """
    seed, samples = recipe.seed, recipe.search_samples
    return {name: load_data(spec, seed=seed, search_samples=samples) for name, spec in recipe.data.items()}


@dataclass(frozen=True)
class Workers:
    """Who trains and measures the networks.

    Attributes:
        device: torch device that networks are trained and evaluated on.
        jobs: largest number of processes, or of tasks in a cluster; None: 1, or as many as the cluster has CPUs.
        cluster: address of a Ray cluster; None for processes of this machine.
    """

    device: str
    jobs: int | None = None
    cluster: str | None = None


def gather(
    recipe: Recipe, splits: Mapping[str, Data], folder: Path, cache: Path, workers: Workers, watcher: Progress
) -> tuple[Gathered, dict[str, str]]:
    """Read what was measured of all networks in all tasks from disk, and measure what is missing.

    Args:
        recipe: recipe of the training.
        splits: data by the recipe's names, from `load_all`.
        folder: folder of what was measured; created if it does not exist.
        cache: folder of the menu cache, which also keeps the zoo's weights.
        workers: who does it.
        watcher: observer that is told of every network and budget.

    Returns:
        What was measured, by the names of network and task, without pairs that have no usable budget; and the reasons
        of networks that failed, by name.

    Raises:
        InputError: a file is damaged, or no network has a usable budget, or the cluster can't be reached.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    number_formats = NumberFormats(folder / NUMBER_FORMATS)
    gathered: dict[tuple[str, str], Experience] = {}
    failed = _failed_at_workers(recipe, folder, cache, workers, number_formats, watcher)
    for number, zoo in enumerate(recipe.networks):
        if zoo.name in failed:
            continue
        watcher.stage(f"network {number + 1} of {len(recipe.networks)}: {zoo.name}")
        network = ExploredNetwork(recipe, zoo, splits[zoo.data], cache, workers.device, watcher, number_formats)
        found, why = _measured(recipe, zoo, network, folder, watcher)
        gathered |= found
        if why:
            failed[zoo.name] = why
            watcher.note(f"{zoo.name} is left out: {why}")
    if not gathered:
        raise InputError(
            f"`tasks` must have budgets under which the solver's plan loses at most {MOST_LOSS:g} nats, "
            f"got none for any network{''.join(f'; {name}: {why}' for name, why in failed.items())}; raise `low` and "
            "`high`."
        )
    return gathered, failed


def _measured(
    recipe: Recipe, zoo: ZooNetwork, network: ExploredNetwork, folder: Path, watcher: Progress
) -> tuple[dict[tuple[str, str], Experience], str]:
    """What was measured of a network in all tasks, read or measured now; and why it failed, empty if it did not."""
    gathered: dict[tuple[str, str], Experience] = {}
    for task in recipe.tasks:
        file, made_for = _file(folder, zoo, task), _made_for(recipe, zoo, task, network.data)
        is_there, found = load_experience(file, made_for)
        if not is_there:
            try:
                found = _explored(recipe, task, network, watcher)
            except _FAILURES as error:
                return gathered, reason_of(error)
            save_experience(file, made_for, found)
        if found is not None:
            gathered[zoo.name, task.name] = found
    return gathered, ""


def _failed_at_workers(
    recipe: Recipe, folder: Path, cache: Path, workers: Workers, number_formats: NumberFormats, watcher: Progress
) -> dict[str, str]:
    """Let workers measure the networks that lack a file, and write the files; returns why networks failed, by name.

    Networks that no worker could measure for a reason of its own, such as a full disk, are left to this process.
    """
    missing = [
        zoo.name for zoo in recipe.networks if not all(_file(folder, zoo, task).is_file() for task in recipe.tasks)
    ]
    if not missing or (workers.cluster is None and ((workers.jobs or 1) == 1 or len(missing) == 1)):
        return {}
    failed: dict[str, str] = {}

    def told(name: str, news: None) -> None:
        watcher.stage(f"network {missing.index(name) + 1} of {len(missing)} that are missing: {name}")

    given, on_gpu = (recipe, folder.resolve(), cache.resolve(), workers.device), workers.device.startswith("cuda")
    executor = executor_of(_runner, given, len(missing), workers.jobs, workers.cluster, on_gpu=on_gpu)
    with closing(run_tasks(executor, missing, told)) as done:
        for count, (name, end) in enumerate(done):
            picks, why = ({}, end.how) if isinstance(end, Death) else end.value
            number_formats.update(picks)
            if why:
                failed[name] = why
                watcher.note(f"{name} is left out: {why}")
            watcher.advance(count + 1, len(missing), "networks")
    return failed


def _runner(recipe: Recipe, folder: Path, cache: Path, device: str, threads: int) -> Run:
    """What a worker runs, with the recipe's data loaded: the measurements of one network, by its name.

    It returns the dtypes and batch sizes that were picked, and why the network failed. The files hold the rest.
    """
    torch.set_num_threads(threads)
    splits, networks = load_all(recipe), {zoo.name: zoo for zoo in recipe.networks}

    def run(name: str, tell: Tell) -> tuple[dict[str, Any], str]:
        zoo, picks = networks[name], dict(NumberFormats(folder / NUMBER_FORMATS))
        network = ExploredNetwork(recipe, zoo, splits[zoo.data], cache, device, Silent(), picks)
        try:
            _, why = _measured(recipe, zoo, network, folder, Silent())
        except AutocompressError:
            return picks, ""  # a damaged file or a full disk: the parent meets it too, and says so
        return picks, why

    return run


def _file(folder: Path, zoo: ZooNetwork, task: ZooTask) -> Path:
    """The file of what was measured of a network in a task."""
    return folder / f"{zoo.name}--{task.name}.npz"


class ExploredNetwork:
    """A network of the zoo with its menus and evaluator, each built when it is first asked for.

    Args:
        recipe: recipe of the training.
        zoo: network of the recipe.
        data: data of this network.
        cache: folder of the menu cache, which also keeps the zoo's weights.
        device: torch device that the network is evaluated on.
        watcher: observer that is told when the network is trained.
        number_formats: dtypes and batch sizes that were picked by measurement before, by name; those that are
            picked now are added. Default: an empty mapping.

    Attributes:
        data: data of this network.
    """

    def __init__(
        self,
        recipe: Recipe,
        zoo: ZooNetwork,
        data: Data,
        cache: Path,
        device: str,
        watcher: Progress,
        number_formats: MutableMapping[str, Any] | None = None,
    ) -> None:
        self._recipe, self._zoo, self._cache, self._device, self._watcher = recipe, zoo, cache, device, watcher
        self._number_formats = {} if number_formats is None else number_formats
        self.data = data
        self._model: nn.Module | None = None
        self._built: dict[str, tuple[Job, Evaluator]] = {}

    def job(self, task: ZooTask) -> tuple[Job, Evaluator]:
        """The network with the menus of a task, and its evaluator; tasks with the same options share both."""
        key = json.dumps(task.options, sort_keys=True)
        if key not in self._built:
            self._built.clear()  # two networks with their menus at once may be too much for the memory
            options = {**task.options, "cache": self._cache, "device": self._device, "seed": self._recipe.seed}
            asked = request(self.model(), self.data, options)
            loaded = load(asked, self.data, Silent())
            job = prepare(loaded, asked.menus, asked.config, Silent(), must_export=False)
            pick = f"evaluating {self._zoo.name} {key}"
            evaluator = build_evaluator(job, asked.config, self._number_formats.get(pick), self._watcher)
            self._number_formats[pick] = {"dtype": evaluator.dtype, "batch_size": evaluator.batch_size}
            self._built[key] = job, evaluator
        return self._built[key]

    def model(self) -> nn.Module:
        """The network with its trained weights, in eval mode."""
        if self._model is None:
            folder = self._cache / ZOO
            kept = weights_file(self._zoo, self.data, folder).is_file()
            if not kept:
                self._watcher.stage(f"training {self._zoo.name}: {self._zoo.epochs:g} epochs")
            self._model = trained(self._zoo, self.data if kept else in_memory(self.data), folder, self._number_formats)
        return self._model


def _explored(recipe: Recipe, task: ZooTask, network: ExploredNetwork, watcher: Progress) -> Experience | None:
    """What is measured of one network in one task; None without a usable budget."""
    job, evaluator = network.job(task)
    ranges = [BudgetRange(each.resource, each.low, each.high) for each in task.budgets]

    def told(done: int) -> None:
        watcher.advance(done, recipe.budgets, f"budgets of {task.name}")

    found = explore(
        job.problem, evaluator, evaluator.probabilities, evaluator.effects(None, SAMPLES), ranges, recipe.budgets,
        recipe.plans, recipe.seed, told,
    )  # fmt: skip
    evaluator.forget()
    return found


def _made_for(recipe: Recipe, zoo: ZooNetwork, task: ZooTask, data: Data) -> str:
    """SHA-256 digest, in hex, of everything that what is measured of a network in a task depends on."""
    network = weights_file(zoo, data, Path()).stem.rpartition("-")[2]
    counts = [recipe.budgets, recipe.plans, recipe.search_samples, recipe.seed, EXPERIENCE_VERSION]
    content = json.dumps([network, task.model_dump(mode="json", exclude={"name"}), counts], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
