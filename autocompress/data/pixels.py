"""Decoding images, and normalising them."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from autocompress.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESIZE_FACTOR = 256 / 224  # the usual evaluation transform: shorter side to 256, the centre 224 of it


@dataclass(frozen=True)
class Normalization:
    """Normalization of stored inputs to network inputs: (x - mean) / std for every channel (axis 1).

    uint8 pixels are divided by 255 first; without `mean` and `std` they get ImageNet's where there are three
    channels, and are left in [0, 1] otherwise. Floating-point inputs are taken as they are where `mean` and
    `std` are not given.

    Attributes:
        mean: mean of every channel, or None.
        std: standard deviation of every channel, above 0, or None.

    Raises:
        InputError: only one of the two is given, their lengths differ, or a std is not positive.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise InputError(f"`mean` and `std` must be given together, got {self.mean} and {self.std}.")
        if self.mean is None or self.std is None:
            return
        if len(self.mean) != len(self.std):
            raise InputError(f"`mean` and `std` must have one number a channel each, got {self.mean} and {self.std}.")
        if not (np.isfinite((*self.mean, *self.std)).all() and min(self.std, default=0.0) > 0):
            raise InputError(f"`mean` must be finite and `std` above 0, got {self.mean} and {self.std}.")

    @classmethod
    def parse(cls, mean: Sequence[float] | None, std: Sequence[float] | None) -> Normalization:
        """The normalization of two sequences of numbers, or of None and None."""
        return cls(
            None if mean is None else tuple(float(value) for value in mean),
            None if std is None else tuple(float(value) for value in std),
        )

    def apply(self, inputs: Tensor) -> Tensor:
        """Float32 network inputs from stored ones, (N, C, …) uint8 or floating point.

        Raises:
            InputError: `mean` and `std` don't have one number a channel.
        """
        is_pixels = inputs.dtype == torch.uint8
        x = inputs.float() / 255 if is_pixels else inputs.float()
        mean, std = self.mean, self.std
        if mean is None or std is None:
            if not is_pixels or x.shape[1] != 3:
                return x
            mean, std = IMAGENET_MEAN, IMAGENET_STD
        if len(mean) != x.shape[1]:
            raise InputError(f"`mean` and `std` must have one number a channel ({x.shape[1]}), got {len(mean)}.")
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return (x - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


@dataclass(frozen=True)
class ImageReader:
    """Decoder of single images to RGB pixels.

    Attributes:
        image_size: edge in pixels of the square that the network gets, at least 1; None leaves every image as
            it is. A square image of this size is taken as it is. Any other is resized, its shorter side to
            256/224 of the size, and its centre is cut out.

    Raises:
        InputError: the size is below 1.
    """

    image_size: int | None = None

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise InputError(f"`image_size` must be at least 1, got {self.image_size}.")

    def read(self, image: bytes | Path, name: str) -> Tensor:
        """Pixels (3, H, W) uint8 of one image.

        Args:
            image: encoded image, or path of an image file.
            name: name of the image, for messages.

        Raises:
            InputError: the image is broken; the message begins with its `name`.
        """
        from PIL import Image, UnidentifiedImageError  # here, so that those without images don't wait for it

        # What Pillow raises on broken images.
        broken = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
        try:
            with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
                pixels = np.array(self._fit(opened.convert("RGB")))  # (H, W, 3)
        except broken as error:
            reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
            raise InputError(f"{name} must be a readable image, got a broken one: {reason}.") from error
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def _fit(self, image: Image.Image) -> Image.Image:
        """The image in the size that the network gets."""
        from PIL import Image

        size = self.image_size
        if size is None or image.size == (size, size):
            return image
        scale = round(size * RESIZE_FACTOR) / min(image.size)
        width, height = (max(size, round(edge * scale)) for edge in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        return resized.crop((left, top, left + size, top + size))


def stack(images: Sequence[Tensor], where: str) -> Tensor:
    """One batch (N, …) of single inputs.

    Args:
        images: inputs of one shape, at least one.
        where: source of the inputs, for messages.

    Raises:
        InputError: their shapes differ.
    """
    shapes = sorted({tuple(image.shape) for image in images})
    if len(shapes) > 1:
        raise InputError(
            f"{where} must hold inputs of one shape, got {shapes[0]} and {shapes[1]}; give image_size to resize images."
        )
    return torch.stack(list(images))
