"""Menus of branches that may be removed whole: what is offered, what is left of a layer, what it costs."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from menu_toys import seeded
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.menus import Menus, MenuSettings, build_menus
from autocompress.menus.variants import Variant
from autocompress.network import fold_batch_norms, trace
from autocompress.plan import Label, Plan
from autocompress_envs import Labeling

SMALL: dict[str, Any] = {"weight_bits": (2, 8, 16, 32), "activation_bits": (8, 32), "sparsity_levels": 4}
LAYERS = ["stem", "conv1", "conv2", "head"]


class Block(nn.Module):
    """Input 2x5x5: a stem of 4 channels, a branch of 6 with a norm at its end, a head."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4, 3)
        self.conv1, self.conv2 = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4) if bias else nn.Identity()
        for tensor in (self.norm.running_mean, self.norm.bias.data) if bias else ():
            tensor.uniform_(-0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.norm(self.conv2(torch.sigmoid(self.conv1(x))))
        return 4 * self.head(x.mean((2, 3)))


def block(bias: bool = True) -> tuple[nn.Module, Tensor]:
    """In eval mode, and 24 samples."""
    return Block(bias).eval(), torch.randn(24, 2, 5, 5, generator=seeded(6))


def menus(bias: bool = True, cache: Path | None = None, **options: Any) -> Menus:
    model, x = block(bias)
    settings = MenuSettings(**SMALL | {"remove_branches": True} | options)
    return build_menus(model, trace(model, x[:1]), x, settings, data_fingerprint="", cache=cache, jobs=1)


@pytest.fixture(scope="module")
def removable() -> Menus:
    return menus()


def gone(found: Menus) -> list[Variant]:
    """What is left of conv2 without the branch, for every bit-width."""
    return found.variants(found.network.layers[2], {1: 0})


def test_the_network_is_what_the_tests_mean(removable: Menus) -> None:
    network = removable.network
    assert [layer.name for layer in network.layers] == LAYERS
    assert [(group.owner, group.width, group.is_branch) for group in network.groups] == [
        ("stem", 4, False), ("conv1", 6, True),
    ]  # fmt: skip
    assert [layer.reads for layer in network.layers] == [(), (0,), (1,), (0,)]


def test_only_branches_may_lose_all_their_channels(removable: Menus) -> None:
    assert [removable.kept_options(group) for group in removable.network.groups] == [[4, 3, 2, 1], [6, 5, 3, 2, 0]]
    stem, conv1, conv2, head = removable.problem().layers
    assert stem.sparsities.tolist() == [0, 0.25, 0.5, 0.75]
    np.testing.assert_allclose(conv1.sparsities, [0, 1 / 6, 1 / 2, 2 / 3, 1], rtol=1e-15)
    assert conv1.sparsities[-1] == 1
    assert (conv1.kept.tolist(), conv2.errors.shape) == ([6, 5, 3, 2, 0], (5, 4, 2))
    assert conv2.sparsities.tolist() == head.sparsities.tolist() == [0]


def test_without_the_setting_nothing_changes(removable: Menus) -> None:
    plain = menus(remove_branches=False)
    assert [plain.kept_options(group) for group in plain.network.groups] == [[4, 3, 2, 1], [6, 5, 3, 2]]
    for before, after in zip(plain.problem().layers, removable.problem().layers, strict=True):
        assert np.array_equal(before.sparsities, after.sparsities[: len(before.sparsities)])
        assert np.array_equal(before.errors, after.errors[: len(before.errors)])


def test_branches_may_go_where_nothing_else_is_pruned() -> None:
    found = menus(sparsity_levels=1)
    assert [found.kept_options(group) for group in found.network.groups] == [[4], [6, 0]]
    assert [layer.sparsities.tolist() for layer in found.problem().layers] == [[0], [0, 1], [0], [0]]


def test_a_variant_without_columns_is_the_mean_output(removable: Menus) -> None:
    """b + W E[h], with h = 0 where the convolution pads: the mean over samples and positions of what conv2 puts out.

    The bias is damped by a millionth of 0.001 times the mean of H's diagonal, about 0.3 / 0.9 of what stands there.
    """
    model, x = block()
    folded = fold_batch_norms(model, removable.network)
    with torch.no_grad():
        hidden = torch.sigmoid(folded.conv1(torch.relu(folded.stem(x))))
        expected = folded.conv2(hidden).mean((0, 2, 3))
        padded = nn.functional.unfold(hidden, 3, padding=1).mean((0, 2))  # (6 * 9,)
    by_hand = folded.conv2.bias + folded.conv2.weight.flatten(1) @ padded
    torch.testing.assert_close(by_hand.detach(), expected, rtol=0, atol=1e-6)
    assert (expected - folded.conv2.bias).abs().min() > 0.02  # the bias alone would not do
    for variant in gone(removable):
        assert variant.columns.tolist() == []
        torch.testing.assert_close(variant.bias, expected, rtol=0, atol=2e-6)


def test_codes_of_nothing_have_a_scale_and_floats_have_none(removable: Menus) -> None:
    for variant, bits in zip(gone(removable), SMALL["weight_bits"], strict=True):
        assert (variant.values.shape, variant.weight().shape) == ((4, 0), (4, 0))
        assert variant.values.dtype == (torch.int8 if bits < 16 else torch.float32)
        assert variant.weight().dtype == torch.float32
        assert (variant.scale is None) == (bits >= 16)
        assert variant.scale is None or variant.scale.tolist() == [1.0] * 4


def test_its_error_is_as_defined_the_same_for_all_bits_and_the_largest(removable: Menus) -> None:
    """½ tr(G ΔW H ΔWᵀ) with ΔW = -W, and the bias' own change."""
    source = removable.sources["conv2"]
    gradients, moment = source.gradient_moment.double(), source.second_moment[0].double()
    for variant in gone(removable):
        change = -source.weight.clone()
        change[:, -1] += variant.bias
        expected = 0.5 * torch.einsum("ij,ia,ab,jb->", gradients, change, moment, change)
        assert variant.error == pytest.approx(float(expected), rel=1e-5)
    errors = removable.problem().layers[2].errors[:, -1, -1]
    assert (np.diff(errors) > 0).all()
    assert errors[-1] > 1.01 * errors[-2]


def test_without_refit_the_bias_stays_as_it_was() -> None:
    found = menus(refit=False)
    bias = fold_batch_norms(block()[0], found.network).conv2.bias
    assert all(torch.equal(variant.bias, bias) for variant in gone(found))
    assert gone(found)[-1].error > 1.5 * gone(menus())[-1].error


def test_a_layer_without_bias_is_left_with_zeros() -> None:
    found = menus(bias=False)
    assert not found.network.layers[2].has_bias
    assert all(not variant.bias.any() and variant.values.numel() == 0 for variant in gone(found))


def labeling(found: Menus, branch: int, bits: int, activation_bits: int) -> Labeling:
    """The branch's position on its menu; everywhere positions among the bit-widths."""
    return Labeling(np.array([0, branch, 0, 0]), np.full(4, bits), np.full(4, activation_bits))


def test_costs_by_hand(removable: Menus) -> None:
    """25 positions. conv1: 6 x 36 weights; conv2: 4 x 54; a scale and a bias of 4 bytes a row, 8 for a range."""
    problem = removable.problem()
    whole, without = (problem.resources(labeling(removable, branch, 0, 0)) for branch in (0, 4))
    stem, head = 4 * 18 * 25, 3 * 4
    assert without["macs"] == stem + head == 1812
    assert whole["macs"] == stem + head + (6 * 36 + 4 * 54) * 25
    assert without["bitops"] == (stem + head) * 2 * 8
    # Of 2-bit weights: 216 / 4 bytes each, and the six rows of conv1. conv2 keeps its rows, both keep their ranges.
    assert whole["size"] - without["size"] == 54 + 54 + 6 * 8
    floats = [problem.resources(labeling(removable, branch, 3, 1))["size"] for branch in (0, 4)]
    assert floats[0] - floats[1] == 4 * (216 + 216) + 6 * 4


def test_lazy_menus_know_the_error_and_build_the_same(removable: Menus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autocompress.menus.build._EAGER_WEIGHTS", 0)
    lazy = menus()
    assert (removable.eager, lazy.eager) == (True, False)
    expected, found = (each.problem().layers[2].errors[-1] for each in (removable, lazy))
    np.testing.assert_allclose(found, expected, rtol=1e-9)  # nothing is left to round, so there is nothing to estimate
    conv2 = removable.network.layers[2]
    for position, variant in enumerate(gone(removable)):
        alone = lazy.variant(conv2, {1: 0}, 0.0, position)
        assert torch.equal(alone.values, variant.values)
        assert (torch.equal(alone.bias, variant.bias), alone.error) == (True, variant.error)


def test_the_cache_gives_back_what_it_was_given(tmp_path: Path) -> None:
    first, plain = menus(cache=tmp_path), menus(cache=tmp_path, remove_branches=False)
    assert first.store.folder != plain.store.folder
    second = menus(cache=tmp_path)
    assert second.store.folder == first.store.folder
    for before, after in zip(gone(first), gone(second), strict=True):
        assert (before.values.dtype, before.values.shape) == (after.values.dtype, after.values.shape)
        assert (torch.equal(before.bias, after.bias), before.error) == (True, after.error)
        assert (before.scale is None) == (after.scale is None)


def test_plans_with_sparsity_1_go_to_files_and_back(removable: Menus, tmp_path: Path) -> None:
    given = labeling(removable, 4, 1, 1)
    plan = removable.plan(given)
    assert plan.labels == {
        "stem": Label(0.0, 8, 32), "conv1": Label(1.0, 8, 32), "conv2": Label(0.0, 8, 32), "head": Label(0.0, 8, 32),
    }  # fmt: skip
    plan.save(tmp_path / "plan.yaml")
    back = removable.labeling(Plan.load(tmp_path / "plan.yaml"))
    assert all(np.array_equal(*pair) for pair in zip(vars(given).values(), vars(back).values(), strict=True))


@pytest.mark.parametrize(
    ("name", "remove_branches", "offered"),
    [
        ("stem", True, "0, 0.25, 0.5, 0.75"),
        ("conv2", True, "0"),
        ("head", True, "0"),
        ("conv1", False, "0, 0.166667, 0.5, 0.666667"),
    ],
)
def test_sparsity_1_where_it_is_not_offered(removable: Menus, name: str, remove_branches: bool, offered: str) -> None:
    found = removable if remove_branches else menus(remove_branches=False, weight_bits=(8,), activation_bits=(32,))
    plan = Plan(dict.fromkeys(LAYERS, Label(0.0, 8, 32)) | {name: Label(1.0, 8, 32)})
    message = f"Layer {name}: `sparsity` must be one of {offered}, got 1; set --sparsity-levels and --width-steps."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        found.labeling(plan)


@pytest.mark.parametrize(
    ("options", "got"),
    [
        ({"granularity": "element", "weight_bits": (2, 8)}, "element and [2, 8]"),
        ({"granularity": "2:4", "weight_bits": (8,)}, "2:4 and [8]"),
        ({"weight_bits": (1, 8)}, "channel and [1, 8]"),
        ({"weight_bits": (1, 32), "quantizer": "binary"}, "channel and [1, 32]"),
    ],
)
def test_settings_that_can_not_go_with_it(options: dict[str, Any], got: str) -> None:
    message = (
        f"`remove_branches` must go with granularity channel and without 1-bit weights, which have no zero, got {got}."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        MenuSettings(**options, remove_branches=True)
    assert not MenuSettings(**options).remove_branches


def narrowed(judged: bool) -> tuple[Menus, Menus]:
    """Menus with all widths of the branch (6, 5, 3, 2 and 0 channels), and the same with three of them."""
    model, x = block()
    settings = MenuSettings(**SMALL | {"remove_branches": True})
    judging = x if judged else None
    built = build_menus(
        model, trace(model, x[:1]), x, settings, data_fingerprint="", cache=None, jobs=1, judging_inputs=judging
    )
    return built, built.only({"conv1": (6, 3, 0)})


@pytest.mark.parametrize("judged", [False, True])
def test_fewer_widths_keep_their_losses_and_plans(judged: bool) -> None:
    whole, fewer = narrowed(judged)
    before, after = whole.problem().layers, fewer.problem().layers
    options = before[1].kept.tolist()
    kept = [options.index(width) for width in (6, 3, 0)]
    assert after[1].kept.tolist() == [6, 3, 0]
    np.testing.assert_allclose(after[1].sparsities, [0.0, 0.5, 1.0])
    np.testing.assert_allclose(after[2].errors, before[2].errors[kept])  # conv2 reads the branch
    for other in (0, 3):
        np.testing.assert_allclose(after[other].errors, before[other].errors)
    none = np.zeros(4, np.int64)
    chosen = Labeling(np.array([0, 1, 0, 0]), none, none)
    plan = fewer.plan(chosen)
    assert plan.labels["conv1"].sparsity == 0.5
    assert fewer.labeling(plan).key() == chosen.key()
    assert whole.labeling(plan).sparsity.tolist() == [0, options.index(3), 0, 0]
