"""Data that lies in memory: scikit-learn's digits, `npz:FILE`, tensors and map-style datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from autocompress.data.dataset import Data, Split, make_data
from autocompress.data.labels import numbered_classes
from autocompress.data.npz import read_npz
from autocompress.data.pixels import Normalization
from autocompress.data.sources import DatasetSource, Source, Splits, TensorSource, are_classes
from autocompress.errors import InputError

DIGITS_TEST_SAMPLES = 360
DIGITS_SPLIT_SEED = 0
_PARTS = ("train", "test")
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")


def digits_tensors() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scikit-learn's digits, always split alike: the shipped network was trained on the training part.

    Returns:
        Training inputs (1437, 1, 8, 8) float32 in [0, 1] and labels (1437,) int64, test inputs and labels of
        360.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)  # (1797, 64) with values 0 to 16
    order = np.random.default_rng(DIGITS_SPLIT_SEED).permutation(len(pixels))
    x = torch.from_numpy(pixels[order]).float().view(-1, 1, 8, 8) / 16
    y = torch.from_numpy(labels[order]).long()
    return x[DIGITS_TEST_SAMPLES:], y[DIGITS_TEST_SAMPLES:], x[:DIGITS_TEST_SAMPLES], y[:DIGITS_TEST_SAMPLES]


def load_digits_sources(normalization: Normalization) -> Splits:
    """Training and test source of the digits, and the names of the ten classes."""
    x_train, y_train, x_test, y_test = digits_tensors()
    train, test = TensorSource(x_train, y_train, normalization), TensorSource(x_test, y_test, normalization)
    return Splits(train, test, tuple(str(digit) for digit in range(10)))


def load_npz(file: str, normalization: Normalization) -> Splits:
    """Training and test source of a NumPy archive, and the class names, which are the labels' numbers.

    The archive holds x_train; y_train and x_test, y_test where there are labels and a test split. Images are
    (N, C, H, W), (N, H, W, C) or (N, H, W).

    Args:
        file: path of the archive.
        normalization: normalization that sources apply on loading.

    Raises:
        InputError: the file is missing or damaged, an array is missing, empty, or of the wrong form.
    """
    arrays = _read_npz(Path(file))
    names = {part: f"{file} {part}" for part in _PARTS if f"x_{part}" in arrays}
    sources = {
        part: TensorSource.from_arrays(
            _channels_first(arrays[f"x_{part}"]), arrays.get(f"y_{part}"), normalization, name
        )
        for part, name in names.items()
    }
    classes = _class_names({source: names[part] for part, source in sources.items()}, None)
    return Splits(sources["train"], sources.get("test"), classes)


def _read_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an archive by name.

    Raises:
        InputError: it can't be read, has no training inputs, or labels of a part of its inputs only.
    """
    arrays = read_npz(path, _ARRAYS)
    wanted = {f"x_{part}" for part in _PARTS if {f"x_{part}", f"y_{part}"} & set(arrays)} | {"x_train"}
    if any(name.startswith("y_") for name in arrays):
        wanted |= {name.replace("x_", "y_") for name in wanted}
    missing = [name for name in _ARRAYS if name in wanted and name not in arrays]
    if missing:
        held = ", ".join(arrays) or "none of these"
        raise InputError(
            "`data` npz:FILE must hold x_train, with labels y_train, with a test split x_test and its labels y_test, "
            f"got no {', '.join(missing)} beside {held} in {path}."
        )
    return arrays


def _channels_first(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Images (N, C, H, W) from those of any of the three layouts; other arrays as they are."""
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return images


def from_tensors(
    train: tuple[Tensor, Tensor | None],
    test: tuple[Tensor, Tensor | None] | None = None,
    *,
    classes: Sequence[str] | None = None,
    name: str = "tensors",
    seed: int = 0,
    search_samples: int = 1000,
    calibration_samples: int = 512,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Data:
    """Data from tensors or NumPy arrays in memory.

    Args:
        train: inputs (N, …) and integer labels (N,) of the training data; labels may be None, or numbers (N, …) for
            tasks that are not after one class a sample. Floating-point
            inputs are taken as they are unless `mean` and `std` are given; uint8 ones are divided by 255 and
            normalised.
        test: inputs and labels of the test split, likewise; None where there is none.
        classes: class names by label; the labels' numbers by default.
        name: name of the data in reports.
        seed: seed of the search and the calibration split, at least 0.
        search_samples: size of the search split; at most half of the training data is taken.
        calibration_samples: size of the calibration split; at most a third of the training data is taken.
        mean: mean of every channel; by default ImageNet's for uint8 inputs of three channels, else 0.
        std: standard deviation of every channel, above 0; given with `mean` only.

    Raises:
        InputError: empty, mismatched or non-finite tensors, or labels beyond `classes`.
    """
    normalization = Normalization.parse(mean, std)
    named = {
        TensorSource.from_arrays(*_pair(pair, f"{name} {part}"), normalization, f"{name} {part}"): f"{name} {part}"
        for part, pair in (("train", train), ("test", test))
        if pair is not None
    }
    names, sources = _class_names(named, classes), list(named)
    split = Split(seed, search_samples, calibration_samples)
    return make_data(name, sources[0], sources[1] if test is not None else None, names, split)


def from_datasets(
    train: Any,
    test: Any = None,
    *,
    classes: Sequence[str] | None = None,
    name: str = "datasets",
    seed: int = 0,
    search_samples: int = 1000,
    calibration_samples: int = 512,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Data:
    """Data from map-style datasets (`__len__`, `__getitem__`) whose items are (input, label) pairs.

    Args:
        train: training dataset, which is read on demand. Its transforms must be those of evaluation, not
            random ones.
        test: dataset of the test split, likewise; None where there is none.
        classes: class names by label; by default `train.classes`, as torchvision's datasets have it.
        name: name of the data in reports.
        seed: seed of the search and the calibration split, at least 0.
        search_samples: size of the search split; at most half of the training data is taken.
        calibration_samples: size of the calibration split; at most a third of the training data is taken.
        mean: mean of every channel; by default floating-point inputs are taken as they are.
        std: standard deviation of every channel, above 0; given with `mean` only.

    Raises:
        InputError: not map-style datasets, too few samples, or no class names.
    """
    normalization = Normalization.parse(mean, std)
    for part, dataset in (("train", train), ("test", test)):
        if dataset is not None and not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise InputError(f"{name} {part} must be a map-style dataset, got {type(dataset).__name__}.")
    names = getattr(train, "classes", None) if classes is None else classes
    if names is None:
        raise InputError(f"`classes` must be given, for {name} train has no attribute `classes`.")
    sources: list[Source] = [
        DatasetSource(dataset, normalization, f"{name} {part}", len(names))
        for part, dataset in (("train", train), ("test", test))
        if dataset is not None
    ]
    split = Split(seed, search_samples, calibration_samples)
    return make_data(name, sources[0], sources[1] if test is not None else None, [str(each) for each in names], split)


def _pair(value: Any, name: str) -> tuple[Any, Any]:
    """Both parts of a pair (inputs, labels). Raises InputError where it is none; `name` is for the message."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise InputError(f"{name} must be a pair (inputs, labels), got {type(value).__name__}.")
    return value[0], value[1]


def _class_names(sources: Mapping[TensorSource, str], classes: Sequence[str] | None) -> tuple[str, ...]:
    given = [(source.labels, name) for source, name in sources.items() if source.labels is not None]
    labelled = [(labels, name) for labels, name in given if are_classes(labels)]
    if labelled and len(labelled) < len(given):
        numbers = next((labels, name) for labels, name in given if not are_classes(labels))
        dtype = str(numbers[0].dtype).removeprefix("torch.")
        raise InputError(
            f"{labelled[0][1]} and {numbers[1]} must hold labels of one kind, got classes and {dtype} numbers of shape "
            f"{tuple(numbers[0].shape)}."
        )
    if classes is None:
        return numbered_classes(labelled)
    top = max((int(labels.max()) for labels, _ in labelled), default=-1)
    if top >= len(classes):
        raise InputError(f"`classes` must name every label, got {len(classes)} names and label {top}.")
    return tuple(str(each) for each in classes)
