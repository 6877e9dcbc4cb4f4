"""Policies on disk: bit-identical round trips, every refusal with its whole message, Stable-Baselines3 files."""

import hashlib
import json
import os
import pickle

import numpy as np
import pytest
import torch

import autocompress.policies.files as files
from autocompress.errors import InputError
from autocompress.policies.files import load_policy, save_policy
from autocompress.policies.network import PricePolicy
from autocompress.run.names import POLICY, POLICY_WEIGHTS
from autocompress_envs.observation import HIGH, LOW

RECORD = {"kinds": ["conv", "linear"], "networks": ["resnet20"], "scores": {"mixer": 0.81}, "licence": "Apache-2.0"}
ANEW = "train it anew with `autocompress train-policy`"


@pytest.fixture
def folder(tmp_path):
    save_policy(tmp_path / "mine", grown(PricePolicy("layer", 2, 8)), RECORD)
    return tmp_path / "mine"


def grown(policy, seed=0):
    """The policy with numbers at random in place of every tensor: an untrained one's prices are all 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in policy.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
        policy.deviation.abs_().add_(0.1)
    return policy.eval()


def observations(count=5, seed=0):
    return np.random.default_rng(seed).uniform(LOW, HIGH, (count, len(HIGH))).astype(np.float32)


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


@pytest.mark.parametrize(("network", "members", "width"), [("layer", 3, 8), ("sequence", 2, 16)])
def test_a_policy_comes_back_bit_for_bit(tmp_path, network, members, width):
    policy = grown(PricePolicy(network, members, width))
    save_policy(tmp_path / "deep" / "p", policy, RECORD)
    before = torch.random.get_rng_state()
    saved = load_policy(tmp_path / "deep" / "p")
    seen = torch.from_numpy(observations(12)).reshape(2, 6, -1)
    with torch.inference_mode():
        expected, prices = policy(seen), saved.policy(seen)
    assert torch.equal(prices, expected)
    assert float(expected.abs().min()) > 1e-4
    assert (saved.name, saved.record) == ("p", RECORD)
    assert (saved.policy.network, len(saved.policy.members), saved.policy.width) == (network, members, width)
    assert not saved.policy.training
    assert all(parameter.requires_grad for parameter in saved.policy.parameters())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_the_file_says(folder):
    content = json.loads((folder / POLICY).read_text())
    assert content == {
        "format": 1,
        "observation_version": 2,
        "action_version": 1,
        "network": "layer",
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
        save_policy(folder, grown(PricePolicy("layer", 2, 8), seed=1), RECORD)
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
        "turn a Stable-Baselines3 file into one with "
        f"`autocompress policy import {tmp_path / 'agent.ZIP'} --out FOLDER --trust`."
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
        (b"{}", "The file must be a policy of format 1, got another file, such as a run's own agent."),
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
        ("format", 2, f"`format` must be 1, got 2{OTHER}"),
        ("format", True, f"`format` must be 1, got true{OTHER}"),
        ("observation_version", 1, f"`observation_version` must be 2, got 1{OTHER}"),
        ("action_version", 2, f"`action_version` must be 1, got 2{OTHER}"),
        ("action_version", None, f"`action_version` must be 1, got null{OTHER}"),
        ("network", "lstm", "`network` must be one of layer, sequence, got 'lstm'."),
        ("network", 3, "`network` must be text, got 3."),
        ("members", 0, "`members` must be from 1 to 64, got 0."),
        ("members", 65, "`members` must be from 1 to 64, got 65."),
        ("members", 2.0, "`members` must be a whole number, got 2.0."),
        ("members", True, "`members` must be a whole number, got true."),
        ("width", -8, "`width` must be from 1 to 512, got -8."),
        ("width", 10**100, f"`width` must be from 1 to 512, got 1{'0' * 79}…."),
        ("width", "8", '`width` must be a whole number, got "8".'),
        ("kinds", "conv", '`kinds` must be a list, got "conv".'),
        ("kinds", [], "`kinds` must be a list of some of conv, depthwise, linear, got []."),
        ("kinds", ["gru"], "`kinds` must be a list of some of conv, depthwise, linear, got ['gru']."),
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


def test_a_sequence_needs_a_width_for_its_heads(folder):
    edit(folder, network="sequence", width=10)
    assert refusal(folder) == f"{folder / POLICY}: `width` of a sequence network must be a multiple of 4, got 10."


@pytest.mark.parametrize("field", ["network", "members", "width", "kinds", "sha256", "record", "observation_version"])
def test_fields_that_are_missing(folder, field):
    content = json.loads((folder / POLICY).read_text())
    del content[field]
    (folder / POLICY).write_text(json.dumps(content))
    rule = {"network": "text", "sha256": "text", "members": "a whole number", "width": "a whole number",
            "kinds": "a list", "record": "a mapping", "observation_version": "2"}[field]  # fmt: skip
    end = OTHER if field == "observation_version" else "."
    assert refusal(folder) == f"{folder / POLICY}: `{field}` must be {rule}, got nothing{end}"


HEAD = "members.1.head.bias"


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
        (lambda state: state["deviation"].fill_(0.0), "The tensor deviation must be above 0, got 0."),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(folder, change, message):
    rewrite_weights(folder, change)
    assert refusal(folder) == f"{folder / POLICY_WEIGHTS}: {message}"


def test_a_shape_that_the_weights_lack_costs_no_memory(folder, monkeypatch):
    devices = []

    def made(*shape):
        devices.append(torch.get_default_device().type)
        return PricePolicy(*shape)

    monkeypatch.setattr(files, "PricePolicy", made)
    edit(folder, network="sequence", members=64, width=512)  # 540 MB, were it made
    assert refusal(folder) == (
        f"{folder / POLICY_WEIGHTS}: The weights must be what policy.json says, "
        "got them without members.0.attend.linear1.bias."
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

    small = PricePolicy("layer", 1, 4)
    assert refused(small, {}) == "`kinds` must be a list of some of conv, depthwise, linear, got nothing."
    assert refused(small, {**RECORD, "at": {1}}) == (
        "`record` must be JSON data, got: Object of type set is not JSON serializable."
    )
    assert refused(small, {**RECORD, "at": float("nan")}).startswith(
        "`record` must be JSON data, got: Out of range float"
    )
    assert refused(PricePolicy("layer", 1, 513), RECORD) == "`width` must be from 1 to 512, got 513."
    assert refused(PricePolicy("layer", 16, 512), RECORD).startswith(
        "A policy's file must have at most 16,777,216 bytes, got 18,"  # 16 x 287,746 x 4 bytes, and names
    )
    small.mean.fill_(torch.nan)
    assert refused(small, RECORD) == "The tensor mean must be finite, got NaN or infinity."
    (tmp_path / "file").touch()
    assert refused(PricePolicy("layer", 1, 4), RECORD, tmp_path / "file") == (
        f"`folder` must be a folder, got {tmp_path / 'file'}, which is a file."
    )


# Stable-Baselines3
