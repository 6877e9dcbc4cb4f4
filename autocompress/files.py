"""Reading YAML that people write, with errors that say where it is wrong; writing files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import yaml

from autocompress.errors import InputError


def read_yaml(what: str, path: str | Path) -> Any:
    """The content of a YAML or JSON file (JSON is YAML).

    Args:
        what: the option that names the file, for errors.
        path: path of the file.

    Raises:
        InputError: the file can't be read or is not YAML.
    """
    try:
        return yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise InputError(f"`{what}` must be a readable file, got {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"`{what}` must be a text file, got {path}, which is not UTF-8.") from error
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise InputError(f"`{what}` must be YAML or JSON, got {path}{line}: {error.problem}.") from error
    except yaml.YAMLError as error:  # characters that YAML doesn't allow
        raise InputError(f"`{what}` must be YAML or JSON, got {path}: {str(error).splitlines()[0]}.") from error


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
