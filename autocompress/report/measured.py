"""Measured labels beside their expected losses, as lines for people and as a plot."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from autocompress.report.pages import page

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from autocompress.job.measured_labels import MeasuredLabel, MeasuredLabels

_SMALLEST = 1e-5  # nats; losses below it lie on the plot's edge
_FACTOR = 2.0  # half the width of the plot's band, as a factor


def measured_lines(measured: MeasuredLabels) -> list[str]:
    """How true the expected losses are, in a few lines: median, spread, and the worst labels.

    Args:
        measured: labels that were measured.
    """
    ratios, total = measured.ratios, len(measured.labels)
    base = (
        f"mildest labels everywhere: expected {measured.base_expected:.2g}, measured {measured.base_measured:.2g} nats"
    )
    if not len(ratios):
        return [f"{base}; none of {total} labels measured loses more than their noise"]
    low, middle, high = np.quantile(ratios, (0.05, 0.5, 0.95))
    good = f"{100 * measured.share_good:.0f} % within a factor of {_FACTOR:g}"
    return [
        base,
        f"measured / expected loss of {len(ratios)} single labels, above that: median {middle:.2f}, {good}, "
        f"90 % from {low:.2f} to {high:.2f}; left out as noise: {total - len(ratios)}",
        *(f"  worst: {_described(label)}" for label in measured.worst()),
    ]


def _described(label: MeasuredLabel) -> str:
    losses = f"expected {label.expected:.2g}, measured {label.measured:.2g} nats"
    return f"{label.layer}, {label.label}: {losses}, ratio {label.ratio:.2f}"


def measured_page(measured: MeasuredLabels) -> str:
    """Page of measured against expected loss, each above that of the mildest labels; the band is a factor of 2.

    Labels that say nothing, since their losses are noise, are grey.

    Args:
        measured: labels that were measured.
    """
    from plotly import graph_objects

    figure = graph_objects.Figure()
    shown = [(label, _above(label, measured)) for label in measured.labels]
    _add_band(figure, [value for _, pair in shown for value in pair])
    kinds: dict[str, list[tuple[MeasuredLabel, tuple[float, float]]]] = {}
    for label, pair in shown:
        kinds.setdefault("noise" if label.ratio is None else _kind(label), []).append((label, pair))
    for kind, points in sorted(kinds.items()):
        figure.add_scatter(
            x=[expected for _, (expected, _) in points],
            y=[value for _, (_, value) in points],
            mode="markers",
            name=kind,
            text=[escape(f"{label.layer}, {label.label}", quote=False) for label, _ in points],
            hovertemplate="%{text}: expected %{x:.3g}, measured %{y:.3g}",
            marker={"size": 7, **({"color": "#bbbbbb"} if kind == "noise" else {})},
        )
    figure.update_xaxes(type="log", title="expected loss above that of the mildest labels, nats")
    figure.update_yaxes(type="log", title="measured loss above that of the mildest labels, nats (search split)")
    return page(figure, 640, "Single labels: measured against expected loss", "label")


def _above(label: MeasuredLabel, measured: MeasuredLabels) -> tuple[float, float]:
    """Expected and measured loss of a label above the base's, as they are drawn."""
    losses = (label.expected - measured.base_expected, label.measured - measured.base_measured)
    return max(losses[0], _SMALLEST), max(losses[1], _SMALLEST)


def _kind(label: MeasuredLabel) -> str:
    """What is labelled: `weight bits`, `activation bits` or `sparsity`."""
    return "sparsity" if label.label.startswith("sparsity") else label.label.partition(" ")[2]


def _add_band(figure: Figure, values: list[float]) -> None:
    """Add the diagonal, and around it the band in which measured and expected loss differ by at most a factor of 2."""
    x = [min(values, default=_SMALLEST), max(values, default=1.0)]
    edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    figure.add_scatter(x=x, y=[value / _FACTOR for value in x], **edge)
    figure.add_scatter(x=x, y=[value * _FACTOR for value in x], fill="tonexty", fillcolor="rgba(0, 0, 0, 0.07)", **edge)
    figure.add_scatter(x=x, y=x, mode="lines", name="as expected", line={"color": "#777777", "dash": "dot", "width": 1})
