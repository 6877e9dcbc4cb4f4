"""CUDA graphs: a function of many small steps, recorded once for each shape of its tensors and then started as one.

A GPU rounds a column faster than Python can ask for it: a sweep over a thousand columns is ten thousand such requests.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

_RECORDED = 64  # graphs that are kept; each holds the memory of its tensors


def graphed(function: Callable[..., Result]) -> Callable[..., Result]:
    """The same function of tensors on one CUDA device, started as a graph.

    Graphs share their tensors: a result is valid until the next call, and only one thread may call.

    Args:
        function: function of tensors and None that only calls operators on them, the same ones for all values. It may
            change its tensors, which are copies then.
    """

    def call(*args: Tensor | None) -> Result:
        shapes = tuple(None if each is None else (tuple(each.shape), each.dtype, each.device) for each in args)
        recorded: _Graph[Result] = _recorded(function, shapes)
        return recorded(*args)

    return call


@lru_cache(maxsize=_RECORDED)
def _recorded(function: Callable[..., Any], shapes: tuple[Any, ...]) -> _Graph[Any]:
    return _Graph(function, shapes)


class _Graph(Generic[Result]):
    """A function's recording for tensors of some shapes."""

    def __init__(self, function: Callable[..., Result], shapes: tuple[Any, ...]) -> None:
        self._args = [None if each is None else torch.ones(each[0], dtype=each[1], device=each[2]) for each in shapes]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # once before the recording, so that libraries are loaded
            function(*self._args)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._result = function(*self._args)

    def __call__(self, *args: Tensor | None) -> Result:
        for own, given in zip(self._args, args, strict=True):
            if own is not None and given is not None:
                own.copy_(given)
        self._graph.replay()
        return self._result
