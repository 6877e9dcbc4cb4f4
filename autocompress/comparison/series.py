"""The numbers behind the plots of a comparison, and the style of every method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autocompress.budget import RESOURCES
from autocompress.comparison.results import CellResult
from autocompress.comparison.summary import Floats, Summary, bootstrap

_MOST_POINTS = 400  # largest number of points of a curve
_DODGE = 0.3  # methods are spread over this share of the gap between budgets, so that their error bars stay apart
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe & Ito (2008)
_SHAPES = (  # matplotlib's and Plotly's names
    ("o", "circle"), ("s", "square"), ("^", "triangle-up"), ("D", "diamond"), ("v", "triangle-down"), ("P", "cross"),
    ("X", "x"), ("*", "star"), ("<", "triangle-left"), (">", "triangle-right"), ("p", "pentagon"), ("h", "hexagon"),
)  # fmt: skip
_DASHES = (("-", "solid"), ("--", "dash"), (":", "dot"), ("-.", "dashdot"))


@dataclass(frozen=True)
class Style:
    """Colour, marker and line of a method.

    No two methods of a comparison share all three. The first 12 methods differ in their markers.

    Attributes:
        color: colour as `#RRGGBB`.
        marker: name of the marker in matplotlib.
        symbol: name of the marker in Plotly.
        line: name of the line's dashes in matplotlib.
        dash: name of the line's dashes in Plotly.
    """

    color: str
    marker: str
    symbol: str
    line: str
    dash: str


@dataclass(frozen=True)
class Points:
    """A method in the plot of accuracy against budget.

    Attributes:
        method: name of the method.
        x: (B,) positions of the budgets on the x axis.
        mean: (B,) means over seeds.
        below: (B,) distances from the mean down to the lower end of its interval; 0 without an interval.
        above: (B,) distances from the mean up to the upper end of its interval; 0 without an interval.
        seeds: (B,) numbers of seeds that the means are taken over.
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
        points: points of every method, the best method first.
        x_label: label of the x axis, with its unit.
        y_label: label of the y axis, with its unit.
        ticks: texts of the ticks on the x axis, by position.
        original: accuracy of the original network in percent; NaN where it isn't known.
    """

    points: tuple[Points, ...]
    x_label: str
    y_label: str
    ticks: Mapping[float, str]
    original: float


@dataclass(frozen=True)
class Curve:
    """KL of the best plan so far, of one method under one budget.

    Attributes:
        method: name of the method.
        evaluations: (E,) numbers of network evaluations so far; begins where every seed has a plan within the
            budget.
        mean: (E,) means over seeds of the KL of the best plan so far, in nats.
        low: (E,) lower ends of their 95 % bootstrap intervals; empty for a single seed.
        high: (E,) upper ends of these intervals; empty for a single seed.
    """

    method: str
    evaluations: Floats
    mean: Floats
    low: Floats
    high: Floats


def styles(methods: Sequence[str]) -> dict[str, Style]:
    """Styles by method.

    Args:
        methods: names of all methods in the suite's order, so that all plots of a comparison agree.
    """
    made = {}
    for index, method in enumerate(methods):
        marker, symbol = _SHAPES[index % len(_SHAPES)]
        line, dash = _DASHES[index // len(_COLORS) % len(_DASHES)]
        made[method] = Style(_COLORS[index % len(_COLORS)], marker, symbol, line, dash)
    return made


def pareto(results: Sequence[CellResult], summaries: Sequence[Summary]) -> Pareto:
    """Numbers of the plot of accuracy against budget.

    The accuracy is that on the test split; without a test split, that on the search split. Without labels,
    the KL from the original takes its place.

    Args:
        results: results of all cells.
        summaries: summaries of these results.
    """
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
                tuple(scale * _distance(each.mean - each.low) for each in spreads),
                tuple(scale * _distance(each.high - each.mean) for each in spreads),
                tuple(each.n for each in spreads),
            )
        )
    return Pareto(tuple(points), x_label, y_label, ticks, _original(results))


def curves(results: Sequence[CellResult], budget: str) -> tuple[Curve, ...]:
    """KL of the best plan so far under one budget, the best method first.

    A search that ended early keeps its last value up to the longest search.

    Args:
        results: results of all cells.
        budget: budget in its normal form.
    """
    mine = [result for result in results if result.budget == budget and result.finished]
    end = max((result.evaluations for result in mine), default=1)
    grid = np.unique(np.linspace(1, end, min(end, _MOST_POINTS)).round())
    methods = dict.fromkeys(result.method for result in mine)
    made = [_curve(method, [each for each in mine if each.method == method], grid) for method in methods]
    return tuple(sorted(made, key=lambda curve: curve.mean[-1]))


def _curve(method: str, cells: Sequence[CellResult], grid: Floats) -> Curve:
    """The curve of a method from its cells, at the numbers of evaluations in `grid`."""
    values = np.stack([_best_so_far(cell, grid) for cell in cells])  # (n, E)
    known = ~np.isnan(values).any(0)
    values, grid = values[:, known], grid[known]
    nothing = np.empty(0)
    low, high = bootstrap(values) if len(values) > 1 else (nothing, nothing)
    return Curve(method, grid, values.mean(0), low, high)


def _best_so_far(cell: CellResult, grid: Floats) -> Floats:
    """KL (E,) of the best plan after each number of evaluations in `grid` (E,); NaN before the first plan."""
    at = np.array([evaluations for evaluations, _ in cell.trace], dtype=np.float64)
    kl = np.array([math.nan, *(value for _, value in cell.trace)])
    found: Floats = kl[np.searchsorted(at, grid, side="right")]
    return found


def _measure(summaries: Sequence[Summary]) -> tuple[str, str, float]:
    """The measure to plot against the budget, its axis's label, and the factor to the label's unit."""
    for measure, split in (("test_accuracy", "test"), ("accuracy", "search")):
        if any(each.spreads[measure].n for each in summaries):
            return measure, f"top-1 accuracy on the {split} split, %", 100.0
    return "kl", "KL from the original on the search split, nats", 1.0


def _positions(results: Sequence[CellResult]) -> tuple[dict[str, float], str, dict[float, str]]:
    """Positions of the budgets on the x axis by budget, the axis's label, and its ticks.

    If all budgets bound the same single resource, a position is the budget's share of the original's amount
    in percent; else budgets are side by side.
    """
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
    """Names of the methods that have a value, the best first by the mean over budgets."""
    means: dict[str, list[float]] = {}
    for summary in summaries:
        if summary.spreads[measure].n:
            means.setdefault(summary.method, []).append(summary.spreads[measure].mean)
    sign = 1 if measure == "kl" else -1
    return sorted(means, key=lambda method: sign * float(np.mean(means[method])))


def _original(results: Sequence[CellResult]) -> float:
    """Accuracy of the original network on the test split in percent; NaN where it isn't known."""
    known = (100 * each.test_accuracy + each.test_drop for each in results)
    return next((value for value in known if not math.isnan(value)), math.nan)


def _distance(value: float) -> float:
    """A distance of at least 0: 0 in place of NaN, and where rounding puts a mean a last digit beyond equal values."""
    return 0.0 if math.isnan(value) else max(0.0, value)
