"""Files without the branches that a plan removes: what is left of them is a constant that is added."""

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from packed_toys import assert_same_layers
from removed_toys import (
    EMPTY,
    OWNERS,
    Blocks,
    Halved,
    Inverted,
    Pair,
    PairInside,
    PairOfVectors,
    Tokens,
    Unbiased,
    Wave,
    lowered,
    toy,
)
from torch import Tensor, nn

from autocompress.errors import ExportError
from autocompress.execute.compressed import Compressed, LayerWeights, write_weights_
from autocompress.plan import Label, Plan
from autocompress.samples import fields_of
from autocompress.targets.graph.lowering import Lowered, lower
from autocompress.targets.graph.rounding_points import ROUND_ACTIVATION, rounding_nodes
from autocompress.targets.loading import load, restore
from autocompress.targets.onnxruntime.file import write_onnx
from autocompress.targets.onnxruntime.session import open_session
from autocompress.targets.openvino.ir import run_openvino, write_openvino
from autocompress.targets.packed.file import load_packed, pack, pack_weights
from autocompress.targets.pt2.archive import write_pt2
from autocompress.targets.verify import Check, check_layers, finished_resources, kept_channels

ATEN = torch.ops.aten
LAYER_CALLS = (ATEN.conv2d.default, ATEN.conv1d.default, ATEN.conv1d.padding, ATEN.linear.default)


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def tensors(lowered: Lowered) -> set[str]:
    """What the graph reads."""
    return {str(node.target) for node in lowered.graph.graph.find_nodes(op="get_attr")}


def calls(lowered: Lowered, *targets: object) -> list[torch.fx.Node]:
    return [node for node in lowered.graph.graph.nodes if node.target in targets]


def test_the_networks_are_what_the_tests_mean() -> None:
    for kind, owners in OWNERS.items():
        assert {group.owner for group in toy(kind).network.groups if group.is_branch} == set(owners)
        layers = toy(kind).compressed(owners).layers
        assert {name for name, layer in layers.items() if layer.is_empty} == EMPTY[kind]


@pytest.mark.parametrize("kind", OWNERS)
def test_the_graph_has_no_removed_layer_and_computes_the_same(kind: type[nn.Module]) -> None:
    """Bit for bit: a convolution of zeros gives its bias, and that is added."""
    given = toy(kind)
    compressed, found = given.compressed(OWNERS[kind], 8, 4), lowered(kind, False)
    left = set(compressed.layers) - EMPTY[kind]
    assert {name for name in tensors(found) if name.endswith("weight")} == {f"{name}.weight" for name in left}
    ends = {Blocks: {"conv2", "conv4"}, Unbiased: set(), Inverted: {"project"}, Wave: {"conv2", "down"}}[kind]
    assert {name for name in tensors(found) if name.rpartition(".")[0] in EMPTY[kind]} == {f"{n}.bias" for n in ends}
    assert len(list(rounding_nodes(found.graph.graph))) == len(left)
    assert len(calls(found, *LAYER_CALLS)) == len(left)
    for samples in (1, 7):
        assert torch.equal(found.graph(given.x[:samples]), outputs(compressed.rounded(), given.x[:samples]))
    whole = outputs(given.compressed((), 8, 4).rounded(), given.x)
    assert (outputs(found.graph, given.x) - whole).abs().max() > 0.02


def test_lowering_changes_nothing_that_it_is_given() -> None:
    given = toy(Blocks)
    compressed = given.compressed(OWNERS[Blocks])
    before = {name: tensor.clone() for name, tensor in compressed.model.state_dict().items()}
    found = lower(compressed, given.x, integer=True)
    found.graph.get_parameter("conv2.bias").data.add_(1)
    assert all(torch.equal(before[name], tensor) for name, tensor in compressed.model.state_dict().items())
    assert torch.equal(compressed.layers["conv2"].bias, before["conv2.bias"])


@pytest.mark.parametrize(("kind", "integer"), [(Blocks, 2), (Inverted, 1), (Wave, 1)])
def test_integer_kernels_find_rounded_tensors_beside_the_constant(kind: type[nn.Module], integer: int) -> None:
    """Additions behind convolutions; linear layers hand on floats, of which a sum is one of floats."""
    given, found = toy(kind), lowered(kind, True)
    additions = calls(found, ATEN.add.Tensor)
    assert len(additions) == len(OWNERS[kind])
    for add in additions[:integer]:
        assert [each.target for each in add.all_input_nodes] == [ROUND_ACTIVATION] * 2
        (constant,) = [each for each in add.all_input_nodes if source(each).op == "get_attr"]
        assert constant.args[3] == 8
    for add in additions:
        (read,) = [source(each) for each in add.all_input_nodes if source(each).op == "get_attr"]
        assert str(read.target).removesuffix(".bias") in EMPTY[kind]
    for call in calls(found, *LAYER_CALLS):
        assert call.all_input_nodes[0].target is ROUND_ACTIVATION
    got, expected = outputs(found.graph, given.x), outputs(given.compressed(OWNERS[kind]).rounded(), given.x)
    assert (got - expected).square().mean() < 2e-3 * expected.var()


def source(node: torch.fx.Node) -> torch.fx.Node:
    """Behind roundings and changes of shape."""
    while node.target in (ROUND_ACTIVATION, ATEN.view.default):
        node = node.all_input_nodes[0]
    return node


def test_a_constant_has_the_steps_of_8_bits() -> None:
    """From 0, over what the bias spans; the layers' own record of the bias stays as it is, as the file has it."""
    found, bias = lowered(Blocks, True), toy(Blocks).compressed(OWNERS[Blocks]).layers["conv2"].bias
    ranges = {entry for node, entry in rounding_nodes(found.graph.graph) if str(source(node).target) == "conv2.bias"}
    span = float(bias.max().clamp(min=0) - bias.min().clamp(max=0))
    assert [entry.scale for entry in ranges] == [pytest.approx(span / 255, rel=0.02)]
    assert torch.equal(found.layers["conv2"].bias, bias)
    assert torch.equal(found.graph.get_parameter("conv2.bias"), bias)


@pytest.mark.parametrize("integer", [False, True])
def test_without_a_bias_nothing_is_added(integer: bool) -> None:
    given, found = toy(Unbiased), lowered(Unbiased, integer)
    assert calls(found, ATEN.add.Tensor) == []
    assert len(calls(found, ATEN.conv2d.default)) == 2
    got, expected = (
        outputs(each, given.x)
        for each in (found.graph, given.compressed(OWNERS[Unbiased], 8, 8 if integer else 4).rounded())
    )
    assert (got - expected).square().mean() <= (2e-3 * expected.var() if integer else 0)


@pytest.fixture(scope="module")
def written() -> dict[type[nn.Module], bytes]:
    """ONNX files."""
    return {kind: write_onnx(lowered(kind, True)) for kind in (Blocks, Wave)}


@pytest.mark.parametrize("kind", [Blocks, Wave])
def test_onnx_runtime_answers_like_the_graph(kind: type[nn.Module], written: dict[type[nn.Module], bytes]) -> None:
    given, found = toy(kind), lowered(kind, True)
    onnx.checker.check_model(onnx.load_from_string(written[kind]), full_check=True)
    session = open_session(written[kind])
    got = torch.cat([session.run(given.x[:1]), session.run(given.x[1:8]), session.run(given.x[8:])])
    expected = outputs(found.graph, given.x)
    assert float((got - expected).abs().max()) <= 0.1 * float(expected.std())
    assert float((got.argmax(1) == expected.argmax(1)).double().mean()) >= 0.98
    pytorch = outputs(given.compressed(OWNERS[kind]).rounded(), given.x)
    assert float((got - pytorch).square().mean()) < 3e-3 * float(pytorch.var())


def test_integer_kernels_run_beside_a_removed_branch(written: dict[type[nn.Module], bytes], tmp_path: Path) -> None:
    open_session(written[Blocks], optimized=tmp_path / "optimized.onnx")
    found = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    expected = {"QLinearConv": 2, "QLinearAdd": 2, "QLinearGlobalAveragePool": 1, "QGemm": 1, "Conv": 0, "Add": 0}
    assert {name: found[name] for name in expected} == expected


def test_openvino_answers_like_the_graph(written: dict[type[nn.Module], bytes], tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    path, _ = write_openvino(written[Blocks], tmp_path)
    got, expected = run_openvino(path, toy(Blocks).x), outputs(lowered(Blocks, True).graph, toy(Blocks).x)
    assert float((got - expected).abs().max()) <= 0.1 * float(expected.std())
    assert float((got.argmax(1) == expected.argmax(1)).double().mean()) >= 0.99


def test_pt2_archive_holds_the_same_numbers() -> None:
    given, found = toy(Blocks), lowered(Blocks, False)
    program = torch.export.load(io.BytesIO(write_pt2(found)))
    assert torch.equal(outputs(program.module(), given.x[:7]), outputs(found.graph, given.x[:7]))


@pytest.mark.parametrize("kind", OWNERS)
def test_packed_files_hold_the_rest_bit_for_bit(kind: type[nn.Module], tmp_path: Path) -> None:
    """What was lowered has the layers of the menus, and so has the file; it runs without the class."""
    given, found = toy(kind), lowered(kind, False)
    compressed, path = given.compressed(OWNERS[kind], 8, 4), tmp_path / "model.safetensors"
    path.write_bytes(pack(found))
    read = load_packed(path)
    assert_same_layers(read.layers, compressed.layers)
    assert {name: tuple(layer.values.shape) for name, layer in read.layers.items()} == {
        name: tuple(layer.values.shape) for name, layer in compressed.layers.items()
    }
    assert (read.plan, pack(read)) == (compressed.plan, path.read_bytes())
    for samples in (1, 7):
        assert torch.equal(outputs(load(path), given.x[:samples]), outputs(found.graph, given.x[:samples]))
    assert torch.equal(outputs(load(tmp_path), given.x[:7]), outputs(found.graph, given.x[:7]))


@pytest.mark.parametrize("kind", [Blocks, Unbiased, Inverted])
def test_files_without_a_graph_are_restored_into_the_original_class(kind: type[nn.Module], tmp_path) -> None:
    """The zeros are put back."""
    given = toy(kind)
    compressed = given.compressed(OWNERS[kind], 2, 4)
    path = tmp_path / "model.safetensors"
    path.write_bytes(pack_weights(compressed, fields_of(given.x)))
    restored = restore(path, given.model, given.network)
    assert_same_layers(restored.layers, compressed.layers)
    assert isinstance(restored.model, kind)
    state, expected = restored.model.state_dict(), compressed.model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
    assert not any(restored.model.get_parameter(f"{name}.weight").any() for name in EMPTY[kind])
    assert torch.equal(outputs(restored.rounded(), given.x[:7]), outputs(compressed.rounded(), given.x[:7]))
    assert torch.equal(outputs(load(path, given.model), given.x[:7]), outputs(compressed.rounded(), given.x[:7]))
    with_graph = tmp_path / "other"
    with_graph.write_bytes(pack(lowered(kind, False)))
    again, expected = restore(with_graph, given.model, given.network), given.compressed(OWNERS[kind], 8, 4)
    assert_same_layers(again.layers, expected.layers)
    assert torch.equal(outputs(again.rounded(), given.x[:7]), outputs(expected.rounded(), given.x[:7]))


def test_bytes_of_a_packed_file_by_hand() -> None:
    """8 bits. One channel of conv1 and conv3 takes 8 * 9 weights, a scale and a bias; of conv2 8 * 9, of conv4 8.

    Shapes and the plan are text beside them.
    """
    given = toy(Blocks)
    sizes = [len(pack_weights(given.compressed(OWNERS[Blocks], kept=kept), fields_of(given.x))) for kept in (None, 1)]
    weights = (72 + 8 + 72) + (72 + 8 + 8)
    assert weights - 20 <= sizes[1] - sizes[0] <= weights + 100
    costs = [given.menus.problem().resources(given.labeling(OWNERS[Blocks], 8, 8, kept))["size"] for kept in (None, 1)]
    assert costs[1] - costs[0] == weights


def changed(compressed: Compressed, name: str, **fields: object) -> dict[str, LayerWeights]:
    return {**compressed.layers, name: replace(compressed.layers[name], **fields)}  # type: ignore[arg-type]


def test_verification_of_what_the_plan_says() -> None:
    given = toy(Blocks)
    compressed = given.compressed(("conv1",))
    assert compressed.plan.labels["conv1"].sparsity == 1
    owners = [group.owner for group in given.network.groups]
    kept = dict(zip(owners, kept_channels(given.network, compressed.plan), strict=True))
    assert kept == {"stem": 8, "conv1": 0, "conv3": 10, "last": 8}
    assert check_layers(given.network, compressed.plan, compressed.layers) == [
        Check("channels", True, "7 layers have the plan's shapes"),
        Check("levels", True, "every row has at most 2^bits levels"),
    ]
    found = finished_resources(given.network, compressed.plan, compressed.layers, 1234)
    macs = (8 * 18 + 10 * 72 + 8 * 10 + 8 * 8) * 64 + 5 * 8
    assert (found["size"], found["macs"], found["bitops"]) == (1234, macs, macs * 64)


@pytest.mark.parametrize(
    ("name", "shape", "line"),
    [
        ("conv1", (1, 8, 3, 3), "conv1 has 1 x 72 weights, the plan says 0 x 72"),
        ("conv2", (8, 1, 3, 3), "conv2 has 8 x 9 weights, the plan says 8 x 0"),
        ("conv2", (7, 0, 3, 3), "conv2 has 7 x 0 weights, the plan says 8 x 0"),
        ("conv3", (0, 8, 3, 3), "conv3 has 0 x 72 weights, the plan says 10 x 72"),
        ("head", (5, 0), "head has 5 x 0 weights, the plan says 5 x 8"),
    ],
)
def test_verification_of_other_shapes_than_the_plans(name: str, shape: tuple[int, ...], line: str) -> None:
    given = toy(Blocks)
    compressed = given.compressed(("conv1",))
    layers = changed(compressed, name, values=torch.zeros(shape, dtype=torch.int8), scale=torch.ones(shape[0]))
    assert check_layers(given.network, compressed.plan, layers) == [
        Check("channels", False, line),
        Check("levels", True, "every row has at most 2^bits levels"),
    ]


def test_verification_of_bits_of_nothing() -> None:
    given = toy(Blocks)
    compressed = given.compressed(("conv1",))
    levels = check_layers(given.network, compressed.plan, changed(compressed, "conv1", bits=2, input_range=None))[1]
    assert levels == Check(
        "levels", False, "conv1 rounds its input to 32 bits, the plan says 8; conv1 has 2 bits, the plan says 8"
    )


class Read(nn.Module):
    """Input 3x4x4: what reads the branch's output is given."""

    def __init__(self, end: str) -> None:
        super().__init__()
        self.conv1, self.conv2, self.end = nn.Conv2d(3, 1, 1), nn.Conv2d(1, 3, 1), end

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(torch.relu(self.conv1(x)))
        if self.end == "product":
            return x * y
        return x + y if self.end == "sum" else x + torch.relu(y) + y


def emptied(end: str) -> Compressed:
    """By hand: no menu offers it where it can't go."""
    model = Read(end).eval().requires_grad_(False)
    layers = {
        "conv1": LayerWeights(torch.zeros(0, 3, 1, 1), None, torch.zeros(0), 32, 0.0, None),
        "conv2": LayerWeights(torch.zeros(3, 0, 1, 1), None, torch.tensor([1.0, -2.0, 0.5]), 32, 0.0, None),
    }
    for name, layer in layers.items():
        write_weights_(model, name, layer)
    return Compressed(model, layers, Plan({"conv1": Label(1.0), "conv2": Label()}))


@pytest.mark.parametrize("end", ["product", "sum and more"])
def test_a_branch_that_something_else_reads_is_refused(end: str) -> None:
    with pytest.raises(ExportError) as caught:
        lower(emptied(end), torch.randn(2, 3, 4, 4), integer=False)
    assert str(caught.value) == (
        "`plan` may remove branches that are added to something only, got conv1 without weights."
    )


def test_a_sum_by_hand() -> None:
    x = torch.randn(2, 3, 4, 4)
    lowered = lower(emptied("sum"), x, integer=False)
    assert torch.equal(lowered.graph(x), x + torch.tensor([1.0, -2.0, 0.5]).view(3, 1, 1))
    assert tensors(lowered) == {"conv2.bias"}


@pytest.mark.parametrize(
    ("kind", "gone", "integer"),
    [
        (Pair, ("a1", "b1"), True), (PairOfVectors, ("a1", "b1"), False), (PairInside, ("a1", "b1"), False),
        (PairInside, ("a1", "a2", "b1"), False), (Halved, ("conv1",), False), (Halved, ("conv1", "conv3"), False),
        (Tokens, ("up",), False), (Tokens, ("up",), True),
    ],
)  # fmt: skip
def test_whatever_menus_offer_can_be_lowered(kind: type[nn.Module], gone: tuple[str, ...], integer: bool) -> None:
    """All of the branches that are on offer among these, at once: what runs in PyTorch is what the graph computes."""
    given = toy(kind)
    offered = tuple(group.owner for group in given.network.groups if group.is_branch and group.owner in gone)
    assert offered
    compressed = given.compressed(offered, 8, 32)
    expected = outputs(compressed.rounded(), given.x[:7])
    found = lower(compressed, given.x, integer=integer)
    empty = {f"{name}.weight" for name, layer in compressed.layers.items() if layer.is_empty}
    assert len(empty) > len(offered)
    assert not empty & tensors(found)
    assert outputs(found.graph, given.x[:7]).shape == expected.shape
    torch.testing.assert_close(outputs(found.graph, given.x[:7]), expected, rtol=0, atol=1e-5)
