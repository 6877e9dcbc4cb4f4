"""The plots of a comparison as interactive HTML pages, which hold Plotly's script and so work offline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from autocompress.comparison.plots import X_PROGRESS, Y_PROGRESS
from autocompress.comparison.series import Curve, Pareto, Style
from autocompress.report.pages import page

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_PANELS_A_ROW = 2
_LEGEND = "best first"


def pareto_html(plot: Pareto, styles: Mapping[str, Style]) -> str:
    """Page of accuracy against budget: means, with their intervals as error bars.

    A click on a method in the legend hides it.

    Args:
        plot: numbers of the plot.
        styles: style of every method, by name.
    """
    from plotly import graph_objects

    figure = graph_objects.Figure()
    for points in plot.points:
        figure.add_scatter(
            x=points.x,
            y=points.mean,
            error_y={"type": "data", "array": points.above, "arrayminus": points.below, "symmetric": False},
            mode="lines+markers",
            name=escape(points.method, quote=False),
            customdata=points.seeds,
            hovertemplate="%{y:.4g}, seeds: %{customdata}",
            **_plotly_style(styles[points.method]),
        )
    if not math.isnan(plot.original):
        figure.add_hline(y=plot.original, line={"color": "#777777", "dash": "dot", "width": 1})
        figure.add_annotation(
            x=1, xref="paper", xanchor="right", y=plot.original, yanchor="bottom", text="original", showarrow=False
        )
    figure.update_xaxes(title=plot.x_label, tickvals=list(plot.ticks), ticktext=list(plot.ticks.values()))
    figure.update_yaxes(title=plot.y_label)
    return page(figure, 560, "Accuracy against budget", _LEGEND)


def progress_html(panels: Mapping[str, Sequence[Curve]], styles: Mapping[str, Style]) -> str:
    """Page of the KL of the best plan so far against evaluations: means, with their intervals as bands.

    Args:
        panels: curves of every method by budget; each budget has its own panel.
        styles: style of every method, by name.
    """
    from plotly.subplots import make_subplots

    columns = min(_PANELS_A_ROW, len(panels))
    rows = -(-len(panels) // columns)
    figure = make_subplots(rows, columns, subplot_titles=list(panels))
    named: set[str] = set()
    for index, curves in enumerate(panels.values()):
        at = {"row": index // columns + 1, "col": index % columns + 1}
        for curve in curves:
            _add_curve(figure, curve, styles[curve.method], at, first=curve.method not in named)
            named.add(curve.method)
        scale = "log" if all((curve.mean > 0).all() for curve in curves) else "linear"
        figure.update_yaxes(type=scale, title=Y_PROGRESS if at["col"] == 1 else None, **at)
        figure.update_xaxes(title=X_PROGRESS, **at)
    return page(figure, 520 * rows, "Best plan so far against evaluations", _LEGEND)


def _add_curve(figure: Figure, curve: Curve, style: Style, at: Mapping[str, int], *, first: bool) -> None:
    """Add a line and its band to the panel `at`; a click in the legend hides both."""
    group = {"legendgroup": curve.method, **at}
    line = {**_plotly_style(style)["line"], "shape": "hv"}
    if len(curve.low):
        band: dict[str, Any] = {"mode": "lines", "showlegend": False, "hoverinfo": "skip", **group}
        edge = {"width": 0, "shape": "hv"}
        fill = f"rgba({', '.join(str(int(style.color[i : i + 2], 16)) for i in (1, 3, 5))}, 0.15)"
        x, low, high = (values.tolist() for values in (curve.evaluations, curve.low, curve.high))
        figure.add_scatter(x=x, y=low, line=edge, **band)
        figure.add_scatter(x=x, y=high, line=edge, fill="tonexty", fillcolor=fill, **band)
    figure.add_scatter(
        x=curve.evaluations.tolist(),
        y=curve.mean.tolist(),
        mode="lines",
        name=escape(curve.method, quote=False),
        showlegend=first,
        line=line,
        hovertemplate="%{y:.4g} after %{x}",
        **group,
    )


def _plotly_style(style: Style) -> dict[str, Any]:
    """Plotly's arguments for the line and the markers of a method."""
    return {"line": {"color": style.color, "dash": style.dash}, "marker": {"symbol": style.symbol, "size": 9}}
