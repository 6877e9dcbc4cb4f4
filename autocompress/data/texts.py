"""Texts with labels from files of lines, as tokens: `tsv:`, `csv:`, `jsonl:` and `lines:`.

A place is a file, or a folder with `train` and `test` (or `dev`, `validation`, `valid`) files of the source's ending.
Texts become token numbers by the tokenizer of a folder, as Hugging Face keeps it (`tokenizer.json`); nothing is ever
downloaded. All samples have the length of the longest text, at most `max_tokens`; the mask says what is padding.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.data.labels import named_labels
from autocompress.data.sources import Splits
from autocompress.data.tokens import token_sources
from autocompress.errors import InputError
from autocompress.files import check_regular

TESTS = ("test", "dev", "validation", "valid")
"""Names of the test split, in files and tables; the first that is there counts."""

_MOST_FIELD = 10_000_000  # characters of one field

Row = tuple[str, str | None]
"""A text, and its label or None."""


@dataclass(frozen=True)
class Columns:
    """Where the texts and their labels stand.

    Attributes:
        text: name of the texts' column in the header, or its number from 0 on where there is no header.
        label: the same for the labels; None: there are none.
    """

    text: str | int
    label: str | int | None

    @classmethod
    def of(cls, arguments: Mapping[str, Any], spec: str) -> Columns | None:
        """The columns that the user names; None where they name none.

        Raises:
            InputError: an unknown argument, or a column that is neither a name nor a number.
        """
        unknown = set(arguments) - {"text", "label"}
        if unknown:
            raise InputError(f"`data_args` of {spec} must be text and label, got {', '.join(sorted(unknown))}.")
        if not arguments:
            return None
        text, label = arguments.get("text", 0), arguments.get("label")
        if not isinstance(text, str | int) or not isinstance(label, str | int | None):
            raise InputError(f"`data_args` of {spec} must name columns, got {dict(arguments)}.")
        if label is not None and isinstance(text, str) != isinstance(label, str):
            raise InputError(f"`data_args` of {spec} must give two names or two numbers, got {text!r} and {label!r}.")
        return cls(text, label)


def load_texts(spec: str, tokenizer: Path | None, max_tokens: int, arguments: Mapping[str, Any]) -> Splits:
    """Training and test source of texts, and the class names.

    Args:
        spec: `tsv:`, `csv:`, `jsonl:` or `lines:`, and a file or folder.
        tokenizer: folder of the tokenizer, or its `tokenizer.json`.
        max_tokens: most tokens of a text; what lies behind is cut off.
        arguments: columns of the texts and of the labels (`text`, `label`). Without any, the first column holds the
            texts and the second the labels, if there is one; a first line whose label occurs nowhere else is a header.

    Raises:
        InputError: a file is missing or damaged, a line lacks a column, or the tokenizer can't be read.
    """
    kind, _, place = spec.partition(":")
    columns = Columns.of(arguments, spec)
    files = split_files(Path(place), kind, "txt" if kind == "lines" else kind)
    rows = {part: _rows(path, kind, columns) for part, path in files.items()}
    labels = {part: [label for _, label in found] for part, found in rows.items()}
    classes, numbers = named_labels(labels, {part: str(path) for part, path in files.items()})
    texts = {part: [text for text, _ in found] for part, found in rows.items()}
    sources = token_sources(texts, numbers, tokenizer, max_tokens)
    return Splits(sources["train"], sources.get("test"), classes)


def split_files(place: Path, kind: str, ending: str) -> dict[str, Path]:
    """The file of each split, `train` and, where there is one, `test`.

    Args:
        place: a file, which is the training data, or a folder with files of the splits' names.
        kind: part of the spec before the colon, for messages.
        ending: ending of the files in a folder, without its dot.

    Raises:
        InputError: there is no such file or folder, or no training file in the folder.
    """
    if not place.is_dir():
        if not place.exists():
            raise InputError(f"`data` {kind}:PLACE must be an existing file or folder, got {place}.")
        return {"train": place}
    train = place / f"train.{ending}"
    if not train.is_file():
        raise InputError(f"`data` {kind}:{place} must be a folder with train.{ending}, got none there.")
    tests = [path for name in TESTS if (path := place / f"{name}.{ending}").is_file()]
    return {"train": train} | ({"test": tests[0]} if tests else {})


def _rows(path: Path, kind: str, columns: Columns | None) -> list[Row]:
    """The texts of a file with their labels, at least one."""
    check_regular("`data`", path)
    found = list(_READERS[kind](path, columns))
    if not found:
        raise InputError(f"`data` must hold at least one text, got none in {path}.")
    if any(label is not None for _, label in found) and any(label is None for _, label in found):
        number = 1 + next(index for index, (_, label) in enumerate(found) if label is None)
        raise InputError(f"`data` must have a label in every row or in none, got none in row {number} of {path}.")
    return found


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not empty, with their numbers from 1 on.

    Raises:
        InputError: the file can't be read, or a line is not UTF-8.
    """
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                text = line.decode()
                if text.strip():
                    yield number, text.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(f"`data` must be UTF-8, got another byte in line {number} of {path}.") from error
    except OSError as error:
        raise InputError(f"`data` must be a readable file, got {path}: {error.strerror}.") from error


def _plain(path: Path, columns: Columns | None) -> Iterator[Row]:
    """Every line is a text."""
    if columns is not None:
        raise InputError("`data_args` must be left out with lines:, whose lines are texts alone.")
    for _, line in text_lines(path):
        yield line, None


def _table(path: Path, columns: Columns | None, **form: Any) -> Iterator[Row]:
    """Lines of fields."""
    csv.field_size_limit(_MOST_FIELD)
    reader = csv.reader((line for _, line in text_lines(path)), strict=True, **form)
    try:
        records = list(reader)
    except csv.Error as error:
        raise InputError(f"`data` must be a table, got {path}, line {reader.line_num}: {error}.") from error
    if not records:
        return
    header = records[0]
    if columns is None:
        columns = Columns(0, 1 if len(header) > 1 else None)
        skipped = int(_is_header(records, columns))
    else:
        skipped = int(isinstance(columns.text, str))
    text, label = (_place(each, header, path) for each in (columns.text, columns.label))
    assert text is not None
    for number, record in enumerate(records[skipped:], 1 + skipped):
        if len(record) <= max(text, -1 if label is None else label):
            raise InputError(f"`data` must have its columns in every row, got {len(record)} in row {number} of {path}.")
        yield record[text], None if label is None else record[label].strip()


def _is_header(records: Sequence[Sequence[str]], columns: Columns) -> bool:
    """Whether the first of several lines names columns: its label, if it has one, occurs nowhere else."""
    if columns.label is None or len(records) < 3:
        return False
    label = int(columns.label)
    return all(len(record) <= label or record[label] != records[0][label] for record in records[1:])


def _place(column: str | int | None, header: Sequence[str], path: Path) -> int | None:
    """The number of a column, by its name in the header."""
    if not isinstance(column, str):
        return column
    if column not in header:
        raise InputError(f"`data_args` must name columns of {path}, got {column!r}; known: {', '.join(header)}.")
    return header.index(column)


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Place, such as `line 3 of FILE`, and JSON value of every line. Raises InputError where a line is no JSON."""
    for number, line in text_lines(path):
        where = f"line {number} of {path}"
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"`data` must be JSON objects, one a line, got {where}.") from error
        yield where, content


def _objects(path: Path, columns: Columns | None) -> Iterator[Row]:
    """One JSON object a line."""
    wanted = columns or Columns("text", "label")
    for where, content in json_lines(path):
        if not isinstance(content, dict) or not isinstance(content.get(str(wanted.text)), str):
            raise InputError(f"`data` must have a text {wanted.text!r} in every line, got none in {where}.")
        label = content.get(str(wanted.label)) if wanted.label is not None else None
        if columns is not None and columns.label is not None and label is None:
            raise InputError(f"`data` must have {columns.label!r} in every line, got none in {where}.")
        yield content[str(wanted.text)], None if label is None else str(label)


def _tsv(path: Path, columns: Columns | None) -> Iterator[Row]:
    return _table(path, columns, delimiter="\t", quoting=csv.QUOTE_NONE)


_READERS: Mapping[str, Callable[[Path, Columns | None], Iterator[Row]]] = {
    "tsv": _tsv,
    "csv": _table,
    "jsonl": _objects,
    "lines": _plain,
}
