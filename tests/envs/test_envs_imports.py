"""The package stands alone: NumPy, Gymnasium and the standard library are all that it imports."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import autocompress_envs

FOLDER = Path(autocompress_envs.__file__).parent
ALLOWED = {"autocompress_envs", "gymnasium", "numpy", *sys.stdlib_module_names}


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: str(path.relative_to(FOLDER)))
def test_imports_nothing_else(path: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            imported.add(str(node.module).partition(".")[0])
    assert imported <= ALLOWED
