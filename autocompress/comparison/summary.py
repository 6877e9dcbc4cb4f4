"""Statistics over seeds: the mean, the standard deviation and a bootstrap interval of the mean."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from autocompress.comparison.results import CellResult
from autocompress.files import or_none

RESAMPLES = 10_000
CONFIDENCE = 0.95
_BATCH = 1_000  # resamples that are in memory at a time
MEASURES = ("kl", "accuracy", "agreement", "test_kl", "test_accuracy", "test_drop", "evaluations", "seconds")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """Statistics of one measure over seeds.

    Attributes:
        n: number of values.
        mean: mean of the values; NaN without any.
        sd: standard deviation of the sample (divided by n - 1); NaN for fewer than two values.
        low: lower end of the 95 % bootstrap percentile interval of the mean; NaN for fewer than two values.
        high: upper end of this interval; NaN for fewer than two values.
    """

    n: int
    mean: float
    sd: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """Results of one method under one budget, over seeds.

    Attributes:
        method: name of the method in the suite.
        budget: budget in its normal form, such as `size=8%`.
        failed: number of cells that failed; the statistics leave them out.
        deterministic: whether the method makes no random choice, so that every seed gives the same result.
        spreads: statistics of each of `MEASURES`, by its name.
    """

    method: str
    budget: str
    failed: int
    deterministic: bool
    spreads: Mapping[str, Spread]

    @property
    def n(self) -> int:
        """Number of cells that finished."""
        return self.spreads["kl"].n

    def to_dict(self) -> dict[str, Any]:
        """The summary as one flat row, with None in place of NaN."""
        flat: dict[str, Any] = {"method": self.method, "budget": self.budget, "n": self.n, "failed": self.failed}
        flat["deterministic"] = self.deterministic
        for measure, spread in self.spreads.items():
            for part in ("mean", "sd", "low", "high"):
                flat[f"{measure}_{part}"] = or_none(getattr(spread, part))
        return flat


def summarise(results: Iterable[CellResult]) -> tuple[Summary, ...]:
    """One summary for each method and budget, in the order of their first results."""
    groups: dict[tuple[str, str], list[CellResult]] = {}
    for result in results:
        groups.setdefault((result.method, result.budget), []).append(result)
    return tuple(_summary(*names, cells) for names, cells in groups.items())


def _summary(method: str, budget: str, cells: Sequence[CellResult]) -> Summary:
    """The summary of the results of one method under one budget."""
    finished = [cell for cell in cells if cell.finished]
    spreads = {measure: spread([getattr(cell, measure) for cell in finished]) for measure in MEASURES}
    return Summary(method, budget, len(cells) - len(finished), cells[0].deterministic, spreads)


def spread(values: Sequence[float]) -> Spread:
    """Statistics of the values that are not NaN.

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
    """95 % percentile intervals of means (Efron 1979), from 10,000 resamples that are always the same.

    Args:
        values: (n, K) values, n of each of K quantities. The same resamples of the n serve all K quantities.

    Returns:
        Lower and upper ends of the intervals, each (K,). They are equal where all n values are; NaN where one
        is NaN.
    """
    if len(values) < 2:  # scipy needs two values
        return values[0].copy(), values[0].copy()
    low, high = np.full((2, values.shape[1]), math.nan)
    known = ~np.isnan(values).any(0)
    if known.any():
        low[known], high[known] = _intervals(values[:, known])
    return low, high


def _intervals(values: Floats) -> tuple[Floats, Floats]:
    """Lower and upper ends (K,) of the intervals of values (n, K) without NaN."""
    from scipy import stats  # here, because importing it takes half a second

    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=_BATCH,
        vectorized=True,
        axis=0,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    ends = found.confidence_interval
    # A mean lies between the smallest and the largest value, but rounding may put it a last digit beyond.
    low, high = (np.clip(end, values.min(0), values.max(0)) for end in (ends.low, ends.high))
    return low, high
