"""The form in which networks are run here: tensors by position in, one tensor of logits (N, classes) out.

A network may want its tensors by name and give them in a container, as those of Hugging Face do:

    model(input_ids=..., attention_mask=...).logits

`interfaced` gives the same network in the form that the package runs: a copy of the module alone, whose class is one
of the same name that inherits from the original's and has another `forward`; the modules inside are shared, so that
layers keep their names and weights. (PyTorch's parametrizations change a module's class in the same way.) `plain`
undoes it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from autocompress.errors import InputError
from autocompress.samples import Inputs, Samples

_LOGITS = "logits"  # name of the output that counts where there are several


class Interfaced:
    """Mixed into the class of a network: tensors by position in, the logits out."""

    _names: ClassVar[tuple[str, ...]]
    _order: ClassVar[tuple[str, ...] | None]  # names in the order in which it takes them; None: by name
    _plain: ClassVar[type[nn.Module]]

    def forward(self, *tensors: Tensor) -> Tensor:
        """The logits for tensors in the order of `Samples`."""
        run: Any = self._plain.forward
        given = dict(zip(self._names, tensors, strict=True))
        return logits_of(
            run(self, **given) if self._order is None else run(self, *(given[name] for name in self._order))
        )


def interfaced(model: nn.Module, inputs: Inputs) -> nn.Module:
    """The network in the form that the package runs; itself where it has that form already.

    Args:
        model: network, which is not changed.
        inputs: samples of what it takes.
    """
    if isinstance(model, Interfaced) or not isinstance(inputs, Samples):
        return model
    kind = type(model)
    wrapped = copy.copy(model)
    form = {"_names": inputs.names, "_order": _order(model, inputs), "_plain": kind, "__module__": kind.__module__}
    wrapped.__class__ = type(kind.__name__, (Interfaced, kind), form)
    return wrapped


def _order(model: nn.Module, inputs: Samples) -> tuple[str, ...] | None:
    """The names of the tensors in the order in which a network takes them; None where it takes them by name.

    A network that knows the names of its inputs, as one from an ONNX file does, takes them in their order.
    """
    own: Sequence[str] = getattr(model, "input_names", ())
    if inputs.by_name and set(own) == set(inputs.names):
        return tuple(own)
    return None if inputs.by_name else inputs.names


def plain(model: nn.Module) -> nn.Module:
    """The network with the `forward` that it was written with."""
    if not isinstance(model, Interfaced):
        return model
    original: nn.Module = copy.copy(model)
    original.__class__ = model._plain
    return original


def logits_of(result: Any) -> Tensor:
    """The tensor that counts of what a network gives: the only one, or the one that is called `logits`.

    Raises:
        InputError: there is none, or several and none of them is called so.
    """
    if isinstance(result, Tensor):
        return result
    named = result if isinstance(result, Mapping) else vars(result) if hasattr(result, _LOGITS) else {}
    if isinstance(named.get(_LOGITS), Tensor):
        found: Tensor = named[_LOGITS]
        return found
    tensors = [leaf for leaf in pytree.tree_leaves(dict(named) or result) if isinstance(leaf, Tensor)]
    if len(tensors) == 1:
        return tensors[0]
    got = ", ".join(map(str, named)) if named else type(result).__name__
    raise InputError(
        f"`model` must give one tensor, or several of which one is called {_LOGITS}, got {len(tensors)} tensors "
        f"({got}); wrap it in a module that picks one."
    )
