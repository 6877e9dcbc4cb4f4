"""Results as plain data for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from autocompress.files import or_none
from autocompress_envs.problem import IntArray, Labeling, Outcome, Problem, removed_weights

ENERGY_SOURCE = "M. Horowitz, Computing's energy problem, ISSCC 2014: a chip in 45 nm"
"""Where the constants of the modelled energy come from."""

if TYPE_CHECKING:
    from autocompress.execute.tuning import Tuned
    from autocompress.job.measured_labels import MeasuredLabels
    from autocompress.job.results import Finished, Inspection, Measurement, Result
    from autocompress.targets.timing import PairedTiming, Times
    from autocompress.targets.verify import Verification


def label_summary(problem: Problem, labeling: Labeling) -> dict[str, Any]:
    """What a plan does to the weights, counted on those of the compressed network.

    Returns:
        `removed`: fraction of the original's weights that is gone; `mean_weight_bits`: of the weights that stay;
        `share_by_weight_bits`: fraction of the weights that stay, by bit-width, ascending; `low_rank_layers`: number of
        layers that became two factors.
    """
    picked = zip(problem.layers, labeling.weight_bits, labeling.sparsity, strict=True)
    bits, sparsity, ranks = np.array(
        [(layer.weight_bits[b], layer.sparsities[s], layer.weight_ranks[b]) for layer, b, s in picked]
    ).T
    ranks = ranks.astype(np.int64)
    total = _weights(problem, problem.costs.group_width, 0 * ranks)
    kept = _weights(problem, problem.kept(labeling), ranks)
    if problem.costs.granularity != "channel":
        kept = kept - removed_weights(kept, sparsity)
    share = {int(width): float(kept[bits == width].sum() / kept.sum()) for width in sorted(set(bits[kept > 0]))}
    return {
        "removed": float(1 - kept.sum() / total.sum()),
        "mean_weight_bits": float((kept * bits).sum() / kept.sum()),
        "share_by_weight_bits": share,
        "low_rank_layers": int(problem.costs.first_factors[ranks > 0].sum()),
    }


def _weights(problem: Problem, kept: IntArray, ranks: IntArray) -> IntArray:
    """(L,) weights of every layer, or of its two factors."""
    fan_in, out = problem.costs.widths(kept)
    return np.where(ranks > 0, ranks * (problem.costs.first_factors * fan_in + out), fan_in * out)


def measurement_data(measured: Measurement) -> dict[str, Any]:
    """A measurement as plain data, ready for JSON."""
    original, compressed = measured.original_outcome, measured.outcome
    fractions = {name: compressed.resources[name] / amount for name, amount in original.resources.items() if amount}
    return {
        "task": measured.task,
        "split": measured.split,
        "original": outcome_data(original),
        "compressed": outcome_data(compressed),
        "fraction_of_original": fractions,
        "budget": {"limits": dict(measured.limits), "met": measured.meets_budget} if measured.limits else None,
        "metrics": {name: {"original": a, "compressed": b} for name, (a, b) in measured.metrics.items()},
        "energy": energy_data(original.resources, compressed.resources, None),
        "labels": label_summary(measured.problem, measured.labeling),
    }


def finished_data(finished: Finished) -> dict[str, Any]:
    """A plan made real as plain data; `measured_in` says where each number comes from."""
    verified, tuned = finished.verification, finished.executed.tuned
    return {
        **measurement_data(finished),
        "samples": verified.pytorch.samples,
        "measured_in": {"compressed": "PyTorch", "size": "file", "runtime": _runtime_name(verified)},
        "runtime": runtime_data(verified),
        "latency": latency_data(finished),
        "energy": energy_data(finished.original_outcome.resources, finished.outcome.resources, verified),
        "file_bytes": dict(verified.file_bytes),
        "recalibrated": finished.executed.recalibrated,
        "finetuning": None if tuned is None else tuning_data(tuned),
        "checks": [vars(check) for check in verified.checks],
        "verified": verified.passed,
        "checked_on": checked_on(verified),
        "run_folder": str(finished.run_folder),
    }


def result_data(result: Result) -> dict[str, Any]:
    """The result of a search as plain data, ready for JSON."""
    return {
        **finished_data(result),
        "search": _search_outcome(result),
        "evaluations": result.evaluations,
        "stopped_because": result.stopped_because,
    }


def _search_outcome(result: Result) -> dict[str, Any] | None:
    """The plan as the search measured it; its answers count only where the task has any."""
    found = result.search_outcome
    if found is None:
        return None
    has_answers = not math.isnan(result.outcome.agreement)
    return outcome_data(found if has_answers else replace(found, agreement=math.nan))


def latency_data(finished: Finished) -> dict[str, Any] | None:
    """What the limit of time was and how it was kept; None where there is none."""
    runtime, time = finished.verification.runtime, finished.time
    if time is None or runtime is None:
        return None
    timing = runtime.timings[time.limit.batch]
    return {
        "limit": time.limit.data(),
        "met": time.limit.is_met(timing),
        "machine": timing.machine.data(),
        **timing_data(timing),
    }


def energy_data(
    original: Mapping[str, int], compressed: Mapping[str, int], verified: Verification | None
) -> dict[str, Any] | None:
    """The energy of a network, modelled, and measured where the machine has a counter; None where nothing is known.

    Args:
        original: resources of the original.
        compressed: resources of the compressed network.
        verified: what was measured; None: nothing.
    """
    if "energy" not in compressed or "energy" not in original:
        return None
    measured = {} if verified is None else measured_energy(verified)
    modelled = {"unit": "picojoules a sample", "original": original["energy"], "compressed": compressed["energy"]}
    return {"modelled": {**modelled, "source": ENERGY_SOURCE}, "measured_by_batch": measured or None}


def measured_energy(verified: Verification) -> dict[str, dict[str, Any]]:
    """The energy of a run of the original and of the file, by batch size; empty where no counter was read."""
    timings = {} if verified.runtime is None else verified.runtime.timings
    return {
        str(batch): {"unit": "joules a batch", **vars(timing.energy)}
        for batch, timing in timings.items()
        if timing.energy is not None
    }


def timing_data(timing: PairedTiming) -> dict[str, Any]:
    """Times of two networks as plain data: seconds of each, the ratio with its 95 % interval, how busy it was."""
    return {
        "original": _times_data(timing.original),
        "compressed": _times_data(timing.compressed),
        "ratio": vars(timing.ratio),
        "rounds": timing.rounds,
        "runs": timing.runs,
        "interrupted_rounds": timing.interrupted,
        "settled": timing.settled,
        "waiting_share": timing.waiting.share,
        "load": or_none(timing.waiting.load),
    }


def _times_data(times: Times) -> dict[str, Any]:
    return {"p50_seconds": times.p50, "p95_seconds": times.p95, "median_seconds": vars(times.median)}


def tuning_data(tuned: Tuned) -> dict[str, Any]:
    """What fine-tuning did."""
    fields = ("steps", "best_step", "seconds", "diverged")
    return {name: getattr(tuned, name) for name in fields}


def runtime_data(verified: Verification) -> dict[str, Any] | None:
    """What was measured in the runtime."""
    found = verified.runtime
    if found is None:
        return None
    seconds = {str(batch): {"original": a, "compressed": b} for batch, (a, b) in found.seconds.items()}
    return {
        "name": found.runtime,
        "accuracy": or_none(found.closeness.accuracy),
        "kl": found.closeness.kl,
        "metrics": dict(found.closeness.metrics),
        "agreement_with_pytorch": or_none(found.agreement),
        "difference_from_pytorch": found.difference,
        "median_seconds_by_batch": seconds,
        "timings_by_batch": {str(batch): timing_data(timing) for batch, timing in found.timings.items()},
        "threads": found.threads,
    }


def verification_data(verified: Verification) -> dict[str, Any]:
    """A verification as plain data."""
    return {
        "verified": verified.passed,
        "checks": [vars(check) for check in verified.checks],
        "checked_on": checked_on(verified),
        "pytorch": {
            "accuracy": or_none(verified.pytorch.accuracy),
            "kl": verified.pytorch.kl,
            "metrics": dict(verified.pytorch.metrics),
        },
        "runtime": runtime_data(verified),
        "file_bytes": dict(verified.file_bytes),
        "resources": dict(verified.resources),
        "measured_energy_by_batch": measured_energy(verified) or None,
    }


def checked_on(verified: Verification) -> dict[str, Any]:
    """The shapes and, of texts, the lengths that files were run at: what was found holds for these."""
    return {"inputs": {name: list(shape) for name, shape in verified.inputs.items()}, "tokens": list(verified.lengths)}


def _runtime_name(verified: Verification) -> str:
    return "PyTorch" if verified.runtime is None else verified.runtime.runtime


def outcome_data(outcome: Outcome) -> dict[str, Any]:
    """An outcome as plain data; None for the accuracy of data without labels, and the agreement of numbers."""
    shares = {"accuracy": or_none(outcome.accuracy), "kl": outcome.kl, "agreement": or_none(outcome.agreement)}
    return {**shares, "resources": outcome.resources}


def inspection_data(inspection: Inspection) -> dict[str, Any]:
    """An inspection as plain data, ready for JSON."""
    network = inspection.network
    return {
        "fingerprint": network.fingerprint,
        "inputs": [dict(vars(field)) for field in network.inputs],
        "original": dict(inspection.original),
        "unknown_operators": dict(network.unknown_operators),
        "fixed_operators": dict(network.fixed_operators),
        "layers": [dict(vars(layer)) for layer in inspection.layers],
        **_measured_labels_data(inspection.measured),
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


def _measured_labels_data(measured: MeasuredLabels | None) -> dict[str, Any]:
    """The labels that were measured, and what they stand above: losses of the network with its mildest labels."""
    if measured is None:
        return {"measured_base": None, "measured_labels": []}
    base = {"expected": measured.base_expected, "measured": measured.base_measured}
    return {"measured_base": base, "measured_labels": [dict(vars(label)) for label in measured.labels]}
