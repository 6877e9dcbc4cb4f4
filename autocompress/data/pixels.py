"""Decoding images, and normalising them."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from autocompress.errors import InputError
from autocompress.files import check_regular
from autocompress.memory import memory_limit
from autocompress.samples import Inputs, each_of

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Image formats that are decoded, by Pillow's names. Others can start programs, as EPS does Ghostscript."""
MOST_PIXELS = 89_478_485
"""Most pixels of an image, before and after it is resized: a quarter of a gigabyte in RGB, and Pillow's own limit."""

_BYTES_A_PIXEL = 15  # of a batch: three channels, each once as uint8 and once as float32
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

    def apply_to(self, inputs: Inputs) -> Inputs:
        """Network inputs from stored ones; of several tensors, and of whole numbers such as tokens, none is normalised.

        Raises:
            InputError: `mean` and `std` are given for such inputs, or don't have one number a channel.
        """
        if isinstance(inputs, Tensor) and (inputs.is_floating_point() or inputs.dtype == torch.uint8):
            return self.apply(inputs)
        if self.mean is not None:
            raise InputError("`mean` and `std` must be left out for tokens and for several inputs: they are no images.")
        return each_of(inputs, lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)

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

    Formats and sizes are looked at before anything is decoded: only the formats of `FORMATS` are, and no image of more
    than `most_pixels`, nor one that is so narrow that resizing it gives more than `MOST_PIXELS`.

    Attributes:
        image_size: edge in pixels of the square that the network gets, at least 1; None leaves every image as
            it is. A square image of this size is taken as it is. Any other is resized, its shorter side to
            256/224 of the size, and its centre is cut out.
        most_pixels: most pixels of an image, at least 1. Default: `MOST_PIXELS`.

    Raises:
        InputError: the size is below 1.
    """

    image_size: int | None = None
    most_pixels: int = MOST_PIXELS

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise InputError(f"`image_size` must be at least 1, got {self.image_size}.")

    def for_batch(self, count: int) -> ImageReader:
        """The reader for images that are held at once, which takes none that so many of would not fit into memory.

        Args:
            count: number of images in the batch, at least 1.

        Raises:
            InputError: images of `image_size` would not fit.
        """
        most = max(1, memory_limit(None) // (_BYTES_A_PIXEL * count))
        if self.image_size is None:
            return replace(self, most_pixels=min(self.most_pixels, most))
        if self.image_size**2 > most:
            raise InputError(
                f"`image_size` must be at most {math.isqrt(most):,} for {count:,} images to fit into memory, got "
                f"{self.image_size:,}."
            )
        return self

    def read(self, image: bytes | Path, name: str) -> Tensor:
        """Pixels (3, H, W) uint8 of one image.

        Args:
            image: encoded image, or path of an image file.
            name: name of the image, for messages.

        Raises:
            InputError: the image is broken, of another format or too large; the message begins with its `name`.
        """
        from PIL import Image, UnidentifiedImageError  # here, so that those without images don't wait for it

        # What Pillow raises on broken images.
        broken = (OSError, SyntaxError, ValueError, EOFError, struct.error)
        if isinstance(image, Path):
            check_regular("An image", image)
        try:
            with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image, formats=FORMATS) as opened:
                self._check_size(*opened.size, name)
                pixels = np.array(self._fit(opened.convert("RGB")))  # (H, W, 3)
        except InputError:
            raise
        except Image.DecompressionBombError as error:
            raise InputError(f"{name} must have at most {MOST_PIXELS:,} pixels, got twice as many or more.") from error
        except broken as error:
            unknown = isinstance(error, UnidentifiedImageError)
            reason = f"not an image of the formats {', '.join(FORMATS)}" if unknown else str(error)
            raise InputError(f"{name} must be a readable image, got a broken one: {reason}.") from error
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def _check_size(self, width: int, height: int, name: str) -> None:
        """Raise InputError where an image has too many pixels, before or after it is resized."""
        if width * height > self.most_pixels:
            advice = "" if self.image_size or self.most_pixels == MOST_PIXELS else " to fit into memory with its batch"
            raise InputError(
                f"{name} must have at most {self.most_pixels:,} pixels{advice}, got {width:,} x {height:,}."
            )
        wide, high = self._resized_size(width, height)
        if wide * high > MOST_PIXELS:
            raise InputError(
                f"{name} must have at most {MOST_PIXELS:,} pixels when its shorter side has {min(wide, high):,}, got "
                f"{width:,} x {height:,}, which gives {wide:,} x {high:,}."
            )

    def _resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of an image after it is resized and before its centre is cut out."""
        size = self.image_size
        if size is None or (width, height) == (size, size):
            return width, height
        scale = round(size * RESIZE_FACTOR) / max(1, min(width, height))
        return max(size, round(width * scale)), max(size, round(height * scale))

    def _fit(self, image: Image.Image) -> Image.Image:
        """The image in the size that the network gets."""
        from PIL import Image

        size = self.image_size
        if size is None or image.size == (size, size):
            return image
        width, height = self._resized_size(*image.size)
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
