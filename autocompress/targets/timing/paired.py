"""Two networks timed in turns, until the ratio of their times is known well enough.

A machine is never quite quiet: clocks change, other programs come and go. So the two take turns (A, B, A, B, …) in
short bursts of runs, and what counts is the ratio of the two bursts of one round: what slows the machine slows both.
The interval comes from a bootstrap over blocks of neighbouring rounds, since neighbours are alike. Timing ends when it
is narrow enough, or when the rounds or the seconds are used up, which the result says.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from autocompress.samples import Inputs
from autocompress.targets.timing.machine import Machine, Waiting, Watch, this_machine
from autocompress.targets.timing.session import Session, call_of

FloatArray = npt.NDArray[np.float64]
Clock = Callable[[], float]

CONFIDENCE = 0.95  # of the intervals, two-sided: the upper bound is exceeded in 2.5 % of repetitions
_RESAMPLES = 500
_BLOCKS = 40  # most blocks of neighbouring rounds that are drawn from


@dataclass(frozen=True)
class Effort:
    """How much a timing may take.

    Attributes:
        tightness: half the width of the ratio's interval, relative to the ratio, at which timing stops.
        seconds: most seconds that the measured runs take.
        least_rounds: fewest rounds.
        most_rounds: most rounds.
        warm_up: runs of each network that come first and do not count.
        burst_seconds: seconds that one burst of the first network takes about; a burst is at least one run.
        most_in_burst: most runs in one burst.
    """

    tightness: float = 0.005
    seconds: float = 20.0
    least_rounds: int = 40
    most_rounds: int = 4_000
    warm_up: int = 10
    burst_seconds: float = 0.002
    most_in_burst: int = 25


VARIANT = Effort(tightness=0.004, seconds=1.0, least_rounds=40)
"""For one of many networks that kernel costs are fitted to."""

LEADER = Effort(tightness=0.002, seconds=20.0, least_rounds=100)
"""For a network that is accepted or not."""


@dataclass(frozen=True)
class Interval:
    """A median with its 95 % bootstrap interval.

    Attributes:
        median: median that was measured.
        low: lower bound.
        high: upper bound.
    """

    median: float
    low: float
    high: float

    @property
    def tightness(self) -> float:
        """Half the width of the interval, relative to the median."""
        return (self.high - self.low) / 2 / self.median


@dataclass(frozen=True)
class Times:
    """Seconds that one network takes.

    Attributes:
        p50: median seconds of a run.
        p95: seconds that 95 % of the runs do not exceed.
        median: median over rounds of the median seconds in a round, with its interval.
    """

    p50: float
    p95: float
    median: Interval


@dataclass(frozen=True)
class PairedTiming:
    """Two networks, timed in turns.

    Attributes:
        original: times of the first network.
        compressed: times of the second network.
        ratio: time of the second network in units of the first one's, round by round.
        rounds: number of rounds.
        runs: number of measured runs of each.
        settled: whether the interval of the ratio became as narrow as was wanted.
        waiting: how busy the machine was.
        machine: where it was.
    """

    original: Times
    compressed: Times
    ratio: Interval
    rounds: int
    runs: int
    settled: bool
    waiting: Waiting
    machine: Machine = field(default_factory=this_machine)

    def notes(self) -> list[str]:
        """What has to be known of these times: that the machine was busy, that they never settled."""
        found = []
        if self.waiting.is_busy:
            found.append(f"the machine was busy ({self.waiting}): times are longer than on a quiet one, ratios hold")
        if not self.settled:
            found.append(
                f"times did not settle in {self.rounds} rounds: the ratio lies within "
                f"{100 * self.ratio.tightness:.1f} % of {self.ratio.median:.3f}"
            )
        return found


def time_pair(
    original: Session, compressed: Session, batch: Inputs, effort: Effort | None = None, *, clock: Clock | None = None
) -> PairedTiming:
    """The times of two loaded networks on the same batch, in turns.

    Args:
        original: first network; ratios are in units of its time.
        compressed: second network.
        batch: (N, …) inputs that both are given.
        effort: how much it may take. Default: `Effort()`.
        clock: function that gives the time in seconds. Default: `time.perf_counter`.
    """
    first, second = call_of(original, batch), call_of(compressed, batch)
    return time_calls(first, second, effort or Effort(), clock or time.perf_counter)


def time_calls(first: Callable[[], Any], second: Callable[[], Any], effort: Effort, clock: Clock) -> PairedTiming:
    """`time_pair` of any two functions."""
    seconds = min(_burst(call, max(1, effort.warm_up), clock).min() for call in (first, second))
    count = int(np.clip(effort.burst_seconds / max(seconds, 1e-9), 1, effort.most_in_burst))
    a: list[FloatArray] = []
    b: list[FloatArray] = []
    watch, spent, check = Watch(), 0.0, effort.least_rounds
    settled = False
    while not settled and len(a) < effort.most_rounds and (spent < effort.seconds or len(a) < effort.least_rounds):
        a.append(_burst(first, count, clock))
        b.append(_burst(second, count, clock))
        spent += float(a[-1].sum() + b[-1].sum())
        if len(a) >= check:
            check = int(1.5 * check) + 1
            settled = interval(_medians(b) / _medians(a)).tightness <= effort.tightness
    ratio = interval(_medians(b) / _medians(a))
    return PairedTiming(
        original=_times(a),
        compressed=_times(b),
        ratio=ratio,
        rounds=len(a),
        runs=len(a) * count,
        settled=ratio.tightness <= effort.tightness,
        waiting=watch.waiting(),
    )


def interval(samples: FloatArray) -> Interval:
    """The median of samples in the order they were taken, with its bootstrap interval.

    Blocks of neighbours are drawn together, so that a slow spell counts once and not as many independent samples.

    >>> interval(np.full(50, 2.0))
    Interval(median=2.0, low=2.0, high=2.0)

    Args:
        samples: (n,) numbers, n at least 1.
    """
    size = -(-len(samples) // _BLOCKS)
    blocks = np.resize(samples, (-(-len(samples) // size), size))
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(blocks), size=(_RESAMPLES, len(blocks)))
    medians = np.median(blocks[drawn].reshape(_RESAMPLES, -1), axis=1)
    low, high = np.quantile(medians, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    median = float(np.median(samples))
    return Interval(median, min(float(low), median), max(float(high), median))


def _burst(call: Callable[[], Any], count: int, clock: Clock) -> FloatArray:
    """(count,) seconds of so many runs in a row."""
    seconds = np.empty(count)
    for run in range(count):
        start = clock()
        call()
        seconds[run] = clock() - start
    return seconds


def _medians(bursts: list[FloatArray]) -> FloatArray:
    return np.median(np.stack(bursts), axis=1)


def _times(bursts: list[FloatArray]) -> Times:
    runs = np.concatenate(bursts)
    p50, p95 = np.quantile(runs, [0.5, 0.95])
    return Times(float(p50), float(p95), interval(_medians(bursts)))
