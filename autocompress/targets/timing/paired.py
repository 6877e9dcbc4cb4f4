"""Two networks timed in turns, until the ratio of their times is known well enough.

A machine is never quite quiet: clocks change, other programs come and go. So the two take turns (A, B, A, B, …) in
short bursts of runs, and what counts is the ratio of the two bursts of one round: what slows the machine slows both.
Rounds in which the system took the processor away measure other programs: where there are enough others, they do not
count. The interval comes from a bootstrap over blocks of neighbouring rounds, since neighbours are alike. Timing ends
when it is narrow enough, or when the rounds or the seconds are used up, which the result says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from autocompress.samples import Inputs
from autocompress.targets.timing.energy import EnergyCounter, MeasuredEnergy, energy_counter
from autocompress.targets.timing.machine import Machine, Waiting, Watch, this_machine
from autocompress.targets.timing.session import Session, call_of

FloatArray = npt.NDArray[np.float64]
Clock = Callable[[], float]

CONFIDENCE = 0.95  # of the intervals, two-sided: the upper bound is exceeded in 2.5 % of repetitions
_RESAMPLES = 500
PATIENCE = 3  # most seconds that all rounds take, in units of what those that count may take
_MANY = 10  # so many times the fewest rounds, and few of them clean: then all count
_BLOCKS = 40  # most blocks of neighbouring rounds that are drawn from


@dataclass(frozen=True)
class Effort:
    """How much a timing may take.

    Attributes:
        tightness: half the width of the ratio's interval, relative to the ratio, at which timing stops.
        seconds: most seconds that the rounds that count take; with the others three times as many.
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
    burst_seconds: float = 0.001
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
        rounds: number of rounds that count.
        runs: number of runs of each in these.
        interrupted: number of rounds in which the system took the processor away.
        settled: whether the interval of the ratio became as narrow as was wanted.
        waiting: how busy the machine was.
        machine: where it was.
        energy: energy of a run of each, in the rounds that count; None where the machine has no counter that this
            process may read.
    """

    original: Times
    compressed: Times
    ratio: Interval
    rounds: int
    runs: int
    interrupted: int
    settled: bool
    waiting: Waiting
    machine: Machine = field(default_factory=this_machine)
    energy: MeasuredEnergy | None = None

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
    original: Session,
    compressed: Session,
    batch: Inputs,
    effort: Effort | None = None,
    *,
    clock: Clock | None = None,
    interruptions: Callable[[], int] | None = None,
    counter: EnergyCounter | None = None,
) -> PairedTiming:
    """The times of two loaded networks on the same batch, in turns.

    Args:
        original: first network; ratios are in units of its time.
        compressed: second network.
        batch: (N, …) inputs that both are given.
        effort: how much it may take. Default: `Effort()`.
        clock: function that gives the time in seconds. Default: `time.perf_counter`.
        interruptions: function that gives how often the system took the processor away so far. Default: the system's
            own count; none with another clock.
        counter: counter of energy. Default: the machine's own, if there is one; none with another clock.
    """
    first, second = call_of(original, batch), call_of(compressed, batch)
    if interruptions is None:
        interruptions = involuntary_switches if clock is None else lambda: 0
    if counter is None and clock is None:
        counter = energy_counter()
    return time_calls(first, second, effort or Effort(), clock or time.perf_counter, interruptions, counter)


def time_calls(
    first: Callable[[], Any],
    second: Callable[[], Any],
    effort: Effort,
    clock: Clock,
    interruptions: Callable[[], int],
    counter: EnergyCounter | None = None,
) -> PairedTiming:
    """`time_pair` of any two functions."""
    joules = (lambda: 0.0) if counter is None else counter.joules
    seconds = min(_burst(call, max(1, effort.warm_up), clock).min() for call in (first, second))
    count = int(np.clip(effort.burst_seconds / max(seconds, 1e-9), 1, effort.most_in_burst))
    rounds = _Rounds(effort)
    watch, settled, check = Watch(), False, effort.least_rounds
    while not settled and rounds.may_go_on():
        before, start = interruptions(), joules()
        first_burst, middle = _burst(first, count, clock), joules()
        second_burst, end = _burst(second, count, clock), joules()
        is_clean = interruptions() == before
        rounds.add(first_burst, second_burst, is_clean=is_clean, joules=(middle - start, end - middle))
        if rounds.are_enough() and len(rounds.counting()) >= check:
            check = int(1.5 * len(rounds.counting())) + 1
            settled = rounds.ratio().tightness <= effort.tightness
    first_joules, second_joules = (float(each) / count for each in rounds.joules())
    energy = None if counter is None else MeasuredEnergy(first_joules, second_joules, counter.source)
    return _timing(rounds, effort, watch.waiting(), this_machine(), energy)


def timing_of_rounds(
    bursts: Sequence[tuple[FloatArray, FloatArray, bool]], effort: Effort, waiting: Waiting, machine: Machine
) -> PairedTiming:
    """A timing from rounds that were run elsewhere.

    Args:
        bursts: seconds of every run of the first and of the second network, (runs,) each, and whether the system left
            them alone; for every round.
        effort: how much it might take.
        waiting: how busy the machine was.
        machine: where it was.
    """
    rounds = _Rounds(effort)
    for first, second, is_clean in bursts:
        rounds.add(first, second, is_clean=is_clean, joules=(0.0, 0.0))
    return _timing(rounds, effort, waiting, machine, None)


def _timing(
    rounds: _Rounds, effort: Effort, waiting: Waiting, machine: Machine, energy: MeasuredEnergy | None
) -> PairedTiming:
    """What the rounds say."""
    counting, ratio = rounds.counting(), rounds.ratio()
    return PairedTiming(
        original=_times(counting[:, 0]),
        compressed=_times(counting[:, 1]),
        ratio=ratio,
        rounds=len(counting),
        runs=len(counting) * counting.shape[2],
        interrupted=rounds.interrupted,
        settled=ratio.tightness <= effort.tightness,
        waiting=waiting,
        machine=machine,
        energy=energy,
    )


class _Rounds:
    """The rounds so far, and which of them count: the clean ones where there are enough, else all."""

    def __init__(self, effort: Effort) -> None:
        self._effort = effort
        self._clean: list[FloatArray] = []
        self._all: list[FloatArray] = []
        self._clean_joules: list[tuple[float, float]] = []
        self._all_joules: list[tuple[float, float]] = []
        self._clean_seconds = self._all_seconds = 0.0

    @property
    def interrupted(self) -> int:
        """Number of rounds that were not clean."""
        return len(self._all) - len(self._clean)

    def add(self, first: FloatArray, second: FloatArray, *, is_clean: bool, joules: tuple[float, float]) -> None:
        """Add the bursts of a round, each (runs,) seconds, and the joules of both."""
        both, seconds = np.stack([first, second]), float(first.sum() + second.sum())
        self._all.append(both)
        self._all_joules.append(joules)
        self._all_seconds += seconds
        if is_clean:
            self._clean.append(both)
            self._clean_joules.append(joules)
            self._clean_seconds += seconds

    def may_go_on(self) -> bool:
        """Whether neither the rounds nor the seconds are used up."""
        effort = self._effort
        if len(self._all) < effort.least_rounds:
            return True
        in_time = self._clean_seconds < effort.seconds and self._all_seconds < PATIENCE * effort.seconds
        return in_time and len(self._all) < effort.most_rounds

    def are_enough(self) -> bool:
        """Whether enough rounds are clean, or it is clear that they will not be."""
        least = self._effort.least_rounds
        return len(self._clean) >= least or len(self._all) >= _MANY * least

    def counting(self) -> FloatArray:
        """(rounds, 2, runs) seconds of the rounds that count."""
        return np.stack(self._clean if self._are_clean() else self._all)

    def joules(self) -> FloatArray:
        """(2,) mean joules of the two bursts in the rounds that count."""
        found: FloatArray = np.mean(self._clean_joules if self._are_clean() else self._all_joules, axis=0)
        return found

    def _are_clean(self) -> bool:
        """Whether there are enough clean rounds, so that the others do not count."""
        return len(self._clean) >= self._effort.least_rounds

    def ratio(self) -> Interval:
        """The ratio of the two networks' times, round by round."""
        medians = np.median(self.counting(), axis=2)
        return interval(medians[:, 1] / medians[:, 0])


def involuntary_switches() -> int:
    """How often the system took the processor away from this process so far; 0 where it does not say."""
    try:
        import resource
    except ImportError:  # Windows has none
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


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


def _times(bursts: FloatArray) -> Times:
    """Times of the bursts (rounds, runs) of one network."""
    p50, p95 = np.quantile(bursts, [0.5, 0.95])
    return Times(float(p50), float(p95), interval(np.median(bursts, axis=1)))
