"""Activation ranges: levels, an exact zero, clipping where it pays."""

import pytest
import torch

from autocompress.menus.activations import ActivationRange, calibrate_range


def sample(kind: str) -> torch.Tensor:
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    return {"signed": x, "positive": x.relu(), "shifted": x + 5, "negative": -x.abs(), "dead": 0 * x}[kind]


def test_by_hand() -> None:
    found = ActivationRange(bits=4, scale=0.5, zero=4, noise=0.0)  # -2, -1.5 … 5.5
    x = torch.tensor([-9.0, -2.1, -0.2, 0.0, 0.3, 5.4, 99.0])
    assert found.apply(x).tolist() == [-2.0, -2.0, 0.0, 0.0, 0.5, 5.5, 5.5]
    assert x[0] == -9.0


@pytest.mark.parametrize("kind", ["signed", "positive", "shifted", "negative", "dead"])
@pytest.mark.parametrize("bits", range(4, 9))
def test_levels_and_zero(bits: int, kind: str) -> None:
    x = sample(kind)
    found = calibrate_range(x, bits)
    assert found.bits == bits
    assert found.scale > 0
    assert 0 <= found.zero < 2**bits
    rounded = found.apply(x)
    assert len(rounded.unique()) <= 2**bits
    assert found.apply(torch.zeros(1)).item() == 0
    assert found.noise == pytest.approx(float((rounded - x).square().mean()), rel=1e-6)
    if kind != "dead":
        codes = (torch.cat([rounded, found.apply(torch.tensor([-1e9, 1e9]))]) / found.scale).round() + found.zero
        assert (int(codes.min()), int(codes.max())) == (0, 2**bits - 1)


def test_noise_of_a_uniform_sample() -> None:
    """Rounding to steps of s leaves s²/12: here s = 1/255 and hardly anything to gain from clipping."""
    found = calibrate_range(torch.linspace(0, 1, 100_001), 8)
    assert found.noise == pytest.approx((1 / 255) ** 2 / 12, rel=0.02)


def test_outliers_are_clipped_at_few_bits() -> None:
    x = torch.cat([sample("positive"), torch.tensor([8.0])])
    at_four, at_eight = calibrate_range(x, 4), calibrate_range(x, 8)
    assert 15 * at_four.scale < 4.0
    assert 255 * at_eight.scale > 4.0
    widest = ActivationRange(4, 8 / 15, 0, 0.0).apply(x)
    assert at_four.noise < 0.3 * float((widest - x).square().mean())
