"""What is imported when: libraries that write and run files take seconds, and most commands do neither."""

import subprocess
import sys

import pytest

HEAVY = ("onnx", "onnxscript", "onnxruntime", "openvino", "ai_edge_litert", "executorch", "torch._dynamo")


@pytest.mark.parametrize("module", ["autocompress.targets", "autocompress.targets.loading", "autocompress.api"])
def test_importing_does_not_import_what_writes_and_runs_files(module):
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
