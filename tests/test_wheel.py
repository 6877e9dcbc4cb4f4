"""The wheel holds what the package needs and nothing else, and works where nothing of the tree is."""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"autocompress": ROOT / "autocompress", "autocompress_envs": ROOT / "envs" / "autocompress_envs"}
DATA = {
    "autocompress/models/digits_net.safetensors",
    "autocompress/policies/default/policy.json",
    "autocompress/policies/default/policy.safetensors",
    "autocompress/py.typed",
    *(
        f"autocompress/report/templates/{name}"
        for name in (
            "base.html",
            "comparison.html",
            "front.html",
            "live.html",
            "page.css",
            "page.js",
            "parts.html",
            "run.html",
        )
    ),
    "autocompress_envs/py.typed",
}
USED = """
import autocompress, torch
from autocompress.models import load_model
from autocompress.policies.files import load_policy
print(autocompress.__file__)
print(load_model("digits", None, {})(torch.zeros(1, 1, 8, 8)).shape, load_policy("default").name)
"""

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None, reason="hatchling, the build backend, is not installed"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the tree in which people have worked."""
    folder = tmp_path_factory.mktemp("wheel")
    left_out = shutil.ignore_patterns(".git", ".venv", "runs", "*.egg-info", ".*_cache")
    shutil.copytree(ROOT, folder / "tree", ignore=left_out, symlinks=True)
    for name in ("autocompress/__pycache__/old.pyc", "runs/mine/plan.yaml", "build/lib/autocompress/old.py"):
        (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "tree" / name).write_text("")
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder / "out", folder / "tree"]
    done = subprocess.run([sys.executable, "-m", "pip", *build], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (file,) = (folder / "out").glob("*.whl")
    return file


def test_it_holds_the_packages_with_their_data_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    metadata = {name for name in names if ".dist-info/" in name}
    sources = {
        f"{package}/{file.relative_to(folder).as_posix()}"
        for package, folder in PACKAGES.items()
        for file in folder.rglob("*.py")
    }
    assert names - metadata == sources | DATA
    kept = {name.split(".dist-info/")[1] for name in metadata}
    assert kept == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}


def test_it_works_where_nothing_of_the_tree_is(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    paths = [str(tmp_path / "installed")]  # before those of this environment, which may lead to the tree
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-c", USED], cwd=tmp_path, env=variables, capture_output=True, text=True, check=True
    )
    where, *rest = done.stdout.splitlines()
    assert Path(where).is_relative_to(tmp_path)
    assert rest == ["torch.Size([1, 10]) default"]
