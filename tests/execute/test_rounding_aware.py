"""Training through rounding: gradients by hand, and what is trained is what is handed back."""

import math
from dataclasses import replace

import pytest
import torch
from execute_toys import by_hand, levels, outputs, same, same_state, state

from autocompress.execute.compressed import LayerWeights, kept_map
from autocompress.execute.rounding_aware import LearnedCodes, LearnedRange, finished, rounding_aware, unrounded
from autocompress.menus.activations import ActivationRange
from autocompress.menus.rounding import code_range

_BITS = (*range(1, 9), 16, 32)
_SPARSE = [("channel", 0.0), ("element", 0.3), ("2:4", 0.5)]


def trained(compressed, x, steps=4, rate=0.05, check=lambda model: None):
    """After some steps of Adam away from what it computes; `check` sees the model after each."""
    model = rounding_aware(compressed)
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=rate)
    torch.manual_seed(0)
    wanted = torch.randn(len(x), 3)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - wanted).square().mean().backward()
        optimizer.step()
        check(model)
    return model


@pytest.mark.parametrize("bits", _BITS)
@pytest.mark.parametrize(("granularity", "sparsity"), _SPARSE)
def test_before_training_it_computes_what_the_network_does_and_gives_it_back(bits, granularity, sparsity):
    compressed, x = by_hand(bits, {1: 4, 8: 8}.get(bits, 32), granularity, sparsity)
    before = state(compressed.model)
    model = rounding_aware(compressed)
    assert torch.equal(outputs(model, x), outputs(compressed.rounded(), x))
    with torch.enable_grad():
        assert torch.equal(model(x).detach(), outputs(compressed.rounded(), x))
    assert same(finished(model, compressed), compressed)
    assert same_state(compressed.model.state_dict(), before)


def test_rows_of_zeros_keep_their_tiny_scale():
    """Quantizers give them a scale of about 1e-12, and 1 bit has no code for 0."""
    compressed, x = by_hand(1)
    scale = compressed.layers["head"].scale.clone()
    scale[0] = 3e-13
    compressed.layers["head"] = replace(compressed.layers["head"], scale=scale)
    compressed.model.head.weight.data = compressed.layers["head"].weight()
    model = rounding_aware(compressed)
    assert torch.equal(outputs(model, x), outputs(compressed.model, x))
    assert same(finished(model, compressed), compressed)


def test_weight_gradients_by_hand():
    """2 bits, codes -2 … 1, step 0.5: v = w / s = 0.6, 4, -5; codes 1, 1, -2.

    d ŵ / d w = 1 inside and 0 outside; d ŵ / d s = round(v) - v = 0.4 inside, 1 above, -2 below,
    times 1 / sqrt(3 weights · largest code 1).
    """
    layer = LayerWeights(torch.zeros(1, 3, dtype=torch.int8), torch.tensor([0.5]), None, 2, 0.0, None)
    codes = LearnedCodes(layer, "channel")
    weight = torch.tensor([[0.3, 2.0, -2.5]], requires_grad=True)
    rounded = codes(weight)
    assert rounded.tolist() == [[0.5, 0.5, -1.0]]
    rounded.backward(torch.tensor([[1.0, 10.0, 100.0]]))
    assert weight.grad.tolist() == [[1.0, 0.0, 0.0]]
    expected = (1 * 0.4 + 10 * 1 + 100 * -2) / math.sqrt(3)
    assert codes.step.grad.flatten().tolist() == pytest.approx([expected], rel=1e-6)


def test_gradients_of_one_bit_by_hand():
    """v = 0.5, -0.25, 8; codes 1, -1, 1; beyond 1.5 steps nothing passes; steps by row."""
    layer = LayerWeights(torch.ones(2, 3, dtype=torch.int8), torch.tensor([2.0, 1.0]), None, 1, 0.0, None)
    codes = LearnedCodes(layer, "channel")
    weight = torch.tensor([[1.0, -0.5, 16.0], [0.0, 0.0, 0.0]], requires_grad=True)
    rounded = codes(weight)
    assert rounded.tolist() == [[2.0, -2.0, 2.0], [1.0, 1.0, 1.0]]
    rounded.sum().backward()
    assert weight.grad.tolist() == [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]
    by_row = [(0.5 - 0.75 + 1) / math.sqrt(3), 3 / math.sqrt(3)]
    assert codes.step.grad.flatten().tolist() == pytest.approx(by_row, rel=1e-6)


def test_removed_weights_have_no_gradient():
    values = torch.tensor([[0, 1, 0, 2]], dtype=torch.int8)
    codes = LearnedCodes(LayerWeights(values, torch.tensor([1.0]), None, 4, 0.5, None), "2:4")
    weight = torch.tensor([[3.0, 1.2, -3.0, 2.0]], requires_grad=True)
    rounded = codes(weight)
    assert rounded.tolist() == [[0.0, 1.0, 0.0, 2.0]]
    rounded.sum().backward()
    assert weight.grad.tolist() == [[0.0, 1.0, 0.0, 1.0]]
    assert codes.step.grad.flatten().tolist() == pytest.approx([-0.2 / math.sqrt(4 * 7)], rel=1e-5)


def test_input_gradients_by_hand():
    """4 bits with zero at code 5: codes -5 … 10 times 0.5; v = 0.6, 12, -8 give 1, 10, -5."""
    learned = LearnedRange(ActivationRange(4, 0.5, 5, 0.0))
    x = torch.tensor([[0.3, 6.0, -4.0]], requires_grad=True)
    (rounded,) = learned(torch.nn.Identity(), (x,))
    assert rounded.tolist() == [[0.5, 5.0, -2.5]]
    rounded.backward(torch.tensor([[1.0, 1.0, 10.0]]))
    assert x.grad.tolist() == [[1.0, 0.0, 0.0]]
    assert learned.step.grad.tolist() == pytest.approx([(0.4 + 10 - 50) / math.sqrt(3 * 10)], rel=1e-6)


@pytest.mark.parametrize("bits", _BITS)
@pytest.mark.parametrize(("granularity", "sparsity"), _SPARSE)
def test_after_training_it_hands_back_what_it_computes(bits, granularity, sparsity):
    compressed, x = by_hand(bits, 4, granularity, sparsity)
    removed = {name: kept_map(layer.values, sparsity, granularity) for name, layer in compressed.layers.items()}

    def check(model):
        for name, kept in removed.items():
            assert kept is None or not model.get_submodule(name).weight[~kept].any()

    model = trained(compressed, x, check=check)
    result = finished(model, compressed)
    assert torch.equal(outputs(result.rounded(), x), outputs(model, x))
    assert not torch.equal(outputs(model, x), outputs(compressed.rounded(), x))
    for name, layer in result.layers.items():
        before = compressed.layers[name]
        assert torch.equal(result.model.get_submodule(name).weight, layer.weight())
        assert (layer.bits, layer.sparsity, layer.values.dtype) == (bits, sparsity, before.values.dtype)
        assert not torch.equal(layer.weight(), before.weight())
        assert removed[name] is None or not layer.values[~removed[name]].any()
        if bits < 16:
            low, high = code_range(bits)
            assert low <= int(layer.values.min()) <= int(layer.values.max()) <= high
            assert max(levels(layer.values)) <= 2**bits + (bits == 1 and sparsity > 0)
            assert not torch.equal(layer.scale, before.scale)
        if bits == 16:
            assert torch.equal(layer.values, layer.values.half().float())


@pytest.mark.parametrize(("bits", "learns"), [(4, True), (7, True), (8, False)])
def test_which_input_ranges_learn(bits, learns):
    compressed, x = by_hand(8, bits)
    result = finished(trained(compressed, x), compressed)
    for name, layer in result.layers.items():
        before = compressed.layers[name].input_range
        assert layer.input_range.zero == before.zero
        assert layer.input_range.bits == bits
        assert (layer.input_range.scale != before.scale) == learns
    assert compressed.layers["conv"].input_range.zero > 0  # negative inputs: the code of zero has something to lose


def test_everything_else_is_learned_and_carried_over():
    compressed, x = by_hand(4)
    model = trained(compressed, x)
    result = finished(model, compressed)
    for name in ("gain", "norm.weight", "norm.bias", "conv.bias", "head.bias"):
        learned = model.get_parameter(name)
        assert torch.equal(result.model.get_parameter(name), learned)
        assert not torch.equal(learned, compressed.model.get_parameter(name))
    for name in ("conv", "head"):
        assert torch.equal(result.layers[name].bias, model.get_submodule(name).bias)
    assert torch.equal(result.model.norm.running_mean, compressed.model.norm.running_mean)  # it runs in eval mode
    assert not any(module.training for module in result.model.modules())


def test_memory_is_plain_whatever_format_training_used():
    compressed, _ = by_hand(4)
    model = rounding_aware(compressed).to(memory_format=torch.channels_last)
    result = finished(model, compressed)
    assert model.conv.weight.stride() != compressed.model.conv.weight.stride()
    assert result.layers["conv"].values.stride() == result.model.conv.weight.stride() == (18, 9, 3, 1)


def test_kept_weights_are_rounded_in_the_place_of_its_own():
    compressed, x = by_hand(2, granularity="2:4", sparsity=0.5)
    given = {name: torch.randn(layer.values.shape) for name, layer in compressed.layers.items()}
    copies = {name: weight.clone() for name, weight in given.items()}
    model = rounding_aware(compressed, given)
    result = finished(model, compressed)
    for name, layer in compressed.layers.items():
        kept = kept_map(layer.values, 0.5, "2:4")
        shape = (-1, *[1] * (layer.values.ndim - 1))
        codes = (given[name] / layer.scale.view(shape)).round().clamp(-2, 1) * kept
        assert torch.equal(result.layers[name].values, codes.to(torch.int8))
        assert torch.equal(result.layers[name].scale, layer.scale)
        assert torch.equal(result.layers[name].bias, layer.bias)
        weight, bias = unrounded(model, compressed)[name]
        assert torch.equal(weight, given[name] * kept)
        assert torch.equal(bias, layer.bias)
        assert torch.equal(given[name], copies[name])
    assert torch.equal(outputs(result.model, x), outputs(model, x))
