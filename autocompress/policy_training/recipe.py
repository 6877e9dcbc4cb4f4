"""What a policy is trained on: one YAML file, checked as a whole before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from autocompress.config import MenuOptions, names_of, one_line
from autocompress.data.training import Augmentation
from autocompress.errors import InputError
from autocompress.files import read_yaml
from autocompress.job.options import request

_NAME = r"^[A-Za-z0-9._]+(-[A-Za-z0-9._]+)*$"  # they are parts of file names, with two dashes between


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class ZooNetwork(_Part):
    """A network of the zoo.

    Attributes:
        name: in tables and files.
        model: spec string.
        model_args: of the spec.
        data: name of its data in the recipe.
        epochs: over the training data without the search split.
        learning_rate: of SGD with Nesterov momentum at its peak, or of AdamW for networks without batch norm.
        augmentation: see `TrainingBatches`.
        seed: of order and augmentation.
    """

    name: str = Field(pattern=_NAME)
    model: str
    model_args: dict[str, Any] = {}
    data: str
    epochs: float = Field(gt=0)
    learning_rate: float = Field(0.1, gt=0)
    augmentation: Augmentation = "shift"
    seed: int = Field(0, ge=0)


class ZooTask(_Part):
    """A kind of menu and budget; every network of the zoo is explored in it.

    Attributes:
        name: in tables and files.
        resource: that is limited.
        low: least budget, as a share of the way (in logs) from the cheapest plan to the labels of most cost.
        high: largest budget, likewise.
        options: of `search` that say what the menus offer.
    """

    name: str = Field(pattern=_NAME)
    resource: Literal["size", "macs", "bitops", "memory"]
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _check(self) -> ZooTask:
        if not self.low < self.high:
            raise InputError(f"`low` must be below `high`, got {self.low} and {self.high} in the task {self.name}.")
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
        network: `layer`: a perceptron that sees one layer at a time; `sequence`: with attention over all layers.
        members: networks that are averaged; each starts from other weights.
        steps: of AdamW, each over `batch` networks and tasks.
        batch: at least 1.
        learning_rate: at its peak.
        weight_decay: of AdamW.
        shrinkage: of the mean squared price, beside the mean squared error in units of its noise.
        seed: of weights and order.
    """

    network: Literal["layer", "sequence"] = "layer"
    members: int = Field(4, ge=1, le=64)
    steps: int = Field(600, ge=1)
    batch: int = Field(8, ge=1)
    learning_rate: float = Field(3e-3, gt=0)
    weight_decay: float = Field(1e-3, ge=0)
    shrinkage: float = Field(1.0, ge=0)
    seed: int = Field(0, ge=0)


class Recipe(_Part):
    """How a policy is trained.

    Attributes:
        data: spec strings by name.
        networks: the zoo.
        tasks: every network is explored in each.
        budgets: drawn for each network and task.
        episodes: under each budget; the first is the solver's plan.
        search_samples: that plans are compared on.
        fitting: of the policy.
        seed: of the splits, the menus and the episodes.
    """

    data: dict[str, str]
    networks: tuple[ZooNetwork, ...] = Field(min_length=1)
    tasks: tuple[ZooTask, ...] = Field(min_length=1)
    budgets: int = Field(24, ge=1)
    episodes: int = Field(6, ge=2)
    search_samples: int = Field(512, ge=1)
    fitting: Fitting = Field(default_factory=Fitting)  # type: ignore[arg-type]  # all its fields have defaults
    seed: int = Field(0, ge=0)

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
        """As a file that `read_recipe` reads."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def read_recipe(path: str | Path, data: Mapping[str, str] | None = None) -> Recipe:
    """The recipe of a YAML file.

    Args:
        path: of the file.
        data: spec strings that replace those of the file, by name.

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
        raise InputError(one_line(error, depth=4)) from None
