"""Evaluations that all processes of a comparison share: one append-only journal for each set of menus."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.comparison.results import or_none
from autocompress_envs.problem import Labeling, Outcome


class SharedEvaluations:
    """Measures only what no process has measured yet.

    A line is one write to a file opened for appending, so lines of several processes never mix. A line that a kill or
    a full disk cut short is no JSON: it is passed over, and its plan measured again.

    Args:
        path: of the journal; made where it is missing.
        measure: measures a plan that nobody knows.

    Attributes:
        measured: how many plans this process measured.
    """

    def __init__(self, path: Path, measure: Callable[[Labeling], Outcome]) -> None:
        self._path = path
        self._measure = measure
        self._numbers: dict[bytes, Outcome] = {}
        self._whole: dict[bytes, Outcome] = {}
        self._read_to = 0
        self.measured = 0
        _end_torn_line(path)
        self.refresh()

    def refresh(self) -> None:
        """Read what other processes have written since."""
        with self._path.open("rb") as file:
            file.seek(self._read_to)
            content = file.read()
        complete = content[: content.rfind(b"\n") + 1]
        self._read_to += len(complete)
        for line in complete.splitlines():
            entry = _parsed(line)
            if entry is not None:
                self._numbers.setdefault(*entry)

    def numbers(self, labeling: Labeling) -> Outcome:
        """The outcome of a plan without its shift, which the journal does not hold."""
        key = labeling.key()
        if key not in self._numbers:
            self._write(labeling, replace(self._measured(labeling), shift=None))
        return self._numbers[key]

    def whole(self, labeling: Labeling) -> Outcome:
        """The outcome of a plan with its shift: known to this process, or measured anew."""
        key = labeling.key()
        if key not in self._whole:
            self._whole[key] = self._measured(labeling)
            if key not in self._numbers:
                self._write(labeling, replace(self._whole[key], shift=None))
        return self._whole[key]

    def _measured(self, labeling: Labeling) -> Outcome:
        self.measured += 1
        return self._measure(labeling)

    def _write(self, labeling: Labeling, outcome: Outcome) -> None:
        self._numbers[labeling.key()] = outcome
        with self._path.open("ab", buffering=0) as file:
            file.write(_line(labeling, outcome))


def _line(labeling: Labeling, outcome: Outcome) -> bytes:
    labels = [indices.tolist() for indices in (labeling.sparsity, labeling.weight_bits, labeling.activation_bits)]
    values = {name: or_none(value) for name, value in vars(outcome).items() if value is not None}
    return (json.dumps({"labels": labels, **values}, allow_nan=False, separators=(",", ":")) + "\n").encode()


def _parsed(line: bytes) -> tuple[bytes, Outcome] | None:
    try:
        values: dict[str, Any] = json.loads(line)
        sparsity, weight_bits, activation_bits = (np.array(indices, dtype=np.int64) for indices in values.pop("labels"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # torn
    accuracy = math.nan if values["accuracy"] is None else values["accuracy"]
    return Labeling(sparsity, weight_bits, activation_bits).key(), Outcome(**{**values, "accuracy": accuracy})


def _end_torn_line(path: Path) -> None:
    """Make the file, or end its last line, so that the next one does not continue it."""
    with path.open("ab+", buffering=0) as file:
        if file.seek(0, os.SEEK_END) > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
