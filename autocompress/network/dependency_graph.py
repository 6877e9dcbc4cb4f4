"""torch-pruning, imported without what it does not need, and kept from working on one group for ever."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

MOST_STEPS = 4_000_000  # to find one group: seconds, and at most half a gigabyte of indices; 0.8 million were seen


class TooManySteps(Exception):
    """torch-pruning takes more steps to find a group than any graph needs that it reads right."""


def torch_pruning() -> Any:
    """The package torch-pruning, imported when the first graph is read."""
    with _without_timm():
        return importlib.import_module("torch_pruning")


@contextmanager
def _without_timm() -> Iterator[None]:
    """Imports inside find no timm, unless it is imported already; `sys.modules` is as before afterwards.

    torch-pruning imports timm where it is installed, and with it torchvision and torch._dynamo: two seconds,
    only for its counter of operations, which is not used here. The dependency graph knows nothing of timm.
    """
    if "timm" in sys.modules:
        yield
        return
    sys.modules["timm"] = None  # type: ignore[assignment]  # `import timm` then raises ModuleNotFoundError
    try:
        yield
    finally:
        del sys.modules["timm"]


@contextmanager
def bounded_search(most: int = MOST_STEPS) -> Iterator[None]:
    """Inside, torch-pruning may take so many steps to find a group, and then raises `TooManySteps`.

    It takes reshapes for flattened channels where the numbers look like it. In a windowed attention each of them makes
    several indices of one, which the next multiplies again: hours, and all memory. A step is an index that is made
    or passed on, or a member of the group that a new one is compared with. So the bound does not depend on the
    machine, and neither do the groups.

    Args:
        most: number of steps.
    """
    package = torch_pruning()
    members, flattening = package.dependency.Group, package.dependency.index_mapping._FlattenIndexMapping
    add, flatten = members.add_dep, flattening.__call__
    steps = 0

    def take(more: int) -> None:
        nonlocal steps
        steps += more
        if steps > most:
            raise TooManySteps(f"it ties more than {most:,} channels to one layer's, which are misread reshapes")

    def counted_add(group: Any, dep: Any, idxs: list[Any]) -> Any:
        take(len(idxs) + len(group))
        return add(group, dep, idxs)

    def counted_flatten(mapping: Any, idxs: list[Any]) -> Any:
        take(0 if mapping.reverse else len(idxs) * mapping._stride)  # before they are made
        return flatten(mapping, idxs)

    replaced: list[tuple[Any, str, Callable[..., Any]]] = [
        (members, "add_dep", counted_add),
        (flattening, "__call__", counted_flatten),
    ]
    for owner, name, function in replaced:
        setattr(owner, name, function)
    try:
        yield
    finally:
        members.add_dep, flattening.__call__ = add, flatten
