"""A budget of time, and whether a timing meets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from autocompress.budget import Budget
from autocompress.targets.timing.machine import threads_in_words
from autocompress.targets.timing.paired import Interval, PairedTiming


@dataclass(frozen=True)
class TimeLimit:
    """The most time that one batch may take: a share of the original's, or seconds.

    Attributes:
        share: most time, as a fraction of the time of the original's float32 file in the same runtime; None: `seconds`
            says.
        seconds: most seconds; None: `share` says.
        batch: number of samples that are run at once.
        threads: number of threads that one operator may use.
    """

    share: float | None
    seconds: float | None
    batch: int
    threads: int

    @classmethod
    def of(cls, budget: Budget, batch: int, threads: int) -> TimeLimit | None:
        """The limit of a budget, or None where it has none of `latency`."""
        limit = budget.of("latency")
        if limit is None:
            return None
        if limit.is_fraction:
            return cls(float(limit.amount), None, batch, threads)
        return cls(None, float(limit.amount) / 1e9, batch, threads)

    def used(self, timing: PairedTiming) -> Interval:
        """The time that was measured in units of the limit, so that 1 is just within."""
        if self.share is not None:
            measured, most = timing.ratio, self.share
        else:
            assert self.seconds is not None, "a limit has one of the two"
            measured, most = timing.compressed.median, self.seconds
        return Interval(measured.median / most, measured.low / most, measured.high / most)

    def is_met(self, timing: PairedTiming) -> bool:
        """Whether the upper bound of the interval is within the limit."""
        return self.used(timing).high <= 1.0

    def described(self, timing: PairedTiming) -> str:
        """What was measured and what is allowed, on one line."""
        if self.share is not None:
            ratio = timing.ratio
            found = (
                f"{ratio.median:.4f} of the original's time (95 % interval {ratio.low:.4f} to {ratio.high:.4f}), "
                f"at most {self.share:g}"
            )
        else:
            assert self.seconds is not None, "a limit has one of the two"
            median = timing.compressed.median
            low, middle, high = (1e3 * each for each in (median.low, median.median, median.high))
            found = f"{middle:.4g} ms (95 % interval {low:.4g} to {high:.4g}), at most {1e3 * self.seconds:g} ms"
        return f"{found}; batch {self.batch}, {threads_in_words(self.threads)}"

    def data(self) -> dict[str, Any]:
        """The limit as plain data; `from_data` reads it."""
        return asdict(self)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> TimeLimit:
        """The limit that `data` was made of. Raises KeyError or TypeError where it is malformed."""
        share, seconds = (None if data[name] is None else float(data[name]) for name in ("share", "seconds"))
        if (share is None) == (seconds is None):
            raise TypeError("a limit of time has either a share or seconds")
        return cls(share, seconds, int(data["batch"]), int(data["threads"]))
