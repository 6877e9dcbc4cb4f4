"""Sources of samples: inputs and labels that are read on demand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from autocompress.data.labels import checked_labels
from autocompress.data.pixels import Normalization, stack
from autocompress.errors import InputError
from autocompress.samples import Inputs, from_tree


class Source(Protocol):
    """Samples by index, on the CPU."""

    def __len__(self) -> int: ...

    def load(self, indices: Sequence[int]) -> tuple[Inputs, Tensor | None]:
        """Inputs (N, …) and labels (N, …), or None, of the samples at the indices; classes are int64 (N,).

        Floating-point inputs are float32 and normalised; whole numbers, such as tokens, stay what they are.
        """
        ...


TextSources = Callable[[Mapping[str, Sequence[str]], Mapping[str, Tensor | None]], Mapping[str, Source]]
"""From the texts and the labels of every split to the split's source of tokens."""


@dataclass(frozen=True, eq=False)
class Splits:
    """What a source of data gives.

    Attributes:
        train: source of the training data.
        test: source of the test split, or None.
        classes: class names by label; empty where there are no labels.
        notes: lines for the user on how the data was read.
    """

    train: Source
    test: Source | None
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class View:
    """Inputs of some samples of a source, read where they are sliced: a thousand images need not be held at once.

    Attributes:
        source: the source.
        indices: numbers of the samples.
    """

    source: Source
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, rows: slice) -> Inputs:
        inputs, _ = self.source.load(self.indices[rows])
        return inputs


@dataclass(frozen=True, eq=False)
class TensorSource:
    """Samples that lie in memory.

    Attributes:
        inputs: (N, …) inputs as stored: uint8 pixels, floating-point numbers, or whole numbers such as tokens; or
            several such tensors.
        labels: (N,) int64 classes, or numbers (N, …) that a task compares outputs with; or None.
        normalization: normalization that is applied on loading.

    Raises:
        InputError: from `from_arrays`, where the arrays are empty, don't match, or hold NaN or infinity.
    """

    inputs: Inputs
    labels: Tensor | None
    normalization: Normalization

    def __len__(self) -> int:
        return len(self.inputs)

    def load(self, indices: Sequence[int]) -> tuple[Inputs, Tensor | None]:
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return self.normalization.apply_to(self.inputs[chosen]), None if self.labels is None else self.labels[chosen]

    @classmethod
    def from_arrays(cls, inputs: Any, labels: Any, normalization: Normalization, name: str) -> TensorSource:
        """The source of tensors or NumPy arrays, which are checked; tensors on other devices are copied to the CPU.

        Args:
            inputs: (N, …) uint8, floating-point or whole numbers, N at least 1; or several such arrays, as a mapping
                from the network's keyword arguments, or a tuple in the order in which it takes them.
            labels: (N,) or (N, 1) integer labels from 0 on, or None; or numbers (N, …) that a task compares outputs
                with, such as what a regression is after, or whole numbers at positions.
            normalization: normalization that is applied on loading.
            name: name of the data, for messages.
        """
        x = _inputs(inputs, name)
        return cls(x, None if labels is None else _labels(labels, len(x), name), normalization)


@dataclass(frozen=True, eq=False)
class DatasetSource:
    """A map-style dataset of (input, label) pairs; an input is a tensor, an array or a Pillow image.

    Pillow images become uint8 pixels, grey ones (mode L) with one channel and all others RGB.

    Attributes:
        dataset: object with `__len__` and `__getitem__`.
        normalization: normalization that is applied on loading.
        name: name of the data, for messages.
        class_count: number of classes, which labels must be below.

    Raises:
        InputError: on loading, where an item is not such a pair, the shapes differ, or a value is out of
            range.
    """

    dataset: Any
    normalization: Normalization
    name: str
    class_count: int

    def __len__(self) -> int:
        return len(self.dataset)

    def load(self, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        inputs, labels = [], []
        for index in indices:
            item = self.dataset[int(index)]
            if not isinstance(item, (tuple, list)) or len(item) != 2:
                raise InputError(f"{self.name} must give (input, label) pairs, got {type(item).__name__} at {index}.")
            inputs.append(_as_tensor(item[0]))
            labels.append(self._label(item[1], index))
        x = stack(inputs, self.name)
        _check_finite(x, indices, self.name)
        return self.normalization.apply(x), torch.tensor(labels)

    def _label(self, value: Any, index: int) -> int:
        """An item's label as an integer. Raises InputError where it is none, or out of range."""
        label = value.item() if isinstance(value, (Tensor, np.generic)) and np.size(value) == 1 else value
        if not isinstance(label, int) or not 0 <= label < self.class_count:
            raise InputError(
                f"{self.name} must give integer labels from 0 to {self.class_count - 1}, got {label!r} at {index}."
            )
        return label


def _as_tensor(value: Any) -> Tensor:
    """The input of one item: (C, H, W) uint8 pixels of a Pillow image, anything else as it is."""
    from PIL import Image  # here, so that those without images don't wait for it

    if not isinstance(value, Image.Image):
        return torch.as_tensor(value).cpu()
    if value.mode == "L":
        return torch.from_numpy(np.array(value))[None]
    return torch.from_numpy(np.array(value.convert("RGB"))).permute(2, 0, 1)


def _tensor(value: Any, name: str) -> Tensor:
    """An array as a tensor on the CPU. Raises InputError where it holds no numbers."""
    try:
        return torch.as_tensor(value).cpu()
    except (TypeError, ValueError) as error:  # strings, objects, ragged lists
        raise InputError(f"{name} must be an array of numbers, got {type(value).__name__}: {error}.") from error


def _inputs(values: Any, name: str) -> Inputs:
    """One array or several as the inputs of samples, checked."""
    parts: Mapping[str, Any] = values if isinstance(values, Mapping) else {}
    if isinstance(values, tuple | list) and values and all(hasattr(each, "shape") for each in values):
        parts = {str(number): each for number, each in enumerate(values)}
    if not parts:
        x = _checked_input(values, f"{name} inputs", name)
        # Images of other whole numbers have another scale than 0 to 255, which nobody can tell.
        if x.ndim == 4 and x.dtype != torch.uint8 and not x.is_floating_point():
            raise InputError(f"{name} must hold uint8 or floating-point images, got {x.dtype}.")
        return x
    found = {key: _checked_input(value, f"{name} inputs {key}", f"{name} {key}", 1) for key, value in parts.items()}
    lengths = {key: len(tensor) for key, tensor in found.items()}
    if len(set(lengths.values())) > 1:
        got = ", ".join(f"{length} of {key}" for key, length in lengths.items())
        raise InputError(f"{name} must hold as many samples in every input, got {got}.")
    together: Inputs = from_tree(found if isinstance(values, Mapping) else tuple(found.values()))
    return together


def _checked_input(value: Any, what: str, name: str, least_axes: int = 2) -> Tensor:
    x = _tensor(value, what)
    if x.ndim < least_axes or len(x) == 0:
        raise InputError(f"{name} must hold inputs of shape (N, …) with N at least 1, got {tuple(x.shape)}.")
    if x.is_complex():
        raise InputError(f"{name} must hold whole or floating-point numbers, got {x.dtype}.")
    _check_finite(x, range(len(x)), name)
    return x


def _check_finite(x: Tensor, rows: Sequence[int], name: str) -> None:
    """Raise InputError where inputs (N, …) hold NaN or infinity; `rows` are the N indices in the source."""
    if x.is_floating_point():
        bad = torch.isfinite(x).flatten(1).all(1).logical_not().nonzero()
        if len(bad):
            raise InputError(f"{name} must hold finite inputs, got NaN or infinity at {rows[int(bad[0])]}.")


def _labels(labels: Any, count: int, name: str) -> Tensor:
    """Labels: classes (count,) int64 from 0 on; or numbers (count, …) float32, or int64 at positions.

    Raises InputError where they are something else.
    """
    y = _tensor(labels, f"{name} labels")
    if y.ndim < 1 or len(y) != count:
        raise InputError(f"{name} must hold one label an input ({count}), got labels of shape {tuple(y.shape)}.")
    if y.is_complex() or y.dtype == torch.bool:
        raise InputError(f"{name} must hold labels of whole or floating-point numbers, got {y.dtype}.")
    if y.is_floating_point():
        _check_finite(y.reshape(count, -1), range(count), f"{name} labels")
        return y.float()
    if y.shape == (count, 1):  # as Keras keeps them
        y = y[:, 0]
    if y.ndim > 1:
        return y.long()
    return checked_labels(y.numpy(), name)  # PyTorch can't compare unsigned numbers of more than 8 bits


def are_classes(labels: Tensor | None) -> bool:
    """Whether labels (N, …) are one class a sample."""
    return labels is not None and labels.ndim == 1 and not labels.is_floating_point()
