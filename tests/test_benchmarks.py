"""The scripts of benchmarks/ take hours; that every name that they import is there takes seconds."""

import ast
import importlib
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_what_a_script_imports_of_the_package_exists(path):
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    names = [(node.module, alias.name) for node in nodes for alias in node.names if node.module]
    ours = [(module, name) for module, name in names if module.partition(".")[0].startswith("autocompress")]
    missing = [f"{module}.{name}" for module, name in ours if not hasattr(importlib.import_module(module), name)]
    assert missing == []
    assert nodes
