"""Training a policy, from a recipe to a policy's files.

`train_policy` does this, in this order:

1. It reads the recipe and the data (`gathering.load_all`), and checks that the folder is free.
2. For every network of the recipe it trains the network, or reads the weights that are in the cache
   (`gathering.ExploredNetwork`). A network that can't be trained or compressed is named, counted and left out.
3. For every network and task it evaluates plans, or reads what was measured before (`gathering.gather`).
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.cache import default_cache
from autocompress.data import Data
from autocompress.errors import InputError
from autocompress.evaluation import torch_device
from autocompress.files import is_passing, write_atomically
from autocompress.job.trust import NamedFunction, check_trusted, lies_in, named_functions, remember
from autocompress.policies.files import SavedPolicy, save_policy
from autocompress.policies.network import LabelPolicy
from autocompress.policy_training.experience import Experience, plan_at
from autocompress.policy_training.gathering import Gathered, Workers, gather, load_all
from autocompress.policy_training.imitation import imitate
from autocompress.policy_training.lessons import Lesson, lessons
from autocompress.policy_training.number_formats import NUMBER_FORMATS
from autocompress.policy_training.recipe import Recipe, read_recipe
from autocompress.policy_training.reinforcement import reinforce
from autocompress.progress import Progress, Silent
from autocompress.run.lock import locked
from autocompress.run.names import POLICY, TENSORBOARD
from autocompress.searchers.tensorboard import scalars
from autocompress.version import versions
from autocompress.workers.ray_tasks import check_cluster
from autocompress_envs.labeling.observation import KINDS
from autocompress_envs.problem.tables import Tables
from autocompress_envs.solver import Solver

RECIPE, EXPERIENCE = "recipe.yaml", "experience"
LICENCE = "Apache-2.0"
_SMALLEST_KL = 1e-6  # nats; ratios of smaller ones are noise
_TOLD = 50  # fitting steps between two reports

AddScalar = Callable[[str, float, int], None]
"""Takes the name, the value and the step of a point on a learning curve."""


def train_policy(
    recipe: str | Path | Recipe,
    out: str | Path,
    *,
    data: Mapping[str, str] | None = None,
    cache: Path | None = None,
    device: str = "auto",
    jobs: int | None = None,
    cluster: str | None = None,
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
        jobs: number of processes that train and measure the networks, at least 1; PyTorch's threads are divided between
            them. With `cluster`, most networks at once. Default: 1; with `cluster`, as many as it has CPUs.
        cluster: address of a Ray cluster whose workers do this: `local`, `auto` or host:port. They must see the same
            files under the same paths. Default: None, for processes of this machine.
        resume: continue the training in `out`, which must have the same recipe; what was measured is kept.
        force: replace the training in `out`; everything is measured anew.
        trust: whether functions of somebody's own may run that the recipe names, where its file lies in the folder of
            a training; see `autocompress.job.trust`. Default: only those that you named yourself.
        progress: observer that is told of every stage. Default: nobody.

    Returns:
        The policy with the record of its training.

    Raises:
        InputError: the recipe breaks a rule, or the folder holds another training, or another process writes there, or
            the cluster can't be reached.
        WriteError: a file can't be written; `resume` goes on from what was written.
    """
    watcher, folder, device = progress or Silent(), Path(out), str(torch_device(device))
    if jobs is not None and jobs < 1:
        raise InputError(f"`jobs` must be at least 1, got {jobs}.")
    check_cluster(cluster)
    wanted = recipe if isinstance(recipe, Recipe) else read_recipe(recipe, data)
    if isinstance(recipe, (str, Path)) and lies_in(recipe, folder, EXPERIENCE):
        check_trusted(_functions(wanted, data or {}), Path(recipe).parent, trust=trust)
    splits = load_all(wanted)  # before the folder is made: data that can't be read must not leave a folder behind
    with _opened(folder, wanted, resume=resume, force=force):
        remember(_functions(wanted))
        return _trained(wanted, splits, folder, cache, Workers(device, jobs, cluster), watcher)


def _trained(
    wanted: Recipe, splits: Mapping[str, Data], folder: Path, cache: Path | None, workers: Workers, watcher: Progress
) -> SavedPolicy:
    """`train_policy`, in a folder that this process alone writes."""
    started = time.monotonic()
    gathered, failed = gather(wanted, splits, folder / EXPERIENCE, cache or default_cache(), workers, watcher)
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
