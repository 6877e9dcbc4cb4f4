"""Inputs of samples: one tensor, or several of them where a network takes several.

Text encoders take token numbers and a mask, others an image and a vector. `Samples` holds such tensors side by side,
and answers to `len`, slices, `split`, `to` and `nbytes` as a tensor does, so that most code need not know which it
has.

Networks are run by `call(model, inputs)`: they take their tensors by position, as `network.interface` arranges it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

ONE = "input"  # name of the only tensor of a network that takes one


@dataclass(frozen=True, eq=False)
class Samples:
    """Several tensors of the same N samples.

    Attributes:
        tensors: tensors (N, …), in the order in which the network takes them.
        names: name of each of them, such as `input_ids`.
        by_name: whether the network takes them as keyword arguments; else it takes them by position.
    """

    tensors: tuple[Tensor, ...]
    names: tuple[str, ...]
    by_name: bool = True

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: slice | Tensor) -> Samples:
        """Some of the samples, by a slice or by their numbers."""
        return self.each(lambda tensor: tensor[index])

    def split(self, size: int) -> list[Samples]:
        """Batches of so many samples; the last may be smaller."""
        return [self[start : start + size] for start in range(0, len(self), size)]

    def to(self, device: torch.device | str) -> Samples:
        """The same on a device."""
        return self.each(lambda tensor: tensor.to(device))

    def cpu(self) -> Samples:
        """The same on the CPU."""
        return self.to("cpu")

    def detach(self) -> Samples:
        """The same without gradients."""
        return self.each(Tensor.detach)

    def clone(self) -> Samples:
        """A copy."""
        return self.each(Tensor.clone)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def each(self, change: Callable[[Tensor], Tensor]) -> Samples:
        """The same with every tensor changed."""
        return replace(self, tensors=tuple(map(change, self.tensors)))


Inputs = Tensor | Samples
"""What a network takes: a tensor (N, …), or several of them."""


@dataclass(frozen=True)
class Field:
    """The form of one tensor that a network takes.

    Attributes:
        name: its name; `input` where it is the only one.
        shape: shape of one sample, without the batch axis.
        dtype: its dtype, such as `int64`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def nbytes(self) -> int:
        """Bytes of one sample."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype.itemsize * math.prod(self.shape)

    def zeros(self, count: int) -> Tensor:
        """(count, …) zeros of this form."""
        return torch.zeros(count, *self.shape, dtype=getattr(torch, self.dtype))


def zeros(fields: Sequence[Field], count: int) -> Inputs:
    """`count` samples of zeros of these forms."""
    if len(fields) == 1 and fields[0].name == ONE:
        return fields[0].zeros(count)
    names = tuple(field.name for field in fields)
    return Samples(tuple(field.zeros(count) for field in fields), names, names != _numbered(len(names)))


def _numbered(count: int) -> tuple[str, ...]:
    """Names of tensors that are taken by position."""
    return tuple(f"{ONE}_{number}" for number in range(count))


def tensors_of(inputs: Inputs) -> tuple[Tensor, ...]:
    """The tensors, in the order in which the network takes them."""
    return inputs.tensors if isinstance(inputs, Samples) else (inputs,)


def fields_of(inputs: Inputs) -> tuple[Field, ...]:
    """The forms of the tensors.

    >>> fields_of(torch.zeros(5, 3, 8, 8))
    (Field(name='input', shape=(3, 8, 8), dtype='float32'),)
    """
    names = inputs.names if isinstance(inputs, Samples) else (ONE,)
    return tuple(
        Field(name, tuple(tensor.shape[1:]), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in zip(names, tensors_of(inputs), strict=True)
    )


def call(model: Callable[..., Any], inputs: Inputs) -> Any:
    """What a network gives for some samples."""
    return model(*tensors_of(inputs))


def cast(inputs: Inputs, device: torch.device | str, dtype: torch.dtype) -> Inputs:
    """The inputs on a device, floating-point ones in a dtype; token numbers and masks stay what they are."""

    def there(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)

    return each_of(inputs, there)


def each_of(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """The inputs with every tensor changed."""
    return inputs.each(change) if isinstance(inputs, Samples) else change(inputs)


def images_channels_last(inputs: Inputs) -> Inputs:
    """Images (n, C, H, W) with their channels last in memory, which convolutions like; others as they are."""
    if isinstance(inputs, Tensor) and inputs.ndim == 4:
        return inputs.contiguous(memory_format=torch.channels_last)
    return inputs


def joined(parts: Sequence[Inputs]) -> Inputs:
    """All samples of several batches, at least one."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat([tensor for part in parts for tensor in tensors_of(part)])
    columns = zip(*map(tensors_of, parts), strict=True)
    return replace(first, tensors=tuple(torch.cat(column) for column in columns))


def repeated(inputs: Inputs, times: int) -> Inputs:
    """The samples one after the other, so many times."""
    return joined([inputs] * times)


def content(inputs: Inputs) -> Iterable[bytes]:
    """Names, shapes and values, for digests."""
    if isinstance(inputs, Samples):
        yield repr((inputs.names, inputs.by_name)).encode()
    for tensor in tensors_of(inputs):
        yield tensor.detach().cpu().contiguous().numpy().tobytes()


def from_tree(inputs: Any) -> Any:
    """`Samples` of a mapping or a tuple of tensors; anything else as it is.

    >>> from_tree({"ids": torch.zeros(4, 7), "mask": torch.ones(4, 7)}).names
    ('ids', 'mask')

    Args:
        inputs: a mapping from the network's keyword arguments to tensors, or a tuple of tensors that it takes by
            position.
    """
    if isinstance(inputs, Mapping):
        return Samples(tuple(map(_tensor, inputs.values())), tuple(map(str, inputs)), True)
    if isinstance(inputs, tuple):
        return Samples(tuple(map(_tensor, inputs)), _numbered(len(inputs)), False)
    return inputs


def _tensor(values: Any) -> Tensor:
    return torch.as_tensor(values)
