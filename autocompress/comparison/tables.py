"""A comparison as tables: for Parquet, CSV and LaTeX files, and for the terminal."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from autocompress.budget import COUNTED
from autocompress.comparison.results import CellResult
from autocompress.comparison.suite import Suite
from autocompress.comparison.summary import Spread, Summary
from autocompress.files import or_none

if TYPE_CHECKING:
    import pyarrow

_TEXT = ("method", "searcher", "budget", "status", "message", "stopped_because", "trace", "plan")
_WHOLE = ("seed", "evaluations", "measured", "found_at", *COUNTED, *(f"{name}_limit" for name in COUNTED))
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def row(result: CellResult) -> dict[str, Any]:
    """The result of a cell as one flat row, with None for what is not known.

    `trace` is JSON text: [[evaluations, KL], …].
    """
    flat = {name: or_none(value) for name, value in vars(result).items()}
    limits, resources, trace = flat.pop("limits"), flat.pop("resources"), flat.pop("trace")
    del flat["original"]
    flat |= {f"{name}_limit": limits.get(name) for name in COUNTED}
    flat |= {name: resources.get(name) for name in COUNTED}
    return {**flat, "deterministic": result.deterministic, "trace": json.dumps(trace)}


def cells_table(results: Sequence[CellResult]) -> pyarrow.Table:
    """The results of at least one cell as a typed table with one row a cell."""
    import pyarrow

    rows = [row(result) for result in results]
    kinds = {name: pyarrow.string() for name in _TEXT} | {name: pyarrow.int64() for name in _WHOLE}
    kinds["deterministic"] = pyarrow.bool_()
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.float64())) for name in rows[0]])
    return pyarrow.Table.from_pylist(rows, schema=schema)


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows (at least one, all with the same keys) as CSV text; None becomes an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def latex(suite: Suite, summaries: Sequence[Summary]) -> str:
    """A LaTeX table of methods by budgets, for the package booktabs; the best mean of each column is bold.

    Args:
        suite: suite of the comparison; gives the order of methods and budgets.
        summaries: one summary for each method and budget of the suite.
    """
    measures = ["kl", _accuracy_measure(summaries)] if _accuracy_measure(summaries) else ["kl"]
    columns = [(budget, measure) for budget in suite.budgets for measure in measures]
    by_name = {(summary.method, summary.budget): summary for summary in summaries}
    best = {column: best_mean(summaries, *column) for column in columns}
    heads = " & ".join(rf"\multicolumn{{{len(measures)}}}{{c}}{{{escaped(budget)}}}" for budget in suite.budgets)
    ends = [2 + len(measures) * index for index in range(len(suite.budgets))]
    rules = " ".join(rf"\cmidrule(lr){{{start}-{start + len(measures) - 1}}}" for start in ends)
    names = {"kl": "KL, nats", "accuracy": r"search accuracy, \%", "test_accuracy": r"test accuracy, \%"}
    lines = [
        "% Means over seeds [95 % bootstrap interval]. A number without an interval is from a single seed.",
        f"% Methods without random choices, which run with one seed: {_deterministic(summaries)}.",
        "% KL: divergence of the best plan from the original network, on the search split.",
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        rf" & {heads} \\",
        rules,
        " & ".join(["Method", *(names[measure] for _, measure in columns)]) + r" \\",
        r"\midrule",
    ]
    for method in suite.methods:
        cells = [
            _latex_cell(by_name[method.name, budget].spreads[measure], measure, best[budget, measure])
            for budget, measure in columns
        ]
        lines.append(" & ".join([escaped(method.name), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def escaped(text: str) -> str:
    """Text in which LaTeX's special characters are escaped.

    >>> escaped("size=8%, a_b")
    'size=8\\\\%, a\\\\_b'
    """
    return "".join(_LATEX.get(letter, letter) for letter in text)


def best_mean(summaries: Sequence[Summary], budget: str, measure: str) -> float:
    """The lowest mean KL or the highest mean accuracy under a budget; NaN where there is none."""
    means = [each.spreads[measure].mean for each in summaries if each.budget == budget]
    known = [mean for mean in means if not math.isnan(mean)]
    if not known:
        return math.nan
    return min(known) if measure.endswith("kl") else max(known)


def terminal_tables(summaries: Sequence[Summary]) -> list[Table]:
    """One table for each budget, the method with the lowest mean KL first; the best means are bold.

    The comparison's files hold more measures, with their intervals.
    """
    accuracy = _accuracy_measure(summaries)
    by_budget: dict[str, list[Summary]] = {}
    for summary in summaries:
        by_budget.setdefault(summary.budget, []).append(summary)
    return [_budget_table(budget, mine, accuracy) for budget, mine in by_budget.items()]


def _budget_table(budget: str, summaries: Sequence[Summary], accuracy: str) -> Table:
    """The table of one budget; `accuracy` is the measure of its accuracy column, or empty for none."""
    table = Table(title=f"budget {budget}: means over seeds [95 % bootstrap interval]", title_justify="left")
    if any(each.deterministic for each in summaries):
        table.caption, table.caption_justify = "* makes no random choice, so it runs with one seed", "left"
    table.add_column("method", min_width=8)
    table.add_column("seeds", justify="right")
    table.add_column("KL, nats", justify="right", no_wrap=True)
    if accuracy:
        table.add_column(_ACCURACIES[accuracy], justify="right")
    table.add_column("plans\ntried", justify="right", no_wrap=True)
    best = {name: best_mean(summaries, budget, name) for name in ("kl", accuracy) if name}
    for summary in sorted(summaries, key=lambda each: (each.n == 0, each.spreads["kl"].mean)):
        cells = [_terminal_cell(summary, name, mean) for name, mean in best.items()]
        cells[0] += escape(_interval(summary.spreads["kl"], "kl"))
        plans = summary.spreads["evaluations"].mean
        table.add_row(escape(summary.method), _seeds(summary), *cells, "-" if math.isnan(plans) else f"{plans:.0f}")
    return table


_ACCURACIES = {"accuracy": "search accuracy, %", "test_accuracy": "test accuracy, %"}


def _accuracy_measure(summaries: Sequence[Summary]) -> str:
    """The accuracy to report: on the test split if known, else on the search split; empty without labels."""
    return next((name for name in ("test_accuracy", "accuracy") if any(s.spreads[name].n for s in summaries)), "")


def _deterministic(summaries: Sequence[Summary]) -> str:
    """Names of the methods without random choices, or `none`."""
    return ", ".join(dict.fromkeys(each.method for each in summaries if each.deterministic)) or "none"


def _latex_cell(spread: Spread, measure: str, best: float) -> str:
    if math.isnan(spread.mean):
        return "--"
    mean = _value(spread.mean, measure)
    shown = rf"\textbf{{{mean}}}" if mean == _value(best, measure) else mean
    return shown + _interval(spread, measure)


def _terminal_cell(summary: Summary, measure: str, best: float) -> str:
    spread = summary.spreads[measure]
    if math.isnan(spread.mean):
        return "-"
    mean = _value(spread.mean, measure)
    return f"[bold]{mean}[/bold]" if mean == _value(best, measure) else mean


def _interval(spread: Spread, measure: str) -> str:
    """The interval with a space before it; empty without an interval."""
    if math.isnan(spread.low):
        return ""
    return f" [{_value(spread.low, measure)}, {_value(spread.high, measure)}]"


def _value(value: float, measure: str) -> str:
    """A number with the digits and unit of its measure: an accuracy in percent, a KL in nats."""
    if measure.endswith("accuracy"):
        return f"{100 * value:.2f}"
    return f"{value:.4f}" if abs(value) >= 0.01 else f"{value:#.3g}"


def _seeds(summary: Summary) -> str:
    """The number of seeds that finished, with a note on failed or missing ones."""
    if summary.failed:
        return f"{summary.n} ({summary.failed} failed)"
    return "1*" if summary.deterministic else str(summary.n)
