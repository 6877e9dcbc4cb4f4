"""Residual branches: channel groups without which only terms of sums are missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autocompress.network.structure import Group, Layer
from autocompress.network.tape import Call, Tape

_SUMS = frozenset({"aten.add", "aten.add_"})


def with_branches(tape: Tape, layers: Sequence[Layer], groups: Sequence[Group]) -> tuple[Group, ...]:
    """The groups, each marked by whether it is a branch (`Group.is_branch`).

    A group is one if the network can do without it, alone and together with all branches before it. So of two
    branches that are added to nothing but each other, the second one stays.

    Args:
        tape: operators of one forward pass.
        layers: layers of the network.
        groups: channel groups, in network order.
    """
    branches: list[Group] = []
    for group in groups:
        if all(_can_go(tape, layers, gone) for gone in ([group], [*branches, group])):
            branches.append(group)
    owners = {branch.owner for branch in branches}
    return tuple(replace(group, is_branch=group.owner in owners) for group in groups)


def _can_go(tape: Tape, layers: Sequence[Layer], groups: Sequence[Group]) -> bool:
    """Whether the network can do without all channels of the groups.

    Without its inputs, a layer that reads a group puts out a constant, its bias. The network can do without
    the group where such constants are only ever added to something that still depends on the input; so they
    are followed through the operators of the tape. What is computed of the group's own channels, whatever else it
    is computed of (as the scores of attention are of its mask), is gone with them.

    Groups with norms of their own, and those whose readers read other channels, too, are taken for no branches.
    """
    readers = {layer.name: layer for layer in layers for group in groups if layer.name in group.consumers}
    if not all(_is_simple(group, readers) for group in groups):
        return False
    producers = {name for group in groups for name in group.producers}
    norms = {layer.norm for layer in readers.values() if layer.norm is not None}
    gone: set[int] = set()  # values that have no channels left
    constants: set[int] = set()  # other values that no longer depend on the input
    terms: dict[int, Layer] = {}  # those constants that are a reader's own result, norm included, with the reader
    for call in tape.calls:
        if call.module not in readers and (call.module in producers or gone.intersection(call.reads)):
            gone.update(call.writes)
            continue
        fixed = constants.intersection(call.reads)
        if len(fixed) > 1 and fixed <= terms.keys() and fixed == set(call.reads):
            return False  # a sum of nothing but such constants: no operand is left to say how large it is
        if call.module in readers or (fixed and fixed == set(call.reads)):
            constants.update(call.writes)
            source = readers.get(call.module) or next((terms[value] for value in fixed if value in terms), None)
            if source is not None and (call.module in readers or call.module in norms or _is_whole(call, source)):
                terms.update(dict.fromkeys(call.writes, source))
        elif fixed and not (fixed <= terms.keys() and _adds(tape, call)):
            return False
    return not (constants | gone).intersection(tape.outputs)


def _is_simple(group: Group, readers: dict[str, Layer]) -> bool:
    """Whether the group has no norms of its own, and its readers read nothing else."""
    own = [readers[name].fan_in == columns.size for name, columns in group.consumers.items()]
    return not group.norms and all(own)


def _is_whole(call: Call, source: Layer) -> bool:
    """Whether the call is part of the layer itself: a linear layer on tokens is a product between views."""
    return call.kind == "view" and source.has_channels_last


def _adds(tape: Tape, call: Call) -> bool:
    """Whether the call adds tensors of the same shape."""
    return call.operator in _SUMS and len({tape.values[each].shape for each in (*call.reads, *call.writes)}) == 1
