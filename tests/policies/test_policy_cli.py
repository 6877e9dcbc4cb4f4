"""`autocompress policy show`: streams, exit codes, whole messages."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from autocompress.cli.main import app
from autocompress.policies.files import save_policy
from autocompress.policies.network import LabelPolicy
from autocompress.run.names import POLICY, POLICY_WEIGHTS

RECORD = {
    "kinds": ["conv", "linear"],
    "networks": ["resnet8", "vgg"],
    "scores": {"resnet20": {"kl_ratio": 0.81}},
    "episodes": 12000,
    "author": "\x1b[31m\ud800",
}


# layers, two blocks of attention (q, k, v; out; two linears; two norms) and a norm, context, state, options, score,
# value, price, sharpness; each (inputs + 1) x outputs
_BLOCK = 9 * 24 + 9 * 8 + 9 * 16 + 17 * 8 + 4 * 8
PARAMETERS = 38 * 8 + 2 * _BLOCK + 2 * 8 + 30 * 8 + (33 * 8 + 9 * 8) + 29 * 8 + (9 * 8 + 9) + 9 + 9 * 2 + 1


@pytest.fixture
def folder(tmp_path):
    save_policy(tmp_path / "mine", LabelPolicy(2, 8), RECORD)
    return tmp_path / "mine"


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
        "members": 2,
        "width": 8,
        "parameters": 2 * PARAMETERS,
        "file_bytes": (folder / POLICY).stat().st_size + (folder / POLICY_WEIGHTS).stat().st_size,
        "observation_version": 1,
        "action_version": 2,
        "record": RECORD,
    }


def test_show_as_a_table(folder):
    done = invoke("show", folder / POLICY)
    assert done.exit_code == 0
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in done.stdout.splitlines() if "│" in line]
    assert dict(rows) == {
        "name": "mine",
        "folder": str(folder),
        "members": "2",
        "width": "8",
        "parameters": f"{2 * PARAMETERS:,}",
        "file bytes": f"{sum((folder / name).stat().st_size for name in (POLICY, POLICY_WEIGHTS)):,}",
        "observation version": "1",
        "action version": "2",
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
