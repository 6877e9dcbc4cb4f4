"""Modules whose forward pass runs with some functions of PyTorch replaced.

A module's class becomes one of the same name that inherits from its own, as in `network.interface`. It is a class of
this file, by which it is told from the original's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

Override = Callable[[nn.Module, Callable[..., Any], tuple[Any, ...]], Any]
"""From the module that runs, a function and its arguments to the result; `NotImplemented` lets the function run."""


def overridden(kind: Any, override: Override) -> type[nn.Module]:
    """A subclass of a module's class, inside of whose forward pass functions of PyTorch are overridden.

    Args:
        kind: class of the module.
        override: gives the results of the functions that are replaced.
    """

    @wraps(kind.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _Overriding(self, override):
            return kind.forward(self, *args, **kwargs)

    return type(kind.__name__, (kind,), {"__module__": __name__, "forward": forward})


class _Overriding(TorchFunctionMode):
    def __init__(self, module: nn.Module, override: Override) -> None:
        super().__init__()
        self._module, self._override = module, override

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        found = self._override(self._module, func, args)
        return func(*args, **(kwargs or {})) if found is NotImplemented else found
