"""First-order effects: against forward-mode derivatives of whole networks, and against plans really evaluated."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from effects_toys import Case, agree, at, case, evaluator, less
from evaluation_toys import menus_of, original_labels, outputs
from torch import nn

from autocompress.evaluation.effects import Effects, first_order_effects
from autocompress.evaluation.predictions import Predictions
from autocompress_envs import Labeling

MODULE = "autocompress.menus.responses"


def by_derivatives(case: Case) -> Effects:
    """Effects as they should be; activations as they are."""
    layers, (_, classes) = case.menus.problem().layers, case.pooled(0, outputs(case.model, case.x)).shape
    most, original = case.parameters(original_labels(case.menus.problem())), case.parameters()
    pruning = np.zeros((len(layers), max(len(layer.sparsities) for layer in layers), len(case.x), classes))
    rounding = np.zeros((len(layers), 2, len(case.x), classes))
    for row, layer in enumerate(layers):
        for option in range(1, len(layer.sparsities)):
            changed = case.parameters(at(case.menus, sparsity=(row, option)))
            pruning[row, option] = case.derivative(less(changed, most))
        for bits in range(2):
            changed = case.parameters(at(case.menus, weight_bits=(row, bits)))
            own = {name: name.rpartition(".")[0] == layer.name for name in original}
            direction = {name: (changed[name] - original[name]) * own[name] for name in original}
            rounding[row, bits] = case.derivative(direction)
    return Effects(pruning, rounding)


def assert_predicts(found: np.ndarray, shift: np.ndarray, tolerance: float) -> None:
    """As far as float16 and the float32 network tell."""
    shift = shift.astype(np.float64)
    assert np.linalg.norm(found - shift) <= tolerance * np.linalg.norm(shift) + 2e-5


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_one_linear_layer_by_hand() -> None:
    """Logits move by d = dW x + db, log-probability k by d_k - sum_j p_j d_j; the weights at 8 bits, inputs at 32."""
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Linear(4, 3)).eval(), torch.randn(24, 4)
    menus = menus_of(model, x, weight_bits=(2, 8), activation_bits=(4, 32))
    found = first_order_effects(model.requires_grad_(False), menus, x, Predictions(outputs(model, x)).pooled)
    variant = menus.variants(menus.network.layers[0], {})[1]
    moved = x @ variant.weight().T + variant.bias - outputs(model, x)
    mean = (outputs(model, x).softmax(1) * moved).sum(1, keepdim=True)
    agree(found.rounding[0, 1 * 2 + 1], (moved - mean).numpy())
    assert (found.pruning.shape, found.rounding.shape) == ((1, 1, 24, 3), (1, 4, 24, 3))
    assert not found.pruning.any()


@pytest.mark.parametrize(
    ("name", "granularity"),
    [
        ("concat", "channel"), ("inverted residual", "channel"), ("sequence", "channel"), ("twice", "channel"),
        ("sequence", "element"), ("twice", "element"), ("concat", "2:4"),
    ],
)  # fmt: skip
def test_effects_are_derivatives_in_the_direction_of_the_labels(name: str, granularity: str) -> None:
    """Pruning along all layers that read the group; concatenations, depthwise layers, a layer that runs twice."""
    found, expected = case(name, granularity).effects(), by_derivatives(case(name, granularity))
    assert found.pruning.dtype == found.rounding.dtype == np.float32
    assert (found.pruning.shape, found.rounding.shape[:2]) == (expected.pruning.shape, (len(found.pruning), 2 * 2))
    agree(found.pruning, expected.pruning)
    agree(found.rounding[:, 1::2], expected.rounding)  # weights alone, the inputs at 32 bits
    layers = case(name, granularity).menus.problem().layers  # one that runs twice can't be pruned by channels
    offered = [[0 < option < len(layer.sparsities) for option in range(found.pruning.shape[1])] for layer in layers]
    assert not found.pruning[~np.array(offered)].any()  # sparsity 0, and where there is nothing to choose
    assert (np.abs(found.pruning).max() > 0.05) == np.any(offered)
    assert np.abs(found.rounding).max((1, 2, 3)).min() > 1e-4


def test_activation_bits_have_no_first_order_effect_of_their_own() -> None:
    """Weight bits b and activation bits a are number b * A + a."""
    found = case("concat").effects().rounding
    assert np.array_equal(found[:, 0::2], found[:, 1::2])
    assert not np.array_equal(found[:, 0], found[:, 2])


@pytest.mark.parametrize("name", ["concat", "inverted residual", "sequence"])
def test_small_changes_do_what_was_predicted(name: str) -> None:
    """Measured: 8 bits for one layer's weights and 32 elsewhere; a quarter of one group; 8-bit weights everywhere."""
    given = case(name, bits=(8, 32), inputs=8)
    evaluate, layers = evaluator(given, dtype="float32"), given.menus.problem().layers
    found = evaluate.effects()
    for row, layer in enumerate(layers):
        assert_predicts(found.rounding[row, 0 * 2 + 1], evaluate(at(given.menus, weight_bits=(row, 0))).shift, 0.12)
        if len(layer.sparsities) > 1:
            assert_predicts(found.pruning[row, 1], evaluate(at(given.menus, sparsity=(row, 1))).shift, 0.2)
    zeros, ones = np.zeros(len(layers), np.int64), np.ones(len(layers), np.int64)
    assert_predicts(found.rounding[:, 0 * 2 + 1].sum(0), evaluate(Labeling(zeros, zeros, ones)).shift, 0.1)


@pytest.mark.parametrize(
    ("samples", "most_bytes", "batches"),
    [(5, 10**9, [5, 10, 15, 20, 24]), (64, 1, [*range(1, 25)]), (64, 4 * 6 * 7 * 7, [7, 14, 21, 24])],
)
def test_how_samples_are_split_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, samples: int, most_bytes: int, batches: list[int]
) -> None:
    """5 at once; 1, although it takes more than a byte; 7 float32 gradients of 6 rows and 7 columns, the largest."""
    given = case("twice", "element")
    assert len({tuple(order) for order in outputs(given.model, given.x).argsort(1)[:, -3:].tolist()}) > 5
    whole = given.effects()
    monkeypatch.setattr(f"{MODULE}._MOST_SAMPLES", samples)
    monkeypatch.setattr(f"{MODULE}._BATCH_BYTES", most_bytes)
    seen: list[tuple[int, int]] = []
    split = first_order_effects(given.folded, given.menus, given.x, given.pooled, lambda *done: seen.append(done))
    assert seen == [(done, 24) for done in batches]
    agree(split.pruning, whole.pruning)
    agree(split.rounding, whole.rounding)
    first = replace(given, x=given.x[:6]).effects()
    agree(whole.first(6).pruning, first.pruning)
    agree(whole.first(6).rounding, first.rounding)


def test_many_classes_are_pooled_and_probabilities_still_sum_to_one() -> None:
    """12 classes: nine, and the rest together; sum_k p_k d log p_k = 0."""
    given = case("twice", "element")
    found, predictions = given.effects(), Predictions(outputs(given.model, given.x))
    assert found.rounding.shape == (2, 4, 24, 10)
    assert found.pruning.shape == (2, 4, 24, 10)
    for effects in (found.pruning, found.rounding):
        assert np.abs((effects * predictions.probabilities).sum(-1)).max() < 1e-5 < 0.05 < np.abs(effects).max()


@pytest.mark.parametrize("broken", [False, True])
def test_the_network_stays_as_it_is(broken: bool) -> None:
    """In-place activations, hooks, modes, gradients and random state, also where the network fails in between."""
    given = case("inverted residual")
    folded, x = copy.deepcopy(given.folded), given.x.clone()
    folded.head.train()
    folded.head.weight.requires_grad_(True).grad = torch.ones_like(folded.head.weight)
    calls: list[int] = []
    handle = folded.squeeze.register_forward_hook(lambda *_: calls.append(1))
    before, modes = copy.deepcopy(folded.state_dict()), [module.training for module in folded.modules()]
    wanted, random_state = [each.requires_grad for each in folded.parameters()], torch.get_rng_state()
    if broken:
        folded.excite.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            replace(given, folded=folded, x=x).effects()
    else:
        agree(replace(given, folded=folded, x=x).effects().pruning, given.effects().pruning)
    assert calls
    assert folded.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in folded.state_dict().items())
    assert [module.training for module in folded.modules()] == modes
    assert [each.requires_grad for each in folded.parameters()] == wanted
    assert [each.grad is not None for each in folded.parameters()] == wanted
    assert torch.equal(folded.head.weight.grad, torch.ones_like(folded.head.weight))
    assert [list(module._forward_hooks) for module in folded.modules() if module._forward_hooks] == [[handle.id]]
    assert torch.equal(torch.get_rng_state(), random_state)
    assert (torch.equal(x, given.x), x.requires_grad, torch.is_grad_enabled()) == (True, False, True)


def test_the_evaluator_computes_effects_once() -> None:
    """And they count as no evaluation; batches of its own; a plan evaluated in between changes nothing."""
    given = case("concat")
    evaluate = evaluator(given, dtype="float32", batch_size=7)
    evaluate(at(given.menus, sparsity=(0, 2), weight_bits=(1, 0)))
    found = evaluate.effects()
    agree(found.pruning, given.effects().pruning)
    agree(found.rounding, given.effects().rounding)
    few = evaluator(given, dtype="float32", batch_size=7)
    agree(few.effects(samples=10).pruning, found.first(10).pruning)
    more = few.effects(samples=24)  # more than are known: anew
    agree(more.pruning, found.pruning)
    assert few.effects(samples=10) is more
    assert evaluate.effects() is found
    assert evaluate.evaluations == 1


@pytest.mark.parametrize("name", ["concat", "inverted residual", "sequence", "twice"])
def test_half_precision_predicts_the_same(name: str) -> None:
    """Weights alone: pruned, at 8 bits, and at 32, which do nothing."""
    given = case(name, bits=(2, 8, 32))
    rough, exact = evaluator(given, dtype="bfloat16").effects(), given.effects()
    assert rough.pruning.dtype == rough.rounding.dtype == np.float32
    assert np.linalg.norm(rough.pruning - exact.pruning) <= 0.15 * np.linalg.norm(exact.pruning)
    assert distance(rough.rounding[:, 1 * 2 + 1], exact.rounding[:, 1 * 2 + 1]) < 0.15
    assert np.abs(rough.rounding[:, 2 * 2 + 1]).max() < 1e-5


@pytest.mark.parametrize("name", ["windows", "sequence first"])
def test_layers_whose_first_axis_is_not_the_sample(name: str) -> None:
    found, expected = case(name).effects(), by_derivatives(case(name))
    agree(found.pruning, expected.pruning)
    agree(found.rounding[:, 1::2], expected.rounding)
