"""ONNX Runtime reports to its maker and leaves files behind unless it is told not to before it is imported."""

import os
import subprocess
import sys

SCRIPT = """
import autocompress
run = "run"
autocompress.search("digits", budget="size=0.12", episodes=1, out=run, search_samples=64, calibration_samples=64,
                    recalibration_samples=0, dtype="float32", selection_samples=0, sparsity_levels=2)
assert autocompress.verify(run).checks
import onnxruntime  # it was used
"""


def run(script, folder, **variables):
    """Run a script with a home and a temporary folder of its own, and return the files that it left there."""
    for name in ("home", "temporary"):
        (folder / name).mkdir()
    chosen = {name: value for name, value in os.environ.items() if name != "CI" and not name.startswith("ORT_")}
    chosen |= {"HOME": str(folder / "home"), "TMPDIR": str(folder / "temporary"), **variables}
    chosen |= {"AUTOCOMPRESS_CACHE": str(folder / "cache"), "XDG_STATE_HOME": str(folder / "state")}
    chosen.pop("XDG_CACHE_HOME", None)
    subprocess.run([sys.executable, "-c", script], env=chosen, cwd=folder, check=True, timeout=240)
    return sorted(path.name for name in ("home", "temporary") for path in (folder / name).rglob("*") if path.is_file())


def test_a_search_and_a_verification_leave_no_file_of_telemetry(tmp_path):
    assert run(SCRIPT, tmp_path) == []


def test_loading_an_onnx_file_leaves_no_file_of_telemetry(tmp_path):
    script = """
import onnx
from onnx import TensorProto, helper
value = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("x", "y")}
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value["x"]], [value["y"]])
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "relu.onnx")
from autocompress.models import load_model
load_model("relu.onnx")
"""
    assert run(script, tmp_path) == []


def test_who_has_set_the_switch_is_left_alone(tmp_path):
    script = "import os; from autocompress.onnx_runtime import runtime; runtime(); print()"
    run(f"{script}; assert os.environ['ORT_DISABLE_TELEMETRY'] == '0'", tmp_path, ORT_DISABLE_TELEMETRY="0")
