"""Geometry of a front's charts: a resource across, what was measured of each point upwards, in percent of the plot."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autocompress.report.figures import Line, Tick, round_values
from autocompress.report.run_numbers import nats
from autocompress.report.run_record import is_known
from autocompress.tasks.metrics import METRICS, share_interval

_SMALLEST = 1e-7  # nats; stands for 0 on a logarithmic axis
_CHARACTER = 1.9  # percent of a narrow plot's width that a character takes
_TEXT_HEIGHT = 8.0  # percent of its height that a line of text takes
_ROOM = 0.1  # of the span that is left free at each end


@dataclass(frozen=True)
class Quality:
    """The measure of a front's points that stands for its task.

    Attributes:
        title: what was measured.
        values: of each point's compressed network.
        original: of the original; None where it has no such number.
        is_share: whether values are shares of samples, in [0, 1], and shown in percent.
        intervals: 95 % intervals of the values; empty where nothing is known of them.
    """

    title: str
    values: Sequence[float]
    original: float | None
    is_share: bool
    intervals: Sequence[tuple[float, float]] = ()

    def text(self, value: float) -> str:
        """A value as people read it."""
        return f"{100 * value:.2f} %" if self.is_share else f"{value:.4f}"


def quality_of(outcomes: Sequence[Mapping[str, Any]]) -> Quality | None:
    """Accuracy where all points have one, else the task's first metric, else the share of equal answers, else None."""
    first = outcomes[0]
    accuracies = [each["compressed"].get("accuracy") for each in outcomes]
    if all(map(is_known, accuracies)):
        return _share("top-1 accuracy", accuracies, first["original"].get("accuracy"), outcomes)
    for name in first.get("metrics") or {}:
        both = [(each.get("metrics") or {}).get(name) or {} for each in outcomes]
        values: list[Any] = [each.get("compressed") for each in both]
        if all(map(is_known, values)):
            metric, before = METRICS.get(name), both[0].get("original")
            original = before if is_known(before) else None
            return Quality(metric.title if metric else name, values, original, bool(metric and metric.is_share))
    agreements = [each["compressed"].get("agreement") for each in outcomes]
    if all(map(is_known, agreements)):
        return _share("same top-1 answer as the original", agreements, None, outcomes)
    return None


def _share(title: str, values: Sequence[Any], original: Any, outcomes: Sequence[Mapping[str, Any]]) -> Quality:
    samples = [each.get("samples") for each in outcomes]
    known = all(map(is_known, samples)) and all(samples)
    ends = [share_interval(value, int(count)) for value, count in zip(values, samples, strict=True)] if known else []  # type: ignore[arg-type]
    return Quality(title, values, original if is_known(original) else None, True, ends)


@dataclass(frozen=True)
class Tolerance:
    """Losses that were tolerated and found, where a search was for the least of a resource.

    Attributes:
        is_share: whether losses are drops of the accuracy, as shares of samples; else they are nats.
        tolerated: largest loss.
        bounds: upper bound of each network's loss.
        passed: whether each network's loss is within what is tolerated.
        chosen: number of the smallest network that passed.
        samples: number of held-out samples of the test.
        confidence: probability that no network that passed loses more.
    """

    is_share: bool
    tolerated: float
    bounds: Sequence[float]
    passed: Sequence[bool]
    chosen: int
    samples: int
    confidence: float

    @property
    def title(self) -> str:
        """What the losses are."""
        return "the drop of accuracy" if self.is_share else "the divergence"

    def text(self, value: float) -> str:
        """A loss as people read it."""
        return loss_text(value, is_share=self.is_share)


def loss_text(value: float, *, is_share: bool) -> str:
    """A loss that is tolerated or found, as people read it.

    >>> loss_text(0.012, is_share=True), loss_text(0.012, is_share=False)
    ('1.20 points', '0.012 nats')
    """
    return f"{100 * value:.2f} points" if is_share else f"{nats(value)} nats"


def prices_text(prices: tuple[float, float] | None) -> str:
    """The prices at which a point of a front is the best; empty where there are none.

    >>> prices_text((0.0, 0.25)), prices_text((2.5, math.inf)), prices_text(None)
    ('0 to 0.25', '2.5 or more', '')
    """
    if prices is None:
        return ""
    low, high = prices
    return f"{low:.3g} to {high:.3g}" if math.isfinite(high) else f"{low:.3g} or more"


@dataclass(frozen=True)
class FrontFigure:
    """One measure of all points against a resource.

    Attributes:
        axis: what the upward axis shows.
        marks: (x, y, text, value in words) of each point.
        labelled: whether there is room for the text of each point.
        line: the line through them, as SVG has it.
        whiskers: (x, y from, y to) of the intervals.
        original: line of the original; None where it has no such number.
        x_ticks: ticks of the resource.
        y_ticks: ticks of the measure.
        description: the figure in words.
    """

    axis: str
    marks: Sequence[tuple[float, float, str, str]]
    labelled: Sequence[bool]
    line: str
    whiskers: Sequence[tuple[float, float, float]]
    original: Line | None
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    description: str


def quality_figure(amounts: Sequence[float], budgets: Sequence[str], quality: Quality) -> FrontFigure:
    """The chart of a task's measure.

    Args:
        amounts: amount of the resource of each point.
        budgets: their budgets in a few characters.
        quality: the measure.
    """
    all_values = [*quality.values, *(end for pair in quality.intervals for end in pair)]
    all_values += [] if quality.original is None else [quality.original]
    low, high = _with_room(min(all_values), max(all_values))

    def y(value: float) -> float:
        return 100 * (high - value) / (high - low)

    x = _across(amounts)
    ends = zip(amounts, quality.intervals, strict=True) if quality.intervals else ()
    before = quality.original
    return _figure(
        quality.title,
        [(x(amount), y(value), quality.text(value)) for amount, value in zip(amounts, quality.values, strict=True)],
        budgets,
        amounts,
        [(x(amount), y(pair[0]), y(pair[1])) for amount, pair in ends],
        None if before is None else Line(y(before), y(before), f"original, {quality.text(before)}"),
        [Tick(y(value), _short(value, quality.is_share)) for value in _even_values(low, high)],
    )


def divergence_figure(amounts: Sequence[float], budgets: Sequence[str], losses: Sequence[float]) -> FrontFigure:
    """The chart of the divergence from the original, on a logarithmic axis.

    Args:
        amounts: amount of the resource of each point.
        budgets: their budgets in a few characters.
        losses: KL divergence of each point in nats, at least 0.
    """
    logs = [math.log(max(loss, _SMALLEST)) for loss in losses]
    low, high = _with_room(min(logs), max(logs), least=1.5)

    def y(log: float) -> float:
        return 100 * (high - log) / (high - low)

    x = _across(amounts)
    places = [
        (x(amount), y(log), f"{nats(loss)} nats") for amount, log, loss in zip(amounts, logs, losses, strict=True)
    ]
    ticks = [Tick(y(math.log(value)), nats(value)) for value in round_values(math.exp(low), math.exp(high))]
    return _figure("KL divergence, nats (logarithmic)", places, budgets, amounts, (), None, ticks)


def bound_figure(amounts: Sequence[float], budgets: Sequence[str], tolerance: Tolerance) -> FrontFigure:
    """The chart of what each network loses at most, with the loss that is tolerated as a line.

    Args:
        amounts: amount of the resource of each network.
        budgets: their budgets in a few characters.
        tolerance: the losses.
    """
    low, high = _with_room(*(pick([*tolerance.bounds, tolerance.tolerated]) for pick in (min, max)))

    def y(value: float) -> float:
        return 100 * (high - value) / (high - low)

    x, line = _across(amounts), y(tolerance.tolerated)
    return _figure(
        f"upper bound of {tolerance.title}, {'points' if tolerance.is_share else 'nats'}",
        [(x(amount), y(bound), tolerance.text(bound)) for amount, bound in zip(amounts, tolerance.bounds, strict=True)],
        budgets,
        amounts,
        (),
        Line(line, line, f"largest tolerated, {tolerance.text(tolerance.tolerated)}"),
        [Tick(y(value), f"{(100 if tolerance.is_share else 1) * value:.6g}") for value in _even_values(low, high)],
    )


def _figure(
    axis: str,
    places: Sequence[tuple[float, float, str]],
    budgets: Sequence[str],
    amounts: Sequence[float],
    whiskers: Sequence[tuple[float, float, float]],
    original: Line | None,
    y_ticks: Sequence[Tick],
) -> FrontFigure:
    x = _across(amounts)
    told = "; ".join(f"{budget}: {text}" for budget, (_, _, text) in zip(budgets, places, strict=True))
    return FrontFigure(
        axis=axis,
        marks=[(across, down, budget, text) for budget, (across, down, text) in zip(budgets, places, strict=True)],
        labelled=_with_room_for_text(budgets, places),
        line=" ".join(f"{across:.2f},{down:.2f}" for across, down, _ in sorted(places)),
        whiskers=whiskers,
        original=original,
        x_ticks=[Tick(x(value), f"{value:,g}" if value < 1e6 else f"{value:,.0f}") for value in _ticks_of(amounts)],
        y_ticks=y_ticks,
        description=f"{axis}. {told}." + (f" The {original.text}." if original else ""),
    )


def _with_room_for_text(texts: Sequence[str], places: Sequence[tuple[float, float, str]]) -> list[bool]:
    """Whether the text beside each point has room, where those before it have theirs."""
    taken: list[tuple[float, float, float]] = []  # (left, right, height) of texts
    found = []
    for text, (x, y, _) in zip(texts, places, strict=True):
        end = x + _CHARACTER * (len(text) + 1)
        free = all(x >= right or end <= left or abs(y - height) >= _TEXT_HEIGHT for left, right, height in taken)
        taken += [(x, end, y)] if free else []
        found.append(free)
    return found


def _across(amounts: Sequence[float]) -> Callable[[float], float]:
    """Place of an amount in percent of the width."""
    low, high = _with_room(min(amounts), max(amounts))
    return lambda amount: 100 * (amount - low) / (high - low)


def _ticks_of(amounts: Sequence[float]) -> list[float]:
    return _even_values(*_with_room(min(amounts), max(amounts)))


def _with_room(low: float, high: float, least: float = 0.0) -> tuple[float, float]:
    """The ends of an axis: some room beyond the values, and a span above 0 where all are equal."""
    span = max(high - low, least) or abs(high) or 1.0
    middle, half = (low + high) / 2, (0.5 + _ROOM) * span
    return middle - half, middle + half


def _even_values(low: float, high: float) -> list[float]:
    """At most six numbers at equal steps of 1, 2 or 5 times a power of ten within a range.

    >>> _even_values(2300, 5100)
    [2500.0, 3000.0, 3500.0, 4000.0, 4500.0, 5000.0]
    """
    power = math.floor(math.log10(high - low)) - 1
    step = next(
        step for more in range(4) for base in (1, 2, 5) if (high - low) / (step := float(f"{base}e{power + more}")) <= 6
    )
    return [round(count * step, 12) for count in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _short(value: float, is_share: bool) -> str:
    return f"{100 * value:.6g} %" if is_share else f"{value:.6g}"
