"""Jobs: from options to a network that is loaded, traced and has its menus. What every command begins with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from autocompress.budget import RESOURCES, Budget
from autocompress.config import Config, make_config
from autocompress.data import Data, from_tensors, load_data
from autocompress.data.sources import TensorSource
from autocompress.errors import ExportError, InputError
from autocompress.evaluation import Evaluator, torch_device
from autocompress.execute import uncompressed
from autocompress.menus import Menus, MenuSettings, build_menus
from autocompress.menus.store import content_key, default_cache
from autocompress.models import check_classes, check_spec, has_random_weights, load_model
from autocompress.network import Network, fold_batch_norms, trace
from autocompress.plan import Plan
from autocompress.report.progress import Progress
from autocompress.searchers.search import LABELLED
from autocompress.targets import Target, counted_on_file, find_target
from autocompress.targets.lowering import lower
from autocompress.targets.onnx_file import write_onnx
from autocompress.targets.onnx_runtime import OnnxSession, open_session
from autocompress_envs import InfeasibleBudgetError, Pricer, Problem

Pair = tuple[Tensor, Tensor | None]
ModelLike = str | nn.Module
DataLike = str | Data | Pair | tuple[Pair, Pair]


@dataclass(frozen=True)
class Loaded:
    """A network and its data.

    Attributes:
        model: the original: it teaches, and every result is measured against it.
        base: what is compressed: the original, or what earlier stages made of it; of the same architecture.
        folded: the base with its norms folded, float32.
        teacher: the original with its norms folded, float32.
        data: its splits.
        inputs: the calibration split's.
        target: where the result runs.
        network: as traced.
    """

    model: nn.Module
    base: nn.Module
    folded: nn.Module
    teacher: nn.Module
    data: Data
    inputs: Tensor
    target: Target
    network: Network

    @cached_property
    def original_session(self) -> OnnxSession:
        """The original in ONNX Runtime, in float32; exported when first asked for."""
        original = uncompressed(self.teacher, self.network)
        return open_session(write_onnx(lower(original, self.inputs, integer=False)))


@dataclass(frozen=True)
class Job(Loaded):
    """A network with its menus.

    Attributes:
        menus: of the network; their `size` is counted on the target's file.
        problem: the menus in numbers.
        original: every resource of the original; `size` is that of its float32 file.
    """

    menus: Menus
    problem: Problem
    original: Mapping[str, int]


def loaded_fields(loaded: Loaded) -> dict[str, Any]:
    """What of a job does not depend on its menus, by name."""
    return {field.name: getattr(loaded, field.name) for field in dataclasses.fields(Loaded)}


def configure(
    model: ModelLike, data: DataLike | None, options: Mapping[str, Any], budget: str | Budget | None = None
) -> Config:
    """All options of a job, checked. Raises InputError for what breaks a rule."""
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


def menu_settings(config: Config, plan: Plan | None = None) -> MenuSettings:
    """What the menus offer; bit-widths that a plan uses are added.

    Raises:
        InputError: a label is not legal for the target.
    """
    target = find_target(config.target)
    labels = [] if plan is None else plan.labels.values()
    weight_bits = config.weight_bits or target.default_weight_bits
    settings = MenuSettings(
        criterion=config.criterion,
        quantizer=config.quantizer,
        granularity=config.granularity if plan is None else plan.granularity,
        weight_bits=tuple(sorted({*weight_bits, *(label.weight_bits for label in labels)})),
        activation_bits=tuple(sorted({*config.activation_bits, *(label.activation_bits for label in labels)})),
        sparsity_levels=config.sparsity_levels,
        remove_branches=config.remove_branches or any(label.sparsity == 1 for label in labels),
        seed=config.seed,
    )
    target.check(settings.weight_bits, settings.activation_bits, settings.granularity)
    return settings


def load(model: ModelLike, data: Data, config: Config, watcher: Progress) -> Loaded:
    """Load the network, check that it fits the data, and trace it.

    Raises:
        InputError: the network can't be loaded or traced, or does not fit the data.
    """
    module = _load_model(model, config, data, watcher)
    _check_test_shape(data)
    inputs, _ = data.calibration()
    check_classes(module, inputs[:2], data.classes)
    network = trace(module, inputs[:1])
    _tell_network(network, config, data, watcher)
    folded = fold_batch_norms(module, network).cpu().float().eval()
    return Loaded(module, module, folded, folded, data, inputs, find_target(config.target), network)


def prepare(
    loaded: Loaded, config: Config, settings: MenuSettings, watcher: Progress, *, must_export: bool = True
) -> Job:
    """Build the menus, and count `size` on the target's file.

    Args:
        loaded: the network and its data.
        config: of the job.
        settings: of the menus.
        watcher: told what happens.
        must_export: whether a network that the target can't hold is an error; else its `size` is counted on weights.

    Raises:
        ExportError: the target can't hold the network.
    """
    menus = build_menus(
        loaded.base,
        loaded.network,
        loaded.inputs,
        settings,
        data_fingerprint=loaded.data.fingerprint,
        cache=config.cache or default_cache(),
        jobs=config.jobs,
        progress=watcher.advance,
    )
    try:
        menus, original_bytes = counted_on_file(loaded.target, menus, loaded.folded, loaded.inputs)
    except ExportError as error:
        if must_export:
            raise
        watcher.note(f"{error} Until then `size` counts the weights alone")
        original_bytes = menus.problem().original()["size"]
    problem = menus.problem()
    original = problem.original() | {"size": original_bytes}
    return Job(**{**loaded_fields(loaded), "network": menus.network}, menus=menus, problem=problem, original=original)


def build_evaluator(job: Job, config: Config, before: Mapping[str, Any]) -> Evaluator:
    """The evaluator; what it would pick by a measurement is taken from the run `before` where one is resumed."""
    inputs, labels = job.data.search()
    return Evaluator(
        job.base,
        job.network,
        job.menus,
        inputs,
        labels,
        reference=job.model,
        device=config.device,
        dtype=before.get("dtype", config.dtype),
        batch_size=before.get("batch_size"),
    )


def load_splits(data: DataLike | None, config: Config) -> Data:
    """The data, split. Raises InputError where it can't be read or is too little."""
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


def check_labels(config: Config, data: Data) -> None:
    """Raises InputError now rather than after the search."""
    if data.classes:
        return
    if config.finetune + config.l1_epochs and config.hard_weight and config.labels == "data":
        raise InputError(
            f"`hard_weight` needs labelled data, got {data.name} without labels; pass --labels teacher or leave it out."
        )
    if config.reward != "kl":
        raise InputError(f"`reward` {config.reward} needs labelled data, got {data.name} without labels; choose kl.")
    if config.method in LABELLED:
        raise InputError(
            f"`method` {config.method} needs labelled data for its own reward, got {data.name} without labels; "
            "choose another method."
        )


def feasible_limits(budget: Budget, job: Job, watcher: Progress) -> dict[str, int]:
    """Absolute limits. Raises InputError where no plan can meet them, before a run folder is made."""
    limits = budget.resolve(job.original)
    try:
        Pricer(job.problem, limits)
    except InfeasibleBudgetError as error:
        raise InputError(str(error)) from error
    for name, limit in limits.items():
        if limit >= job.original[name]:
            amounts = f"{limit:,} {RESOURCES[name]}, of which the original has {job.original[name]:,}"
            watcher.note(f"the {name} budget limits nothing: {amounts}")
    return limits


def made_on(job: Job, evaluator: Evaluator) -> dict[str, Any]:
    """What a resumed run must find again."""
    return {
        "network": job.network.fingerprint,
        "data": job.data.fingerprint,
        "menus": content_key(job.base, job.network.fingerprint, job.data.fingerprint, job.menus.settings),
        "dtype": evaluator.dtype,
        "batch_size": evaluator.batch_size,
    }


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
