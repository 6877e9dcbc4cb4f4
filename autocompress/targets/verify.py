"""Verification: the exported file in its runtime, against PyTorch and against what the plan claims."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.borrowed import evaluating
from autocompress.evaluation.measure import Closeness, compare
from autocompress.execute.compressed import LayerWeights
from autocompress.network.structure import Network
from autocompress.plan import Label, Plan
from autocompress.targets.timing import Session, median_seconds
from autocompress_envs.problem import removed_weights
from autocompress_envs.problem.tables import is_within

AGREEMENT = 0.995  # top-1, of the file in its runtime with PyTorch
CLOSENESS = 0.05  # or at most this difference of outputs, relative to their spread: near ties flip top-1 answers
BATCHES = (1, 32)  # whose latency is measured

Batch = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Check:
    """One claim, looked at.

    Attributes:
        name: of the claim.
        passed: whether it holds.
        detail: what was found, with numbers; where it fails, also what was claimed.
    """

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class RuntimeOutcome:
    """The file in its runtime, on the split that the outcome is measured on.

    Attributes:
        runtime: its name.
        closeness: to the original in PyTorch.
        agreement: top-1, with the compressed network in PyTorch.
        difference: root mean square difference of the outputs from the compressed network's in PyTorch, relative to
            the standard deviation of those.
        seconds: median latency of one batch, (original, compressed) by batch size, one thread, taking turns.
    """

    runtime: str
    closeness: Closeness
    agreement: float
    difference: float
    seconds: Mapping[int, tuple[float, float]]


@dataclass(frozen=True)
class Verification:
    """What verification found.

    Attributes:
        checks: every claim.
        pytorch: the compressed network in PyTorch against the original.
        runtime: the file in its runtime, or None where the target has no runtime of its own.
        file_bytes: of every file.
        resources: of the finished network: `size` is the bytes of the target's file, all else is counted on the
            shapes and labels of the finished layers.
    """

    checks: tuple[Check, ...]
    pytorch: Closeness
    runtime: RuntimeOutcome | None
    file_bytes: Mapping[str, int]
    resources: Mapping[str, int]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def failures(self) -> list[str]:
        """One line for each claim that does not hold."""
        return [f"{check.name}: {check.detail}" for check in self.checks if not check.passed]


def outputs_on(
    original: nn.Module, compressed: nn.Module, session: Session | None, batches: Iterable[Batch]
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Outputs (N, classes) of original, compressed and file, and labels (N,), all from one pass over the batches."""
    kept: list[list[Tensor]] = [[], [], [], []]
    with evaluating(original), evaluating(compressed):
        for inputs, labels in batches:
            kept[0].append(original(inputs).flatten(1))
            kept[1].append(compressed(inputs).flatten(1))
            if session is not None:
                kept[2].append(session.run(inputs).flatten(1))
            if labels is not None:
                kept[3].append(labels)
    found = [torch.cat(parts) if parts else None for parts in kept]
    assert found[0] is not None, "checked by the data"
    assert found[1] is not None, "checked by the data"
    return found[0], found[1], found[2], found[3]


def runtime_outcome(
    name: str, reference: Tensor, pytorch: Tensor, runtime: Tensor, labels: Tensor | None
) -> RuntimeOutcome:
    """The file's outputs against the original's and the compressed network's in PyTorch; latency is still unknown."""
    return RuntimeOutcome(
        runtime=name,
        closeness=compare(reference, runtime, labels),
        agreement=compare(pytorch, runtime, None).agreement,
        difference=_relative_difference(pytorch.double(), runtime.double()),
        seconds={},
    )


def latencies(original: Session, compressed: Session, inputs: Tensor) -> dict[int, tuple[float, float]]:
    """Median seconds of one batch, (original, compressed) by batch size; `inputs` (n, …) are repeated to fill it."""
    found = {}
    for size in BATCHES:
        batch = inputs.repeat(-(-size // len(inputs)), *[1] * (inputs.ndim - 1))[:size]
        seconds = median_seconds({"original": original, "compressed": compressed}, batch)
        found[size] = (seconds["original"], seconds["compressed"])
    return found


def finished_resources(network: Network, plan: Plan, layers: Mapping[str, LayerWeights], size: int) -> dict[str, int]:
    """Every resource, counted on the finished layers; `size` is given, being bytes of a file."""
    bits = np.array([layer.bits for layer in layers.values()])
    ranges = np.array([32 if layer.input_range is None else layer.input_range.bits for layer in layers.values()])
    counted = network.costs.resources(kept_channels(network, plan), bits, ranges)
    return {name: int(amount) for name, amount in counted.items()} | {"size": size}


def kept_channels(network: Network, plan: Plan) -> np.ndarray:
    """(G,) channels that a plan leaves in every group."""
    if plan.granularity != "channel":
        return network.costs.group_width
    return np.array([round(group.width * (1 - plan.labels[group.owner].sparsity)) for group in network.groups], int)


def check_layers(network: Network, plan: Plan, layers: Mapping[str, LayerWeights]) -> list[Check]:
    """Channel counts, levels and zeros of the finished weights, and the rounding of inputs, against the plan."""
    fan_in, out = network.costs.widths(kept_channels(network, plan))
    shapes, levels, zeros = [], [], []
    for layer, columns, rows in zip(network.layers, fan_in, out, strict=True):
        found, label = layers[layer.name], plan.labels[layer.name]
        shape = (len(found.values), math.prod(found.values.shape[1:]))
        if shape != (rows, columns):
            shapes.append(f"{layer.name} has {shape[0]} x {shape[1]} weights, the plan says {rows} x {columns}")
        levels += [f"{layer.name} {fault}" for fault in _level_faults(found, label)]
        if plan.granularity != "channel":
            wanted = int(removed_weights(np.array(found.values.numel()), label.sparsity))
            got = int((found.values == 0).sum())
            if got < wanted:
                zeros.append(f"{layer.name} has {got} zeros, the plan says {wanted}")
    count = len(network.layers)
    checks = [
        Check("channels", not shapes, "; ".join(shapes) or f"{count} layers have the plan's shapes"),
        Check("levels", not levels, "; ".join(levels) or "every row has at most 2^bits levels"),
    ]
    if plan.granularity != "channel":
        checks.append(Check("sparsity", not zeros, "; ".join(zeros) or f"{count} layers have the plan's zeros"))
    return checks


def _level_faults(layer: LayerWeights, label: Label) -> list[str]:
    faults = []
    rounded = 32 if layer.input_range is None else layer.input_range.bits
    if rounded != label.activation_bits:
        faults.append(f"rounds its input to {rounded} bits, the plan says {label.activation_bits}")
    if layer.bits != label.weight_bits:
        faults.append(f"has {layer.bits} bits, the plan says {label.weight_bits}")
    elif layer.bits < 16 and (most := most_levels(layer)) > 2**layer.bits:
        faults.append(f"has {most} levels in a row, {layer.bits} bits allow {2**layer.bits}")
    return faults


def most_levels(layer: LayerWeights) -> int:
    """The most different values in one row of the weight, of which there may be 2^bits (a sparse row: 0 as well)."""
    rows = layer.weight().flatten(1)
    return max((len(row.unique()) - (layer.sparsity > 0 and layer.bits == 1) for row in rows), default=0)


def check_budget(limits: Mapping[str, int], resources: Mapping[str, int]) -> list[Check]:
    """Nothing without a budget."""
    if not limits:
        return []
    spent = ", ".join(f"{name} {resources[name]:,} of {limit:,}" for name, limit in limits.items())
    return [Check("budget", is_within(resources, limits), spent)]


def check_agreement(outcome: RuntimeOutcome) -> Check:
    """The file's answers are PyTorch's, or differ by near ties only."""
    found = f"{outcome.runtime} agrees with PyTorch on {100 * outcome.agreement:.2f} % of the samples"
    detail = (
        f"{found}, outputs differ by {100 * outcome.difference:.2g} % of their spread; "
        f"at least {100 * AGREEMENT:.1f} % or at most {100 * CLOSENESS:.0f} % wanted"
    )
    return Check("agreement", outcome.agreement >= AGREEMENT or outcome.difference <= CLOSENESS, detail)


def _relative_difference(expected: Tensor, found: Tensor) -> float:
    spread = (expected - expected.mean(0)).square().mean().sqrt().clamp(min=1e-12)
    return float((expected - found).square().mean().sqrt() / spread)
