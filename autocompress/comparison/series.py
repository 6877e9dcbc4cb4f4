"""What the plots of a comparison show, as plain numbers, and the style of every method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autocompress.budget import RESOURCES
from autocompress.comparison.results import CellResult
from autocompress.comparison.summary import Floats, Summary, bootstrap

_MOST_POINTS = 400  # of a curve
_DODGE = 0.3  # share of the gap between budgets that methods are spread over, so that their error bars stay apart
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe & Ito (2008)
_SHAPES = (  # matplotlib's and Plotly's names
    ("o", "circle"), ("s", "square"), ("^", "triangle-up"), ("D", "diamond"), ("v", "triangle-down"), ("P", "cross"),
    ("X", "x"), ("*", "star"), ("<", "triangle-left"), (">", "triangle-right"), ("p", "pentagon"), ("h", "hexagon"),
)  # fmt: skip
_DASHES = (("-", "solid"), ("--", "dash"), (":", "dot"), ("-.", "dashdot"))


@dataclass(frozen=True)
class Style:
    """A method's colour, marker and line; no two methods share all three, and the markers of 12 differ."""

    color: str
    marker: str
    symbol: str
    line: str
    dash: str


@dataclass(frozen=True)
class Points:
    """A method in the plot of accuracy against budget.

    Attributes:
        method: its name.
        x: positions on the axis of budgets.
        mean: (B,) of the measure.
        below: (B,) from the mean down to the interval's end; 0 where there is none.
        above: (B,) from the mean up to the interval's end; 0 where there is none.
        seeds: (B,) values behind each mean.
    """

    method: str
    x: tuple[float, ...]
    mean: tuple[float, ...]
    below: tuple[float, ...]
    above: tuple[float, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Pareto:
    """The plot of accuracy against budget.

    Attributes:
        points: the best method first.
        x_label: with unit.
        y_label: with unit.
        ticks: text of the axis of budgets by position.
        original: the uncompressed network's value; NaN where it isn't known.
    """

    points: tuple[Points, ...]
    x_label: str
    y_label: str
    ticks: Mapping[float, str]
    original: float


@dataclass(frozen=True)
class Curve:
    """Best-so-far KL of a method under one budget.

    Attributes:
        method: its name.
        evaluations: (E,) network evaluations so far.
        mean: (E,) nats, over seeds; begins where every seed has a plan within the budget.
        low: (E,) lower end of the 95 % bootstrap interval, or empty for one seed.
        high: (E,) its upper end, or empty.
    """

    method: str
    evaluations: Floats
    mean: Floats
    low: Floats
    high: Floats


def styles(methods: Sequence[str]) -> dict[str, Style]:
    """By method, in the suite's order, so that all plots of a comparison agree."""
    made = {}
    for index, method in enumerate(methods):
        marker, symbol = _SHAPES[index % len(_SHAPES)]
        line, dash = _DASHES[index // len(_COLORS) % len(_DASHES)]
        made[method] = Style(_COLORS[index % len(_COLORS)], marker, symbol, line, dash)
    return made


def pareto(results: Sequence[CellResult], summaries: Sequence[Summary]) -> Pareto:
    """Accuracy on the test split, else on the search split, else (data without labels) KL, against the budget."""
    measure, y_label, scale = _measure(summaries)
    positions, x_label, ticks = _positions(results)
    methods = _by_rank(summaries, measure)
    gap = min(np.diff(sorted(ticks)), default=1.0) * (_DODGE if len(ticks) > 1 else 0.9)
    points = []
    for index, method in enumerate(methods):
        shift = gap * ((index + 0.5) / len(methods) - 0.5)
        mine = sorted(
            (each for each in summaries if each.method == method and each.spreads[measure].n),
            key=lambda each: positions[each.budget],
        )
        spreads = [each.spreads[measure] for each in mine]
        points.append(
            Points(
                method,
                tuple(positions[each.budget] + shift for each in mine),
                tuple(scale * each.mean for each in spreads),
                tuple(scale * _or_zero(each.mean - each.low) for each in spreads),
                tuple(scale * _or_zero(each.high - each.mean) for each in spreads),
                tuple(each.n for each in spreads),
            )
        )
    return Pareto(tuple(points), x_label, y_label, ticks, _original(results))


def curves(results: Sequence[CellResult], budget: str) -> tuple[Curve, ...]:
    """Best-so-far KL under a budget, the best method first. A search that ended early keeps what it had."""
    mine = [result for result in results if result.budget == budget and result.finished]
    end = max((result.evaluations for result in mine), default=1)
    grid = np.unique(np.linspace(1, end, min(end, _MOST_POINTS)).round())
    methods = dict.fromkeys(result.method for result in mine)
    made = [_curve(method, [each for each in mine if each.method == method], grid) for method in methods]
    return tuple(sorted(made, key=lambda curve: curve.mean[-1]))


def _curve(method: str, cells: Sequence[CellResult], grid: Floats) -> Curve:
    values = np.stack([_best_so_far(cell, grid) for cell in cells])  # (n, E)
    known = ~np.isnan(values).any(0)
    values, grid = values[:, known], grid[known]
    nothing = np.empty(0)
    low, high = bootstrap(values) if len(values) > 1 else (nothing, nothing)
    return Curve(method, grid, values.mean(0), low, high)


def _best_so_far(cell: CellResult, grid: Floats) -> Floats:
    """(E,) KL of the best plan after each number of evaluations; NaN before the first."""
    at = np.array([evaluations for evaluations, _ in cell.trace], dtype=np.float64)
    kl = np.array([math.nan, *(value for _, value in cell.trace)])
    found: Floats = kl[np.searchsorted(at, grid, side="right")]
    return found


def _measure(summaries: Sequence[Summary]) -> tuple[str, str, float]:
    """(measure, label, factor)."""
    for measure, split in (("test_accuracy", "test"), ("accuracy", "search")):
        if any(each.spreads[measure].n for each in summaries):
            return measure, f"top-1 accuracy on the {split} split, %", 100.0
    return "kl", "KL from the original on the search split, nats", 1.0


def _positions(results: Sequence[CellResult]) -> tuple[dict[str, float], str, dict[float, str]]:
    """Where budgets stand: by their share of the original where all bound the same one resource, else side by side."""
    limits = {result.budget: result for result in results if result.finished}
    budgets = list(dict.fromkeys(result.budget for result in results))
    resources = {tuple(result.limits) for result in limits.values()}
    if len(budgets) > 1 and len(limits) == len(budgets) and len(resources) == 1 and len(min(resources)) == 1:
        (name,) = min(resources)
        positions = {budget: 100 * each.limits[name] / each.original[name] for budget, each in limits.items()}
        ticks = {position: f"{position:.3g}" for position in positions.values()}
        return positions, f"budget: {name} ({RESOURCES[name]}), % of the original's", ticks
    positions = {budget: float(index) for index, budget in enumerate(budgets)}
    return positions, "budget", {position: budget for budget, position in positions.items()}


def _by_rank(summaries: Sequence[Summary], measure: str) -> list[str]:
    """Methods with any value, best first by the mean over budgets."""
    means: dict[str, list[float]] = {}
    for summary in summaries:
        if summary.spreads[measure].n:
            means.setdefault(summary.method, []).append(summary.spreads[measure].mean)
    sign = 1 if measure == "kl" else -1
    return sorted(means, key=lambda method: sign * float(np.mean(means[method])))


def _original(results: Sequence[CellResult]) -> float:
    """Percent on the test split."""
    known = (100 * each.test_accuracy + each.test_drop for each in results)
    return next((value for value in known if not math.isnan(value)), math.nan)


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value
