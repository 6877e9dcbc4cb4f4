"""Interactive plots as HTML pages, which hold Plotly's script and so work offline."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def page(figure: Figure, height: int, title: str, legend: str) -> str:
    """A figure as a page of its own.

    Args:
        figure: figure, which gets the layout of all our pages.
        height: height in pixels.
        title: title above the plot.
        legend: title of the legend.
    """
    figure.update_layout(height=height, template="plotly_white", title=title, legend={"title": {"text": legend}})
    text: str = figure.to_html(include_plotlyjs=True, include_mathjax=False, full_html=True)
    return text
