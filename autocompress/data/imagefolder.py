"""`imagefolder:FOLDER`: images in one folder a class, or without labels; and images that are decoded on demand."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from autocompress.data.class_folders import FileKind, Files, find_files
from autocompress.data.pixels import ImageReader, Normalization, stack
from autocompress.data.sources import Splits

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_KIND = FileKind("imagefolder", "image", IMAGE_SUFFIXES)


@dataclass(frozen=True, eq=False)
class ImageSource:
    """Encoded images that are decoded on demand.

    Attributes:
        images: path of every image, or its encoded bytes.
        labels: (N,) int64 label of every image, or None.
        reader: decoder of an image.
        normalization: normalization that is applied on loading.
        name: name of the source, for messages.
    """

    images: Sequence[Path | bytes]
    labels: Tensor | None
    reader: ImageReader
    normalization: Normalization
    name: str

    def __len__(self) -> int:
        return len(self.images)

    def load(self, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        reader = self.reader.for_batch(max(1, len(indices)))
        with ThreadPoolExecutor() as pool:  # Pillow decodes without holding the interpreter lock
            images = list(pool.map(lambda index: self._read(int(index), reader), indices))
        labels = None if self.labels is None else self.labels[torch.tensor(list(indices))]
        return self.normalization.apply(stack(images, self.name)), labels

    def _read(self, index: int, reader: ImageReader) -> Tensor:
        """Pixels (3, H, W) uint8 of one image."""
        image = self.images[index]
        return reader.read(image, f"{self.name} image {index}" if isinstance(image, bytes) else str(image))


def load_imagefolder(folder: str, reader: ImageReader, normalization: Normalization) -> Splits:
    """Training and test source of a folder, and the class names (`class_folders`).

    Args:
        folder: path of the folder.
        reader: decoder of an image.
        normalization: normalization that sources apply on loading.

    Raises:
        InputError: a folder is missing or holds no images, or the test split has a class that train has not.
    """
    found = find_files(Path(folder), _KIND)

    def source(files: Files) -> ImageSource:
        return ImageSource(files.paths, files.labels, reader, normalization, str(files.folder))

    return Splits(source(found.train), None if found.test is None else source(found.test), found.classes, found.notes)
