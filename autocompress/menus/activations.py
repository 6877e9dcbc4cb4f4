"""Ranges of layer inputs: where activations are clipped and how finely they are stepped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_CLIPS = torch.linspace(0.4, 1.0, 25)


@dataclass(frozen=True)
class ActivationRange:
    """Affine quantization of a layer's input, one scale for the whole tensor: (q - zero) · scale, q in 0 … 2^bits - 1.

    Attributes:
        bits: 4 to 8.
        scale: step, > 0; a float32 number, as files hold it.
        zero: the code that stands for 0, so that padding is exact.
        noise: mean squared rounding and clipping error on the calibration sample.
    """

    bits: int
    scale: float
    zero: int
    noise: float

    def apply(self, x: Tensor) -> Tensor:
        """Round `x` to the range's levels; same shape and dtype."""
        low, high = -self.zero, 2**self.bits - 1 - self.zero
        return x.div(self.scale).round_().clamp_(low, high).mul_(self.scale)


def calibrate_range(sample: Tensor, bits: int) -> ActivationRange:
    """The range of least squared error on the (n,) `sample`; what lies outside is clipped."""
    top, bottom = max(float(sample.max()), 0.0), min(float(sample.min()), 0.0)
    best: ActivationRange | None = None
    for clip in _CLIPS.tolist():
        candidate = _range(sample, bottom * clip, top * clip, bits)
        if best is None or candidate.noise < best.noise:
            best = candidate
    assert best is not None
    return best


def _range(sample: Tensor, bottom: float, top: float, bits: int) -> ActivationRange:
    scale = float(torch.tensor(max((top - bottom) / (2**bits - 1), 1e-12), dtype=torch.float32))
    zero = round(-bottom / scale)
    rounded = ActivationRange(bits, scale, zero, 0.0).apply(sample)
    return ActivationRange(bits, scale, zero, float((rounded - sample).square().mean()))
