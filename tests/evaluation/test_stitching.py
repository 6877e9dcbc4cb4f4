"""Stitched networks hold what the plan says: channels gone, levels, rounded inputs; and they compute what masks do."""

import copy

import numpy as np
import pytest
import torch
from evaluation_toys import (
    NETWORKS,
    Tied,
    counted_bytes,
    counted_macs,
    masked,
    menus_of,
    network,
    original_labels,
    outputs,
    random_labels,
)
from torch import Tensor, nn

from autocompress.evaluation import Evaluator
from autocompress.menus import Menus
from autocompress.network import trace
from autocompress_envs import Labeling

Prepared = tuple[nn.Module, Tensor, Menus, Evaluator]


def prepared(name: str, **options: object) -> Prepared:
    model, x = network(name)
    menus = menus_of(model, x, **options)
    return model, x, menus, Evaluator(model, menus.network, menus, x, None, dtype="float32", batch_size=16)


@pytest.fixture(scope="module", params=NETWORKS)
def by_channel(request: pytest.FixtureRequest) -> Prepared:
    return prepared(request.param)


@pytest.fixture(scope="module", params=NETWORKS)
def by_element(request: pytest.FixtureRequest) -> Prepared:
    return prepared(request.param, granularity="element", weight_bits=(2, 32))


def without_rounding(labeling: Labeling) -> Labeling:
    return Labeling(labeling.sparsity, labeling.weight_bits, np.full_like(labeling.activation_bits, 2))


def test_networks_are_what_the_tests_mean() -> None:
    traced = {name: trace(*network(name)) for name in NETWORKS}
    assert [(group.owner, group.width) for group in traced["concat"].groups] == [("left", 6), ("right", 4), ("join", 8)]
    assert [list(group.norms) for group in traced["concat"].groups] == [["norm"], ["norm"], []]
    found = [(group.owner, set(group.producers)) for group in traced["inverted residual"].groups]
    assert found == [
        ("stem.0", {"stem.0", "project.0"}),
        ("expand.0", {"expand.0", "depthwise.0", "excite"}),
        ("squeeze", {"squeeze"}),
    ]
    assert [group.owner for group in traced["sequence"].groups] == ["hidden"]


def test_resources_are_what_the_stitched_network_holds(by_channel: Prepared) -> None:
    """20 random plans: bytes and multiply-accumulates counted on the model; the header is what the original's size has
    besides."""
    _, x, menus, evaluate = by_channel
    problem, rng = menus.problem(), np.random.default_rng(3)
    names = [layer.name for layer in menus.network.layers]
    full = original_labels(problem)
    header = problem.original()["size"] - counted_bytes(evaluate.stitched(full), menus, full)
    assert 200 < header < 3000
    sizes = set()
    for _ in range(20):
        labeling = random_labels(problem, rng)
        stitched, outcome = evaluate.stitched(labeling), evaluate(labeling)
        assert outcome.resources == problem.resources(labeling)
        assert counted_bytes(stitched, menus, labeling) + header == outcome.resources["size"]
        assert counted_macs(stitched, names, x) == outcome.resources["macs"]
        assert np.isfinite(outcome.kl)
        assert outcome.kl > 0
        sizes.add(outcome.resources["size"])
    assert len(sizes) > 15


def test_shapes_shrink_as_the_cost_model_counts(by_channel: Prepared) -> None:
    _, _, menus, evaluate = by_channel
    problem, rng = menus.problem(), np.random.default_rng(4)
    for _ in range(5):
        labeling = random_labels(problem, rng)
        stitched = evaluate.stitched(labeling)
        fan_in, out = problem.costs.widths(problem.kept(labeling))
        for layer, columns, rows in zip(menus.network.layers, fan_in, out, strict=True):
            module = stitched.get_submodule(layer.name)
            assert module.weight.flatten(1).shape == (rows, columns)
            if isinstance(module, nn.Linear):
                assert (module.out_features, module.in_features) == (rows, columns)
            else:
                assert module.weight.shape[2:] == layer.weight_shape[2:]
                assert (module.out_channels, module.in_channels // module.groups) == module.weight.shape[:2]
        for name, module in stitched.named_modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                assert module.num_features == len(module.running_mean) == len(module.weight), name


def test_removed_channels_equal_masked_channels(by_channel: Prepared) -> None:
    model, x, menus, evaluate = by_channel
    problem, rng = menus.problem(), np.random.default_rng(5)
    for _ in range(10):
        labeling = without_rounding(random_labels(problem, rng))
        expected = outputs(masked(model, menus, labeling), x)
        torch.testing.assert_close(outputs(evaluate.stitched(labeling), x), expected, rtol=1e-5, atol=1e-5)


def test_removed_weights_are_zero(by_element: Prepared) -> None:
    """Granularity `element`: widths stay, and just the weights that the size leaves out are 0."""
    _, _, menus, evaluate = by_element
    problem, rng = menus.problem(), np.random.default_rng(6)
    for _ in range(20):
        labeling = random_labels(problem, rng)
        stitched = evaluate.stitched(labeling)
        stored_bits = 0
        for position, layer in enumerate(menus.network.layers):
            weight, sparsity = stitched.get_submodule(layer.name).weight, labeling.sparsity[position] / 4
            assert weight.shape == layer.weight_shape
            bits = (2, 32)[labeling.weight_bits[position]]
            zeros, removed = int((weight == 0).sum()), int(sparsity * weight.numel())
            assert zeros == removed if bits == 32 else zeros >= removed
            stored = bits * (weight.numel() - removed) + weight.numel() * (sparsity > 0)
            stored_bits += 8 * -(-stored // 8)
        widest = problem.resources(Labeling(0 * labeling.sparsity, labeling.weight_bits, labeling.activation_bits))
        plain = sum(
            8 * -(-layer.parameters * (2, 32)[labeling.weight_bits[position]] // 8)
            for position, layer in enumerate(menus.network.layers)
        )
        assert evaluate(labeling).resources["size"] == widest["size"] - (plain - stored_bits) // 8


def test_no_row_has_more_levels_than_its_bits_allow(by_channel: Prepared) -> None:
    _, _, menus, evaluate = by_channel
    problem = menus.problem()
    full = original_labels(problem)
    for index, bits in enumerate((1, 3, 8)):
        labeling = Labeling(full.sparsity, np.full_like(full.weight_bits, index), full.activation_bits)
        stitched = evaluate.stitched(labeling)
        for layer in menus.network.layers:
            rows = stitched.get_submodule(layer.name).weight.flatten(1)
            assert max(len(row.unique()) for row in rows) <= 2**bits


def test_layer_inputs_are_really_rounded(by_channel: Prepared) -> None:
    _, x, menus, evaluate = by_channel
    full = original_labels(menus.problem())
    seen: dict[str, int] = {}

    def listen(name: str) -> None:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[name] = len(args[0].unique())

        stitched.get_submodule(name).register_forward_pre_hook(hook)

    for index, (least, most) in enumerate([(10, 16), (100, 256), (x.numel(), 10_000)]):
        labeling = Labeling(full.sparsity, full.weight_bits, np.full_like(full.activation_bits, index))
        stitched = evaluate.stitched(labeling)
        for layer in menus.network.layers:
            listen(layer.name)
        outputs(stitched, x)
        assert seen.keys() == {layer.name for layer in menus.network.layers}
        assert max(seen.values()) <= most
        assert seen[menus.network.layers[0].name] >= least


def test_one_layers_input_is_rounded_alone() -> None:
    """The last layer's input at 4 bits, checked against rounding it by hand."""
    _, x, menus, evaluate = prepared("sequence")
    full = original_labels(menus.problem())
    labeling = Labeling(full.sparsity, full.weight_bits, np.array([2, 2, 2, 0]))
    found = menus.ranges["head"][0]
    assert found is not None
    plain = evaluate.stitched(full)
    plain.head.register_forward_pre_hook(lambda _, args: ((args[0] / found.scale).round().clamp(0, 15) * found.scale,))
    assert found.zero == 0
    torch.testing.assert_close(outputs(evaluate.stitched(labeling), x), outputs(plain, x))


def test_stitching_over_and_over_leaves_nothing_behind(by_channel: Prepared) -> None:
    _, x, menus, evaluate = by_channel
    problem, rng = menus.problem(), np.random.default_rng(7)
    labelings = [random_labels(problem, rng) for _ in range(6)]
    fresh = [outputs(evaluate.stitched(labeling), x) for labeling in labelings]
    for index in (0, 1, 2, 0, 3, 4, 5, 3, 1):
        reused = outputs(evaluate._stitcher.stitch_(labelings[index]), x)
        torch.testing.assert_close(reused, fresh[index], rtol=1e-5, atol=1e-5)


def test_ready_weights_may_run_out_of_room(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, menus, evaluate = prepared("concat")
    rng = np.random.default_rng(8)
    labelings = [random_labels(menus.problem(), rng) for _ in range(4)]
    roomy = [evaluate(labeling).kl for labeling in labelings]
    monkeypatch.setattr("autocompress.evaluation.stitch._READY_BYTES", 1000)
    tight = Evaluator(model, menus.network, menus, x, None, dtype="float32", batch_size=16)
    assert [tight(labeling).kl for labeling in labelings] == roomy
    assert len(tight._stitcher._ready) < 4


def test_stitched_networks_are_their_own(by_channel: Prepared) -> None:
    _, x, menus, evaluate = by_channel
    problem, rng = menus.problem(), np.random.default_rng(9)
    stitched = evaluate.stitched(random_labels(problem, rng))
    expected, copied = outputs(stitched, x), copy.deepcopy(stitched)
    for _ in range(3):
        evaluate(random_labels(problem, rng))
        evaluate.stitched(random_labels(problem, rng))
    assert torch.equal(outputs(stitched, x), expected)
    assert torch.equal(outputs(copied, x), expected)
    assert not stitched.training


def test_tied_weights_are_left_as_they_are() -> None:
    torch.manual_seed(0)
    model, x = Tied().eval(), torch.randn(20, 6)
    menus = menus_of(model, x)
    evaluate = Evaluator(model, menus.network, menus, x, None, dtype="float32", batch_size=20)
    full = original_labels(menus.problem())
    assert evaluate(full).kl < 1e-6
    stitched = evaluate.stitched(Labeling(full.sparsity, np.array([0]), full.activation_bits))
    assert max(len(row.unique()) for row in stitched.head.weight) == 2
    assert torch.equal(stitched.first.weight, model.first.weight)
    assert stitched.first.weight is stitched.second.weight
