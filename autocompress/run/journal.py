"""The journal of a run: one JSON object a line, the first on what the run was made on, then one for every plan."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.errors import InputError
from autocompress.run.names import JOURNAL

JOURNAL_VERSION = 1

Indices = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""For every layer, index of its sparsity, weight bits and activation bits in its menu."""


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

    def to_line(self) -> str:
        values = dict(vars(self), accuracy=None if math.isnan(self.accuracy) else self.accuracy)
        return json.dumps(values, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Entry:
        sparsity, weight_bits, activation_bits = (tuple(indices) for indices in values["labels"])
        accuracy = math.nan if values["accuracy"] is None else values["accuracy"]
        return cls(**{**values, "labels": (sparsity, weight_bits, activation_bits), "accuracy": accuracy})


def read_journal(path: Path) -> tuple[dict[str, Any], list[Entry]]:
    """What the run was made on, and every evaluated plan. A last line that a kill cut short is left out.

    Raises:
        InputError: a line other than the last is damaged, or the journal's version is unknown.
    """
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last line end is torn, or nothing
    try:
        values = [json.loads(line) for line in lines]
        header = values[0] if values else {}
        entries = [Entry.from_dict(each) for each in values[1:]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} must hold one JSON object a line, got a damaged line: {error}.") from error
    if values and header.get("journal") != JOURNAL_VERSION:
        raise InputError(f"{path} must have journal version {JOURNAL_VERSION}, got {header.get('journal')!r}.")
    return header, entries


def journal_header(path: Path) -> dict[str, Any]:
    """What the run in `path` was made on; empty where it was killed before it said so."""
    return read_journal(path / JOURNAL)[0]
