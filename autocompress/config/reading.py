"""Reading options: from YAML files, command lines and keyword arguments, with one kind of error."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from autocompress.config.execution import ExecutionOptions
from autocompress.config.menus import MenuOptions
from autocompress.config.options import (
    OPTIONS,
    BudgetOptions,
    Config,
    NetworkOptions,
    SearchOptions,
    names_of,
)
from autocompress.errors import InputError, did_you_mean, unknown_keys
from autocompress.files import read_yaml

_SHOWN = 200  # characters of a value in a message
_AFTER_THE_SEARCH = ("finetune", "recalibration_samples")


def make_config(options: Mapping[str, Any], where: str = "the options") -> Config:
    """Check options.

    Args:
        options: values by the options' names, with dashes or underscores.
        where: name of their source, for errors about unknown options.

    Raises:
        InputError: an unknown option, or a value that breaks a rule.
    """
    named = {str(name).replace("-", "_"): value for name, value in options.items()}
    unknown = sorted(set(named) - set(OPTIONS))
    if unknown:
        raise unknown_keys(unknown, where, OPTIONS)
    try:
        return Config(**named)
    except ValidationError as error:
        raise InputError(one_line(error)) from None


def load_config(path: str | Path | None, overrides: Mapping[str, Any]) -> Config:
    """The options of a YAML file, overridden by those of `overrides` that are not None.

    Raises:
        InputError: the file can't be read, is no mapping, or holds an unknown option or a value that breaks a rule.
    """
    from_file = {} if path is None else read_options(Path(path))
    given = {name: value for name, value in overrides.items() if value is not None}
    return make_config({**from_file, **given}, "the options" if path is None else str(path))


def read_options(path: Path) -> dict[str, Any]:
    """The options that a YAML file gives, unchecked but for their form, by name with underscores."""
    content = read_yaml("config", path)
    if not isinstance(content, Mapping | None):
        raise InputError(f"`config` must be a mapping of options, got {path}, which holds a {type(content).__name__}.")
    return {str(name).replace("-", "_"): value for name, value in (content or {}).items()}


def first_difference(before: Config, now: Config) -> str | None:
    """The first option that changes what is searched and differs between a run and its resumption, or None."""
    for option in _compared(before):
        if getattr(before, option) != getattr(now, option):
            return option
    return None


def _compared(config: Config) -> tuple[str, ...]:
    """Options of everything that comes before the last search; stages and an L1 penalty fine-tune before it."""
    parts = (NetworkOptions, BudgetOptions, MenuOptions, SearchOptions, ExecutionOptions)
    machine = ("device", "dtype")  # they decide the last bits of every measurement
    left_out: set[str] = set()
    if config.stages == 1:
        left_out = set(_AFTER_THE_SEARCH)  # an L1 penalty has its own epochs, and no re-calibration
        if not config.l1_epochs:
            left_out |= set(names_of(ExecutionOptions)) - {"stages", "l1_epochs", "l1_weight"}
    return tuple(name for name in (*names_of(*parts), *machine) if name not in left_out)


def one_line(error: ValidationError, depth: int = 1, model: type[BaseModel] | None = None) -> str:
    """The first thing that is wrong, as our errors say it.

    Args:
        error: all that is wrong.
        depth: number of keys that name the value, at most; they are joined by dots. Default: 1.
        model: model that was made, whose fields are named where one is unknown. Default: nobody asks.
    """
    first = error.errors()[0]
    cause, name = first.get("ctx", {}).get("error"), ".".join(map(str, first["loc"][:depth]))
    if isinstance(cause, InputError):
        return str(cause)
    if first["type"] == "missing":  # what was given is all else, and long
        return f"`{name}` must be given."
    if first["type"] == "extra_forbidden" and model is not None:
        *path, key = map(str, first["loc"])
        return str(unknown_keys([key], f"`{'.'.join(path)}`" if path else "the file", _fields_at(model, path)))
    rule = re.sub(r"^Input should be", "must be", re.sub(r", (unable|got) .*", "", first["msg"]))
    got = repr(first["input"])
    near = did_you_mean(str(first["input"]), re.findall("'([^']*)'", first.get("ctx", {}).get("expected", "")))
    return f"`{name}` {rule}, got {got if len(got) <= _SHOWN else got[:_SHOWN] + '…'}{near}."


def _fields_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Names of the fields of a model, or of one inside it that keys and numbers lead to."""
    for key in path:
        if key.isdigit():  # an entry of a tuple, whose kind was found with its name
            continue
        annotation = model.model_fields[key].annotation
        kinds = (annotation, *get_args(annotation))
        model = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
    return list(model.model_fields)
