"""The packed file: weights bit for bit, equal outputs, the bytes that it should have, and nothing damaged is read."""

import copy
import json
import struct

import numpy as np
import pytest
import torch
import torchvision
from packed_toys import (
    assert_same_layers,
    by_hand,
    kept_half,
    packed_small,
    refusal,
    rounded,
    rounded_layers,
    taken_apart,
)
from torch import nn

from autocompress.data import load_data
from autocompress.errors import InputError
from autocompress.execute.compressed import Compressed, LayerWeights, from_menus
from autocompress.menus import MenuSettings, build_menus
from autocompress.menus.activations import ActivationRange
from autocompress.models import load_model
from autocompress.network import fold_batch_norms, trace
from autocompress.plan import Label, Plan
from autocompress.samples import Field, fields_of
from autocompress.targets.graph.lowering import lower
from autocompress.targets.loading import load, restore
from autocompress.targets.packed.bits import decode_weight, encode_weight, pack_bits, unpack_bits
from autocompress.targets.packed.file import load_packed, pack, pack_weights
from autocompress_envs.problem import Labeling, stored_bits

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
    return packed_small()


def assert_reloads(compressed, x, path):
    """The file's graph runs as the lowered one does, and holds the same weights."""
    compressed.model.to(memory_format=torch.contiguous_format)  # another one sums in another order
    lowered = lower(compressed, x, integer=False)
    path.write_bytes(pack(lowered))
    read = load_packed(path)
    assert_same_layers(read.layers, compressed.layers)
    assert (read.plan, read.inputs) == (compressed.plan, fields_of(x))
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
    path.write_bytes(pack_weights(compressed, fields_of(inputs)))
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
    (tmp_path / "weights").write_bytes(pack_weights(compressed, fields_of(x)))
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
    (tmp_path / "weights").write_bytes(pack_weights(compressed, fields_of(x)))
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
    path.write_bytes(pack_weights(small[2], (Field("input", (1, 4, 4)),)))
    assert refusal(path, load) == (
        "the file must hold a graph to run without the original's class, got weights alone; "
        "pass the original's module as `model`."
    )
    with pytest.raises(
        InputError, match=r"^`model` must be the network that was packed, 2 layers, fingerprint \w+, got 4"
    ):
        load(path, nn.Sequential(nn.Flatten(), *(nn.Linear(16, 16) for _ in range(4))))
