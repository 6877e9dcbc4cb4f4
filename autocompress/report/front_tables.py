"""Fronts and tolerances as tables for people to read on a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from autocompress.report.front_figures import loss_text, prices_text, quality_of
from autocompress.report.tables import NAMES
from autocompress.run.names import REPORT

if TYPE_CHECKING:
    from autocompress.job.front import Front
    from autocompress.job.tolerance import Smallest


def print_front(console: Console, front: Front) -> None:
    """Print the points of a front.

    Args:
        console: where to print.
        front: the front.
    """
    table = Table(title=f"Front of {NAMES[front.resource]}", title_justify="left")
    quality = quality_of([point.outcome for point in front.points])
    measure = [] if quality is None else [quality.title]
    for column in ("budget", "used", "of the original", "divergence, nats", *measure, "balanced at", "run folder"):
        table.add_column(column, justify="left" if column in ("budget", "run folder") else "right")
    for at, (point, prices) in enumerate(zip(front.points, front.prices, strict=True)):
        table.add_row(
            point.budget,
            f"{point.amount[front.resource]:,}",
            f"{100 * point.outcome['fraction_of_original'][front.resource]:.2f} %",
            f"{point.outcome['compressed']['kl']:.4f}",
            *([] if quality is None else [quality.text(quality.values[at])]),
            prices_text(prices),
            escape(str(point.run_folder)),
        )
    console.print(table)
    _print_report(console, front.folder)


def print_smallest(console: Console, found: Smallest) -> None:
    """Print the budgets that were tried, and the smallest network that passed.

    Args:
        console: where to print.
        found: result of the search.
    """
    is_share = found.measure == "max_drop"
    of = " of accuracy" if is_share else " of divergence"
    tolerated = loss_text(found.tolerated, is_share=is_share) + of
    table = Table(title=f"Least {NAMES[found.resource]} at a loss of at most {tolerated}", title_justify="left")
    for column in ("budget", "used", "of the original", "loses at most", "passes", "run folder"):
        table.add_column(column, justify="left" if column in ("budget", "run folder") else "right")
    for each in found.tries:
        table.add_row(
            each.point.budget,
            f"{each.point.amount[found.resource]:,}",
            f"{100 * each.point.outcome['fraction_of_original'][found.resource]:.2f} %",
            loss_text(each.bound, is_share=is_share),
            "yes" if each.passed else "no",
            escape(str(each.point.run_folder)),
        )
    console.print(table)
    console.print(
        f"the smallest that passes: {found.chosen.point.run_folder} (95 % confidence over all tries, "
        f"{found.samples:,} held-out samples)",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
    _print_report(console, found.chosen.point.run_folder.parent)


def _print_report(console: Console, folder: Path) -> None:
    """Print where the page of all points lies."""
    line = f"report: {folder / REPORT} (open it in a browser)"
    console.print(line, soft_wrap=True, markup=False, highlight=False)
