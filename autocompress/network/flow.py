"""The flow of values between layers, read off a tape: who feeds whom, and which memory is alive when."""

from __future__ import annotations

from collections.abc import Iterable

from autocompress.network.tape import Tape


def layers_behind(tape: Tape, values: Iterable[int]) -> set[str]:
    """Names of the layers whose results reach `values` without passing another layer.

    Args:
        tape: operators of one forward pass.
        values: indices of values.
    """
    reached: dict[int, set[str]] = {}  # by value
    for call in tape.calls:
        sources = {call.module} if call.kind == "layer" else _union(reached, call.reads)
        for value in call.writes:
            reached[value] = sources
    return _union(reached, values)


def layers_ahead(tape: Tape, alias: list[int]) -> dict[int, set[str]]:
    """By storage, the names of the layers that read it, directly or through operators that are no layers.

    Args:
        tape: operators of one forward pass.
        alias: storage that each storage is counted as (`folded_storages`).
    """
    ahead: dict[int, set[str]] = {}
    for call in reversed(tape.calls):
        if call.kind == "layer":
            readers = {call.module}
        else:
            readers = _union(ahead, (alias[s] for s in tape.storages(call.writes)))
        for storage in tape.storages(call.reads):
            ahead[alias[storage]] = ahead.get(alias[storage], set()) | readers
    return ahead


def folded_storages(tape: Tape, folded: Iterable[str]) -> list[int]:
    """For every storage the storage that it is counted as: a folded norm writes where its layer wrote.

    Args:
        tape: operators of one forward pass.
        folded: names of the norms that are folded into layers.
    """
    alias = list(range(len(tape.storage_elements)))
    names = set(folded)
    for call in tape.calls:
        if call.kind == "norm" and call.module in names:
            (source,) = tape.storages(call.reads)
            (target,) = tape.storages(call.writes)
            alias[target] = alias[source]
    return alias


def moments(tape: Tape, alias: list[int], folded: Iterable[str]) -> list[set[int]]:
    """The storages that are alive at every moment of the forward pass, that is during every operator.

    A storage lives from the operator that writes it first to the last that reads it; what the network returns
    lives to the end. A result that nobody reads (such as the indices of a pooling) does not count.

    Args:
        tape: operators of one forward pass.
        alias: storage that each storage is counted as (`folded_storages`).
        folded: names of the norms that are folded into layers, and so no operators.
    """
    names = set(folded)
    steps = [call for call in tape.calls if call.kind != "view" and call.module not in names]
    touched = [
        (
            {alias[s] for s in tape.storages(call.reads)},
            {alias[s] for s in tape.storages(call.writes)},
        )
        for call in steps
    ]
    returned = {alias[s] for s in tape.storages(tape.outputs)}
    first = {alias[storage]: 0 for storage in tape.storages(tape.inputs)}
    last = dict.fromkeys(returned, len(steps))
    for moment, (read, written) in enumerate(touched):
        for storage in written:
            first.setdefault(storage, moment)
        for storage in read - returned:
            last[storage] = moment
    lives = [(storage, begin, last[storage]) for storage, begin in first.items() if storage in last]
    return [{storage for storage, begin, end in lives if begin <= moment <= end} for moment in range(len(steps))]


def _union(sets: dict[int, set[str]], keys: Iterable[int]) -> set[str]:
    """The union of the sets at the keys; a key without one counts as empty."""
    return set().union(*(sets.get(key, set()) for key in keys))
