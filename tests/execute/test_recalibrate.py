"""Re-calibration: closed forms by hand, what it mends, and what it must leave as it is."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from execute_toys import digits, labels, levels, menus_of, network, outputs, same, same_state, state
from torch import nn

from autocompress.errors import ExportError
from autocompress.evaluation import measure
from autocompress.execute.compressed import Compressed, from_menus, kept_map
from autocompress.execute.following import MOST_IN_A_BATCH
from autocompress.execute.layer_fit import PRIORS
from autocompress.execute.recalibrate import recalibrate
from autocompress.menus.activations import calibrate_range
from autocompress.network import fold_batch_norms


def crosses(width, height=1.0):
    """(2 width, width): mean 0 and E[x xᵀ] = height² / width · identity."""
    return height * torch.cat([torch.eye(width), -torch.eye(width)])


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


class Shortcut(nn.Module):
    """y = head(s(x) + b(x)), with the addition in one of three forms."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(4)
        self.form = form
        self.s, self.b, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        s = self.s(x)
        y = self.b(x)
        if self.form == "in place":
            y += s
            return self.head(y)
        return self.head(s + y) if self.form == "left" else self.head(y + 2 * s.sum(1, keepdim=True))


def chain(x, bits, activation_bits, **others):
    model = Chain().eval()
    menus = menus_of(model, x, weight_bits=(2, 32), sparsity_levels=1)
    labeling = labels(menus, 0.0, bits, activation_bits, **others)
    made = from_menus(menus, labeling, model)
    return model, menus, made, recalibrate(made, model, menus, labeling, x)


def extended(x):
    """(N, k + 1) float64 columns with a 1 for the bias."""
    return np.concatenate([x.double().numpy(), np.ones((len(x), 1))], 1)


def least_squares(x, y, prior, strength):
    """(E[y xᵀ] + λ W₀) (E[x xᵀ] + λ)⁻¹ in NumPy; λ: a share of the mean square, for biases 1e-6 of that."""
    moment, cross = x.T @ x / len(x), y.T @ x / len(x)
    mean = np.diag(moment)[:-1].mean()
    anchor = strength * np.diag([mean] * (len(moment) - 1) + [1e-6 * mean])
    return (cross + prior @ anchor) @ np.linalg.inv(moment + anchor)


def with_spread(x, y, weight):
    """Rows scaled so that x Wᵀ has the standard deviations of y, and the means that it had."""
    scale = np.std(y, 0) / np.std(x @ weight.T, 0)
    scaled = weight * scale[:, None]
    scaled[:, -1] += (x @ weight.T).mean(0) - (x @ scaled.T).mean(0)
    return scaled


def held_out_loss(x, y, prior, strength, gradient_moment, finish=lambda x, y, weight: weight):
    """½ tr(G Σ e eᵀ) over four folds, every fourth sample in each, fitted to the three others."""
    total = 0.0
    for fold in range(4):
        judges = np.arange(len(x)) % 4 == fold
        fit = least_squares(x[~judges], y[~judges], prior, strength)
        error = y[judges] - x[judges] @ finish(x[~judges], y[~judges], fit).T
        total += 0.5 * np.sum((error @ gradient_moment) * error)
    return total


@pytest.mark.parametrize(
    ("samples", "chosen"), [(600, {"first": 0.01, "second": 0.01}), (46, {"first": None, "second": "bias"})]
)
def test_the_weights_are_the_closed_form_of_the_weakest_good_prior(samples, chosen):
    """Both layers read inputs rounded to 4 bits; the second reads what the first one gives.

    Each fit keeps the outputs' spread. With few samples a layer may get a bias alone, or keep its weights.
    """
    torch.manual_seed(5)
    x = torch.randn(samples, 6)
    model, menus, made, fitted = chain(x, 32, 4)
    hidden = {}
    rounded = fitted.rounded()
    for name in fitted.layers:
        rounded.get_submodule(name).register_forward_hook(lambda m, args, y, name=name: hidden.update({name: args[0]}))
    outputs(rounded, x)
    wanted = {"first": outputs(model.first, x), "second": outputs(model, x)}
    for name, layer in fitted.layers.items():
        module = model.get_submodule(name)
        prior = torch.cat([module.weight, module.bias[:, None]], 1).detach().double().numpy()
        read, y, moment = extended(hidden[name]), wanted[name].double().numpy(), menus.sources[name].gradient_moment
        losses = {strength: held_out_loss(read, y, prior, strength, moment.numpy()) for strength in PRIORS}
        weakest = min(strength for strength in PRIORS if losses[strength] <= 1.1 * min(losses.values()))
        found = torch.cat([layer.weight(), layer.bias[:, None]], 1).double().numpy()
        if chosen[name] is None:
            error = y - read @ found.T
            loss = held_out_loss(read, y, prior, weakest, moment.numpy(), with_spread)
            assert loss > 1.1 * 0.5 * np.sum((error @ moment.numpy()) * error)
            assert torch.equal(layer.values, made.layers[name].values)
            assert layer.input_range == replace(made.layers[name].input_range, noise=layer.input_range.noise)
            continue
        if chosen[name] == "bias":
            np.testing.assert_allclose(found[:, :-1], prior[:, :-1], atol=1e-6)
            np.testing.assert_allclose((read @ found.T).mean(0), y.mean(0), atol=1e-5)
            continue
        assert weakest == chosen[name]
        expected = with_spread(read, y, least_squares(read, y, prior, weakest))
        np.testing.assert_allclose(found, expected, atol=2e-5)
        assert np.abs(found - prior).max() > 0.003  # there was something to fit


def test_a_removed_channel_is_taken_over_by_one_that_says_the_same():
    """h₂ = 2 h₁, y = h₁ + h₂: with one of them gone, the other gets what makes up 3 h₁."""
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False)).eval()
    model[0].weight.data, model[1].weight.data = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 1.0]])
    x = crosses(1, 2.0).repeat(4, 1)  # for each fold the same
    menus = menus_of(model, x, weight_bits=(32,), sparsity_levels=2)
    labeling = labels(menus, 0.5, 32, 32)
    fitted = recalibrate(from_menus(menus, labeling, model), model, menus, labeling, x)
    kept = float(fitted.layers["0"].weight())
    assert kept in (1.0, 2.0)
    assert fitted.layers["1"].weight().shape == (1, 1)
    assert float(fitted.layers["1"].weight()) == pytest.approx(3 / kept, rel=1e-4)  # the prior was damped by 0.001
    torch.testing.assert_close(outputs(fitted.model, x), outputs(model, x), rtol=1e-4, atol=0)


@pytest.mark.parametrize("form", ["left", "in place", "broadcast"])
def test_the_layer_beside_a_damaged_shortcut_mends_it(form):
    """s loses D = S - Ŝ by rounding to 2 bits. With E[x xᵀ] = c·1 and λ = c / 100, the fit is B + D / 1.01.

    Its rows are then as long as those of B + D, which have the spread that they should.
    """
    x = crosses(6, 3.0)
    model = Shortcut(form).eval()
    menus = menus_of(model, x, weight_bits=(2, 32), sparsity_levels=1)
    labeling = labels(menus, 0.0, 32, 32, s=(0.0, 2, 32))
    made = from_menus(menus, labeling, model)
    fitted = recalibrate(made, model, menus, labeling, x)
    lost = model.s.weight.detach() - fitted.layers["s"].weight()
    assert lost.abs().max() > 0.1
    own = model.b.weight.detach()
    wanted = own if form == "broadcast" else own + lost
    fit = own + (wanted - own) / 1.01
    fit = fit * wanted.norm(dim=1, keepdim=True) / fit.norm(dim=1, keepdim=True)
    torch.testing.assert_close(fitted.layers["b"].weight(), fit, rtol=0, atol=1e-5)
    if form != "broadcast":
        before, after = ((outputs(each.rounded(), x) - outputs(model, x)).norm() for each in (made, fitted))
        assert after < 0.03 * before


@pytest.mark.parametrize(
    ("sparsity", "bits", "activation_bits", "share"), [(0.5, 32, 32, 0.25), (0.0, 2, 8, 0.1), (0.5, 2, 4, 0.2)]
)
def test_digits_come_closer_to_the_original(sparsity, bits, activation_bits, share):
    toy = digits()
    made, labeling = toy.compressed(sparsity, bits, activation_bits)
    inputs, _ = toy.data.calibration()
    told = []
    fitted = recalibrate(made, toy.folded, toy.menus, labeling, inputs, lambda *args: told.append(args))
    before, after = (measure(toy.folded, each.rounded(), [(inputs, None)]).kl for each in (made, fitted))
    assert before > 0.02
    assert after < share * before
    held_before, held_after = (measure(toy.folded, each.rounded(), [toy.data.search()]).kl for each in (made, fitted))
    assert held_after < (share + 0.2) * held_before
    assert told == [(done, 9, "re-calibration") for done in range(1, 10)]
    for name, layer in fitted.layers.items():
        assert layer.values.shape == made.layers[name].values.shape
        assert (layer.bits, layer.sparsity) == (bits, 0.0)
        if bits < 16:
            assert -(2 ** (bits - 1)) <= int(layer.values.min()) <= int(layer.values.max()) < 2 ** (bits - 1)
            assert max(levels(layer.weight())) <= 2**bits
        assert torch.equal(fitted.model.get_submodule(name).weight, layer.weight())


@pytest.mark.parametrize("granularity", ["element", "2:4"])
def test_removed_weights_stay_removed(granularity):
    model, x = network("mixed")
    menus = menus_of(model, x, granularity=granularity, sparsity_levels=2)
    labeling = labels(menus, 0.5, 3, 8, left=(0.5, 32, 32), right=(0.5, 1, 8))
    whole = labels(menus, 0.5, 32, 32)
    folded = fold_batch_norms(model, menus.network)
    made, floats = from_menus(menus, labeling, folded), from_menus(menus, whole, folded)
    fitted = recalibrate(made, folded, menus, labeling, x)
    error_before, error_after = ((outputs(each.rounded(), x) - outputs(model, x)).norm() for each in (made, fitted))
    assert error_after < 0.95 * error_before
    for name, layer in fitted.layers.items():
        removed = floats.layers[name].values == 0  # the criterion's choice: float weights are not 0 by chance
        assert not layer.values[removed].any()
        if layer.sparsity:
            assert removed.float().mean() == pytest.approx(0.5, abs=1 / removed.numel())
            assert (layer.values[~removed] != 0).any()
        kept = kept_map(layer.values, layer.sparsity, granularity)
        assert kept is None or int((~kept).sum()) == removed.numel() // 2
    assert fitted.layers["right"].values[floats.layers["right"].values != 0].abs().unique().tolist() == [1]  # 1 bit


def test_input_ranges_are_those_of_the_compressed_network():
    torch.manual_seed(6)
    x = torch.randn(256, 6)
    _, _, made, fitted = chain(x, 2, 8)
    assert fitted.layers["first"].input_range == calibrate_range(_range_sample(x), 8)
    hidden = torch.relu(nn.functional.linear(  # what the fitted first layer gives
        fitted.layers["first"].input_range.apply(x), fitted.layers["first"].weight(), fitted.layers["first"].bias
    ))  # fmt: skip
    assert fitted.layers["second"].input_range == calibrate_range(_range_sample(hidden), 8)
    assert fitted.layers["second"].input_range != made.layers["second"].input_range


def _range_sample(x):
    """Any sample will do that has the same values at the same frequencies; the library draws batch by batch."""
    parts = []
    for start, batch in zip(range(0, len(x), MOST_IN_A_BATCH), x.split(MOST_IN_A_BATCH), strict=True):
        drawn = torch.randint(batch.numel(), (batch.numel(),), generator=torch.Generator().manual_seed(start))
        parts += [batch.flatten()[drawn], batch.amin()[None], batch.amax()[None]]
    return torch.cat(parts).sort().values


def test_it_changes_nothing_that_it_was_given():
    model, x = network("mixed")
    menus = menus_of(model, x)
    labeling = labels(menus, 0.25, 3, 8)
    folded = fold_batch_norms(model, menus.network).train()
    folded.norm.eval()
    for parameter in folded.parameters():
        parameter.requires_grad_(True)
    made = from_menus(menus, labeling, folded)
    copied = Compressed(copy.deepcopy(made.model), copy.deepcopy(dict(made.layers)), made.plan)
    before, modes, given = state(folded), [module.training for module in folded.modules()], x.clone()
    fitted, again = (recalibrate(made, folded, menus, labeling, x) for _ in range(2))
    assert same(made, copied)
    assert not same(fitted, made)
    assert same(fitted, again)  # the same inputs, the same result
    assert same_state(folded.state_dict(), before)
    assert [module.training for module in folded.modules()] == modes
    assert all(parameter.requires_grad for parameter in folded.parameters())
    assert torch.equal(x, given)
    assert not any(module.training for module in fitted.model.modules())


def test_a_layer_that_runs_twice_keeps_its_weights():
    model, x = network("twice")
    menus = menus_of(model, x, weight_bits=(2, 32))
    labeling = labels(menus, 0.0, 2, 32)
    made, told = from_menus(menus, labeling, model), []
    fitted = recalibrate(made, model, menus, labeling, x, lambda *args: told.append(args))
    assert torch.equal(fitted.layers["same"].values, made.layers["same"].values)
    assert fitted.layers["same"].input_range == made.layers["same"].input_range
    before, after = ((outputs(each.rounded(), x) - outputs(model, x)).norm() for each in (made, fitted))
    assert after < 0.95 * before  # by the head
    assert told == [(1, 1, "re-calibration")]


def test_paddings_with_other_than_zeros():
    model, x = network("circular", samples=192)
    menus = menus_of(model, x)
    labeling = labels(menus, 0.25, 3, 8)
    made = from_menus(menus, labeling, model)
    fitted = recalibrate(made, model, menus, labeling, x)
    before, after = ((outputs(each.rounded(), x) - outputs(model, x)).norm() for each in (made, fitted))
    assert after < 0.9 * before


def test_depthwise_layers_lose_what_their_producers_lost():
    model, x = network("mixed")
    menus = menus_of(model, x)
    labeling = labels(menus, 0.25, 32, 32)
    folded = fold_batch_norms(model, menus.network)
    made = from_menus(menus, labeling, folded)
    fitted = recalibrate(made, folded, menus, labeling, x)
    assert fitted.layers["depthwise"].values.shape == (6, 1, 3, 3)
    before, after = ((outputs(each.rounded(), x) - outputs(model, x)).norm() for each in (made, fitted))
    assert after < 0.95 * before


def test_a_network_that_cannot_be_followed():
    model, x = network("branching")
    menus = menus_of(model, x, sparsity_levels=1)
    labeling = labels(menus, 0.0, 8, 32)
    with pytest.raises(ExportError, match=r"^`model` must be a network that torch.export can follow: "):
        recalibrate(from_menus(menus, labeling, model), model, menus, labeling, x)


def test_another_network_is_refused():
    model, x = network("twice")
    menus = menus_of(model, x)
    labeling = labels(menus, 0.0, 8, 32)
    made = from_menus(menus, labeling, model)
    other = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    with pytest.raises(ExportError) as caught:
        recalibrate(replace(made), other, menus, labeling, x)
    assert str(caught.value) == ("the network runs other operators once channels are gone; it can't be re-calibrated.")


def test_too_few_samples_to_judge_by_change_nothing():
    """Of three samples, no fold is left for a fourth."""
    torch.manual_seed(6)
    _, _, made, fitted = chain(torch.randn(3, 6), 2, 8)
    assert same(made, fitted)


@pytest.mark.parametrize("seed", range(4))
def test_few_samples_do_no_harm(seed):
    """Eight samples for layers of up to 144 inputs: what is made of them carries over, or is left."""
    toy = digits()
    made, labeling = toy.compressed(0.0, 8, 8)
    inputs, _ = toy.data.train.load(toy.data.unused(1000)[8 * seed : 8 * seed + 8])
    fitted = recalibrate(made, toy.folded, toy.menus, labeling, inputs)
    before, after = (measure(toy.folded, each.rounded(), [toy.data.search()]).kl for each in (made, fitted))
    assert after < 2 * before + 1e-4
