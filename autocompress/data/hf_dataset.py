"""`hf-dataset:FOLDER`: a data set that the library `datasets` has saved with `save_to_disk`; only pyarrow reads it.

FOLDER/dataset_dict.json                names of the splits, each of which is a folder; missing for a single split
FOLDER/train/state.json                 names of the split's Arrow files
FOLDER/train/dataset_info.json          types of the columns: names of classes
FOLDER/train/data-00000-of-00001.arrow  rows, as an Arrow stream
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from autocompress.data.columns import TableColumns, check_image_type, encoded_image, labels_of, texts_of
from autocompress.data.imagefolder import ImageSource
from autocompress.data.pixels import ImageReader, Normalization
from autocompress.data.sources import Source, Splits, TextSources
from autocompress.data.texts import TESTS
from autocompress.errors import InputError, reason_of
from autocompress.files import check_regular

_ARGUMENTS = ("image", "text", "label", "train", "test")


@dataclass(frozen=True, eq=False)
class ArrowImageSource(ImageSource):
    """Encoded images in a column of an Arrow table, which holds bytes or structs with bytes; `name` is the table's."""

    def _read(self, index: int, reader: ImageReader) -> Tensor:
        """Pixels (3, H, W) uint8 of one row. Raises InputError where there is no image or a broken one."""
        cells: Any = self.images
        content = encoded_image(cells[index].as_py())
        if content is None:
            raise InputError(f"{self.name} row {index} must hold an image's bytes, got none; save the data set anew.")
        return reader.read(content, f"{self.name} row {index}")


def load_hf_dataset(
    folder: str,
    reader: ImageReader,
    normalization: Normalization,
    arguments: Mapping[str, Any],
    texts: TextSources,
) -> Splits:
    """Training and test source of a saved data set, and the class names.

    Args:
        folder: folder that `save_to_disk` has written.
        reader: decoder of an image.
        normalization: normalization that sources apply on loading.
        arguments: names of columns (`image` or `text`, and `label`) and of the splits (`train`, `test`). Default:
            the columns of these names, the split train, and the first of test, dev, validation and valid.
        texts: function from the texts and labels of every split to their sources.

    Raises:
        InputError: a file is missing or damaged, or a column or split is not there.
    """
    unknown = set(arguments) - set(_ARGUMENTS)
    if unknown:
        raise InputError(f"`data_args` of hf-dataset: must be of {', '.join(_ARGUMENTS)}, got {min(unknown)}.")
    folders = _split_folders(Path(folder), arguments)
    tables = {part: _table(path) for part, path in folders.items()}
    places = {part: str(path) for part, path in folders.items()}
    columns = TableColumns.of(arguments, tables["train"].column_names, places["train"])
    _check_columns(tables, columns, places)
    classes, labels = _labels(tables, columns, folders)
    samples = {part: table.column(columns.name) for part, table in tables.items()}
    made: Mapping[str, Source]
    if columns.content == "text":
        made = texts({part: texts_of(column, columns.name, places[part]) for part, column in samples.items()}, labels)
    else:
        made = {
            part: ArrowImageSource(column, labels[part], reader, normalization, places[part])
            for part, column in samples.items()
        }
    return Splits(made["train"], made.get("test"), classes, columns.notes(arguments, places["train"]))


def _split_folders(root: Path, arguments: Mapping[str, Any]) -> dict[str, Path]:
    """The folder of each split. Raises InputError where one is not there that is named, or that of the training."""
    if not root.is_dir():
        raise InputError(f"`data` hf-dataset:FOLDER must be an existing folder, got {root}.")
    if not (root / "dataset_dict.json").exists():
        if not (root / "state.json").exists():
            raise InputError(
                f"`data` hf-dataset:FOLDER must be written by save_to_disk of the library datasets, got {root} without "
                "dataset_dict.json or state.json."
            )
        return {"train": root}
    names = _json(root / "dataset_dict.json").get("splits")
    known = [name for name in names if isinstance(name, str) and Path(name).name == name] if names else []
    given = {part: arguments[part] for part in ("train", "test") if part in arguments}
    for part, name in given.items():
        if name not in known:
            raise InputError(f"`data_args` {part} must be one of {', '.join(known)}, got {name!r} for {root}.")
    train: str = given.get("train", "train")
    if train not in known:
        raise InputError(
            f"`data` hf-dataset:FOLDER must have a split train, got {', '.join(known) or 'none'} in {root}; "
            "name one with --data-args '{train: SPLIT}'."
        )
    tests: list[str] = (
        [given["test"]] if "test" in given else [name for name in TESTS if name in known and name != train]
    )
    return {"train": root / train} | ({"test": root / tests[0]} if tests else {})


def _table(folder: Path) -> pa.Table:
    """The rows of a split, mapped into memory. Raises InputError where they can't be read."""
    files = _json(folder / "state.json").get("_data_files")
    named = [file.get("filename") for file in files if isinstance(file, dict)] if isinstance(files, list) else []
    names = [str(name) for name in named]
    if not names or any(Path(name).name != name for name in names):
        raise InputError(f"{folder / 'state.json'} must name the Arrow files beside it, got {names}.")
    try:
        table = pa.concat_tables([_mapped(folder / name) for name in names])
    except pa.ArrowInvalid as error:
        raise InputError(f"{folder} must hold files of the same columns, got others: {reason_of(error)}.") from error
    if not table.num_rows:
        raise InputError(f"{folder} must hold at least 1 row, got 0.")
    return table


def _mapped(path: Path) -> pa.Table:
    check_regular("`data`", path)
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
            table = stream.read_all()
        table.validate(full=True)
    except (OSError, pa.ArrowException) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else reason_of(error)
        raise InputError(f"`data` must be a readable Arrow file, got {path}: {reason}.") from error
    return table


def _check_columns(tables: Mapping[str, pa.Table], columns: TableColumns, places: Mapping[str, str]) -> None:
    """Raise InputError where a split lacks a column, or its images can't be read."""
    wanted = [columns.name, *([] if columns.label is None else [columns.label])]
    for part, table in tables.items():
        if any(name not in table.column_names for name in wanted):
            got = ", ".join(table.column_names)
            raise InputError(f"{places[part]} must have columns {' and '.join(wanted)}, got {got}.")
        if columns.content == "image":
            check_image_type(table.schema.field(columns.name).type, columns.name, places[part])


def _labels(
    tables: Mapping[str, pa.Table], columns: TableColumns, folders: Mapping[str, Path]
) -> tuple[tuple[str, ...], Mapping[str, Tensor | None]]:
    """Class names and labels of every split; without a column of labels, neither."""
    if columns.label is None:
        return (), dict.fromkeys(tables)
    label = _json(folders["train"] / "dataset_info.json").get("features", {}).get(columns.label)
    names = label.get("names") if isinstance(label, dict) else None
    classes = [str(name) for name in names] if isinstance(names, list) else None
    found = {part: table.column(columns.label) for part, table in tables.items()}
    if "test" in found and pa.types.is_integer(found["test"].type) and pc.max(found["test"]).as_py() == -1:
        raise InputError(
            f"{folders['test']} must have labels, got -1 in every row; name another split with --data-args "
            "'{test: validation}'."
        )
    return labels_of(found, {part: str(path) for part, path in folders.items()}, classes)


def _json(path: Path) -> dict[str, Any]:
    """The content of a file of the library. Raises InputError where it can't be read or is no JSON object."""
    check_regular("`data`", path)
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"`data` must be a readable JSON file, got {path}: {reason_of(error)}.") from error
    if not isinstance(content, dict):
        raise InputError(f"`data` must be a JSON object, got {type(content).__name__} in {path}.")
    return content
