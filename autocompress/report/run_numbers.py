"""The numbers of a run as a report shows them: before and after, layer by layer, and the search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from autocompress.report.run_record import Row, RunRecord, is_known
from autocompress.report.tables import NAMES, speed
from autocompress.report.task_words import divergence_title, metric_text, metric_title
from autocompress.run.journal import Entry
from autocompress.tasks.metrics import share_interval


def outcome_rows(outcome: Mapping[str, Any]) -> list[Row]:
    """What came out: one row a measure, quality first, then costs, then times."""
    samples = outcome.get("samples") or 0
    original, compressed = outcome["original"], outcome["compressed"]
    rows = []
    if is_known(compressed.get("accuracy")):
        rows.append(_share("top-1 accuracy", original.get("accuracy"), compressed["accuracy"], samples))
    for name, both in (outcome.get("metrics") or {}).items():
        values = (both["original"], both["compressed"])
        rows.append(_row(metric_title(name), "quality", values, partial(metric_text, name)))
    losses = (original["kl"], compressed["kl"])
    rows.append(_row(divergence_title(outcome.get("task")), "quality", losses, "{:.4f}".format))
    if is_known(compressed.get("agreement")):
        rows.append(_share("same top-1 answer as the original", None, compressed["agreement"], samples))
    rows += [_cost(name, original["resources"], amount) for name, amount in compressed["resources"].items()]
    energies = (outcome.get("energy") or {}).get("measured_by_batch") or {}
    return rows + _times(outcome.get("runtime") or {}) + [_energy(batch, each) for batch, each in energies.items()]


def _energy(batch: str, measured: Mapping[str, Any]) -> Row:
    """The energy that a counter showed."""
    both = (measured["original"], measured["compressed"])
    change = percent(both[1] / both[0]) + " left" if both[0] else ""
    title = f"energy at batch {batch}, measured ({measured['source']})"
    return _row(title, "time", both, lambda joules: f"{1e3 * joules:.3g} mJ", change)


def _share(title: str, before: float | None, after: float, samples: int) -> Row:
    values = (before if is_known(before) else None, after)
    texts = tuple(percent(value) for value in values)
    intervals = tuple(_interval(value, samples) for value in values)
    change = "" if values[0] is None else f"{100 * (after - values[0]):+.2f} points".replace("-", "−")
    return Row(title, "quality", values, texts, intervals, change)  # type: ignore[arg-type]


def _interval(share: float | None, samples: int) -> str:
    if share is None or not samples:
        return ""
    low, high = share_interval(share, samples)
    return f"{100 * low:.2f} to {100 * high:.2f} %"


def _row(title: str, group: str, values: tuple[Any, Any], text: Any, change: str = "") -> Row:
    known = tuple(value if is_known(value) else None for value in values)
    return Row(title, group, known, tuple("–" if v is None else text(v) for v in known), change=change)  # type: ignore[arg-type]


def _cost(name: str, original: Mapping[str, Any], amount: float) -> Row:
    before = original.get(name)
    change = percent(amount / before) + " left" if is_known(before) and before else ""
    return _row(NAMES.get(name, name), "cost", (before, amount), "{:,}".format, change)


def _times(runtime: Mapping[str, Any]) -> list[Row]:
    """Latencies by batch size, with the intervals of their medians where these were measured."""
    rows = []
    for batch, seconds in (runtime.get("median_seconds_by_batch") or {}).items():
        both = (seconds["original"], seconds["compressed"])
        timing = (runtime.get("timings_by_batch") or {}).get(batch, {})
        row = _row(f"latency at batch {batch}", "time", both, _milliseconds, speed(*both))
        before, after = (timing.get(name, {}).get("median_seconds") for name in ("original", "compressed"))
        rows.append(replace(row, intervals=(_between(before), _between(after))))
    return rows


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def _between(interval: Mapping[str, Any] | None) -> str:
    """An interval of seconds as people read it; empty where there is none."""
    if not interval or not (is_known(interval.get("low")) and is_known(interval.get("high"))):
        return ""
    return f"{1e3 * interval['low']:.3g} to {_milliseconds(interval['high'])}"


def percent(value: float | None) -> str:
    """A share in percent, or a dash.

    >>> percent(0.98765), percent(None)
    ('98.77 %', '–')
    """
    return "–" if value is None else f"{100 * value:.2f} %"


def nats(value: float) -> str:
    """A loss in nats with two digits; below a millionth with an exponent.

    >>> nats(0.000370), nats(3.7e-5), nats(4.13e-7), nats(0.0), nats(1.234)
    ('0.00037', '0.000037', '4.1e-07', '0', '1.2')
    """
    if 0 < value < 1e-6:
        return f"{value:.2g}"
    return np.format_float_positional(float(f"{value:.2g}"), trim="-")


@dataclass(frozen=True)
class LayerRow:
    """One layer of a report.

    Attributes:
        facts: its mapping in layers.json.
        bytes_now: bytes of the layer in the compressed file.
        bytes_of_file: share of the compressed file.
        removed: share of its weights that is gone, in [0, 1].
        removed_by: why they are gone, in a few words: by its own label, since layers before it give fewer channels, or
            both; empty where none is gone.
        removed_bytes: bytes that these would take at the layer's bits.
        loss: expected loss in nats, of the pruning of the group it owns and of its rounding.
        measured: measured loss of its label alone in nats; None where it was not measured.
        label: the label in words.
        short: the label in a few characters.
        others: labels of other plans in a few characters, by the plan's name; each with whether it differs.
        kin: names of the layers that share a channel group or a tie with it, itself included.
        note: what binds the layer, in words.
    """

    facts: Mapping[str, Any]
    bytes_now: int
    bytes_of_file: float
    removed: float
    removed_by: str
    removed_bytes: float
    loss: float
    measured: float | None
    label: str
    short: str
    others: Mapping[str, tuple[str, bool]]
    kin: Sequence[str]
    note: str


def layer_rows(record: RunRecord) -> list[LayerRow]:
    """One row a layer, in network order; empty for runs without layers.json."""
    file_bytes = record.outcome["compressed"]["resources"].get("size") or 1
    groups = record.explained.get("groups", [])
    return [_layer_row(layer, file_bytes, groups, record.layers) for layer in record.layers]


def _layer_row(
    layer: Mapping[str, Any], file_bytes: int, groups: Sequence[Mapping[str, Any]], layers: Sequence[Mapping[str, Any]]
) -> LayerRow:
    now, total, left = layer["bytes"]["compressed"], layer["parameters"], layer["weights_left"]
    removed = 1 - left / total if total else 0.0
    lost = layer["expected_loss"]
    return LayerRow(
        facts=layer,
        bytes_now=now,
        bytes_of_file=now / file_bytes,
        removed=removed,
        removed_by=_removed_by(layer, groups) if removed else "",
        removed_bytes=(total - left) * layer["label"]["weight_bits"] / 8,
        loss=lost["pruning"] + lost["rounding"],
        measured=layer.get("measured_loss"),
        label=label_text(layer["label"]),
        short=short_label(layer["label"]),
        others={
            name: (short_label(label), label != layer["label"])
            for name, label in layer["other_plans"].items()
            if label is not None
        },
        kin=_kin(layer, groups, layers),
        note=_note(layer, groups, layers),
    )


def _removed_by(layer: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> str:
    """Why weights of a layer are gone: channels of its own, which its group may owe to another layer, or inputs."""

    def is_thinner(group: int) -> bool:
        return bool(groups[group]["kept"] < groups[group]["width"])

    own = layer["writes_group"]
    parts = ["channels"] if own is not None and is_thinner(own) else []
    if layer["label"]["sparsity"] and own is None:
        parts.append("weights")
    is_depthwise = layer["weight_shape"][1:2] == [1]  # a row for each channel, whose input is that channel
    if not is_depthwise and any(map(is_thinner, layer.get("reads_groups", []))):
        parts.append("inputs")
    return " and ".join(parts) or ("low rank" if layer["label"].get("rank") else "")


def label_text(label: Mapping[str, Any]) -> str:
    """A label in a few words.

    >>> label_text({"sparsity": 0.125, "weight_bits": 4, "activation_bits": 8})
    '4 bits, 12.5 % pruned'
    """
    if label["sparsity"] == 1:
        return "removed"
    bits = f"{label['weight_bits']} bits" if label["weight_bits"] < 32 else "32-bit floats"
    pruned = f", {100 * label['sparsity']:.3g} % pruned" if label["sparsity"] else ""
    return bits + pruned + (f", rank {label['rank']}" if label.get("rank") else "")


def short_label(label: Mapping[str, Any]) -> str:
    """A label in a few characters, which may break after the bits alone.

    >>> short_label({"sparsity": 0.125, "weight_bits": 4, "activation_bits": 8})
    '4\xa0b, −12.5\xa0%'
    """
    if label["sparsity"] == 1:
        return "removed"
    pruned = f", −{100 * label['sparsity']:.3g}\u00a0%" if label["sparsity"] else ""
    return f"{label['weight_bits']}\u00a0b" + pruned + (f", rank {label['rank']}" if label.get("rank") else "")


def _tie(layer: Mapping[str, Any], layers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the layers that have the same bits as this one by force; only itself where it is free."""
    leader = layer["tied_to"] or layer["name"]
    return [each["name"] for each in layers if leader in (each["name"], each["tied_to"])]


def _kin(
    layer: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], layers: Sequence[Mapping[str, Any]]
) -> list[str]:
    own = set(_tie(layer, layers))
    if layer["writes_group"] is not None:
        own |= set(groups[layer["writes_group"]]["producers"])
    return [each["name"] for each in layers if each["name"] in own]


def _note(layer: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], layers: Sequence[Mapping[str, Any]]) -> str:
    notes = []
    for group in (groups[index] for index in layer.get("reads_groups", [])):
        if group["kept"] < group["width"]:
            channels = f"{group['kept']} of {group['width']} channels of group {group['index']}"
            notes.append(f"reads {channels}, pruned at {group['owner']}")
    if layer["writes_group"] is not None:
        group = groups[layer["writes_group"]]
        with_others = [name for name in group["producers"] if name != layer["name"]]
        together = f", together with {', '.join(with_others)}" if with_others else ""
        readers = f"; read by {', '.join(group['consumers'])}" if group["consumers"] else ""
        notes.append(f"group {group['index']}: {group['kept']} of {group['width']} channels kept{together}{readers}")
    elif layer["fixed_reason"]:
        notes.append(f"keeps its width: {layer['fixed_reason']}")
    tie = [name for name in _tie(layer, layers) if name != layer["name"]]
    if tie:
        notes.append(f"same bits as {', '.join(tie)}, since runtimes run them as one layer")
    return "; ".join(notes)


@dataclass(frozen=True)
class SearchStory:
    """How a search went.

    Attributes:
        points: (evaluation, KL in nats, whether it meets the budget) of every evaluated plan.
        best: (evaluation, KL) of the plans that led, one after the other.
        simple: (name, KL) of the simple plans that were evaluated.
        seconds: seconds that the evaluations took in all.
    """

    points: Sequence[tuple[int, float, bool]] = ()
    best: Sequence[tuple[int, float]] = ()
    simple: Sequence[tuple[str, float]] = field(default=())
    seconds: float = 0.0


def search_story(record: RunRecord) -> SearchStory:
    """How the search of a run went; empty where nothing was evaluated."""
    limits = (record.outcome.get("budget") or {}).get("limits", {})
    known: dict[tuple[tuple[int, ...], ...], Entry] = {entry.labels: entry for entry in record.entries}
    simple = []
    for plan in record.explained.get("simple_plans", []):
        entry = known.get(tuple(map(tuple, plan["labels"])))
        if entry is not None:
            simple.append((plan["name"], entry.kl))
    return SearchStory(
        points=[(entry.index + 1, entry.kl, _is_within(entry.resources, limits)) for entry in record.entries],
        best=[(entry.index + 1, entry.kl) for entry in record.entries if entry.best],
        simple=sorted(simple, key=lambda each: each[1]),
        seconds=sum(entry.seconds for entry in record.entries),
    )


def _is_within(resources: Mapping[str, int], limits: Mapping[str, int]) -> bool:
    return all(resources.get(name, 0) <= limit for name, limit in limits.items())
