"""What a cell of a comparison found, as plain data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from autocompress.comparison.suite import Cell
from autocompress.errors import InputError

FINISHED, FAILED = "finished", "failed"
CELL_VERSION = 1


@dataclass(frozen=True)
class CellResult:
    """One cell. Numbers of a failed cell, and those of data without labels, are NaN.

    Attributes:
        method: name of the method in the suite.
        searcher: the search that it ran.
        budget: in its normal form.
        seed: of the search.
        status: `finished` or `failed`.
        message: why it failed.
        limits: of the budget, absolute, by resource.
        original: resources of the original.
        evaluations: different plans evaluated.
        measured: how many of these were measured here; the others were known from other cells.
        kl: nats, of the best plan on the search split.
        accuracy: of the best plan on the search split, in [0, 1].
        agreement: of the best plan with the original on the search split, in [0, 1].
        resources: of the best plan.
        found_at: evaluations until the best plan was found, itself and other work that counts included.
        stopped_because: in a few words.
        trace: (evaluations so far, KL of the best plan so far) whenever there was a better one.
        test_kl: nats, of the best plan on the test split.
        test_accuracy: of the best plan on the test split, in [0, 1].
        test_drop: percentage points of accuracy that the best plan loses to the original on the test split.
        seconds: of the search alone.
        forward_share: share of these that passed in the network's forward passes.
        plan: the best plan, as one line of JSON, which is YAML.
    """

    method: str
    searcher: str
    budget: str
    seed: int
    status: str = FINISHED
    message: str = ""
    limits: Mapping[str, int] = field(default_factory=dict)
    original: Mapping[str, int] = field(default_factory=dict)
    evaluations: int = 0
    measured: int = 0
    kl: float = math.nan
    accuracy: float = math.nan
    agreement: float = math.nan
    resources: Mapping[str, int] = field(default_factory=dict)
    found_at: int = 0
    stopped_because: str = ""
    trace: tuple[tuple[int, float], ...] = ()
    test_kl: float = math.nan
    test_accuracy: float = math.nan
    test_drop: float = math.nan
    seconds: float = math.nan
    forward_share: float = math.nan
    plan: str = ""

    @property
    def cell(self) -> Cell:
        return Cell(self.method, self.budget, self.seed)

    @property
    def deterministic(self) -> bool:
        """Whether the search makes no random choice."""
        from autocompress.searchers.search import SEARCHERS

        return self.searcher in SEARCHERS and not SEARCHERS[self.searcher].is_random

    @property
    def finished(self) -> bool:
        return self.status == FINISHED

    def to_json(self) -> str:
        """One JSON object; null for what is not a number."""
        values = {name: or_none(value) for name, value in vars(self).items()}
        return json.dumps({"version": CELL_VERSION, **values}, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> CellResult:
        """Raises InputError where `text`, read from `where`, is no result of a cell."""
        try:
            values = json.loads(text)
            version = values.pop("version")
            values = {each.name: _back(each.type, values[each.name]) for each in fields(cls)}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{where} must hold the result of a cell, got damaged content: {error}; remove it."
            ) from error
        if version != CELL_VERSION:
            raise InputError(f"{where} must have version {CELL_VERSION}, got {version!r}; start anew with --force.")
        return cls(**{**values, "trace": tuple((index, kl) for index, kl in values["trace"])})


def failed(cell: Cell, searcher: str, message: str) -> CellResult:
    """The result of a cell that gave none."""
    return CellResult(cell.method, searcher, cell.budget, cell.seed, status=FAILED, message=message)


def or_none(value: Any) -> Any:
    """None for NaN, which JSON and tables do not have."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _back(kind: Any, value: Any) -> Any:
    return math.nan if value is None and kind == "float" else value
