"""Branches removed from the command line and from Python: searched for, applied by a plan, verified, in stages."""

import json

import pytest
import torch
from run_toys import invoke, refused

import autocompress
from autocompress import Label, Plan
from autocompress.data import load_data
from autocompress.execute.pipeline import Execution, execute
from autocompress.job.base import expanded
from autocompress.job.load import load, load_splits
from autocompress.job.options import fine_tuning, request
from autocompress.job.prepare import prepare
from autocompress.progress import Silent

LAYERS = ["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer2.0.conv2", "layer2.0.shortcut.0",
          "layer2.1.conv1", "layer2.1.conv2", "linear"]  # fmt: skip
BRANCHES = {"layer1.0.conv1", "layer2.0.conv1", "layer2.1.conv1"}
GONE = {"layer1.0.conv1": Label(1.0, 8, 8), "layer2.1.conv1": Label(1.0, 8, 8)}
# 828,736 in all: twice 16 x 16 x 9 on 64 positions, twice 32 x 32 x 9 on 16, in the branches that go.
MACS_LEFT = 828_736 - 2 * 2304 * 64 - 2 * 9216 * 16
OPTIONS = {"search_samples": 64, "calibration_samples": 64, "weight_bits": (8,), "dtype": "float32"}


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    return [
        "--search-samples", "64", "--calibration-samples", "64", "--weight-bits", "8", "--sparsity-levels", "2",
        "--dtype", "float32", "--recalibration-samples", "64", "--quiet",
        "--cache", str(tmp_path_factory.mktemp("cache")),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def quick(flags):
    return {**OPTIONS, "cache": flags[-1], "target": "packed"}


def plan(**others):
    return Plan(dict.fromkeys(LAYERS, Label(0.0, 8, 8)) | GONE | others)


@pytest.fixture(scope="module")
def applied(flags, tmp_path_factory):
    """A plan with sparsity 1 applied without the option: (result of the command, folder)."""
    folder = tmp_path_factory.mktemp("runs")
    plan().save(folder / "plan.yaml")
    arguments = ["--plan", folder / "plan.yaml", "--out", folder / "run", "--target", "packed", "--format", "json"]
    return invoke("apply", "digits", *arguments, *flags, "--recalibration-samples", "0"), folder / "run"


def test_searched_for_from_the_command_line(flags, tmp_path):
    """Half of all channels are 25 % of the multiply-accumulates, so a fifth takes a branch away."""
    done = invoke(
        "search", "digits", "--budget", "macs=0.2", "--remove-branches", "--episodes", "4", "--method", "solver",
        "--target", "packed", "--out", tmp_path / "run", *flags,
    )  # fmt: skip
    assert (done.exit_code, done.stderr) == (0, "")
    assert "verification: 3 of 3 checks passed" in done.stdout.splitlines()
    found = Plan.load(tmp_path / "run" / "plan.yaml")
    gone = {name for name, label in found.labels.items() if label.sparsity == 1}
    assert gone
    assert gone <= BRANCHES
    outcome = json.loads((tmp_path / "run" / "outcome.json").read_text())
    assert outcome["compressed"]["resources"]["macs"] <= 828_736 // 5
    assert (outcome["verified"], outcome["budget"]["met"]) == (True, True)
    inputs, _ = load_data("digits").calibration()
    model = autocompress.load(tmp_path / "run")
    names = {name for name, _ in model.named_parameters()}
    assert not {f"{name}.weight" for name in gone} & names
    assert model(inputs[:3]).shape == (3, 10)


def test_a_plan_that_removes_branches_is_applied_without_the_option(applied):
    done, folder = applied
    assert (done.exit_code, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert result["compressed"]["resources"]["macs"] == MACS_LEFT == 238_912
    assert result["verified"] is True
    assert {name: label.sparsity for name, label in Plan.load(folder / "plan.yaml").labels.items()} == {
        name: float(name in GONE) for name in LAYERS
    }
    assert result["compressed"]["resources"]["size"] == (folder / "model.safetensors").stat().st_size
    assert "remove_branches: null" in (folder / "config.yaml").read_text()


def test_a_run_without_branches_is_verified_and_exported_again(applied):
    _, folder = applied
    for command in (["verify", folder], ["export", folder, "--format", "pt2"]):
        done = invoke(*command, "--quiet")
        assert (done.exit_code, done.stderr) == (0, "")
    inputs, _ = load_data("digits").calibration()
    expected = autocompress.load(folder)(inputs[:7])
    program = torch.export.load(folder / "model.pt2").module()
    torch.testing.assert_close(program(inputs[:7]), expected, rtol=0, atol=1e-5)


def test_sparsity_1_of_a_layer_that_is_no_branch(flags, tmp_path):
    plan(conv1=Label(1.0, 8, 8)).save(tmp_path / "plan.yaml")
    arguments = ["--plan", tmp_path / "plan.yaml", "--out", tmp_path / "run", "--target", "packed"]
    refused(
        invoke("apply", "digits", *arguments, *flags),
        "Layer conv1: `sparsity` must be one of 0, 0.5, got 1; set --sparsity-levels and --width-steps.",
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "got"),
    [(["--granularity", "element"], "element and [8]"), (["--weight-bits", "1,8"], "channel and [1, 8]")],
)
def test_options_that_can_not_go_with_it(arguments, got, flags, tmp_path):
    done = invoke(
        "search", "digits", "--budget", "macs=0.5", "--remove-branches", "--target", "packed", "--out",
        tmp_path / "run", *flags, *arguments,
    )  # fmt: skip
    refused(
        done,
        f"`remove_branches` must go with granularity channel and without 1-bit weights, which have no zero, got {got}.",
    )


def test_plans_say_whether_branches_are_on_the_menu():
    assert not request().menus.remove_branches
    assert request(options={"remove_branches": True}).menus.remove_branches
    assert request(plan=plan()).menus.remove_branches
    assert not request(plan=Plan(dict.fromkeys(LAYERS, Label(0.875, 8, 8)))).menus.remove_branches


def test_a_base_computes_what_a_stage_without_branches_left(quick):
    """Nothing is rounded here, so the fine-tuned network and its base, all channels back, must agree."""
    options = {**quick, "weight_bits": (32,), "activation_bits": (32,), "sparsity_levels": 2, "finetune": 0.3}
    wanted = Plan(dict.fromkeys(LAYERS, Label()) | {"layer1.0.conv1": Label(1.0), "layer2.1.conv1": Label(1.0)})
    asked = request("digits", None, options, plan=wanted)
    job = prepare(load(asked, load_splits(asked), Silent()), asked.menus, asked.config, Silent())
    labeling = job.menus.labeling(wanted)
    execution = Execution(0, fine_tuning(asked.config, 0, has_labels=True))
    tuned = execute(job.menus, labeling, job.folded, job.teacher, job.data, execution, Silent()).tuned
    assert tuned.best_step > 0
    after = expanded(job, job.menus, labeling, tuned)
    inputs, _ = job.data.search()
    with torch.no_grad():
        expected, got = tuned.compressed.model(inputs), after.base.eval()(inputs)
    assert float((expected - got).abs().max() / expected.abs().max()) < 1e-5
    assert not after.folded.layer1[0].conv2.weight.any()
    assert after.folded.layer1[0].conv1.weight.any()  # there again, read by nobody
    assert torch.equal(after.folded.layer1[0].conv2.bias, tuned.compressed.layers["layer1.0.conv2"].bias)


def test_two_stages_remove_branches_one_after_the_other(quick, tmp_path):
    """Only whole branches are on offer: after stage 1, 67 % of the multiply-accumulates; after stage 2, 45 %."""
    options = {**quick, "sparsity_levels": 1, "remove_branches": True, "episodes": 1, "method": "solver"}
    result = autocompress.search(
        budget="macs=0.45", stages=2, finetune=0.2, recalibration_samples=0, out=tmp_path / "run", **options
    )
    gone = [
        {name for name, label in Plan.load(path / "plan.yaml").labels.items() if label.sparsity == 1}
        for path in (tmp_path / "run" / "stage-1", tmp_path / "run")
    ]
    assert len(gone[0]) == 1
    assert gone[0] < gone[1] <= BRANCHES
    assert result.verification.passed, result.verification.failures()
    assert result.outcome.resources["macs"] <= 828_736 * 0.45
    inputs, _ = load_data("digits").calibration()
    assert torch.equal(autocompress.load(tmp_path / "run")(inputs), result.model(inputs))
