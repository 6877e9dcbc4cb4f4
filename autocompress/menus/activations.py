"""Quantization of layer inputs: where they are clipped and how finely they are rounded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_CLIPS = torch.linspace(0.4, 1.0, 25)  # fractions of the sample's own range that are tried


@dataclass(frozen=True)
class ActivationRange:
    """Affine quantization of a layer's input, with one scale s and one zero point z for the whole tensor.

    A number x becomes the code q = clamp(round(x / s) + z, 0, 2^bits - 1), which stands for s (q - z).

    >>> ActivationRange(bits=4, scale=0.5, zero=2, noise=0.0).apply(torch.tensor([-9.0, 0.0, 0.3, 9.0]))
    tensor([-1.0000,  0.0000,  0.5000,  6.5000])

    Attributes:
        bits: bit-width of the codes, 4 to 8.
        scale: distance s between two levels, above 0; a float32 number, as files hold it.
        zero: zero point z, the code that stands for 0; it is a whole number, so that padding stays exact.
        noise: mean squared error of rounding and clipping on the calibration sample.
    """

    bits: int
    scale: float
    zero: int
    noise: float

    def apply(self, x: Tensor) -> Tensor:
        """The levels nearest to `x`; same shape and dtype."""
        low, high = -self.zero, 2**self.bits - 1 - self.zero
        return x.div(self.scale).round_().clamp_(low, high).mul_(self.scale)


def calibrate_range(sample: Tensor, bits: int) -> ActivationRange:
    """The range of least mean squared error on a sample.

    Narrower ranges clip the largest numbers and round all others more finely. So 25 ranges are tried, from 40
    to 100 % of the sample's own.

    Args:
        sample: (n,) numbers that the layer's input took.
        bits: bit-width of the codes, 4 to 8.
    """
    top, bottom = max(float(sample.max()), 0.0), min(float(sample.min()), 0.0)
    best: ActivationRange | None = None
    for clip in _CLIPS.tolist():
        candidate = _range(sample, bottom * clip, top * clip, bits)
        if best is None or candidate.noise < best.noise:
            best = candidate
    assert best is not None
    return best


def _range(sample: Tensor, bottom: float, top: float, bits: int) -> ActivationRange:
    """The range whose levels reach from `bottom` (at most 0) to `top` (at least 0), with its noise."""
    scale = float(torch.tensor(max((top - bottom) / (2**bits - 1), 1e-12), dtype=torch.float32))
    zero = round(-bottom / scale)
    rounded = ActivationRange(bits, scale, zero, 0.0).apply(sample)
    return ActivationRange(bits, scale, zero, float((rounded - sample).square().mean()))
