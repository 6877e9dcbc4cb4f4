"""Policies on disk: bit-identical round trips, every refusal with its whole message."""

import hashlib
import json
import os
import pickle

import pytest
import torch
from policy_toys import grown, observations

import autocompress.policies.files as files
from autocompress.errors import InputError
from autocompress.policies.files import load_policy, save_policy
from autocompress.policies.network import LabelPolicy
from autocompress.run.names import POLICY, POLICY_WEIGHTS

RECORD = {"kinds": ["conv", "linear"], "networks": ["resnet20"], "scores": {"mixer": 0.81}, "licence": "Apache-2.0"}
KINDS = "conv, depthwise, linear, embedding, recurrent, transposed"
ANEW = "train it anew with `autocompress train-policy`"


@pytest.fixture
def folder(tmp_path):
    save_policy(tmp_path / "mine", grown(LabelPolicy(2, 8)), RECORD)
    return tmp_path / "mine"


def refusal(where):
    with pytest.raises(InputError) as caught:
        load_policy(where)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(folder, **changes):
    content = json.loads((folder / POLICY).read_text())
    (folder / POLICY).write_text(json.dumps({**content, **changes}))


def replace_weights(folder, raw):
    """Weights with the right checksum, whatever they are."""
    (folder / POLICY_WEIGHTS).write_bytes(raw)
    edit(folder, sha256=hashlib.sha256(raw).hexdigest())


def rewrite_weights(folder, change):
    state = load_policy(folder).policy.state_dict()
    change(state)
    replace_weights(folder, files.save(state))


@pytest.mark.parametrize(("members", "width"), [(3, 8), (1, 16)])
def test_a_policy_comes_back_bit_for_bit(tmp_path, members, width):
    policy = grown(LabelPolicy(members, width))
    save_policy(tmp_path / "deep" / "p", policy, RECORD)
    before = torch.random.get_rng_state()
    saved = load_policy(tmp_path / "deep" / "p")
    seen = observations(2)
    with torch.inference_mode():
        expected, said = policy(seen), saved.policy(seen)
    for name in ("logits", "values", "prices"):
        assert torch.equal(getattr(said, name), getattr(expected, name))
        assert float(getattr(expected, name).abs().min()) > 1e-4
    assert (saved.name, saved.record) == ("p", RECORD)
    assert (len(saved.policy.members), saved.policy.width) == (members, width)
    assert not saved.policy.training
    assert all(parameter.requires_grad for parameter in saved.policy.parameters())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_the_file_says(folder):
    content = json.loads((folder / POLICY).read_text())
    assert content == {
        "format": 2,
        "observation_version": 1,
        "action_version": 2,
        "members": 2,
        "width": 8,
        "kinds": ["conv", "linear"],
        "sha256": hashlib.sha256((folder / POLICY_WEIGHTS).read_bytes()).hexdigest(),
        "record": {"networks": ["resnet20"], "scores": {"mixer": 0.81}, "licence": "Apache-2.0"},
    }
    assert sorted(os.listdir(folder)) == ["policy.json", "policy.safetensors"]


def test_the_folder_and_either_file_name_the_policy(folder):
    weights = load_policy(folder).policy.state_dict()
    for where in (str(folder), folder / POLICY, str(folder / POLICY_WEIGHTS)):
        saved = load_policy(where)
        assert saved.name == "mine"
        assert all(torch.equal(weights[name], tensor) for name, tensor in saved.policy.state_dict().items())


def test_default_is_the_shipped_policy(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_SHIPPED", folder)
    assert load_policy("default").name == "default"
    monkeypatch.setattr(files, "_SHIPPED", tmp_path / "none")
    assert refusal("default") == (
        "`policy` must be a folder, got default, which this installation lacks; "
        "train one with `autocompress train-policy`."
    )


def test_a_kill_between_the_two_files_is_seen(folder, monkeypatch):
    def killed(path, content):
        if path.name == POLICY:
            raise KeyboardInterrupt
        path.write_bytes(content)

    monkeypatch.setattr(files, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        save_policy(folder, grown(LabelPolicy(2, 8), seed=1), RECORD)
    assert refusal(folder) == (
        f"{folder / POLICY_WEIGHTS}: The weights must have the checksum in policy.json, got others: damaged, or a kill "
        f"came between the two files; {ANEW}."
    )


def test_places_without_a_policy(tmp_path, folder):
    assert refusal(tmp_path / "none") == (
        f"`policy` must be default or an existing folder or file, got {tmp_path / 'none'}."
    )
    (tmp_path / "other.json").write_text("{}")
    assert refusal(tmp_path / "other.json") == (
        f"`policy` must be a folder, its policy.safetensors or its policy.json, got {tmp_path / 'other.json'}."
    )
    assert refusal(tmp_path / "agent.ZIP") == (
        f"`policy` must be a folder with policy.safetensors and policy.json, got {tmp_path / 'agent.ZIP'}; "
        "write an agent of Stable-Baselines3 as such a folder with `save_policy` (see docs/policies.md)."
    )
    for name in (POLICY, POLICY_WEIGHTS):
        (folder / name).rename(folder / "away")
        assert refusal(folder) == (
            f"`policy` must be a folder with policy.safetensors and policy.json, got {folder} without {name}."
        )
        (folder / "away").rename(folder / name)


@pytest.mark.parametrize("damage", [lambda raw: raw[:-7], lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), lambda raw: b""])
def test_damaged_weights(folder, damage):
    (folder / POLICY_WEIGHTS).write_bytes(damage((folder / POLICY_WEIGHTS).read_bytes()))
    assert refusal(folder) == (
        f"{folder / POLICY_WEIGHTS}: The weights must have the checksum in policy.json, got others: damaged, or a kill "
        f"came between the two files; {ANEW}."
    )


@pytest.mark.parametrize("name", [POLICY_WEIGHTS, POLICY])
def test_files_beyond_the_limit_are_not_read(folder, monkeypatch, name):
    def read(path):
        assert path.name != name, "read before its size was looked at"
        return path.open("rb").read()

    monkeypatch.setattr(files.Path, "read_bytes", read)
    os.truncate(folder / name, 16 * 2**20 + 1)
    assert refusal(folder) == f"{folder / name}: A policy's file must have at most 16,777,216 bytes, got 16,777,217."


@pytest.mark.parametrize(
    ("text", "got"),
    [
        (b'{"format": 1', "The file must be JSON, got: Expecting ',' delimiter: line 1 column 13 (char 12)."),
        (b"", "The file must be JSON, got: Expecting value: line 1 column 1 (char 0)."),
        (b"{\xff", "The file must be JSON, got: 'utf-8' codec can't decode byte 0xff in position 1: "
         "invalid start byte."),
        (b'{"format": NaN}', "The file must be JSON, got: NaN is no finite number."),
        (b'{"format": 1e999}', "The file must be JSON, got: 1e999 is no finite number."),
        (b"[1, 2]", "The file must hold a mapping, got [1, 2]."),
        (b"{}", "The file must be a policy of format 2, got another file, such as a run's own agent."),
    ],
)  # fmt: skip
def test_files_that_are_no_policy(folder, text, got):
    (folder / POLICY).write_bytes(text)
    assert refusal(folder) == f"{folder / POLICY}: {got}"


def test_json_nested_without_end(folder):
    (folder / POLICY).write_bytes(b"[" * 100_000)
    assert refusal(folder) == f"{folder / POLICY}: The file must be JSON, got: it is nested too deeply."


OTHER = f"; {ANEW}, or use the autocompress that made it."


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", 1, f"`format` must be 2, got 1{OTHER}"),  # a policy for version 0 of the environment
        ("format", True, f"`format` must be 2, got true{OTHER}"),
        ("observation_version", 2, f"`observation_version` must be 1, got 2{OTHER}"),
        ("action_version", 1, f"`action_version` must be 2, got 1{OTHER}"),
        ("action_version", None, f"`action_version` must be 2, got null{OTHER}"),
        ("members", 0, "`members` must be from 1 to 64, got 0."),
        ("members", 65, "`members` must be from 1 to 64, got 65."),
        ("members", 2.0, "`members` must be a whole number, got 2.0."),
        ("members", True, "`members` must be a whole number, got true."),
        ("width", -8, "`width` must be from 1 to 512, got -8."),
        ("width", 10**100, f"`width` must be from 1 to 512, got 1{'0' * 79}…."),
        ("width", 10, "`width` must be a multiple of 4, got 10."),
        ("width", "8", '`width` must be a whole number, got "8".'),
        ("kinds", "conv", '`kinds` must be a list, got "conv".'),
        ("kinds", [], f"`kinds` must be a list of some of {KINDS}, got []."),
        ("kinds", ["gru"], f"`kinds` must be a list of some of {KINDS}, got ['gru']."),
        ("sha256", None, "`sha256` must be text, got null."),
        ("record", [1], "`record` must be a mapping, got [1]."),
    ],
)
def test_fields_that_are_wrong(folder, field, value, message):
    edit(folder, **{field: value})
    assert refusal(folder) == f"{folder / POLICY}: {message}"


def test_kinds_of_the_record_are_not_taken_for_the_checked_ones(folder):
    edit(folder, record={"kinds": ["gru"], "licence": "MIT"})
    assert load_policy(folder).record == {"kinds": ["conv", "linear"], "licence": "MIT"}


@pytest.mark.parametrize("field", ["members", "width", "kinds", "sha256", "record", "observation_version"])
def test_fields_that_are_missing(folder, field):
    content = json.loads((folder / POLICY).read_text())
    del content[field]
    (folder / POLICY).write_text(json.dumps(content))
    rule = {"sha256": "text", "members": "a whole number", "width": "a whole number",
            "kinds": "a list", "record": "a mapping", "observation_version": "1"}[field]  # fmt: skip
    end = OTHER if field == "observation_version" else "."
    assert refusal(folder) == f"{folder / POLICY}: `{field}` must be {rule}, got nothing{end}"


HEAD = "members.1.price.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(HEAD), f"The weights must be what policy.json says, got them without {HEAD}."),
        (lambda state: state.update(x=torch.ones(1)), "The weights must be what policy.json says, got them with x."),
        (lambda state: state.update({HEAD: torch.ones(3)}), f"The tensor {HEAD} must be F32 [2], got F32 [3]."),
        (lambda state: state.update({HEAD: torch.ones(0)}), f"The tensor {HEAD} must be F32 [2], got F32 [0]."),
        (lambda state: state.update({HEAD: torch.ones(2).half()}), f"The tensor {HEAD} must be F32 [2], got F16 [2]."),
        (lambda state: state[HEAD].fill_(torch.nan), f"The tensor {HEAD} must be finite, got NaN or infinity."),
        (lambda state: state[HEAD].fill_(torch.inf), f"The tensor {HEAD} must be finite, got NaN or infinity."),
        (
            lambda state: state["deviation_options"].fill_(0.0),
            "The tensor deviation_options must be above 0, got 0.",
        ),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(folder, change, message):
    rewrite_weights(folder, change)
    assert refusal(folder) == f"{folder / POLICY_WEIGHTS}: {message}"


def test_a_shape_that_the_weights_lack_costs_no_memory(folder, monkeypatch):
    devices = []

    def made(*shape):
        devices.append(torch.get_default_device().type)
        return LabelPolicy(*shape)

    monkeypatch.setattr(files, "LabelPolicy", made)
    edit(folder, members=64, width=512)  # 1.4 GB, were it made
    assert refusal(folder) == (
        f"{folder / POLICY_WEIGHTS}: The weights must be what policy.json says, got them without "
        "members.10.attend.layers.0.linear1.bias."
    )
    assert devices == ["meta"]


def test_weights_that_are_a_pickle(folder):
    replace_weights(folder, pickle.dumps({"mean": 1}))
    assert refusal(folder).startswith(f"{folder / POLICY_WEIGHTS}: The file must be a safetensors file, got: ")


def test_what_can_not_be_loaded_is_not_saved(tmp_path):
    def refused(policy, record, folder=tmp_path / "new"):
        with pytest.raises(InputError) as caught:
            save_policy(folder, policy, record)
        assert not (tmp_path / "new").exists()
        return str(caught.value)

    small = LabelPolicy(1, 4)
    assert refused(small, {}) == f"`kinds` must be a list of some of {KINDS}, got nothing."
    assert refused(small, {**RECORD, "at": {1}}) == (
        "`record` must be JSON data, got: Object of type set is not JSON serializable."
    )
    assert refused(small, {**RECORD, "at": float("nan")}).startswith(
        "`record` must be JSON data, got: Out of range float"
    )
    assert refused(LabelPolicy(1, 516), RECORD) == "`width` must be from 1 to 512, got 516."
    assert refused(LabelPolicy(1, 512), RECORD).startswith(
        "A policy's file must have at most 16,777,216 bytes, got 23,"  # 5.9 million numbers of 4 bytes
    )
    small.mean_layers.fill_(torch.nan)
    assert refused(small, RECORD) == "The tensor mean_layers must be finite, got NaN or infinity."
    (tmp_path / "file").touch()
    assert refused(LabelPolicy(1, 4), RECORD, tmp_path / "file") == (
        f"`folder` must be a folder, got {tmp_path / 'file'}, which is a file."
    )
