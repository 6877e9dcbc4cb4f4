"""Scripts of benchmarks/ take hours: what they import exists; configurations name the files that they need."""

import ast
import hashlib
import importlib
import re
from pathlib import Path

import pytest
import yaml

from autocompress.files import strict_json

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
FILE_LINE = re.compile(r"^#   ([0-9a-f]{64})  (\S+)$", re.MULTILINE)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_what_a_script_imports_of_the_package_exists(path):
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    names = [(node.module, alias.name) for node in nodes for alias in node.names if node.module]
    ours = [(module, name) for module, name in names if module.partition(".")[0].startswith("autocompress")]
    missing = [f"{module}.{name}" for module, name in ours if not hasattr(importlib.import_module(module), name)]
    assert missing == []
    assert nodes


def needed(content):
    """Every file, or folder of files, that a configuration names and that does not come with the package."""
    if isinstance(content, dict):
        for name, value in content.items():
            if name == "weights":
                yield value
            elif isinstance(value, str) and value.partition(":")[0] in ("parquet", "npz", "imagefolder", "tsv"):
                yield value.partition(":")[2]
            else:
                yield from needed(value)
    elif isinstance(content, list):
        for value in content:
            yield from needed(value)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_configuration_names_the_files_that_it_needs_with_their_checksums(path):
    head = path.read_text().partition("\n\n")[0]
    listed = dict(reversed(line) for line in FILE_LINE.findall(head))
    for name in set(needed(yaml.safe_load(path.read_text()))):
        stem = Path(name).stem
        assert any(file == name or file.startswith((f"{name}/", f"{stem}/", f"{stem}-")) for file in listed) or (
            f" {stem}/" in head  # of other checksums
        ), name
    for file, checksum in listed.items():
        if (ROOT / file).is_file():
            assert hashlib.sha256((ROOT / file).read_bytes()).hexdigest() == checksum


def test_the_page_of_architectures_is_that_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    page, zoo = importlib.import_module("architectures_page"), importlib.import_module("architectures_zoo")
    data = strict_json(page.DATA.read_bytes())
    assert page.page(data, zoo.KINDS) == page.PAGE.read_text()
    assert set(data) <= set(zoo.ARCHITECTURES)
    assert list(data) == [name for name in data if ("line" in data[name]) != ("verified" in data[name])]
    rows = [line for line in page.PAGE.read_text().splitlines() if line.startswith("| `")]
    assert len(rows) == sum(result.get("verified", False) for result in data.values())
