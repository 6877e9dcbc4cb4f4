"""The package `executorch`, which is an extra: its schemas, its compiler of flatbuffers, and its runtime."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autocompress.errors import missing_extra

PROGRAM = ("exir/_serialize/program.fbs", "exir/_serialize/scalar_type.fbs")
XNNPACK = ("backends/xnnpack/serialization/schema.fbs",)
"""Schema of a program and of XNNPACK's graph: its file in the package, and the files that it includes."""

_COMPILER = "data/bin/flatc"


def flatbuffer(schema: tuple[str, ...], content: Mapping[str, Any]) -> bytes:
    """A flatbuffer with this content.

    The package's files are used without importing the package, which would take seconds.

    Args:
        schema: `PROGRAM` or `XNNPACK`.
        content: fields of the root table.

    Raises:
        InputError: the extra `executorch` is not installed.
    """
    found = importlib.util.find_spec("executorch")
    if found is None or not found.submodule_search_locations:
        raise missing_extra("target", "executorch", "executorch")
    package = Path(found.submodule_search_locations[0])
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "content.json"
        source.write_text(json.dumps(content))
        command = [str(package / _COMPILER), "--binary", "-o", folder, str(package / schema[0]), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        (made,) = (each for each in Path(folder).iterdir() if each != source)
        return made.read_bytes()


def runtime() -> Any:
    """The module with the runtime.

    Raises:
        InputError: the extra `executorch` is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that its interface may change
            return importlib.import_module("executorch.extension.pybindings.portable_lib")
    except ModuleNotFoundError as error:
        raise missing_extra("target", "executorch", "executorch") from error
