"""Data: a training source with fixed search and calibration splits, and a test source."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch import Tensor

from autocompress.config import MOST_SEED
from autocompress.data.sources import Source, Splits
from autocompress.errors import InputError
from autocompress.samples import Inputs, content, tensors_of


@dataclass(frozen=True, eq=False)
class Data:
    """The data that a network is calibrated, searched and tested on.

    Attributes:
        name: name of the data, as the user gave it.
        train: source of the training data, from which the search and the calibration split are cut.
        test: source of the test split, or None; only `test_batches` reads it.
        classes: class names by label; empty where the data has no labels, or none that are one class a sample.
        search_indices: indices into `train` of the samples on which plans are compared.
        calibration_indices: indices into `train` of the samples on which menus are built; none is a search
            sample.
        notes: lines for the user on how the data was read.
        are_images: whether inputs (N, C, H, W) are images, which augmentation moves and mirrors; spectra are none.
        kept_out: indices into `train` of samples that nothing is fitted to, selected on or trained on. Default: none.
    """

    name: str
    train: Source
    test: Source | None
    classes: tuple[str, ...]
    search_indices: tuple[int, ...]
    calibration_indices: tuple[int, ...]
    notes: tuple[str, ...] = ()
    are_images: bool = True
    kept_out: tuple[int, ...] = ()

    def search(self) -> tuple[Inputs, Tensor | None]:
        """The search split: inputs (N, …), normalised, numbers among them float32, and classes (N,) int64 or None."""
        return self._with_classes(self.search_indices)

    def calibration(self) -> tuple[Inputs, Tensor | None]:
        """The calibration split: inputs (N, …) as of the search split, and classes (N,) int64 or None."""
        return self._with_classes(self.calibration_indices)

    def _with_classes(self, indices: Sequence[int]) -> tuple[Inputs, Tensor | None]:
        inputs, labels = self.train.load(indices)
        return inputs, labels if self.classes else None

    def unused(self, count: int) -> tuple[int, ...]:
        """Indices of at most `count` training samples of neither split, always the same ones."""
        used = {*self.search_indices, *self.calibration_indices, *self.kept_out}
        order = np.random.default_rng(0).permutation(len(self.train)).tolist()
        return tuple([index for index in order if index not in used][:count])

    def test_batches(self, batch_size: int = 256) -> Iterator[tuple[Inputs, Tensor | None]]:
        """The test split in order, batch by batch: inputs (n, …) and labels (n, …), whatever they are, or None.

        Raises:
            InputError: there is no test split.
        """
        if self.test is None:
            raise InputError(f"`data` must have a test split to be tested on, got {self.name} without one.")
        return _batches(self.test, batch_size)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the calibration split's inputs and labels for cache keys, 16 hex digits."""
        inputs, labels = self.calibration()
        shapes = [tuple(tensor.shape) for tensor in tensors_of(inputs)]
        digest = hashlib.sha256(f"{shapes[0] if len(shapes) == 1 else shapes}".encode())
        for part in content(inputs):
            digest.update(part)
        digest.update(b"" if labels is None else labels.numpy().tobytes())
        return digest.hexdigest()[:16]


def _batches(source: Source, batch_size: int) -> Iterator[tuple[Inputs, Tensor | None]]:
    """Inputs and labels of a source in order; the last batch may be smaller."""
    for start in range(0, len(source), batch_size):
        yield source.load(range(start, min(start + batch_size, len(source))))


@dataclass(frozen=True)
class Split:
    """Rule by which the search and the calibration split are cut from the training data.

    Attributes:
        seed: seed of the shuffle, from 0 to 4294967295.
        search_samples: wanted size of the search split, at least 1; at most half of the training data is
            taken.
        calibration_samples: wanted size of the calibration split, at least 1; at most a third of the training
            data is taken.

    Raises:
        InputError: a number is out of range.
    """

    seed: int = 0
    search_samples: int = 1000
    calibration_samples: int = 512

    def __post_init__(self) -> None:
        for name in ("search_samples", "calibration_samples"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.seed <= MOST_SEED:
            raise InputError(f"`seed` must be from 0 to {MOST_SEED}, got {self.seed}.")

    def cut(self, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Search and calibration indices for `count` training samples.

        The search split is the front of the shuffle and the calibration split its end, so that the size of
        the one does not change the other.

        >>> Split(seed=0).cut(6)
        ((3, 2, 5), (0, 1))
        """
        order = np.random.default_rng(self.seed).permutation(count).tolist()
        search = min(self.search_samples, count // 2)
        calibration = min(self.calibration_samples, count // 3)
        return tuple(order[:search]), tuple(order[count - calibration :])


def data_of(name: str, splits: Splits, split: Split, *, are_images: bool = True) -> Data:
    """As `make_data`, from what a source of data gives."""
    made = make_data(name, splits.train, splits.test, splits.classes, split)
    return replace(made, notes=splits.notes, are_images=are_images)


def make_data(name: str, train: Source, test: Source | None, classes: Sequence[str], split: Split) -> Data:
    """The data of two sources, with its search and calibration split.

    Args:
        name: name of the data, for reports.
        train: source of the training data, at least 3 samples.
        test: source of the test split, or None.
        classes: class names by label; empty where the data has no labels.
        split: rule by which the splits are cut.

    Raises:
        InputError: fewer than 3 training samples or no test samples.
    """
    if len(train) < 3:
        raise InputError(f"`data` must have at least 3 training samples, got {len(train)} in {name}.")
    if test is not None and len(test) == 0:
        raise InputError(f"`data` must have at least 1 test sample, got 0 in {name}.")
    search, calibration = split.cut(len(train))
    return Data(name, train, test, tuple(classes), search, calibration)
