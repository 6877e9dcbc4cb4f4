"""Which channel groups are whole residual branches: without them, only terms of sums are missing."""

from __future__ import annotations

from dataclasses import replace

from autocompress.network.recording import Call, Recording
from autocompress.network.structure import Group, Layer

_SUMS = frozenset({"aten.add", "aten.add_"})


def with_branches(recording: Recording, layers: tuple[Layer, ...], groups: tuple[Group, ...]) -> tuple[Group, ...]:
    """The groups, each marked by whether it is a branch (`Group.is_branch`)."""
    return tuple(replace(group, is_branch=_is_branch(recording, layers, group)) for group in groups)


def _is_branch(recording: Recording, layers: tuple[Layer, ...], group: Group) -> bool:
    """Follow what is left once the group is gone: its readers put out constants, which may only be added to the rest.

    Groups whose channels are several rows or input channels of a member, or that share a reader with another group, are
    taken for no branches.
    """
    readers = [layer for layer in layers if layer.name in group.consumers]
    alone = all(len(layer.reads) == 1 and _is_one_input(layer, group) for layer in readers)
    if group.norms or not alone or any(rows.shape[1] != 1 for rows in group.producers.values()):
        return False
    norms = {layer.norm for layer in readers if layer.norm is not None}
    constants: set[int] = set()  # values that no longer depend on the input
    terms: set[int] = set()  # of these, the readers' own outputs
    for call in recording.calls:
        fixed = constants.intersection(call.reads)
        if call.kind == "layer" and (call.module in group.consumers or call.module in group.producers):
            constants.update(call.writes)
            terms.update(call.writes if call.module in group.consumers else ())
        elif fixed and fixed == set(call.reads):
            constants.update(call.writes)
            terms.update(call.writes if call.module in norms and fixed <= terms else ())
        elif fixed and not (fixed <= terms and _adds(recording, call)):
            return False
    return not constants.intersection(recording.outputs)


def _is_one_input(layer: Layer, group: Group) -> bool:
    """Whether a channel of the group is one input channel of the layer."""
    return layer.fan_in == layer.weight_shape[1] * len(group.consumers[layer.name][0])


def _adds(recording: Recording, call: Call) -> bool:
    """Whether the call adds tensors of the same shape."""
    return call.operator in _SUMS and len({recording.values[each].shape for each in (*call.reads, *call.writes)}) == 1
