"""Evaluations that all processes of a comparison share: one append-only journal for each set of menus."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from autocompress.files import or_none, regular_file, write_all, writing
from autocompress.run.journal import Entry, read_line, stamped
from autocompress_envs.problem import Labeling, Outcome

_NOT_KEPT = {"index": 0, "reward": 0.0, "best": False, "seconds": 0.0}  # values of a run's journal that this one lacks


class SharedEvaluations:
    """Evaluations that measure only plans that no process has measured yet.

    Each line of the journal is one write to a file that is opened for appending, so lines of several
    processes never mix. A line that a kill or a full disk cut short, or whose checksum does not match, is skipped, and
    its plan is measured again.

    Args:
        path: path of the journal; created if it does not exist.
        measure: function that measures a plan.

    Attributes:
        measured: number of plans that this process has measured.
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
        """Read the lines that other processes have written since the last call."""
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
        """The outcome of a plan without its shift of the outputs, which the journal does not hold."""
        key = labeling.key()
        if key not in self._numbers:
            self._write(labeling, replace(self._measured(labeling), shift=None))
        return self._numbers[key]

    def whole(self, labeling: Labeling) -> Outcome:
        """The outcome of a plan with its shift of the outputs, measured unless this process has done so."""
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
        with writing(self._path), self._path.open("ab", buffering=0) as file:
            write_all(file, _line(labeling, outcome))


def _line(labeling: Labeling, outcome: Outcome) -> bytes:
    """The line of the journal for a plan and its outcome."""
    labels = [indices.tolist() for indices in (labeling.sparsity, labeling.weight_bits, labeling.activation_bits)]
    values = {name: or_none(value) for name, value in vars(outcome).items() if value is not None}
    return stamped({"labels": labels, **values}).encode()


def _parsed(line: bytes) -> tuple[bytes, Outcome] | None:
    """The plan's key and its outcome in a line of the journal; None for a line that is damaged."""
    try:
        entry = Entry.from_dict({**read_line(line), **_NOT_KEPT})
        labeling = Labeling(*np.array(entry.labels, dtype=np.int64))  # lists of unequal lengths raise ValueError
    except ValueError:
        return None
    return labeling.key(), Outcome(entry.kl, entry.accuracy, entry.agreement, dict(entry.resources))


def _end_torn_line(path: Path) -> None:
    """Create the file, or end a last line that was cut short, so that the next line does not continue it.

    Raises:
        InputError: a folder, a pipe or a device has that name.
        WriteError: the file can't be written.
    """
    regular_file(path)
    with writing(path), path.open("ab+", buffering=0) as file:
        if file.seek(0, os.SEEK_END) > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
