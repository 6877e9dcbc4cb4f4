"""Coordinate descent: by hand, and never worse than what it began with."""

import itertools

import pytest
import torch
from menu_toys import randn
from torch import Tensor

from autocompress.menus.descent import descended


def error(weight: Tensor, moment: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    change = (weight - scale[..., None] * codes).double()
    return ((change @ moment.double()) * change).sum(-1)


def problem(columns: int = 90, groups: int = 2, rows: int = 5) -> tuple[Tensor, Tensor]:
    """Weights (g, R, d), and a moment (g, d, d) of correlated inputs."""
    x = randn(groups, 3 * columns, columns, seed=1).view(groups, -1, columns) @ randn(columns, columns, seed=2)
    return randn(groups, rows, columns, seed=3).view(groups, rows, columns).float(), (x.mT @ x / len(x[0])).float()


def nearest(weight: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    return (weight / scale[..., None]).round().clamp(low, high)


def test_a_code_makes_up_for_another_by_hand() -> None:
    """Two inputs that are almost the same: 0.4 and 0.4 round to 0 and 0, but one of them at 1 is closer to 0.8."""
    weight, moment = torch.tensor([[[0.4, 0.4]]]), torch.tensor([[[1.0, 0.999], [0.999, 1.0]]])
    codes, scale = descended(weight, moment, torch.zeros(1, 1, 2), torch.ones(1, 1), 2)
    assert codes.flatten().tolist() == [1, 0]
    assert scale.item() == pytest.approx(0.8, abs=0.001)  # what is then least for the two together


def test_scales_are_least_squares_by_hand() -> None:
    """Inputs that have nothing to do with each other: s = w·q / q·q, and no code moves."""
    weight, codes = torch.tensor([[[1.0, 2.1, -0.9]]]), torch.tensor([[[1.0, 2.0, -1.0]]])
    found, scale = descended(weight, torch.eye(3)[None], codes, torch.ones(1, 1), 3)
    assert torch.equal(found, codes)
    assert scale.item() == pytest.approx((1 + 4.2 + 0.9) / 6)


@pytest.mark.parametrize(("bits", "low", "high"), [(2, -2, 1), (4, -8, 7), (8, -128, 127)])
def test_no_row_gets_worse_and_all_together_better(bits: int, low: int, high: int) -> None:
    weight, moment = problem()
    scale = weight.abs().amax(-1) / high
    before = nearest(weight, scale, low, high)
    codes, steps = descended(weight, moment, before, scale, bits)
    old, new = error(weight, moment, before, scale), error(weight, moment, codes, steps)
    assert (new <= old * (1 + 1e-4)).all()
    assert float(new.sum()) < 0.5 * float(old.sum())
    assert codes.min() >= low
    assert codes.max() <= high
    assert torch.equal(codes, codes.round())


def test_few_columns_come_to_the_best_of_all_codes_for_their_scale() -> None:
    """No single code is better: of 4^3 codes, none that differs in one place from what was found."""
    weight, moment = problem(columns=3, groups=1, rows=20)
    scale = weight.abs().amax(-1)
    codes, steps = descended(weight, moment, nearest(weight, scale, -2, 1), scale, 2)
    found = error(weight, moment, codes, steps)
    for column, code in itertools.product(range(3), range(-2, 2)):
        other = codes.clone()
        other[..., column] = code
        assert (error(weight, moment, other, steps) >= found * (1 - 1e-4)).all()


def test_pruned_weights_stay_0_and_signs_stay_signs() -> None:
    weight, moment = problem()
    kept = torch.rand(weight.shape, generator=torch.Generator().manual_seed(4)) < 0.5
    scale = weight.abs().amax(-1)
    before = nearest(weight, scale, -2, 1) * kept
    codes, _ = descended(weight, moment, before, scale, 2, kept)
    assert not codes[~kept].any()
    assert (codes != before).any()
    signs, steps = descended(weight, moment, weight.sign(), weight.abs().mean(-1), 1)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert (steps > 0).all()


def test_rows_without_weights_keep_their_scale() -> None:
    weight, moment = torch.zeros(1, 2, 4), torch.eye(4)[None]
    codes, scale = descended(weight, moment, torch.zeros(1, 2, 4), torch.full((1, 2), 1e-12), 2)
    assert not codes.any()
    assert scale.tolist() == [[pytest.approx(1e-12)] * 2]
