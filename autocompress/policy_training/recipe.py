"""The first step of training a policy: the recipe, one YAML file, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from autocompress.config import MOST_SEED, MenuOptions, names_of, one_line
from autocompress.data.training import Augmentation
from autocompress.errors import InputError
from autocompress.files import read_yaml
from autocompress.job.options import request

_NAME = r"^[A-Za-z0-9._]+(-[A-Za-z0-9._]+)*$"  # they are parts of file names, with two dashes between


class _Part(BaseModel):
    """A part of a recipe: unknown keys, NaN and infinity are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class ZooNetwork(_Part):
    """A network of the zoo.

    Attributes:
        name: name in tables and file names.
        family: kind of network, such as residual; policies are judged on families that they were not trained on.
        model: network as the option `model` names it, such as `resnet20`.
        model_args: keyword arguments of the network.
        data: name of the network's data in `Recipe.data`.
        epochs: number of passes over the training data without the search split; fractions are allowed.
        learning_rate: peak learning rate of SGD with Nesterov momentum, or of AdamW for networks without
            batch norm.
        augmentation: augmentation of training images, as in `TrainingBatches`.
        seed: seed of the order of the samples and of their augmentation, at least 0.
    """

    name: str = Field(pattern=_NAME)
    family: str = "unnamed"
    model: str
    model_args: dict[str, Any] = {}
    data: str
    epochs: float = Field(gt=0)
    learning_rate: float = Field(0.1, gt=0)
    augmentation: Augmentation = "shift"
    seed: int = Field(0, ge=0, le=MOST_SEED)


class ZooBudgets(_Part):
    """Budgets of one resource that are drawn at random.

    Attributes:
        resource: resource that the budgets limit.
        low: smallest budget, as a share in [0, 1] of the way, on a logarithmic scale, from the cost of the
            cheapest plan to the cost of the most expensive labels.
        high: largest budget, as such a share; above `low`.
    """

    resource: Literal["size", "macs", "bitops", "memory"]
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> ZooBudgets:
        if not self.low < self.high:
            raise InputError(f"`low` must be below `high`, got {self.low} and {self.high} for {self.resource}.")
        return self


class ZooTask(_Part):
    """A kind of menu with its budgets; every network of the zoo is explored in it.

    Attributes:
        name: name in tables and file names.
        budgets: ranges that budgets are drawn from, by turns.
        options: options of `search` that say what the menus offer, by name.
    """

    name: str = Field(pattern=_NAME)
    budgets: tuple[ZooBudgets, ...] = Field(min_length=1)
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _check(self) -> ZooTask:
        menus = set(names_of(MenuOptions))
        unknown = sorted({name.replace("-", "_") for name in self.options} - menus)
        if unknown:
            raise InputError(
                f"`options` of the task {self.name} must be among {', '.join(sorted(menus))}, got {unknown}."
            )
        request(options=self.options)  # raises InputError for what breaks a rule
        return self


class Fitting(_Part):
    """How a policy is fitted to episodes.

    Attributes:
        members: number of networks whose scores are averaged; each starts from other weights.
        width: features inside a network, a multiple of 4.
        steps: number of optimizer steps of AdamW.
        batch: number of lessons in each step, at least 1.
        learning_rate: peak learning rate.
        weight_decay: weight decay of AdamW.
        shrinkage: weight of the mean squared log price in the loss of prices; the mean squared error, in units of its
            noise, has the weight 1.
        seed: seed of the initial weights and of the order of the batches, at least 0.
    """

    members: int = Field(1, ge=1, le=64)
    width: int = Field(64, ge=4, le=512, multiple_of=4)
    steps: int = Field(1500, ge=1)
    batch: int = Field(8, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    shrinkage: float = Field(10.0, ge=0)
    seed: int = Field(0, ge=0, le=MOST_SEED)


class Reinforcement(_Part):
    """How a policy goes on to learn by masked PPO in the environment.

    Attributes:
        steps: number of steps in the environment; 0: none.
        environments: number of environments in lockstep.
        rollout: steps in each of them between two updates.
        batch: steps in a gradient step.
        epochs: passes over the steps of an update.
        learning_rate: learning rate of Adam.
        gae_lambda: lambda of generalised advantage estimation, in [0, 1].
        entropy: weight of the entropy bonus.
        target_kl: divergence from the policy before an update at which the update ends.
        curriculum: share of the steps, in [0, 1], in which tasks go from those with the fewest kinds of label to all of
            them, and budgets from the mildest of each resource to all of them; 0: all from the start.
    """

    steps: int = Field(60_000, ge=0)
    environments: int = Field(8, ge=1)
    rollout: int = Field(128, ge=1)
    batch: int = Field(256, ge=2)
    epochs: int = Field(3, ge=1)
    learning_rate: float = Field(1e-4, gt=0)
    gae_lambda: float = Field(0.95, ge=0, le=1)
    entropy: float = Field(0.003, ge=0)
    target_kl: float = Field(0.03, gt=0)
    curriculum: float = Field(0.0, ge=0, le=1)


class Recipe(_Part):
    """How a policy is trained.

    Attributes:
        data: data of the zoo as the option `data` names it, by names that `networks` use.
        networks: networks of the zoo.
        tasks: kinds of menu and budget; every network is explored in each.
        budgets: number of budgets that are drawn for each network and task.
        plans: number of plans that are evaluated under each budget, at least 2; the first is the solver's.
        search_samples: number of samples that plans are compared on.
        fitting: settings of learning from the expert's plans.
        reinforcement: settings of learning in the environment.
        seed: seed of the splits, the menus and the episodes, at least 0.
    """

    data: dict[str, str]
    networks: tuple[ZooNetwork, ...] = Field(min_length=1)
    tasks: tuple[ZooTask, ...] = Field(min_length=1)
    budgets: int = Field(9, ge=1)
    plans: int = Field(7, ge=2)
    search_samples: int = Field(256, ge=1)
    fitting: Fitting = Field(default_factory=Fitting)  # type: ignore[arg-type]  # all its fields have defaults
    reinforcement: Reinforcement = Field(default_factory=Reinforcement)  # type: ignore[arg-type]
    seed: int = Field(0, ge=0, le=MOST_SEED)

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        for what, names in (("networks", [n.name for n in self.networks]), ("tasks", [t.name for t in self.tasks])):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise InputError(f"`{what}` must have different names, got {', '.join(twice)} twice.")
        for network in self.networks:
            if network.data not in self.data:
                known = ", ".join(self.data)
                raise InputError(f"`data` of {network.name} must be one of {known}, got {network.data!r}.")
        return self

    def to_yaml(self) -> str:
        """The recipe as the text of a file that `read_recipe` reads."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def read_recipe(path: str | Path, data: Mapping[str, str] | None = None) -> Recipe:
    """Read a recipe from a YAML file.

    Args:
        path: path of the file.
        data: data that replaces the file's, by the names that the file gives it, such as `parquet:FOLDER`.

    Raises:
        InputError: the file can't be read, or something in it breaks a rule.
    """
    content = read_yaml("recipe", path)
    if not isinstance(content, Mapping):
        raise InputError(f"`recipe` must be a mapping, got {path}, which holds a {type(content).__name__}.")
    known = content.get("data")
    for name in data or {}:
        if not isinstance(known, Mapping) or name not in known:
            raise InputError(f"`data` must name data of the recipe, got {name!r}, which {path} does not have.")
    try:
        return Recipe.model_validate({**content, "data": {**(known or {}), **(data or {})}} if data else content)
    except ValidationError as error:
        raise InputError(one_line(error, depth=6, model=Recipe)) from None
