"""What calibration finds out about one layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """What calibration found out about one layer.

    Attributes:
        second_moment: (g, d + 1, d + 1) float32 H, not shrunk, one matrix for each of a convolution's g groups, with
            what errors that act together add to it (`coherence`). Of a
            layer with more than 8,192 inputs the diagonal alone, (1, 1, d + 1): the whole would not fit in memory, and
            some hundred samples say nothing of so many correlations.
        gradient_moment: (rows, rows) float32 G. Of an embedding, see `lookups`.
        channel_activation: (in_channels,) float32 mean absolute value of every input channel.
        input_sample: (n,) float32 values of the input, at most 65,536, ascending; the smallest and the
            largest that occurred are among them.
        shrinkage: () float32 share, 0 to 0.25, by which correlations are to be shrunk (`shrunk`).
        coherence: () float32 κ, at least 0.
    """

    second_moment: Tensor
    gradient_moment: Tensor
    channel_activation: Tensor
    input_sample: Tensor
    shrinkage: Tensor
    coherence: Tensor
