"""Reading YAML that people write, with errors that say where it is wrong; writing files whole or not at all."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import yaml

from autocompress.errors import InputError

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
    """The safe loader, with a bound on what merges (`<<: [*a, *a]`) add up to."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)  # type: ignore[no-untyped-call]
        if len(node.value) > _MOST_MERGED:
            raise yaml.constructor.ConstructorError(None, None, "a mapping with too many keys", node.start_mark)


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
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(mode), "a device")
        raise InputError(f"{what} must be a regular file, got {path}, which is {kind}.")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a kill at any moment, sees the old content or the new one, never a part."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.chmod(temporary, 0o644)  # mkstemp's own 0600 would hide the run from colleagues
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
