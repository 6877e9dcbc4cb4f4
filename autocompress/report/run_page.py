"""The page of a run, and of several side by side: one HTML file that holds all it needs and fetches nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.budget import format_bytes
from autocompress.errors import InputError
from autocompress.files import write_atomically
from autocompress.report.costliest import costliest
from autocompress.report.figures import layer_bars, search_figure
from autocompress.report.run_numbers import label_text, layer_rows, nats, outcome_rows, percent, search_story
from autocompress.report.run_record import RunRecord, is_known, machine_options, read_run
from autocompress.report.tables import shapes_text
from autocompress.report.task_words import divergence_title, likeness
from autocompress.run.names import REPORT

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"


def write_report(run: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a finished run, in place of one that is there.

    Args:
        run: folder of the run.
        out: the file. Default: report.html in the folder.

    Raises:
        InputError: the folder holds no finished run, or a file in it is damaged.
        WriteError: the file can't be written.
    """
    record = read_run(run)
    path = record.folder / REPORT if out is None else Path(out)
    write_atomically(path, run_page(record))
    return path


def write_comparison(runs: Sequence[str | Path], out: str | Path) -> Path:
    """Write a page of several runs side by side.

    Args:
        runs: folders of the runs, at least two.
        out: the file.

    Raises:
        InputError: a folder holds no finished run, or a file in it is damaged.
        WriteError: the file can't be written.
    """
    records = [read_run(run) for run in runs]
    write_atomically(path := Path(out), comparison_page(records))
    return path


def run_page(record: RunRecord) -> str:
    """The page of one run."""
    return render("run.html", run=run_view(record), title=f"{record.config.model}, {record.config.budget or 'a plan'}")


def comparison_page(records: Sequence[RunRecord]) -> str:
    """The page of several runs side by side. Raises InputError for fewer than two."""
    if len(records) < 2:
        raise InputError(f"`run` must be at least two folders for a comparison, got {len(records)}.")
    views = [run_view(record) for record in records]
    return render("comparison.html", runs=views, title=f"{len(views)} runs", **side_by_side(views))


def live_page() -> str:
    """The page of a job that is running; its events say what it shows."""
    return _environment().get_template("live.html").render(style=(TEMPLATES / "page.css").read_text())


def run_view(record: RunRecord) -> dict[str, Any]:
    """All that a template shows of a run."""
    rows, story = layer_rows(record), search_story(record)
    outcome = record.outcome
    return {
        "name": record.name,
        "network": record.config.model,
        "budget": record.config.budget,
        "headline": headline(outcome),
        "met": (outcome.get("budget") or {}).get("met"),
        "task": outcome.get("task"),
        "divergence": divergence_title(outcome.get("task")),
        "split": outcome.get("split", "test"),
        "samples": outcome.get("samples"),
        "rows": outcome_rows(outcome),
        "layers": rows,
        "bars": layer_bars(rows),
        "bits": sorted({row.facts["label"]["weight_bits"] for row in rows}),
        "rest_bytes": _rest(outcome, rows),
        "labels": {name: label_text(vars(label)) for name, label in record.plan.labels.items()},
        "costliest": costliest(rows, outcome),
        "expected": record.explained.get("expected_loss", {}),
        "measured_base": record.explained.get("measured_base"),
        "figure": search_figure(story),
        "story": story,
        "stopped_because": outcome.get("stopped_because", ""),
        "evaluations": outcome.get("evaluations"),
        "finetuning": outcome.get("finetuning"),
        "checks": outcome.get("checks", []),
        "verified": outcome.get("verified"),
        "checked_on": shapes_text(outcome.get("checked_on") or {}),
        "runtime": outcome.get("runtime"),
        "files": outcome.get("file_bytes", {}),
        "command": record.command,
        "versions": outcome.get("versions", {}),
        "machine": _machine(outcome.get("machine", {})),
        "options": {name: str(value) for name, value in machine_options(record.config).items()},
        "outcome": outcome,
    }


def headline(outcome: Mapping[str, Any]) -> str:
    """What came out, in one sentence."""
    before, after = outcome["original"]["resources"].get("size"), outcome["compressed"]["resources"].get("size")
    size = ""
    if before and after:
        size = f"From {before:,} to {after:,} bytes, {percent(after / before)} of the original"
    samples = outcome.get("samples")
    where = f" of {samples:,} {outcome.get('split', 'test')} samples" if samples else " of the samples"
    return "; ".join(filter(None, (size, _likeness(outcome, where)))) + "."


def _likeness(outcome: Mapping[str, Any], where: str) -> str:
    """How like the original's outputs are, in words: equal answers, else the task's first metric, else the outputs."""
    agreement = outcome["compressed"].get("agreement")
    if is_known(agreement):
        return f"the same top-1 answer on {percent(agreement)}{where}"
    if outcome.get("metrics"):
        row = outcome_rows(outcome)[0]
        return f"{row.title} {row.texts[1]}, {row.texts[0]} before"
    return likeness(outcome.get("task"), outcome["compressed"]["kl"])


def bound(text: str) -> str:
    """A text whose numbers keep to their units, and "top-1" to its number, at the end of a line."""
    return text.replace(" %", "\u00a0%").replace("top-1", "top\u20111")


def breakable(name: str) -> Markup:
    """The name of a layer, which may be broken after its dots and underscores.

    >>> print(breakable("block.conv_1"))
    block.<wbr>conv_<wbr>1
    """
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([._])(?=.)", r"\1<wbr>", str(escape(name))))


def _rest(outcome: Mapping[str, Any], rows: Sequence[Any]) -> int | None:
    """Bytes of the file that belong to no layer: graph, names, headers, norms."""
    size = outcome["compressed"]["resources"].get("size")
    return None if not rows or size is None else max(0, size - sum(row.bytes_now for row in rows))


def _machine(found: Mapping[str, Any]) -> dict[str, str]:
    """The machine in words."""
    said = {name.replace("_", " "): str(value) for name, value in found.items() if name != "memory_bytes"}
    if found.get("memory_bytes"):
        said["memory"] = format_bytes(int(found["memory_bytes"]))
    return said


def side_by_side(views: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows of the comparison's tables: measures by title, and layers by name."""
    titles = dict.fromkeys(row.title for view in views for row in view["rows"])
    by_title = [{row.title: row for row in view["rows"]} for view in views]
    names = dict.fromkeys(name for view in views for name in view["labels"])
    return {
        "measures": [(title, [rows.get(title) for rows in by_title]) for title in titles],
        "layer_names": list(names),
    }


def render(template: str, **values: Any) -> str:
    """A page from a template and what it shows."""
    return (
        _environment()
        .get_template(template)
        .render(style=(TEMPLATES / "page.css").read_text(), script=(TEMPLATES / "page.js").read_text(), **values)
    )


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {
        "percent": percent,
        "nats": nats,
        "bind": bound,
        "breakable": breakable,
        "extract_key": lambda mapping, key: mapping.get(key, ""),
        "capitalize_first": lambda text: text[:1].upper() + text[1:],
    }
    return made
