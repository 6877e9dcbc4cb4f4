"""Training a policy, from a recipe to a policy's files.

`train_policy` does this, in this order:

1. It reads the recipe and the data (`load_all`), and checks that the folder is free.
2. For every network of the recipe it trains the network, or reads the weights that are in the cache
   (`ExploredNetwork`). A network that can't be trained or compressed is named, counted and left out.
3. For every network and task it evaluates plans, or reads what was measured before (`gather`).
4. It makes lessons of an expert's plans (`lessons`), which the policy learns (`imitation`).
5. The policy goes on to learn in the environment (`reinforcement`).
6. It writes the policy with a record of the networks, tasks and scores.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import shutil
import time
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from autocompress.cache import ZOO, default_cache
from autocompress.data import Data, load_data
from autocompress.errors import AutocompressError, InputError, reason_of
from autocompress.evaluation import DTYPES, Evaluator, torch_device
from autocompress.files import is_passing, strict_json, sweep, write_atomically, writing
from autocompress.job.load import load
from autocompress.job.options import request
from autocompress.job.prepare import Job, build_evaluator, prepare
from autocompress.job.trust import NamedFunction, check_trusted, lies_in, named_functions, remember
from autocompress.policies.files import SavedPolicy, save_policy
from autocompress.policies.network import LabelPolicy
from autocompress.policy_training.experience import MOST_LOSS, BudgetRange, Experience, explore, plan_at
from autocompress.policy_training.experience_files import load_experience, save_experience
from autocompress.policy_training.imitation import imitate
from autocompress.policy_training.lessons import Lesson, lessons
from autocompress.policy_training.recipe import Recipe, ZooNetwork, ZooTask, read_recipe
from autocompress.policy_training.reinforcement import reinforce
from autocompress.policy_training.zoo import in_memory, trained, weights_file
from autocompress.progress import Progress, Silent
from autocompress.run.journal import is_count
from autocompress.run.lock import locked
from autocompress.run.names import POLICY, TENSORBOARD
from autocompress.searchers.model_based.first_order import SAMPLES
from autocompress.searchers.tensorboard import scalars
from autocompress.version import versions
from autocompress_envs.labeling.observation import KINDS
from autocompress_envs.problem.tables import Tables
from autocompress_envs.solver import Solver

RECIPE, EXPERIENCE = "recipe.yaml", "experience"
NUMBER_FORMATS = "settled.json"  # file beside the experience: dtypes and batch sizes that were picked by measurement
LICENCE = "Apache-2.0"
EXPERIENCE_VERSION = 1  # of how plans are looked for; what another version measured is measured anew
_SMALLEST_KL = 1e-6  # nats; ratios of smaller ones are noise
_FAILURES = (AutocompressError, RuntimeError, ValueError, TypeError)  # what networks and their training raise
_TOLD = 50  # fitting steps between two reports

AddScalar = Callable[[str, float, int], None]
"""Takes the name, the value and the step of a point on a learning curve."""
Gathered = Mapping[tuple[str, str], Experience]
"""What was measured, by the names of network and task."""


def train_policy(
    recipe: str | Path | Recipe,
    out: str | Path,
    *,
    data: Mapping[str, str] | None = None,
    cache: Path | None = None,
    device: str = "auto",
    resume: bool = False,
    force: bool = False,
    trust: bool = False,
    progress: Progress | None = None,
) -> SavedPolicy:
    """Train a policy and write it into a folder, with its recipe, what was measured, and TensorBoard scalars.

    The zoo's weights and menus are kept in the cache. A killed training loses at most the evaluations of one
    network in one task, and what the policy had learned from them.

    Args:
        recipe: recipe, or the path of its YAML file.
        out: folder of the policy and of the training.
        data: data that replaces the recipe's, by the recipe's names; read only if `recipe` is a path.
        cache: folder of the menu cache, which also keeps the zoo's weights. Default: `$AUTOCOMPRESS_CACHE`,
            else ~/.cache/autocompress.
        device: torch device that networks are evaluated on; `auto` is CUDA where there is one, else the CPU.
        resume: continue the training in `out`, which must have the same recipe; what was measured is kept.
        force: replace the training in `out`; everything is measured anew.
        trust: whether functions of somebody's own may run that the recipe names, where its file lies in the folder of
            a training; see `autocompress.job.trust`. Default: only those that you named yourself.
        progress: observer that is told of every stage. Default: nobody.

    Returns:
        The policy with the record of its training.

    Raises:
        InputError: the recipe breaks a rule, or the folder holds another training, or another process writes there.
        WriteError: a file can't be written; `resume` goes on from what was written.
    """
    watcher, folder, device = progress or Silent(), Path(out), str(torch_device(device))
    wanted = recipe if isinstance(recipe, Recipe) else read_recipe(recipe, data)
    if isinstance(recipe, (str, Path)) and lies_in(recipe, folder, EXPERIENCE):
        check_trusted(_functions(wanted, data or {}), Path(recipe).parent, trust=trust)
    splits = load_all(wanted)  # before the folder is made: data that can't be read must not leave a folder behind
    with _opened(folder, wanted, resume=resume, force=force):
        remember(_functions(wanted))
        return _trained(wanted, splits, folder, cache, device, watcher)


def _trained(
    wanted: Recipe, splits: Mapping[str, Data], folder: Path, cache: Path | None, device: str, watcher: Progress
) -> SavedPolicy:
    """`train_policy`, in a folder that this process alone writes."""
    started = time.monotonic()
    gathered, failed = gather(wanted, splits, folder / EXPERIENCE, cache or default_cache(), device, watcher)
    with scalars(folder / TENSORBOARD) as add:
        learned = learn(wanted, list(gathered.values()), add, watcher)
    record = _record(wanted, gathered, failed, time.monotonic() - started)
    save_policy(folder, learned, record)
    return SavedPolicy(learned, record, str(folder))


def learn(wanted: Recipe, experience: Sequence[Experience], add: AddScalar, watcher: Progress) -> LabelPolicy:
    """The policy that learns the expert's plans, and goes on in the environment.

    Args:
        wanted: recipe of the training.
        experience: what was measured of the networks that it learns from.
        add: function that takes a name, a value and a step, for learning curves.
        watcher: observer that is told of every stage.
    """
    watcher.stage(f"lessons: the expert's plans under {sum(len(each.budgets) for each in experience):,} budgets")
    learned: list[Lesson] = []
    for number, each in enumerate(experience):
        learned += lessons(each)
        watcher.advance(number + 1, len(experience), "networks and tasks")

    def told(step: int, losses: Mapping[str, float]) -> None:
        if step % _TOLD == 0 or step == wanted.fitting.steps - 1:
            for name, loss in losses.items():
                add(f"imitation/{name}", loss, step)
            watcher.advance(step + 1, wanted.fitting.steps, "steps of imitation")

    watcher.stage(f"imitation: {sum(len(each.actions) for each in learned):,} labels of the expert")
    policy = imitate(learned, wanted.fitting, told)
    if not wanted.reinforcement.steps:
        return policy

    def updated(steps: int, reward: float) -> None:
        add("reinforcement/return", reward, steps)
        watcher.advance(min(steps, wanted.reinforcement.steps), wanted.reinforcement.steps, "steps in the environment")

    watcher.stage(f"reinforcement learning: {wanted.reinforcement.steps:,} steps in the environment")
    return reinforce(policy, experience, wanted.reinforcement, wanted.fitting.seed, updated)


def _functions(recipe: Recipe, given: Mapping[str, str] | None = None) -> list[NamedFunction]:
    """The functions that a recipe names, without data that the user gave in place of the recipe's."""
    options: list[Mapping[str, Any]] = [
        {"data": spec} for name, spec in recipe.data.items() if name not in (given or {})
    ]
    options += [{"model": network.model, "model_args": network.model_args} for network in recipe.networks]
    return [function for each in options for function in named_functions(each)]


def load_all(recipe: Recipe) -> dict[str, Data]:
    """Load the data of a recipe.

    Returns:
        The data by the recipe's names.

    Raises:
        InputError: some data can't be read.
    """
    seed, samples = recipe.seed, recipe.search_samples
    return {name: load_data(spec, seed=seed, search_samples=samples) for name, spec in recipe.data.items()}


def gather(
    recipe: Recipe, splits: Mapping[str, Data], folder: Path, cache: Path, device: str, watcher: Progress
) -> tuple[Gathered, dict[str, str]]:
    """Read what was measured of all networks in all tasks from disk, and measure what is missing.

    Args:
        recipe: recipe of the training.
        splits: data by the recipe's names, from `load_all`.
        folder: folder of what was measured; created if it does not exist.
        cache: folder of the menu cache, which also keeps the zoo's weights.
        device: torch device that networks are evaluated on.
        watcher: observer that is told of every network and budget.

    Returns:
        What was measured, by the names of network and task, without pairs that have no usable budget; and the reasons
        of networks that failed, by name.

    Raises:
        InputError: a file is damaged, or no network has a usable budget.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    number_formats = _NumberFormats(folder / NUMBER_FORMATS)
    gathered: dict[tuple[str, str], Experience] = {}
    failed: dict[str, str] = {}
    for number, zoo in enumerate(recipe.networks):
        watcher.stage(f"network {number + 1} of {len(recipe.networks)}: {zoo.name}")
        network = ExploredNetwork(recipe, zoo, splits[zoo.data], cache, device, watcher, number_formats)
        for task in recipe.tasks:
            file, made_for = folder / f"{zoo.name}--{task.name}.npz", _made_for(recipe, zoo, task, network.data)
            is_there, found = load_experience(file, made_for)
            if not is_there:
                try:
                    found = _explored(recipe, task, network, watcher)
                except _FAILURES as error:
                    failed[zoo.name] = reason_of(error)
                    watcher.note(f"{zoo.name} is left out: {failed[zoo.name]}")
                    break
                save_experience(file, made_for, found)
            if found is not None:
                gathered[zoo.name, task.name] = found
    if not gathered:
        raise InputError(
            f"`tasks` must have budgets under which the solver's plan loses at most {MOST_LOSS:g} nats, "
            f"got none for any network{''.join(f'; {name}: {why}' for name, why in failed.items())}; raise `low` and "
            "`high`."
        )
    return gathered, failed


class _NumberFormats(UserDict[str, Any]):
    """Dtypes and batch sizes that were picked by measurement, by name, in a JSON file; additions rewrite it.

    Measurements differ from time to time. A training that is resumed reads the picks, so it goes on with the
    same ones.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file
        if file.is_file():
            self.data = _read_number_formats(file)

    def __setitem__(self, name: str, pick: Any) -> None:
        super().__setitem__(name, pick)
        write_atomically(self._file, json.dumps(self.data, indent=1) + "\n")


def _read_number_formats(file: Path) -> dict[str, Any]:
    try:
        content = strict_json(file.read_bytes())
    except ValueError:
        content = None
    if not isinstance(content, dict) or not all(map(_is_number_format, content.values())):
        raise InputError(
            f"`resume` must find a whole {NUMBER_FORMATS}, got {file}, which is damaged; remove it to pick anew."
        )
    return content


def _is_number_format(pick: Any) -> bool:
    """Whether a value of the file is a pick: the dtype of a training, or dtype and batch size of evaluations."""
    parts = pick if isinstance(pick, dict) else {"dtype": pick}
    dtype, size = parts.get("dtype"), parts.get("batch_size", 1)
    return isinstance(dtype, str) and dtype in DTYPES and is_count(size) and size > 0


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


def _best_of_solver(experience: Experience) -> float:
    """Geometric mean over budgets of the best plan's divergence divided by that of the solver's plan."""
    ratios, tables = [], Tables(experience.problem)
    keys = [plan_at(experience.labelings, number).key() for number in range(len(experience.losses))]
    for limits in experience.budgets:
        solver = experience.losses[keys.index(Solver(tables.problem, limits).solve().key())]
        best = experience.losses[experience.within(limits)[0]]
        ratios.append(max(best, _SMALLEST_KL) / max(solver, _SMALLEST_KL))
    return float(np.exp(np.log(ratios).mean()))


def _record(recipe: Recipe, gathered: Gathered, failed: Mapping[str, str], seconds: float) -> dict[str, Any]:
    """The record of a training as JSON data: date, networks, tasks, recipe and what was measured."""
    seen = {layer.kind for each in gathered.values() for layer in each.problem.layers}
    families = {network.name: network.family for network in recipe.networks}
    of_task = {
        task.name: [_best_of_solver(each) for (_, name), each in gathered.items() if name == task.name]
        for task in recipe.tasks
    }
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "licence": LICENCE,
        "versions": versions(),
        "kinds": [kind for kind in KINDS if kind in seen],
        "networks": list(dict.fromkeys(network for network, _ in gathered)),
        "families": sorted({families[network] for network, _ in gathered}),
        "failed": dict(failed),
        "tasks": [
            f"{task.name}: " + ", ".join(f"{each.resource} {each.low:g} to {each.high:g}" for each in task.budgets)
            for task in recipe.tasks
        ],
        "plans": sum(len(each.losses) for each in gathered.values()),
        "seconds_of_last_run": round(seconds, 1),
        "recipe_sha256": _digest(recipe),
        "scores": {
            "explored_best_kl_over_solver": {
                name: round(float(np.exp(np.log(values).mean())), 4) for name, values in of_task.items() if values
            }
        },
    }


def _digest(recipe: Recipe) -> str:
    """SHA-256 digest, in hex, of a recipe without its `data`, which only says where the data is."""
    content = recipe.model_dump(mode="json", exclude={"data"})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextmanager
def _opened(folder: Path, recipe: Recipe, *, resume: bool, force: bool) -> Iterator[None]:
    """Hold the folder of a training, with the recipe in it. Raises InputError where it is taken."""
    _check_free(folder, recipe, resume=resume, force=force)
    with locked(folder, "out", "train-policy"):
        _check_free(folder, recipe, resume=resume, force=force)  # again: another process may have used it until now
        if force:
            old = (*(folder / EXPERIENCE).glob("*.npz"), folder / EXPERIENCE / NUMBER_FORMATS, folder / POLICY)
            for file in old:
                file.unlink(missing_ok=True)
            shutil.rmtree(folder / TENSORBOARD, ignore_errors=True)
        write_atomically(folder / RECIPE, recipe.to_yaml())
        yield


def _check_free(folder: Path, recipe: Recipe, *, resume: bool, force: bool) -> None:
    """Raise InputError unless the folder is empty, or the training in it may be continued or replaced."""
    if resume and force:
        raise InputError("`force` and `resume` exclude each other, got both: --force starts anew, --resume continues.")
    file, content = folder / RECIPE, recipe.to_yaml()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"`out` must be a folder, got {folder}, which is a file.")
    if file.is_file() and not (resume or force):
        raise InputError(
            f"`out` must be a new folder, got {folder}, which holds a training; pass --resume to go on with it or "
            "--force to replace it."
        )
    if resume and not file.is_file():
        raise InputError(f"`resume` needs the folder of a training, got {folder}, which has no {RECIPE}.")
    if resume and file.read_text() != content:
        raise InputError(f"`resume` must go on by the recipe in {file}, got another; choose another --out or --force.")
    if not file.is_file() and folder.is_dir() and not all(is_passing(each.name) for each in folder.iterdir()):
        raise InputError(f"`out` must be a new or empty folder, got {folder}, which holds other files.")
