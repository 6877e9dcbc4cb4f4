"""Data by spec string: the registry of sources, and the function that loads what a spec names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from autocompress.data.annotations import load_annotations
from autocompress.data.arrays import from_datasets, from_tensors, load_digits_sources, load_npz
from autocompress.data.audio import load_audio
from autocompress.data.callables import call, call_with
from autocompress.data.dataset import Data, Split, data_of
from autocompress.data.imagefolder import load_imagefolder
from autocompress.data.pixels import ImageReader, Normalization
from autocompress.data.sources import Source, Splits, TensorSource
from autocompress.data.texts import load_texts
from autocompress.data.tokens import MAX_TOKENS, token_sources
from autocompress.errors import InputError, unknown_name
from autocompress.registry import Registry


@dataclass(frozen=True)
class DataRequest:
    """The options that a source of data may read.

    Attributes:
        spec: whole spec string, such as `npz:digits.npz`.
        place: part of the spec behind the colon.
        image_size: edge in pixels that images are resized to, or None.
        normalization: normalization that is applied on loading.
        split: rule by which the search and the calibration split are cut.
        arguments: keyword arguments for a function of the user's, names of columns, or features of sounds.
        tokenizer: folder of the tokenizer for texts, or None.
        max_tokens: most tokens of a text.
        audio_seconds: length that sounds are brought to, or None.
    """

    spec: str
    place: str
    image_size: int | None
    normalization: Normalization
    split: Split
    arguments: Mapping[str, Any]
    tokenizer: Path | None = None
    max_tokens: int = MAX_TOKENS
    audio_seconds: float | None = None

    def token_sources(
        self, texts: Mapping[str, Sequence[str]], labels: Mapping[str, Tensor | None]
    ) -> Mapping[str, Source]:
        """The sources of texts, for data that may hold images instead. Raises InputError for options of images."""
        if self.image_size is not None:
            raise InputError(f"`image_size` must be left out for texts, got it with {self.spec}, which holds texts.")
        return token_sources(texts, labels, self.tokenizer, self.max_tokens)


@dataclass(frozen=True)
class DataSource:
    """A source of data.

    Attributes:
        load: function that loads the data of a request.
        form: form of its specs, such as `npz:FILE`; errors list it.
        takes_images: whether the source decodes images, so that `image_size` has an effect.
        takes_arguments: whether the source takes the keyword arguments of `data_args`.
        takes_texts: whether the source reads texts, so that `tokenizer` has an effect.
        takes_sounds: whether the source reads sounds, so that `audio_seconds` has an effect.
    """

    load: Callable[[DataRequest], Data]
    form: str
    takes_images: bool = False
    takes_arguments: bool = False
    takes_texts: bool = False
    takes_sounds: bool = False


def _digits(asked: DataRequest) -> Data:
    """scikit-learn's digits."""
    return data_of(asked.spec, load_digits_sources(asked.normalization), asked.split)


def _npz(asked: DataRequest) -> Data:
    """The arrays of a NumPy archive."""
    return data_of(asked.spec, load_npz(asked.place, asked.normalization), asked.split)


def _imagefolder(asked: DataRequest) -> Data:
    """Image files by folder."""
    splits = load_imagefolder(asked.place, ImageReader(asked.image_size), asked.normalization)
    return data_of(asked.spec, splits, asked.split)


def _audio(asked: DataRequest) -> Data:
    """Sound files by folder."""
    splits = load_audio(asked.place, asked.audio_seconds, asked.normalization, asked.arguments)
    return data_of(asked.spec, splits, asked.split, are_images=False)


def _images_or_texts(load: Callable[..., Splits]) -> Callable[[DataRequest], Data]:
    """The loader of data that holds images or texts, from a function as `parquet.load_parquet` is one."""

    def loaded(asked: DataRequest) -> Data:
        reader = ImageReader(asked.image_size)
        splits = load(asked.place, reader, asked.normalization, asked.arguments, asked.token_sources)
        if asked.tokenizer is not None and not (isinstance(splits.train, TensorSource)):
            raise InputError(f"`tokenizer` must be left out for images, got it with {asked.spec}, which holds images.")
        return data_of(asked.spec, splits, asked.split)

    return loaded


def _load_parquet(*arguments: Any) -> Splits:
    """As `parquet.load_parquet`; pyarrow is imported for those alone who read its files."""
    from autocompress.data.parquet import load_parquet

    return load_parquet(*arguments)


def _load_hf_dataset(*arguments: Any) -> Splits:
    """As `hf_dataset.load_hf_dataset`, likewise."""
    from autocompress.data.hf_dataset import load_hf_dataset

    return load_hf_dataset(*arguments)


def _tables(load: Callable[..., Splits], form: str) -> DataSource:
    """The source of data that holds images or texts, and takes names."""
    return DataSource(_images_or_texts(load), form, takes_images=True, takes_arguments=True, takes_texts=True)


def _texts(kind: str, form: str) -> DataSource:
    """The source of data that tokenizes texts."""

    def load(asked: DataRequest) -> Data:
        splits = load_texts(asked.spec, asked.tokenizer, asked.max_tokens, asked.arguments)
        return data_of(asked.spec, splits, asked.split)

    return DataSource(load, f"{kind}:{form}", takes_arguments=True, takes_texts=True)


DATA_SOURCES: Registry[DataSource] = Registry(
    "data",
    {
        "digits": DataSource(_digits, "digits"),
        "parquet": _tables(_load_parquet, "parquet:FOLDER"),
        "imagefolder": DataSource(_imagefolder, "imagefolder:FOLDER", takes_images=True),
        "audio": DataSource(_audio, "audio:FOLDER", takes_arguments=True, takes_sounds=True),
        "hf-dataset": _tables(_load_hf_dataset, "hf-dataset:FOLDER"),
        "npz": DataSource(_npz, "npz:FILE"),
        **{kind: _texts(kind, "FILE|FOLDER") for kind in ("tsv", "csv", "jsonl", "lines")},
        **{kind: _tables(partial(load_annotations, kind), f"{kind}:FILE|FOLDER") for kind in ("prodigy", "labelbox")},
    },
)
"""Sources of data by the part of a spec before the colon."""

_CALLABLES = ("package.module:callable", "file.py:callable")


def source_of_function(name: str, function: Callable[..., Any]) -> DataSource:
    """The source of data of a function.

    Args:
        name: part of its specs before the colon.
        function: function that takes the place and keyword arguments, and returns what a callable in a spec
            does.
    """

    def load(asked: DataRequest) -> Data:
        return _from_result(asked, call_with("data", asked.spec, partial(function, asked.place), asked.arguments))

    return DataSource(load, f"{name}:PLACE", takes_arguments=True)


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
    tokenizer: str | Path | None = None,
    max_tokens: int = MAX_TOKENS,
    audio_seconds: float | None = None,
) -> Data:
    """The data that `spec` names.

    The search and the calibration split are disjoint parts of the training data, chosen by `seed`. Where the
    training data is small, the search split takes at most half and the calibration split at most a third of
    it.

    Args:
        spec: one of `digits`: scikit-learn's 8x8 digits, 1,437 training and 360 test images;
            `parquet:FOLDER`: train.parquet and test.parquet with columns image (encoded) or text, and label;
            `imagefolder:FOLDER`: FOLDER/train/CLASS/* and FOLDER/test/CLASS/* (or val), or images without classes or
            splits (`class_folders`); `audio:FOLDER`: sounds likewise; `hf-dataset:FOLDER`: a data set saved with
            `save_to_disk`; `prodigy:PLACE`, `labelbox:PLACE`: annotations (`annotations`); `npz:FILE`: arrays
            x_train, and y_train, x_test, y_test where there are labels and a test split; `tsv:PLACE`, `csv:PLACE`,
            `jsonl:PLACE` or `lines:PLACE`: texts, in a file or a folder with a train and a test or dev file (`texts`);
            `package.module:callable` or
            `file.py:callable`: returns (train,
            test) or (train, test, class names), both of them a map-style dataset or a pair of tensors;
            `NAME:PLACE`: a source that was registered.
        seed: seed of the search and the calibration split, at least 0.
        search_samples: size of the search split, at least 1.
        calibration_samples: size of the calibration split, at least 1.
        image_size: edge of the square images, for data that holds encoded images.
        mean: mean of every channel of pixels in [0, 1]; ImageNet's by default for RGB pixels, 0 for one
            channel.
        std: standard deviation of every channel; ImageNet's by default for RGB pixels, 1 for one channel.
        data_args: keyword arguments for the callable; columns (`text` or `image`, `label`) of tables; for sounds the
            options of `spectra.AudioFeatures`.
        tokenizer: folder of the tokenizer (tokenizer.json), for texts.
        max_tokens: most tokens of a text, at least 1.
        audio_seconds: length that sounds are padded with zeros or cut to, above 0. Default: that of the longest
            training file.

    Raises:
        InputError: an unknown spec, or data that is missing, empty, broken or not of the form above.
    """
    kind, _, place = spec.partition(":")
    source = DATA_SOURCES.find(kind) if _is_named(spec) else _callable_source(spec)
    _check_taken("image_size", image_size, source.takes_images, lambda each: each.takes_images, spec)
    _check_taken("tokenizer", tokenizer, source.takes_texts, lambda each: each.takes_texts, spec)
    _check_taken("audio_seconds", audio_seconds, source.takes_sounds, lambda each: each.takes_sounds, spec)
    if data_args and not source.takes_arguments:
        raise InputError(
            "`data_args` must be given with a callable, a table or sounds only, "
            f"got {', '.join(data_args)} with {spec}."
        )
    split = Split(seed, search_samples, calibration_samples)
    normalization = Normalization.parse(mean, std)
    folder = None if tokenizer is None else Path(tokenizer)
    asked = DataRequest(
        spec, place, image_size, normalization, split, data_args or {}, folder, max_tokens, audio_seconds
    )
    return source.load(asked)


def _check_taken(option: str, value: Any, is_taken: bool, takes: Callable[[DataSource], bool], spec: str) -> None:
    """Raise InputError where an option is given that the source has no use for."""
    if value is None or is_taken:
        return
    kinds = [f"{name}:" for name, source in DATA_SOURCES.items() if takes(source)]
    listed = " and ".join([", ".join(kinds[:-1]), kinds[-1]] if len(kinds) > 1 else kinds)
    raise InputError(f"`{option}` must be given with {listed} only, got it with {spec}.")


def names_function(spec: str) -> bool:
    """Whether `spec` names a function of somebody's own, not a source of the registry.

    >>> [names_function(spec) for spec in ("digits", "npz:digits.npz", "sets.py:load")]
    [False, False, True]
    """
    return ":" in spec and not _is_named(spec)


def _is_named(spec: str) -> bool:
    """Whether the spec is that of a source in the registry; `digits` alone has no place."""
    kind, colon, _ = spec.partition(":")
    return kind in DATA_SOURCES and bool(colon) == (":" in DATA_SOURCES[kind].form)


def _callable_source(spec: str) -> DataSource:
    """The source of the user's own function. Raises InputError where the spec has no form that is known."""
    if ":" not in spec or not spec.rpartition(":")[2].isidentifier():
        forms = [*(source.form for source in DATA_SOURCES.values()), *_CALLABLES]
        raise unknown_name("data", spec, forms)
    return DataSource(
        lambda asked: _from_result(asked, call("data", spec, asked.arguments)), spec, takes_arguments=True
    )


def _from_result(asked: DataRequest, result: Any) -> Data:
    """The data of a function's result. Raises InputError where it is no tuple of 2 or 3."""
    if not isinstance(result, tuple) or len(result) not in (2, 3):
        raise InputError(
            f"`data` {asked.spec} must return (train, test) or (train, test, class names), got {_form(result)}."
        )
    train, test = result[:2]
    if _is_one_part(train, test):
        raise InputError(
            f"`data` {asked.spec} must return ((inputs, labels), (test inputs, test labels)), got (inputs, labels); "
            "return that pair and None without a test split."
        )
    make = from_tensors if isinstance(train, tuple) else from_datasets
    return make(
        train,
        test,
        classes=result[2] if len(result) == 3 else None,
        name=asked.spec,
        seed=asked.split.seed,
        search_samples=asked.split.search_samples,
        calibration_samples=asked.split.calibration_samples,
        mean=asked.normalization.mean,
        std=asked.normalization.std,
    )


def _is_one_part(train: Any, test: Any) -> bool:
    """Whether inputs and labels of one split stand where two splits should."""
    return isinstance(train, (Tensor, np.ndarray)) and (test is None or isinstance(test, (Tensor, np.ndarray)))


def _form(value: Any) -> str:
    """A value's type in words, for messages."""
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else type(value).__name__
