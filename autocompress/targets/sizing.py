"""Counting `size` on the target's file: what a plan's file will have besides its layers' codes, scales and biases.

The search needs the bytes of thousands of files and can't write them all. Codes, scales and biases have a closed form.
All else (graph, names, header, tensors of no layer) is measured on one file, the one that has the most of it:

    size(plan) = closed form(plan) + fixed,    fixed = bytes of that file - closed form of that file + slack
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, fx, nn

from autocompress.errors import ExportError
from autocompress.execute.compressed import Compressed, LayerWeights, from_menus, uncompressed, write_weights_
from autocompress.menus.low_rank import Format
from autocompress.menus.menus import Menus
from autocompress.network.structure import IntArray, Network
from autocompress.samples import Inputs
from autocompress.targets.graph.lowering import exported
from autocompress.targets.target import TARGETS, Target, lowered_for, roughly_ranged_file, target_file
from autocompress.version import __version__
from autocompress_envs.problem import Labeling, layer_resources

PACKED = "packed"  # name of the target whose file every run has
# Bytes by which labels may make a file longer, besides those for each layer (`Overhead.layer`): lengths, offsets, and
# the plan itself, which compresses worst where labels differ.
_SLACK = 64


def counted_on_file(target: Target, menus: Menus, folded: nn.Module, inputs: Inputs) -> tuple[Menus, int]:
    """The menus with `size` counted on the target's file, and the bytes of the original's float32 file.

    Files are really written: the original's, and those with the most overhead. In these no channel is gone, and every
    layer has its fewest bits, as it is and so that no two layers share a tensor (`_all_different`); where 16 or 32 bits
    are on offer, there are two more files at each of these, because floating-point weights are stored in another form.
    Where low ranks are on offer, all of these are written again with two factors in the place of every layer that may
    be cut.
    What such a file has at most besides the closed form is the overhead of every plan.

    Args:
        target: target whose file counts.
        menus: menus of the network.
        folded: original network with its norms folded.
        inputs: (n, …) samples of the input.

    Raises:
        ExportError: the target can't hold the network.
    """
    name = f"longest-{target.name}-{__version__}-torch{torch.__version__}"  # other versions write other files
    if target.name in TARGETS.from_outside():
        name += f"-{TARGETS.source_of(target.name)}"
    found = menus.store.tensors(name, lambda: {"bytes": torch.tensor(_measured(target, menus, folded, inputs))})
    overhead, original = found["bytes"].tolist()
    costs = menus.network.costs
    a_row, a_width = _grows(target, menus.network)
    slack = _SLACK + target.overhead.layer * len(menus.network.layers) + _ranks(target, menus)
    fixed = overhead + slack - int(costs.group_width @ (costs.fixed_bytes_coef + a_row))
    counted = replace(costs, fixed_bytes=fixed, fixed_bytes_coef=costs.fixed_bytes_coef + a_row + a_width)
    return replace(menus, network=replace(menus.network, costs=counted)), original


def _grows(target: Target, network: Network) -> tuple[IntArray, IntArray]:
    """(G,) bytes for a channel of each group: for its rows, and for what layers of equally many rows share.

    The measured file has the latter once for every number of rows that layers have. Another plan's groups may all
    differ in width, so each of them is counted on top.
    """
    tables = [[table.shape[1] for table in group.producers.values()] for group in network.groups]
    a_row = np.array([target.overhead.row * sum(rows) for rows in tables], dtype=np.int64)
    return a_row, np.array([target.overhead.width * sum({*rows}) for rows in tables], dtype=np.int64)


def _ranks(target: Target, menus: Menus) -> int:
    """What first factors, which are in no group, share with nobody, where their ranks all differ."""
    ranks = [max(each.rank for each in menus.formats(layer)) for layer in menus.network.layers]
    return target.overhead.width * sum(ranks)


def _measured(target: Target, menus: Menus, folded: nn.Module, inputs: Inputs) -> tuple[int, int]:
    """(most bytes of a file besides its closed form, bytes of the original's file)."""
    unchanged = uncompressed(folded, menus.network, menus.settings.granularity)
    graph = _graph(unchanged, inputs)
    lowered = lowered_for(target, unchanged, inputs, graph)
    original = target_file(target, unchanged, lowered, inputs)
    target_file(TARGETS[PACKED], unchanged, lowered, inputs)  # which every run has: what it can't hold is told now
    bits, form = menus.settings.weight_bits, _parameters(unchanged)
    overheads = []
    for width in [bits[0], *(width for width in bits[1:] if width >= 16)]:
        for is_low in (False, True) if menus.settings.ranks else (False,):
            made = from_menus(menus, _alike(menus, width, is_low), folded)
            for each in (made, _all_different(made)):
                file = roughly_ranged_file(target, each, inputs, graph if _parameters(each) == form else None)
                overheads.append(len(file) - _closed_form(each))
    return max(overheads), len(original)


def _graph(unchanged: Compressed, inputs: Inputs) -> fx.GraphModule | None:
    """The graph of a network, for others of its form; None where torch.export can't follow."""
    try:
        return exported(unchanged, inputs)
    except ExportError:
        return None  # whoever needs it says why


def _parameters(compressed: Compressed) -> list[tuple[str, torch.Size]]:
    """Names and shapes of the parameters, those that several modules share once: equal in networks of one form."""
    return [(name, parameter.shape) for name, parameter in compressed.model.named_parameters()]


def _alike(menus: Menus, bits: int, is_low: bool) -> Labeling:
    """The plan of these weight bits everywhere, nothing removed, and the highest low rank on offer if it `is_low`."""
    none = np.zeros(len(menus.network.layers), dtype=np.int64)
    formats = [menus.formats(layer) for layer in menus.network.layers]
    ranks = [max(each.rank for each in offered) if is_low else 0 for offered in formats]
    positions = [offered.index(Format(rank, bits)) for offered, rank in zip(formats, ranks, strict=True)]
    return Labeling(none, np.array(positions), none)


def _all_different(compressed: Compressed) -> Compressed:
    """The same network with weights that are in no layer those of another.

    Files hold equal tensors once: the biases of layers that never learned one are all zero, and tied layers of equal
    labels have the same codes. Another plan's labels make them differ, and its file longer than the closed form says.
    """
    model, layers = copy.deepcopy(compressed.model), dict(compressed.layers)
    for number, (name, layer) in enumerate(layers.items()):
        layers[name] = replace(
            layer,
            values=layer.values.flatten().roll(number).view_as(layer.values),
            scale=None if layer.scale is None else layer.scale * (1 + number / 1_024),
            bias=None if layer.bias is None else layer.bias + (number + 1) * _step(layer),
        )
        write_weights_(model, name, layers[name])
    return Compressed(model, layers, compressed.plan)


def _step(layer: LayerWeights) -> Tensor:
    """(rows,) what a bias may move by, whatever the layer's range: the step of integer kernels, or as little."""
    scale = torch.full((len(layer.values),), 1e-6) if layer.scale is None else layer.scale
    return scale if layer.input_range is None else scale * layer.input_range.scale


def _closed_form(compressed: Compressed) -> int:
    """Bytes of the codes, scales, biases and ranges of a network that has all its channels."""
    layers = compressed.layers.values()
    columns, out = np.array([(layer.values[0].numel(), len(layer.values)) for layer in layers]).T
    has_bias = np.array([layer.bias is not None for layer in layers])
    bits = np.array([layer.bits for layer in layers])
    ranges = np.array([32 if layer.input_range is None else 8 for layer in layers])
    return int(layer_resources(columns, out, np.array(1), has_bias, bits, ranges, 0.0, "channel")["size"].sum())
