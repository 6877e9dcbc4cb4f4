"""Plans: what a label may be, files that come back as they were, and messages for plans edited wrongly."""

import json

import pytest
import yaml

from autocompress import InputError, Label, Plan

LABELS = {
    "conv1": Label(0.0, 8, 8),
    "layer1.0.conv1": Label(0.875, 2, 4),
    "layer1.1.conv1": Label(1.0, 2, 4),
    "low": Label(0.125, 4, 8, 16),
    **{f"bits{bits}": Label(0.1, bits, 8) for bits in (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)},
    **{f"activations{bits}": Label(1 / 3, 4, bits) for bits in (4, 5, 6, 7, 8, 32)},
}


@pytest.mark.parametrize("name", ["plan.yaml", "plan.json"])
@pytest.mark.parametrize("granularity", ["channel", "element", "2:4"])
def test_file_round_trip_keeps_every_label_value(tmp_path, name, granularity):
    plan = Plan(LABELS, granularity, "0123abcd")
    plan.save(tmp_path / name)
    loaded = Plan.load(tmp_path / name)
    assert loaded == plan
    assert list(loaded.labels) == list(LABELS)


def test_file_formats_follow_the_name(tmp_path):
    plan = Plan({"fc": Label(0.5, 4, 8)})
    plan.save(tmp_path / "plan.json")
    plan.save(tmp_path / "plan.yaml")
    expected = {
        "version": 1,
        "granularity": "channel",
        "fingerprint": "",
        "labels": {"fc": {"sparsity": 0.5, "weight_bits": 4, "activation_bits": 8}},
    }
    assert json.loads((tmp_path / "plan.json").read_text()) == expected
    assert yaml.safe_load((tmp_path / "plan.yaml").read_text()) == expected
    assert (tmp_path / "plan.yaml").read_text() == plan.to_yaml()


def test_a_label_leaves_out_what_it_does_not_change(tmp_path):
    (tmp_path / "plan.yaml").write_text("version: 1\nlabels: {fc: {weight_bits: 4}, head: {}}\n")
    assert Plan.load(tmp_path / "plan.yaml") == Plan({"fc": Label(0.0, 4, 32), "head": Label(0.0, 32, 32)})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sparsity": 1.1}, "`sparsity` must be in [0, 1], got 1.1."),
        ({"sparsity": -0.1}, "`sparsity` must be in [0, 1], got -0.1."),
        ({"sparsity": float("nan")}, "`sparsity` must be in [0, 1], got nan."),
        ({"weight_bits": 9}, "`weight_bits` must be 1 to 8, 16 or 32, got 9."),
        ({"weight_bits": 0}, "`weight_bits` must be 1 to 8, 16 or 32, got 0."),
        ({"activation_bits": 3}, "`activation_bits` must be 4 to 8 or 32, got 3."),
        ({"activation_bits": 16}, "`activation_bits` must be 4 to 8 or 32, got 16."),
    ],
)
def test_label_rules(values, message):
    with pytest.raises(InputError) as error:
        Label(**values)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "A plan must be a mapping with a key `labels`, got a list."),
        ("version: 1", "A plan must be a mapping with a key `labels`, got a mapping without it."),
        ("labels: {}", "`version` of the plan must be 1 or 2, got None."),
        ("version: 3\nlabels: {}", "`version` of the plan must be 1 or 2, got 3."),
        (
            "version: 1\nlayers: {}\nlabels: {}",
            "The plan has unknown keys layers; known: fingerprint, granularity, labels, version.",
        ),
        (
            "version: 1\nlabels: {fc: {bits: 4}}",
            "The label of layer fc has unknown keys bits; known: activation_bits, rank, sparsity, weight_bits.",
        ),
        ("version: 1\nlabels: {fc: 4}", "The label of layer fc must be a mapping, got 4."),
        (
            "version: 1\nlabels: {fc: {weight_bits: four}}",
            "The label of layer fc must hold numbers only, got {'weight_bits': 'four'}.",
        ),
        (
            "version: 1\nlabels: {fc: {weight_bits: 11}}",
            "Layer fc: `weight_bits` must be 1 to 8, 16 or 32, got 11.",
        ),
    ],
)
def test_wrong_plan_files(tmp_path, text, message):
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(InputError) as error:
        Plan.load(tmp_path / "plan.yaml")
    assert str(error.value) == f"{tmp_path / 'plan.yaml'}: {message}"


def test_missing_and_malformed_files_are_named(tmp_path):
    with pytest.raises(InputError) as missing:
        Plan.load(tmp_path / "none.yaml")
    assert (
        str(missing.value)
        == f"`plan` must be a readable file, got {tmp_path / 'none.yaml'}: No such file or directory."
    )
    (tmp_path / "bad.yaml").write_text("labels: {")
    with pytest.raises(InputError) as malformed:
        Plan.load(tmp_path / "bad.yaml")
    rule = f"`plan` must be YAML or JSON, got {tmp_path / 'bad.yaml'}, line 1"
    assert str(malformed.value) == f"{rule}: expected the node content, but found '<stream end>'."
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\x00")
    with pytest.raises(InputError) as binary:
        Plan.load(tmp_path / "bytes.yaml")
    assert str(binary.value) == f"`plan` must be a text file, got {tmp_path / 'bytes.yaml'}, which is not UTF-8."


def test_plans_without_a_rank_are_as_they_were(tmp_path):
    """Version 1 and no rank; where one layer has one, version 2, and the rank at that layer alone."""
    plain = Plan({"fc": Label(0.5, 4, 8)})
    assert plain.to_dict()["version"] == 1
    assert plain.to_dict()["labels"] == {"fc": {"sparsity": 0.5, "weight_bits": 4, "activation_bits": 8}}
    low = Plan({"fc": Label(0.5, 4, 8), "head": Label(0.0, 8, 8, 12)})
    assert low.to_dict()["version"] == 2
    assert low.to_dict()["labels"]["head"] == {"sparsity": 0.0, "weight_bits": 8, "activation_bits": 8, "rank": 12}
    assert low.to_dict()["labels"]["fc"] == plain.to_dict()["labels"]["fc"]
    assert Plan.from_dict(low.to_dict()) == low
    assert list(low.modules()) == ["fc", "head.0", "head.1"]


@pytest.mark.parametrize("rank", [-1, 2.0, True])
def test_a_rank_is_a_whole_number(rank):
    with pytest.raises(InputError) as error:
        Label(rank=rank)
    assert str(error.value) == f"`rank` must be a whole number of at least 0, got {rank}."
    with pytest.raises(InputError) as error:
        Label(sparsity=1.0, rank=3)
    assert str(error.value) == "`rank` must be 0 at sparsity 1, which leaves no weight, got 3."
