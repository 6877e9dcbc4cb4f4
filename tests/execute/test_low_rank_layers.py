"""Two modules in the place of one: the finished network, its training, its files and what is claimed of them."""

import copy
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.evaluation.stitch import Stitcher
from autocompress.execute.compressed import Compressed, from_menus, whole_layers, write_weights_
from autocompress.execute.factors import Factors, cut_, join_
from autocompress.execute.pipeline import kept_parts
from autocompress.execute.recalibrate import recalibrate
from autocompress.execute.rounding_aware import finished, rounding_aware
from autocompress.menus import Menus, MenuSettings, build_menus
from autocompress.network import fold_batch_norms, trace
from autocompress.plan import Plan
from autocompress.samples import fields_of
from autocompress.targets import counted_on_file
from autocompress.targets.graph.lowering import lower
from autocompress.targets.loading import restored
from autocompress.targets.onnxruntime.file import write_onnx
from autocompress.targets.onnxruntime.session import open_session
from autocompress.targets.packed.file import load_packed, load_packed_weights, pack, pack_weights
from autocompress.targets.target import TARGETS, lowered_for, target_file
from autocompress.targets.verify import check_layers, finished_resources
from autocompress_envs.problem import Labeling


class Pointwise(nn.Module):
    """Input 3x6x6: a convolution, a strided 1x1 one, a shortcut around another, and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 1, stride=2, bias=False)
        self.point = nn.Conv2d(32, 32, 1)
        self.hidden, self.head = nn.Linear(32 * 9, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.down(torch.relu(self.stem(x))))
        x = x + torch.relu(self.point(x))
        return 4 * self.head(torch.relu(self.hidden(x.flatten(1))))


CUT = ("down", "point", "hidden", "head")


class Toy:
    """The network with its menus: 4, 8 and 16 bits, three sparsities, half of the multiply-accumulates by ranks."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = Pointwise().eval()
        self.inputs = torch.randn(96, 3, 6, 6)
        self.network = trace(self.model, self.inputs[:1])
        self.folded = fold_batch_norms(self.model, self.network)
        settings = MenuSettings(weight_bits=(4, 8, 16), activation_bits=(8, 32), sparsity_levels=3, ranks=(0.5,))
        self.menus: Menus = build_menus(self.model, self.network, self.inputs, settings, data_fingerprint="", jobs=1)

    def labeling(self, bits: int, sparsity: int = 0, activations: int = 0, cut: tuple[str, ...] = CUT) -> Labeling:
        """The same bits everywhere, low ranks in the layers of `cut`."""
        rows = []
        for layer in self.network.layers:
            ranks = [each.rank if layer.name in cut else -each.rank for each in self.menus.formats(layer)]
            widths = [each.bits for each in self.menus.formats(layer)]
            wanted = max(rank for rank, width in zip(ranks, widths, strict=True) if width == bits)
            position = next(i for i, pair in enumerate(zip(ranks, widths, strict=True)) if pair == (wanted, bits))
            rows.append((min(sparsity, len(self.menus.sparsities(layer)) - 1), position, activations))
        return Labeling(*np.array(rows, np.int64).T)

    def compressed(self, *label: int, **options: tuple[str, ...]) -> Compressed:
        return from_menus(self.menus, self.labeling(*label, **options), self.folded)


@pytest.fixture(scope="module")
def toy() -> Toy:
    return Toy()


def run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("label", [(4,), (16, 1), (8, 2, 1)])
def test_two_modules_compute_what_was_evaluated(toy, label):
    labeling = toy.labeling(*label)
    made = from_menus(toy.menus, labeling, toy.folded)
    assert all(isinstance(made.model.get_submodule(name), Factors) for name in CUT)
    assert list(made.layers) == ["stem", *(f"{name}.{part}" for name in CUT for part in "01")]
    assert made.layers.keys() == made.plan.modules().keys()
    stitched = Stitcher(copy.deepcopy(toy.folded), toy.menus).stitch_(labeling)
    expected = run(stitched, toy.inputs)
    assert torch.allclose(run(made.rounded(), toy.inputs), expected, atol=2e-2 * float(expected.std()))
    for name, layer in made.layers.items():
        assert torch.equal(made.model.get_submodule(name).weight, layer.weight())


def test_ranks_and_channels_go_together(toy):
    """Of 32 channels a third less stays in `down` and `hidden`; ranks are half of the even ones: 5, 8, 14 and 2."""
    made = toy.compressed(8, 1)
    shapes = {name: tuple(layer.values.shape[:2]) for name, layer in made.layers.items()}
    assert shapes == {
        "stem": (11, 3), "down.0": (5, 11), "down.1": (22, 5), "point.0": (8, 22), "point.1": (22, 8),
        "hidden.0": (8, 198), "hidden.1": (22, 8), "head.0": (2, 22), "head.1": (5, 2),
    }  # fmt: skip
    assert made.layers["down.1"].bias is None
    assert made.layers["head.1"].bias is not None
    checks = check_layers(toy.network, made.plan, made.layers)
    assert [check.name for check in checks if check.passed] == ["channels", "levels"]
    counted = finished_resources(toy.network, made.plan, made.layers, 0)
    promised = toy.menus.problem().resources(toy.labeling(8, 1))
    assert {name: counted[name] for name in ("macs", "bitops", "memory")} == {
        name: promised[name] for name in ("macs", "bitops", "memory")
    }


def test_another_rank_than_the_plans_is_found(toy):
    made = toy.compressed(8)
    wrong = {**made.layers, "head.0": replace(made.layers["head.0"], values=made.layers["head.0"].values[:1])}
    channels = check_layers(toy.network, made.plan, wrong)[0]
    assert not channels.passed
    assert channels.detail == "head.0 has 1 x 32 weights, the plan says 2 x 32"
    codes = made.layers["head.1"].values.clone()
    codes[0] = torch.tensor([100, 101], dtype=torch.int8)
    wrong = {**made.layers, "head.1": replace(made.layers["head.1"], bits=4, values=codes)}
    levels = check_layers(toy.network, made.plan, wrong)[1]
    assert not levels.passed
    assert levels.detail == "head.1 has 4 bits, the plan says 8"


def test_one_layer_again(toy):
    made = toy.compressed(4, 1)
    whole = whole_layers(made)
    assert list(whole.layers) == [layer.name for layer in toy.network.layers]
    expected = run(made.rounded(), toy.inputs)
    # products of factors round otherwise than two layers, and so may an input of the next layer
    assert torch.allclose(run(whole.rounded(), toy.inputs), expected, atol=2e-2 * float(expected.std()))


def test_every_name_of_a_module_gets_the_factors():
    layer = nn.Linear(6, 8)
    model = nn.ModuleDict({"one": layer, "other": nn.Sequential(layer)})
    cut_(model, "one", 2)
    assert isinstance(model["one"], Factors)
    assert model["other"][0] is model["one"]
    pair = model["one"]
    assert (pair.in_features, pair.out_features, pair.weight.shape) == (6, 8, (8, 2))
    assert pair.bias is pair[1].bias
    assert pair[0].bias is None
    assert pair[0].out_features == 2
    join_(model, "other.0")
    assert model["one"] is model["other"][0]
    assert model["one"].weight.shape == (8, 6)


@pytest.mark.parametrize("bits", [4, 16])
def test_files_compute_the_same(toy, bits):
    """ONNX Runtime agrees with the graph, and the packed file is it, bit for bit."""
    lowered = lower(toy.compressed(bits, 1), toy.inputs, integer=True)
    x = toy.inputs[:40]
    expected = run(lowered.graph, x)
    found = open_session(write_onnx(lowered)).run(x)
    assert float((found - expected).square().mean().sqrt() / expected.std()) < 0.02


def test_onnx_has_two_nodes_for_each_layer(toy):
    count = []
    for cut in (CUT, ()):
        content = write_onnx(lower(toy.compressed(8, cut=cut), toy.inputs, integer=True))
        nodes = onnx.load_model_from_string(content).graph.node
        count.append(sum(node.op_type in ("Conv", "Gemm", "MatMul") for node in nodes))
    assert count == [9, 5]


def test_packed_files_keep_the_factors(toy, tmp_path):
    made = toy.compressed(4, 1)
    lowered = lower(made, toy.inputs, integer=False)
    (tmp_path / "graph").write_bytes(pack(lowered))
    (tmp_path / "weights").write_bytes(pack_weights(made, fields_of(toy.inputs)))
    found = load_packed(tmp_path / "graph")
    assert found.plan == made.plan
    assert list(found.layers) == list(made.layers)
    assert torch.equal(run(found.graph, toy.inputs), run(lowered.graph, toy.inputs))
    back = restored(load_packed_weights(tmp_path / "weights"), toy.model, toy.network)
    assert torch.equal(run(back.rounded(), toy.inputs), run(made.rounded(), toy.inputs))


def test_a_packed_file_of_another_rank_is_refused(toy, tmp_path):
    made = toy.compressed(4)
    labels = {name: replace(label, rank=label.rank and label.rank + 1) for name, label in made.plan.labels.items()}
    content = pack_weights(Compressed(made.model, made.layers, Plan(labels)), fields_of(toy.inputs))
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError) as error:
        load_packed_weights(tmp_path / "file")
    assert (
        str(error.value)
        == f"{tmp_path / 'file'}: The factors of layer down must have rank 6, got [5, 16, 1, 1] and [32, 5, 1, 1]."
    )


@pytest.mark.parametrize("name", ["onnxruntime", "packed"])
def test_no_file_is_larger_than_counted(name):
    """With both layers cut, with one, and with none: what is counted beyond is slack, and the names of factors."""
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 16)).eval(), torch.randn(64, 24)
    network = trace(model, inputs[:1])
    settings = MenuSettings(weight_bits=(4,), activation_bits=(8,), sparsity_levels=2, ranks=(0.7,))
    small = build_menus(model, network, inputs, settings, data_fingerprint="", jobs=1)
    folded, target = fold_batch_norms(model, network), TARGETS[name]
    menus, _ = counted_on_file(target, small, folded, inputs)
    slack = []
    for sparsity, cut in [(0, (0, 0)), (1, (0, 1)), (0, (1, 1))]:
        plan = Labeling(np.array([sparsity, 0]), np.array(cut), np.array([0, 0]))
        made = from_menus(menus, plan, folded)
        size = len(target_file(target, made, lowered_for(target, made, inputs), inputs))
        slack.append(menus.problem().resources(plan)["size"] - size)
    assert 0 <= slack[0] <= 64 + 2 * 8 + 40
    assert slack[0] <= slack[1] <= slack[2] <= 1_500


def test_recalibration_passes_factors_by(toy):
    labeling = toy.labeling(4, 0, 0, cut=("point", "hidden"))
    made = from_menus(toy.menus, labeling, toy.folded)
    found = recalibrate(made, toy.folded, toy.menus, labeling, toy.inputs)
    changed = {
        name for name, layer in found.layers.items() if not torch.equal(layer.weight(), made.layers[name].weight())
    }
    assert changed
    assert changed <= {"stem", "down", "head"}
    assert list(found.layers) == list(made.layers)
    assert found.plan == made.plan
    for name, layer in found.layers.items():
        assert torch.equal(found.model.get_submodule(name).weight, layer.weight())


def test_factors_are_trained_with_their_rounding(toy):
    labeling = toy.labeling(4, 1)
    made = from_menus(toy.menus, labeling, toy.folded)
    model = rounding_aware(made, kept_parts(toy.menus, labeling).weights).train()
    assert torch.allclose(run(rounding_aware(made), toy.inputs), run(made.rounded(), toy.inputs), atol=1e-4)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    wanted, losses = run(toy.model, toy.inputs), []
    for _ in range(60):
        loss = (model(toy.inputs) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    result = finished(model.eval(), made)
    assert not torch.equal(result.layers["hidden.0"].values, made.layers["hidden.0"].values)
    assert [check.passed for check in check_layers(toy.network, result.plan, result.layers)] == [True, True]


def test_writing_other_weights_leaves_the_module_as_it_is(toy):
    made = toy.compressed(8)
    model = copy.deepcopy(made.model)
    write_weights_(model, "head.1", replace(made.layers["head.1"], bias=made.layers["head.1"].bias + 1))
    assert torch.allclose(run(model, toy.inputs), run(made.model, toy.inputs) + 4, atol=1e-4)
