"""Labels: whole numbers from 0 on, and the names of their classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from autocompress.errors import InputError

MOST_CLASSES = 1_000_000  # each class has a name and an output of the network
_MARKS = (-1, 255, 65535)  # numbers that data sets put where there is no label


def checked_labels(labels: npt.NDArray[Any], name: str) -> Tensor:
    """Labels (N,) int64.

    Args:
        labels: (N,) whole numbers of any width, N at least 1.
        name: name of the data, for messages.

    Raises:
        InputError: a label is below 0, or not below `MOST_CLASSES`.
    """
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0:
        row = int(labels.argmin())
        raise InputError(f"{name} must hold labels from 0 on, got {lowest} at {row}{_meaning(lowest)}.")
    if highest >= MOST_CLASSES:
        row = int(labels.argmax())
        raise InputError(
            f"{name} must hold labels below {MOST_CLASSES:,}, got {highest:,} at {row}; renumber them from 0."
        )
    return torch.from_numpy(labels.astype(np.int64))


def numbered_classes(labels: Sequence[tuple[Tensor, str]]) -> tuple[str, ...]:
    """Names of classes that nobody named: the numbers from 0 to the largest label.

    255 and 65535 stand for missing labels in many data sets, and would give as many classes. They are refused where no
    other label comes even half as high.

    Args:
        labels: (N,) int64 labels of every split, with the name of its data for messages.

    Raises:
        InputError: such a number stands for a missing label.
    """
    top = max((int(values.max()) for values, _ in labels), default=-1)
    if top in _MARKS:
        below = max((int(values[values < top].max()) for values, _ in labels if bool((values < top).any())), default=0)
        if below < top // 2:
            values, name = next(each for each in labels if int(each[0].max()) == top)
            row = int(values.argmax())
            raise InputError(
                f"{name} must hold labels from 0 to {below}, as all others, got {top} at {row}{_meaning(top)}."
            )
    return tuple(str(label) for label in range(top + 1))


def _meaning(label: int) -> str:
    """What a number often means, and what to do then; empty for numbers without a meaning."""
    return ", which often marks a missing label; leave such samples out" if label in _MARKS else ""


def named_labels(
    labels: Mapping[str, Sequence[str | None]], places: Mapping[str, str], classes: Sequence[str] | None = None
) -> tuple[tuple[str, ...], dict[str, Tensor | None]]:
    """Class names, and (N,) int64 labels of every split; None where there are none.

    Whole numbers stand for themselves; names are numbered in alphabetical order, or in that of `classes`.

    Args:
        labels: labels of every split, as they stand in files; None for samples without one.
        places: name of the data of every split, for messages.
        classes: class names in the order of the network's outputs, where somebody gives them.

    Raises:
        InputError: some samples have a label and others none, a number is out of range, or a name is in no class.
    """
    known = {label for part in labels.values() for label in part if label is not None}
    if not known:
        return (), dict.fromkeys(labels)
    if not all(None not in part for part in labels.values()):
        raise InputError("`data` must have labels in both splits or in none, got them in one.")
    names = _names(known, classes)
    counted = classes is None and all(label.isdecimal() for label in known)
    numbers = {label: int(label) if counted else names.index(label) for label in known}
    found: dict[str, Tensor | None] = {}
    for part, values in labels.items():
        numbered = torch.tensor([numbers[str(value)] for value in values])
        found[part] = checked_labels(numbered.numpy(), places[part])
    return names, found


def _names(known: set[str], classes: Sequence[str] | None) -> tuple[str, ...]:
    """Names of classes by their number; none where a label is too large a number for names up to it.

    Raises:
        InputError: a label is in none of the `classes` that are given.
    """
    if classes is not None:
        unknown = sorted(known.difference(classes))
        if unknown:
            raise InputError(f"`classes` must name every label, got {', '.join(classes)} and the label {unknown[0]!r}.")
        return tuple(classes)
    if not all(label.isdecimal() for label in known):
        return tuple(sorted(known))
    return tuple(str(number) for number in range(max(map(int, known)) + 1)) if len(max(known, key=len)) < 7 else ()
