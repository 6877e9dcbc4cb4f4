"""Judged losses: against the Fisher matrix of small networks, and against divergences measured on fresh samples."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from judging_toys import Pool, Wide, maps, measured, menus_of, rows
from menu_toys import branches, seeded
from torch import Tensor, nn

from autocompress.menus.activations import ActivationRange
from autocompress.menus.fisher import random_functions
from autocompress.menus.judging import Judged, judge
from autocompress.menus.responses import Changes
from autocompress.network import fold_batch_norms, trace

ROUNDING = ActivationRange(4, 0.25, 8, 0.0)


def prepared() -> tuple[nn.Module, Tensor, list[Changes]]:
    """A network with branches, folded, and two small changes of every layer; one rounding and none."""
    model, x = branches()
    network = trace(model, x[:1])
    folded, changes = fold_batch_norms(model, network).requires_grad_(False).eval(), []
    for number, layer in enumerate(network.layers):
        made = 0.1 * torch.randn(2, layer.rows, layer.fan_in + 1, generator=seeded(number))
        if folded.get_submodule(layer.name).bias is None:
            made[..., -1] = 0

        def weights(made: Tensor = made) -> Iterator[Tensor]:
            return iter(made)

        changes.append(Changes(layer, 2, weights, [ROUNDING, None]))
    return folded, x, changes


def moved(folded: nn.Module, x: Tensor, changes: Changes, change: Tensor) -> Tensor:
    """(N, K) logits to first order, by forward-mode derivatives of the whole network; float64."""
    name, model = changes.layer.name, folded.double()
    whole = {key: value.detach() for key, value in model.named_parameters()}
    direction = {key: torch.zeros_like(value) for key, value in whole.items()}
    direction[f"{name}.weight"] = change[:, :-1].double().view_as(whole[f"{name}.weight"])
    if f"{name}.bias" in whole:
        direction[f"{name}.bias"] = change[:, -1].double()

    def run(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, parameters, (x.double(),))

    return torch.func.jvp(run, (whole,), (direction,))[1]


def test_losses_are_those_of_the_fisher_matrix() -> None:
    """½ E[Σ p z² - (Σ p z)²] of the logits' moves z; with 600 random functions within 5 %."""
    folded, x, changes = prepared()
    found = judge(folded, changes, x, draws=600)
    p = folded.double()(x.double()).softmax(1)
    for each in changes:
        for number, change in enumerate(each.weights()):
            z = moved(folded, x, each, change)
            expected = 0.5 * ((p * z.square()).sum(1) - (p * z).sum(1).square()).mean()
            assert found[each.layer.name].weights[number] == pytest.approx(float(expected), rel=0.05)
            assert expected > 1e-5


def test_losses_are_mean_squares_of_the_functions_that_the_seed_draws() -> None:
    """½ E[⟨g, dW⟩²] with each sample's own g, by autograd; exactly, from as few as three functions."""
    folded, x, changes = prepared()
    found = judge(folded, changes, x, draws=3, seed=2)
    folded.requires_grad_(True)
    outputs = folded(x)
    logs = outputs.log_softmax(1)
    signs = torch.randint(0, 2, (3, *logs.shape), generator=torch.Generator().manual_seed(2 * 1_000_003)) * 2.0 - 1
    of_samples = signs * logs.detach().exp().sqrt() * logs  # (3, N, K)
    for function, whole in zip(of_samples.sum((1, 2)), random_functions(
        outputs, 3, torch.Generator().manual_seed(2 * 1_000_003)
    ), strict=True):  # fmt: skip
        torch.testing.assert_close(function, whole)
    for each in changes:
        module = folded.get_submodule(each.layer.name)
        parameters = [module.weight] if module.bias is None else [module.weight, module.bias]
        squares = np.zeros(2)
        for value in of_samples.sum(2).flatten():
            gradients = torch.autograd.grad(value, parameters, retain_graph=True)
            for number, change in enumerate(each.weights()):
                parts = [change[:, :-1].flatten(), change[:, -1]]
                product = sum(float(g.flatten() @ part) for g, part in zip(gradients, parts, strict=False))
                squares[number] += 0.5 * product**2 / of_samples.shape[0] / len(x)
        np.testing.assert_allclose(found[each.layer.name].weights, squares, rtol=1e-3)


def test_roundings_cost_what_their_errors_do() -> None:
    """The head's input moves by e, and its logits by 4 W e: no derivative is needed."""
    folded, x, changes = prepared()
    inputs: list[Tensor] = []
    handle = folded.head.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    p = folded(x).softmax(1)
    handle.remove()
    z = 4 * (ROUNDING.apply(inputs[0]) - inputs[0]) @ folded.head.weight.T
    expected = 0.5 * ((p * z.square()).sum(1) - (p * z).sum(1).square()).mean()
    found = judge(folded, changes, x, draws=600)
    assert found["head"].roundings[0] == pytest.approx(float(expected), rel=0.05)
    for judged in found.values():
        assert judged.roundings[1] == 0 < judged.roundings[0]


def test_the_seed_decides() -> None:
    """And nothing else: not the random state, which stays as it is, and not what was judged before."""
    folded, x, changes = prepared()

    def judged(seed: int, some: list[Changes] = changes) -> dict[str, Judged]:
        return dict(judge(folded, some, x, draws=2, seed=seed))

    state = torch.get_rng_state()
    one, other = judged(1), judged(2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again, last = judged(1), judged(1, changes[-1:])
    for name, each in one.items():
        assert np.array_equal(each.weights, again[name].weights)
        assert np.array_equal(each.roundings, again[name].roundings)
        assert not np.isclose(each.weights, other[name].weights, rtol=1e-3).any()
    np.testing.assert_allclose(last["head"].weights, one["head"].weights, rtol=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_positions_that_pull_together_cost_as_much_together(seed: int) -> None:
    """Behind a global pool, roundings of a convolution cost twenty times what they would if each pulled for itself."""
    model, judging = Pool().eval().requires_grad_(False), maps(256, 2)
    options = {"weight_bits": (4, 6, 8), "seed": seed}
    plain = menus_of(model, maps(256, 1), **options)
    judged = menus_of(model, maps(256, 1), judging, **options)
    assert judged.judged is not None
    index = plain.network.layer_index()
    for name in ("first", "second"):
        true = measured(model, plain, name, judging)
        expected_by_moments = plain.problem().layers[index[name]].errors[0, :, -1]
        assert true.max() > 1e-5
        assert plain.sources[name].coherence > 20
        assert (expected_by_moments > true / 1.6).all()
        assert (expected_by_moments < 1.6 * true).all()
        for found in (judged.judged[name][0][0], judged.problem().layers[index[name]].errors[0, :, -1]):
            assert (found < 1.5 * true).all()
            assert (found > true / 1.5).all()


@pytest.mark.parametrize("shrunk", [False, True])
def test_pruning_a_head_of_more_inputs_than_samples_is_not_free(shrunk: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """400 inputs, 64 samples: a fit that believes chance correlations is perfect on its samples, and on no others.

    Measured on fresh samples, of which neither the fit nor the judgement has seen any.
    """
    if not shrunk:
        monkeypatch.setattr("autocompress.menus.variants.shrunk", lambda moment, shrinkage: moment)
    model = Wide().eval().requires_grad_(False)
    judged = menus_of(model, rows(64, 1), rows(256, 2), weight_bits=(32,), sparsity_levels=4)
    head = judged.network.layers[1]
    true = measured(model, judged, "head", rows(1024, 3))[1:]  # a quarter, a half and three quarters pruned
    by_moments = np.array([variant.error for _, variant in judged.table_variants(head, 0)][1:])
    assert judged.judged is not None
    found = judged.judged["head"][0][1:, 0]
    assert (true > 5e-3).all()
    assert (by_moments < true / (2 if shrunk else 100)).all()
    assert (found < 2 * true).all()
    assert (found > true / 2).all()
