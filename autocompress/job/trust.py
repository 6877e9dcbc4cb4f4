"""Whose functions run: those that this user named or trusts, not those that a folder's files name.

A folder that the package has written says which network and data it was made with: `model: nets.py:small`,
`data: sets.py:load`, with keyword arguments. A folder may come from somebody else, and such a name is as good as a
command. So it is followed only where

- the user names the function again, as an argument or on the command line, or
- the user says that the folder is trusted (`--trust`, in Python `trust=True`), or
- this user has let the same function run with the same arguments before. What was let run is remembered as digests, one
  a line, in `$XDG_STATE_HOME/autocompress/functions` (by default below ~/.local/state), so `verify` and `--resume` need
  nothing more for runs of one's own. A file counts by its absolute path, whatever it holds now.

A file that the user hands over as options is as good as a command line: `--config FILE`, a suite or a recipe, unless it
lies in a folder that the package has written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.data.registry import names_function as is_data_function
from autocompress.errors import InputError
from autocompress.models.registry import names_function as is_model_function


@dataclass(frozen=True)
class NamedFunction:
    """A function of somebody's own that options name.

    Attributes:
        option: option that names it, `model`, `data` or `runner`.
        spec: `package.module:callable` or `file.py:callable`; of `runner` the command.
        arguments: keyword arguments that it is called with.
    """

    option: str
    spec: str
    arguments: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """64 hex digits of SHA-256 over what is called: a file by its absolute path, and the arguments."""
        where, _, name = self.spec.rpartition(":")
        place = str(Path(where).resolve()) if where.endswith(".py") else where
        content = json.dumps([self.option, place, name, _plain(self.arguments)])
        return hashlib.sha256(content.encode()).hexdigest()


def named_functions(options: Mapping[str, Any]) -> list[NamedFunction]:
    """The functions that options name.

    Args:
        options: options by name; `model`, `model_args`, `data`, `data_args` and `runner` are read, all of which may be
            missing.
    """
    kinds: Mapping[str, Callable[[str], bool]] = {"model": is_model_function, "data": is_data_function, "runner": bool}
    return [
        NamedFunction(option, options[option], options.get(f"{option}_args") or {})
        for option, is_function in kinds.items()
        if isinstance(options.get(option), str) and is_function(options[option])
    ]


def lies_in(file: str | Path, out: Path, mark: str) -> bool:
    """Whether a file of options lies in a folder that the package has written, and is not one of the user's own.

    Args:
        file: file of options.
        out: folder that the command writes into.
        mark: name of something that every folder of its kind holds.
    """
    folder = Path(file).parent
    return (folder / mark).exists() or folder.resolve() == out.resolve()


def check_trusted(functions: Iterable[NamedFunction], folder: Path, *, trust: bool) -> None:
    """Check that functions which a folder's files name may run; called before anything of theirs is imported.

    Args:
        functions: functions that the files name, without those that the user named anew.
        folder: folder of the files, for the message.
        trust: whether the user says that the folder is trusted.

    Raises:
        InputError: a function may not run.
    """
    known = frozenset() if trust else _remembered()
    for function in functions:
        if not trust and function.digest not in known:
            raise InputError(
                f"`{function.option}` of a folder must name no function that you did not name yourself, got "
                f"{function.spec!r} in {folder}, which would run; pass --trust (in Python trust=True) if you trust it."
            )


def remember(functions: Iterable[NamedFunction]) -> None:
    """Keep that this user has let functions run. Where that can't be written, `check_trusted` asks again.

    Args:
        functions: functions that the user named or trusts.
    """
    new = {function.digest for function in functions} - _remembered()
    if not new:
        return
    try:
        file = _file()
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(handle, "a") as lines:
            lines.write("".join(f"{digest}\n" for digest in sorted(new)))
    except (OSError, RuntimeError):
        return


def _remembered() -> frozenset[str]:
    """Digests of what this user has let run; none where the file can't be read."""
    try:
        return frozenset(_file().read_text(errors="replace").split())
    except (OSError, RuntimeError):
        return frozenset()


def _plain(value: Any) -> Any:
    """A value as JSON can hold it, alike before and after it has been written into YAML."""
    if isinstance(value, Mapping):
        return [[str(key), _plain(each)] for key, each in value.items()]
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | int | float | None) else str(value)


def _file() -> Path:
    """Path of the digests. Raises RuntimeError where the user has no home."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "autocompress" / "functions"
