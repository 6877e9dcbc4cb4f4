"""The journal of a run: one JSON object a line, the first on what the run was made on, then one for every plan.

Every line ends in a checksum of what stands before it, so that a digit that a disk changed does not pass for a
measurement. Lines of earlier versions have none and are read too.
"""

from __future__ import annotations

import json
import math
import reprlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.errors import InputError
from autocompress.files import or_none, regular_file
from autocompress.run.names import JOURNAL

JOURNAL_VERSION = 1

Indices = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""For every layer, index of its sparsity, weight bits and activation bits in its menu."""

_CHECKSUM = "crc32"
_DTYPES = ("float32", "bfloat16", "float16")
_LARGEST = 2**63 - 1  # costs are 64-bit integers


@dataclass(frozen=True)
class Entry:
    """One evaluated plan.

    Attributes:
        index: place in the order of evaluation, from 0.
        labels: index of every layer's sparsity, weight bits and activation bits in its menu.
        kl: nats.
        accuracy: accuracy in [0, 1]; NaN without labels.
        agreement: share of samples with the original's answer, in [0, 1].
        resources: every resource, absolute.
        reward: reward that the agent got, higher is better.
        best: whether no plan before was better.
        seconds: duration of the evaluation.
        shift: checksum of the plan's record in the file of shifts; None where it has none, as in earlier versions.
        steps: steps that the search had taken in the environment by then; None where it takes none.
    """

    index: int
    labels: Indices
    kl: float
    accuracy: float
    agreement: float
    resources: Mapping[str, int]
    reward: float
    best: bool
    seconds: float
    shift: int | None = None
    steps: int | None = None

    def to_line(self) -> str:
        """The entry's line in the journal."""
        values = dict(vars(self), accuracy=or_none(self.accuracy))
        for name in _OPTIONAL:
            if values[name] is None:
                del values[name]
        return stamped(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Entry:
        """The entry of a line's values.

        Raises:
            ValueError: a value is missing, unknown, of another type or out of its range.
        """
        known = set(cls.__dataclass_fields__)
        _check("the names of its values", set(values) <= known and known - _OPTIONAL <= set(values), sorted(values))
        _check("`labels`", _are_indices(values["labels"]), values["labels"])
        sparsity, weight_bits, activation_bits = (tuple(indices) for indices in values["labels"])
        for name, rule in _RULES.items():
            _check(f"`{name}`", name not in values or rule(values[name]), values.get(name))
        accuracy = math.nan if values["accuracy"] is None else values["accuracy"]
        return cls(**{**values, "labels": (sparsity, weight_bits, activation_bits), "accuracy": accuracy})


def _check(what: str, holds: bool, got: object) -> None:
    if not holds:
        raise ValueError(f"{what} can't be {reprlib.repr(got)}")


def is_count(value: object) -> bool:
    """Whether a value that was read is a number of something, which fits into 64 bits."""
    return type(value) is int and 0 <= value <= _LARGEST


def is_number(value: object) -> bool:
    """Whether a value that was read is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _is_share(value: object) -> bool:
    return is_number(value) and 0 <= value <= 1  # type: ignore[operator]


def _are_indices(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(each, list) and all(map(is_count, each)) for each in value)
    )


def are_costs(value: object) -> bool:
    """Whether a value that was read is a mapping to numbers of something."""
    return isinstance(value, dict) and all(map(is_count, value.values()))


_RULES = {
    "index": is_count,
    "kl": is_number,
    "accuracy": lambda value: value is None or _is_share(value),
    "agreement": _is_share,
    "resources": are_costs,
    "reward": is_number,
    "best": lambda value: isinstance(value, bool),
    "seconds": is_number,
    "shift": is_count,
    "steps": is_count,
}
_OPTIONAL = frozenset({"shift", "steps"})


def stamped(values: Mapping[str, Any]) -> str:
    """A line of a journal with its checksum.

    >>> stamped({"index": 3})
    '{"index": 3, "crc32": "e5f5a850"}\\n'
    """
    text = json.dumps(values, allow_nan=False)
    return json.dumps({**values, _CHECKSUM: f"{zlib.crc32(text.encode()):08x}"}) + "\n"


def read_line(line: bytes) -> dict[str, Any]:
    """The values of a line that `stamped` made, without the checksum. Lines of earlier versions have none.

    Raises:
        ValueError: the line is no JSON object, or not the one that was written.
    """
    try:
        values = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError(f"it is no object but a {type(values).__name__}")
        checksum = values.pop(_CHECKSUM, None)
        if checksum not in (None, f"{zlib.crc32(json.dumps(values).encode()):08x}"):
            raise ValueError("its checksum does not match")
        return values
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_journal(path: Path) -> tuple[dict[str, Any], list[Entry]]:
    """What the run was made on, and every evaluated plan. A last line that a kill cut short is left out.

    Raises:
        InputError: a line other than the last is damaged, or the journal's version is unknown.
    """
    if not regular_file(path):
        raise InputError(f"{path} must be the journal of a run, got no such file.")
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last line end is torn, or nothing
    header: dict[str, Any] = {}
    entries: list[Entry] = []
    for number, line in enumerate(lines, 1):
        try:
            if number == 1:
                header = read_line(line)
                _check_header(header, path)
            else:
                entries.append(_entry(read_line(line), number - 2))
        except InputError:
            raise
        except ValueError as error:
            raise InputError(
                f"{path} must hold one JSON object a line, got a damaged line {number}: {error}; "
                "remove it and those after it, which are evaluated again."
            ) from error
    return header, entries


def _entry(values: Mapping[str, Any], place: int) -> Entry:
    """The entry at that place. Raises ValueError where it is damaged, or another's."""
    entry = Entry.from_dict(values)
    if entry.index != place:
        raise ValueError(f"it must be that of evaluation {place}, got {entry.index}")
    return entry


def _check_header(header: Mapping[str, Any], path: Path) -> None:
    """Raise InputError for a journal of another version, ValueError for one whose header is damaged."""
    if header.get("journal") != JOURNAL_VERSION:
        raise InputError(f"{path} must have journal version {JOURNAL_VERSION}, got {header.get('journal')!r}.")
    dtype, batch_size = header.get("dtype", _DTYPES[0]), header.get("batch_size", 1)
    _check("`dtype`", dtype in _DTYPES, dtype)
    _check("`batch_size`", is_count(batch_size) and batch_size > 0, batch_size)


def journal_header(path: Path) -> dict[str, Any]:
    """What the run in `path` was made on; empty where it was killed before it said so."""
    return read_journal(path / JOURNAL)[0]
