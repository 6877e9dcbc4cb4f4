"""Data by spec string."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autocompress.data.arrays import from_datasets, from_tensors, load_digits_sources, load_npz
from autocompress.data.callables import call
from autocompress.data.dataset import Data, Split, make_data
from autocompress.data.imagefolder import load_imagefolder
from autocompress.data.parquet import load_parquet
from autocompress.data.pixels import ImageReader, Normalization
from autocompress.data.sources import Source
from autocompress.errors import InputError, unknown_name

_ImageLoader = Callable[[str, ImageReader, Normalization], tuple[Source, Source, tuple[str, ...]]]
_IMAGE_LOADERS: Mapping[str, _ImageLoader] = {"parquet": load_parquet, "imagefolder": load_imagefolder}
_SPECS = ("digits", "parquet:FOLDER", "imagefolder:FOLDER", "npz:FILE", "package.module:callable", "file.py:callable")


def load_data(
    spec: str,
    *,
    seed: int = 0,
    search_samples: int = 1000,
    calibration_samples: int = 512,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    data_args: Mapping[str, Any] | None = None,
) -> Data:
    """The data that `spec` names.

    The search and the calibration split are disjoint parts of the training data, chosen by `seed`. Where the training
    data is small, the search split takes at most half and the calibration split at most a third of it.

    Args:
        spec: one of
            `digits`: scikit-learn's 8x8 digits, 1,437 training and 360 test images;
            `parquet:FOLDER`: train.parquet and test.parquet with columns image (encoded) and label;
            `imagefolder:FOLDER`: FOLDER/train/CLASS/* and FOLDER/test/CLASS/* (or val);
            `npz:FILE`: arrays x_train, y_train, x_test, y_test;
            `package.module:callable` or `file.py:callable`: returns (train, test) or (train, test, class names), both
            of them a map-style dataset or a pair of tensors.
        seed: of the splits, at least 0.
        search_samples: size of the search split, at least 1.
        calibration_samples: size of the calibration split, at least 1.
        image_size: edge of the square images, for `parquet:` and `imagefolder:`.
        mean: one number a channel on [0, 1] pixels; ImageNet's by default for RGB pixels, 0 for one channel.
        std: as `mean`; 1 for one channel.
        data_args: keyword arguments for the callable.

    Raises:
        InputError: an unknown spec, or data that is missing, empty, broken or not of the form above.
    """
    split = Split(seed, search_samples, calibration_samples)
    normalization = Normalization.parse(mean, std)
    kind, _, place = spec.partition(":")
    _check_options(spec, kind, image_size, data_args)
    if kind in _IMAGE_LOADERS:
        return make_data(spec, *_IMAGE_LOADERS[kind](place, ImageReader(image_size), normalization), split)
    if kind == "npz":
        return make_data(spec, *load_npz(place, normalization), split)
    if spec == "digits":
        return make_data(spec, *load_digits_sources(normalization), split)
    if not place or not spec.rpartition(":")[2].isidentifier():
        raise unknown_name("data", spec, _SPECS)
    return _from_callable(spec, data_args or {}, split, normalization)


def _check_options(spec: str, kind: str, image_size: int | None, data_args: Mapping[str, Any] | None) -> None:
    is_callable = ":" in spec and kind not in (*_IMAGE_LOADERS, "npz")
    if image_size is not None and kind not in _IMAGE_LOADERS:
        raise InputError(f"`image_size` must be given with parquet: and imagefolder: only, got it with {spec}.")
    if data_args and not is_callable:
        raise InputError(f"`data_args` must be given with a callable only, got {', '.join(data_args)} with {spec}.")


def _from_callable(spec: str, arguments: Mapping[str, Any], split: Split, normalization: Normalization) -> Data:
    result = call("data", spec, arguments)
    if not isinstance(result, tuple) or len(result) not in (2, 3):
        raise InputError(f"`data` {spec} must return (train, test) or (train, test, class names), got {_form(result)}.")
    train, test = result[:2]
    make = from_tensors if isinstance(train, tuple) else from_datasets
    return make(
        train,
        test,
        classes=result[2] if len(result) == 3 else None,
        name=spec,
        seed=split.seed,
        search_samples=split.search_samples,
        calibration_samples=split.calibration_samples,
        mean=normalization.mean,
        std=normalization.std,
    )


def _form(value: Any) -> str:
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else type(value).__name__
