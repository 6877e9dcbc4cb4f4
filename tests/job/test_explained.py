"""layers.json: what each layer got, with bytes, losses and labels that agree with the run's other files."""

import json

import pytest
import torch
from run_toys import LAYERS, PLAN, invoke
from torch import nn

import autocompress
from autocompress import Label, Plan
from autocompress.job.measured_layers import alone
from autocompress.progress import Silent
from autocompress_envs.problem import Labeling, Outcome
from autocompress_envs.testing import toy_problem


def layers_of(run):
    return json.loads((run / "layers.json").read_text())


def test_the_layers_are_those_of_the_plan(made):
    """first: 8 to 6 rows of 9 weights at 8 bits, 12 to 6 rows of 6 * 9 at 4 bits, 10 rows of 6 at 8 bits."""
    told = layers_of(made.run_folder)
    assert [layer["name"] for layer in told["layers"]] == LAYERS
    assert [layer["label"] for layer in told["layers"]] == [vars(PLAN[name]) for name in LAYERS]
    assert [layer["weights_left"] for layer in told["layers"]] == [6 * 9, 6 * 54, 10 * 6]
    rows, weight_bytes = (6, 6, 10), (54, 162, 60)
    assert [layer["bytes"]["compressed"] for layer in told["layers"]] == [
        weights + row * (4 + 4) + 8 for weights, row in zip(weight_bytes, rows, strict=True)
    ]  # a scale and a bias a row, a range a layer
    assert [layer["bytes"]["original"] for layer in told["layers"]] == [8 * 40, 12 * 292, 10 * 52]
    assert [group["kept"] for group in told["groups"]] == [6, 6]
    assert [group["owner"] for group in told["groups"]] == ["first", "second"]


def test_losses_add_up_and_are_those_of_the_menu(made):
    told = layers_of(made.run_folder)
    parts = [layer["expected_loss"] for layer in told["layers"]]
    assert sum(part["pruning"] + part["rounding"] for part in parts) == pytest.approx(told["expected_loss"]["chosen"])
    for layer in told["layers"]:
        at = next(each for each in layer["by_weight_bits"] if each["weight_bits"] == layer["label"]["weight_bits"])
        assert at["loss"] == pytest.approx(layer["expected_loss"]["rounding"], abs=1e-12)
        assert at["bytes"] == layer["bytes"]["compressed"]
        chosen = next(each for each in layer["by_sparsity"] if each["sparsity"] == layer["label"]["sparsity"])
        assert chosen["loss"] == pytest.approx(layer["expected_loss"]["pruning"], abs=1e-12)
        for each in (at, chosen):  # without a budget, bytes are told
            assert each["resources"] == {"size": made.problem.resources(made.labeling)["size"]}
    assert parts[2]["pruning"] == 0.0
    assert told["simple_plans"] == []  # nothing was searched


def test_what_other_labels_would_take(made):
    """The second layer unpruned: 6 more rows of 54 weights at 4 bits, scales and biases, and 60 columns of 8 bits."""
    second = layers_of(made.run_folder)["layers"][1]
    sizes = {each["sparsity"]: each["resources"]["size"] for each in second["by_sparsity"]}
    assert sizes[0.0] - sizes[0.5] == 6 * 54 // 2 + 6 * (4 + 4) + 60
    assert [each["loss"] for each in second["by_sparsity"]] == sorted(each["loss"] for each in second["by_sparsity"])
    bits = {each["weight_bits"]: each for each in second["by_weight_bits"]}
    assert bits[8]["resources"]["size"] - bits[4]["resources"]["size"] == bits[8]["bytes"] - bits[4]["bytes"] == 162


def test_the_bytes_of_a_tie_are_shared_out(tmp_path):
    """q, k and v of 16 x 16 weights at 8 bits are one weight of 768 bytes with 48 rows: a third each."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.attention, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 4)

        def forward(self, x):
            return self.head((x + self.attention(x, x, x, need_weights=False)[0]).mean(1))

    inputs = torch.randn(200, 5, 16, generator=torch.Generator().manual_seed(0))
    names = [*(f"attention.{name}_proj" for name in "qkv"), "attention.out_proj", "head"]
    plan = Plan({name: Label(0.0, 8, 8) for name in names})
    options = {"sparsity_levels": 1, "recalibration_samples": 0, "cache": tmp_path / "cache", "dtype": "float32"}
    made = autocompress.apply(Attention(), (inputs, None), plan, out=tmp_path / "run", **options)
    told = {layer["name"]: layer for layer in layers_of(made.run_folder)["layers"]}
    assert [told[name]["tied_to"] for name in names[:3]] == [None, names[0], names[0]]
    assert sum(told[name]["bytes"]["compressed"] for name in names[:3]) == 768 + 48 * 8 + 3 * 8
    sizes = [told[name]["bytes"]["compressed"] for name in names[:3]]
    assert max(sizes) - min(sizes) <= 2
    assert [told[name]["weights_left"] for name in names[:3]] == [256] * 3
    assert "autocompress.apply(model, data, " in (made.run_folder / "report.html").read_text()


class Evaluator:
    """A network whose divergence is 0.25 nats and a nat for every layer that has not its mildest labels."""

    def __init__(self, problem, network):
        self.plans, self._mildest = [], [len(layer.weight_bits) - 1 for layer in problem.layers]

    def __call__(self, labeling):
        changed = sum(
            labeling.sparsity[at] > 0 or labeling.weight_bits[at] < most for at, most in enumerate(self._mildest)
        )
        self.plans.append(labeling)
        return Outcome(0.25 + changed, 1.0, 1.0, {})


def test_each_layer_is_measured_alone_with_its_tie():
    """Three layers; the third is tied to the second, so both are changed at once and have the same loss."""
    from types import SimpleNamespace

    problem, _ = toy_problem()
    layers = [SimpleNamespace(name=name) for name in "abc"]
    network = SimpleNamespace(layers=layers, leaders=lambda: {2: 1})
    evaluate = Evaluator(problem, network)
    labeling = Labeling(*(torch.zeros(3, dtype=torch.int64).numpy() for _ in range(3)))
    base, losses = alone(network, problem, labeling, evaluate, Silent())
    assert (base, losses) == (0.25, {"a": 1.0, "b": 2.0, "c": 2.0})
    assert len(evaluate.plans) == 3


def test_the_command_measures_the_layers_of_a_run(run):
    done = invoke("report", run, "--measure", "--quiet", "--format", "json")
    assert done.exit_code == 0, done.stderr
    measured = [layer["measured_loss"] for layer in json.loads(done.stdout)["runs"][0]["layers"]]
    assert all(loss >= 0 for loss in measured)
    assert max(measured) > 0.001
    assert [layer["measured_loss"] for layer in layers_of(run)["layers"]] == measured
    assert "Measured loss" in (run / "report.html").read_text()


def test_a_run_of_an_earlier_version_can_not_be_measured(run):
    (run / "layers.json").unlink()
    done = invoke("report", run, "--measure")
    message = f"`run` must hold layers.json, got {run} of an earlier version without it; make the run again."
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (2, f"autocompress: {message}")
