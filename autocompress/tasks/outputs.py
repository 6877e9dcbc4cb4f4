"""Outputs of a network: those tensors of whatever it gives that count."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autocompress.errors import InputError

Outputs = tuple[Tensor, ...]
"""The outputs that count, each (N, …), in the order of their names."""

ONLY = "output"  # name of the only output of a network that gives a tensor
_MAIN = ("logits", "out")  # an output of one of these names counts alone, as with Hugging Face and torchvision


@dataclass(frozen=True)
class OutputForm:
    """Which outputs of a network count, and how they are compared.

    Attributes:
        names: names of the outputs that count.
        rows: function from (outputs, inputs), tuples of tensors, to logits (N, P, K); None: the only output holds the
            logits (N, classes) themselves.
    """

    names: tuple[str, ...] = (ONLY,)
    rows: Callable[[Outputs, tuple[Tensor, ...]], Tensor] | None = None


def named_outputs(result: Any, names: Sequence[str] = ()) -> dict[str, Tensor]:
    """The outputs that count of what a network gives, by name.

    That is the tensor itself; of a mapping or a container `logits` or `out`, else all tensors of floating-point
    numbers; of a tuple or a list all such tensors.

    >>> list(named_outputs({"loss": torch.zeros(()), "logits": torch.zeros(2, 3)}))
    ['logits']
    >>> list(named_outputs((torch.zeros(2, 3), torch.zeros(2, 4))))
    ['output_0', 'output_1']

    Args:
        result: what the network gave for N samples.
        names: names of the tensors of a tuple, where the network knows them; else they are numbered.

    Raises:
        InputError: no tensor of floating-point numbers is there.
    """
    found = {name: each for name, each in _tensors(result, names).items() if each.is_floating_point()}
    main = [name for name in _MAIN if name in found]
    if main:
        return {main[0]: found[main[0]]}
    if not found:
        raise InputError(
            f"`model` must give a tensor of floating-point numbers, or several, got {type(result).__name__}; wrap it "
            "in a module that returns such."
        )
    return found


def _tensors(result: Any, names: Sequence[str]) -> dict[str, Tensor]:
    if isinstance(result, Tensor):
        return {names[0] if len(names) == 1 else ONLY: result}
    if not isinstance(result, Mapping) and any(hasattr(result, name) for name in _MAIN):
        result = vars(result)
    if isinstance(result, Mapping):
        return {str(name): each for name, each in result.items() if isinstance(each, Tensor)}
    if not isinstance(result, tuple | list):
        return {}
    if len(names) != len(result):
        names = [f"{ONLY}_{number}" for number in range(len(result))] if len(result) > 1 else [ONLY]
    return {name: each for name, each in zip(names, result, strict=True) if isinstance(each, Tensor)}


def as_tuple(outputs: Tensor | Outputs | list[Tensor]) -> Outputs:
    """The outputs of a network that gives one tensor, or several in a tuple."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def single(outputs: Outputs) -> Tensor | Outputs:
    """The tensor itself where there is one output, else all of them; `as_tuple` turns that back."""
    return outputs[0] if len(outputs) == 1 else outputs


def on_host(outputs: Tensor | Outputs) -> Tensor | Outputs:
    """Outputs in float32 on the CPU."""
    if isinstance(outputs, Tensor):
        return outputs.float().cpu()
    return tuple(each.float().cpu() for each in outputs)


def together(parts: Sequence[Any]) -> Any:
    """Outputs of all samples, from those of several batches."""
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    return tuple(torch.cat(each) for each in zip(*parts, strict=True))
