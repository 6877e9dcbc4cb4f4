"""A finished run as its folder tells it: what a report shows, read once and checked."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autocompress.config import OPTIONS, Config, MachineOptions, OutputOptions, RunOptions, load_config, names_of
from autocompress.errors import InputError
from autocompress.files import regular_file, strict_json
from autocompress.plan import Plan
from autocompress.report.task_words import holds_numbers, recorded_task
from autocompress.run.folder import check_finished
from autocompress.run.journal import Entry, read_journal
from autocompress.run.names import CONFIG, JOURNAL, LAYERS, OUTCOME, PLAN

_NEEDED = (CONFIG, PLAN, OUTCOME)
_LAYER_FIELDS = {
    "name", "kind", "weight_shape", "parameters", "writes_group", "tied_to", "fixed_reason", "label", "bytes", "macs",
    "weights_left", "expected_loss", "by_weight_bits", "other_plans",
}  # fmt: skip
_NOT_TOLD = {"model", "plan", "device", *names_of(OutputOptions), *names_of(RunOptions)}


@dataclass(frozen=True)
class RunRecord:
    """What the folder of a finished run says.

    Attributes:
        folder: the folder.
        config: options of the run.
        outcome: what outcome.json holds; of runs of earlier versions, `task` is what options and metrics tell, or None.
        plan: the labels.
        layers: one mapping a layer from layers.json; empty for runs of earlier versions.
        explained: the rest of layers.json: groups, expected losses, simple plans; empty for runs of earlier versions.
        entries: every evaluated plan.
    """

    folder: Path
    config: Config
    outcome: Mapping[str, Any]
    plan: Plan
    layers: Sequence[Mapping[str, Any]]
    explained: Mapping[str, Any]
    entries: Sequence[Entry]

    @property
    def name(self) -> str:
        """Name of the run: that of its folder."""
        return self.folder.resolve().name

    @property
    def command(self) -> str:
        """The command, or the line of Python, that makes the run again."""
        made_by = self.outcome.get("made_by") or {}
        name = made_by.get("command", "search" if "evaluations" in self.outcome else "apply")
        given = {option: getattr(self.config, option) for option in OPTIONS if option not in _NOT_TOLD}
        changed = {option: value for option, value in given.items() if value != Config.model_fields[option].default}
        if name == "apply":
            changed["plan"] = PLAN
        if made_by.get("model_in_memory") or made_by.get("data_in_memory"):
            return _python_line(name, self.config.model, changed)
        return _shell_line(name, self.config.model, changed)


def read_run(folder: str | Path) -> RunRecord:
    """The record of a finished run.

    Raises:
        InputError: the folder holds no finished run, or a file in it is damaged.
    """
    path = Path(folder)
    check_finished(path, _NEEDED)
    config, outcome = load_config(path / CONFIG, {}), mapping_in(path / OUTCOME)
    explained = mapping_in(path / LAYERS) if regular_file(path / LAYERS) else {}
    record = RunRecord(
        folder=path,
        config=config,
        outcome=outcome,
        plan=Plan.load(path / PLAN),
        layers=explained.get("layers", []),
        explained=explained,
        entries=read_journal(path / JOURNAL)[1] if regular_file(path / JOURNAL) else [],
    )
    _check(record)
    return record if "task" in outcome else replace(record, outcome=_with_task(outcome, config))


def _with_task(outcome: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """The outcome of a run of an earlier version, which wrote down no task, and equal answers also of numbers."""
    task, compressed = recorded_task(outcome, config.task), outcome["compressed"]
    if holds_numbers(outcome, task):
        compressed = {**compressed, "agreement": None}
    return {**outcome, "task": task, "compressed": compressed}


def mapping_in(path: Path) -> dict[str, Any]:
    """What a JSON file holds. Raises InputError where it is no mapping."""
    try:
        found = strict_json(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} must be JSON, got a damaged file: {error}.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} must be a mapping, got a {type(found).__name__}.")
    return found


def _check(record: RunRecord) -> None:
    """Raise InputError where a file lacks what every report shows."""
    outcome = record.outcome
    for name in ("original", "compressed"):
        part = outcome.get(name)
        if not isinstance(part, dict) or not isinstance(part.get("resources"), dict):
            raise InputError(f"`{name}` of {record.folder / OUTCOME} must hold resources, got {type(part).__name__}.")
    layers = record.folder / LAYERS
    if not isinstance(record.layers, list) or not all(isinstance(layer, dict) for layer in record.layers):
        raise InputError(f"{layers} must be as it was written, got a damaged file; make the run again.")
    if record.layers and [layer.get("name") for layer in record.layers] != list(record.plan.labels):
        raise InputError(f"{layers} must have the layers of {PLAN}, got others; make the run again.")
    if not all(_LAYER_FIELDS.issubset(layer) for layer in record.layers):
        raise InputError(f"{layers} must be as it was written, got a damaged file; make the run again.")


def _shell_line(command: str, model: str, options: Mapping[str, Any]) -> str:
    parts = ["autocompress", command, *([] if model == "digits" else [model])]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            parts.append(flag if value else f"--no-{flag[2:]}")
        else:
            parts += [flag, _as_text(value)]
    return " ".join(map(shlex.quote, parts))


def _python_line(command: str, model: str, options: Mapping[str, Any]) -> str:
    left = {name: value for name, value in options.items() if name != "data"}
    arguments = "".join(f", {name}={_as_python(value)}" for name, value in left.items())
    return f"autocompress.{command}(model, data{arguments})  # model: a {model}"


def _as_text(value: Any) -> str:
    """An option's value as the command line takes it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {each}" for key, each in value.items()) + "}"
    return str(value)


def _as_python(value: Any) -> str:
    return repr(str(value) if isinstance(value, Path) else value)


def machine_options(config: Config) -> dict[str, Any]:
    """Options that say where a run was made, by name; those that nobody set are left out."""
    return {name: value for name in names_of(MachineOptions) if (value := getattr(config, name)) is not None}


@dataclass(frozen=True)
class Row:
    """One measure before and after.

    Attributes:
        title: what was measured.
        group: `quality`, `cost` or `time`.
        values: (original, compressed); None where one is not known.
        texts: both as people read them.
        intervals: both 95 % intervals as people read them; empty where there are none.
        change: the change in words.
    """

    title: str
    group: str
    values: tuple[float | None, float | None]
    texts: tuple[str, str]
    intervals: tuple[str, str] = ("", "")
    change: str = ""


def is_known(value: Any) -> bool:
    """Whether a value that was read is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
