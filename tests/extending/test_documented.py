"""docs/extending.md, run as it stands there: its blocks are one module of a package that is installed beside ours."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import autocompress
from autocompress.extensions import AGENTS, CRITERIA, REWARDS, SEARCHERS, TARGETS
from autocompress.tasks import TASKS
from autocompress.testing import check_criterion, check_reward, check_searcher, check_target, check_task

ROOT = Path(__file__).parents[2]
QUICK = {
    "search_samples": 64, "calibration_samples": 64, "selection_samples": 0, "sparsity_levels": 4, "dtype": "float32",
    "recalibration_samples": 64, "episodes": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder on the path, as pip would leave it: the module, and metadata that names it as a plugin."""
    folder = tmp_path_factory.mktemp("site")
    text = (ROOT / "docs" / "extending.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    (folder / "my_compression.py").write_text("\n\n".join(blocks))
    metadata = folder / "my_compression-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-compression\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[autocompress.plugins]\nmine = my_compression\n")
    return folder


@pytest.fixture(scope="module")
def module(site):
    """The module, imported here; what it registered is gone afterwards."""
    sys.path.insert(0, str(site))
    try:
        import my_compression

        yield my_compression
    finally:
        sys.path.remove(str(site))
        for registry in (CRITERIA, REWARDS, SEARCHERS, TARGETS, AGENTS, TASKS):
            for name in registry.from_outside():
                registry.unregister(name)
        sys.modules.pop("my_compression", None)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_each_block_is_under_sixty_lines():
    text = (ROOT / "docs" / "extending.md").read_text()
    assert max(block.count("\n") for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)) < 60


def test_the_documented_entries_pass_their_checks(module):
    check_criterion(module.by_largest_weight)
    check_reward(module.frugal)
    check_searcher(module.random_weights)
    check_target(TARGETS["boxed"])
    check_target(TARGETS["layers-only"])
    depths = 1 + torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    check_task(TASKS["depth"], [depths], torch.zeros(6, 3, 8, 8), depths * 1.1)


def test_a_whole_search_with_all_of_them(module, cache, tmp_path):
    result = autocompress.search(
        budget="size=0.1", criterion="largest-weight", method="random-weights", target="boxed", out=tmp_path / "run",
        cache=cache, **QUICK,
    )  # fmt: skip
    assert result.evaluations == 4
    assert result.verification.passed, result.verification.failures()
    assert result.verification.runtime.runtime == "BoxRuntime"
    file = tmp_path / "run" / "model.box"
    assert file.read_bytes().startswith(b"BOXED1\n")
    assert file.stat().st_size == result.outcome.resources["size"] <= result.limits["size"]
    assert autocompress.verify(tmp_path / "run").passed


def test_a_function_is_a_method(module, cache, tmp_path):
    """The same plans as under its registered name; the run says which function it was."""
    options = {**QUICK, "budget": "size=0.1", "target": "packed", "cache": cache}
    by_name = autocompress.search(method="random-weights", out=tmp_path / "a", **options)
    by_function = autocompress.search(method=module.random_weights, out=tmp_path / "b", **options)
    assert by_function.plan == by_name.plan
    assert "method: my_compression:random_weights\n" in (tmp_path / "b" / "config.yaml").read_text()
    resumed = autocompress.search(method=module.random_weights, out=tmp_path / "b", resume=True, **options)
    assert resumed.plan == by_name.plan


def test_the_command_line_finds_them(site, cache, tmp_path):
    """In a process of its own, where nobody imported the module."""
    command = [
        sys.executable, "-m", "autocompress", "search", "--budget", "size=0.1", "--criterion", "largest-weight",
        "--agent", "posterior-ppo", "--reward", "frugal", "--target", "boxed", "--out", str(tmp_path / "run"),
        "--cache", str(cache), "--format", "json", "--quiet",
        *(part for name, value in QUICK.items() for part in (f"--{name.replace('_', '-')}", str(value))),
    ]  # fmt: skip
    path = os.pathsep.join([str(site), str(ROOT), str(ROOT / "envs"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["verified"]
    assert found["runtime"]["name"] == "BoxRuntime"
    again = subprocess.run(
        [*command[:3], "verify", str(tmp_path / "run"), "--quiet"],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
