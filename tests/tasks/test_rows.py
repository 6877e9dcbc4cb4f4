"""Rows: their divergence is what it is said to be."""

import pytest
import torch
import torch.nn.functional as F

from autocompress.evaluation.measure import compare
from autocompress.evaluation.predictions import Predictions
from autocompress.menus.fisher import random_functions
from autocompress.tasks.rows import Several, classes, directions, numbers, valid_positions

RANDOM = torch.Generator().manual_seed(0)


def drawn(*shape):
    return torch.randn(*shape, generator=RANDOM)


def divergence(rows, outputs, moved, inputs=()):
    return compare(rows((outputs,), inputs), rows((moved,), inputs), None).kl


def test_divergence_of_numbers_is_half_the_squared_difference_in_spreads():
    outputs = torch.tensor([3.0, 50.0]) * drawn(400, 2) + torch.tensor([7.0, -1000.0])
    moved = outputs + torch.tensor([0.3, 20.0]) * drawn(400, 2)
    scaled = (moved - outputs) / outputs.std(0, correction=0)
    assert divergence(numbers((outputs,), 0), outputs, moved) == pytest.approx(
        float(scaled.square().mean()) / 2, rel=1e-5
    )


def test_numbers_far_outside_cost_more_and_more():
    outputs = drawn(100, 1)
    rows = numbers((outputs,), 0)
    found = [divergence(rows, outputs, outputs + far) for far in (1.0, 10.0, 100.0, 1e4)]
    assert found == sorted(found)
    assert found[0] == pytest.approx(0.5 / float(outputs.var(correction=0)), rel=1e-4)


def test_many_numbers_are_a_few_sums_of_all_of_them():
    """400 samples, 16 sums each: the estimate's standard error is 2 %."""
    outputs, noise = drawn(400, 3, 20, 20), drawn(400, 3, 20, 20)
    rows = numbers((outputs,), 0)
    assert rows((outputs,), ()).shape[:2] == (400, 16)
    exact = float((0.2 * noise / outputs.std((0, 2, 3), correction=0)[:, None, None]).square().mean()) / 2
    assert divergence(rows, outputs, outputs + 0.2 * noise) == pytest.approx(exact, rel=0.08)


def test_numbers_that_hardly_move_do_not_weigh_without_bound():
    """A constant up to rounding counts in units of its size; of many numbers, none weighs without bound."""
    outputs = drawn(50, 2) * torch.tensor([1.0, 1e-6]) + torch.tensor([0.0, 5.0])
    moved = outputs + torch.tensor([0.0, 0.5])
    assert divergence(numbers((outputs,), 0), outputs, moved) == pytest.approx(0.01 / 4, rel=1e-3)
    many = drawn(50, 100) * torch.tensor([1e-6] + [1.0] * 99)
    moved = many.clone()
    moved[:, 0] += 0.1
    assert 0.002 < divergence(numbers((many,), 0), many, moved) < 0.008


@pytest.mark.parametrize("width", [2, 16, 384])
def test_divergence_of_directions_is_one_minus_cosine(width):
    outputs, moved = drawn(500, width), drawn(500, width)
    moved = outputs + 0.3 * moved
    exact = float((1 - F.cosine_similarity(outputs, moved)).mean())
    found = divergence(directions((outputs,), (), 0), outputs, moved)
    assert found == pytest.approx(exact, rel=1e-4 if width <= 16 else 0.08)
    assert divergence(directions((outputs,), (), 0), outputs, 5 * outputs) == pytest.approx(0.0, abs=1e-9)


def test_directions_at_padding_do_not_count():
    outputs, mask = drawn(3, 4, 5), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    rows = directions((outputs,), (mask,), 0, 0)
    padded = torch.where(mask[:, :, None] == 1, outputs, drawn(3, 4, 5))
    assert divergence(rows, outputs, padded, (mask,)) == 0.0
    exact = (1 - F.cosine_similarity(outputs, outputs + 0.5, dim=2)) * mask
    found = divergence(rows, outputs, outputs + 0.5, (mask,))
    assert found == pytest.approx(float((exact.sum(1) / mask.sum(1)).mean()), rel=0.9)  # 16 sums of 3 samples


def test_positions_of_classes():
    logits = drawn(2, 7, 20, 30)
    rows = classes((logits,), 0, 1)
    found = rows((logits,), ())
    assert found.shape == (2, 64, 7)
    assert torch.equal(found, logits.flatten(2).transpose(1, 2)[:, rows.positions])
    wide = drawn(2, 3, 9000)
    assert classes((wide,), 0, -1)((wide,), ()).shape == (2, 1, 9000)


def test_padding_is_never_a_position():
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0]])
    found = valid_positions(mask, 6)
    assert found.tolist() == [[0, 0, 1, 1, 2, 2], [2, 2, 2, 5, 5, 5], [0, 1, 2, 3, 4, 5]]


def test_several_outputs_count_alike():
    """One output of 2 numbers and one of 12: the divergence is the mean of both."""
    first, second = drawn(300, 2), drawn(300, 12)
    rows = Several([numbers((first, second), number) for number in range(2)])
    moved = (first + 0.4, second)
    alone = divergence(rows.parts[0], first, first + 0.4)
    assert compare(rows((first, second), ()), rows(moved, ()), None).kl == pytest.approx(alone / 2, rel=1e-5)


def test_random_functions_have_the_fisher_matrix_of_the_rows_mean():
    rows = drawn(1, 3, 4).requires_grad_()
    p = rows.detach()[0].softmax(-1)  # (3, 4)
    exact = torch.zeros(12, 12)
    for row in range(3):
        block = torch.diag(p[row]) - torch.outer(p[row], p[row])
        exact[4 * row : 4 * row + 4, 4 * row : 4 * row + 4] = block / 3
    gradients = [
        torch.autograd.grad(function, rows, retain_graph=True)[0].flatten()
        for function in random_functions(rows, 20_000, torch.Generator().manual_seed(0))
    ]
    stacked = torch.stack(gradients)
    assert torch.allclose(stacked.T @ stacked / len(stacked), exact, atol=3e-3)


def test_one_row_a_sample_is_drawn_for_the_model_of_outputs():
    outputs = drawn(1000, 5, 4)
    shifted = outputs + 0.5 * drawn(1000, 5, 4)
    predictions = Predictions(outputs)
    assert predictions.probabilities.shape == (1000, 4)
    p, shift = predictions.probabilities, predictions.shift(shifted).astype(float)
    of_drawn = float(-(p * shift).sum(1).mean())
    assert of_drawn == pytest.approx(compare(outputs, shifted, None).kl, rel=0.1)
    part = predictions.pooled(100, outputs[100:130])
    assert torch.allclose(part.exp(), torch.from_numpy(p[100:130]))
