"""`parquet:FOLDER`: encoded images and labels in train.parquet and test.parquet."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from autocompress.budget import format_bytes
from autocompress.data.labels import checked_labels, numbered_classes
from autocompress.data.pixels import ImageReader, Normalization, stack
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
        reader: decoder of an image.
        normalization: normalization that is applied on loading.
        labels: (N,) int64 label of every row.
        starts: first row of every row group, and the number of rows at the end.
    """

    path: Path
    reader: ImageReader
    normalization: Normalization
    labels: Tensor
    starts: tuple[int, ...]
    _kept: dict[int, pa.ChunkedArray] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return self.starts[-1]

    def load(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
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
        return self.normalization.apply(stack(images, str(self.path))), self.labels[torch.from_numpy(rows)]

    def _images(self, group: int) -> pa.ChunkedArray:
        """Encoded images of one row group; they are kept, as a shuffled batch reads from every group."""
        if group not in self._kept:
            column = _read(self.path, lambda file: _images_of(file, group, self.path))
            if sum(kept.nbytes for kept in self._kept.values()) + column.nbytes > _KEPT_BYTES:
                self._kept.clear()
            self._kept[group] = column
        return self._kept[group]

    def _decode(self, encoded: dict[int, Any], row: int, reader: ImageReader) -> Tensor:
        """Pixels (3, H, W) uint8 of one row. Raises InputError where there is no image or a broken one."""
        image = encoded[row]
        content = image.get("bytes") if isinstance(image, dict) else image
        if content is None:
            raise InputError(f"{self.path} row {row} must be a readable image, got an empty cell.")
        return reader.read(content, f"{self.path} row {row}")


def load_parquet(
    folder: str, reader: ImageReader, normalization: Normalization
) -> tuple[ParquetSource, ParquetSource, tuple[str, ...]]:
    """Sources of train.parquet and test.parquet, and the class names.

    The columns are `image` (encoded bytes, or a struct with `bytes`) and `label` (integer). Class names stand
    in the schema metadata of train.parquet under `classes`, comma separated; without them the labels' numbers
    are the names.

    Args:
        folder: path of the folder of both files.
        reader: decoder of an image.
        normalization: normalization that sources apply on loading.

    Raises:
        InputError: a file is missing, unreadable, empty, or has other columns or labels out of range.
    """
    train, test = (_open(Path(folder) / f"{split}.parquet", reader, normalization) for split in ("train", "test"))
    metadata = _read(train.path, lambda file: file.schema_arrow.metadata) or {}
    if b"classes" in metadata:
        classes = _class_names(metadata[b"classes"], train.path)
    else:
        classes = numbered_classes([(source.labels, str(source.path)) for source in (train, test)])
    for source in (train, test):
        if _top(source) >= len(classes):
            raise InputError(f"{source.path} must hold labels below {len(classes)} (its classes), got {_top(source)}.")
    return train, test, classes


def _class_names(names: bytes, path: Path) -> tuple[str, ...]:
    """Class names from the metadata. Raises InputError where they are not UTF-8."""
    try:
        return tuple(names.decode().split(","))
    except UnicodeDecodeError as error:
        raise InputError(
            f"`classes` in the metadata of {path} must be UTF-8, got byte {error.start} that is not."
        ) from error


def _top(source: ParquetSource) -> int:
    """The largest label of a source."""
    return int(source.labels.max())


def _open(path: Path, reader: ImageReader, normalization: Normalization) -> ParquetSource:
    """The source of one file. Raises InputError where it is not as it has to be."""
    counts, schema = _read(path, lambda file: (_group_sizes(file), file.schema_arrow))
    missing = [name for name in ("image", "label") if name not in schema.names]
    if missing:
        raise InputError(f"{path} must have columns image and label, got {', '.join(schema.names)}.")
    if sum(counts) == 0:
        raise InputError(f"{path} must hold at least 1 row, got 0.")
    _check_rows(path, sum(counts))
    _check_image_type(path, schema.field("image").type)
    starts = tuple(np.cumsum([0, *counts]).tolist())
    return ParquetSource(path, reader, normalization, _read_labels(path), starts)


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


def _images_of(file: pq.ParquetFile, group: int, path: Path) -> pa.ChunkedArray:
    """The encoded images of a row group. Raises InputError, before it unpacks any, where they don't fit into memory."""
    size, limit = file.metadata.row_group(group).total_byte_size, memory_limit(None)
    if size > limit:
        raise InputError(
            f"{path} must have row groups that fit into the {format_bytes(limit)} of memory that are left, got one of "
            f"{format_bytes(size)}; write the file with smaller ones."
        )
    return file.read_row_group(group, columns=["image"]).column("image")


def _check_image_type(path: Path, kind: pa.DataType) -> None:
    """Raise InputError where the column of images holds neither bytes nor a struct with them."""
    inner = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    if not (pa.types.is_binary(inner) or pa.types.is_large_binary(inner)):
        raise InputError(f"{path} column image must hold bytes or a struct with bytes, got {kind}.")


def _read_labels(path: Path) -> Tensor:
    """Labels (N,) int64 of all rows. Raises InputError where one is missing, negative or no integer."""
    column = _read(path, lambda file: file.read(columns=["label"])).column("label")
    if not pa.types.is_integer(column.type):
        raise InputError(f"{path} column label must hold integers, got {column.type}.")
    if column.null_count:
        row = pc.index(column.is_null(), pa.scalar(True)).as_py()
        raise InputError(f"{path} row {row} must have a label, got an empty cell.")
    return checked_labels(column.to_numpy(), str(path))


def _read(path: Path, what: Callable[[pq.ParquetFile], Any]) -> Any:
    """The result of `what` on the opened file. Raises InputError where it can't be read."""
    check_regular("`data`", path)
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            return what(file)
    except (OSError, pa.ArrowException) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else reason_of(error)
        raise InputError(f"`data` must be a readable Parquet file, got {path}: {reason}.") from error
