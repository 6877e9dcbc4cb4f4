"""`autocompress policy show` and `policy import`: streams, exit codes, whole messages."""

import json
import subprocess
import sys

import pytest
import torch
from stable_baselines3 import PPO
from typer.testing import CliRunner

from autocompress.cli.main import app
from autocompress.policies.files import load_policy, save_policy
from autocompress.policies.network import PricePolicy
from autocompress.run.names import POLICY, POLICY_WEIGHTS
from autocompress_envs.environment import LayerLabelingEnv
from autocompress_envs.testing import TOY_LIMITS, toy_problem

RECORD = {
    "kinds": ["conv", "linear"],
    "networks": ["resnet8", "vgg"],
    "scores": {"resnet20": {"kl_ratio": 0.81}},
    "episodes": 12000,
    "author": "\x1b[31m\ud800",
}


@pytest.fixture
def folder(tmp_path):
    save_policy(tmp_path / "mine", PricePolicy("layer", 2, 8), RECORD)
    return tmp_path / "mine"


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    env = LayerLabelingEnv(*toy_problem(), TOY_LIMITS)
    model = PPO("MlpPolicy", env, n_steps=4, batch_size=4, device="cpu", policy_kwargs={"net_arch": [8, 8]}, seed=0)
    file = tmp_path_factory.mktemp("agent") / "agent.zip"
    model.save(file)
    return file


def invoke(*arguments):
    return CliRunner().invoke(app, ["policy", *map(str, arguments)])


def run(*arguments):
    command = [sys.executable, "-c", "from autocompress.cli.main import main; main()", "policy", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_show_as_json(folder):
    done = invoke("show", folder, "--format", "json")
    assert (done.exit_code, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {
        "name": "mine",
        "folder": str(folder),
        "network": "layer",
        "members": 2,
        "width": 8,
        "parameters": 932,  # 2 x (46 x 8 + 8, 8 x 8 + 8, 8 x 2 + 2)
        "file_bytes": (folder / POLICY).stat().st_size + (folder / POLICY_WEIGHTS).stat().st_size,
        "observation_version": 2,
        "action_version": 1,
        "record": RECORD,
    }


def test_show_as_a_table(folder):
    done = invoke("show", folder / POLICY)
    assert done.exit_code == 0
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in done.stdout.splitlines() if "│" in line]
    assert dict(rows) == {
        "name": "mine",
        "folder": str(folder),
        "network": "layer",
        "members": "2",
        "width": "8",
        "parameters": "932",
        "file bytes": f"{sum((folder / name).stat().st_size for name in (POLICY, POLICY_WEIGHTS)):,}",
        "observation version": "2",
        "action version": "1",
        "networks": "resnet8, vgg",
        "scores.resnet20.kl_ratio": "0.81",
        "licence": "not recorded",
        "kinds": "conv, linear",
        "episodes": "12,000",
        "author": r"\x1b[31m\ud800",
    }


def test_show_a_damaged_file(folder):
    raw = (folder / POLICY_WEIGHTS).read_bytes()
    (folder / POLICY_WEIGHTS).write_bytes(raw[:-1])
    assert run("show", folder) == (
        2,
        "",
        f"autocompress: {folder / POLICY_WEIGHTS}: The weights must have the checksum in policy.json, got others: "
        "damaged, or a kill came between the two files; train it anew with `autocompress train-policy`.\n",
    )


def test_import_needs_trust(tmp_path, agent):
    assert run("import", agent, "--out", tmp_path / "out") == (
        2,
        "",
        f"autocompress: `trust` must be given to import {agent}: it may hold pickled code, which is run; "
        "pass --trust only for files of your own.\n",
    )
    assert not (tmp_path / "out").exists()


def test_import_shows_what_it_made(tmp_path, agent):
    done = invoke("import", agent, "--out", tmp_path / "out", "--price-scale", "3", "--trust", "--format", "json")
    assert (done.exit_code, done.stderr) == (0, "")
    shown = json.loads(done.stdout)
    assert (shown["name"], shown["parameters"], shown["record"]["price_scale"]) == ("out", 466, 3.0)
    head = PPO.load(agent, device="cpu").policy.action_net.weight
    assert torch.equal(load_policy(tmp_path / "out").policy.members[0].head.weight, 3.0 * head)


def test_import_into_a_folder_named_like_the_shipped_policy(tmp_path, agent, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke("import", agent, "--out", "default", "--trust", "--format", "json")
    assert (done.exit_code, done.stderr) == (0, "")
    shown = json.loads(done.stdout)
    assert (shown["folder"], shown["parameters"]) == ("default", 466)


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("--price-scale", "two", "`price_scale` must be a number, got 'two'."),
        ("--price-scale", "-1", "`price_scale` must be above 0 and below 20, got -1."),
        ("--format", "xml", "`format` must be 'table' or 'json', got 'xml'."),
    ],
)
def test_wrong_options_leave_nothing_behind(tmp_path, agent, option, text, message):
    done = invoke("import", agent, "--out", tmp_path / "out", "--trust", option, text)
    assert (done.exit_code, done.stdout, done.stderr) == (2, "", f"autocompress: {message}\n")
    assert not (tmp_path / "out").exists()
