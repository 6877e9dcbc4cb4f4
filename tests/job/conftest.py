"""A network of three layers, and plans applied to it; made once for all tests of finished runs."""

import shutil

import pytest
from run_toys import MODULE, PLAN, QUICK, trained
from safetensors.torch import save_file

import autocompress
from autocompress import Label, Plan


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs")
    (path / "tiny.py").write_text(MODULE)
    save_file(trained(), path / "tiny.safetensors")
    return path


@pytest.fixture(scope="session")
def spec(folder):
    return f"{folder / 'tiny.py'}:net"


@pytest.fixture(scope="session")
def quick(folder):
    return {**QUICK, "cache": folder / "cache", "weights": folder / "tiny.safetensors"}


@pytest.fixture(scope="session")
def made(folder, spec, quick):
    """A plan applied for ONNX Runtime, shared; nobody changes it."""
    finished = autocompress.apply(spec, plan=Plan(PLAN), out=folder / "made", budget="size=0.9", **quick)
    assert finished.verification.passed, finished.verification.failures()
    return finished


@pytest.fixture(scope="session")
def packed(folder, spec, quick):
    """The same for the target packed, with 3 bits."""
    plan = Plan({**PLAN, "second": Label(0.5, 3, 8)})
    finished = autocompress.apply(spec, plan=plan, out=folder / "packed", target="packed", **quick)
    assert finished.verification.passed, finished.verification.failures()
    return finished


@pytest.fixture
def run(made, tmp_path):
    """A copy of the applied plan, to be changed."""
    return shutil.copytree(made.run_folder, tmp_path / "run")


@pytest.fixture
def packed_run(packed, tmp_path):
    return shutil.copytree(packed.run_folder, tmp_path / "packed")
