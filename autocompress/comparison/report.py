"""The report of a comparison: every table and plot, written into the comparison's folder."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autocompress.comparison.folder import PARETO, PROGRESS, RESULTS, RESULTS_CSV, SUMMARY, SUMMARY_CSV, TABLE
from autocompress.comparison.results import CellResult
from autocompress.comparison.suite import Suite
from autocompress.comparison.summary import Summary
from autocompress.files import write_atomically


def write_report(folder: Path, suite: Suite, results: Sequence[CellResult], summaries: Sequence[Summary]) -> None:
    """Write the results, their summary, the LaTeX table and the plots, each file whole or not at all.

    Args:
        folder: folder of the comparison.
        suite: suite of the comparison.
        results: results of all cells, at least one, in the suite's order.
        summaries: summaries of these results.
    """
    from autocompress.comparison.tables import cells_table, csv_text, latex, row

    rows = [summary.to_dict() for summary in summaries]
    files = {
        RESULTS: _parquet(cells_table(results)),
        RESULTS_CSV: csv_text([row(result) for result in results]),
        SUMMARY: json.dumps(rows, indent=1, allow_nan=False) + "\n",
        SUMMARY_CSV: csv_text(rows),
        TABLE: latex(suite, summaries),
        **_plots(suite, results, summaries),
    }
    for name, content in files.items():
        write_atomically(folder / name, content)


def _plots(suite: Suite, results: Sequence[CellResult], summaries: Sequence[Summary]) -> dict[str, str | bytes]:
    """Content of the plots' files, by file name."""
    from autocompress.comparison.interactive import pareto_html, progress_html
    from autocompress.comparison.plots import pareto_png, progress_png
    from autocompress.comparison.series import curves, pareto, styles

    style_of = styles([method.name for method in suite.methods])
    front = pareto(results, summaries)
    panels = {budget: curves(results, budget) for budget in suite.budgets}
    return {
        f"{PARETO}.png": pareto_png(front, style_of),
        f"{PARETO}.html": pareto_html(front, style_of),
        f"{PROGRESS}.png": progress_png(panels, style_of),
        f"{PROGRESS}.html": progress_html(panels, style_of),
    }


def _parquet(table: Any) -> bytes:
    """A pyarrow table as the content of a Parquet file."""
    from pyarrow import parquet

    content = io.BytesIO()
    parquet.write_table(table, content)
    return content.getvalue()
