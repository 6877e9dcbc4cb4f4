"""`parquet:FOLDER`: encoded images or texts, and their labels, in train.parquet and test.parquet."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from autocompress.budget import format_bytes
from autocompress.data.columns import TableColumns, check_image_type, encoded_image, labels_of, texts_of
from autocompress.data.pixels import ImageReader, Normalization, stack
from autocompress.data.sources import Splits, TextSources
from autocompress.errors import InputError, reason_of
from autocompress.files import check_regular
from autocompress.memory import memory_limit

_BYTES_A_LABEL = 32  # in Arrow, in NumPy and in PyTorch at once
_KEPT_BYTES = 512 << 20  # of encoded images that stay in memory


@dataclass(frozen=True, eq=False)
class ParquetSource:
    """Encoded images in one Parquet file.

    Only the images that are asked for are decoded. Row groups that were read stay in memory, encoded, up to
    half a gigabyte.

    Attributes:
        path: path of the file.
        column: name of the column of images.
        reader: decoder of an image.
        normalization: normalization that is applied on loading.
        labels: (N,) int64 label of every row, or None.
        starts: first row of every row group, and the number of rows at the end.
    """

    path: Path
    column: str
    reader: ImageReader
    normalization: Normalization
    labels: Tensor | None
    starts: tuple[int, ...]
    _kept: dict[int, pa.ChunkedArray] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return self.starts[-1]

    def load(self, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        rows = np.asarray(indices, dtype=np.int64)
        encoded: dict[int, Any] = {}
        for group in np.unique(np.searchsorted(self.starts, rows, side="right") - 1).tolist():
            start, end = self.starts[group], self.starts[group + 1]
            wanted = np.unique(rows[(rows >= start) & (rows < end)])
            images = self._images(group).take(pa.array(wanted - start)).to_pylist()
            encoded.update(zip(wanted.tolist(), images, strict=True))
        reader = self.reader.for_batch(max(1, len(rows)))
        shares = np.array_split(rows, min(len(rows), os.cpu_count() or 1))  # a task an image would cost more than it
        with ThreadPoolExecutor() as pool:  # Pillow decodes without holding the interpreter lock
            decoded = pool.map(lambda share: [self._decode(encoded, row, reader) for row in share.tolist()], shares)
            images = list(itertools.chain.from_iterable(decoded))
        labels = None if self.labels is None else self.labels[torch.from_numpy(rows)]
        return self.normalization.apply(stack(images, str(self.path))), labels

    def _images(self, group: int) -> pa.ChunkedArray:
        """Encoded images of one row group; they are kept, as a shuffled batch reads from every group."""
        if group not in self._kept:
            column = _read(self.path, lambda file: _images_of(file, group, self.path, self.column))
            if sum(kept.nbytes for kept in self._kept.values()) + column.nbytes > _KEPT_BYTES:
                self._kept.clear()
            self._kept[group] = column
        return self._kept[group]

    def _decode(self, encoded: dict[int, Any], row: int, reader: ImageReader) -> Tensor:
        """Pixels (3, H, W) uint8 of one row. Raises InputError where there is no image or a broken one."""
        content = encoded_image(encoded[row])
        if content is None:
            raise InputError(f"{self.path} row {row} must be a readable image, got an empty cell.")
        return reader.read(content, f"{self.path} row {row}")


def load_parquet(
    folder: str,
    reader: ImageReader,
    normalization: Normalization,
    arguments: Mapping[str, Any],
    texts: TextSources,
) -> Splits:
    """Sources of train.parquet and, where there is one, test.parquet, and the class names.

    The columns are `image` (encoded bytes, or a struct with `bytes`) or `text`, and `label` (integers, or names of
    classes), which may be missing. Class names stand in the schema metadata of train.parquet under `classes`, comma
    separated; without them the labels' numbers are the names.

    Args:
        folder: path of the folder of both files.
        reader: decoder of an image.
        normalization: normalization that sources apply on loading.
        arguments: names of other columns, by `image` or `text` and `label`.
        texts: function from the texts and labels of every split to their sources.

    Raises:
        InputError: a file is missing, unreadable, empty, or has other columns or labels out of range.
    """
    unknown = set(arguments) - {"image", "text", "label"}
    if unknown:
        raise InputError(f"`data_args` of parquet: must be image, text and label, got {min(unknown)}.")
    paths = {part: path for part in ("train", "test") if (path := Path(folder) / f"{part}.parquet").exists()}
    paths = {"train": Path(folder) / "train.parquet"} | paths
    starts = {part: _starts(path) for part, path in paths.items()}
    schema = _read(paths["train"], lambda file: file.schema_arrow)
    columns = TableColumns.of(arguments, schema.names, str(paths["train"]))
    for part, path in paths.items():
        _check_columns(path, columns, starts[part][-1])
    names = (schema.metadata or {}).get(b"classes")
    classes, labels = _labels(paths, columns, None if names is None else _class_names(names, paths["train"]))
    if columns.content == "text":
        made = texts({part: _texts(path, columns.name) for part, path in paths.items()}, labels)
    else:
        made = {
            part: ParquetSource(path, columns.name, reader, normalization, labels[part], starts[part])
            for part, path in paths.items()
        }
    return Splits(made["train"], made.get("test"), classes, columns.notes(arguments, str(paths["train"])))


def _labels(
    paths: Mapping[str, Path], columns: TableColumns, classes: tuple[str, ...] | None
) -> tuple[tuple[str, ...], Mapping[str, Tensor | None]]:
    """Class names and labels of every split; without a column of labels, neither."""
    if columns.label is None:
        return (), dict.fromkeys(paths)
    found = {
        part: _read(path, lambda file: file.read(columns=[columns.label])).column(columns.label)
        for part, path in paths.items()
    }
    return labels_of(found, {part: str(path) for part, path in paths.items()}, classes)


def _texts(path: Path, name: str) -> list[str]:
    """The texts of a file. Raises InputError, before it unpacks any, where they don't fit into memory."""
    size, limit = _read(path, _unpacked_bytes), memory_limit(None)
    if size > limit:
        raise InputError(
            f"{path} must fit into the {format_bytes(limit)} of memory that are left, got {format_bytes(size)} of rows."
        )
    return texts_of(_read(path, lambda file: file.read(columns=[name])).column(name), name, str(path))


def _unpacked_bytes(file: pq.ParquetFile) -> int:
    """Bytes of all columns once they are unpacked."""
    return sum(file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups))


def _class_names(names: bytes, path: Path) -> tuple[str, ...]:
    """Class names from the metadata. Raises InputError where they are not UTF-8."""
    try:
        return tuple(names.decode().split(","))
    except UnicodeDecodeError as error:
        raise InputError(
            f"`classes` in the metadata of {path} must be UTF-8, got byte {error.start} that is not."
        ) from error


def _starts(path: Path) -> tuple[int, ...]:
    """The first row of every row group, and the number of rows. Raises InputError where there are none or too many."""
    counts = _read(path, _group_sizes)
    if sum(counts) == 0:
        raise InputError(f"{path} must hold at least 1 row, got 0.")
    return tuple(np.cumsum([0, *counts]).tolist())


def _check_columns(path: Path, columns: TableColumns, rows: int) -> None:
    """Raise InputError where a file lacks a column, or its images or labels can't be read."""
    schema = _read(path, lambda file: file.schema_arrow)
    wanted = [columns.name, *([] if columns.label is None else [columns.label])]
    if any(name not in schema.names for name in wanted):
        raise InputError(f"{path} must have columns {' and '.join(wanted)}, got {', '.join(schema.names)}.")
    if columns.label is not None:
        _check_rows(path, rows)
    if columns.content == "image":
        check_image_type(schema.field(columns.name).type, columns.name, str(path))


def _check_rows(path: Path, rows: int) -> None:
    """Raise InputError where not even the labels fit into memory: a thousand bytes can hold a billion equal ones."""
    limit, wanted = memory_limit(None), rows * _BYTES_A_LABEL
    if wanted > limit:
        raise InputError(
            f"{path} must fit into the {format_bytes(limit)} of memory that are left, got {rows:,} rows, whose labels "
            f"take {format_bytes(wanted)}."
        )


def _group_sizes(file: pq.ParquetFile) -> list[int]:
    """Number of rows of every row group."""
    return [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]


def _images_of(file: pq.ParquetFile, group: int, path: Path, name: str) -> pa.ChunkedArray:
    """The encoded images of a row group. Raises InputError, before it unpacks any, where they don't fit into memory."""
    size, limit = file.metadata.row_group(group).total_byte_size, memory_limit(None)
    if size > limit:
        raise InputError(
            f"{path} must have row groups that fit into the {format_bytes(limit)} of memory that are left, got one of "
            f"{format_bytes(size)}; write the file with smaller ones."
        )
    return file.read_row_group(group, columns=[name]).column(name)


def _read(path: Path, what: Callable[[pq.ParquetFile], Any]) -> Any:
    """The result of `what` on the opened file. Raises InputError where it can't be read."""
    check_regular("`data`", path)
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            return what(file)
    except (OSError, pa.ArrowException) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else reason_of(error)
        raise InputError(f"`data` must be a readable Parquet file, got {path}: {reason}.") from error
