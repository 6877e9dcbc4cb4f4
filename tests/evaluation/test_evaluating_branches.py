"""Plans without a branch: the evaluator against networks written by hand, and what effects predict of its removal."""

import numpy as np
import pytest
import torch
from effects_toys import Case, agree, at, changed, evaluator, less
from evaluation_toys import counted_macs, masked, menus_of, network, original_labels, outputs
from torch import Tensor, nn

from autocompress.evaluation.predictions import Predictions
from autocompress.network import fold_batch_norms
from autocompress_envs import Labeling


class Blocks(nn.Module):
    """Input 2x4x4: two residual blocks of which one adds in place, with norms; a bias that no norm gives."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(2, 6, 3, padding=1), nn.Linear(6, 5)
        self.conv1, self.norm1 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv3, self.conv4 = nn.Conv2d(6, 7, 1), nn.Conv2d(7, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.norm2(self.conv2(torch.relu_(self.norm1(self.conv1(x))))))
        y = self.conv4(torch.sigmoid(self.conv3(x)))
        y += x
        return 4 * self.head(torch.relu_(y).mean((2, 3)))


class Smooth(Blocks):
    """Without the corners of ReLUs, on which the second block's input lies."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        x = x + self.norm2(self.conv2(torch.tanh(self.norm1(self.conv1(x)))))
        x = x + self.conv4(torch.sigmoid(self.conv3(x)))
        return 4 * self.head(torch.tanh(x).mean((2, 3)))


class Without(nn.Module):
    """`Blocks`, folded, where a branch is a constant of one value a channel."""

    def __init__(self, folded: nn.Module, first: Tensor | None, second: Tensor | None) -> None:
        super().__init__()
        self.net = folded
        self.constants = [None if each is None else each.view(-1, 1, 1) for each in (first, second)]

    def forward(self, x: Tensor) -> Tensor:
        net, (first, second) = self.net, self.constants
        x = torch.relu(net.stem(x))
        x = torch.relu(x + (net.conv2(torch.relu(net.conv1(x))) if first is None else first))
        x = torch.relu(x + (net.conv4(torch.sigmoid(net.conv3(x))) if second is None else second))
        return 4 * net.head(x.mean((2, 3)))


LAYERS = ["stem", "conv1", "conv2", "conv3", "conv4", "head"]


def seeded(kind: type[Blocks]) -> tuple[nn.Module, Tensor]:
    """In eval mode, its norms not the identity; and inputs."""
    torch.manual_seed(1)
    model, x = kind().eval(), torch.randn(24, 2, 4, 4)
    for norm in (model.norm1, model.norm2):
        for tensor in (norm.weight, norm.running_var):
            tensor.data.uniform_(0.5, 1.5)
        for tensor in (norm.bias, norm.running_mean):
            tensor.data.uniform_(-0.5, 0.5)
    return model, x


def case_of(model: nn.Module, x: Tensor, bits: tuple[int, ...] = (4, 32)) -> Case:
    options = {"weight_bits": bits, "activation_bits": (8, 32), "sparsity_levels": 4, "remove_branches": True}
    menus = menus_of(model, x, **options)
    folded = fold_batch_norms(model, menus.network).requires_grad_(False)
    return Case(model, folded, menus, x, Predictions(outputs(model, x)).pooled)


@pytest.fixture(scope="module")
def given() -> Case:
    return case_of(*seeded(Blocks))


@pytest.fixture(scope="module")
def measured(given: Case):
    return evaluator(given, dtype="float32", batch_size=24)


def without(given: Case, *owners: str, **changes: tuple[int, int]) -> Labeling:
    """The original's labels, some branches gone."""
    labeling = at(given.menus, **changes)
    for owner in owners:
        row = given.menus.network.layer_index()[owner]
        labeling.sparsity[row] = len(given.menus.problem().layers[row].sparsities) - 1
    return labeling


def constant(given: Case, reader: str) -> Tensor:
    """What the menus leave of a branch."""
    layer = given.menus.network.layers[given.menus.network.layer_index()[reader]]
    (read,) = layer.reads
    return given.menus.variant(layer, {read: 0}, 0.0, 1).bias


@pytest.mark.parametrize("owners", [("conv1",), ("conv3",), ("conv1", "conv3")])
def test_it_measures_the_network_with_a_constant_for_the_branch(given: Case, measured, owners: tuple[str, ...]) -> None:
    labeling = without(given, *owners)
    constants = [
        constant(given, reader) if owner in owners else None
        for owner, reader in (("conv1", "conv2"), ("conv3", "conv4"))
    ]
    expected = outputs(Without(given.folded, *constants), given.x)
    model = measured.stitched(labeling)
    torch.testing.assert_close(outputs(model, given.x), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs(model, given.x[:1]), expected[:1], rtol=0, atol=1e-5)
    assert (expected - outputs(given.model, given.x)).abs().max() > 0.05  # it is another network
    outcome, original = measured(labeling), outputs(given.model, given.x).double().log_softmax(1)
    kl = (original.exp() * (original - expected.double().log_softmax(1))).sum(1).mean()
    assert outcome.kl == pytest.approx(float(kl), rel=1e-3)
    assert outcome.resources == given.menus.problem().resources(labeling)


def test_the_macs_are_those_of_the_layers_that_are_left(given: Case, measured) -> None:
    """16 positions. A channel of zeros stands in for each branch, which is no part of any file."""
    labeling = without(given, "conv1", "conv3")
    assert measured(labeling).resources["macs"] == (6 * 18) * 16 + 6 * 5
    model = measured.stitched(labeling)
    shapes = {name: tuple(model.get_submodule(name).weight.shape) for name in LAYERS}
    assert shapes == {
        "stem": (6, 2, 3, 3), "conv1": (1, 6, 3, 3), "conv2": (6, 1, 3, 3), "conv3": (1, 6, 1, 1),
        "conv4": (6, 1, 3, 3), "head": (5, 6),
    }  # fmt: skip
    assert not any(model.get_submodule(name).weight.any() for name in ("conv1", "conv2", "conv3", "conv4"))
    stand_in = (6 * 9 + 9 * 6 + 6 + 9 * 6) * 16
    assert counted_macs(model, LAYERS, given.x) == measured(labeling).resources["macs"] + stand_in


def test_plans_with_and_without_the_branch_take_turns(given: Case, measured) -> None:
    """One copy of the network is written over and over: nothing of a plan may stay in the next one's."""
    fresh = evaluator(given, dtype="float32", batch_size=24)
    original, one, both = (without(given, *owners) for owners in ((), ("conv1",), ("conv1", "conv3")))
    for labeling in (both, original, one, both, original):
        fresh.forget()
        assert fresh(labeling).kl == pytest.approx(measured(labeling).kl, rel=1e-6, abs=1e-12)
    assert fresh.evaluations == 5
    assert fresh(original).kl < 1e-9 < 1e-4 < fresh(one).kl


def test_a_depthwise_layer_comes_back_with_its_branch() -> None:
    """Its groups shrink with its channels to one, and must grow again."""
    model, x = network("inverted residual")
    menus = menus_of(model, x, remove_branches=True, weight_bits=(8, 32), activation_bits=(8, 32))
    original, (branch,) = original_labels(menus.problem()), [
        row for row, layer in enumerate(menus.problem().layers) if layer.sparsities[-1] == 1
    ]  # fmt: skip
    gone = changed(original, sparsity=(branch, len(menus.problem().layers[branch].sparsities) - 1))
    measure = evaluator(Case(model, model, menus, x, Predictions(outputs(model, x)).pooled), dtype="float32")
    assert menus.network.layers[branch].name == "expand.0"
    for labeling in (gone, original):
        found = outputs(measure.stitched(labeling), x)
        torch.testing.assert_close(found, outputs(masked(model, menus, labeling), x), rtol=0, atol=1e-5)
    assert measure(gone).kl > 1e-6
    assert measure(original).kl < 1e-9


def test_rounded_weights_and_inputs_beside_a_removed_branch(given: Case, measured) -> None:
    """The layers that are left at 4 bits, their inputs at 8, are what they would be with the branch masked."""
    zeros, labeling = np.zeros(6, np.int64), without(given, "conv1")
    rounded = Labeling(labeling.sparsity, zeros, labeling.activation_bits)
    expected = outputs(masked(given.model, given.menus, rounded), given.x)
    torch.testing.assert_close(outputs(measured.stitched(rounded), given.x), expected, rtol=0, atol=1e-5)
    inputs = Labeling(labeling.sparsity, zeros, zeros)
    difference = (outputs(measured.stitched(inputs), given.x) - expected).abs().max()
    assert 1e-4 < difference < 0.1


def direction(given: Case, labeling: Labeling, start: Labeling | None) -> dict[str, Tensor]:
    """Of all parameters: from those of the original, or of a plan, to a plan's."""
    return less(given.parameters(labeling), given.parameters(start))


@pytest.mark.parametrize(("owner", "others"), [("conv1", "conv3"), ("conv3", "conv1")])
def test_effects_of_removal_are_derivatives_towards_it(given: Case, owner: str, others: str) -> None:
    found, row = given.far, given.menus.network.layer_index()[owner]
    expected = given.derivative(direction(given, without(given, owner), original_labels(given.menus.problem())))
    agree(found.pruning[row, -1], expected.detach().numpy())
    assert np.abs(found.pruning[row, -1]).max() > 0.05
    assert not np.allclose(found.pruning[row, -1], found.pruning[row, -2], atol=1e-3)  # one channel or two stay there
    assert not found.pruning[given.menus.network.layer_index()["conv2"]].any()
    assert found.pruning.shape[1] == 5


def test_effects_around_a_plan_without_a_branch(given: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """To put a third of the branch back, and to prune the other one; its own layers have nothing left to round."""
    monkeypatch.setattr("autocompress.evaluation.effects.CLASSES_AROUND", 100)
    start = without(given, "conv1")
    found, index = given.around(start), given.menus.network.layer_index()
    assert not found.pruning[index["conv1"], -1].any()
    back = changed(start, sparsity=(index["conv1"], 3))
    agree(found.pruning[index["conv1"], 3], given.derivative(direction(given, back, start), start).detach().numpy())
    other = changed(without(given, "conv1"), sparsity=(index["conv3"], 1))
    agree(found.pruning[index["conv3"], 1], given.derivative(direction(given, other, start), start).detach().numpy())
    assert np.abs(found.pruning[index["conv3"], 1]).max() > 1e-3
    assert not found.rounding[index["conv1"]].any()  # the codes of nothing
    assert not found.rounding[index["conv2"]].any()


def test_a_small_branch_does_what_was_predicted() -> None:
    """The last weights of the branch scaled to a tenth: removing it is a small change, so first order is enough."""
    model, x = seeded(Smooth)
    model.norm2.weight.data.mul_(0.1)
    small = case_of(model, x, (8, 32))
    measure, row = evaluator(small, dtype="float32"), small.menus.network.layer_index()["conv1"]
    found = measure.effects()
    shift = measure(without(small, "conv1")).shift
    assert shift is not None
    shift = shift.astype(np.float64)
    assert np.linalg.norm(shift) > 0.02
    assert np.linalg.norm(found.pruning[row, -1] - shift) <= 0.08 * np.linalg.norm(shift)
