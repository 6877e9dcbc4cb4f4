"""Damaged, inconsistent and hostile packed files: one line, and nothing is read."""

import base64
import copy
import random
import re
import zlib
from dataclasses import replace

import pytest
import torch
from packed_toys import assert_same_layers, mutated, packed_small, put_together, refusal, taken_apart

from autocompress.errors import InputError
from autocompress.menus.activations import ActivationRange
from autocompress.plan import Plan
from autocompress.samples import Field
from autocompress.targets.graph.lowering import Lowered
from autocompress.targets.loading import load
from autocompress.targets.packed.bits import decode_weight, encode_weight
from autocompress.targets.packed.file import load_packed, load_packed_weights, pack, pack_weights

OFFERS = {"channel": (1, 2, 3, 5, 8, 16, 32), "element": (1, 3, 8, 16, 32), "2:4": (1, 4, 16, 32)}


@pytest.fixture(scope="module")
def small():
    return packed_small()


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
        "Label(sparsity=0.0, weight_bits=3.0, activation_bits=8, rank=0).",
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
        "The weight of conv must have a shape of whole numbers >= 0, got [-4, -1, 3, 3].",
    ),
    "no input shape": (
        lambda f, g, t: f.pop("input_shape"),
        "The input must have a shape of whole numbers >= 1, got None.",
    ),
    "code as an argument": (
        lambda f, g, t: f.update(arguments=["x): import os #"]),
        "The file must have 1 names of arguments, got ['x): import os #'].",
    ),
    "too many arguments": (
        lambda f, g, t: f.update(arguments=["image", "mask"]),
        "The file must have 1 names of arguments, got ['image', 'mask'].",
    ),
    "one name for both": (
        lambda f, g, t: f.update(names=["x", "x"]),
        "The file must have different names for input and output, got ['x', 'x'].",
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
            "it must be as its label says, Label(sparsity=0.0, weight_bits=3, activation_bits=8, rank=0), "
            "got (0.0, 4, 8)",
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
        pack_weights(compressed, (Field("input", (1, 4, 4)),))
    assert str(caught.value) == f"`layers` can't be packed at conv: {message}."


def test_layers_must_be_the_graphs_and_the_plans(small):
    lowered = small[1]
    other = replace(lowered.layers["conv"], bias=torch.zeros(4))
    with pytest.raises(InputError) as caught:
        pack(replace(lowered, layers={**lowered.layers, "conv": other}))
    assert str(caught.value) == "`layers` must hold what the graph runs, got another conv.bias."
    with pytest.raises(InputError) as caught:
        pack(Lowered(lowered.graph, lowered.layers, Plan({}), lowered.inputs))
    assert str(caught.value) == "`layers` must be the plan's layers, got others."
    dense = replace(lowered.layers["conv"], sparsity=0.5, values=torch.ones(4, 1, 3, 3, dtype=torch.int8))
    with pytest.raises(InputError) as caught:
        encode_weight(dense, "element")
    assert str(caught.value) == "it must have 18 zeros to leave out, got 0"


def test_a_graph_whose_operators_can_not_compute_is_refused(small, tmp_path):
    first, graph, tensors = taken_apart(small[0])
    path = tmp_path / "x"
    nodes = [[name, arguments, *rest] for name, arguments, *rest in graph["nodes"]]
    index = next(number for number, node in enumerate(nodes) if node[0] == "aten.conv2d.default")
    nodes[index][1] = [*nodes[index][1][:3], -1e308]
    path.write_bytes(put_together(first, {**graph, "nodes": nodes}, tensors))
    assert refusal(path).startswith(
        f"The graph must run on a sample of shape {first['input_shape']}, got the error: aten::conv2d() Expected a"
    )
    path.write_bytes(put_together({**first, "input_shape": [3, 10**6, 10**6]}, graph, tensors))
    assert re.fullmatch(r"The input must fit into \S+ \S+ of memory, got one of 12000\.0 GB\.", refusal(path))
