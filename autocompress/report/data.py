"""Results as plain data for programs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from autocompress_envs.numbers import Labeling, Outcome, Problem, removed_weights

if TYPE_CHECKING:
    from autocompress.results import Inspection, Measurement, Result


def label_summary(problem: Problem, labeling: Labeling) -> dict[str, Any]:
    """What a plan does to the weights, counted on those of the compressed network.

    Returns:
        `removed`: fraction of the original's weights that is gone; `mean_weight_bits`: of the weights that stay;
        `share_by_weight_bits`: fraction of the weights that stay, by bit-width, ascending.
    """
    picked = zip(problem.layers, labeling.weight_bits, labeling.sparsity, strict=True)
    bits, sparsity = np.array([(layer.weight_bits[b], layer.sparsities[s]) for layer, b, s in picked]).T
    kept, total = (_weights(problem, channels) for channels in (problem.kept(labeling), problem.costs.group_width))
    if problem.costs.granularity != "channel":
        kept = kept - removed_weights(kept, sparsity)
    share = {int(width): float(kept[bits == width].sum() / kept.sum()) for width in sorted(set(bits))}
    return {
        "removed": float(1 - kept.sum() / total.sum()),
        "mean_weight_bits": float((kept * bits).sum() / kept.sum()),
        "share_by_weight_bits": share,
    }


def _weights(problem: Problem, kept: Any) -> Any:
    fan_in, out = problem.costs.widths(kept)
    return fan_in * out


def measurement_data(measured: Measurement) -> dict[str, Any]:
    """A measurement as plain data, ready for JSON."""
    original, compressed = measured.original_outcome, measured.outcome
    fractions = {name: compressed.resources[name] / amount for name, amount in original.resources.items() if amount}
    return {
        "split": measured.split,
        "original": outcome_data(original),
        "compressed": outcome_data(compressed),
        "fraction_of_original": fractions,
        "budget": {"limits": dict(measured.limits), "met": measured.meets_budget} if measured.limits else None,
        "labels": label_summary(measured.problem, measured.labeling),
    }


def result_data(result: Result) -> dict[str, Any]:
    """The result of a search as plain data, ready for JSON."""
    return {
        **measurement_data(result),
        "search": outcome_data(result.search_outcome),
        "evaluations": result.evaluations,
        "stopped_because": result.stopped_because,
        "run_folder": str(result.run_folder),
        "file_bytes": result.file_bytes,
    }


def outcome_data(outcome: Outcome) -> dict[str, Any]:
    """An outcome as plain data; None for the accuracy of data without labels."""
    accuracy = None if math.isnan(outcome.accuracy) else outcome.accuracy
    return {"accuracy": accuracy, "kl": outcome.kl, "agreement": outcome.agreement, "resources": outcome.resources}


def inspection_data(inspection: Inspection) -> dict[str, Any]:
    """An inspection as plain data, ready for JSON."""
    network = inspection.network
    return {
        "fingerprint": network.fingerprint,
        "input_shape": list(network.input_shape),
        "original": dict(inspection.original),
        "unknown_operators": dict(network.unknown_operators),
        "layers": [dict(vars(layer)) for layer in inspection.layers],
        "groups": [
            {
                "index": index,
                "owner": group.owner,
                "width": group.width,
                "producers": list(group.producers),
                "consumers": list(group.consumers),
            }
            for index, group in enumerate(network.groups)
        ],
    }
