"""The card of a compressed network: Markdown with its metrics in front, in the form that the Hugging Face Hub reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from autocompress.budget import shown_name
from autocompress.files import write_atomically
from autocompress.report.run_numbers import outcome_rows
from autocompress.report.run_record import Row, RunRecord, is_known, read_run
from autocompress.run.names import CARD, MODEL, MODEL_ONNX, REPORT

_FORMATS = {MODEL_ONNX: "onnx", MODEL: "safetensors"}


def write_card(run: str | Path) -> Path:
    """Write the card of a finished run into its folder, as README.md.

    Args:
        run: folder of the run.

    Raises:
        InputError: the folder holds no finished run, or a file in it is damaged.
        WriteError: the file can't be written.
    """
    record = read_run(run)
    path = record.folder / CARD
    write_atomically(path, model_card(record))
    return path


def model_card(record: RunRecord) -> str:
    """The card of a run.

    Args:
        record: the run.
    """
    front = yaml.safe_dump(_front(record), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n{_text(record)}"


def _front(record: RunRecord) -> dict[str, Any]:
    """What the Hub reads: tags, and metrics on the data."""
    files = record.outcome.get("file_bytes", {})
    formats = [tag for name, tag in _FORMATS.items() if name in files]
    dataset = {"name": record.config.data or record.config.model, "type": "other", "split": record.outcome["split"]}
    results = {"task": {"type": _task(record)}, "dataset": dataset, "metrics": _metrics(record)}
    return {
        "tags": ["autocompress", "model-compression", "quantization", "pruning", *formats],
        "model-index": [{"name": record.name, "results": [results]}],
    }


def _task(record: RunRecord) -> str:
    return str(record.outcome.get("task") or "other")


def _metrics(record: RunRecord) -> list[dict[str, Any]]:
    """Metrics of the compressed network by name."""
    compressed = record.outcome["compressed"]
    found = {"accuracy": compressed.get("accuracy"), "kl_divergence": compressed.get("kl")}
    found |= {name: both["compressed"] for name, both in record.outcome.get("metrics", {}).items()}
    found["size_bytes"] = compressed["resources"].get("size")
    return [{"type": name, "value": value} for name, value in found.items() if is_known(value)]


def _text(record: RunRecord) -> str:
    passed = sum(bool(check["passed"]) for check in record.outcome.get("checks", []))
    total = len(record.outcome.get("checks", []))
    samples = record.outcome.get("samples")
    on = f"{samples:,} samples of the {record.outcome['split']} split" if samples else "the split below"
    lines = [
        f"# {_plain(record.config.model)}, compressed",
        f"Compressed by autocompress within {_plain(_budget(record))}. "
        f"Measured on {on}; {passed} of {total} checks of the files passed. Shares have 95 % intervals.",
        _table(outcome_rows(record.outcome)),
        _timed_in(record),
        "## Files",
        "\n".join(f"- `{name}`: {size:,} bytes" for name, size in record.outcome.get("file_bytes", {}).items()),
        "## Use",
        _use(record),
        "## How it was made",
        f"```sh\n{record.command.replace('```', '')}\n```",
        f"Versions: {', '.join(f'{name} {value}' for name, value in record.outcome.get('versions', {}).items())}. "
        f"{REPORT} shows every layer, the search and the checks.",
        "The network has the licence, the uses and the limits of the original. What was measured holds for the data "
        "above; rare inputs may suffer more from compression than the averages show.",
    ]
    return "\n\n".join(filter(None, lines)) + "\n"


def _timed_in(record: RunRecord) -> str:
    """Where latencies were measured; empty where none were."""
    runtime, machine = record.outcome.get("runtime"), record.outcome.get("machine", {})
    if not runtime:
        return ""
    return f"Latencies are medians in {runtime['name']}, on {machine.get('processor', 'one machine')}."


def _budget(record: RunRecord) -> str:
    limits = (record.outcome.get("budget") or {}).get("limits", {})
    return ", ".join(f"{shown_name(name)} at most {limit:,}" for name, limit in limits.items()) or "no budget"


def _table(rows: list[Row]) -> str:
    head = "| measure | original | compressed |\n| --- | ---: | ---: |\n"
    return head + "\n".join(f"| {row.title} | {_value(row, 0)} | {_value(row, 1)} |" for row in rows)


def _value(row: Row, place: int) -> str:
    return row.texts[place] + (f" ({row.intervals[place]})" if row.intervals[place] else "")


def _use(record: RunRecord) -> str:
    packed = f'import autocompress\n\nmodule = autocompress.load("{MODEL}")  # a torch.nn.Module, without pickle'
    onnx = f'import onnxruntime\n\nsession = onnxruntime.InferenceSession("{MODEL_ONNX}")\n\n'
    return f"```python\n{onnx if MODEL_ONNX in record.outcome.get('file_bytes', {}) else ''}{packed}\n```"


def _plain(text: str) -> str:
    """A text on one line without what Markdown reads as its own."""
    return "".join(f"\\{each}" if each in "\\`*_[]<>#|" else each for each in " ".join(text.split()))
