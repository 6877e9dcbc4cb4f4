"""The plots of a comparison as PNG files."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from autocompress.comparison.series import Curve, Pareto, Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 150
_PANELS_A_ROW = 2
_TOP = 100.0  # drawing order of the best method, which lies above the others
X_PROGRESS, Y_PROGRESS = "network evaluations", "KL of the best plan so far, nats (search split)"


def pareto_png(plot: Pareto, styles: Mapping[str, Style]) -> bytes:
    """PNG of accuracy against budget: means, with their intervals as error bars.

    Args:
        plot: numbers of the plot.
        styles: style of every method, by name.
    """
    figure, ((axes,),) = _figure(1, 1)
    for rank, points in enumerate(plot.points):
        style = styles[points.method]
        axes.errorbar(
            points.x,
            points.mean,
            yerr=(points.below, points.above),
            color=style.color,
            marker=style.marker,
            linestyle=style.line,
            linewidth=1.2,
            markersize=6,
            capsize=3,
            zorder=_TOP - rank,
            label=points.method,
        )
    if not math.isnan(plot.original):
        axes.axhline(plot.original, color="#777777", linewidth=1, linestyle=(0, (1, 3)), zorder=0)
        axes.annotate(
            "original",
            (0, plot.original),
            xycoords=("axes fraction", "data"),
            xytext=(4, 2),
            textcoords="offset points",
            color="#777777",
        )
    axes.set_xticks(list(plot.ticks), list(plot.ticks.values()))
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    return _png(figure)


def progress_png(panels: Mapping[str, Sequence[Curve]], styles: Mapping[str, Style]) -> bytes:
    """PNG of the KL of the best plan so far against evaluations: means, with their intervals as bands.

    Args:
        panels: curves of every method by budget; each budget has its own panel.
        styles: style of every method, by name.
    """
    columns = min(_PANELS_A_ROW, len(panels))
    figure, grid = _figure(-(-len(panels) // columns), columns)
    flat = [axes for row in grid for axes in row]
    for axes, (budget, curves) in zip(flat, panels.items(), strict=False):
        _draw_curves(axes, curves, styles)
        axes.set_title(budget)
        axes.set_xlabel(X_PROGRESS)
    for row in grid:
        row[0].set_ylabel(Y_PROGRESS)
    for axes in flat[len(panels) :]:
        axes.set_visible(False)
    return _png(figure)


def _draw_curves(axes: Axes, curves: Sequence[Curve], styles: Mapping[str, Style]) -> None:
    from matplotlib.ticker import MaxNLocator

    for rank, curve in enumerate(curves):
        style = styles[curve.method]
        every = max(1, len(curve.mean) // 8)
        axes.plot(
            curve.evaluations,
            curve.mean,
            drawstyle="steps-post",
            color=style.color,
            linestyle=style.line,
            marker=style.marker,
            markevery=every,
            markersize=5,
            linewidth=1.4,
            zorder=_TOP - rank,
            label=curve.method,
        )
        if len(curve.low):
            axes.fill_between(
                curve.evaluations, curve.low, curve.high, step="post", color=style.color, alpha=0.15, linewidth=0
            )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if all((curve.mean > 0).all() for curve in curves):
        axes.set_yscale("log")


def _figure(rows: int, columns: int) -> tuple[Figure, list[list[Axes]]]:
    """A figure with `rows` x `columns` panels, made without pyplot, so that no global state keeps it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * columns + 2.2, 4.4 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, [list(row) for row in grid]


def _png(figure: Figure) -> bytes:
    """The figure as PNG, with one legend for all panels: a method that failed in one may be in another."""
    named = [axes.get_legend_handles_labels() for axes in figure.axes]
    handles = {label: handle for pair in reversed(named) for handle, label in zip(*pair, strict=True)}
    order = dict.fromkeys(label for _, labels in named for label in labels)
    if handles:
        shown = [handles[label] for label in order]
        figure.legend(shown, list(order), loc="outside right upper", frameon=False, title="best first")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=_DPI)
    return content.getvalue()
