"""Verification: the exported file in its runtime, against PyTorch and against what the plan claims.

Three networks run on the same samples: the original in PyTorch, the compressed network in PyTorch, and the target's
file in its runtime. `outputs_on` collects their outputs. The checks then look at the finished layers (`check_layers`),
the resources (`check_budget`) and the file's outputs (`check_agreement`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.budget import shown_name
from autocompress.evaluation.batches import Note, running
from autocompress.evaluation.measure import AT_ONCE, CLASSES, Closeness, Kept, closeness, compare
from autocompress.execute.compressed import LayerWeights
from autocompress.memory import give_back
from autocompress.network.interface import raw
from autocompress.network.structure import Network
from autocompress.plan import FIRST, SECOND, Label, Plan
from autocompress.samples import Inputs, repeated
from autocompress.targets.timing import Effort, Machine, PairedTiming, Session, TimeLimit, time_pair
from autocompress.tasks import Reading, together
from autocompress_envs.problem import removed_weights
from autocompress_envs.problem.tables import is_within

AGREEMENT = 0.995  # least share of samples on which the file in its runtime answers as PyTorch does
CLOSENESS = 0.05  # or largest difference of outputs, relative to their spread: near ties flip top-1 answers
OF_COMPRESSION = (
    0.5  # or largest difference, relative to what compression itself changed: roundings of many layers flip
)
_AS_CLOSE = 1.1  # … where the file's divergence from the original is at most so many times PyTorch's
BATCHES = (1, 32)  # batch sizes that latency is measured at
LATENCY_EFFORT = Effort(tightness=0.01, seconds=0.5, least_rounds=20)  # where no budget hangs on it

Batch = tuple[Inputs, Tensor | None]


@dataclass(frozen=True)
class Check:
    """One claim about the finished network, and whether it holds.

    Attributes:
        name: name of the claim: `channels`, `levels`, `sparsity`, `budget`, `agreement` or `length`.
        passed: whether the claim holds.
        detail: one line of what was found, with numbers; where the claim fails, also what was claimed.
    """

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class RuntimeOutcome:
    """The target's file in its runtime, on the split that the outcome is measured on.

    Attributes:
        runtime: name of the runtime.
        closeness: the file's outputs compared with those of the original in PyTorch.
        agreement: share of samples, in [0, 1], on which the file and the compressed network in PyTorch have the same
            top-1 answer; NaN where outputs are numbers or vectors, which have no answers.
        difference: root mean square difference between the file's outputs and the compressed network's in PyTorch,
            relative to the standard deviation of the latter; at least 0.
        of_compression: that difference relative to the one between the compressed network and the original, both in
            PyTorch; infinity where there is none.
        pytorch_kl: divergence of the compressed network in PyTorch from the original, in nats.
        timings: times of the original and of the file, in turns, by batch size.
        threads: number of threads that one operator may use in these. Default: 1.
    """

    runtime: str
    closeness: Closeness
    agreement: float
    difference: float
    of_compression: float
    pytorch_kl: float
    timings: Mapping[int, PairedTiming]
    threads: int = 1

    @property
    def seconds(self) -> dict[int, tuple[float, float]]:
        """Median seconds of one batch, (original, compressed) by batch size."""
        return {
            batch: (timing.original.median.median, timing.compressed.median.median)
            for batch, timing in self.timings.items()
        }


@dataclass(frozen=True)
class Verification:
    """The result of a verification.

    Attributes:
        checks: every claim, with what was found.
        pytorch: outputs of the compressed network compared with those of the original, both in PyTorch.
        runtime: outputs of the file in its runtime, compared; None where the target has no runtime of its own.
        file_bytes: bytes of every exported file by name.
        resources: resources of the finished network by name. `size` is the bytes of the target's file; all else is
            counted on the shapes and labels of the finished layers.
        inputs: shape of a sample of each tensor that the file was run on, by name; nothing was claimed of others.
            Default: none.
        lengths: numbers of tokens that the file of a network of texts was run at. Default: none.
    """

    checks: tuple[Check, ...]
    pytorch: Closeness
    runtime: RuntimeOutcome | None
    file_bytes: Mapping[str, int]
    resources: Mapping[str, int]
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    lengths: tuple[int, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every claim holds."""
        return all(check.passed for check in self.checks)

    def failures(self) -> list[str]:
        """One line for each claim that does not hold."""
        return [f"{check.name}: {check.detail}" for check in self.checks if not check.passed]


def outputs_on(
    original: nn.Module | Kept,
    compressed: nn.Module,
    session: Session | None,
    batches: Iterable[Batch],
    device: torch.device | str = "cpu",
    note: Note | None = None,
    at_once: int = AT_ONCE,
    in_runtime: int = AT_ONCE,
    reading: Reading = CLASSES,
) -> tuple[Kept, Kept, Kept | None]:
    """Outputs of the three networks, from one pass over the batches.

    Args:
        original: original network, or what was kept of its outputs on these batches.
        compressed: compressed network in PyTorch, its inputs rounded.
        session: file in its runtime; None: there is none.
        batches: (inputs, labels) of all samples, at least one.
        device: device that both networks in PyTorch run on; the file runs where its runtime does.
        note: function that is told once where batches had to become smaller for the device's memory. Default: nobody.
        at_once: number of samples in a forward pass in PyTorch, at most, however large a batch is.
        in_runtime: number of samples that the file is given at once, at most.
        reading: how outputs are read. Default: as logits of classes.

    Returns:
        What is kept of the outputs of the original, of the compressed network, and of the file (or None).
    """
    reference = original if isinstance(original, Kept) else Kept(reading)
    pytorch, runtime, there = Kept(reading), Kept(reading), torch.device(device)
    networks = [] if isinstance(original, Kept) else [(reference, original)]
    networks.append((pytorch, compressed))
    with ExitStack() as stack:
        runs = [(kept, stack.enter_context(running(raw(each), there, note, at_once))) for kept, each in networks]
        for inputs, labels in batches:
            for kept, run in runs:
                kept.add(run(inputs), inputs, labels)
            if session is not None:
                parts = [session.run(part) for part in inputs.split(in_runtime)]
                runtime.add(together(parts), inputs, labels)
            give_back()
    return reference, pytorch, runtime if session is not None else None


def runtime_outcome(name: str, reference: Kept, pytorch: Kept, runtime: Kept) -> RuntimeOutcome:
    """The file's outputs compared with the original's and with the compressed network's; `timings` is left empty.

    Args:
        name: name of the runtime.
        reference: outputs of the original in PyTorch.
        pytorch: outputs of the compressed network in PyTorch.
        runtime: outputs of the file.
    """
    expected, found = pytorch.rows(), runtime.rows()
    difference, own = (_relative_difference(expected.double(), each.double()) for each in (found, reference.rows()))
    return RuntimeOutcome(
        runtime=name,
        closeness=closeness(reference, runtime),
        agreement=compare(expected, found, None).agreement if pytorch.has_answers else math.nan,
        difference=difference,
        of_compression=difference / own if own else math.inf,
        pytorch_kl=compare(reference.rows(), expected, None).kl,
        timings={},
    )


def latencies(
    original: Session,
    compressed: Session,
    inputs: Inputs,
    batches: Iterable[int] = BATCHES,
    effort: Effort = LATENCY_EFFORT,
) -> dict[int, PairedTiming]:
    """Times of the original and of the compressed network, in turns, by batch size.

    Args:
        original: original network, loaded in the runtime.
        compressed: compressed network, loaded in the same runtime.
        inputs: (n, …) samples, repeated to fill a batch.
        batches: batch sizes.
        effort: how much each of them may take.
    """
    return {size: time_pair(original, compressed, batch_of(inputs, size), effort) for size in batches}


def batch_of(inputs: Inputs, size: int) -> Inputs:
    """(size, …) samples, the first of `inputs`, repeated where there are fewer."""
    return repeated(inputs, -(-size // len(inputs)))[:size]


def finished_resources(network: Network, plan: Plan, layers: Mapping[str, LayerWeights], size: int) -> dict[str, int]:
    """Every resource by name, counted on the finished layers.

    Args:
        network: trace of the original.
        plan: labels that the network was made by.
        layers: finished layers by name.
        size: bytes of the target's file.
    """
    first = [layers.get(layer.name) or layers[f"{layer.name}.{FIRST}"] for layer in network.layers]
    ranks = np.array(
        [0 if layer.name in layers else len(layers[f"{layer.name}.{FIRST}"].values) for layer in network.layers]
    )
    bits = np.array([layer.bits for layer in first])
    ranges = np.array([32 if layer.input_range is None else layer.input_range.bits for layer in first])
    counted = network.costs.resources(kept_channels(network, plan), bits, ranges, rank=ranks)
    return {name: int(amount) for name, amount in counted.items()} | {"size": size}


def kept_channels(network: Network, plan: Plan) -> np.ndarray:
    """(G,) int64 channels that a plan leaves in each of the network's G groups."""
    if plan.granularity != "channel":
        return network.costs.group_width
    return np.array([round(group.width * (1 - plan.labels[group.owner].sparsity)) for group in network.groups], int)


def check_layers(network: Network, plan: Plan, layers: Mapping[str, LayerWeights]) -> list[Check]:
    """Finished layers compared with their labels: shapes, different values in a row, zeros, rounding of inputs.

    Args:
        network: trace of the original.
        plan: labels that the network was made by.
        layers: finished layers by name; two for each label of low rank.

    Returns:
        The checks `channels` and `levels`, and `sparsity` where single weights are removed.
    """
    fan_in, out = network.costs.widths(kept_channels(network, plan))
    shapes, levels, zeros, labels = [], [], [], plan.modules()
    for layer, columns, rows in zip(network.layers, fan_in, out, strict=True):
        rank, name = plan.labels[layer.name].rank, layer.name
        wanted_shapes = {f"{name}.{FIRST}": (rank, columns), f"{name}.{SECOND}": (rows, rank)}
        for part, wanted_shape in (wanted_shapes if rank else {name: (rows, columns)}).items():
            shape = (len(layers[part].values), math.prod(layers[part].values.shape[1:]))
            if shape != wanted_shape:
                shapes.append(f"{part} has {_by(shape)} weights, the plan says {_by(wanted_shape)}")
            levels += [f"{part} {fault}" for fault in _level_faults(layers[part], labels[part])]
        if plan.granularity != "channel":
            found, label = layers[name], plan.labels[name]
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


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _level_faults(layer: LayerWeights, label: Label) -> list[str]:
    """What is wrong with the bits of a layer's weight and input, as ends of a sentence that begins with its name."""
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
    """The largest number of different values in one row of a layer's weight; 2^bits are allowed.

    With 1 bit, codes are -1 and 1, and a sparse row has zeros besides, which do not count.
    """
    rows = layer.weight().flatten(1)
    return max((len(row.unique()) - (layer.sparsity > 0 and layer.bits == 1) for row in rows), default=0)


def check_budget(limits: Mapping[str, int], resources: Mapping[str, int]) -> list[Check]:
    """The check `budget`: spent resources against their limits; no check where there is no limit.

    Args:
        limits: upper bounds by resource.
        resources: resources of the finished network by name.
    """
    if not limits:
        return []
    spent = ", ".join(f"{shown_name(name)} {resources[name]:,} of {limit:,}" for name, limit in limits.items())
    return [Check("budget", is_within(resources, limits), spent)]


def check_latency(limit: TimeLimit, timing: PairedTiming, timed_on: Machine | None = None) -> Check:
    """The check `latency`: the upper bound of the file's time against its limit.

    On another machine than the one where the limit was kept, the time is reported and nothing is claimed.

    Args:
        limit: limit of time.
        timing: times of the original and of the file.
        timed_on: machine on which the limit was kept. Default: this one.
    """
    detail = limit.described(timing)
    if timed_on is not None and timed_on != timing.machine:
        return Check("latency", True, f"{detail}; not claimed on this machine ({timing.machine}), but on {timed_on}")
    return Check("latency", limit.is_met(timing), detail)


def check_agreement(outcome: RuntimeOutcome) -> Check:
    """The check `agreement`: the file's answers are PyTorch's, or its outputs are so close that only near ties flip.

    It passes where at least 99.5 % of the top-1 answers are the same, or where outputs differ by at most 5 % of their
    spread; numbers and vectors have no answers, so that the second counts alone. It also passes where the file is as
    close to the original as PyTorch is (a divergence of at most 1.1 times) and differs from PyTorch by at most half of
    what compression changed: in a deep network of narrow layers, a few 8-bit roundings that fall the other way grow to
    that, while a file that computes something else is farther away.
    """
    spread = f"differ by {100 * outcome.difference:.2g} % of their spread"
    detail = (
        f"{outcome.runtime} agrees with PyTorch on {100 * outcome.agreement:.2f} % of the samples, outputs {spread}; "
        f"one of the two must hold: at least {100 * AGREEMENT:.1f} %, at most {100 * CLOSENESS:.0f} %"
    )
    if math.isnan(outcome.agreement):
        detail = f"outputs in {outcome.runtime} and in PyTorch {spread}, at most {100 * CLOSENESS:.0f} %"
    if outcome.agreement >= AGREEMENT or outcome.difference <= CLOSENESS:
        return Check("agreement", True, detail)
    as_close = outcome.closeness.kl <= _AS_CLOSE * outcome.pytorch_kl and outcome.of_compression <= OF_COMPRESSION
    return Check(
        "agreement",
        as_close,
        f"{detail}; or both: {outcome.of_compression:.2f} of what compression changed, at most {OF_COMPRESSION}, and a "
        f"divergence {outcome.closeness.kl:.4f} from the original, at most {_AS_CLOSE} times {outcome.pytorch_kl:.4f}",
    )


def _relative_difference(expected: Tensor, found: Tensor) -> float:
    """Root mean square of `found - expected`, in standard deviations of `expected` over samples; both (N, …)."""
    spread = (expected - expected.mean(0)).square().mean().sqrt().clamp(min=1e-12)
    return float((expected - found).square().mean().sqrt() / spread)
