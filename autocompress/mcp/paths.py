"""The folder that an assistant's tools keep to: every path that they are given lies in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autocompress.config import Config
from autocompress.data.registry import DATA_SOURCES
from autocompress.data.registry import names_function as names_data_function
from autocompress.errors import InputError
from autocompress.models.registry import is_onnx, names_function

_PATHS = ("weights", "tokenizer", "plan", "plot", "out", "policy")
_OWN = ("cache", "force", "resume", "quiet", "format", "watch")  # what the tools decide themselves


class Folder:
    """A folder that paths are kept to.

    Args:
        root: the folder.

    Raises:
        InputError: there is no such folder.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).resolve()
        if not self.root.is_dir():
            raise InputError(f"`folder` must be an existing folder, got {root}.")

    def inside(self, name: str, path: str | Path) -> Path:
        """A path below the folder, links followed.

        Args:
            name: name of the argument, for errors.
            path: path relative to the folder, or an absolute one in it.

        Raises:
            InputError: it leads out of the folder.
        """
        found = (self.root / path).resolve()
        if not found.is_relative_to(self.root):
            raise InputError(f"`{name}` must lie in {self.root}, got {path}.")
        return found

    def told(self, path: Path) -> str:
        """A path in the folder as it is told to the assistant: relative to the folder."""
        return path.relative_to(self.root).as_posix()

    def check(self, config: Config) -> None:
        """Raise InputError where an option leads out of the folder, or names code that does not lie in it.

        Args:
            config: the options.
        """
        for name in _OWN:
            if getattr(config, name) != Config.model_fields[name].default:
                raise InputError(f"`{name}` can't be given to a tool; use the command line.")
        for name in _PATHS:
            value = getattr(config, name)
            if value is not None and not (name == "policy" and value in ("default", "none")):
                self.inside(name, value)
        self._check_model(config.model)
        if config.data is not None:
            self._check_data(config.data)

    def _check_model(self, spec: str) -> None:
        kind, _, place = spec.partition(":")
        if is_onnx(spec):
            self.inside("model", spec)
        elif kind == "hf":
            self.inside("model", place)
        elif names_function(spec):
            self._check_code("model", spec)

    def _check_data(self, spec: str) -> None:
        kind, _, place = spec.partition(":")
        if names_data_function(spec):
            self._check_code("data", spec)
        elif place and kind in DATA_SOURCES:
            self.inside("data", place)

    def _check_code(self, name: str, spec: str) -> None:
        """Raise InputError unless a callable is in a Python file below the folder."""
        file = spec.rpartition(":")[0]
        if not file.endswith(".py"):
            raise InputError(
                f"`{name}` must name a function in a file of {self.root}, such as mine.py:net, got {spec}."
            )
        self.inside(name, file)


def command_line(command: str, config: Config, given: Mapping[str, Any]) -> list[str]:
    """The arguments of `autocompress` for options that were given and checked.

    Args:
        command: name of the command.
        config: the options, checked.
        given: names of the options that were given.
    """
    flags: list[str] = []
    for name in given:
        value = getattr(config, name)
        if name == "model" or value is None:
            continue
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            flags.append(flag if value else f"--no-{flag[2:]}")
        else:
            flags += [flag, _text(value)]
    return [command, config.model, *flags]


def _text(value: Any) -> str:
    import json

    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return json.dumps(value) if isinstance(value, dict) else str(value)
