"""How much errors at the positions of a sample act together, and what that adds to H."""

import pytest
import torch
from menu_toys import CONVOLUTIONS, images, statistics
from torch import Tensor, nn

from autocompress.menus.algebra import centred
from autocompress.menus.coherence import Coherence, Means
from autocompress.menus.columns import extended_columns, summed_columns
from autocompress.menus.listening import window_of_module


def seen(gradients: list[Tensor]) -> Coherence:
    """After one function whose gradients came in these calls, each (n, T, rows)."""
    found = Coherence()
    for gradient in gradients:
        found.see_gradient(gradient, len(gradient))
    found.end_function()
    return found


def test_share_is_zero_where_gradients_cancel_or_differ_and_positions_less_one_where_they_agree() -> None:
    alike = torch.randn(3, 1, 2).expand(3, 5, 2)
    assert seen([alike]).share == pytest.approx(4)
    assert seen([alike * torch.tensor([1, -1, 1, -1, 0])[:, None]]).share == 0
    generator = torch.Generator().manual_seed(0)
    assert seen([torch.randn(2000, 5, 3, generator=generator)]).share == pytest.approx(0, abs=0.05)
    # half of the positions have no gradient: E‖5/2 g‖² / (5/2 E‖g‖²) - 1, roughly
    half = (torch.rand(4000, 5, 1, generator=generator) < 0.5) * torch.randn(4000, 1, 4, generator=generator)
    assert seen([half]).share == pytest.approx(4 * 0.5, abs=0.1)


def test_calls_are_further_positions_and_functions_are_not() -> None:
    alike = torch.randn(3, 1, 2)
    assert seen([alike] * 5).share == pytest.approx(4)  # a layer that runs five times
    found = Coherence()
    for _ in range(5):  # five functions
        found.see_gradient(alike, 3)
        found.end_function()
    assert found.share == 0


def test_windows_of_a_sample_are_further_positions() -> None:
    alike = torch.randn(3, 1, 2).expand(3, 4, 2)
    found = Coherence()
    found.see_gradient(alike.reshape(6, 2, 2), 3)
    found.end_function()
    assert found.share == pytest.approx(3)


def test_nothing_is_known_of_entries_that_are_no_multiple_of_the_samples() -> None:
    found = Coherence()
    found.see_gradient(torch.ones(5, 4, 2), 3)
    found.see_input(torch.ones(5, 4, 2), None, 3)
    found.end_function()
    found.end_batch()
    assert found.share == 0
    assert not found.added(torch.ones(1, 3, 3)).any()


@pytest.mark.parametrize("module", [each for each in CONVOLUTIONS.values() if each.padding_mode == "zeros"])
def test_summed_columns_are_the_sums_of_all_columns(module: nn.Conv1d | nn.Conv2d) -> None:
    x, window = images(module), window_of_module(module)
    columns = extended_columns(x, window)  # (g, N · T, d + 1)
    expected = columns.unflatten(1, (len(x), -1)).sum(2)
    torch.testing.assert_close(summed_columns(x, window), expected, rtol=1e-4, atol=1e-4)


def test_summed_columns_of_a_linear_layer() -> None:
    x = torch.randn(3, 2, 4, 5)
    found = summed_columns(x, None)
    torch.testing.assert_close(found[0, :, :-1], x.sum((1, 2)))
    assert found[0, :, -1].tolist() == [8, 8, 8]


class Pooled(nn.Module):
    """Logits are means over positions of a linear layer's outputs: all errors act together."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean(1)


def test_behind_a_mean_h_is_that_of_the_means() -> None:
    """κ = T - 1, and H = Σ x x' + (T - 1) T E[x̄ x̄ᵀ]; with many samples nothing is shrunk."""
    torch.manual_seed(0)
    of_samples, of_positions = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, 2.0])
    x = torch.randn(4096, 1, 1) * of_samples + torch.randn(4096, 6, 3) * of_positions + 0.1 * torch.randn(4096, 6, 3)
    found = statistics(Pooled(), x)["layer"]
    assert float(found.coherence) == pytest.approx(5, rel=1e-4)
    columns = torch.cat([x, torch.ones(4096, 6, 1)], 2).double()
    means = columns.mean(1)
    positions = torch.einsum("ntd,nte->de", columns, columns) / 4096
    expected = positions + 5 * 6 * (means.T @ means) / 4096
    torch.testing.assert_close(found.second_moment[0].double(), expected, rtol=5e-3, atol=2e-2)


def test_few_means_are_shrunk_towards_the_positions() -> None:
    """Means of independent positions: 16 samples say little of 12 x 12 covariances, of which all are the positions'."""
    torch.manual_seed(0)
    mixing = torch.randn(12, 12) / 12**0.5
    truth = mixing @ mixing.T  # covariance of a position; that of a mean, times T, is the same
    nearer = []
    for _ in range(20):
        x = torch.randn(16, 50, 12) @ mixing.T
        columns = torch.cat([x, torch.ones(16, 50, 1)], 2)
        rows = (columns.sum(1) / 50**0.5)[None]
        moment = torch.einsum("ntd,nte->de", columns, columns)[None] / 16
        z, ones = rows - rows.mean(1, keepdim=True), moment[..., -1:]
        means = Means.of(z, z.mT @ z / 16, centred(moment, ones, ones))
        between, within = torch.cov(rows[0, :, :-1].T, correction=0), 50 * torch.cov(x.flatten(0, 1).T, correction=0)
        assert 0.5 < means.shrinkage <= 1
        raw, shrunk = ((each - truth).norm() for each in (between, means.shrunk(between, within)))
        nearer.append(float(shrunk / raw))
    assert max(nearer) < 0.7
