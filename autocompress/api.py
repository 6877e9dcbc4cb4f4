"""The package from Python: `search`, `inspect` and `evaluate`. The command line is a thin shell over these three."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from autocompress.budget import RESOURCES, Budget
from autocompress.config import Config, make_config
from autocompress.data import Data, from_tensors, load_data
from autocompress.data.sources import TensorSource
from autocompress.errors import InputError, unknown_name
from autocompress.evaluation import Evaluator, measure, torch_device
from autocompress.execute import pack
from autocompress.menus import Menus, MenuSettings, build_menus
from autocompress.menus.store import content_key, default_cache
from autocompress.models import check_classes, check_spec, has_random_weights, load_model
from autocompress.network import Network, trace
from autocompress.plan import Plan
from autocompress.recording import Recording, versions, write_results
from autocompress.report.data import result_data
from autocompress.report.inspection import report_layers
from autocompress.report.progress import Progress, Silent
from autocompress.results import Inspection, Measurement, Result
from autocompress.run_folder import RunFolder, claim, journal_header
from autocompress.searchers.agents import agent_spec
from autocompress.searchers.base import SearchSettings, Task
from autocompress.searchers.search import SEARCHERS, run_search
from autocompress_envs import Labeling, Outcome, Pricer, Problem

Pair = tuple[Tensor, Tensor | None]
ModelLike = str | nn.Module
DataLike = str | Data | Pair | tuple[Pair, Pair]


def search(
    model: ModelLike = "digits",
    data: DataLike | None = None,
    budget: str | Budget | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Result:
    """Find the plan that keeps the network's outputs best within a budget, and the network that it gives.

    Args:
        model: a trained network, which is left as it is, or a spec string.
        data: a `Data`, a spec string, (inputs, labels), or a pair of such pairs: for training and for test. The test
            split is read once, at the end; without one, the result is measured on the search split, and says so.
        budget: such as `size=0.1` or `size=40kB,macs=50%`.
        progress: told what happens.
        **options: every other option of the command line, by name; see `autocompress.config.Config`.

    Raises:
        InputError: an option, the model, the data or the budget breaks a rule. Nothing on disk is changed then.
        OSError: the run folder can't be written. What was written before stays valid.
    """
    config = _configure(model, data, options, budget)
    settings, watcher = _search_settings(config), progress or Silent()
    path, wanted = claim(config), config.required_budget()
    loaded = _load_data(data, config)
    _check_reward(config, loaded)
    job = _prepare(model, loaded, config, _menu_settings(config), watcher)
    limits = _feasible_limits(wanted, job, watcher)
    evaluator = _evaluator(job, config, journal_header(path) if config.resume else {})
    with RunFolder(path, config, versions(), _made_on(job, evaluator)) as folder:
        watcher.stage(f"search: {_described(limits, job.original)}; run folder {path}")
        recording = Recording(folder, evaluator, job.menus.plan, limits, config.episodes, watcher)
        task = Task(job.problem, limits, recording.evaluate, _original_accuracy(job, config))
        found = run_search(task, settings, method=config.method, observe=recording.observe, tensorboard=path / "tb")
        measured = _measure(job, evaluator, found.best.labeling, limits, "test", watcher)
        weights = pack(job.menus, found.best.labeling, measured.model)
        result = Result(
            **vars(measured),
            file_bytes=len(weights),
            search_outcome=found.best.outcome,
            evaluations=found.evaluations,
            stopped_because=found.stopped_because,
            run_folder=path,
        )
        write_results(folder, config, result_data(result), weights, found.policy_state)
    return result


def inspect(
    model: ModelLike = "digits", data: DataLike | None = None, *, progress: Progress | None = None, **options: Any
) -> Inspection:
    """What of a network can be compressed, what it costs, and how much each label is expected to hurt.

    Args:
        model: as for `search`.
        data: as for `search`; the test split is not read.
        progress: told what happens.
        **options: as for `search`.

    Raises:
        InputError: an option, the model or the data breaks a rule.
    """
    config = _configure(model, data, options)
    job = _prepare(model, _load_data(data, config), config, _menu_settings(config), progress or Silent())
    return Inspection(job.network, job.problem, job.original, report_layers(job.network, job.problem))


def evaluate(
    model: ModelLike = "digits",
    data: DataLike | None = None,
    plan: Plan | str | Path | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Measurement:
    """Measure a plan, also one edited by hand. Bit-widths that the plan uses are added to those on offer.

    Args:
        model: as for `search`.
        data: as for `search`.
        plan: a plan or its file.
        progress: told what happens.
        **options: as for `search`; `split` says what to measure on, and a `budget` is checked.

    Raises:
        InputError: an option, the model, the data or the plan breaks a rule.
    """
    config = _configure(model, data, options)
    wanted = plan if plan is not None else config.plan
    if wanted is None:
        raise InputError("`plan` must be given, such as --plan runs/demo/plan.yaml.")
    plan = wanted if isinstance(wanted, Plan) else Plan.load(wanted)
    watcher = progress or Silent()
    job = _prepare(model, _load_data(data, config), config, _menu_settings(config, plan), watcher)
    labeling = job.menus.labeling(plan)
    limits = Budget.parse(config.budget).resolve(job.original) if config.budget else {}
    return _measure(job, _evaluator(job, config, {}), labeling, limits, config.split, watcher)


@dataclass(frozen=True)
class _Job:
    """What every command works on."""

    model: nn.Module
    data: Data
    network: Network
    menus: Menus
    problem: Problem
    original: Mapping[str, int]


def _configure(
    model: ModelLike, data: DataLike | None, options: Mapping[str, Any], budget: str | Budget | None = None
) -> Config:
    _check_types(model, data)
    given = {
        "model": model if isinstance(model, str) else type(model).__name__,
        "data": data.name if isinstance(data, Data) else "tensors" if isinstance(data, tuple) else data,
        "budget": str(budget) if isinstance(budget, Budget) else budget,
    }
    config = make_config({**options, **{name: value for name, value in given.items() if value is not None}})
    torch_device(config.device)  # now rather than after minutes of menus
    return config


def _check_types(model: object, data: object) -> None:
    if not isinstance(model, (str, nn.Module)):
        raise InputError(f"`model` must be a torch.nn.Module or a spec string, got {type(model).__name__}.")
    if isinstance(model, str):
        check_spec(model)
    if not isinstance(data, (str, Data, tuple, type(None))):
        raise InputError(
            f"`data` must be a spec string, a Data, or a tuple (inputs, labels), got {type(data).__name__}."
        )


def _search_settings(config: Config) -> SearchSettings:
    """Raises InputError for unknown names, before anything is loaded."""
    names = ("agent", "action", "reward", "episodes", "seed", "patience", "environments", "price_scale")
    settings = SearchSettings(**{name: getattr(config, name) for name in names})
    if config.method not in SEARCHERS:
        raise unknown_name("method", config.method, SEARCHERS)
    if config.method == "rl":
        agent_spec(settings)
    return settings


def _menu_settings(config: Config, plan: Plan | None = None) -> MenuSettings:
    labels = [] if plan is None else plan.labels.values()
    return MenuSettings(
        criterion=config.criterion,
        quantizer=config.quantizer,
        granularity=config.granularity if plan is None else plan.granularity,
        weight_bits=tuple(sorted({*config.weight_bits, *(label.weight_bits for label in labels)})),
        activation_bits=tuple(sorted({*config.activation_bits, *(label.activation_bits for label in labels)})),
        sparsity_levels=config.sparsity_levels,
        seed=config.seed,
    )


def _prepare(model: ModelLike, loaded: Data, config: Config, settings: MenuSettings, watcher: Progress) -> _Job:
    """Load the network, check it, trace it, and build the menus."""
    network_module = _load_model(model, config, loaded, watcher)
    _check_test_shape(loaded)
    inputs, _ = loaded.calibration()
    check_classes(network_module, inputs[:2], loaded.classes)
    network = trace(network_module, inputs[:1])
    _tell_network(network, config, loaded, watcher)
    menus = build_menus(
        network_module,
        network,
        inputs,
        settings,
        data_fingerprint=loaded.fingerprint,
        cache=config.cache or default_cache(),
        jobs=config.jobs,
        progress=watcher.advance,
    )
    problem = menus.problem()
    return _Job(network_module, loaded, network, menus, problem, problem.original())


def _load_data(data: DataLike | None, config: Config) -> Data:
    if isinstance(data, Data):
        return data
    cut: dict[str, Any] = {
        "seed": config.seed,
        "search_samples": config.search_samples,
        "calibration_samples": config.calibration_samples,
    }
    if isinstance(data, tuple):
        train, test = data if isinstance(data[0], tuple) else (data, None)
        return from_tensors(train, test, mean=config.mean, std=config.std, **cut)
    return load_data(
        config.required_data(),
        image_size=config.image_size,
        mean=config.mean,
        std=config.std,
        data_args=config.data_args,
        **cut,
    )


def _load_model(model: ModelLike, config: Config, data: Data, watcher: Progress) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    loaded = load_model(model, config.weights, config.model_args, len(data.classes) or None)
    if has_random_weights(model, config.weights):
        watcher.note(f"{model} has random weights; pass --weights FILE for trained ones")
    return loaded


def _tell_network(network: Network, config: Config, data: Data, watcher: Progress) -> None:
    parameters = sum(layer.parameters for layer in network.layers)
    samples = f"{len(data.search_indices)} search and {len(data.calibration_indices)} calibration samples"
    watcher.stage(
        f"network: {config.model}, {len(network.layers)} layers, {len(network.groups)} channel groups, "
        f"{parameters:,} weights; data: {data.name}, {samples}"
    )
    for name, calls in network.unknown_operators.items():
        watcher.note(f"operator {name} ({calls} calls) is in no cost table; its cost counts as 0")


def _check_test_shape(data: Data) -> None:
    """The test split is measured at the very end: what can't be measured must not be searched. Reads no image file."""
    if isinstance(data.train, TensorSource) and isinstance(data.test, TensorSource):
        train, test = (tuple(source.inputs.shape[1:]) for source in (data.train, data.test))
        if train != test:
            raise InputError(f"`data` must have test inputs of train's shape {train}, got {test} in {data.name}.")


def _check_reward(config: Config, data: Data) -> None:
    if config.reward != "kl" and not data.classes:
        raise InputError(f"`reward` {config.reward} needs labelled data, got {data.name} without labels; choose kl.")


def _feasible_limits(budget: Budget, job: _Job, watcher: Progress) -> dict[str, int]:
    """Absolute limits. Raises InputError where no plan can meet them, before a run folder is made."""
    limits = budget.resolve(job.original)
    try:
        Pricer(job.problem, limits)
    except ValueError as error:  # InfeasibleBudgetError, or a limit below one whole unit
        raise InputError(str(error)) from error
    for name, limit in limits.items():
        if limit >= job.original[name]:
            amounts = f"{limit:,} {RESOURCES[name]}, of which the original has {job.original[name]:,}"
            watcher.note(f"the {name} budget limits nothing: {amounts}")
    return limits


def _evaluator(job: _Job, config: Config, before: Mapping[str, Any]) -> Evaluator:
    """The evaluator; what it would pick by a measurement is taken from the run `before` where one is resumed."""
    inputs, labels = job.data.search()
    return Evaluator(
        job.model,
        job.network,
        job.menus,
        inputs,
        labels,
        device=config.device,
        dtype=before.get("dtype", config.dtype),
        batch_size=before.get("batch_size"),
    )


def _made_on(job: _Job, evaluator: Evaluator) -> dict[str, Any]:
    """What a resumed run must find again."""
    return {
        "network": job.network.fingerprint,
        "data": job.data.fingerprint,
        "menus": content_key(job.model, job.network.fingerprint, job.data.fingerprint, job.menus.settings),
        "dtype": evaluator.dtype,
        "batch_size": evaluator.batch_size,
    }


def _original_accuracy(job: _Job, config: Config) -> float:
    """On the search split; NaN where the reward does not compare with it."""
    if config.reward != "haq":
        return math.nan
    return measure(job.model, job.model, [job.data.search()]).accuracy


def _described(limits: Mapping[str, int], original: Mapping[str, int]) -> str:
    return ", ".join(f"{name} at most {limit:,} of {original[name]:,}" for name, limit in limits.items())


def _measure(
    job: _Job, evaluator: Evaluator, labeling: Labeling, limits: Mapping[str, int], split: str, watcher: Progress
) -> Measurement:
    """Measure the plan and the original together; the only place where the test split is read."""
    if split == "test" and job.data.test is None:
        watcher.note("the data has no test split; measured on the search split, which chose the plan")
        split = "search"
    watcher.stage(f"measuring the original and the plan on the {split} split")
    compressed = evaluator.stitched(labeling)
    batches = job.data.test_batches() if split == "test" else [job.data.search()]
    measured = measure(job.model, compressed, batches)
    resources = job.problem.resources(labeling)
    outcome = Outcome(measured.kl, measured.accuracy, measured.agreement, resources)
    original = Outcome(0.0, measured.original_accuracy, 1.0, dict(job.original))
    plan = job.menus.plan(labeling)
    return Measurement(plan, compressed, outcome, original, split, limits, job.network, job.problem, labeling)
