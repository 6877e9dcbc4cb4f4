"""Menus of a whole network: their numbers, plans and labellings, and what is built when."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from menu_toys import branches

from autocompress.errors import InputError
from autocompress.menus import Menus, MenuSettings, build_menus
from autocompress.menus.store import Store
from autocompress.network import trace
from autocompress.plan import Label, Plan
from autocompress_envs import Labeling

SMALL: dict[str, Any] = {"weight_bits": (2, 4, 32), "activation_bits": (4, 8, 32), "sparsity_levels": 4}
LAYERS = ["left", "right", "join", "depthwise", "point", "head"]


def menus(**options: Any) -> Menus:
    model, x = branches()
    return build_menus(model, trace(model, x[:1]), x, MenuSettings(**SMALL | options), data_fingerprint="", jobs=1)


@pytest.fixture(scope="module")
def by_channel() -> Menus:
    return menus()


@pytest.fixture(scope="module")
def by_element() -> Menus:
    return menus(granularity="element")


def test_network_is_what_the_tests_mean(by_channel: Menus) -> None:
    network = by_channel.network
    assert [layer.name for layer in network.layers] == LAYERS
    assert [(group.owner, group.width) for group in network.groups] == [("left", 6), ("right", 4), ("join", 8)]
    assert [layer.reads for layer in network.layers] == [(), (), (0, 1), (), (2,), (2,)]
    assert [layer.writes for layer in network.layers] == [0, 1, 2, 2, 2, None]


def test_problem_by_channel(by_channel: Menus) -> None:
    left, right, join, depthwise, point, head = by_channel.problem().layers
    assert [layer.kind for layer in (left, join, depthwise, head)] == ["conv", "conv", "depthwise", "linear"]
    # 6 channels less 0, 1.5, 3, 4.5 rounded down
    assert (left.group, left.kept.tolist()) == (0, [6, 5, 3, 2])
    np.testing.assert_allclose(left.sparsities, [0, 1 / 6, 1 / 2, 2 / 3])
    assert (right.group, right.kept.tolist(), right.sparsities.tolist()) == (1, [4, 3, 2, 1], [0, 0.25, 0.5, 0.75])
    assert (join.group, join.kept.tolist()) == (2, [8, 6, 4, 2])
    for follower in (depthwise, point, head):
        assert (follower.group, follower.kept.tolist(), follower.sparsities.tolist()) == (None, [], [0.0])
    assert [layer.source for layer in (left, right, join, depthwise, point, head)] == [None, None, 0, None, 2, 2]
    assert [layer.errors.shape for layer in (left, right, join, depthwise, point, head)] == [
        (1, 3, 3), (1, 3, 3), (4, 3, 3), (1, 3, 3), (4, 3, 3), (4, 3, 3),
    ]  # fmt: skip
    ((owner, added),) = join.extra_sources
    assert (owner, added.shape, added[0]) == (1, (4,), 0.0)
    assert (np.diff(added) >= 0).all()
    assert 1e-4 < added[-1] < 1e-2
    assert all(layer.weight_bits.tolist() == [2, 4, 32] for layer in (left, head))
    assert all(layer.activation_bits.tolist() == [4, 8, 32] for layer in (left, head))


@pytest.mark.parametrize("which", ["by_channel", "by_element"])
def test_errors_fall_with_bits_and_rise_with_sparsity(which: str, request: pytest.FixtureRequest) -> None:
    for layer in request.getfixturevalue(which).problem().layers:
        assert (layer.errors >= 0).all()
        assert (np.diff(layer.errors[0], axis=0) < 0).all(), layer.name
        # Re-fits know neither G nor that H is damped, so rounding may make up for a little of what they lose.
        assert (layer.errors[:, 1:] <= 1.15 * layer.errors[:, :-1]).all(), layer.name
        assert (np.diff(layer.errors, axis=2) < 0).all(), layer.name
        assert (np.diff(layer.errors[:, -1, -1]) > 0).all(), layer.name
        assert (np.diff(layer.sparsities) > 0).all()
        assert layer.errors[0, -1, -1] < 1e-10


def test_activation_errors_add_to_weight_errors(by_channel: Menus) -> None:
    """½ · noise · positions · tr(G W Wᵀ); rows of a depthwise layer read different inputs, so only G's diagonal."""
    index = by_channel.network.layer_index()
    layers = by_channel.problem().layers
    for name in ("left", "depthwise"):
        source, found = by_channel.sources[name], by_channel.ranges[name]
        weight, gradients = source.weight[:, :-1], source.gradient_moment.double()
        gradients = gradients if name == "left" else gradients.diagonal().diag()
        gain = 0.5 * source.layer.positions * float(torch.trace(gradients @ weight @ weight.T))
        errors = layers[index[name]].errors[0]
        expected = [gain * entry.noise if entry is not None else 0.0 for entry in found]
        np.testing.assert_allclose(errors - errors[:, -1:], [expected] * 3, rtol=1e-9, atol=1e-15)
        assert found[2] is None


def test_problem_by_element(by_element: Menus) -> None:
    layers = by_element.problem().layers
    assert [layer.source for layer in layers] == [0, 1, 2, 3, 4, 5]
    assert all(layer.sparsities.tolist() == [0, 0.25, 0.5, 0.75] and layer.group is None for layer in layers)
    assert all(layer.errors.shape == (4, 3, 3) and layer.extra_sources == () for layer in layers)
    assert by_element.problem().costs.granularity == "element"


def test_problem_by_blocks_leaves_out_layers_that_do_not_divide() -> None:
    layers = menus(granularity="2:4").problem().layers
    # fan-ins 2, 18, 10, 9, 8, 8
    assert [layer.sparsities.tolist() for layer in layers] == [[0.0]] * 4 + [[0.0, 0.5]] * 2
    assert [layer.source for layer in layers] == [None] * 4 + [4, 5]


def test_variants_keep_the_columns_of_kept_channels(by_channel: Menus) -> None:
    join, head = by_channel.network.layers[2], by_channel.network.layers[5]
    gone = {*by_channel.orders[0][:3].tolist(), *(6 + by_channel.orders[1][:1]).tolist()}
    for variant in by_channel.variants(join, {0: 3, 1: 3}):
        assert variant.columns.tolist() == [column for column in range(10) if column not in gone]
    kept = sorted(by_channel.orders[2][6:].tolist())
    assert [variant.columns.tolist() for variant in by_channel.variants(head, {2: 2})] == [kept] * 3


def test_every_group_keeps_a_channel() -> None:
    found = menus(sparsity_levels=64, weight_bits=(32,), activation_bits=(32,))
    assert [found.kept_options(group) for group in found.network.groups] == [
        [6, 5, 4, 3, 2, 1],
        [4, 3, 2, 1],
        [8, 7, 6, 5, 4, 3, 2, 1],
    ]


def test_one_sparsity_level_turns_pruning_off() -> None:
    layers = menus(sparsity_levels=1).problem().layers
    assert all(layer.sparsities.tolist() == [0.0] and layer.errors.shape == (1, 3, 3) for layer in layers)


def random_labeling(found: Menus, rng: np.random.Generator) -> Labeling:
    layers = found.problem().layers
    return Labeling(
        np.array([rng.integers(len(layer.sparsities)) for layer in layers]),
        rng.integers(3, size=len(layers)),
        rng.integers(3, size=len(layers)),
    )


@pytest.mark.parametrize("which", ["by_channel", "by_element"])
def test_plans_and_labelings_are_the_same(which: str, request: pytest.FixtureRequest, tmp_path: Any) -> None:
    found, rng = request.getfixturevalue(which), np.random.default_rng(0)
    for _ in range(5):
        labeling = random_labeling(found, rng)
        plan = found.plan(labeling)
        plan.save(tmp_path / "plan.yaml")
        for read in (plan, Plan.load(tmp_path / "plan.yaml")):
            back = found.labeling(read)
            assert all(np.array_equal(*pair) for pair in zip(vars(labeling).values(), vars(back).values(), strict=True))


def test_plan_by_hand(by_channel: Menus) -> None:
    plan = by_channel.plan(
        Labeling(np.array([2, 0, 1, 0, 0, 0]), np.array([0, 1, 2, 0, 1, 2]), np.array([0, 1, 2] * 2))
    )
    assert plan.labels == {
        "left": Label(0.5, 2, 4),
        "right": Label(0.0, 4, 8),
        "join": Label(0.25, 32, 32),
        "depthwise": Label(0.0, 2, 4),
        "point": Label(0.0, 4, 8),
        "head": Label(0.0, 32, 32),
    }
    assert (plan.granularity, plan.fingerprint) == ("channel", by_channel.network.fingerprint)


def test_labeling_forgives_rounded_sparsities_and_missing_fingerprints(by_channel: Menus) -> None:
    labels = dict.fromkeys(LAYERS, Label(0, 4, 8)) | {"left": Label(0.1666667, 4, 8)}
    assert by_channel.labeling(Plan(labels)).sparsity.tolist() == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprint": "abc"}, "`plan` must be for this network ({fingerprint}), got one for abc."),
        ({"granularity": "2:4"}, "`plan` must have granularity channel, got 2:4; set --granularity."),
        ({"drop": ("join", "head")}, "`plan` must label every layer, these are missing: join, head."),
        ({"add": ("tail", "body")}, "`plan` names layers that the network does not have: body, tail."),
        (
            {"label": ("left", Label(0.3, 4, 8))},
            "Layer left: `sparsity` must be one of 0, 0.166667, 0.5, 0.666667, got 0.3; "
            "set --sparsity-levels and --width-steps.",
        ),
        (
            {"label": ("head", Label(0.5, 4, 8))},
            "Layer head: `sparsity` must be one of 0, got 0.5; set --sparsity-levels and --width-steps.",
        ),
        (
            {"label": ("head", Label(0, 7, 8))},
            "Layer head: `weight_bits` must be one of 2, 4, 32, got 7; set --weight-bits.",
        ),
        (
            {"label": ("head", Label(0, 4, 6))},
            "Layer head: `activation_bits` must be one of 4, 8, 32, got 6; set --activation-bits.",
        ),
    ],
)
def test_plans_that_do_not_fit(by_channel: Menus, changes: dict[str, Any], message: str) -> None:
    labels = dict.fromkeys(LAYERS, Label(0, 4, 8))
    labels |= dict.fromkeys(changes.get("add", ()), Label()) | dict([changes["label"]] if "label" in changes else [])
    labels = {name: label for name, label in labels.items() if name not in changes.get("drop", ())}
    plan = replace(
        Plan(labels), **{name: value for name, value in changes.items() if name in ("fingerprint", "granularity")}
    )
    message = message.replace("{fingerprint}", by_channel.network.fingerprint)
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        by_channel.labeling(plan)


def test_lazy_menus_give_the_same_variants(by_channel: Menus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autocompress.menus.build._EAGER_WEIGHTS", 0)
    lazy = menus()
    assert (by_channel.eager, lazy.eager) == (True, False)
    names = sorted(path.stem for path in lazy.store.folder.iterdir())
    assert len([name for name in names if name.startswith("layer") and not name.endswith("-pruned")]) == 6
    assert len([name for name in names if name.endswith("-pruned")]) == 6 + 3 + 3  # join in two groups, point, head
    for eager_layer, lazy_layer in zip(by_channel.problem().layers, lazy.problem().layers, strict=True):
        np.testing.assert_allclose(lazy_layer.errors[0], eager_layer.errors[0], rtol=1e-12)
        # The lazy ones know pruned weights in 16 bits, the eager ones in 32.
        np.testing.assert_allclose(lazy_layer.errors[:, -1], eager_layer.errors[:, -1], rtol=1e-3, atol=1e-12)
        assert (lazy_layer.errors[1:, 0] < 3 * eager_layer.errors[1:, 0]).all()
        assert (lazy_layer.errors[1:, 0] > eager_layer.errors[1:, 0] / 3).all()
    for layer, kept in [("join", {0: 5, 1: 4}), ("head", {2: 2}), ("point", {2: 8})]:
        structure = by_channel.network.layers[by_channel.network.layer_index()[layer]]
        for first, second in zip(by_channel.variants(structure, kept), lazy.variants(structure, kept), strict=True):
            assert torch.equal(first.weight(), second.weight())
            assert (torch.equal(first.bias, second.bias), first.error) == (True, second.error)


def test_lazy_menus_build_one_bit_width_alone_and_it_is_the_same(by_channel):
    lazy = replace(by_channel, eager=False, store=Store(None))
    for layer in by_channel.network.layers:
        kept = {read: max(1, by_channel.network.groups[read].width // 2) for read in layer.reads}
        for position, expected in enumerate(by_channel.variants(layer, kept)):
            found = lazy.variant(layer, kept, 0.0, position)
            assert torch.equal(found.values, expected.values)
            assert found.error == expected.error


def test_networks_without_gradients_have_menus() -> None:
    """One output has probability 1 whatever the weights: every label is free, and channels go in some order."""
    torch.manual_seed(0)
    model, x = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1)).eval(), torch.randn(24, 3)
    settings = MenuSettings(weight_bits=(4, 32), activation_bits=(8,), sparsity_levels=4)
    found = build_menus(model, trace(model, x[:1]), x, settings, data_fingerprint="", judging_inputs=x)
    assert sorted(found.orders[0].tolist()) == [0, 1, 2, 3]
    assert not any(layer.errors.any() for layer in found.problem().layers)
    for _, variant in found.table_variants(found.network.layers[1], 0):
        assert torch.isfinite(variant.weight()).all()
