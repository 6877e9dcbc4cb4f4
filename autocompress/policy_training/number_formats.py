"""Dtypes and batch sizes that a training has picked by measurement; they are in a file, for `--resume`."""

from __future__ import annotations

import json
from collections import UserDict
from pathlib import Path
from typing import Any

from autocompress.errors import InputError
from autocompress.evaluation import DTYPES
from autocompress.files import strict_json, write_atomically
from autocompress.run.journal import is_count

NUMBER_FORMATS = "settled.json"  # file beside what was measured


class NumberFormats(UserDict[str, Any]):
    """Dtypes and batch sizes that were picked by measurement, by name, in a JSON file; additions rewrite it.

    Measurements differ from time to time. A training that is resumed reads the picks, so it goes on with the
    same ones.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file
        if file.is_file():
            self.data = _read_number_formats(file)

    def __setitem__(self, name: str, pick: Any) -> None:
        super().__setitem__(name, pick)
        write_atomically(self._file, json.dumps(self.data, indent=1) + "\n")


def _read_number_formats(file: Path) -> dict[str, Any]:
    try:
        content = strict_json(file.read_bytes())
    except ValueError:
        content = None
    if not isinstance(content, dict) or not all(map(_is_number_format, content.values())):
        raise InputError(
            f"`resume` must find a whole {NUMBER_FORMATS}, got {file}, which is damaged; remove it to pick anew."
        )
    return content


def _is_number_format(pick: Any) -> bool:
    """Whether a value of the file is a pick: the dtype of a training, or dtype and batch size of evaluations."""
    parts = pick if isinstance(pick, dict) else {"dtype": pick}
    dtype, size = parts.get("dtype"), parts.get("batch_size", 1)
    return isinstance(dtype, str) and dtype in DTYPES and is_count(size) and size > 0
