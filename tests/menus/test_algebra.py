"""Least squares against `torch.linalg.lstsq`, losses by hand, and moments that are hard to invert."""

import re

import pytest
import torch
from menu_toys import gradient_moment, moment, randn

from autocompress.menus.algebra import (
    add_gram_,
    cholesky_factor,
    damped,
    expected_loss,
    gram,
    inverse,
    mirror_,
    refit,
)


def test_refit_is_least_squares_on_the_kept_columns() -> None:
    x = torch.cat([randn(60, 8), torch.ones(60, 1, dtype=torch.float64)], 1)
    weight, kept = randn(5, 9, seed=3), torch.tensor([0, 2, 3, 7, 8])
    expected = torch.linalg.lstsq(x[:, kept], x @ weight.T).solution.T
    torch.testing.assert_close(refit(weight, x.T @ x, kept), expected, rtol=1e-9, atol=1e-9)


def test_a_wide_moment_in_strips_is_the_whole_product() -> None:
    columns = randn(2, 7, 1_300).view(2, 7, 1_300)  # three strips, the last of them narrow
    torch.testing.assert_close(gram(columns), columns.mT @ columns, rtol=1e-9, atol=1e-9)


def test_wide_moments_add_up_and_are_mirrored_once() -> None:
    columns = randn(2, 7, 1_300).view(2, 7, 1_300)
    total = torch.zeros(2, 1_300, 1_300, dtype=torch.float64)
    add_gram_(total, columns[:, :3])
    add_gram_(total, columns[:, 3:], factor=0.5)
    assert not total[:, 512:, :512].any()  # nothing is computed twice
    mirror_(total)
    expected = columns[:, :3].mT @ columns[:, :3] + 0.5 * (columns[:, 3:].mT @ columns[:, 3:])
    torch.testing.assert_close(total, expected, rtol=1e-9, atol=1e-9)


def test_refit_on_all_columns_changes_nothing() -> None:
    weight = randn(5, 9)
    torch.testing.assert_close(refit(weight, moment(8), torch.arange(9)), weight, rtol=1e-8, atol=1e-8)


def test_damping_by_hand() -> None:
    second_moment = torch.tensor([[[2.0, 1.0, 3.0], [1.0, 4.0, 0.0], [3.0, 0.0, 9.0]]])
    expected = [[2.3, 1.0, 3.0], [1.0, 4.3, 0.0], [3.0, 0.0, 9.0 + 3e-6]]
    torch.testing.assert_close(damped(second_moment, 0.1), torch.tensor([expected]), rtol=0, atol=1e-7)


def test_inverse_of_a_stack() -> None:
    matrices = torch.stack([moment(6, seed=seed) for seed in range(3)])
    torch.testing.assert_close(inverse(matrices), torch.linalg.inv(matrices), rtol=1e-8, atol=1e-8)


def test_dead_inputs_and_low_rank() -> None:
    """Input 1 never fires, inputs 2 and 3 are the same: the survivor takes over what the other did."""
    x = torch.cat([randn(50, 4), torch.ones(50, 1, dtype=torch.float64)], 1)
    x[:, 1] = 0
    x[:, 3] = x[:, 2]
    second_moment = damped((x.T @ x / 50)[None], 1e-8)[0]
    weight = torch.tensor([[1.0, 5.0, 2.0, 3.0, 0.5]], dtype=torch.float64)
    found = refit(weight, second_moment, torch.tensor([0, 2, 4]))
    torch.testing.assert_close(found, torch.tensor([[1.0, 5.0, 0.5]], dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_all_zero_moment() -> None:
    nothing = damped(torch.zeros(1, 4, 4, dtype=torch.float64), 1e-3)
    weight = randn(2, 4)
    assert torch.isfinite(inverse(nothing)).all()
    torch.testing.assert_close(refit(weight, nothing[0], torch.tensor([0, 2, 3])), weight[:, [0, 2, 3]])


def test_inverse_adds_ridge_where_it_must() -> None:
    """Rank 1 and undamped: no Cholesky factor without a ridge; in the moment's range the inverse is still right."""
    direction = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    found = inverse(torch.outer(direction, direction))
    assert torch.isfinite(found).all()
    assert abs(float(direction @ found @ direction) - 1) < 1e-4


def test_inverse_of_nan_says_so() -> None:
    with pytest.raises(ArithmeticError, match=f"^{re.escape('a damped second moment is not finite')}$"):
        inverse(torch.full((3, 3), float("nan"), dtype=torch.float64))


def test_expected_loss_by_hand() -> None:
    change = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    second_moment = torch.tensor([[[3.0, 1.0], [1.0, 2.0]]])
    gradients = torch.tensor([[2.0, 1.0], [1.0, 4.0]])
    # change H changeᵀ = [[15, -5], [-5, 2]]; half of 2·15 + 1·(-5) + 1·(-5) + 4·2 = 28
    assert expected_loss(change, second_moment, gradients) == 14.0


def test_expected_loss_of_groups_leaves_out_what_lies_between_them() -> None:
    change, gradients = randn(4, 6), gradient_moment(4)
    second_moment = torch.stack([moment(5), moment(5, seed=5)])
    halves = [
        expected_loss(change[rows], second_moment[None, g], gradients[rows, rows])
        for g, rows in enumerate([slice(0, 2), slice(2, 4)])
    ]
    assert expected_loss(change, second_moment, gradients) == pytest.approx(sum(halves), rel=1e-12)


def test_the_factor_of_zeros_is_next_to_zero() -> None:
    found = cholesky_factor(torch.zeros(3, 3, dtype=torch.float64))
    torch.testing.assert_close(found, 1e-20 * torch.eye(3, dtype=torch.float64), rtol=1e-6, atol=0)
    with pytest.raises(ArithmeticError):
        cholesky_factor(torch.full((2, 2), float("nan"), dtype=torch.float64))
