"""What importing and tracing loads, in a fresh interpreter."""

import subprocess
import sys

LIGHT = """
import sys
import autocompress.data, autocompress.menus, autocompress.models, autocompress.network
heavy = ["timm", "torchvision", "torch._dynamo", "torch_pruning", "pyarrow", "PIL", "sklearn"]
print(*(name for name in heavy if name in sys.modules))
"""

TRACE = """
import importlib.util, sys
import torch
from autocompress.network import trace
before = {name: module for name, module in sys.modules.items() if name.startswith("timm")}
trace(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)), torch.zeros(1, 4))
after = {name: module for name, module in sys.modules.items() if name.startswith("timm")}
assert "torch_pruning" in sys.modules
assert "torchvision" not in sys.modules
assert before == after == {}
assert importlib.util.find_spec("timm") is not None
"""


def run(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout


def test_imports_are_light() -> None:
    assert run(LIGHT).split() == []


def test_tracing_does_not_import_timm_and_leaves_it_importable() -> None:
    run(TRACE)
