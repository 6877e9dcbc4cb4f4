"""Files in one folder a class, or in one folder without labels: where the splits, the classes and the labels are.

FOLDER/train/CLASS/FILE and FOLDER/test/CLASS/FILE (or val)     training and test split, with labels
FOLDER/train/FILE and FOLDER/test/FILE (or val)                 the same without labels
FOLDER/CLASS/FILE                                               training split alone, with labels
FOLDER/FILE                                                     training split alone, without labels
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from autocompress.errors import InputError

_TESTS = ("test", "val")  # folders of the test split; the first that is there counts


@dataclass(frozen=True)
class FileKind:
    """What files are looked for.

    Attributes:
        spec: part of the spec before the colon, for messages.
        what: name of what a file holds, such as `image`.
        suffixes: endings of the files, with their dots, in lower case.
        no_classes: names of folders that are no classes.
    """

    spec: str
    what: str
    suffixes: tuple[str, ...]
    no_classes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Files:
    """The files of one split.

    Attributes:
        folder: folder of the split.
        paths: paths of the files, sorted within each class.
        labels: (N,) int64 label of every file, or None.
    """

    folder: Path
    paths: tuple[Path, ...]
    labels: Tensor | None


@dataclass(frozen=True, eq=False)
class Found:
    """What a folder holds: `train`, and `test` where there is one; class names, and what the user should know."""

    train: Files
    test: Files | None
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def find_files(root: Path, kind: FileKind) -> Found:
    """The files of a folder by split and class.

    Classes are the folders of the training split, sorted.

    Args:
        root: folder of the data.
        kind: kind of the files.

    Raises:
        InputError: a folder is missing or holds no such files, files lie beside folders of classes, or the test split
            has a class that the training split has not.
    """
    if not root.is_dir():
        raise InputError(f"`data` {kind.spec}:FOLDER must be an existing folder, got {root}.")
    train, test = root, None
    if (root / "train").is_dir():
        train, test = root / "train", _test_folder(root, kind)
    classes = _subfolders(train, kind)
    if train == root and len(classes) == 1:
        raise InputError(
            f"`data` {kind.spec}:FOLDER must hold folders train and test, two classes or more, or {kind.what}s alone, "
            f"got the one folder {classes[0]} in {root}."
        )
    _check_test(train, test, classes, kind)
    files = _files(train, classes, kind)
    return Found(files, None if test is None else _files(test, classes, kind), classes, _notes(files, classes, kind))


def _test_folder(root: Path, kind: FileKind) -> Path:
    """The folder of the test split. Raises InputError where there is none."""
    for name in _TESTS:
        if (root / name).is_dir():
            return root / name
    raise InputError(f"`data` {kind.spec}:FOLDER must hold a folder {' or '.join(_TESTS)}, got none in {root}.")


def _check_test(train: Path, test: Path | None, classes: Sequence[str], kind: FileKind) -> None:
    """Raise InputError where the test split has other classes than the training split."""
    if test is None:
        return
    unknown = [name for name in _subfolders(test, kind) if name not in classes]
    if unknown and not classes:
        raise InputError(f"{train} must hold one folder a class, as {test} does, got none.")
    if unknown:
        raise InputError(f"{test} must hold the classes of {train} only, got also {', '.join(unknown)}.")


def _subfolders(folder: Path, kind: FileKind) -> tuple[str, ...]:
    """Names of the folders below a folder, sorted, without hidden ones."""
    found = (entry.name for entry in folder.iterdir() if entry.is_dir() and not _is_hidden(entry))
    return tuple(sorted(set(found).difference(kind.no_classes)))


def _files(folder: Path, classes: Sequence[str], kind: FileKind) -> Files:
    """The files of one split. Raises InputError where there are none, or some beside the folders of classes."""
    loose = _matching(folder.iterdir(), kind)
    found = [(file, label) for label, name in enumerate(classes) for file in _below(folder / name, kind)]
    if classes and loose:
        raise InputError(
            f"{folder} must hold every {kind.what} in the folder of its class, got {loose[0].name} beside them."
        )
    if not found and not loose:
        raise InputError(f"{folder} must hold at least 1 {kind.what} ({', '.join(kind.suffixes)}), got 0.")
    if not classes:
        return Files(folder, tuple(loose), None)
    return Files(folder, tuple(file for file, _ in found), torch.tensor([label for _, label in found]))


def _below(folder: Path, kind: FileKind) -> list[Path]:
    """The files below a folder, sorted; empty where there is no such folder, as where a class has no test files."""
    return _matching(folder.rglob("*"), kind) if folder.is_dir() else []


def _matching(paths: Iterable[Path], kind: FileKind) -> list[Path]:
    return sorted(path for path in paths if path.suffix.lower() in kind.suffixes and not _is_hidden(path))


def _notes(train: Files, classes: Sequence[str], kind: FileKind) -> tuple[str, ...]:
    """A line on classes that have no training files, and one on folders that are no classes."""
    counts = torch.zeros(0) if train.labels is None else train.labels.bincount(minlength=len(classes))
    empty = [name for name, count in zip(classes, counts.tolist(), strict=False) if not count]
    other = [name for name in kind.no_classes if (train.folder / name).is_dir()]
    notes = [f"{len(empty)} of {len(classes)} classes have no {kind.what} in {train.folder}: {', '.join(empty)}"]
    left = [f"{train.folder / name} is no class and is left out" for name in other]
    return (*(notes if empty else ()), *left)


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".")  # notebooks' and macOS's leftovers look like classes and images
