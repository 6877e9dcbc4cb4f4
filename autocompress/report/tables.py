"""Results as tables and lines for people to read on a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from autocompress.budget import RESOURCES
from autocompress.job.result_data import label_summary
from autocompress.report.measured import measured_lines
from autocompress.run.names import REPORT
from autocompress.targets.timing.machine import threads_in_words
from autocompress.tasks.metrics import METRICS

if TYPE_CHECKING:
    from autocompress.job.front import Front
    from autocompress.job.inspection import LayerReport
    from autocompress.job.results import Finished, Inspection, Measurement, Result
    from autocompress.job.tolerance import Smallest
    from autocompress.targets.timing import PairedTiming
    from autocompress.targets.verify import Verification

NAMES = {
    "size": "size in bytes",
    "macs": "multiply-accumulates",
    "bitops": "bit operations",
    "latency": "latency, nanoseconds of a batch",
    "memory": "peak activation memory in bytes",
    "energy": "modelled energy, picojoules a sample",
}
_SAME_SPEED = 0.01  # latencies that differ by at most this fraction are called equal


def print_measurement(console: Console, measured: Measurement) -> None:
    """Print original and compressed network, whether the budget is met, and a summary of the labels.

    Args:
        console: console of standard output.
        measured: measurement of a plan.
    """
    table = Table(
        title=f"Original and compressed network, measured on the {measured.split} split", title_justify="left"
    )
    for column in ("", "original", "compressed", "compressed / original"):
        table.add_column(column, justify="left" if not column else "right")
    original, compressed = measured.original_outcome, measured.outcome
    if not math.isnan(original.accuracy) or not measured.metrics:
        table.add_row("top-1 accuracy", _percent(original.accuracy), _percent(compressed.accuracy), "")
    for name, values in measured.metrics.items():
        table.add_row(_title(name), *(_metric(name, value) for value in values), "")
    table.add_row("KL divergence from the original, nats", f"{original.kl:.4f}", f"{compressed.kl:.4f}", "")
    if has_answers(measured.metrics):
        shares = (_percent(original.agreement), _percent(compressed.agreement))
        table.add_row("same top-1 answer as the original", *shares, "")
    for name in (name for name in RESOURCES if name in compressed.resources and name in original.resources):
        before, after = original.resources[name], compressed.resources[name]
        table.add_row(NAMES[name], f"{before:,}", f"{after:,}", f"{after / before:.4f}" if before else "")
    console.print(table)
    for line in _closing_lines(measured):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def has_answers(metrics: Iterable[str]) -> bool:
    """Whether outputs have answers that can be equal, as classes do and numbers don't.

    Args:
        metrics: names of the metrics that were taken; without any, classes are taken for granted.

    >>> has_answers([]), has_answers(["f1"]), has_answers(["r2", "mae"])
    (True, True, False)
    """
    names = list(metrics)
    return not names or any(name not in METRICS or METRICS[name].kind in ("classes", "boxes") for name in names)


def print_finished(console: Console, finished: Finished) -> None:
    """Print a finished run: all of `print_measurement`, the folder, files in their runtime, and the checks.

    Args:
        console: console of standard output.
        finished: run whose files were written and verified.
    """
    print_measurement(console, finished)
    for line in _verification_lines(finished):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def print_result(console: Console, result: Result) -> None:
    """Print the result of a search: all of `print_finished`, and how many plans the search evaluated.

    Args:
        console: console of standard output.
        result: result of a search.
    """
    print_finished(console, result)
    plans = "1 plan" if result.evaluations == 1 else f"{result.evaluations:,} plans"
    line = f"search: {plans} evaluated; {result.stopped_because}"
    console.print(line, soft_wrap=True, markup=False, highlight=False)


def print_verification(console: Console, verified: Verification) -> None:
    """Print every claim that was checked, then the files in their runtime.

    Args:
        console: console of standard output.
        verified: result of a verification.
    """
    table = Table(title="Claims of the run, checked on its files", title_justify="left")
    for column in ("result", "claim", "found"):
        table.add_column(column)
    for check in verified.checks:
        table.add_row("passed" if check.passed else "FAILED", check.name, escape(check.detail))
    console.print(table)
    for line in _runtime_lines(verified):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _verification_lines(finished: Finished) -> list[str]:
    """The run's folder and files, its files in their runtime, and how many checks passed."""
    verified = finished.verification
    files = ", ".join(f"{name}: {count:,} bytes" for name, count in verified.file_bytes.items())
    passed = sum(check.passed for check in verified.checks)
    return [
        f"run folder: {finished.run_folder} ({files})",
        f"report: {finished.run_folder / REPORT} (open it in a browser)",
        *_runtime_lines(verified),
        f"verification: {passed} of {len(verified.checks)} checks passed",
        *(f"NOT verified, {line}" for line in verified.failures()),
    ]


def _runtime_lines(verified: Verification) -> list[str]:
    """Accuracy and latency of the exported file in its runtime; or that nothing ran it."""
    found = verified.runtime
    if found is None:
        return ["the target's file was not run: the target has no runtime; what is measured is the network in PyTorch"]
    values = [f"{_title(name)} {_metric(name, value)}" for name, value in found.closeness.metrics.items()]
    quality = values or [f"top-1 accuracy {_percent(found.closeness.accuracy)}"]
    accuracy = ", ".join([*quality, f"KL {found.closeness.kl:.4f} nats"])
    agreement = f"outputs differ from PyTorch's by {100 * found.difference:.2g} % of their spread"
    if has_answers(found.closeness.metrics):
        agreement = f"same top-1 answer as PyTorch on {100 * found.agreement:.2f} % of the samples"
    lines = [f"in {found.runtime}: {accuracy}; {agreement}"]
    for batch, timing in found.timings.items():
        lines.append(f"latency at batch {batch}, {threads_in_words(found.threads)}: {_latency(timing)}")
        if timing.energy is not None:
            lines.append(f"energy at batch {batch}, {energy_text(vars(timing.energy))}")
    return lines


def energy_text(measured: Mapping[str, Any]) -> str:
    """A measured energy in words.

    >>> energy_text({"original": 0.004, "compressed": 0.001, "source": "RAPL package-0"})
    'measured (RAPL package-0, all that ran there): 4 mJ original, 1 mJ compressed, 0.250 of the original'

    Args:
        measured: joules of a run of both networks, and what was read.
    """
    before, after = measured["original"], measured["compressed"]
    share = f", {after / before:.3f} of the original" if before > 0 else ""
    return (
        f"measured ({measured['source']}, all that ran there): {1e3 * before:.3g} mJ original, "
        f"{1e3 * after:.3g} mJ compressed{share}"
    )


def _latency(timing: PairedTiming) -> str:
    """Medians, 95th percentiles and the ratio with its interval.

    The ratio is that of the rounds, in which both took turns, and so may differ a little from that of the medians.
    """
    original, compressed = (
        f"{1e3 * times.median.median:.3g} ms (p95 {1e3 * times.p95:.3g})"
        for times in (timing.original, timing.compressed)
    )
    ratio = timing.ratio
    return (
        f"{original} original, {compressed} compressed ({speed(1.0, ratio.median)}; ratio {ratio.median:.3f}, "
        f"95 % interval {ratio.low:.3f} to {ratio.high:.3f})"
    )


def speed(original: float, compressed: float) -> str:
    """The latency of the compressed network against the original's, in words.

    >>> speed(0.00264, 0.002), speed(0.002, 0.00216), speed(0.002, 0.00201)
    ('1.32 times faster', '1.08 times slower', 'as fast')
    """
    if abs(original - compressed) <= _SAME_SPEED * original:
        return "as fast"
    if compressed < original:
        return f"{original / compressed:.2f} times faster"
    return f"{compressed / original:.2f} times slower"


def _closing_lines(measured: Measurement) -> list[str]:
    """Whether the budget is met, if there is one, and a summary of the labels."""
    summary = label_summary(measured.problem, measured.labeling)
    shares = ", ".join(f"{100 * share:.1f} % at {bits} bits" for bits, share in summary["share_by_weight_bits"].items())
    mean = f"on average {summary['mean_weight_bits']:.2f} bits"
    lines = [f"weights: {100 * summary['removed']:.1f} % removed; of the others {shares} ({mean})"]
    if cut := summary["low_rank_layers"]:
        lines.append(f"low ranks: {cut} of {len(measured.problem.layers)} layers are two thin ones each")
    if measured.limits:
        spent = ", ".join(
            f"{name} {measured.outcome.resources[name]:,} of at most {limit:,} {RESOURCES[name]}"
            for name, limit in measured.limits.items()
        )
        lines.insert(0, f"budget: {'met' if measured.meets_budget else 'NOT met'} ({spent})")
    return lines


def print_front(console: Console, front: Front) -> None:
    """Print the points of a front.

    Args:
        console: where to print.
        front: the front.
    """
    table = Table(title=f"Front of {NAMES[front.resource]}", title_justify="left")
    for column in ("budget", "used", "of the original", "KL, nats", "top-1 accuracy", "balanced at", "run folder"):
        table.add_column(column, justify="left" if column in ("budget", "run folder") else "right")
    for point, price in zip(front.points, front.prices, strict=True):
        compressed = point.outcome["compressed"]
        accuracy = compressed["accuracy"]
        table.add_row(
            point.budget,
            f"{point.amount[front.resource]:,}",
            f"{100 * point.outcome['fraction_of_original'][front.resource]:.2f} %",
            f"{compressed['kl']:.4f}",
            _percent(math.nan if accuracy is None else accuracy),
            _price(price),
            escape(str(point.run_folder)),
        )
    console.print(table)


def _price(price: tuple[float, float] | None) -> str:
    """Prices at which a point of a front is the best; empty where there is none."""
    if price is None:
        return ""
    low, high = price
    return f"{low:.3g} to {high:.3g}" if math.isfinite(high) else f"{low:.3g} or more"


def print_smallest(console: Console, found: Smallest) -> None:
    """Print the budgets that were tried, and the smallest network that passed.

    Args:
        console: where to print.
        found: result of the search.
    """
    table = Table(title=f"Least {NAMES[found.resource]} at {found.measure} {found.tolerated:g}", title_justify="left")
    for column in ("budget", "used", "of the original", "loses at most", "passes", "run folder"):
        table.add_column(column, justify="left" if column in ("budget", "run folder") else "right")
    for each in found.tries:
        table.add_row(
            each.point.budget,
            f"{each.point.amount[found.resource]:,}",
            f"{100 * each.point.outcome['fraction_of_original'][found.resource]:.2f} %",
            f"{each.bound:.4f}",
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


def print_inspection(console: Console, inspection: Inspection) -> None:
    """Print the layers, the channel groups, the original's costs, operators of unknown cost, and measured labels.

    Args:
        console: console of standard output.
        inspection: result of `inspect`.
    """
    console.print(_layer_table(inspection.layers))
    groups = Table(title="Channel groups: channels that can only be removed together", title_justify="left")
    for column in ("group", "owner", "channels", "written by", "read by", "is a branch"):
        groups.add_column(column, justify="right" if column in ("group", "channels") else "left")
    for index, group in enumerate(inspection.network.groups):
        members = (", ".join(group.producers), ", ".join(group.consumers))
        branch = "yes" if group.is_branch else ""
        groups.add_row(str(index), escape(group.owner), str(group.width), *map(escape, members), branch)
    console.print(groups)
    lines = _inspection_lines(inspection)
    lines += [] if inspection.measured is None else measured_lines(inspection.measured)
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _layer_table(layers: tuple[LayerReport, ...]) -> Table:
    """The table of all layers, with the expected loss of each label alone."""
    bits = sorted({width for layer in layers for width in layer.bit_errors}, reverse=True)
    sparsities = sorted({sparsity for layer in layers for sparsity in layer.sparsity_errors})
    table = Table(
        title="Layers, with the expected loss (nats of KL divergence a sample) if one layer alone gets N weight bits "
        "or loses N % of its channels or weights",
        title_justify="left",
    )
    for column in ("layer", "kind", "weight", "output"):
        table.add_column(column)
    headings = ["parameters", "MACs", "group", *(f"{width} bits" for width in bits)]
    for column in [*headings, *(f"-{100 * sparsity:.3g} %" for sparsity in sparsities)]:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("labels on offer")
    for layer in layers:
        errors = [_error(layer.bit_errors, width) for width in bits]
        errors += [_error(layer.sparsity_errors, sparsity) for sparsity in sparsities]
        table.add_row(
            escape(layer.name),
            layer.kind,
            _shape(layer.weight_shape),
            _shape(layer.output_shape),
            f"{layer.parameters:,}",
            f"{layer.macs:,}",
            "" if layer.group is None else str(layer.group),
            *errors,
            escape(layer.labels + (f" ({layer.reason})" if layer.reason else "")),
        )
    return table


def _inspection_lines(inspection: Inspection) -> list[str]:
    """The original's costs, and operators whose cost is not known."""
    lines = [f"original network's {NAMES[name]}: {inspection.original[name]:,}" for name in inspection.original]
    unknown = inspection.network.unknown_operators
    if unknown:
        calls = ", ".join(f"{name} ({count} calls)" for name, count in unknown.items())
        lines.append(f"operators that are in no cost table, so their cost counts as 0: {calls}")
    fixed = inspection.network.fixed_operators
    if fixed:
        total, each = sum(fixed.values()), ", ".join(f"{name} {macs:,}" for name, macs in fixed.items())
        lines.append(f"operators that can't shrink, {total:,} multiply-accumulates in all: {each}")
    return lines


def _error(errors: Mapping[Any, float], key: Any) -> str:
    return f"{errors[key]:.2g}" if key in errors else ""


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _title(name: str) -> str:
    """A metric's name in tables; that of a metric from outside as it is."""
    return METRICS[name].title if name in METRICS else name


def _metric(name: str, value: float) -> str:
    """A metric's value as tables show it; that of a metric from outside with four decimals."""
    return METRICS[name].text(value) if name in METRICS else f"{value:.4f}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f} %"
