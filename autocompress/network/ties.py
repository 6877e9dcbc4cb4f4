"""Ties: layers that get one format, as runtimes run them as one layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from autocompress.network.heads import Block
from autocompress.network.structure import Group, Layer
from autocompress.network.tape import Tape


def with_ties(
    tape: Tape, layers: Sequence[Layer], groups: Sequence[Group], blocks: Iterable[Block]
) -> tuple[Layer, ...]:
    """The layers, each of a tie but the first with the name of the first (`Layer.tied_to`).

    Tied are linear layers of one block that read the same tensor: queries, keys and values of self-attention, and the
    two halves of a gated feed-forward block. Their weights, one below the other, are one weight; so its bytes are the
    sum of theirs only where each of them ends on a whole byte at any number of bits. Where that is not so, as in
    layers of odd sizes, they are not tied.

    Args:
        tape: operators of one forward pass.
        layers: layers of the network.
        groups: channel groups.
        blocks: blocks of the network.
    """
    by_name = {layer.name: layer for layer in layers}
    inputs = {call.module: tape.values[call.reads[0]].storage for call in tape.calls if call.kind == "layer"}
    leaders: dict[tuple[object, ...], str] = {}
    tied: dict[str, str] = {}
    for number, block in enumerate(blocks):
        for layer in (by_name[name] for name in block.members):
            if layer.kind != "linear" or not _ends_on_bytes(layer, groups):
                continue
            form = (number, inputs[layer.name], layer.positions, layer.has_bias, layer.reads)
            leader = leaders.setdefault(form, layer.name)
            if leader != layer.name:
                tied[layer.name] = leader
    return tuple(replace(layer, tied_to=tied.get(layer.name)) for layer in layers)


def _ends_on_bytes(layer: Layer, groups: Sequence[Group]) -> bool:
    """Whether rows or columns are multiples of 8, whatever channels are removed."""
    rows = 8 if layer.writes is None else groups[layer.writes].producers[layer.name].shape[1]
    columns = [groups[read].consumers[layer.name].shape[1] for read in layer.reads]
    whole_columns = layer.fan_in % 8 == 0 and all(size % 8 == 0 for size in columns)
    return whole_columns or (layer.rows % 8 == 0 and rows % 8 == 0)
