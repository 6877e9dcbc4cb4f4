"""Which channel groups are whole residual branches: without them, only terms of sums are missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autocompress.network.structure import Group, Layer
from autocompress.network.tape import Call, Tape

_SUMS = frozenset({"aten.add", "aten.add_"})


def with_branches(tape: Tape, layers: Sequence[Layer], groups: Sequence[Group]) -> tuple[Group, ...]:
    """The groups, each marked by whether it is a branch (`Group.is_branch`): alone, and with all branches before it.

    So of two branches that are added to nothing but each other, the second one stays.
    """
    branches: list[Group] = []
    for group in groups:
        if all(_can_go(tape, layers, gone) for gone in ([group], [*branches, group])):
            branches.append(group)
    owners = {branch.owner for branch in branches}
    return tuple(replace(group, is_branch=group.owner in owners) for group in groups)


def _can_go(tape: Tape, layers: Sequence[Layer], groups: Sequence[Group]) -> bool:
    """Follow what is left once the groups are gone: their readers put out constants, which may only be added.

    Groups whose channels are several rows or input channels of a member, or that share a reader with another group, are
    taken for no branches.
    """
    readers = {layer.name: layer for layer in layers for group in groups if layer.name in group.consumers}
    if not all(_is_simple(group, readers) for group in groups):
        return False
    members = readers.keys() | {name for group in groups for name in group.producers}
    norms = {layer.norm for layer in readers.values() if layer.norm is not None}
    constants: set[int] = set()  # values that no longer depend on the input
    terms: dict[int, Layer] = {}  # of these, what the readers put out, norms included
    for call in tape.calls:
        fixed = constants.intersection(call.reads)
        if len(fixed) > 1 and fixed <= terms.keys() and fixed == set(call.reads):
            return False  # a sum of nothing but such constants: no operand is left to say how large it is
        if call.module in members or (fixed and fixed == set(call.reads)):
            constants.update(call.writes)
            source = readers.get(call.module) or next((terms[value] for value in fixed if value in terms), None)
            if source is not None and (call.module in readers or call.module in norms or _is_whole(call, source)):
                terms.update(dict.fromkeys(call.writes, source))
        elif fixed and not (fixed <= terms.keys() and _adds(tape, call)):
            return False
    return not constants.intersection(tape.outputs)


def _is_simple(group: Group, readers: dict[str, Layer]) -> bool:
    """Whether a channel of the group is one row or one input channel of each member, and no reader has others."""
    own = [readers[name] for name in group.consumers]
    one_input = all(
        layer.fan_in == layer.weight_shape[1] * len(columns[0])
        for layer, columns in zip(own, group.consumers.values(), strict=True)
    )
    one_row = all(rows.shape[1] == 1 for rows in group.producers.values())
    return not group.norms and one_input and one_row and all(len(layer.reads) == 1 for layer in own)


def _is_whole(call: Call, source: Layer) -> bool:
    """Whether the call is part of the source itself: a linear layer on every token is a product between two views."""
    return call.kind == "view" and source.kind == "linear"


def _adds(tape: Tape, call: Call) -> bool:
    """Whether the call adds tensors of the same shape."""
    return call.operator in _SUMS and len({tape.values[each].shape for each in (*call.reads, *call.writes)}) == 1
