"""From options to what a job is made of. Every option is checked here, once, before anything is loaded.

A `Request` holds the options as they were given and the parts that are made of them; the parts travel on, and nobody
below makes them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from autocompress.budget import Budget
from autocompress.config import Config, ExecutionOptions, MenuOptions, SearchOptions, load_config, make_config
from autocompress.data import Data
from autocompress.errors import InputError
from autocompress.evaluation import AUTO, torch_device
from autocompress.execute.distillation import Objective
from autocompress.execute.tuning import FineTuning
from autocompress.menus import MenuSettings
from autocompress.menus.plan_checks import with_widths_of
from autocompress.menus.settings import EVERY_WIDTH, WIDE
from autocompress.models import check_spec
from autocompress.network.structure import Network
from autocompress.plan import Plan
from autocompress.policies.files import SavedPolicy
from autocompress.policies.use import chosen_policy
from autocompress.run.folder import options_file
from autocompress.run.names import PLAN
from autocompress.searchers.agents import check_agent
from autocompress.searchers.base import REWARDS, SearchSettings
from autocompress.searchers.search import Searcher, as_searcher
from autocompress.targets import TARGETS, Target
from autocompress.targets.runner import Runner
from autocompress.targets.runner.runner import PACKAGES
from autocompress.targets.timing import TimeLimit

Pair = tuple[Tensor, Tensor | None]
ModelLike = str | nn.Module
DataLike = str | Data | Pair | tuple[Pair, Pair]

_HARD_WEIGHT = 0.5  # of hard labels, where nothing else is said and there are any


@dataclass(frozen=True, eq=False)
class Request:
    """What a job was asked for.

    Attributes:
        config: the options as they were given.
        model: the network, or its spec string.
        data: the data in memory, or None where the options name it.
        target: target that the result runs on.
        menus: settings of the menus.
        time: the budget's limit of time; None where it has none.
        plan: the plan that is made real or measured; None: one is searched for.
    """

    config: Config
    model: ModelLike
    data: DataLike | None
    target: Target
    menus: MenuSettings
    time: TimeLimit | None
    plan: Plan | None

    def menus_of(self, network: Network) -> MenuSettings:
        """Settings of the menus of this network, on which the labels of the plan are."""
        return self.menus if self.plan is None else with_widths_of(self.plan, network, self.menus)


@dataclass(frozen=True, eq=False)
class SearchRequest(Request):
    """What a job with a search was asked for.

    Attributes:
        searcher: the search method.
        settings: settings of the search.
        policy: the policy that the search begins with, or None.
        begin_with: plans that the agent evaluates first, by the path that they were read from.
    """

    searcher: Searcher
    settings: SearchSettings
    policy: SavedPolicy | None
    begin_with: Mapping[Path, Plan]

    @property
    def compares_with_original(self) -> bool:
        """Whether the reward, or one of the method's own, needs the original's accuracy."""
        return self.searcher.needs_original_accuracy or REWARDS[self.settings.reward].needs_original_accuracy


def request(
    model: ModelLike = "digits",
    data: DataLike | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    budget: str | Budget | None = None,
    plan: Plan | None = None,
) -> Request:
    """What a job was asked for, checked.

    Args:
        model: the network, or its spec string.
        data: the data, or its spec string.
        options: all other options by name.
        budget: upper bounds, in place of the option of that name.
        plan: a plan whose labels the menus must offer, besides those of the options.

    Raises:
        InputError: an option breaks a rule.
    """
    config = _config(model, data, options or {}, budget)
    limits = None if config.budget is None else Budget.parse(config.budget)
    time = None if limits is None else TimeLimit.of(limits, config.batch, config.threads)
    target, menus = _menus(config, config.seed, plan, time)
    if config.runner is not None:
        target = _timed_elsewhere(target, config.runner)
    if time is not None:
        _check_time(target, time)
    return Request(config, model, None if isinstance(data, str) else data, target, menus, time, plan)


def search_request(
    model: ModelLike = "digits",
    data: DataLike | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    budget: str | Budget | None = None,
) -> SearchRequest:
    """The same for a search.

    Args:
        model: the network, or its spec string.
        data: the data, or its spec string.
        options: all other options by name; the method may be a function.
        budget: upper bounds, in place of the option of that name.

    Raises:
        InputError: an option breaks a rule, or the policy can't be read.
    """
    method = (options or {}).get("method")
    asked = request(model, data, options, budget=budget)
    _check_stages(asked.config, asked.time)
    searcher = as_searcher(method if callable(method) else asked.config.method)
    settings = search_settings(asked.config, asked.config.seed)
    if searcher.has_agent:
        check_agent(settings)
    policy, plans = chosen_policy(asked.config, settings, searcher), _plans_to_begin_with(asked.config, searcher)
    return SearchRequest(**vars(asked), searcher=searcher, settings=settings, policy=policy, begin_with=plans)


def _plans_to_begin_with(config: Config, searcher: Searcher) -> dict[Path, Plan]:
    """The plans of the option `begin_with`, read now: `force` may replace the run that one is of."""
    if not config.begin_with:
        return {}
    if not searcher.has_agent or not config.episodes:
        got = "no evaluations; pass --episodes 20" if searcher.has_agent else f"{config.method}; pass --method rl"
        raise InputError(f"`begin_with` must go with an agent that evaluates plans, got {got}.")
    try:
        return {path: Plan.load(path / PLAN if path.is_dir() else path) for path in config.begin_with}
    except InputError as error:
        raise InputError(f"`begin_with` must be folders of runs or plan files, got another: {error}") from None


def _config(model: ModelLike, data: DataLike | None, options: Mapping[str, Any], budget: str | Budget | None) -> Config:
    if not isinstance(model, (str, nn.Module)):
        raise InputError(f"`model` must be a torch.nn.Module or a spec string, got {type(model).__name__}.")
    if isinstance(model, str):
        check_spec(model)
    if not isinstance(data, (str, Data, tuple, type(None))):
        raise InputError(
            f"`data` must be a spec string, a Data, or a tuple (inputs, labels), got {type(data).__name__}."
        )
    given = {
        "model": model if isinstance(model, str) else type(model).__name__,
        "data": data.name if isinstance(data, Data) else "tensors" if isinstance(data, tuple) else data,
        "budget": str(budget) if isinstance(budget, Budget) else budget,
    }
    config = make_config({**options, **{name: value for name, value in given.items() if value is not None}})
    return config.model_copy(update={"device": _device(config)})


def _device(config: Config) -> str:
    """The device's own name in place of `auto`, so that the run's files say which it was.

    A run that is resumed goes on where it began: another device rounds otherwise, so the search would take other turns
    than its journal.
    """
    name = config.device
    if name == AUTO and config.resume and config.out is not None and options_file(config.out).is_file():
        name = load_config(options_file(config.out), {}).device
    return str(torch_device(name))  # raises now rather than after minutes of menus


def _menus(options: MenuOptions, seed: int, plan: Plan | None, time: TimeLimit | None) -> tuple[Target, MenuSettings]:
    """What the menus offer; the labels of a plan are added. Raises InputError where the target does not allow one."""
    target = TARGETS.find(options.target)
    of_channels = options.granularity == "channel"
    can_remove = of_channels and 1 not in (options.weight_bits or ())
    remove_branches = options.remove_branches
    if remove_branches is None:
        remove_branches = time is not None and can_remove
    labels = [] if plan is None else plan.labels.values()
    weight_bits = options.weight_bits or target.offered_weight_bits
    settings = MenuSettings(
        criterion=options.criterion,
        quantizer=options.quantizer,
        granularity=options.granularity if plan is None else plan.granularity,
        weight_bits=tuple(sorted({*weight_bits, *(label.weight_bits for label in labels)})),
        activation_bits=tuple(sorted({*options.activation_bits, *(label.activation_bits for label in labels)})),
        sparsity_levels=options.sparsity_levels,
        remove_branches=remove_branches or any(label.sparsity == 1 for label in labels),
        steps_from=_steps_from(options.width_steps, time),
        ranks=options.ranks,
        seed=seed,
    )
    target.check_installed()
    target.check(settings.weight_bits, settings.activation_bits, settings.granularity)
    return target, settings


def _steps_from(width_steps: bool | None, time: TimeLimit | None) -> int | None:
    """The fewest channels of a layer that are left in steps: of wide ones they cost next to nothing."""
    if width_steps is None:
        return WIDE if time is None else EVERY_WIDTH
    return EVERY_WIDTH if width_steps else None


def _check_time(target: Target, time: TimeLimit) -> None:
    """Raise InputError where nothing can be timed: now rather than after the menus."""
    if target.runtime is None:
        able = ", ".join(name for name, each in TARGETS.items() if each.runtime is not None)
        raise InputError(
            f"`budget` of latency must go with a target whose file runs here ({able}), got {target.name}; "
            "pass --target onnxruntime."
        )
    if time.threads > 1 and target.runtime.open_with is None:
        raise InputError(f"`threads` must be 1 in the runtime {target.runtime.name}, got {time.threads}.")


def _timed_elsewhere(target: Target, command: str) -> Target:
    """The target whose files are timed by a runner. Raises InputError where the runner can't run them."""
    if target.runtime is None or target.runtime.package not in PACKAGES:
        able = ", ".join(
            name for name, each in TARGETS.items() if each.runtime is not None and each.runtime.package in PACKAGES
        )
        raise InputError(f"`runner` must go with a target whose file it can run ({able}), got {target.name}.")
    return replace(target, runtime=replace(target.runtime, runner=Runner(command)))


def search_settings(options: SearchOptions, seed: int) -> SearchSettings:
    """Settings of a search; without episodes there is none, and the policy decides alone."""
    return SearchSettings(
        agent=options.agent,
        action=options.action,
        reward=options.reward,
        episodes=max(1, options.episodes),
        seed=seed,
        patience=options.patience,
        environments=options.environments,
        price_scale=options.price_scale,
    )


def fine_tuning(
    options: ExecutionOptions, seed: int, *, has_labels: bool, epochs: float | None = None
) -> FineTuning | None:
    """Settings of fine-tuning; None for 0 epochs.

    Args:
        options: options of the execution.
        seed: seed of the order of samples and of their augmentation.
        has_labels: whether the data has labels.
        epochs: number of epochs, in place of that of the options.

    Raises:
        InputError: a value is out of range.
    """
    epochs = options.finetune if epochs is None else epochs
    if epochs == 0:
        return None
    return FineTuning(
        epochs=epochs,
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        labels=options.labels,
        objective=Objective(
            soft=options.soft_weight,
            hard=_hard_weight(options, has_labels),
            features=options.features_weight,
            temperature=options.temperature,
        ),
        augmentation=options.augmentation,
        mixup=options.mixup,
        clip=options.clip,
        seed=seed,
        method=options.distillation,
    )


def _hard_weight(options: ExecutionOptions, has_labels: bool) -> float:
    if options.hard_weight is not None:
        return options.hard_weight
    return _HARD_WEIGHT if has_labels or options.labels == "teacher" else 0.0


def _check_stages(options: ExecutionOptions, time: TimeLimit | None) -> None:
    if options.stages > 1 and time is not None:
        raise InputError(f"`stages` must be 1 with a budget of latency, got {options.stages}.")
    if options.stages > 1 and options.finetune == 0:
        raise InputError(f"`stages` above 1 need fine-tuning between them, got {options.stages}; pass --finetune 1.")


def given_plan(plan: Plan | str | Path | None) -> Plan:
    """A plan, or that in a file. Raises InputError where there is none, or it can't be read."""
    if plan is None:
        raise InputError("`plan` must be given, such as --plan runs/demo/plan.yaml.")
    return plan if isinstance(plan, Plan) else Plan.load(plan)
