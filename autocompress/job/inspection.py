"""What `inspect` says of every layer: what it costs, what may be labelled, and how much each label should hurt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from autocompress.config import InspectOptions
from autocompress.errors import InputError
from autocompress.network import Layer, Network
from autocompress_envs.problem import LayerNumbers, Problem

SHOWN_SPARSITIES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class LayerReport:
    """One layer.

    Attributes:
        name: as in `named_modules()`.
        kind: `conv`, `depthwise` or `linear`.
        weight_shape: shape of the PyTorch weight.
        input_shape: shape of the layer's input for one sample.
        output_shape: shape of the layer's output for one sample.
        parameters: number of weights, biases left out.
        macs: multiply-accumulates for one sample.
        group: index of the channel group that its output belongs to, or None.
        labels: kinds of label that the layer may get, such as `sparsity, bits`; `as NAME` where it has the bits of
            another layer, which runtimes run together with it.
        reason: why no sparsity may be chosen here; empty where one may.
        bit_errors: expected loss (nats of KL divergence a sample) by weight bits, most bits first, summed over the
            layers that have the same; empty where the layer has the bits of another.
        sparsity_errors: the same by sparsity, at the most bits on offer, summed over all that read the channels.
    """

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    group: int | None
    labels: str
    reason: str
    bit_errors: Mapping[int, float]
    sparsity_errors: Mapping[float, float]


def check_plot(options: InspectOptions) -> None:
    """Raises InputError where a plot is asked for that can't be made: now rather than after all measurements."""
    if options.plot is None:
        return
    if not options.measure:
        raise InputError("`plot` shows labels that were measured, got none of them; pass --measure 100.")
    if options.plot.is_dir() or not options.plot.parent.is_dir():
        raise InputError(f"`plot` must be a file in an existing folder, got {options.plot}.")


def report_layers(network: Network, problem: Problem) -> tuple[LayerReport, ...]:
    """One report a layer, in network order."""
    return tuple(_report(network, problem, index) for index in range(len(network.layers)))


def _report(network: Network, problem: Problem, index: int) -> LayerReport:
    layer, numbers = network.layers[index], problem.layers[index]
    tied_to = layer.tied_to if problem.costs.granularity == "channel" else None
    may_prune, own_bits = len(numbers.sparsities) > 1, "bits" if tied_to is None else f"as {tied_to}"
    return LayerReport(
        layer.name,
        layer.kind,
        layer.weight_shape,
        layer.input_shape,
        layer.output_shape,
        layer.parameters,
        layer.macs,
        layer.writes,
        (f"sparsity, {own_bits}" if may_prune else own_bits) + _ranks(numbers if tied_to is None else None),
        "" if may_prune else _reason(network, layer),
        bit_errors(numbers) if tied_to is None else {},
        sparsity_errors(problem, index),
    )


def _reason(network: Network, layer: Layer) -> str:
    if layer.writes is None:
        return layer.fixed_reason
    owner = network.groups[layer.writes].owner
    return "no sparsity on offer" if owner == layer.name else f"follows {owner}"


def _ranks(numbers: LayerNumbers | None) -> str:
    """Ranks on offer, each with its expected loss at the most bits, as the end of a list of labels."""
    errors = {} if numbers is None else rank_errors(numbers)
    return "".join(f", rank {rank} ({error:.2g})" for rank, error in errors.items())


def bit_errors(numbers: LayerNumbers) -> dict[int, float]:
    """Expected loss by weight bits, with no channel removed, of full rank and with the most activation bits."""
    whole = np.flatnonzero(numbers.weight_ranks == 0)[::-1]
    return {int(numbers.weight_bits[each]): float(numbers.errors[0, each, -1]) for each in whole}


def rank_errors(numbers: LayerNumbers) -> dict[int, float]:
    """Expected loss by rank of two factors, with no channel removed and at the most bits; lowest rank first."""
    low = np.flatnonzero(numbers.weight_ranks > 0)
    return {int(numbers.weight_ranks[each]): float(numbers.errors[0, each, -1]) for each in low}  # bits ascend


def sparsity_errors(problem: Problem, index: int) -> dict[float, float]:
    """Expected loss by sparsity of layer `index`, for the sparsities on offer next to 25, 50 and 75 %, and for 100 %.

    It is what removal adds, at the most bits on offer, summed over all layers that read what is removed.
    """
    offered = problem.layers[index].sparsities
    if len(offered) < 2:
        return {}
    added = sum((_added_by(index, reader) for reader in problem.layers), np.zeros(len(offered)))
    shown = {1 + int(np.abs(offered[1:] - wanted).argmin()) for wanted in SHOWN_SPARSITIES}
    shown |= set(np.flatnonzero(offered == 1).tolist())
    return {float(offered[level]): float(added[level]) for level in sorted(shown)}


def _added_by(owner: int, reader: LayerNumbers) -> np.ndarray:
    """(S,) loss that the owner's sparsities add in one reader; a single 0 where it reads nothing of the owner's."""
    added = np.zeros(1)
    if reader.source == owner:
        added = reader.errors[:, -1, -1] - reader.errors[0, -1, -1]
    for source, errors in reader.extra_sources:
        if source == owner:
            added = added + errors
    return added
