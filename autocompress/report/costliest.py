"""Which layer of a run is expected to cost most, why, and what milder labels of it would cost instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autocompress.budget import COUNTED, RESOURCES
from autocompress.report.run_numbers import LayerRow, nats

_TOLD = 0.1  # least share of a layer's loss that it is told how to avoid


def costliest(rows: Sequence[LayerRow], outcome: Mapping[str, Any]) -> str:
    """Which layer is expected to cost most and why, in a few sentences; empty where nothing is known.

    Args:
        rows: one row a layer.
        outcome: content of the run's outcome.json, whose budget says how much is left.
    """
    total = sum(row.loss for row in rows)
    if not rows or total <= 0:
        return ""
    worst = max(rows, key=lambda row: row.loss)
    lost, label = worst.facts["expected_loss"], worst.facts["label"]
    by_pruning = lost["pruning"] > lost["rounding"]
    cause = (
        f"mostly from pruning {100 * label['sparsity']:.3g} % of {_what(worst)}"
        if by_pruning
        else f"mostly from rounding {_rounded(label)}"
    )
    amount = f"{nats(worst.loss)} of {nats(total)} nats ({100 * worst.loss / total:.0f} %)"
    sentences = [f"{worst.facts['name']} is expected to cost most: {amount}, {cause}."]
    for part in ("pruning", "rounding") if by_pruning else ("rounding", "pruning"):
        if lost[part] >= _TOLD * worst.loss:
            sentences.append((_pruned_less if part == "pruning" else _more_bits)(worst, outcome))
    return " ".join(filter(None, sentences))


def _what(row: LayerRow) -> str:
    """What of a layer is pruned."""
    return "its channels" if row.facts["writes_group"] is not None else "its weights"


def _rounded(label: Mapping[str, Any]) -> str:
    """What a label rounds, and to how many bits; both may be what costs.

    >>> _rounded({"weight_bits": 4, "activation_bits": 8}), _rounded({"weight_bits": 4, "activation_bits": 32})
    ('its weights to 4 and its inputs to 8 bits', 'its weights to 4 bits')
    """
    weights, inputs = label["weight_bits"], label["activation_bits"]
    if weights >= 32:
        return f"its inputs to {inputs} bits"
    return f"its weights to {weights}{f' and its inputs to {inputs}' if inputs < 32 else ''} bits"


def _more_bits(row: LayerRow, outcome: Mapping[str, Any]) -> str:
    """What the next bit-width of a layer's weights on its menu would cost; empty where nothing is known of it."""
    label, lost = row.facts["label"], row.facts["expected_loss"]["rounding"]
    on_offer = {each["weight_bits"]: each for each in row.facts["by_weight_bits"]}
    more = [bits for bits in on_offer if bits > label["weight_bits"]]
    if label.get("rank") or label["weight_bits"] not in on_offer:
        return ""
    if not more:
        return "Its weights have the most bits on offer (--weight-bits)."
    now, then = on_offer[label["weight_bits"]], on_offer[min(more)]
    costs = f"{nats(then['loss'])} instead of {nats(lost)} nats"
    return f"With weights of {min(more)} bits its rounding would cost {costs}, and take {_more(now, then, outcome)}."


def _pruned_less(row: LayerRow, outcome: Mapping[str, Any]) -> str:
    """What the next lower sparsity of a layer's menu would cost; empty where nothing is pruned, or it is not known."""
    sparsity, lost = row.facts["label"]["sparsity"], row.facts["expected_loss"]["pruning"]
    on_offer = {each["sparsity"]: each for each in row.facts.get("by_sparsity", [])}
    less = [each for each in on_offer if each < sparsity]
    if sparsity not in on_offer or not less:
        return ""
    now, then = on_offer[sparsity], on_offer[max(less)]
    how = f"Pruned by {100 * max(less):.3g} %" if max(less) else "Not pruned"
    return (
        f"{how} it would lose {nats(then['loss'])} instead of {nats(lost)} nats to pruning, and the network would take "
        f"{_more(now, then, outcome)}."
    )


def _more(now: Mapping[str, Any], then: Mapping[str, Any], outcome: Mapping[str, Any]) -> str:
    """How much more of the budgeted resources a label takes than another, and how much of it the budget has left.

    Runs of earlier versions told the layer's bytes alone.
    """
    before = now.get("resources") or {"size": now["bytes"]}
    after = then.get("resources") or {"size": then["bytes"]}
    limits = (outcome.get("budget") or {}).get("limits", {})
    used = outcome["compressed"]["resources"]
    left = {name: limits[name] - used[name] for name in limits if name in COUNTED and name in used}
    return " and ".join(_difference(name, after[name] - before[name], left.get(name)) for name in before)


def _difference(name: str, more: int, left: int | None) -> str:
    if more <= 0:
        return f"{-more:,} fewer {RESOURCES[name]}" if more else f"no more {RESOURCES[name]}"
    spare = "" if left is None else f" (the budget has {max(left, 0):,} left)"
    return f"{more:,} more {RESOURCES[name]}{spare}"
