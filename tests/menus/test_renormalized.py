"""Renormalization of one layer by its moment: against the outputs that it really has."""

from typing import Any

import pytest
import torch
from menu_toys import seeded
from torch import Tensor, nn

from autocompress.menus.renormalized import MOST_SCALED, renormalization, renormalized, renormalized_change
from autocompress.menus.variants import LayerSource, Variant
from autocompress.network import trace

ROWS, COLUMNS, SEEN = 6, 5, 400


def source_of(module: nn.Module, x: Tensor, columns: Tensor) -> LayerSource:
    """Of a traced layer, whose moment is that of some columns (g, M, d + 1)."""
    (layer,) = trace(nn.Sequential(module).eval(), x).layers
    bias = torch.zeros(layer.rows) if module.bias is None else module.bias.detach()
    weight = torch.cat([module.weight.detach().flatten(1), bias[:, None]], 1).double()
    moment = columns.mT @ columns / 7  # a sum over the positions of each of seven samples
    return LayerSource(layer, weight, moment, torch.eye(layer.rows))


def linear(**options: Any) -> tuple[LayerSource, Tensor]:
    """A layer, and the columns (M, d + 1) that it sees, which have means of their own."""
    torch.manual_seed(0)
    columns = torch.cat([torch.randn(SEEN, COLUMNS) + 0.5, torch.ones(SEEN, 1)], 1)
    return source_of(nn.Linear(COLUMNS, ROWS, **options), torch.randn(1, COLUMNS), columns[None]), columns


def disturbed(source: LayerSource, by: float = 0.1) -> Tensor:
    """Smaller weights, and noise."""
    weight = source.weight.float()
    return 0.9 * weight + by * torch.randn(weight.shape, generator=seeded(1)) * weight.abs().mean()


def test_outputs_get_their_means_and_spreads_back() -> None:
    source, columns = linear()
    before, wanted = columns @ disturbed(source).T, columns @ source.weight.float().T
    found = columns @ renormalized(source, disturbed(source)).T
    assert not torch.allclose(before.std(0), wanted.std(0), rtol=1e-2)
    torch.testing.assert_close(found.mean(0), wanted.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.std(0), wanted.std(0), rtol=1e-3, atol=1e-3)


def test_the_original_stays_as_it_is() -> None:
    source, _ = linear()
    torch.testing.assert_close(renormalized(source, source.weight.float()), source.weight.float(), rtol=1e-4, atol=1e-5)


def test_without_a_bias_spreads_alone() -> None:
    """Root mean squares, as nothing can be added; the moment's constant input is cut off."""
    source, columns = linear(bias=False)
    source.second_moment[:, :-1, -1] = source.second_moment[:, -1, :-1] = 0
    weight = disturbed(source)
    weight[:, -1] = 0
    found, wanted = (columns @ each.float().T for each in (renormalized(source, weight), source.weight))
    torch.testing.assert_close(found.square().mean(0), wanted.square().mean(0), rtol=1e-3, atol=1e-3)
    assert not renormalized(source, weight)[:, -1].any()


def test_groups_have_moments_of_their_own() -> None:
    torch.manual_seed(0)
    columns = torch.cat(
        [torch.randn(3, SEEN, 4) * torch.tensor([1.0, 2.0, 3.0])[:, None, None], torch.ones(3, SEEN, 1)], 2
    )
    source = source_of(nn.Conv2d(3, 6, 2, groups=3), torch.randn(1, 3, 4, 4), columns)
    weight = disturbed(source, 0.02)
    found, wanted = (columns @ each.float().view(3, 2, 5).mT for each in (renormalized(source, weight), source.weight))
    torch.testing.assert_close(found.std(1), wanted.std(1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.mean(1), wanted.mean(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("factor", "scale"), [(0.1, MOST_SCALED), (10.0, 1 / MOST_SCALED), (0.0, 1.0), (0.9, 1 / 0.9)])
def test_scales_are_bounded_and_constant_outputs_keep_theirs(factor: float, scale: float) -> None:
    source, columns = linear()
    found = renormalization(source, factor * source.weight.float())[0]
    torch.testing.assert_close(found, torch.full((ROWS,), scale), rtol=1e-3, atol=1e-3)
    if factor == 0:  # the mean comes back all the same
        moved = columns @ renormalized(source, torch.zeros(ROWS, COLUMNS + 1)).T
        torch.testing.assert_close(moved[0], (columns @ source.weight.float().T).mean(0), rtol=1e-4, atol=1e-4)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(COLUMNS, COLUMNS)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).relu())


def test_layers_that_run_twice_and_diagonal_moments_change_nothing() -> None:
    source, _ = linear()
    weight = disturbed(source)
    (twice,) = trace(Twice().eval(), torch.randn(1, COLUMNS)).layers
    square = LayerSource(twice, source.weight[:COLUMNS], source.second_moment, torch.eye(COLUMNS))
    assert torch.equal(renormalized(square, weight[:COLUMNS]), weight[:COLUMNS])
    diagonal = LayerSource(
        source.layer, source.weight, source.second_moment.diagonal(dim1=1, dim2=2)[:, None], torch.eye(ROWS)
    )
    assert torch.equal(renormalized(diagonal, weight), weight)


def test_what_a_label_shrinks_costs_less() -> None:
    """A variant of nine tenths of the weights is the original again, but for what it removed."""
    source, columns = linear()
    kept = torch.tensor([0, 1, 3, 4])
    weight = 0.9 * source.weight.float()
    variant = Variant(kept, weight[:, kept], None, weight[:, -1], 0.0)
    as_it_is, found = source.change(variant), renormalized_change(source, variant)
    assert (columns @ found.T).square().sum() < (columns @ as_it_is.T).square().sum()
    assert torch.equal(found[:, 2], -source.weight.float()[:, 2])
