"""Results as tables for people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from autocompress.budget import RESOURCES
from autocompress.job.result_data import label_summary

if TYPE_CHECKING:
    from autocompress.job.inspection import LayerReport
    from autocompress.job.results import Finished, Inspection, Measurement, Result
    from autocompress.targets.verify import Verification

NAMES = {"size": "bytes", "macs": "multiply-accumulates", "bitops": "bit operations", "memory": "peak memory, bytes"}


def print_measurement(console: Console, measured: Measurement) -> None:
    """Original against compressed, whether the budget is met, and what the labels are."""
    table = Table(title=f"Original and compressed network ({measured.split} split)", title_justify="left")
    for column in ("", "original", "compressed", "fraction"):
        table.add_column(column, justify="left" if not column else "right")
    original, compressed = measured.original_outcome, measured.outcome
    table.add_row("accuracy", _percent(original.accuracy), _percent(compressed.accuracy), "")
    table.add_row("KL divergence, nats", f"{original.kl:.4f}", f"{compressed.kl:.4f}", "")
    table.add_row("agreement", _percent(original.agreement), _percent(compressed.agreement), "")
    for name in RESOURCES:
        before, after = original.resources[name], compressed.resources[name]
        table.add_row(NAMES[name], f"{before:,}", f"{after:,}", f"{after / before:.4f}" if before else "")
    console.print(table)
    for line in _closing_lines(measured):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def print_finished(console: Console, finished: Finished) -> None:
    """`print_measurement`, the files in their runtime, and the claims that were looked at."""
    print_measurement(console, finished)
    for line in _verification_lines(finished):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def print_result(console: Console, result: Result) -> None:
    """`print_finished`, and how the search came to it."""
    print_finished(console, result)
    line = f"search: {result.evaluations} plans evaluated; {result.stopped_because}"
    console.print(line, soft_wrap=True, markup=False, highlight=False)


def print_verification(console: Console, verified: Verification) -> None:
    """Every claim that was looked at, then the files in their runtime."""
    table = Table(title="Claims", title_justify="left")
    for column in ("", "claim", "found"):
        table.add_column(column)
    for check in verified.checks:
        table.add_row("passed" if check.passed else "FAILED", check.name, escape(check.detail))
    console.print(table)
    for line in _runtime_lines(verified):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _verification_lines(finished: Finished) -> list[str]:
    verified = finished.verification
    files = ", ".join(f"{name}: {count:,} bytes" for name, count in verified.file_bytes.items())
    passed = sum(check.passed for check in verified.checks)
    return [
        f"run folder: {finished.run_folder} ({files})",
        *_runtime_lines(verified),
        f"verification: {passed} of {len(verified.checks)} checks passed",
        *(f"NOT verified, {line}" for line in verified.failures()),
    ]


def _runtime_lines(verified: Verification) -> list[str]:
    found = verified.runtime
    if found is None:
        return []
    accuracy = f"accuracy {_percent(found.closeness.accuracy)}, KL {found.closeness.kl:.4f}"
    lines = [f"in {found.runtime}: {accuracy}; agrees with PyTorch on {100 * found.agreement:.2f} %"]
    for batch, (original, compressed) in found.seconds.items():
        times = f"{1e3 * original:.2f} ms original, {1e3 * compressed:.2f} ms compressed"
        lines.append(f"latency at batch {batch}, one thread: {times} ({original / compressed:.2f} times faster)")
    return lines


def _closing_lines(measured: Measurement) -> list[str]:
    summary = label_summary(measured.problem, measured.labeling)
    shares = ", ".join(f"{bits} bits {100 * share:.1f} %" for bits, share in summary["share_by_weight_bits"].items())
    mean = f"mean {summary['mean_weight_bits']:.2f} bits a weight"
    lines = [f"weights: {shares} ({mean}); {100 * summary['removed']:.1f} % removed"]
    if measured.limits:
        spent = ", ".join(
            f"{name} {measured.outcome.resources[name]:,} of {limit:,}" for name, limit in measured.limits.items()
        )
        lines.insert(0, f"budget: {'met' if measured.meets_budget else 'NOT met'} ({spent})")
    return lines


def print_inspection(console: Console, inspection: Inspection) -> None:
    """The layers, the channel groups, and what the cost tables don't know."""
    console.print(_layer_table(inspection.layers))
    groups = Table(title="Channel groups", title_justify="left")
    for column in ("group", "owner", "channels", "written by", "read by", "is a branch"):
        groups.add_column(column, justify="right" if column in ("group", "channels") else "left")
    for index, group in enumerate(inspection.network.groups):
        members = (", ".join(group.producers), ", ".join(group.consumers))
        branch = "yes" if group.is_branch else ""
        groups.add_row(str(index), escape(group.owner), str(group.width), *map(escape, members), branch)
    console.print(groups)
    for line in _inspection_lines(inspection):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _layer_table(layers: tuple[LayerReport, ...]) -> Table:
    bits = sorted({width for layer in layers for width in layer.bit_errors}, reverse=True)
    sparsities = sorted({sparsity for layer in layers for sparsity in layer.sparsity_errors})
    table = Table(
        title="Layers, with the expected loss (nats of KL divergence a sample) of each label alone",
        title_justify="left",
    )
    for column in ("layer", "kind", "weight", "output"):
        table.add_column(column)
    headings = ["parameters", "MACs", "group", *(f"{width} bits" for width in bits)]
    for column in [*headings, *(f"-{100 * sparsity:.3g} %" for sparsity in sparsities)]:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("may be labelled")
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
    lines = [f"{NAMES[name]} of the original: {inspection.original[name]:,}" for name in RESOURCES]
    unknown = inspection.network.unknown_operators
    if unknown:
        calls = ", ".join(f"{name} ({count} calls)" for name, count in unknown.items())
        lines.append(f"operators in no cost table, counted as 0: {calls}")
    fixed = inspection.network.fixed_operators
    if fixed:
        total, each = sum(fixed.values()), ", ".join(f"{name} {macs:,}" for name, macs in fixed.items())
        lines.append(f"operators without weights, {total:,} multiply-accumulates in all, can't shrink: {each}")
    return lines


def _error(errors: Mapping[Any, float], key: Any) -> str:
    return f"{errors[key]:.2g}" if key in errors else ""


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f} %"
