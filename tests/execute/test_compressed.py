"""A compressed network equals what was evaluated, is plain and smaller, and shares no memory with anything."""

import pytest
import torch
from execute_toys import Tied, labels, menus_of, network, outputs, same_state, state
from torch import nn

from autocompress.evaluation import Evaluator
from autocompress.evaluation.renormalize import Renormalizer
from autocompress.evaluation.stitch import rows_left
from autocompress.execute.compressed import (
    LayerWeights,
    from_menus,
    kept_map,
    renormalized,
    uncompressed,
    write_weights_,
)
from autocompress.menus.activations import ActivationRange
from autocompress.network import fold_batch_norms, trace


@pytest.mark.parametrize(
    ("granularity", "sparsity"), [("channel", 0.5), ("element", 0.5), ("2:4", 0.5), ("channel", 0.0)]
)
@pytest.mark.parametrize("activation_bits", [4, 8, 32])
def test_it_is_what_the_evaluator_measured(granularity, sparsity, activation_bits):
    model, x = network("mixed")
    menus = menus_of(model, x, granularity=granularity, weight_bits=(1, 3, 16, 32))
    labeling = labels(menus, sparsity, 3, activation_bits, depthwise=(0.0, 1, 8), point=(0.0, 16, 32))
    evaluator = Evaluator(model, menus.network, menus, x, None, dtype="float32", batch_size=48)
    stitched = evaluator.stitched(labeling)
    made = from_menus(menus, labeling, fold_batch_norms(model, menus.network))
    assert same_state(made.model.state_dict(), stitched.state_dict())
    assert torch.equal(outputs(made.rounded(), x), outputs(stitched, x))
    assert made.plan == menus.plan(labeling)
    for name, layer in made.layers.items():
        assert torch.equal(layer.weight(), made.model.get_submodule(name).weight)
        assert layer.sparsity == (0.0 if granularity == "channel" else made.plan.labels[name].sparsity)


@pytest.mark.parametrize(("granularity", "sparsity"), [("channel", 0.5), ("2:4", 0.5)])
def test_renormalized_it_is_what_the_evaluator_measured(granularity, sparsity):
    """Codes stay, rows' scales and biases move; floats are multiplied, and stay float16 numbers where they are."""
    model, x = network("mixed")
    menus = menus_of(model, x, granularity=granularity, weight_bits=(1, 3, 16, 32))
    labeling = labels(menus, sparsity, 3, 32, depthwise=(0.0, 1, 32), point=(0.0, 16, 32), left=(0.0, 32, 32))
    evaluator = Evaluator(model, menus.network, menus, x, None, renormalized_on=x, dtype="float32", batch_size=48)
    folded = fold_batch_norms(model, menus.network)
    made, rows = from_menus(menus, labeling, folded), rows_left(menus, labeling)
    before = state(made.model)
    renormalizer = Renormalizer(folded, menus.network, x)
    found = renormalized(made, renormalizer, rows)
    expected = evaluator.stitched(labeling)
    torch.testing.assert_close(
        outputs(found.rounded(), x), outputs(expected, x), rtol=0, atol=0.02
    )  # float16 moves codes
    assert not torch.allclose(outputs(found.rounded(), x), outputs(made.rounded(), x), atol=0.02)
    assert same_state(before, made.model.state_dict())
    for name, layer in found.layers.items():
        own = made.layers[name]
        assert (layer.bits, layer.sparsity, layer.input_range) == (own.bits, own.sparsity, own.input_range)
        assert torch.equal(layer.weight(), found.model.get_submodule(name).weight)
        if layer.scale is not None:
            assert torch.equal(layer.values, own.values)
            ratio = layer.scale / own.scale
            assert ((ratio > 0.799) & (ratio < 1.251)).all()
        if layer.bits == 16:
            assert torch.equal(layer.values, layer.values.half().float())
        if layer.bias is not None:  # `left` comes first: with all its weights it is left as it is
            assert torch.equal(layer.bias, own.bias) == (name == "left" and len(layer.bias) == 8)
    kept = renormalized(made, renormalizer, rows, ["left", "join"])
    assert [name for name in made.layers if kept.layers[name] is made.layers[name]] == ["left", "join"]


def test_channels_are_gone():
    model, x = network("mixed")
    menus = menus_of(model, x, weight_bits=(8,))
    made = from_menus(menus, labels(menus, 0.5, 8, 32), fold_batch_norms(model, menus.network))
    # left 8 -> 4, right 4 -> 2, so the norm has 6; join, depthwise and point share the shortcut's 8 -> 4 channels.
    shapes = {
        name: tuple(module.weight.shape) for name, module in made.model.named_modules() if hasattr(module, "weight")
    }
    assert shapes == {
        "left": (4, 4, 1, 1), "right": (2, 4, 3, 3), "norm": (6,), "join": (4, 6, 1, 1), "depthwise": (4, 1, 3, 3),
        "point": (4, 4, 1, 1), "head": (4, 4),
    }  # fmt: skip
    assert {name: tuple(layer.values.shape) for name, layer in made.layers.items()} == {
        name: shape for name, shape in shapes.items() if name != "norm"
    }
    assert made.model.depthwise.groups == 4
    assert all(layer.values.dtype == torch.int8 for layer in made.layers.values())


def test_rounded_leaves_the_model_alone_and_rounds_every_input():
    model, x = network("mixed")
    menus = menus_of(model, x, weight_bits=(32,))
    made = from_menus(menus, labels(menus, 0.0, 32, 4), fold_batch_norms(model, menus.network))
    plain, before = outputs(made.model, x), state(made.model)
    rounded = made.rounded()
    seen = {}
    for name in made.layers:
        rounded.get_submodule(name).register_forward_hook(lambda m, args, y, name=name: seen.update({name: args[0]}))
    outputs(rounded, x)
    assert all(len(values.unique()) <= 16 for values in seen.values())
    assert len(seen["left"].unique()) == 16
    assert torch.equal(outputs(made.model, x), plain)
    assert same_state(before, made.model.state_dict())
    assert not any(module._forward_pre_hooks for module in made.model.modules())


def test_hooks_of_the_users_own_stay():
    model, x = network("mixed")
    model.head.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    menus = menus_of(model, x, weight_bits=(32,), sparsity_levels=1)
    made = from_menus(menus, labels(menus, 0.0, 32, 32), fold_batch_norms(model, menus.network))
    assert len(made.model.head._forward_pre_hooks) == 1
    torch.testing.assert_close(outputs(made.model, x), outputs(model, x))


def test_memory_is_plain_and_its_own():
    model, x = network("mixed")
    menus = menus_of(model, x, weight_bits=(8, 32))
    folded = fold_batch_norms(model, menus.network)
    for bits in (8, 32):
        for made in (from_menus(menus, labels(menus, 0.25, bits, 32), folded), uncompressed(folded, menus.network)):
            for name, layer in made.layers.items():
                module = made.model.get_submodule(name)
                expected = torch.empty(module.weight.shape).stride()
                assert module.weight.stride() == layer.values.stride() == expected
                assert module.weight.data_ptr() != layer.values.data_ptr()
                assert module.bias is None or module.bias.data_ptr() != layer.bias.data_ptr()
                assert module.weight.data_ptr() != folded.get_submodule(name).weight.data_ptr()


def test_uncompressed_is_the_original():
    model, x = network("mixed")
    traced = trace(model, x[:1])
    folded = fold_batch_norms(model, traced)
    made = uncompressed(folded, traced, "2:4")
    assert torch.equal(outputs(made.rounded(), x), outputs(folded, x))
    assert [(layer.bits, layer.sparsity, layer.scale, layer.input_range) for layer in made.layers.values()] == [
        (32, 0.0, None, None)
    ] * 6
    assert made.plan.granularity == "2:4"
    assert made.plan.fingerprint == traced.fingerprint
    assert {(label.sparsity, label.weight_bits, label.activation_bits) for label in made.plan.labels.values()} == {
        (0.0, 32, 32)
    }


def test_a_weight_in_common_stays():
    model, x = network("tied")
    assert isinstance(model, Tied)
    menus = menus_of(model, x, sparsity_levels=1)
    made = from_menus(menus, labels(menus, 0.0, 3, 32), fold_batch_norms(model, menus.network))
    assert list(made.layers) == ["head"]
    assert len(made.model.head.weight[0].unique()) <= 8
    assert made.model.first.weight is made.model.second.weight
    assert torch.equal(made.model.first.weight, model.first.weight)


def test_weight_by_hand():
    codes, scale = torch.tensor([[[1, -2]], [[3, 0]]], dtype=torch.int8), torch.tensor([0.5, 2.0])
    layer = LayerWeights(codes, scale, torch.tensor([1.0, 2.0]), 3, 0.0, ActivationRange(8, 1.0, 0, 0.0))
    assert layer.weight().tolist() == [[[0.5, -1.0]], [[6.0, 0.0]]]
    module = nn.Sequential(nn.Conv1d(1, 2, 2))
    write_weights_(module, "0", layer)
    assert module[0].weight.tolist() == [[[0.5, -1.0]], [[6.0, 0.0]]]
    assert module[0].bias.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("sparsity", "granularity", "removed"),
    [
        (0.5, "element", [0, 1, 3, 4]),  # 4 of 8; the zeros at 5 and 7 are stored
        (0.3, "element", [0, 1]),  # floor(2.4)
        (0.5, "2:4", [0, 1, 4, 5]),
        (0.5, "3:4", [0, 4]),
        (0.0, "element", None),
        (0.5, "channel", None),
    ],
)
def test_kept_map_removes_as_many_zeros_as_the_label_says(sparsity, granularity, removed):
    values = torch.tensor([[0, 0, 7, 0], [0, 0, -1, 0]], dtype=torch.int8).view(2, 2, 2)
    kept = kept_map(values, sparsity, granularity)
    if removed is None:
        assert kept is None
    else:
        assert kept.shape == (2, 2, 2)
        assert (~kept.flatten()).nonzero()[:, 0].tolist() == removed
