"""Plans without a branch on their way to the finished network: shapes, re-calibration, fine-tuning, all together."""

import copy
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from execute_toys import draw_norms_, labels, menus_of, outputs, same, same_state, state
from torch import Tensor, nn

from autocompress.data import Data, from_tensors
from autocompress.evaluation import Evaluator, measure
from autocompress.execute.compressed import Compressed, LayerWeights, from_menus, write_weights_
from autocompress.execute.distillation import Objective
from autocompress.execute.finetune import finetune
from autocompress.execute.pipeline import Execution, execute, kept_parts
from autocompress.execute.recalibrate import recalibrate
from autocompress.execute.rounding_aware import finished, rounding_aware, unrounded
from autocompress.execute.tuning import FineTuning
from autocompress.menus import Menus
from autocompress.network import fold_batch_norms
from autocompress.progress import Silent
from autocompress_envs import Labeling

ACTIVATIONS = {"sigmoid": nn.Sigmoid(), "gelu": nn.GELU(), "softplus": nn.Softplus()}


class Blocks(nn.Module):
    """Input 2x5x5: a residual block with norms, one with a depthwise layer and without biases, and a gated sum."""

    def __init__(self, activation: str = "sigmoid") -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.stem, self.head = nn.Conv2d(2, 6, 3, padding=1), nn.Linear(6, 4)
        self.conv1, self.norm1 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.expand, self.project = nn.Conv2d(6, 9, 1), nn.Conv2d(9, 6, 1)
        self.depthwise = nn.Conv2d(9, 9, 3, padding=1, groups=9, bias=False)

    def first(self, x: Tensor) -> Tensor:
        """The sum of the first block."""
        x = torch.relu(self.stem(x))
        return x + self.norm2(self.conv2(self.activation(self.norm1(self.conv1(x)))))

    def second(self, x: Tensor) -> Tensor:
        """The sum of the second block."""
        y = self.project(self.activation(self.depthwise(self.activation(self.expand(x)))))
        y += x
        return y

    def forward(self, x: Tensor) -> Tensor:
        return 4 * self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))


class Plain(nn.Module):
    """Input 6: a branch of linear layers whose last one has no bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.embed, self.head = nn.Linear(6, 5), nn.Linear(5, 4)
        self.up, self.down = nn.Linear(5, 9), nn.Linear(9, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return 4 * self.head(torch.relu(x + self.down(torch.sigmoid(self.up(x)))))


GONE = {"conv1": (1.0, 8, 8), "expand": (1.0, 8, 8)}  # both branches
EMPTY = {"conv1", "conv2", "expand", "depthwise", "project"}


@dataclass(frozen=True, eq=False)
class Toy:
    model: nn.Module
    folded: nn.Module
    menus: Menus
    labeling: Labeling
    x: Tensor

    @property
    def made(self) -> Compressed:
        return from_menus(self.menus, self.labeling, self.folded)

    def data(self) -> Data:
        torch.manual_seed(9)
        x = torch.randn(400, *self.x.shape[1:])
        given = (x, outputs(self.folded, x).argmax(1))
        return from_tensors(given, None, name="toy", search_samples=100, calibration_samples=60)


def toy(activation: str = "sigmoid", bits: int = 8, activation_bits: int = 8, **others: tuple[float, int, int]) -> Toy:
    model, folded, menus, x = original(activation)
    return Toy(model, folded, menus, labels(menus, 0.0, bits, activation_bits, **others), x)


@cache
def original(activation: str) -> tuple[nn.Module, nn.Module, Menus, Tensor]:
    """The network, folded too, its menus and inputs."""
    torch.manual_seed(1)
    model, x = Blocks(activation).eval(), torch.randn(48, 2, 5, 5)
    draw_norms_(model)
    for last in (model.norm2, model.project):
        last.weight.data.mul_(4)  # branches that are missed
    options = {"weight_bits": (2, 8, 16, 32), "sparsity_levels": 2, "remove_branches": True}
    menus = menus_of(model, x, **options)
    return model, fold_batch_norms(model, menus.network).requires_grad_(False), menus, x


def shapes(layers: dict[str, LayerWeights]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(layer.values.shape) for name, layer in layers.items()}


def stand_ins(model: nn.Module) -> list[Tensor]:
    """The channels of zeros."""
    return [model.get_parameter(f"{name}.weight") for name in sorted(EMPTY)]


def test_the_network_is_what_the_tests_mean() -> None:
    groups = toy().menus.network.groups
    assert {group.owner: (set(group.producers), set(group.consumers)) for group in groups if group.is_branch} == {
        "conv1": ({"conv1"}, {"conv2"}),
        "expand": ({"expand", "depthwise"}, {"project"}),
    }


def test_layers_hold_nothing_and_the_module_runs() -> None:
    given = toy(**GONE)
    made = given.made
    assert shapes(made.layers) == {
        "stem": (6, 2, 3, 3), "conv1": (0, 6, 3, 3), "conv2": (6, 0, 3, 3), "expand": (0, 6, 1, 1),
        "depthwise": (0, 1, 3, 3), "project": (6, 0, 1, 1), "head": (4, 6),
    }  # fmt: skip
    assert {name for name, layer in made.layers.items() if layer.is_empty} == EMPTY
    assert {name: None if layer.bias is None else len(layer.bias) for name, layer in made.layers.items()} == {
        "stem": 6, "conv1": 0, "conv2": 6, "expand": 0, "depthwise": None, "project": 6, "head": 4,
    }  # fmt: skip
    assert [len(made.layers[name].scale) for name in ("conv1", "conv2", "depthwise")] == [0, 6, 0]
    assert all(layer.values.dtype == torch.int8 for layer in made.layers.values())
    assert [tuple(weight.shape[:2]) for weight in stand_ins(made.model)] == [(1, 6), (6, 1), (1, 1), (1, 6), (6, 1)]
    assert not any(weight.any() for weight in stand_ins(made.model))
    assert made.model.depthwise.groups == 1
    assert (made.plan.labels["conv1"].sparsity, made.plan.labels["conv2"].sparsity) == (1.0, 0.0)
    for samples in (1, 7):
        assert outputs(made.model, given.x[:samples]).shape == (samples, 4)
        assert outputs(made.rounded(), given.x[:samples]).shape == (samples, 4)


@pytest.mark.parametrize(("bits", "activation_bits"), [(2, 4), (8, 8), (16, 32), (32, 32)])
def test_it_is_what_the_evaluator_measured(bits: int, activation_bits: int) -> None:
    given = toy(bits=bits, activation_bits=activation_bits, conv1=(1.0, bits, activation_bits))
    evaluator = Evaluator(given.model, given.menus.network, given.menus, given.x, None, dtype="float32", batch_size=48)
    stitched, made = evaluator.stitched(given.labeling), given.made
    assert same_state(made.model.state_dict(), stitched.state_dict())
    torch.testing.assert_close(outputs(made.rounded(), given.x), outputs(stitched, given.x), rtol=0, atol=1e-5)
    assert shapes(made.layers)["conv2"] == (6, 0, 3, 3)


def test_a_zero_stands_in_by_hand() -> None:
    """A layer that writes nothing gives a channel of 0, one that reads nothing its bias, at every position."""
    nothing = torch.zeros(0, dtype=torch.int8)
    model = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Conv2d(1, 2, 1))
    writes = LayerWeights(nothing.view(0, 3, 1, 1), torch.zeros(0), torch.zeros(0), 8, 0.0, None)
    reads = LayerWeights(nothing.view(2, 0, 1, 1), torch.ones(2), torch.tensor([1.5, -2.0]), 8, 0.0, None)
    assert (writes.is_empty, reads.is_empty, writes.weight().shape) == (True, True, (0, 3, 1, 1))
    write_weights_(model, "0", writes)
    write_weights_(model, "1", reads)
    x = torch.randn(2, 3, 4, 4)
    assert not outputs(model[:1], x).any()
    assert torch.equal(outputs(model, x), torch.tensor([1.5, -2.0]).view(1, 2, 1, 1).expand(2, 2, 4, 4))
    assert not replace(reads, values=torch.zeros(2, 1, 1, 1, dtype=torch.int8)).is_empty


def test_recalibration_gives_the_mean_wanted_output() -> None:
    """Wanted is what the branch put out, and what its shortcut lost before: so each sum keeps its mean.

    The stem stays as it is, up to the prior's pull, hence so does the first sum; of the second, the shortcut has lost
    the first branch.
    """
    given = toy(bits=32, activation_bits=32, conv1=(1.0, 32, 32), expand=(1.0, 32, 32))
    made = given.made
    fitted = recalibrate(made, given.folded, given.menus, given.labeling, given.x)
    assert shapes(fitted.layers) == shapes(made.layers)
    with torch.no_grad():
        sums = [(model.first(given.x), model) for model in (given.folded, fitted.model)]
        means = [(first.mean((0, 2, 3)), model.second(torch.relu(first)).mean((0, 2, 3))) for first, model in sums]
        branch = sums[0][0] - torch.relu(given.folded.stem(given.x))
        lost = torch.relu(sums[0][0]) - torch.relu(sums[1][0])
        wanted = given.folded.second(torch.relu(sums[0][0])) - torch.relu(sums[0][0]) + lost
    torch.testing.assert_close(fitted.layers["conv2"].bias, branch.mean((0, 2, 3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(fitted.layers["project"].bias, wanted.mean((0, 2, 3)), rtol=0, atol=1e-5)
    for original, found in zip(*means, strict=True):
        torch.testing.assert_close(found, original, rtol=0, atol=1e-5)
    assert (fitted.layers["project"].bias - made.layers["project"].bias).abs().max() > 1e-3
    assert torch.equal(fitted.model.project.bias, fitted.layers["project"].bias)
    assert not any(weight.any() for weight in stand_ins(fitted.model))


def plain() -> Toy:
    model, x = Plain().eval(), torch.randn(48, 6, generator=torch.Generator().manual_seed(3))
    menus = menus_of(model, x, weight_bits=(8, 32), remove_branches=True)
    return Toy(model, model.requires_grad_(False), menus, labels(menus, 0.0, 32, 32, up=(1.0, 32, 32)), x)


def test_a_last_layer_without_bias_leaves_nothing_to_add() -> None:
    """Nor does fine-tuning make one up; the shortcut goes on alone."""
    given = plain()
    expected = 4 * outputs(given.folded.head, torch.relu(outputs(given.folded.embed, given.x)))
    torch.testing.assert_close(outputs(given.made.model, given.x), expected, rtol=0, atol=1e-5)
    assert (given.made.layers["down"].bias, tuple(given.made.layers["down"].values.shape)) == (None, (5, 0))
    tuned = finetune(given.made, given.folded, given.data(), FineTuning(epochs=1, batch_size=50, augmentation="none"))
    assert tuned.compressed.layers["down"].bias is None
    assert not tuned.compressed.model.down.weight.any()
    assert tuned.unrounded["down"][1] is None


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bits", [2, 8, 16])
def test_training_begins_with_what_the_network_computes(activation: str, bits: int) -> None:
    """And gives it back; an activation of 0 is not 0 here."""
    made = toy(activation, bits, **{name: (1.0, bits, 8) for name in GONE}).made
    x, before = toy().x, state(made.model)
    model = rounding_aware(made)
    assert torch.equal(outputs(model, x), outputs(made.rounded(), x))
    assert same(finished(model, made), made)
    assert same_state(made.model.state_dict(), before)
    found = unrounded(model, made)
    assert {name: tuple(weight.shape) for name, (weight, _) in found.items()} == shapes(made.layers)


def test_what_is_trained_of_a_removed_branch() -> None:
    made = toy(**GONE).made
    names = {name for name, tensor in rounding_aware(made).named_parameters() if tensor.requires_grad}
    assert {name for name in names if name.split(".")[0] in EMPTY} == {"conv2.bias", "project.bias"}
    assert {"stem.bias", "head.bias", "stem.parametrizations.weight.original"} <= names


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bits", [2, 16])
def test_trained_zeros_stay_zeros_and_biases_move(activation: str, bits: int) -> None:
    """Whatever the gradient: what was learned is what is handed back, to the bit."""
    given = toy(activation, bits, **{name: (1.0, bits, 8) for name in GONE})
    made, model = given.made, rounding_aware(given.made)
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=0.05)
    torch.manual_seed(0)
    wanted = torch.randn(48, 4)
    for _ in range(4):
        optimizer.zero_grad()
        (model(given.x) - wanted).square().mean().backward()
        optimizer.step()
    result = finished(model, made)
    torch.testing.assert_close(outputs(result.rounded(), given.x), outputs(model, given.x), rtol=0, atol=1e-6)
    assert not any(weight.any() for weight in stand_ins(result.model))
    assert shapes(result.layers) == shapes(made.layers)
    for name in ("conv2", "project"):
        assert (result.layers[name].bias - made.layers[name].bias).abs().max() > 0.05
        assert torch.equal(result.layers[name].bias, unrounded(model, made)[name][1])
    for name in ("conv1", "expand"):
        assert result.layers[name].bias.shape == (0,)
        assert not result.model.get_parameter(f"{name}.bias").any()


@pytest.mark.parametrize("method", ["standard", "weak", "strong"])
def test_fine_tuning_without_a_branch(method: str) -> None:
    """Every way the original teaches; features are matched at layers that are left."""
    given = toy(**GONE)
    made, data = given.made, given.data()
    objective = Objective(features=0.1, l1=1e-6)
    settings = FineTuning(
        20 if method == "weak" else 4, 1e-2, 50, objective=objective, augmentation="none", method=method
    )
    kept = kept_parts(given.menus, given.labeling)
    assert {name: tuple(weight.shape) for name, weight in kept.weights.items()} == shapes(made.layers)
    copied = Compressed(copy.deepcopy(made.model), copy.deepcopy(dict(made.layers)), made.plan)
    tuned = finetune(made, given.folded, data, settings, kept=kept)
    assert tuned.best_step > 0
    assert same(made, copied)
    assert not any(weight.any() for weight in stand_ins(tuned.compressed.model))
    assert shapes(tuned.compressed.layers) == shapes(made.layers)
    for name in ("conv2", "project"):
        assert not torch.equal(tuned.compressed.layers[name].bias, made.layers[name].bias)
        assert torch.equal(tuned.compressed.layers[name].bias, tuned.compressed.model.get_parameter(f"{name}.bias"))
    before, after = (measure(given.folded, each.rounded(), [data.search()]).kl for each in (made, tuned.compressed))
    assert after < 0.8 * before


def test_everything_together() -> None:
    """Re-calibration and fine-tuning, 8 bits; ranges of inputs that nobody reads stay as they were."""
    given = toy("gelu", **GONE)
    data, tuning = given.data(), FineTuning(4, 1e-2, 50, augmentation="none", method="strong")
    done = execute(given.menus, given.labeling, given.folded, given.folded, data, Execution(160, tuning), Silent())
    assert done.recalibrated
    assert done.tuned is not None
    assert shapes(done.compressed.layers) == shapes(given.made.layers)
    before, after = (
        measure(given.folded, each.rounded(), [data.search()]).kl for each in (given.made, done.compressed)
    )
    assert after < 0.95 * before
    for name in EMPTY:
        layer = done.compressed.layers[name]
        assert (layer.input_range, layer.values.numel()) == (given.made.layers[name].input_range, 0)
        assert (layer.bias is None) == (name == "depthwise")
    assert [done.compressed.layers[name].bias.shape for name in ("conv1", "expand")] == [(0,), (0,)]
