"""Columns of Arrow tables: which holds the images or texts, which the labels, and the labels' classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from autocompress.data.labels import checked_labels, named_labels, numbered_classes
from autocompress.errors import InputError

Content = Literal["image", "text"]


@dataclass(frozen=True)
class TableColumns:
    """Where a table has its samples.

    Attributes:
        content: kind of the samples.
        name: name of the samples' column.
        label: name of the labels' column, or None.
    """

    content: Content
    name: str
    label: str | None

    @classmethod
    def of(cls, arguments: Mapping[str, Any], names: Sequence[str], where: str) -> TableColumns:
        """The columns of a table: those that the user names, else `image` or `text`, and `label` if there is one.

        Args:
            arguments: names of columns that the user gives, by `image` or `text` and `label`; others are left alone.
            names: names of the table's columns.
            where: name of the table, for messages.

        Raises:
            InputError: a column that is named is missing, or neither is named nor there.
        """
        given = {key: arguments[key] for key in ("image", "text", "label") if key in arguments}
        for key, name in given.items():
            if not (isinstance(name, str) and name in names) and not (key == "label" and name is None):
                raise InputError(f"`data_args` must name columns of {where}, got {name!r}; known: {', '.join(names)}.")
        if {"image", "text"} <= set(given):
            raise InputError(f"`data_args` must name a column of images or of texts, got both for {where}.")
        content: Content
        for content in ("image", "text"):
            name = given.get(content, content)
            if content in given or (name in names and not {"image", "text"} & set(given)):
                return cls(content, name, given.get("label", "label" if "label" in names else None))
        raise InputError(
            f"{where} must have a column image or text, got {', '.join(names)}; "
            "name one with --data-args '{text: COLUMN}'."
        )

    def notes(self, arguments: Mapping[str, Any], where: str) -> tuple[str, ...]:
        """A line where there are no labels and nobody said so; `arguments` and `where` as for `of`."""
        if self.label is not None or "label" in arguments:
            return ()
        return (f"{where} has no column label, and is used without labels; --data-args '{{label: COLUMN}}' names one",)


def check_image_type(kind: pa.DataType, name: str, where: str) -> None:
    """Raise InputError where a column of images holds neither bytes nor a struct with them."""
    inner = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    if not (pa.types.is_binary(inner) or pa.types.is_large_binary(inner)):
        raise InputError(f"{where} column {name} must hold bytes or a struct with bytes, got {kind}.")


def encoded_image(cell: Any) -> Any:
    """Encoded bytes of a cell that holds bytes, or a struct with them; None where it is empty."""
    return cell.get("bytes") if isinstance(cell, dict) else cell


def texts_of(column: pa.ChunkedArray, name: str, where: str) -> list[str]:
    """The texts of a column. Raises InputError where it holds others, or an empty cell."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise InputError(f"{where} column {name} must hold texts, got {column.type}.")
    _check_filled(column, where, "text")
    try:
        texts: list[str] = column.to_pylist()
    except UnicodeDecodeError as error:
        raise InputError(f"{where} column {name} must be UTF-8, got another byte.") from error
    return texts


def labels_of(
    columns: Mapping[str, pa.ChunkedArray], places: Mapping[str, str], classes: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Class names, and (N,) int64 labels of every split.

    Args:
        columns: column of labels of every split: integers, or texts, which name classes.
        places: name of every split's data, for messages.
        classes: class names by label, where the table has them. Default: the numbers of integers, the texts in
            alphabetical order.

    Raises:
        InputError: a cell is empty, of another type, or a label beyond the classes.
    """
    for part, column in columns.items():
        _check_filled(column, places[part], "label")
    types = [str(column.type) for column in columns.values()]
    if all(pa.types.is_integer(column.type) for column in columns.values()):
        numbers = {part: checked_labels(column.to_numpy(), places[part]) for part, column in columns.items()}
        names = numbered_classes([(numbers[part], places[part]) for part in numbers]) if classes is None else classes
        for part, labels in numbers.items():
            if int(labels.max()) >= len(names):
                raise InputError(
                    f"{places[part]} must hold labels below {len(names)} (its classes), got {int(labels.max())}."
                )
        return tuple(names), numbers
    texts = {part: texts_of(column, "label", places[part]) for part, column in columns.items() if _is_text(column)}
    if len(texts) < len(columns):
        got = " and ".join(dict.fromkeys(types))
        raise InputError(
            f"{', '.join(places.values())} must hold labels that are all integers or all texts, got {got}."
        )
    found, named = named_labels(texts, places, classes)
    return found, {part: labels for part, labels in named.items() if labels is not None}


def _is_text(column: pa.ChunkedArray) -> bool:
    return bool(pa.types.is_string(column.type) or pa.types.is_large_string(column.type))


def _check_filled(column: pa.ChunkedArray, where: str, what: str) -> None:
    if column.null_count:
        row = pc.index(column.is_null(), pa.scalar(True)).as_py()
        raise InputError(f"{where} row {row} must have a {what}, got an empty cell.")
