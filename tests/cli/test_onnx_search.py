"""ONNX in, ONNX out: a search from a file to a verified file, and what the command says about wrong ones."""

import json
import logging
import warnings

import onnx
import pytest
import torch
from typer.testing import CliRunner

from autocompress.cli.main import app
from autocompress.models import load_model

QUICK = ["--search-samples", "64", "--calibration-samples", "64", "--sparsity-levels", "4", "--dtype", "float32",
         "--recalibration-samples", "64"]  # fmt: skip


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The trained digits network as an ONNX file; its names are such as the exporter itself likes to give."""
    path = tmp_path_factory.mktemp("files") / "digits.onnx"
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = {"input_names": ["a"], "output_names": ["relu"], "dynamic_axes": {"a": {0: "n"}, "relu": {0: "n"}}}
        torch.onnx.export(load_model("digits"), (torch.zeros(2, 1, 8, 8),), str(path), dynamo=False, **names)
    logging.disable(level)
    return path


def names(path):
    proto = onnx.load(path)
    return [value.name for value in (*proto.graph.input, *proto.graph.output)]


def test_from_a_file_to_a_verified_file_with_the_same_names(digits, tmp_path):
    folder, cache = tmp_path / "run", tmp_path / "cache"
    done = invoke(
        "search", digits, "--data", "digits", "--budget", "size=0.15", "--episodes", 6, "--out", folder,
        "--cache", cache, "--format", "json", *QUICK,
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    outcome = json.loads((folder / "outcome.json").read_text())
    assert [check["passed"] for check in outcome["checks"]] == [True] * 4
    assert (folder / "model.onnx").stat().st_size <= 0.15 * 153_300
    assert names(folder / "model.onnx") == names(digits) == ["a", "relu"]
    again = invoke("verify", folder)
    assert again.exit_code == 0, again.stderr
    (folder / "model.onnx").unlink()
    exported = invoke("export", folder, "--format", "onnx")
    assert exported.exit_code == 0, exported.stderr
    assert names(folder / "model.onnx") == ["a", "relu"]


def test_inspect_reads_a_file(digits):
    done = invoke("inspect", digits, "--data", "digits", "--format", "json")
    assert done.exit_code == 0, done.stderr
    assert "layer1.0.conv2" in done.stdout


def test_a_wrong_file_is_one_line(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"not a network")
    done = invoke(
        "search", tmp_path / "net.onnx", "--data", "digits", "--budget", "size=0.15", "--out", tmp_path / "run"
    )
    assert done.exit_code == 2
    path = tmp_path / "net.onnx"
    assert done.stderr.splitlines()[-1] == (
        f"autocompress: `model` must be an ONNX file, got {path}, which is truncated or of another format."
    )
