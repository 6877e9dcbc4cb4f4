"""Closeness of two networks, by hand."""

import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from autocompress.borrowed import evaluating
from autocompress.errors import InputError
from autocompress.evaluation.measure import compare, measure


class Fixed(nn.Module):
    """Looks its logits up: input (N,) int64."""

    def __init__(self, logits: list[list[float]]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.logits)[x]


# Probabilities (1/2, 1/2), (3/4, 1/4) against (1/4, 3/4), (3/4, 1/4).
P = [[0.0, 0.0], [math.log(3), 0.0]]
Q = [[0.0, math.log(3)], [math.log(3), 0.0]]


def test_by_hand() -> None:
    divergence = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)  # of the first sample; 0 for the second
    found = compare(torch.tensor(P), torch.tensor(Q), torch.tensor([1, 1]))
    assert found.kl == pytest.approx(divergence / 2, rel=1e-6)
    assert found.accuracy == 0.5  # answers 1, 0
    assert found.agreement == 0.5  # the original answers 0, 0
    assert found.original_accuracy == 0.0


def test_measure_weighs_samples_not_batches() -> None:
    original, compressed = Fixed(P), Fixed(Q)
    labels = torch.tensor([1, 0, 0])
    batches = [(torch.tensor([0, 1]), labels[:2]), (torch.tensor([1]), labels[2:])]
    found = measure(original, compressed, batches)
    divergence = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert found.kl == pytest.approx(divergence / 3, rel=1e-6)
    assert (found.accuracy, found.agreement, found.original_accuracy) == (1.0, 2 / 3, 2 / 3)
    assert original.training
    assert original.dropout.training


@pytest.mark.parametrize(("at_once", "sizes"), [(1, [1] * 5), (2, [2, 1, 2]), (64, [3, 2])])
def test_batches_are_cut_to_what_runs_at_once(at_once: int, sizes: list[int]) -> None:
    samples, labels = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([1, 0, 0, 0, 1])
    whole, seen = measure(Fixed(P), Fixed(Q), [(samples, labels)]), []
    original = Fixed(P)
    original.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    parts = [(samples[:3], labels[:3]), (samples[3:], labels[3:])]
    assert measure(original, Fixed(Q), parts, at_once=at_once) == whole
    assert seen == sizes


def test_without_labels() -> None:
    found = measure(Fixed(P), Fixed(Q), [(torch.tensor([0, 1]), None)])
    assert np.isnan(found.accuracy)
    assert np.isnan(found.original_accuracy)
    assert found.agreement == 0.5


def test_equal_networks() -> None:
    found = measure(Fixed(P), Fixed(P), [(torch.tensor([0, 1]), torch.tensor([0, 0]))])
    assert (found.kl, found.accuracy, found.agreement) == (0.0, 1.0, 1.0)


def test_what_is_refused() -> None:
    message = "`data` must hold at least one sample to measure on, got none."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        measure(Fixed(P), Fixed(Q), [])
    message = "`model` must give finite outputs, got NaN or infinity; check the weights and the data."
    for bad in (math.nan, math.inf):
        for pair in [(Fixed([[bad, 0.0]]), Fixed(Q)), (Fixed(P), Fixed([[0.0, bad]]))]:
            with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
                measure(*pair, [(torch.tensor([0]), None)])


def test_evaluating_gives_every_modules_mode_back_also_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)))
    model[1][1].eval()
    modes = [module.training for module in model.modules()]
    seen = []

    def interrupted() -> None:
        with evaluating(model):
            seen.append((any(module.training for module in model.modules()), model(torch.ones(3, 2)).requires_grad))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert seen == [(False, False)]
    assert [module.training for module in model.modules()] == modes == [True, True, True, True, False]
    assert model(torch.ones(3, 2)).requires_grad


def test_what_a_model_caches_while_measured_can_be_trained_with_later() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.cached = nn.Parameter(torch.ones(2)), None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.cached = torch.ones(2) if self.cached is None else self.cached
            return x * self.scale * self.cached

    model = Caching()
    measure(model, model, [(torch.ones(1, 2), None)])
    model(torch.ones(1, 2)).sum().backward()
    assert model.scale.grad.tolist() == [1.0, 1.0]
