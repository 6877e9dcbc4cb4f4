"""The packed file: weights bit for bit, equal outputs, the bytes that it should have, and nothing damaged is read."""

import base64
import copy
import json
import random
import re
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from packed_toys import Small, by_hand, kept_half, mutated, put_together, rounded, rounded_layers, taken_apart
from torch import nn

from autocompress.data import load_data
from autocompress.errors import InputError
from autocompress.execute.compressed import Compressed, LayerWeights, from_menus
from autocompress.menus import MenuSettings, build_menus
from autocompress.menus.activations import ActivationRange
from autocompress.models import load_model
from autocompress.network import fold_batch_norms, trace
from autocompress.plan import Label, Plan
from autocompress.targets.bits import decode_weight, encode_weight, pack_bits, unpack_bits
from autocompress.targets.loading import load, restore
from autocompress.targets.lowering import Lowered, lower
from autocompress.targets.packed import load_packed, load_packed_weights, pack, pack_weights
from autocompress_envs.numbers import Labeling, stored_bits

OFFERS = {"channel": (1, 2, 3, 5, 8, 16, 32), "element": (1, 3, 8, 16, 32), "2:4": (1, 4, 16, 32)}


class Mixed(nn.Module):
    """Input 2x6x6: depthwise with a shortcut, concatenation, a norm that can't be folded."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 6, 1), nn.Conv2d(2, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm = nn.BatchNorm2d(10)
        self.join = nn.Conv2d(10, 8, 3, stride=2, bias=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        left = self.left(x)
        y = torch.cat([left + self.depthwise(left), self.right(x)], 1)
        return self.head(torch.relu(self.join(torch.relu_(self.norm(y)))).mean((2, 3)))


@pytest.fixture(scope="module")
def small():
    """(packed bytes, lowered network, its model)"""
    torch.manual_seed(0)
    model = Small().eval()
    model.norm.running_var.uniform_(0.5, 2.0)
    x = torch.randn(8, 1, 4, 4)
    compressed = by_hand(model, x, bits=(3, 8))
    lowered = lower(compressed, x, integer=False)
    return pack(lowered), lowered, compressed


def refusal(path, read=load_packed):
    """What the error says after the path."""
    with pytest.raises(InputError) as caught:
        read(path)
    text = str(caught.value)
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


def assert_same_layers(read, written):
    assert list(read) == list(written)
    for name, layer in written.items():
        assert torch.equal(read[name].values, layer.values)
        assert read[name].values.dtype == layer.values.dtype
        assert (read[name].bits, read[name].sparsity) == (layer.bits, layer.sparsity)
        for own, other in ((read[name].scale, layer.scale), (read[name].bias, layer.bias)):
            assert own is other is None or torch.equal(own, other)
        own, other = read[name].input_range, layer.input_range
        assert own is other is None or replace(own, noise=0.0) == replace(other, noise=0.0)


def assert_reloads(compressed, x, path):
    """The file's graph runs as the lowered one does, and holds the same weights."""
    compressed.model.to(memory_format=torch.contiguous_format)  # another one sums in another order
    lowered = lower(compressed, x, integer=False)
    path.write_bytes(pack(lowered))
    read = load_packed(path)
    assert_same_layers(read.layers, compressed.layers)
    assert (read.plan, read.input_shape) == (compressed.plan, tuple(x.shape[1:]))
    assert read.graph.state_dict().keys() == {name for name in lowered.graph.state_dict() if "num_batches" not in name}
    with torch.no_grad():
        for samples in (1, 7):
            assert torch.equal(read.graph(x[:samples]), lowered.graph(x[:samples]))
    assert path.read_bytes() == pack(read)


@pytest.mark.parametrize("bits", range(1, 9))
def test_packing_bits_leaves_no_gap_and_loses_nothing(bits):
    values = np.random.default_rng(bits).integers(2**bits, size=37).astype(np.uint8)
    packed = pack_bits(values, bits)
    assert len(packed) == -(-37 * bits // 8)
    assert np.array_equal(unpack_bits(packed, bits, 37), values)


@pytest.mark.parametrize("granularity", OFFERS)
@pytest.mark.parametrize("bits", [*range(1, 9), 16, 32])
def test_weights_come_back_bit_for_bit_in_the_bytes_of_the_cost_model(bits, granularity):
    torch.manual_seed(bits)
    weight = torch.randn(6, 4, 3, 3)
    sparsity = 0.0 if granularity == "channel" else 0.5
    mask = kept_half(weight, granularity) if sparsity else torch.ones_like(weight)
    values, scale = rounded(weight * mask, mask, bits)
    stored = encode_weight(LayerWeights(values, scale, None, bits, sparsity, None), granularity)
    assert stored.nbytes == -(-int(stored_bits(np.array(216), np.array(bits), sparsity, granularity)) // 8)
    read = decode_weight(stored, (6, 4, 3, 3), bits, sparsity, granularity)
    assert torch.equal(read, values)
    assert read.dtype == values.dtype


@pytest.mark.parametrize(
    ("codes", "bits", "sparsity", "granularity", "expected"),
    [
        ([1, -2, 0, -1], 2, 0.0, "channel", [0b11_00_10_01]),
        ([1, -1, -1, 1], 1, 0.0, "channel", [0b1001_0000]),
        ([1, 0, 0, 2], 3, 0.5, "element", [0b1001_101_1, 0b10_000000]),
        ([1, 0, 0, 2], 3, 0.5, "2:4", [0b00_11_101_1, 0b10_000000]),
        ([1, 0, 0, 0], 3, 0.5, "2:4", [0b00_11_101_1, 0b00_000000]),  # a kept weight may be 0
        ([1, 0, 0, -1], 1, 0.5, "2:4", [0b00_11_10_00]),
        ([0, -4, 0, 0, 0, 3], 3, 2 / 3, "1:3", [0b01_10_000_1, 0b11_000000]),  # positions 1 and 2, codes + 4: 0 and 7
    ],
)
def test_bytes_of_codes_by_hand(codes, bits, sparsity, granularity, expected):
    values = torch.tensor([codes], dtype=torch.int8)
    layer = LayerWeights(values, torch.ones(1), None, bits, sparsity, None)
    assert encode_weight(layer, granularity).tolist() == expected


def test_bytes_of_a_tiny_file_by_hand(tmp_path):
    """Codes + 2 are 3 0 2 1 and 3 3 0 2, two bits each; the tensors follow the header, float32 ones first."""
    codes = torch.tensor([[1, -2, 0, -1], [1, 1, -2, 0]], dtype=torch.int8)
    layer = LayerWeights(
        codes, torch.tensor([0.5, 0.25]), torch.tensor([1.0, -1.0]), 2, 0.0, ActivationRange(4, 0.5, 3, 0.0)
    )
    model = nn.Sequential(nn.Linear(4, 2)).requires_grad_(False)
    model[0].weight.copy_(layer.weight())
    model[0].bias.copy_(layer.bias)
    compressed = Compressed(model, {"0": layer}, Plan({"0": Label(0.0, 2, 4)}))
    lowered = lower(compressed, torch.ones(1, 4), integer=False)
    packed = pack(lowered)
    size = int.from_bytes(packed[:8], "little")
    assert packed[8 + size :] == struct.pack("<6f", 1.0, -1.0, 0.5, 3.0, 0.5, 0.25) + bytes(
        [0b11_00_10_01, 0b11_11_00_10]
    )
    assert size % 8 == 0
    header = json.loads(packed[8 : 8 + size])
    assert header.pop("__metadata__").keys() == {"format", "version", "content"}
    assert header == {
        "0.bias": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "0.input_range": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
        "0.weight_scale": {"dtype": "F32", "shape": [2], "data_offsets": [16, 24]},
        "0.weight": {"dtype": "U8", "shape": [2], "data_offsets": [24, 26]},
    }
    first, graph, _ = taken_apart(packed)
    assert (first["input_shape"], first["shapes"], first["plan"]) == ([4], [[2, 4]], lowered.plan.to_dict())
    assert graph == {
        "nodes": [
            ["autocompress.round_activation.default", ["%1", 0.5, 3, 4]],
            ["aten.linear.default", ["%1", "@0.weight", "@0.bias"]],
        ],
        "output": "%1",
    }
    (tmp_path / "x").write_bytes(packed)
    # 1.0 is a level; weights (0.5, -1, 0, -0.5) and (0.25, 0.25, -0.5, 0)
    assert load(tmp_path / "x")(torch.ones(1, 4)).tolist() == [[0.0, -1.0]]


@pytest.fixture(scope="module")
def traced():
    model, data = load_model("digits"), load_data("digits", calibration_samples=32, search_samples=32)
    inputs, _ = data.calibration()
    return model, trace(model, inputs[:1]), inputs, data.fingerprint


@pytest.fixture(scope="module", params=OFFERS)
def digits(request, traced):
    model, network, inputs, fingerprint = traced
    settings = MenuSettings(
        granularity=request.param, weight_bits=OFFERS[request.param], activation_bits=(4, 32), sparsity_levels=3
    )
    menus = build_menus(model, network, inputs, settings, data_fingerprint=fingerprint)
    return model, network, menus, inputs


def random_labeling(problem, rng):
    fields = ("sparsities", "weight_bits", "activation_bits")
    return Labeling(*(np.array([rng.integers(len(getattr(layer, f))) for layer in problem.layers]) for f in fields))


def test_plans_from_menus_reload_exactly_within_the_closed_form(digits, tmp_path):
    model, network, menus, inputs = digits
    problem, rng, path = menus.problem(), np.random.default_rng(0), tmp_path / "model.safetensors"
    folded = fold_batch_norms(model, network)
    labeling = random_labeling(problem, rng)
    compressed = from_menus(menus, labeling, folded)
    assert_reloads(compressed, inputs, path)
    with torch.no_grad():
        assert torch.equal(load(path)(inputs[:7]), compressed.rounded()(inputs[:7]))
    packed = path.read_bytes()
    metadata = json.loads(packed[8 : 8 + int.from_bytes(packed[:8], "little")])["__metadata__"]
    added = len(json.dumps({"__metadata__": metadata}, separators=(",", ":")))
    # 10 layers with two entries of up to 80 bytes that a label may leave out
    assert 0 <= problem.resources(labeling)["size"] + added - len(packed) <= 1600
    assert added < 1200


def test_a_file_without_graph_is_restored_into_the_original_class(digits, tmp_path):
    model, network, menus, inputs = digits
    path = tmp_path / "model.safetensors"
    compressed = from_menus(
        menus, random_labeling(menus.problem(), np.random.default_rng(1)), fold_batch_norms(model, network)
    )
    compressed.model.to(memory_format=torch.contiguous_format)  # another one sums in another order
    path.write_bytes(pack_weights(compressed, inputs.shape[1:]))
    before = copy.deepcopy(model.state_dict())
    restored = restore(path, model, network)
    assert_same_layers(restored.layers, compressed.layers)
    assert restored.plan == compressed.plan
    with torch.no_grad():
        expected = compressed.rounded()(inputs[:7])
        assert torch.equal(restored.rounded()(inputs[:7]), expected)
        assert torch.equal(load(path, model)(inputs[:7]), expected)
        assert torch.equal(load(tmp_path, model)(inputs[:7]), expected)  # the folder of a run
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert restored.model.state_dict().keys() == compressed.model.state_dict().keys()


@pytest.mark.parametrize("granularity", OFFERS)
def test_a_network_of_awkward_parts_reloads_exactly(granularity, tmp_path):
    torch.manual_seed(0)
    model, x = Mixed().eval(), torch.randn(7, 2, 6, 6)
    model.norm.running_var.uniform_(0.5, 2.0)
    compressed = by_hand(model, x, bits=(2, 16, 1, 32), granularity=granularity)
    assert_reloads(compressed, x, tmp_path / "x")
    (tmp_path / "weights").write_bytes(pack_weights(compressed, x.shape[1:]))
    restored = restore(tmp_path / "weights", model, trace(model, x[:1]))
    with torch.no_grad():
        assert torch.equal(restored.rounded()(x), compressed.rounded()(x))


def test_norms_shrink_with_their_channels(tmp_path):
    torch.manual_seed(0)
    model, x = Mixed().eval(), torch.randn(7, 2, 6, 6)
    network = trace(model, x[:1])
    settings = MenuSettings(weight_bits=(4,), activation_bits=(8,), sparsity_levels=4)
    menus = build_menus(model, network, x, settings, data_fingerprint="", jobs=1)
    most = Labeling(
        np.array([len(layer.sparsities) - 1 for layer in menus.problem().layers]),
        *np.zeros((2, len(network.layers)), int),
    )
    compressed = from_menus(menus, most, fold_batch_norms(model, network))
    assert compressed.model.norm.num_features < 10
    assert_reloads(compressed, x, tmp_path / "x")
    (tmp_path / "weights").write_bytes(pack_weights(compressed, x.shape[1:]))
    restored = restore(tmp_path / "weights", model, network)
    assert restored.model.norm.num_features == compressed.model.norm.num_features
    with torch.no_grad():
        assert torch.equal(restored.rounded()(x), compressed.rounded()(x))


def test_mobilenet_v3_reloads_exactly(tmp_path):
    torch.manual_seed(0)
    model, x = torchvision.models.mobilenet_v3_small().eval(), torch.randn(7, 3, 32, 32)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    bits = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)
    assert_reloads(rounded_layers(model, names, "", bits, (8, 32, 4), "channel"), x, tmp_path / "x")


def test_without_graph_and_without_model_it_says_what_to_pass(small, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(pack_weights(small[2], (1, 4, 4)))
    assert refusal(path, load) == (
        "the file must hold a graph to run without the original's class, got weights alone; "
        "pass the original's module as `model`."
    )
    with pytest.raises(
        InputError, match=r"^`model` must be the network that was packed, 2 layers, fingerprint \w+, got 4"
    ):
        load(path, nn.Sequential(nn.Flatten(), *(nn.Linear(16, 16) for _ in range(4))))


def test_what_is_no_packed_file_is_refused(tmp_path, small):
    path = tmp_path / "x"
    assert refusal(path) == f"`path` must be a packed file, got {path}: No such file or directory."
    assert refusal(tmp_path, load) == (
        f"`path` must be a packed file, got {tmp_path / 'model.safetensors'}: No such file or directory."
    )
    path.write_bytes(b"PK\x03\x04 not tensors, just text")
    assert re.fullmatch(r"The file must be a safetensors file: .+\.", refusal(path))
    first, graph, tensors = taken_apart(small[0])
    path.write_bytes(put_together(first, graph, tensors, format="pt"))
    assert refusal(path) == "The file must be a packed file of autocompress, got a safetensors file of other content."
    path.write_bytes(put_together(first, graph, tensors, version="2"))
    assert refusal(path) == "The `version` of the packed file must be 1, got '2'."
    path.write_bytes(put_together(first, graph, tensors, content="{"))
    assert refusal(path) == "The metadata must be whole and at most 64,000,000 bytes, got others."
    path.write_bytes(put_together(first, graph, tensors, content="no zlib"))
    assert refusal(path) == ("The metadata must be zlib in base 85: bad base85 character at position 2.")


def test_unpacking_bombs_are_refused(small, tmp_path):
    bomb = base64.b85encode(zlib.compress(b" " * 65_000_000, 1)).decode()
    (tmp_path / "x").write_bytes(put_together(*taken_apart(small[0]), content=bomb))
    assert refusal(tmp_path / "x") == "The metadata must be whole and at most 64,000,000 bytes, got others."


def test_every_truncation_is_refused(small, tmp_path):
    packed, path = small[0], tmp_path / "x"
    for end in range(len(packed)):
        path.write_bytes(packed[:end])
        refusal(path)
    path.write_bytes(packed + b"\0")
    refusal(path)


def test_flipped_bytes_are_refused_or_harmless(small, tmp_path):
    packed, path, rng = small[0], tmp_path / "x", random.Random(0)
    expected, refused = small[1].graph.state_dict(), 0
    for _ in range(500):
        damaged = bytearray(packed)
        for _ in range(rng.choice((1, 1, 4))):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            read = load_packed(path)
        except InputError:
            refused += 1
        else:
            state = read.graph.state_dict()
            assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert refused > 480


def test_nonsense_with_a_right_checksum_is_refused_or_loads(small, tmp_path):
    first, graph, tensors = taken_apart(small[0])
    path, rng, refused = tmp_path / "x", random.Random(0), 0
    for turn in range(500):
        changed = (mutated(first, rng), graph) if turn % 2 else (first, mutated(graph, rng))
        path.write_bytes(put_together(*changed, tensors))
        try:
            load_packed(path)
        except InputError:
            refused += 1
    assert refused > 300


DAMAGES = {
    "weight missing": (
        lambda f, g, t: t.pop("fc.weight"),
        "The file must hold fc.weight, got nothing of that name.",
    ),
    "bias missing": (
        lambda f, g, t: t.pop("fc.bias"),
        "The graph must have tensors that are in the file, got fc.bias, which is not.",
    ),
    "scale missing": (
        lambda f, g, t: t.pop("fc.weight_scale"),
        "The weights of fc are damaged: it must be int8 codes with a scale at 8 bits, got torch.int8.",
    ),
    "range missing": (
        lambda f, g, t: t.pop("conv.input_range"),
        "The weights of conv are damaged: it must have a range of its input at 8 bits.",
    ),
    "range too much": (
        lambda f, g, t: t.update({"fc.input_range": torch.ones(2)}),
        "The weights of fc are damaged: it must not have a range of its input at 32 bits.",
    ),
    "range of zero": (
        lambda f, g, t: t.update({"conv.input_range": torch.tensor([0.0, 3.0])}),
        "The weights of conv are damaged: its input's scale must be finite and > 0, got 0.0.",
    ),
    "zero point outside": (
        lambda f, g, t: t.update({"conv.input_range": torch.tensor([1.0, 256.0])}),
        "The weights of conv are damaged: its input's zero point must be 0 to 255, got 256.",
    ),
    "zero point in between": (
        lambda f, g, t: t.update({"conv.input_range": torch.tensor([1.0, 2.5])}),
        "The weights of conv are damaged: its input's zero point must be a whole number, got 2.5.",
    ),
    "too few codes": (
        lambda f, g, t: t.update({"conv.weight": t["conv.weight"][:-1]}),
        "The weights of conv are damaged: it must take 14 bytes, got 13.",
    ),
    "too many codes": (
        lambda f, g, t: t.update({"conv.weight": torch.zeros(15, dtype=torch.uint8)}),
        "The weights of conv are damaged: it must take 14 bytes, got 15.",
    ),
    "codes of another type": (
        lambda f, g, t: t.update({"conv.weight": torch.zeros(14, dtype=torch.int8)}),
        "The weights of conv are damaged: it must be of torch.uint8, got torch.int8.",
    ),
    "scale too long": (
        lambda f, g, t: t.update({"conv.weight_scale": torch.ones(5)}),
        "The weights of conv are damaged: its scale must be 4 float32 numbers, got [5] torch.float32.",
    ),
    "scale infinite": (
        lambda f, g, t: t["conv.weight_scale"].fill_(float("inf")),
        "The weights of conv are damaged: its scale must be finite, got other numbers.",
    ),
    "scale negative": (
        lambda f, g, t: t["conv.weight_scale"].fill_(-0.5),
        "The weights of conv are damaged: its scale must be > 0, got -0.5.",
    ),
    "bias not a number": (
        lambda f, g, t: t["fc.bias"].fill_(float("nan")),
        "The weights of fc are damaged: its bias must be finite, got other numbers.",
    ),
    "unknown tensor": (
        lambda f, g, t: t.update({"other": torch.ones(1)}),
        "The file must hold the tensors of its layers and graph, got also other.",
    ),
    "graph without its tensor": (
        lambda f, g, t: t.pop("shift"),
        "The graph must have tensors that are in the file, got shift, which is not.",
    ),
    "unknown layer": (
        lambda f, g, t: f["plan"]["labels"].update(more={"sparsity": 0.0}),
        "The file must hold one weight shape for each layer of the plan, got another number.",
    ),
    "other bits in the plan": (
        lambda f, g, t: f["plan"]["labels"]["conv"].update(weight_bits=4),
        "The weights of conv are damaged: it must take 18 bytes, got 14.",
    ),
    "broken bits in the plan": (
        lambda f, g, t: f["plan"]["labels"]["conv"].update(weight_bits=3.0),
        "The label of layer conv must have whole numbers of bits, got "
        "Label(sparsity=0.0, weight_bits=3.0, activation_bits=8).",
    ),
    "no plan": (
        lambda f, g, t: f.update(plan=None),
        "A plan must be a mapping with a key `labels`, got a NoneType.",
    ),
    "no granularity": (
        lambda f, g, t: f["plan"].update(granularity="5:4"),
        "`granularity` must be channel, element or n:m with n < m, got '5:4'.",
    ),
    "huge blocks": (
        lambda f, g, t: (f["plan"].update(granularity="1:1000"), f["plan"]["labels"]["conv"].update(sparsity=0.999)),
        "The weights of conv are damaged: it must have blocks of at most 256 weights, got 1:1000.",
    ),
    "huge weight": (
        lambda f, g, t: f["shapes"].__setitem__(0, [2**40, 2**40, 3, 3]),
        f"The weights of conv are damaged: it must hold {9 * 2**80} weights, got 14 bytes.",
    ),
    "negative shape": (
        lambda f, g, t: f["shapes"].__setitem__(0, [-4, -1, 3, 3]),
        "The weight of conv must have a shape of whole numbers > 0, got [-4, -1, 3, 3].",
    ),
    "no input shape": (
        lambda f, g, t: f.pop("input_shape"),
        "The input must have a shape of whole numbers > 0, got None.",
    ),
    "another call": (
        lambda f, g, t: g["nodes"].append(["os.system", ["=echo"]]),
        "The graph must call ATen operators that only compute, got 'os.system'.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_inconsistent_files_are_refused_in_one_line(damage, small, tmp_path):
    change, message = DAMAGES[damage]
    parts = copy.deepcopy(taken_apart(small[0]))
    change(*parts)
    (tmp_path / "x").write_bytes(put_together(*parts))
    assert refusal(tmp_path / "x") == message


def test_undamaged_parts_put_together_load(small, tmp_path):
    """So the refusals above are due to the damage."""
    (tmp_path / "x").write_bytes(put_together(*taken_apart(small[0])))
    assert_same_layers(load_packed(tmp_path / "x").layers, small[1].layers)
    assert load_packed_weights(tmp_path / "x").others.keys() == {
        "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "shift",
    }  # fmt: skip


def test_changed_tensors_do_not_pass_the_checksum(small, tmp_path):
    damaged = bytearray(small[0])
    damaged[-1] ^= 1
    (tmp_path / "x").write_bytes(damaged)
    assert refusal(tmp_path / "x") == (
        "The tensors must have the checksum that they were written with, got damaged ones."
    )


@pytest.mark.parametrize(
    ("granularity", "stored", "message"),
    [
        ("element", [0b1110_0000, 0], "its bitmap must have 2 weights, got 3"),
        ("2:4", [0b11_00_0000, 0], "its index must have ascending positions below 4, got others"),
        ("2:4", [0b11_11_0000, 0], "its index must have ascending positions below 4, got others"),
    ],
)
def test_damaged_indices_are_refused(granularity, stored, message):
    with pytest.raises(InputError) as caught:
        decode_weight(torch.tensor(stored, dtype=torch.uint8), (1, 4), 3, 0.5, granularity)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"bits": 4},
            "it must be as its label says, Label(sparsity=0.0, weight_bits=3, activation_bits=8), got (0.0, 4, 8)",
        ),
        ({"scale": torch.zeros(4)}, "its scale must be > 0, got 0.0"),
        ({"values": torch.full((4, 1, 3, 3), 4, dtype=torch.int8)}, "its codes must be -4 to 3, got 4 to 4"),
        ({"input_range": ActivationRange(8, 0.1, 0, 0.0)}, "its input's scale must be a float32 number, got 0.1"),
    ],
)
def test_layers_that_are_not_what_they_claim_are_not_written(small, change, message):
    layer = replace(small[1].layers["conv"], **change)
    compressed = replace(small[2], layers={**small[2].layers, "conv": layer})
    with pytest.raises(InputError) as caught:
        pack_weights(compressed, (1, 4, 4))
    assert str(caught.value) == f"`layers` can't be packed at conv: {message}."


def test_layers_must_be_the_graphs_and_the_plans(small):
    lowered = small[1]
    other = replace(lowered.layers["conv"], bias=torch.zeros(4))
    with pytest.raises(InputError) as caught:
        pack(replace(lowered, layers={**lowered.layers, "conv": other}))
    assert str(caught.value) == "`layers` must hold what the graph runs, got another conv.bias."
    with pytest.raises(InputError) as caught:
        pack(Lowered(lowered.graph, lowered.layers, Plan({}), lowered.input_shape))
    assert str(caught.value) == "`layers` must be the plan's layers, got others."
    dense = replace(lowered.layers["conv"], sparsity=0.5, values=torch.ones(4, 1, 3, 3, dtype=torch.int8))
    with pytest.raises(InputError) as caught:
        encode_weight(dense, "element")
    assert str(caught.value) == "it must have 18 zeros to leave out, got 0"
