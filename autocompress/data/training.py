"""Training batches: shuffled, augmented, prepared one ahead, and the same from any step for the same seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from autocompress.data.dataset import Data
from autocompress.errors import InputError
from autocompress.samples import Inputs, each_of, tensors_of

Augmentation = Literal["none", "shift", "shift+flip"]
_SHIFT = 8  # images are moved by up to an eighth of their edge


def trained_on(data: Data) -> list[int]:
    """Indices of every training sample that is not in the search split, nor kept out of all use, ascending."""
    others = {*data.search_indices, *data.kept_out}
    return [index for index in range(len(data.train)) if index not in others]


@dataclass(frozen=True)
class TrainingBatches:
    """Batches of training data, epoch after epoch.

    Attributes:
        data: data whose training source is read.
        indices: indices of the samples to train on.
        batch_size: samples a batch, at least 1; the last batch of an epoch may be smaller.
        augmentation: random change of images: `shift` moves them by up to an eighth of the edge, and zeros
            move in; `flip` mirrors every second one on average. Inputs that are no images stay as they are.
        seed: seed of the samples' order and of the augmentation, at least 0.
    """

    data: Data
    indices: Sequence[int]
    batch_size: int
    augmentation: Augmentation = "shift"
    seed: int = 0

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return -(-len(self.indices) // self.batch_size)

    def steps(self, start: int, stop: int) -> Iterator[tuple[Inputs, Tensor | None]]:
        """Inputs and labels of the steps from `start` up to before `stop`, counted over all epochs."""
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self._load, start) if start < stop else None
            for step in range(start, stop):
                assert ahead is not None
                batch = ahead.result()
                ahead = pool.submit(self._load, step + 1) if step + 1 < stop else None
                yield batch

    def _load(self, step: int) -> tuple[Inputs, Tensor | None]:
        """Inputs and labels of one step, which follow from the seed and the step alone."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.indices))
        chosen = order[position * self.batch_size : (position + 1) * self.batch_size]
        inputs, labels = self.data.train.load([self.indices[index] for index in chosen])
        if self.augmentation != "none" and self.data.are_images and isinstance(inputs, Tensor) and inputs.ndim == 4:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
            inputs = _shifted(inputs, generator)
            inputs = _flipped(inputs, generator) if self.augmentation == "shift+flip" else inputs
        return inputs, labels if self.data.classes else None


@dataclass(frozen=True)
class Blend:
    """Mixup (Zhang et al. 2018): every sample of a batch is blended with another one of the batch.

    Attributes:
        partners: (N,) int64 position in the batch of every sample's partner.
        shares: (N,) float32 share of the partner in the blend, in [0, 0.5].
    """

    partners: Tensor
    shares: Tensor

    @staticmethod
    def drawn(count: int, most: float, seed: int) -> Blend:
        """A random blend.

        Args:
            count: samples of the batch.
            most: largest share of a partner, at most 0.5; shares are uniform in [0, most].
            seed: seed of partners and shares.
        """
        generator = torch.Generator().manual_seed(seed)
        partners = torch.randperm(count, generator=generator)
        return Blend(partners, most * torch.rand(count, generator=generator))

    def of_inputs(self, inputs: Inputs) -> Inputs:
        """The blended inputs.

        Raises:
            InputError: there are token numbers among them, which can't be blended.
        """
        if not all(tensor.is_floating_point() for tensor in tensors_of(inputs)):
            raise InputError("`mixup` must be 0 for inputs of whole numbers, such as tokens; leave out --mixup.")
        return each_of(inputs, self)

    def __call__(self, values: Tensor) -> Tensor:
        """The blended values (N, …) of inputs, or of the probabilities that labels stand for."""
        shares = self.shares.to(values.device).view(-1, *[1] * (values.ndim - 1))
        return torch.lerp(values, values[self.partners.to(values.device)], shares)


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (N, C, H, W), each moved by an offset of its own; zeros move in."""
    count, _, height, width = images.shape
    down, right = height // _SHIFT, width // _SHIFT
    padded = F.pad(images, (right, right, down, down))
    tops = torch.randint(2 * down + 1, (count,), generator=generator)
    lefts = torch.randint(2 * right + 1, (count,), generator=generator)
    rows = tops[:, None] + torch.arange(height)  # (N, H)
    columns = lefts[:, None] + torch.arange(width)  # (N, W)
    sample = torch.arange(count)[:, None, None]
    return padded.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (N, C, H, W), each mirrored left to right with probability ½."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)
