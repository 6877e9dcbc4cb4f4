"""Heads of attention and widths of feed-forward blocks as channel groups, read off the tape.

torch-pruning follows single channels, so it finds no heads, and it can't read every graph. Here a block is a layer
that alone reads what some other layers write, whatever operators stand between:

    attention       out(heads(q(x), k(x), v(x)))        a head is some rows of q, k and v and some columns of `out`
    feed-forward    down(act(gate(x)) * up(x))          a channel is one row of `gate` and `up`, one column of `down`

Where products of activations stand between, as in attention, the number of heads is read off the shapes of what they
multiply, and off attributes such as `num_heads`. With grouped queries, a channel is one head of keys and values with
all queries that share it. One layer may hold q, k and v, head by head or one after the other.

None of this has to be right: several readings of a block are proposed, and one is offered only where a copy without
some of its heads computes what a masked copy does. A module that was written for a fixed number of heads may need its
own integers changed in that copy (`num_heads`, `all_head_size`); readings differ in those, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from autocompress.network.structure import Group, IntArray, Scaled
from autocompress.network.tape import BATCH, LAYER_TYPES, Call, Tape

_WIDTHS = ("head", "attn", "attention", "inner")  # parts of names of the width of all heads; others come last


@dataclass(frozen=True)
class Block:
    """Layers of which one alone reads all others.

    Attributes:
        members: names of the layers that one reads, in network order.
        has_heads: whether products of activations stand between, as in attention.
        readings: groups that it may be, the likeliest first; at most one is right, and there may be none.
    """

    members: tuple[str, ...]
    has_heads: bool
    readings: tuple[Group, ...]

    def form(self) -> tuple[Any, ...]:
        """What blocks that are written alike have in common: the reading of one then fits the others."""
        return tuple(
            (
                group.width,
                tuple(table.shape for table in (*group.producers.values(), *group.consumers.values())),
                tuple((scaled.name, scaled.per_channel) for scaled in group.scaled),
            )
            for group in self.readings
        )


@dataclass(frozen=True)
class _Reach:
    """What reaches a value without passing another layer: layers by name, and products of activations."""

    layers: frozenset[str] = frozenset()
    products: frozenset[int] = frozenset()  # indices of calls


def find_blocks(model: nn.Module, tape: Tape, barred: Iterable[str]) -> list[Block]:
    """The blocks of a network, in network order.

    Args:
        model: network that the tape is of.
        tape: operators of one forward pass.
        barred: names of layers that can lose neither rows nor columns.
    """
    reached = _reached(tape)
    calls = {call.module: call for call in tape.calls if call.kind == "layer"}
    behind = {name: _union(reached, call.reads) for name, call in calls.items()}
    readers: dict[str, set[str]] = {}
    for name, reach in behind.items():
        for layer in reach.layers:
            readers.setdefault(layer, set()).add(name)
    modules, closed = dict(model.named_modules()), set(barred)
    blocks = []
    for name, reach in behind.items():
        members = [layer for layer in calls if layer in reach.layers]
        alone = all(readers[layer] == {name} for layer in members)
        if members and alone and not closed & {*members} and _are_whole(modules, [*members, name]):
            readings = tuple(_readings(tape, modules, members, name, reach.products))
            blocks.append(Block(tuple(members), bool(reach.products), readings))
    order = list(calls)
    return sorted(blocks, key=lambda block: order.index(block.members[0]))


def _reached(tape: Tape) -> dict[int, _Reach]:
    """By value, what reaches it."""
    reached: dict[int, _Reach] = {}
    for index, call in enumerate(tape.calls):
        reach = _Reach(frozenset({call.module})) if call.kind == "layer" else _union(reached, call.reads)
        if call.kind == "fixed" and len(call.reads) > 1:
            reach = replace(reach, products=reach.products | {index})
        reached |= dict.fromkeys(call.writes, reach)
    return reached


def _union(reached: Mapping[int, _Reach], values: Iterable[int]) -> _Reach:
    parts = [reached[value] for value in values if value in reached]
    layers = frozenset[str]().union(*(part.layers for part in parts))
    return _Reach(layers, frozenset[int]().union(*(part.products for part in parts)))


def _are_whole(modules: Mapping[str, nn.Module], names: Iterable[str]) -> bool:
    """Whether they are layers each of whose rows reads every input channel, once."""
    layers: list[Any] = [modules[name] for name in names]
    return all(
        isinstance(layer, LAYER_TYPES)
        and getattr(layer, "groups", 1) == 1
        and all(size == 1 for size in layer.weight.shape[2:])
        for layer in layers
    )


def _readings(
    tape: Tape, modules: Mapping[str, Any], members: Sequence[str], reader: str, products: Iterable[int]
) -> Iterator[Group]:
    """The groups that the block may be: by number of heads, order of rows, and integers that change with it."""
    inner = int(modules[reader].weight.shape[1])
    rows = {name: int(modules[name].weight.shape[0]) for name in members}
    if not products:
        for producers in _layouts(rows, inner, inner):
            yield Group(members[0], inner, producers, {reader: np.arange(inner)[:, None]})
        return
    holders = _holders(modules, members, reader)
    for heads in _numbers_of_heads(tape, holders.values(), inner, products):
        width = _key_heads(rows, inner, heads)
        if width < 2:
            continue
        columns = np.arange(inner).reshape(width, -1)
        for producers in _layouts(rows, inner, width):
            for scaled in _scaled_integers(holders, width, heads, {inner, *rows.values()}):
                yield Group(members[0], width, producers, {reader: columns}, scaled=scaled)


def _numbers_of_heads(tape: Tape, holders: Iterable[nn.Module], inner: int, products: Iterable[int]) -> list[int]:
    """Possible numbers of heads, the likeliest first: those of shapes that attributes name, then each alone."""
    by_shape = {size for index in products for size in _leading(tape, tape.calls[index])}
    by_name = {value for holder in holders for name, value in _integers(holder).items() if _counts_heads(name)}
    found = [*by_shape & by_name], [*by_shape - by_name], [*by_name - by_shape]
    likely = [heads for part in found for heads in sorted(part, reverse=True)]  # several heads at once would do, too
    return [heads for heads in likely if 1 < heads <= inner and inner % heads == 0]


def _leading(tape: Tape, call: Call) -> Iterator[int]:
    """Sizes of the axes that heads may lie on in what a product multiplies: (N, heads, …) or (N * heads, …)."""
    for shape in (tape.values[value].shape for value in call.reads):
        if len(shape) == 4:
            yield shape[1]
        if len(shape) in (3, 4):
            yield shape[0] // BATCH


def _key_heads(rows: Mapping[str, int], inner: int, heads: int) -> int:
    """Heads of keys and values: fewer than those of queries where their layers have fewer rows."""
    size = inner // heads
    fewest = min(rows.values())
    if len(rows) == 1:  # q, k and v in one layer
        fewest = (fewest - inner) // 2 if inner < fewest < 3 * inner else inner
    found = fewest // size
    return found if found and fewest % size == 0 and heads % found == 0 else heads


def _layouts(rows: Mapping[str, int], inner: int, width: int) -> Iterator[dict[str, IntArray]]:
    """Tables of rows by layer: those of a layer that is several in one lie one after the other, or channel by channel.

    Args:
        rows: number of rows of every layer.
        inner: number of columns of the layer that reads them.
        width: number of channels.
    """
    by_layer = [{name: _parts(count, inner) for name, count in rows.items()}]
    for name, count in rows.items():
        if len(rows) == 1 and inner < count < 3 * inner and count % 2 == inner % 2:
            by_layer.append({name: [inner, (count - inner) // 2, (count - inner) // 2]})  # fewer keys than queries
    by_layer.append({name: [count] for name, count in rows.items()})
    for number, parts in enumerate(by_layer):
        fits = all(size % width == 0 for sizes in parts.values() for size in sizes)
        if fits and parts not in by_layer[:number]:
            yield {name: _one_after_the_other(sizes, width) for name, sizes in parts.items()}


def _parts(count: int, inner: int) -> list[int]:
    """Sizes of the equal layers that one of `count` rows may be made of."""
    return [count] if count % inner else [inner] * (count // inner)


def _one_after_the_other(sizes: Sequence[int], width: int) -> IntArray:
    starts = np.cumsum([0, *sizes[:-1]])
    return np.concatenate(
        [start + np.arange(size).reshape(width, -1) for start, size in zip(starts, sizes, strict=True)], axis=1
    )


def _holders(modules: Mapping[str, nn.Module], members: Sequence[str], reader: str) -> dict[str, nn.Module]:
    """The modules, by name, whose integers may count heads: those around the layers, and all inside if nothing else."""
    names = [*members, reader]
    around, inside = _common(names), _common([*members, members[0]])
    prefix = f"{around}." if around else ""
    within = {name: module for name, module in modules.items() if name == around or name.startswith(prefix)}
    others = {name for name, module in within.items() if isinstance(module, LAYER_TYPES)} - {*names}
    if others:
        within = {name: module for name, module in within.items() if f"{inside}.".startswith(f"{name}.") or not name}
    return {name: module for name, module in within.items() if not isinstance(module, LAYER_TYPES)}


def _common(names: Sequence[str]) -> str:
    """Name of the innermost module that all of the modules are in."""
    steps = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return ".".join(step[0] for step in itertools.takewhile(lambda step: len(set(step)) == 1, steps))


def _scaled_integers(
    holders: Mapping[str, nn.Module], width: int, heads: int, widths: set[int]
) -> list[tuple[Scaled, ...]]:
    """Sets of integers that may have to change with the number of heads; the smallest set first."""
    counts: list[Scaled] = []
    likely: list[Scaled] = []
    others: list[Scaled] = []
    for module, holder in holders.items():
        for name, value in _integers(holder).items():
            scaled = Scaled(module, name, value // width)
            if _counts_heads(name) and value in (width, heads):
                counts.append(scaled)
            elif value in widths and value % width == 0:
                (likely if any(part in name for part in _WIDTHS) else others).append(scaled)
    sets = [(), tuple(counts), (*counts, *likely), (*counts, *likely, *others)]
    return list(dict.fromkeys(sets))


def _counts_heads(name: str) -> bool:
    """Whether an attribute of that name may be a number of heads.

    >>> [_counts_heads(name) for name in ("num_heads", "n_head", "head_dim", "all_head_size")]
    [True, True, False, False]
    """
    return "head" in name and not any(part in name for part in ("dim", "size"))


def _integers(module: nn.Module) -> dict[str, int]:
    """A module's own integers by name."""
    return {name: value for name, value in vars(module).items() if type(value) is int}
