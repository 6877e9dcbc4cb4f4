"""`imagefolder:FOLDER`: one folder a class under FOLDER/train and FOLDER/test or FOLDER/val."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from autocompress.data.pixels import ImageReader, Normalization, stack
from autocompress.errors import InputError

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True, eq=False)
class FolderSource:
    """Image files that are decoded on demand.

    Attributes:
        files: paths of the images, in the order of labels and of names.
        labels: (N,) int64 label of every image.
        reader: decoder of an image.
        normalization: normalization that is applied on loading.
    """

    files: tuple[Path, ...]
    labels: Tensor
    reader: ImageReader
    normalization: Normalization

    def __len__(self) -> int:
        return len(self.files)

    def load(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        chosen = [self.files[index] for index in indices]
        reader = self.reader.for_batch(max(1, len(chosen)))
        with ThreadPoolExecutor() as pool:  # Pillow decodes without holding the interpreter lock
            images = list(pool.map(lambda file: reader.read(file, str(file)), chosen))
        folder = str(self.files[0].parent.parent)
        return self.normalization.apply(stack(images, folder)), self.labels[torch.tensor(list(indices))]


def load_imagefolder(
    folder: str, reader: ImageReader, normalization: Normalization
) -> tuple[FolderSource, FolderSource, tuple[str, ...]]:
    """Training and test source of a folder, and the class names: the folders below its `train`, sorted.

    Args:
        folder: path of the folder that holds `train`, and `test` or `val`.
        reader: decoder of an image.
        normalization: normalization that sources apply on loading.

    Raises:
        InputError: a folder is missing or holds no images, or the test split has a class that train has not.
    """
    root = Path(folder)
    train_folder = _first_folder(root, "train")
    test_folder = _first_folder(root, "test", "val")
    classes = _subfolders(train_folder)
    if not classes:
        raise InputError(f"{train_folder} must hold one folder a class, got none.")
    unknown = [name for name in _subfolders(test_folder) if name not in classes]
    if unknown:
        raise InputError(f"{test_folder} must hold the classes of {train_folder} only, got also {', '.join(unknown)}.")
    train, test = (_source(part, classes, reader, normalization) for part in (train_folder, test_folder))
    return train, test, classes


def _first_folder(root: Path, *names: str) -> Path:
    """The first of the folders below `root` that exists. Raises InputError where none does."""
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise InputError(f"`data` imagefolder:FOLDER must hold a folder {' or '.join(names)}, got none in {root}.")


def _subfolders(folder: Path) -> tuple[str, ...]:
    """Names of the folders below a folder, sorted, without hidden ones."""
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _is_hidden(entry)))


def _source(folder: Path, classes: Sequence[str], reader: ImageReader, normalization: Normalization) -> FolderSource:
    """The source of one split's folder. Raises InputError where it holds no image."""
    found = [(file, label) for label, name in enumerate(classes) for file in _images(folder / name)]
    if not found:
        raise InputError(f"{folder} must hold at least 1 image ({', '.join(IMAGE_SUFFIXES)}), got 0.")
    labels = torch.tensor([label for _, label in found])
    return FolderSource(tuple(file for file, _ in found), labels, reader, normalization)


def _images(folder: Path) -> list[Path]:
    """Paths of the images below a folder, sorted; empty where there is no such folder."""
    if not folder.is_dir():  # a class without test images
        return []
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and not _is_hidden(file))


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".")  # notebooks' and macOS's leftovers look like classes and images
