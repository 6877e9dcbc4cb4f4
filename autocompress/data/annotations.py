"""Annotations for classification as labelling tools export them: `prodigy:PLACE` (JSONL) and `labelbox:PLACE` (NDJSON).

A place is a file, or a folder with `train` and `test` (or `dev`, `validation`, `valid`) files. A sample has a text or
an image, and one class. Images are files beside the export, or Prodigy's inline data; nothing is ever downloaded.
Answers that were rejected, ignored or skipped are left out, and counted in a line.
"""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.data.imagefolder import ImageSource
from autocompress.data.labels import named_labels
from autocompress.data.pixels import ImageReader, Normalization
from autocompress.data.sources import Splits, TextSources
from autocompress.data.texts import json_lines, split_files
from autocompress.errors import InputError, shown
from autocompress.files import check_regular

_INLINE = "data:"  # how Prodigy's inline images begin
_ARGUMENTS = {"prodigy": ("classes",), "labelbox": ("classes", "label")}
_REJECTED, _IGNORED, _UNLABELLED, _DISAGREED = "rejected", "ignored", "without a label", "labelled in several ways"


@dataclass(frozen=True)
class Annotation:
    """What a line of an export says.

    Attributes:
        text: the text, or None.
        image: path or inline data of the image, or None.
        label: name of the class, or None.
        choices: names of the classes to choose from, as far as the line names them.
        left_out: why the sample is left out, or None.
    """

    text: str | None
    image: str | None
    label: str | None = None
    choices: tuple[str, ...] = ()
    left_out: str | None = None


def load_annotations(
    kind: str,
    place: str,
    reader: ImageReader,
    normalization: Normalization,
    arguments: Mapping[str, Any],
    texts: TextSources,
) -> Splits:
    """Training and test source of annotations, and the class names.

    Args:
        kind: `prodigy` or `labelbox`.
        place: exported file, or a folder with one for each split.
        reader: decoder of an image.
        normalization: normalization that sources apply on loading.
        arguments: `classes`, the class names in the order of the network's outputs (default: in alphabetical order),
            and for Labelbox `label`, the name of the question whose answers are the classes.
        texts: function from the texts and labels of every split to their sources.

    Raises:
        InputError: a file is missing or damaged, a line is no such annotation, or an image is not there.
    """
    unknown = set(arguments) - set(_ARGUMENTS[kind])
    if unknown:
        raise InputError(f"`data_args` of {kind}: must be of {', '.join(_ARGUMENTS[kind])}, got {min(unknown)}.")
    files = split_files(Path(place), kind, "jsonl" if kind == "prodigy" else "ndjson")
    read = {part: _read(path, kind, arguments.get("label")) for part, path in files.items()}
    kept = {part: [each for each in found if each.left_out is None] for part, found in read.items()}
    for part, path in files.items():
        if not kept[part]:
            raise InputError(f"`data` must hold at least one accepted sample, got none in {path}.")
    every = [each for part in kept.values() for each in part]
    choices = {name for each in every for name in (*each.choices, *([each.label] if each.label else []))}
    given = arguments.get("classes")
    classes = list(map(str, given)) if given is not None else _ordered(choices)
    places = {part: str(path) for part, path in files.items()}
    labels = {part: [each.label for each in found] for part, found in kept.items()}
    names, numbers = named_labels(labels, places, classes)
    notes = tuple(_note(found, places[part]) for part, found in read.items() if len(kept[part]) < len(found))
    if _content(every, place) == "text":
        made = texts({part: [each.text or "" for each in found] for part, found in kept.items()}, numbers)
    else:
        made = {
            part: ImageSource(_images(found, files[part]), numbers[part], reader, normalization, places[part])
            for part, found in kept.items()
        }
    return Splits(made["train"], made.get("test"), names, notes)


def _ordered(names: set[str]) -> list[str] | None:
    """Class names in alphabetical order; None for whole numbers, which stand for themselves."""
    return None if all(name.isdecimal() for name in names) else sorted(names)


def _content(found: Sequence[Annotation], place: str) -> str:
    """`text` or `image`. Raises InputError where some samples have the one and some the other."""
    kinds = {"text" if each.image is None else "image" for each in found}
    if len(kinds) > 1:
        raise InputError(f"`data` must hold texts or images, got both in {place}.")
    return kinds.pop()


def _note(found: Sequence[Annotation], place: str) -> str:
    counts = Counter(each.left_out for each in found if each.left_out is not None)
    listed = ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()))
    return f"{counts.total():,} of {len(found):,} annotations of {place} are left out: {listed}"


def _read(path: Path, kind: str, question: str | None) -> list[Annotation]:
    """The annotations of a file. Those without a label are left out where others have one."""
    check_regular("`data`", path)
    found = []
    for where, content in json_lines(path):
        if not isinstance(content, dict):
            raise InputError(f"`data` must be JSON objects, one a line, got {where}.")
        found.append(_prodigy(content, where) if kind == "prodigy" else _labelbox(content, question, where))
    labelled = any(each.label is not None for each in found)
    if not labelled:
        return found
    return [
        Annotation(each.text, each.image, left_out=_UNLABELLED) if each.label is None and not each.left_out else each
        for each in found
    ]


# --- Prodigy ---------------------------------------------------------------------------------------------------------


def _prodigy(content: Mapping[str, Any], where: str) -> Annotation:
    """An annotation of Prodigy: `text` or `image`, `answer`, and `label` or the chosen options in `accept`."""
    text, image = content.get("text"), content.get("image")
    if not isinstance(image if image is not None else text, str):
        raise InputError(f"`data` prodigy: must have a text or an image in every line, got neither in {where}.")
    answer = content.get("answer", "accept")
    if answer not in ("accept", "reject", "ignore"):
        raise InputError(f"`answer` must be accept, reject or ignore, got {shown(str(answer))} in {where}.")
    if answer != "accept":
        return Annotation(text, image, left_out=_REJECTED if answer == "reject" else _IGNORED)
    accepted, options = content.get("accept"), content.get("options")
    choices = tuple(str(each["id"]) for each in _mappings(options) if "id" in each)
    if isinstance(accepted, list):
        if len(accepted) > 1:
            raise InputError(f"`data` prodigy: must have one class a sample, got {len(accepted)} in {where}.")
        return Annotation(text, image, str(accepted[0]) if accepted else None, choices)
    label = content.get("label")
    return Annotation(text, image, None if label is None else str(label), choices)


# --- Labelbox --------------------------------------------------------------------------------------------------------


def _labelbox(content: Mapping[str, Any], question: str | None, where: str) -> Annotation:
    """An annotation of Labelbox: a data row with its projects' labels, each of them with classifications."""
    row = content.get("data_row")
    if not isinstance(row, dict) or not isinstance(row.get("row_data"), str):
        raise InputError(f"`data` labelbox: must have data_row with row_data in every line, got {where}.")
    text, image = _row_content(row, _mapping(content.get("media_attributes")), where)
    projects = _mappings(list(_mapping(content.get("projects")).values()))
    if any(_mapping(each.get("project_details")).get("workflow_status") == "IN_REWORK" for each in projects):
        return Annotation(text, image, left_out=_REJECTED)
    labels = [label for each in projects for label in _mappings(each.get("labels"))]
    done = [label for label in labels if not _mapping(label.get("performance_details")).get("skipped")]
    if labels and not done:
        return Annotation(text, image, left_out=_IGNORED)
    answers = {answer for label in done if (answer := _answer(label, question, where)) is not None}
    if len(answers) > 1:
        return Annotation(text, image, left_out=_DISAGREED)
    return Annotation(text, image, answers.pop() if answers else None)


def _row_content(row: Mapping[str, Any], media: Mapping[str, Any], where: str) -> tuple[str | None, str | None]:
    """Text or image of a data row; an image that lies elsewhere goes by its external ID, the name of its file."""
    data: str = row["row_data"]
    kind, named = str(media.get("mime_type", "")), row.get("external_id")
    if kind.startswith("text/") and _is_address(data):
        raise InputError(f"`data` labelbox: must hold its texts, got the address {shown(data)} in {where}.")
    if kind.startswith("text/") or not (kind.startswith("image/") or _is_address(data)):
        return data, None
    return None, named if _is_address(data) and isinstance(named, str) and named else data


def _answer(label: Mapping[str, Any], question: str | None, where: str) -> str | None:
    """The class that a label names; None where its question was not answered."""
    found = _mappings(_mapping(label.get("annotations")).get("classifications"))
    asked = {str(each.get("name")): each for each in found}
    if question is None and len(asked) > 1:
        raise InputError(
            f"`data_args` must name the question whose answers are the classes, got {', '.join(sorted(asked))} in "
            f"{where}; pass --data-args '{{label: {min(asked)}}}'."
        )
    chosen = asked.get(question) if question is not None else next(iter(asked.values()), None)
    if chosen is None:
        return None
    answers = _mappings([chosen.get("radio_answer")]) or _mappings(chosen.get("checklist_answers"))
    if len(answers) > 1:
        raise InputError(f"`data` labelbox: must have one class a sample, got {len(answers)} in {where}.")
    named = answers[0].get("name") if answers else None
    return None if named is None else str(named)


def _mapping(value: Any) -> Mapping[str, Any]:
    """A JSON object, empty where there is none."""
    return value if isinstance(value, dict) else {}


def _mappings(values: Any) -> list[Mapping[str, Any]]:
    """The objects of a JSON list, empty where there is none."""
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


# --- images ----------------------------------------------------------------------------------------------------------


def _images(found: Sequence[Annotation], file: Path) -> tuple[Path | bytes, ...]:
    """Paths of the images beside a file, or their inline content."""
    return tuple(_image(str(each.image), file) for each in found)


def _image(image: str, file: Path) -> Path | bytes:
    """Path or content of one image. Raises InputError where it lies elsewhere than on this machine."""
    if image.startswith(_INLINE):
        head, _, content = image.partition(",")
        try:
            if head.endswith(";base64"):
                return base64.b64decode(content, validate=True)
        except binascii.Error:
            pass
        raise InputError(f"`data` must hold inline images in base64, got {shown(image[:40])} in {file}.")
    if _is_address(image):
        raise InputError(
            f"`data` must name images beside {file}, got the address {shown(image)}; nothing is downloaded: put the "
            "images there, and name them by relative paths."
        )
    path = file.parent / image
    if not path.is_file():
        raise InputError(f"`data` must name images beside {file}, got {shown(image)}, which is not there.")
    return path


def _is_address(text: str) -> bool:
    """Whether a text is the address of something elsewhere, such as `https://…` or `s3://…`."""
    scheme, mark, _ = text.partition("://")
    return bool(mark) and scheme.isalnum() and not any(letter.isspace() for letter in text)
