"""The result of one cell of a comparison, as plain data."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from autocompress.comparison.suite import Cell
from autocompress.errors import InputError
from autocompress.files import or_none, strict_json
from autocompress.run.journal import are_costs, is_count, is_number

FINISHED, FAILED = "finished", "failed"
CELL_VERSION = 1


@dataclass(frozen=True)
class CellResult:
    """What was found in one cell of a comparison.

    Floats that are not known (in a failed cell, without labels, without a test split) are NaN.

    Attributes:
        method: name of the method in the suite.
        searcher: name of the search method that the cell ran, as in the option `method`.
        budget: budget in its normal form, such as `size=8%`.
        seed: seed of the search.
        status: `finished` or `failed`.
        message: why the cell failed; empty if it finished.
        limits: absolute upper bounds of the budget, by resource.
        original: amount of every resource that the original network needs, by resource.
        evaluations: number of different plans evaluated.
        measured: number of plans measured in this cell; the outcomes of the others were known from other
            cells.
        kl: KL divergence of the best plan from the original on the search split, in nats.
        accuracy: accuracy of the best plan on the search split, in [0, 1].
        agreement: share of the search split for which the best plan and the original predict the same class,
            in [0, 1].
        resources: amount of every resource that the best plan needs, by resource.
        found_at: number of evaluations until the best plan was found, including its own; other work that
            counts as evaluations is included.
        stopped_because: why the search ended, in a few words.
        trace: pairs (number of evaluations so far, KL of the best plan so far), one for each plan that was
            the best so far.
        test_kl: KL divergence of the best plan from the original on the test split, in nats.
        test_accuracy: accuracy of the best plan on the test split, in [0, 1].
        test_drop: accuracy that the best plan loses to the original on the test split, in percentage points.
        seconds: duration of the search alone, in seconds.
        forward_share: share of that duration spent in forward passes of the network, in [0, 1].
        plan: the best plan as one line of JSON, which YAML readers read too.
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
        """The cell that the result belongs to."""
        return Cell(self.method, self.budget, self.seed)

    @property
    def deterministic(self) -> bool:
        """Whether the search makes no random choice, so that every seed gives the same result."""
        from autocompress.searchers.search import SEARCHERS

        return self.searcher in SEARCHERS and not SEARCHERS[self.searcher].is_random

    @property
    def finished(self) -> bool:
        """Whether the cell finished; else it failed."""
        return self.status == FINISHED

    def to_json(self) -> str:
        """The result as one JSON object, with null in place of NaN."""
        values = {name: or_none(value) for name, value in vars(self).items()}
        return json.dumps({"version": CELL_VERSION, **values}, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> CellResult:
        """Read a result that `to_json` wrote.

        Args:
            text: content of the cell's file.
            where: name of the file in error messages.

        Raises:
            InputError: the text is no result of a cell, or of another version.
        """
        try:
            values = strict_json(text)
            version = values.pop("version")
            values = {each.name: _checked(each.name, str(each.type), values[each.name]) for each in fields(cls)}
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise InputError(
                f"{where} must hold the result of a cell, got damaged content: {error}; remove it."
            ) from error
        if version != CELL_VERSION:
            raise InputError(f"{where} must have version {CELL_VERSION}, got {version!r}; start anew with --force.")
        return cls(**{**values, "trace": tuple((index, kl) for index, kl in values["trace"])})


def failed(cell: Cell, searcher: str, message: str) -> CellResult:
    """The result of a cell that failed.

    Args:
        cell: cell that failed.
        searcher: name of the search method that the cell ran.
        message: why it failed.
    """
    return CellResult(cell.method, searcher, cell.budget, cell.seed, status=FAILED, message=message)


def _checked(name: str, kind: str, value: Any) -> Any:
    """The value of a field that was read, with NaN in place of None. Raises ValueError where it is of another kind."""
    if kind == "float" and value is None:
        return math.nan
    if not _RULES[kind](value):
        raise ValueError(f"`{name}` can't be {reprlib.repr(value)}")
    if name in _SHARES and not 0 <= value <= 1:
        raise ValueError(f"`{name}` can't be {reprlib.repr(value)}")
    return float(value) if kind == "float" else value


def _is_trace(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and is_count(pair[0]) and is_number(pair[1]) for pair in value
    )


_SHARES = ("accuracy", "agreement", "test_accuracy", "forward_share")
_RULES = {
    "str": lambda value: isinstance(value, str),
    "int": is_count,
    "float": is_number,
    "Mapping[str, int]": are_costs,
    "tuple[tuple[int, float], ...]": _is_trace,
}
"""Rules of values by the type of their field."""
