"""What every target must keep, for plans drawn at random: bytes, outputs, refusals."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from lowering_toys import Depthwise, Prunable
from torch import nn

from autocompress.errors import ExportError, InputError
from autocompress.execute.compressed import from_menus, uncompressed
from autocompress.menus import MenuSettings, build_menus
from autocompress.network import fold_batch_norms, trace
from autocompress.targets import counted_on_file
from autocompress.targets.loading import restore
from autocompress.targets.onnxruntime.session import open_session
from autocompress.targets.packed.file import load_packed
from autocompress.targets.target import TARGETS, Target, lowered_for, target_file
from autocompress_envs.problem import Labeling

PLANS = {"residual": (0, 2), "depthwise": (1,)}  # seeds; benchmarks/random_plans.py tries many more
UNUSED = 400  # bytes that may be counted too much, besides 3 %: of codes, names and lengths that a plan does without
UNUSED_BY_FLOATS = 250  # the same for each layer in floating point, which has no scales and no rounding


class Follows(nn.Module):
    """Input 2x8x8: its Python looks at values, which torch.export can't follow."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        y = torch.relu(self.conv(x)).mean((2, 3))
        return self.head(y * 2 if float(y.sum()) > 1e6 else y)


def make(name):
    torch.manual_seed(0)
    kind = {"residual": Prunable, "depthwise": Depthwise, "unfollowed": Follows}[name]
    return kind().eval(), torch.randn(64, 2, 8, 8)


@pytest.fixture(scope="module")
def counted():
    """By network, target and granularity: (menus, folded, inputs, original's bytes)."""
    made = {}

    def get(name, target, granularity="channel"):
        key = name, target.name, granularity
        if key not in made:
            model, inputs = make(name)
            network = trace(model, inputs[:1])
            settings = MenuSettings(
                weight_bits=target.weight_bits,
                activation_bits=target.activation_bits,
                granularity=granularity,
                sparsity_levels=7,  # whose sparsities are written with many digits,
            )
            menus = build_menus(model, network, inputs, settings, data_fingerprint="x", cache=None)
            folded = fold_batch_norms(model, network).float().eval()
            made[key] = (*counted_on_file(target, menus, folded, inputs), folded, inputs)
        return made[key]

    return get


def drawn(menus, seed):
    """A legal labelling; 0 and 1 are the two ends: everything at its cheapest, everything at its dearest."""
    rng = np.random.default_rng(seed)
    layers, columns = menus.problem().layers, []
    for field in ("sparsities", "weight_bits", "activation_bits"):
        counts = np.array([len(getattr(layer, field)) for layer in layers])
        lowest = 0 if field != "sparsities" else counts - 1
        ends = {0: lowest + 0 * counts, 1: counts - 1 - lowest}
        columns.append(ends.get(seed, rng.integers(0, counts)))
    return Labeling(*columns)


WAYS = [
    *((name, "onnxruntime", "channel") for name in ("residual", "depthwise")),
    *((name, "packed", "channel") for name in ("residual", "depthwise", "unfollowed")),
    ("residual", "packed", "element"),
    ("residual", "packed", "2:4"),
]


@pytest.mark.parametrize(("name", "target_name", "granularity"), WAYS)
def test_the_file_has_the_counted_bytes_and_the_same_outputs(name, target_name, granularity, counted, tmp_path):
    target = TARGETS[target_name]
    menus, _, folded, inputs = counted(name, target, granularity)
    for seed in PLANS.get(name, (0,)):
        labeling = drawn(menus, seed)
        compressed = from_menus(menus, labeling, folded)
        lowered = lowered_for(target, compressed, inputs)
        content = target_file(target, compressed, lowered, inputs)
        size = menus.problem().resources(labeling)["size"]
        floats = sum(layer.scale is None or layer.input_range is None for layer in compressed.layers.values())
        assert len(content) <= size <= 1.03 * len(content) + UNUSED + UNUSED_BY_FLOATS * floats, seed
        (tmp_path / target.file_name).write_bytes(content)
        check_outputs(lowered, compressed, tmp_path / target.file_name, inputs, name)


def check_outputs(lowered, compressed, path, inputs, name):
    """The file, loaded again, against what it was written from."""
    if lowered is None:
        model, _ = make(name)
        loaded = restore(path, model, trace(model, inputs[:1]))
        assert torch.equal(loaded.rounded()(inputs), compressed.rounded()(inputs))
        return
    expected = lowered.graph(inputs)
    if path.suffix == ".onnx":
        got, spread = open_session(path).run(inputs), float(expected.std())
        assert float((got - expected).pow(2).mean().sqrt()) < 0.02 * spread + 1e-5
        assert float((got.argmax(1) == expected.argmax(1)).float().mean()) >= 0.95
    else:
        assert torch.equal(load_packed(path).graph(inputs), expected)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_the_originals_bytes_are_those_of_its_float32_file(target, counted):
    if target.extra is not None:
        pytest.importorskip(target.extra[1], reason=f"the extra {target.extra[0]} is not installed")
    menus, original_bytes, folded, inputs = counted("residual", target)
    original = uncompressed(folded, menus.network)
    content = target_file(target, original, lowered_for(target, original, inputs), inputs)
    parameters = sum(parameter.numel() for parameter in folded.parameters())
    assert original_bytes == len(content)
    assert 4 * parameters < original_bytes < 4 * parameters + 6_000


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        (
            "onnxruntime",
            ((2, 3), (8,), "channel"),
            "`weight_bits` must be among 2, 4, 8, 16, 32 for the target onnxruntime, got 3; "
            "choose others or --target packed.",
        ),
        (
            "onnxruntime",
            ((2,), (4,), "channel"),
            "`activation_bits` must be among 8, 32 for the target onnxruntime, got 4; "
            "choose others or --target packed.",
        ),
        (
            "onnxruntime",
            ((2,), (8,), "element"),
            "`granularity` must be channel for the target onnxruntime, whose files store zeros, got element; "
            "pass --target packed.",
        ),
        (
            "packed",
            ((9,), (8,), "2:4"),
            "`weight_bits` must be among 1, 2, 3, 4, 5, 6, 7, 8, 16, 32 for the target packed, got 9; choose others.",
        ),
        (
            "packed",
            ((8,), (3,), "2:4"),
            "`activation_bits` must be among 4, 5, 6, 7, 8, 32 for the target packed, got 3; choose others.",
        ),
    ],
)
def test_labels_outside_the_target_are_refused(name, labels, message):
    with pytest.raises(InputError) as error:
        TARGETS[name].check(*labels)
    assert str(error.value) == message


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_every_target_offers_what_is_legal_there(target):
    target.check(target.weight_bits, target.activation_bits, "channel")
    assert set(target.default_weight_bits) <= set(target.weight_bits)
    assert 32 in target.weight_bits
    assert {8, 32} & set(target.activation_bits)
    assert TARGETS.find(target.name) is target
    assert dataclasses.replace(target, only_channels=False).check((), (), "element") is None


def made(**fields):
    given = {"name": "mine", "file_name": "model.mine", "weight_bits": (4, 32), "activation_bits": (32,)} | fields
    return Target(write=lambda lowered: b"", **given)


def test_a_target_of_ones_own():
    assert made().offered_weight_bits == (4, 32)
    assert made(weight_bits=tuple(range(1, 9)), default_weight_bits=(3, 2)).offered_weight_bits == (3, 2)
    assert made(file_name="plan.yml").file_name == "plan.yml"


ASCENDING = "must be a tuple, ascending, of numbers among"
WEIGHTS, ACTIVATIONS = "1, 2, 3, 4, 5, 6, 7, 8, 16, 32", "4, 5, 6, 7, 8, 32"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "", "`name` of a target must not be empty, got ''."),
        *(
            ("file_name", name, f"of the target mine must be the name of a file without a folder, got {name!r}.")
            for name in ("", ".", "..", "out/model", "..\\model", "/model", "a\0b")
        ),
        *(
            ("file_name", name, f"of the target mine must not be one of a run's own, got {name!r}.")
            for name in (
                "config.yaml", "journal.jsonl", "journal.f16", "plan.yaml", "outcome.json", "finetune.pt", "Plan.yaml",
                "policy.json", "policy.safetensors", "policy.mine", "tb", "config.next.yaml",
                ".lock",
            )
        ),
        *(
            ("weight_bits", bits, f"of the target mine {ASCENDING} {WEIGHTS}, got {bits}.")
            for bits in ((), (8, 4), (4, 4), (0, 8), (9,), (4, 64), 8)
        ),
        *(
            ("activation_bits", bits, f"of the target mine {ASCENDING} {ACTIVATIONS}, got {bits}.")
            for bits in ((), (32, 8), (8, 8), (3, 8), (16,))
        ),
        (
            "default_weight_bits", (4, 8),
            "of the target mine must be among its `weight_bits` (4, 32), got (4, 8).",
        ),
    ],
)  # fmt: skip
def test_a_target_that_is_not_possible_is_refused(field, value, message):
    with pytest.raises(InputError) as error:
        made(**{field: value})
    assert str(error.value) == (message if field == "name" else f"`{field}` {message}")


@pytest.mark.parametrize("name", ["model.safetensors", "model.onnx", "Model.ONNX", "model.bin"])
def test_a_target_from_outside_has_a_file_of_its_own(name):
    with pytest.raises(InputError) as error:
        TARGETS.register("mine", made(file_name=name))
    assert str(error.value) == (
        "`file_name` of the target mine must not be one that the package writes "
        "(model.safetensors, model.onnx, model.pt2, model_openvino.onnx, model.tflite, model.pte, model.xml, "
        f"model.bin), got {name!r}."
    )
    assert "mine" not in TARGETS


def test_unknown_target_lists_the_choices():
    with pytest.raises(InputError) as error:
        TARGETS.find("gpu")
    assert str(error.value) == "`target` must be one of executorch, litert, onnxruntime, openvino, packed, got 'gpu'."


def test_a_network_that_cannot_be_exported(counted):
    model, inputs = make("unfollowed")
    network = trace(model, inputs[:1])
    whole = uncompressed(fold_batch_norms(model, network), network)
    with pytest.raises(ExportError) as error:
        lowered_for(TARGETS["onnxruntime"], whole, inputs)
    start = "`model` must be a network that torch.export can follow: "
    assert str(error.value).startswith(start)
    assert str(error.value).endswith(". The target onnxruntime needs that; pass --target packed.")
    assert "\n" not in str(error.value)
    assert lowered_for(TARGETS["packed"], whole, inputs) is None


class UnfollowedSequence(nn.Sequential):
    """Its Python looks at values, so that files hold no graph: they are written in less time."""

    def forward(self, x):
        x = super().forward(x)
        return x * 2 if float(x.sum()) > 1e6 else x


def test_deep_networks_keep_to_the_counted_bytes():
    """40 layers whose labels all differ: the plan in the file is then hardest to compress."""
    rng = np.random.default_rng(1)
    widths = rng.choice([16, 24, 32, 40, 48, 56, 72], 41)
    torch.manual_seed(0)
    model = UnfollowedSequence(*(nn.Linear(int(a), int(b)) for a, b in itertools.pairwise(widths))).eval()
    inputs, target = torch.randn(64, int(widths[0])), TARGETS["packed"]
    network = trace(model, inputs[:1])
    settings = MenuSettings(
        weight_bits=(2, 4, 8), activation_bits=(4, 8), sparsity_levels=7, quantizer="nearest", criterion="l1"
    )
    menus = build_menus(model, network, inputs, settings, data_fingerprint="x", cache=None)
    folded = fold_batch_norms(model, network)
    menus, _ = counted_on_file(target, menus, folded, inputs)
    for seed in range(2, 10):
        labeling = drawn(menus, seed)
        content = target_file(target, from_menus(menus, labeling, folded), None, inputs)
        assert len(content) <= menus.problem().resources(labeling)["size"], seed
