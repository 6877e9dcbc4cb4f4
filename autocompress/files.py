"""Reading YAML that people write, with errors that say where it is wrong; writing files whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import json
import math
import os
import platform
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from autocompress.errors import InputError, WriteError

LOCK = ".lock"  # name of the file that names the process which writes into a folder
_TEMPORARY = ".tmp"  # ending of files that are being written
_NAME = 150  # characters of a file's name that its temporary file has too; names may have 255
_NUMBERS = itertools.count()
_DAY = 24 * 3600.0  # seconds
_SECONDS_APART = 2.0  # by which two readings of one process's start may differ
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
_FIXES = {
    errno.ENOSPC: "free space on its disk",
    errno.EDQUOT: "free space within your quota on its disk",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EACCES: "make its folder writable, or choose another",
    errno.EPERM: "make its folder writable, or choose another",
    errno.EROFS: "choose a folder on a disk that is not read-only",
    errno.EISDIR: "a folder has its name: remove that",
}

_MOST_BYTES = 4_000_000  # of YAML, which takes seconds to read
_MOST_MERGED = 100_000  # keys of one mapping
_MOST_LEVELS = 100  # of lists and mappings in one another
_MOST_VALUES = 1_000_000  # a plan for ten thousand layers has a twentieth of them


def read_yaml(what: str, path: str | Path) -> Any:
    """The content of a YAML or JSON file (JSON is YAML).

    Args:
        what: the option that names the file, for errors.
        path: path of the file.

    Raises:
        InputError: the file can't be read or is not YAML.
    """
    check_regular(f"`{what}`", path)
    try:
        size = os.stat(path).st_size
        if size > _MOST_BYTES:
            raise InputError(f"`{what}` must have at most {_MOST_BYTES:,} bytes, got {path} with {size:,}.")
        text = Path(path).read_text()
    except OSError as error:
        raise InputError(f"`{what}` must be a readable file, got {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"`{what}` must be a text file, got {path}, which is not UTF-8.") from error
    return parse_yaml(what, text, str(path))


def parse_yaml(what: str, text: str, where: str) -> Any:
    """The value of YAML or JSON.

    Args:
        what: option that the text was given for, for errors.
        text: the YAML.
        where: name of its source, for errors.

    Raises:
        InputError: it is no YAML, or nested more than 100 levels deep, or holds more than a million values where every
            alias stands for all that it repeats.
    """
    try:
        value = yaml.load(text, _Loader)
        values = _count_values(value, {}, 1)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise InputError(f"`{what}` must be YAML or JSON, got {where}{line}: {error.problem}.") from error
    except yaml.YAMLError as error:  # characters that YAML doesn't allow
        raise InputError(f"`{what}` must be YAML or JSON, got {where}: {str(error).splitlines()[0]}.") from error
    except RecursionError:
        raise InputError(f"`{what}` must be nested at most {_MOST_LEVELS} levels deep, got {where}, deeper.") from None
    except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:  # dates and tags that lie
        reason = str(error).split(";")[0] if isinstance(error, ValueError) else "a value that is not of its kind"
        raise InputError(f"`{what}` must be YAML or JSON, got {where}: {reason.rstrip('.')}.") from error
    if values > _MOST_VALUES:
        raise InputError(f"`{what}` must hold at most {_MOST_VALUES:,} values, got {where} with {values:,}.")
    return value


class _Loader(yaml.SafeLoader):
    """The safe loader, with keys once each, and with a bound on what merges (`<<: [*a, *a]`) add up to."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._checked: set[int] = set()  # a mapping that was merged into holds keys twice, and the last one counts

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        if id(node) not in self._checked:
            self._checked.add(id(node))
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key {key.value} twice", key.start_mark)
                seen.add((key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key))
        super().flatten_mapping(node)  # type: ignore[no-untyped-call]
        if len(node.value) > _MOST_MERGED:
            raise yaml.constructor.ConstructorError(None, None, "a mapping with too many keys", node.start_mark)


def strict_json(text: str | bytes, parse_number: Callable[[str], float] = float) -> Any:
    """The value of JSON that our programs have written.

    Args:
        text: the JSON.
        parse_number: function that makes a number of the text of a float, NaN and Infinity among them.

    Raises:
        ValueError: it is no JSON, has a key twice or is nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_once, parse_float=parse_number, parse_constant=parse_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The mapping of pairs. Raises ValueError where two have one key."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return found


def _count_values(value: Any, known: dict[int, int], level: int) -> int:
    """Number of values in nested lists and mappings, each alias counted with all that it repeats.

    Raises RecursionError where they are nested too deeply, or hold themselves.
    """
    if not isinstance(value, (dict, list, tuple, set)):
        return 1
    if level > _MOST_LEVELS:
        raise RecursionError
    if id(value) not in known:
        parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count_values(part, known, level + 1) for part in parts)
    return known[id(value)]


def check_regular(what: str, path: str | Path) -> None:
    """Check that a path that exists is a plain file: a pipe or a device may never end, or do something when it is read.

    Args:
        what: name of the file in errors, such as an option in backquotes.
        path: path of the file; one that does not exist is left to whoever opens it.

    Raises:
        InputError: the path leads to a folder, a pipe, a socket or a device.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # whoever opens it says why not
        return
    if not stat.S_ISREG(mode):
        raise InputError(f"{what} must be a regular file, got {path}, which is {_kind(mode)}.")


def _kind(mode: int) -> str:
    """What a path leads to that is no plain file."""
    return _KINDS.get(stat.S_IFMT(mode), "a device")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file that takes a file's place once it is whole.

    A reader, or a kill at any moment, sees the old content or the new one, never a part. The file has the rights that
    the user's umask gives to new files, so whoever shares the folder can read it.

    Args:
        path: file to be made or replaced; its folder exists.

    Yields:
        The path of an empty file in the same folder, to be written. `sweep` removes it if this process is killed.

    Raises:
        WriteError: the file can't be written; the old one is as it was.
    """
    temporary = path.with_name(f".{path.name[:_NAME]}.{this_machine()}-{os.getpid()}-{next(_NUMBERS)}{_TEMPORARY}")
    try:
        with writing(path):
            # Not mkstemp: its rights, 0600, would hide the file from colleagues.
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a kill at any moment, sees the old content or the new one, never a part.

    Raises:
        WriteError: the file can't be written; the old one is as it was.
    """
    with replacing(path) as temporary, temporary.open("wb", buffering=0) as file:
        write_all(file, content.encode() if isinstance(content, str) else content)


def append(file: io.FileIO, content: bytes, path: Path) -> None:
    """Append to a file that is open without a buffer; what a full disk cut short is taken back.

    Raises:
        WriteError: the file can't be written; it ends where it did.
    """
    before = os.fstat(file.fileno()).st_size
    try:
        with writing(path):
            write_all(file, content)
    except WriteError:
        with suppress(OSError):  # readers leave out a last line without its end, so this is for tidiness
            os.truncate(file.fileno(), before)
        raise


def write_all(file: io.FileIO, content: bytes | memoryview) -> None:
    """Write all of it: one call of a file without a buffer may write less, such as up to a limit on its size."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the errors of writing `path` into a `WriteError`, which names it and says how to go on."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise write_error(path, error.errno, error.strerror or str(error)) from error


def write_error(path: Path, number: int | None, reason: str) -> WriteError:
    """The error for a file that can't be written.

    >>> print(write_error(Path("runs/a/plan.yaml"), errno.ENOSPC, "No space left on device"))
    runs/a/plan.yaml can't be written: No space left on device; free space on its disk.

    Args:
        path: the file.
        number: error number of the operating system; None where it is not known.
        reason: words that say what failed.
    """
    fix = _FIXES.get(number or 0, "")
    return WriteError(f"{path} can't be written: {reason}{fix and f'; {fix}'}.", number)


def regular_file(path: Path) -> bool:
    """Whether there is a file that can be read to its end; InputError for a folder, a pipe or a device.

    Raises:
        InputError: something else than a file has this name; a pipe would be waited for without end.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} must be a file, got {_kind(mode)}; remove it.")
    return True


@cache
def this_machine() -> str:
    """8 hex digits for the space of process numbers that this process lives in: machine, container and boot."""
    parts = [platform.node()]
    for name in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"):
        with suppress(OSError):
            parts.append(Path(name).read_text())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def is_alive(process: int, started: float | None = None) -> bool:
    """Whether a process of this machine still runs.

    Args:
        process: number of the process.
        started: seconds since the epoch at which it began; another process may have got its number since. None: any
            process of that number counts.
    """
    import psutil

    try:
        found = psutil.Process(process)
        if found.status() == psutil.STATUS_ZOMBIE:  # it is dead, and its parent has not asked how it ended
            return False
        return started is None or abs(found.create_time() - started) < _SECONDS_APART
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def sweep(folder: Path) -> int:
    """Remove the temporary files that dead processes left in a folder.

    Those of other machines, whose processes can't be seen from here, are removed when they are a day old.

    Returns:
        Number of files that were removed.
    """
    removed = 0
    for path in folder.glob(f".*{_TEMPORARY}"):
        with suppress(OSError):
            if is_abandoned(path, path.name.removesuffix(_TEMPORARY).rpartition(".")[2]):
                path.unlink()
                removed += 1
    return removed


def is_passing(name: str) -> bool:
    """Whether a file of that name is there only while its folder is written: a lock, or a file that isn't whole yet."""
    return name == LOCK or (name.startswith(".") and name.endswith(_TEMPORARY))


def is_abandoned(path: Path, owner: str, after: float = _DAY) -> bool:
    """Whether the process that made a file is dead.

    Args:
        path: existing file.
        owner: `this_machine()`, the process's number and anything else, with `-` between.
        after: age in seconds at which the file of a process on another machine counts as abandoned.
    """
    machine, _, rest = owner.partition("-")
    number = rest.partition("-")[0]
    if machine == this_machine() and number.isdigit():
        return not is_alive(int(number))
    return time.time() - path.stat().st_mtime > after


def or_none(value: Any) -> Any:
    """None in place of NaN, which JSON and tables do not have; any other value as it is."""
    return None if isinstance(value, float) and math.isnan(value) else value
