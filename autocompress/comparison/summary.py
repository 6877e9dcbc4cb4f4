"""Statistics over seeds: mean, standard deviation, and bootstrap intervals of the mean."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from autocompress.comparison.results import CellResult, or_none

RESAMPLES = 10_000
LEVELS = (2.5, 97.5)  # percentiles: 95 % lie between them
MEASURES = ("kl", "accuracy", "agreement", "test_kl", "test_accuracy", "test_drop", "evaluations", "seconds")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """One measure over seeds; NaN for what so few values don't tell.

    Attributes:
        n: values.
        mean: of them.
        sd: standard deviation of the sample (n - 1); NaN for one value.
        low: lower end of the 95 % bootstrap percentile interval of the mean; NaN for one value.
        high: its upper end.
    """

    n: int
    mean: float
    sd: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """A method under one budget.

    Attributes:
        method: its name in the suite.
        budget: in its normal form.
        failed: cells that failed; they are in no number.
        deterministic: whether the method makes no random choice, so that one seed says all.
        spreads: by measure: each of `MEASURES`.
    """

    method: str
    budget: str
    failed: int
    deterministic: bool
    spreads: Mapping[str, Spread]

    @property
    def n(self) -> int:
        return self.spreads["kl"].n

    def to_dict(self) -> dict[str, Any]:
        """Flat, None for what is not a number."""
        flat: dict[str, Any] = {"method": self.method, "budget": self.budget, "n": self.n, "failed": self.failed}
        flat["deterministic"] = self.deterministic
        for measure, spread in self.spreads.items():
            for part in ("mean", "sd", "low", "high"):
                flat[f"{measure}_{part}"] = or_none(getattr(spread, part))
        return flat


def summarise(results: Iterable[CellResult]) -> tuple[Summary, ...]:
    """One summary for each method and budget, in the order in which they come."""
    groups: dict[tuple[str, str], list[CellResult]] = {}
    for result in results:
        groups.setdefault((result.method, result.budget), []).append(result)
    return tuple(_summary(*names, cells) for names, cells in groups.items())


def _summary(method: str, budget: str, cells: Sequence[CellResult]) -> Summary:
    finished = [cell for cell in cells if cell.finished]
    spreads = {measure: spread([getattr(cell, measure) for cell in finished]) for measure in MEASURES}
    return Summary(method, budget, len(cells) - len(finished), cells[0].deterministic, spreads)


def spread(values: Sequence[float]) -> Spread:
    """Of the values that are numbers.

    >>> spread([1.0, 3.0])
    Spread(n=2, mean=2.0, sd=1.4142135623730951, low=1.0, high=3.0)
    >>> spread([0.5])
    Spread(n=1, mean=0.5, sd=nan, low=nan, high=nan)
    """
    known = np.array([value for value in values if not math.isnan(value)], dtype=np.float64)
    if len(known) < 2:
        return Spread(len(known), float(known[0]) if len(known) else math.nan, math.nan, math.nan, math.nan)
    low, high = bootstrap(known[:, None])
    return Spread(len(known), float(known.mean()), float(known.std(ddof=1)), float(low[0]), float(high[0]))


def bootstrap(values: Floats) -> tuple[Floats, Floats]:
    """95 % percentile intervals of means (Efron 1979), from `RESAMPLES` resamples that are always the same.

    Args:
        values: (n, K): n values of K quantities; the same resamples of the n serve all K.

    Returns:
        Lower and upper ends, each (K,).
    """
    picked = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    counts = np.stack([(picked == index).sum(1) for index in range(len(values))], axis=1)  # (RESAMPLES, n)
    low, high = np.percentile(counts @ values / len(values), LEVELS, axis=0)
    return low, high
