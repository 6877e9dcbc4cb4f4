"""A target that a package from outside adds, with a file written from what the docstring of `Lowered` says alone."""

import json

import pytest
import torch

import autocompress
from autocompress.targets import TARGETS
from autocompress.targets.target import Runtime

BITS = (4, 8, 32)


def write(lowered):
    """A line of JSON: operators, roundings and shapes; then codes as they are in memory, scales and biases."""
    nodes = [node for node in lowered.graph.graph.nodes if node.op == "call_function"]
    roundings = [node.args[1:] for node in nodes if str(node.target) == "autocompress.round_activation.default"]
    head = {"operators": [str(node.target) for node in nodes], "roundings": roundings}
    head["layers"] = {name: list(layer.values.shape) for name, layer in lowered.layers.items()}
    tensors = [tensor for layer in lowered.layers.values() for tensor in (layer.values, layer.scale, layer.bias)]
    return json.dumps(head).encode() + b"\n" + b"".join(each.numpy().tobytes() for each in tensors if each is not None)


class Constant:
    """A network that gives the same for every sample; nothing agrees with it."""

    def run(self, inputs):
        return torch.arange(10.0).expand(len(inputs), -1)


@pytest.fixture
def register():
    names = []

    def add(**options):
        autocompress.register_target(autocompress.Target("plain", "model.plain", write, BITS, (8, 32), **options))
        names.append("plain")

    yield add
    for name in names:
        TARGETS.unregister(name)


def searched(folder):
    quick = {"search_samples": 64, "calibration_samples": 64, "recalibration_samples": 0, "selection_samples": 64}
    options = {"budget": "size=0.5", "episodes": 4, "jobs": 1, "dtype": "float32", "sparsity_levels": 3} | quick
    return autocompress.search("digits", "digits", target="plain", out=folder, **options)


def test_its_file_is_written_counted_and_within_the_budget(register, tmp_path):
    register()
    result = searched(tmp_path / "run")
    content = (tmp_path / "run" / "model.plain").read_bytes()
    assert len(content) == result.verification.resources["size"] <= result.limits["size"]
    assert result.verification.passed
    assert result.verification.runtime is None
    assert {label.weight_bits for label in result.plan.labels.values()} <= set(BITS)
    head, _, tensors = content.partition(b"\n")
    described = json.loads(head)
    rounded = [label for label in result.plan.labels.values() if label.activation_bits < 32]
    assert 0 < len(described["roundings"]) <= len(rounded)  # layers that read one tensor on one range share it
    assert {bits for _, _, bits in described["roundings"]} == {8}
    layers = result.executed.compressed.layers
    assert described["layers"] == {name: list(layer.values.shape) for name, layer in layers.items()}
    stored = [each for layer in layers.values() for each in (layer.values, layer.scale, layer.bias) if each is not None]
    assert tensors == b"".join(each.numpy().tobytes() for each in stored)


def test_its_runtime_runs_and_times_the_file(register, tmp_path):
    """And is not believed: answers that are not PyTorch's fail the check of agreement."""
    opened = []
    register(runtime=Runtime("Constant", lambda content: opened.append(content) or Constant()))
    result = searched(tmp_path / "run")
    assert (tmp_path / "run" / "model.plain").read_bytes() in opened
    assert result.verification.runtime.runtime == "Constant"
    assert set(result.verification.runtime.seconds) == {1, 32}
    assert [check.name for check in result.verification.checks if not check.passed] == ["agreement"]
