"""Sums over columns and over the means of samples, against explicit ones."""

import pytest
import torch
from torch import Tensor

from autocompress.execute.layer_moments import Sums
from autocompress.menus.coherence import Means


def filled(parts: list[tuple[Tensor, Tensor]]) -> Sums:
    """The completed sums of columns (g, n, p, k + 1) and misses (g, n, p, r)."""
    x, miss = parts[0]
    sums = Sums.empty(len(x), miss.shape[-1], x.shape[-1], torch.device("cpu"))
    for part in parts:
        sums.add_(*part)
    return sums.completed()


@pytest.fixture
def parts() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    x = [torch.cat([torch.randn(2, n, 5, 3) + 0.5, torch.ones(2, n, 5, 1)], 3) for n in (4, 3)]
    return [(each, torch.randn(*each.shape[:3], 2) + each[..., :2]) for each in x]


def test_means_count_as_often_as_they_are_told_to(parts: list[tuple[Tensor, Tensor]]) -> None:
    """Nothing shrunk: Σ u uᵀ + κ p Σ ū ūᵀ for u = (x̂, r), and the loss of what weights leave of r likewise."""
    found = filled(parts).coherent(3.0, Means(likeness=1.0, shrinkage=0.0))
    x, miss = (torch.cat(each, 1).double() for each in zip(*parts, strict=True))
    change, gradients = torch.randn(2, 2, 4).double(), torch.eye(2).double().expand(2, 2, 2)
    error = miss - x @ change.mT[:, None]

    def summed(a: Tensor, b: Tensor) -> Tensor:
        means = torch.einsum("gnp,gnq->gpq", a.mean(2), b.mean(2))
        return torch.einsum("gntp,gntq->gpq", a, b) + 3 * 5 * means

    for one, other in (
        (found.moment, summed(x, x)),
        (found.cross, summed(miss, x)),
        (found.square, summed(miss, miss)),
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert found.columns == pytest.approx(4 * 7 * 5)
    assert torch.allclose(found.moment[:, -1, -1], torch.tensor(found.columns).double())
    expected = 0.5 * float((gradients * summed(error, error)).sum())
    assert found.loss(change, gradients) == pytest.approx(expected, rel=1e-5)


def test_wholly_shrunk_means_vary_as_the_columns_do(parts: list[tuple[Tensor, Tensor]]) -> None:
    """With β = 1: the columns' own covariance, κ ρ times more, about the same mean, κ times more."""
    plain = filled(parts)
    found = plain.coherent(2.0, Means(likeness=0.25, shrinkage=1.0))
    ones = plain.moment[..., -1:]
    outer = ones @ ones.mT / plain.columns
    torch.testing.assert_close(
        found.moment, plain.moment + 2 * (outer + 0.25 * (plain.moment - outer)), rtol=1e-5, atol=1e-5
    )


def test_one_column_a_sample_has_no_mean_beside_it(parts: list[tuple[Tensor, Tensor]]) -> None:
    plain = filled([(x[:, :, :1], miss[:, :, :1]) for x, miss in parts])
    assert plain.means == []
    found = plain.coherent(5.0, Means(1.0, 0.0))
    assert torch.equal(found.moment, plain.moment)
    assert found.columns == plain.columns
    none = filled(parts)
    assert torch.equal(none.coherent(-0.5, Means(1.0, 0.0)).cross, none.cross)  # fewer samples than unknowns
