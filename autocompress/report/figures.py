"""Geometry of a report's figures: places in percent of the plot, so that text and lines scale apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from autocompress.report.run_numbers import LayerRow, SearchStory, nats

_SMALLEST = 1e-6  # nats; stands for 0 on a logarithmic axis
_GAP = 6.5  # percent of the height between two labels


@dataclass(frozen=True)
class Tick:
    """A tick: its place in percent, and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """A horizontal line: its place from the top in percent, that of its label, and the text."""

    at: float
    label_at: float
    text: str


@dataclass(frozen=True)
class SearchFigure:
    """Best so far against evaluations.

    Attributes:
        points: (x, y, whether the plan meets the budget) of every plan in the plot.
        best: points of the step line of the best plan so far, as SVG has them.
        best_label: label of the line at its end.
        simple: the simple plans.
        x_ticks: ticks of the evaluations.
        y_ticks: ticks of the KL divergence, on a logarithmic axis.
        above: number of plans above the plot.
        outside: the simple plans above the plot in words; empty where there are none.
        description: the figure in words.
    """

    points: Sequence[tuple[float, float, bool]]
    best: str
    best_label: Line
    simple: Sequence[Line]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    above: int
    outside: str
    description: str


def search_figure(story: SearchStory) -> SearchFigure | None:
    """The figure of a search; None where fewer than two plans were evaluated."""
    if len(story.points) < 2 or not story.best:
        return None
    last = max(index for index, _, _ in story.points)
    low, high = _range(story)

    def x(index: float) -> float:
        return 100 * (index - 1) / max(1, last - 1)

    def y(kl: float) -> float:
        share = (math.log(max(kl, _SMALLEST)) - math.log(low)) / (math.log(high) - math.log(low))
        return 100 * (1 - share)

    shown = [(x(index), y(kl), fits) for index, kl, fits in story.points if kl <= high]
    best = [(index, kl) for index, kl in story.best if kl <= high]
    ends = [*best, (last, best[-1][1])]
    texts = [(y(best[-1][1]), f"best plan so far, {nats(best[-1][1])}")]
    texts += [(y(kl), f"{name}, {nats(kl)}") for name, kl in story.simple if kl <= high]
    lines = _apart(texts)
    outside = [f"{name}, {nats(kl)}" for name, kl in story.simple if kl > high]
    return SearchFigure(
        points=shown,
        best=_steps([(x(index), y(kl)) for index, kl in ends]),
        best_label=lines[0],
        simple=lines[1:],
        x_ticks=[Tick(x(index), f"{index:,}") for index in _round_counts(last)],
        y_ticks=[Tick(y(value), f"{value:g}") for value in round_values(low, high)],
        above=len(story.points) - len(shown),
        outside=f"Among them {'; '.join(outside)} nats." if outside else "",
        description=_described(story, last),
    )


def _described(story: SearchStory, last: int) -> str:
    simple = "; ".join(f"{name} {nats(kl)}" for name, kl in story.simple)
    return (
        f"{last:,} plans were evaluated. The best plan so far goes from {nats(story.best[0][1])} to "
        f"{nats(story.best[-1][1])} nats of KL divergence." + (f" Simple plans: {simple}." if simple else "")
    )


def _range(story: SearchStory) -> tuple[float, float]:
    """(lowest, highest) KL of the plot: all leaders, most plans, and simple plans unless they are far off."""
    values = sorted(max(kl, _SMALLEST) for _, kl, _ in story.points)
    most = values[min(len(values) - 1, int(0.95 * len(values)))]
    high = max([most, *(kl for _, kl in story.best)])
    near = [kl for _, kl in story.simple if kl <= 4 * high]
    high = max([high, *near])
    low = values[0]
    return low / 1.15, max(high * 1.15, low * 1.5)


def _steps(places: Sequence[tuple[float, float]]) -> str:
    """A line that is level until the next place, then goes straight there."""
    found = [f"{places[0][0]:.2f},{places[0][1]:.2f}"]
    for (_, before), (across, now) in pairwise(places):
        found += [f"{across:.2f},{before:.2f}", f"{across:.2f},{now:.2f}"]
    return " ".join(found)


def _apart(texts: Sequence[tuple[float, str]]) -> list[Line]:
    """Lines whose labels are at least a gap apart, as near to their lines as that allows; in the given order."""
    order = sorted(range(len(texts)), key=lambda i: texts[i][0])
    places: dict[int, float] = {}
    above = -math.inf
    for index in order:
        above = places[index] = max(texts[index][0], above + _GAP)
    over = max(0.0, above - 100)  # the last one is below the plot: all that are pressed together move up
    below = math.inf
    for index in reversed(order if over else []):
        below = places[index] = min(places[index], 100.0, below - _GAP)
    return [Line(at, places[index], text) for index, (at, text) in enumerate(texts)]


def _round_counts(last: int) -> list[int]:
    """1, and a few round numbers up to the last evaluation.

    >>> _round_counts(183)
    [1, 50, 100, 150]
    """
    steps = (base * 10**power for power in range(9) for base in (1, 2, 5))
    step = next(step for step in steps if last / step <= 5)
    return [1, *(index for index in range(step, last + 1, step) if index > 1)]


def round_values(low: float, high: float) -> list[float]:
    """Numbers 1, 2 and 5 times a power of ten within a range; powers of ten alone where it is wide.

    >>> round_values(0.0015, 0.012)
    [0.002, 0.005, 0.01]
    """
    bases = (1, 2, 5) if high / low < 100 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [value for power in powers for base in bases if low <= (value := float(f"{base}e{power}")) <= high]


@dataclass(frozen=True)
class LayerBar:
    """One layer's bars in percent of the longest one: (kept, removed) of each measure.

    Attributes:
        row: the layer.
        size: bytes in the file, and those that the removed weights would take at the same bits.
        macs: multiply-accumulates that are left, and that are gone.
        loss: expected loss of rounding, and of pruning.
        bits: weight bits, which the colour stands for.
    """

    row: LayerRow
    size: tuple[float, float]
    macs: tuple[float, float]
    loss: tuple[float, float]
    bits: int


def layer_bars(rows: Sequence[LayerRow]) -> list[LayerBar]:
    """The bars of all layers, in network order."""
    sizes = [(row.bytes_now, row.removed_bytes) for row in rows]
    macs = [_macs(row) for row in rows]
    losses = [(row.facts["expected_loss"]["rounding"], row.facts["expected_loss"]["pruning"]) for row in rows]
    scaled = (_scaled(each) for each in (sizes, macs, losses))
    return [
        LayerBar(row, size, left, loss, row.facts["label"]["weight_bits"])
        for row, size, left, loss in zip(rows, *scaled, strict=True)
    ]


def _macs(row: LayerRow) -> tuple[float, float]:
    now, before = row.facts["macs"]["compressed"], row.facts["macs"]["original"]
    return now, max(0, before - now)


def _scaled(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    longest = max((sum(pair) for pair in pairs), default=0) or 1
    return [(100 * first / longest, 100 * second / longest) for first, second in pairs]
