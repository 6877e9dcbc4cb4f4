"""The loss by hand, and taps that leave nothing behind."""

import itertools
import math

import pytest
import torch
from torch import nn

from autocompress.errors import InputError
from autocompress.execute.distillation import FeatureTap, Objective, features_loss, matched_layers

_TEACHER, _STUDENT = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 4.0]])


def softened_kl(teacher, student, temperature):
    """KL of two classes from their logits, in plain Python."""
    p, q = ([math.exp(value / temperature) for value in logits] for logits in (teacher, student))
    p, q = ([value / sum(each) for value in each] for each in (p, q))
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_soft_part(temperature):
    rows = [softened_kl(t, s, temperature) for t, s in zip(_TEACHER.tolist(), _STUDENT.tolist(), strict=True)]
    loss = Objective(soft=3.0, temperature=temperature).predictions_loss(_STUDENT, _TEACHER, None)
    assert float(loss) == pytest.approx(3 * temperature**2 * sum(rows) / 2, rel=1e-5)
    if (
        temperature == 2.0
    ):  # log(1 + e) - log 2 - … by hand: p = (e, 1) / (1 + e), q = ½, and p = ½, q = (1, e²) / (1 + e²)
        p = math.e / (1 + math.e)
        by_hand = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)), math.log((1 + math.e**2) / 2) - 1
        assert rows == pytest.approx(by_hand)


def test_hard_part():
    """Cross-entropies: log 2, and log(1 + e⁴) - 4."""
    loss = Objective(soft=0, hard=0.5).predictions_loss(_STUDENT, _TEACHER, torch.tensor([0, 1]))
    assert float(loss) == pytest.approx(0.5 * (math.log(2) + math.log(1 + math.e**4) - 4) / 2, rel=1e-5)


def test_parts_add_up_and_a_perfect_copy_costs_nothing():
    labels = torch.tensor([0, 1])
    both = Objective(soft=2.0, hard=0.25).predictions_loss(_STUDENT, _TEACHER, labels)
    parts = [
        each.predictions_loss(_STUDENT, _TEACHER, labels)
        for each in (Objective(soft=2.0), Objective(soft=0, hard=0.25))
    ]
    torch.testing.assert_close(both, sum(parts))
    assert float(Objective().predictions_loss(_TEACHER, _TEACHER, None)) == 0
    assert float(Objective().predictions_loss(_TEACHER + 7, _TEACHER, None)) == pytest.approx(0, abs=1e-6)
    assert float(Objective(soft=0, features=1).predictions_loss(_STUDENT, _TEACHER, None)) == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"soft": -1.0}, "`soft_weight` must be at least 0, got -1.0."),
        ({"hard": -0.5}, "`hard_weight` must be at least 0, got -0.5."),
        ({"features": -2.0}, "`features_weight` must be at least 0, got -2.0."),
        ({"l1": math.nan}, "`l1_weight` must be at least 0, got nan."),
        (
            {"soft": 0.0, "l1": 1.0},
            "`soft_weight`, `hard_weight` and `features_weight` must not all be 0, got 0 for each.",
        ),
        ({"temperature": 0.0}, "`temperature` must be above 0, got 0.0."),
        ({"temperature": math.nan}, "`temperature` must be above 0, got nan."),
    ],
)
def test_what_is_refused(values, message):
    with pytest.raises(InputError) as caught:
        Objective(**values)
    assert str(caught.value) == message


def tower(*widths):
    return nn.Sequential(*[nn.Linear(inputs, width) for inputs, width in itertools.pairwise(widths)])


def test_matched_layers():
    whole = tower(*[4] * 12)
    kept = {str(position): torch.arange(4) for position in range(11)}
    found = matched_layers(whole, kept)
    assert list(found) == ["0", "1", "2", "4", "5", "6", "7", "9"]  # of ten, the last left out
    assert all(found[name] is kept[name] for name in found)
    nothing = {**kept, "0": torch.arange(0), "1": torch.tensor([2]), "9": torch.arange(0)}
    assert list(matched_layers(whole, nothing)) == [str(position) for position in range(1, 9)]
    assert matched_layers(whole, {"0": kept["0"]}) == {}


def test_features_loss_by_hand():
    """Layer a: mean of 0, 4, 0, 4 over the variance 4 / 3 of 1, 3, 1, 3; layer b is the same."""
    wanted = {"a": torch.tensor([[1.0, 3.0], [1.0, 3.0]]), "b": torch.tensor([[1.0, 2.0]])}
    got = {"a": torch.tensor([[1.0, 1.0], [1.0, 1.0]]), "b": torch.tensor([[1.0, 2.0]])}
    assert float(features_loss(got, wanted)) == pytest.approx((2 / (4 / 3) + 0) / 2)
    constant = {"a": torch.ones(2, 2)}
    assert float(features_loss({"a": torch.ones(2, 2) + 1e-3}, constant)) == pytest.approx(1.0, rel=1e-3)  # 1e-6 / 1e-6


def test_taps_hold_what_layers_gave_and_are_removed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    x = torch.randn(8, 4)
    with FeatureTap(model, {"0": None}) as tap:
        outputs = model(x)
    expected = nn.functional.linear(x, model[0].weight, model[0].bias)
    assert expected.min() < 0
    assert torch.equal(tap.outputs["0"], expected)
    assert list(tap.outputs) == ["0"]
    assert tap.outputs["0"].requires_grad
    tap.outputs.clear()
    assert torch.equal(model(x), outputs)
    assert tap.outputs == {}
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("layer", [nn.Linear(4, 3), nn.Conv1d(4, 3, 2), nn.Conv2d(4, 3, (1, 2))])
def test_taps_hold_the_kept_channels(layer):
    shape = {nn.Linear: (5, 2, 4), nn.Conv1d: (5, 4, 6), nn.Conv2d: (5, 4, 6, 2)}[type(layer)]
    with FeatureTap(nn.Sequential(layer), {"0": torch.tensor([2, 0])}) as tap:
        outputs = layer(torch.randn(shape))
    channels = outputs if isinstance(layer, nn.Linear) else outputs.transpose(1, -1)
    held = tap.outputs["0"] if isinstance(layer, nn.Linear) else tap.outputs["0"].transpose(1, -1)
    assert torch.equal(held, channels[..., [2, 0]])


def test_taps_are_removed_after_an_error():
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(RuntimeError, match="shapes"), FeatureTap(model, {"0": None}):
        model(torch.ones(1, 5))
    assert not model[0]._forward_hooks
