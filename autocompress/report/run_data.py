"""A run as data for programs: what its report says, without the page."""

from __future__ import annotations

from typing import Any

from autocompress.report.costliest import costliest
from autocompress.report.run_numbers import LayerRow, layer_rows, search_story
from autocompress.report.run_record import RunRecord


def run_data(record: RunRecord) -> dict[str, Any]:
    """What the report of a run says, as plain data ready for JSON.

    Args:
        record: the run.
    """
    rows, story, outcome = layer_rows(record), search_story(record), record.outcome
    return {
        "run": str(record.folder),
        "network": record.config.model,
        "budget": record.config.budget,
        "command": record.command,
        "task": outcome.get("task"),
        "original": outcome["original"],
        "compressed": outcome["compressed"],
        "budget_met": (outcome.get("budget") or {}).get("met"),
        "verified": outcome.get("verified"),
        "checks": outcome.get("checks", []),
        "checked_on": outcome.get("checked_on"),
        "runtime": outcome.get("runtime"),
        "file_bytes": outcome.get("file_bytes", {}),
        "costliest": costliest(rows, outcome),
        "expected_loss": record.explained.get("expected_loss", {}),
        "layers": [_layer_data(row) for row in rows],
        "search": {
            "evaluations": outcome.get("evaluations"),
            "stopped_because": outcome.get("stopped_because"),
            "best": [{"evaluation": index, "kl": kl} for index, kl in story.best],
            "simple_plans": [{"name": name, "kl": kl} for name, kl in story.simple],
            "seconds": story.seconds,
        },
        "versions": outcome.get("versions", {}),
        "machine": outcome.get("machine", {}),
    }


def _layer_data(row: LayerRow) -> dict[str, Any]:
    facts = row.facts
    return {
        "name": facts["name"],
        "kind": facts["kind"],
        "parameters": facts["parameters"],
        "label": facts["label"],
        "removed": row.removed,
        "removed_by": row.removed_by,
        "bytes": row.bytes_now,
        "share_of_file": row.bytes_of_file,
        "expected_loss": facts["expected_loss"],
        "measured_loss": row.measured,
        "by_weight_bits": facts["by_weight_bits"],
        "by_sparsity": facts.get("by_sparsity", []),
        "bound_by": row.note,
    }
