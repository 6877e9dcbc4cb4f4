"""The exporter's table of translations, made once in a process.

torch.onnx.export parses the source of all its translations at every call. That takes longer than the export of a small
network, and one job exports its network from five times up to forty, with a budget of time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


@contextmanager
def kept_translations() -> Iterator[None]:
    """While this is open, torch.onnx.export takes the table that the first export of the process made.

    The table lies behind a private name of PyTorch. Where a version has another name for it, exports only take longer.
    """
    registry = _registry()
    if registry is None:
        yield
        return
    make = registry.from_torchlib  # bound to the class
    made = registry.__dict__["from_torchlib"]
    registry.from_torchlib = staticmethod(lambda opset_version: _copied(_table(make, opset_version)))
    try:
        yield
    finally:
        registry.from_torchlib = made


def _registry() -> Any:
    """The class that builds the table; None where this version of PyTorch does not have it."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:
        return None
    return ONNXRegistry if "from_torchlib" in ONNXRegistry.__dict__ else None


@cache
def _table(make: Callable[..., Any], opset_version: int) -> Any:
    return make(opset_version=opset_version)


def _copied(table: Any) -> Any:
    """A table of its own for one export, which adds its translations of our operators."""
    copied = copy.copy(table)
    copied.functions = {name: list(found) for name, found in table.functions.items()}
    return copied
