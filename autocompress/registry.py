"""Registries: entries of one kind by name, to which packages from outside add their own."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import is_dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from autocompress.errors import InputError, unknown_name

PLUGINS = "autocompress.plugins"
"""Entry-point group of installed packages: the modules that it names register entries when they are imported."""

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Entries of one kind by name. Built-in entries stay as they are; entries from outside may be registered again.

    >>> colours = Registry("colour", {"red": 0xFF0000})
    >>> colours.register("green", 0x00FF00)
    >>> list(colours), colours.find("green") == 0x00FF00
    (['red', 'green'], True)
    >>> colours.register("red", 0)
    Traceback (most recent call last):
    autocompress.errors.InputError: `colour` must have a name of its own, got 'red', which is built in.

    Args:
        kind: kind of entry, such as `criterion`, for errors.
        entries: the built-in entries; a mapping that is given is kept, and entries from outside are added to it.
        check: raises InputError where an entry from outside is not what it has to be.
    """

    def __init__(
        self, kind: str, entries: MutableMapping[str, Entry], check: Callable[[str, Entry], None] | None = None
    ) -> None:
        self.kind = kind
        self._entries = entries
        self._built_in = frozenset(entries)
        self._check = check

    def register(self, name: str, entry: Entry) -> None:
        """Add an entry, or replace one that was registered before.

        Raises:
            InputError: the name is no text of letters, digits, dots, dashes and underscores, or is built in; or the
                entry is not what it has to be.
        """
        if not isinstance(name, str) or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise InputError(
                f"`{self.kind}` must have a name of letters, digits, dots, dashes and underscores, got {name!r}."
            )
        if name in self._built_in:
            raise InputError(f"`{self.kind}` must have a name of its own, got {name!r}, which is built in.")
        if self._check is not None:
            self._check(name, entry)
        self._entries[name] = entry

    def unregister(self, name: str) -> None:
        """Remove an entry that was registered from outside. Raises InputError where there is none of that name."""
        if name in self._built_in or name not in self._entries:
            raise unknown_name(self.kind, name, self.from_outside())
        del self._entries[name]

    def built_in(self) -> tuple[Entry, ...]:
        """The built-in entries; to look at them, no plugin is imported."""
        return tuple(entry for name, entry in self._entries.items() if name in self._built_in)

    def from_outside(self) -> tuple[str, ...]:
        """Names of the entries that are not built in."""
        return tuple(name for name in self._entries if name not in self._built_in)

    def find(self, name: str) -> Entry:
        """The entry of that name. Raises InputError, which lists the choices, where there is none."""
        if name not in self:
            raise unknown_name(self.kind, name, self._entries)
        return self._entries[name]

    def source_of(self, name: str) -> str:
        """Digest of the source file that an entry from outside is written in; empty where the entry is built in.

        What is cached under the name of an entry is made anew when its file has changed.
        """
        return "" if name in self._built_in else source_digest(self.find(name))

    def __contains__(self, name: object) -> bool:
        if name not in self._entries:
            load_plugins()
        return name in self._entries

    def __getitem__(self, name: str) -> Entry:
        if name not in self:
            raise KeyError(name)
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        load_plugins()
        return iter(self._entries)

    def __len__(self) -> int:
        load_plugins()
        return len(self._entries)


@cache
def load_plugins() -> None:
    """Import the plugins of all installed packages, once; registries call this before they say that a name is unknown.

    Raises:
        InputError: a plugin can't be imported.
    """
    for point in entry_points(group=PLUGINS):
        try:
            point.load()
        except Exception as error:  # whatever a plugin's module raises, its user has to know which plugin it was
            raise InputError(
                f"The plugin {point.name} ({point.value}) must be importable, got {type(error).__name__}: {error}; "
                "mend or uninstall its package."
            ) from error


def source_digest(entry: Any) -> str:
    """16 hex digits of SHA-256 over the source files of an entry's functions, or over their code where there is none.

    Args:
        entry: a function, a partial, an object that can be called, or a dataclass of such.

    Raises:
        InputError: a function is not written in Python.
    """
    functions = [each for each in vars(entry).values() if callable(each)] if is_dataclass(entry) else [entry]
    return hashlib.sha256(b"".join(map(_source, functions))).hexdigest()[:16]


def _source(function: Any) -> bytes:
    function = inspect.unwrap(getattr(function, "func", function))  # a partial's function
    origin = function if inspect.isroutine(function) or inspect.isclass(function) else type(function)
    try:
        return Path(inspect.getsourcefile(origin) or "").read_bytes()
    except (TypeError, OSError):  # defined in a terminal
        code = getattr(function, "__code__", None)
        if code is None:
            raise InputError(f"An entry must be written in Python, got {function!r}.") from None
        return bytes(code.co_code) + repr(code.co_consts).encode()
