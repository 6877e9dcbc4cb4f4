"""The three functions end to end on the digits: budgets, what is left alone, what is written, and resuming."""

import importlib
import inspect
import json
import math
from importlib.util import find_spec

import pytest
import torch

import autocompress
from autocompress import InputError, Label, Plan, api
from autocompress.data import load_data
from autocompress.models import load_model
from autocompress.progress import Silent
from autocompress.run.journal import read_journal

QUICK = {
    "episodes": 8, "search_samples": 64, "calibration_samples": 64, "sparsity_levels": 4, "dtype": "float32",
    "recalibration_samples": 64, "target": "packed", "selection_samples": 0,
}  # fmt: skip
LINEAR_WEIGHTS = 320  # 32 inputs, 10 classes


class Watcher(Silent):
    """Keeps what it is told; interrupts at step `stop_at`."""

    def __init__(self, stop_at=None):
        self.notes, self.steps, self.stop_at = [], [], stop_at

    def note(self, text):
        self.notes.append(text)

    def step(self, step):
        self.steps.append(step)
        if step.index == self.stop_at:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def quick(cache):
    return {**QUICK, "cache": cache}


@pytest.fixture(scope="module")
def finished(quick, tmp_path_factory):
    """One whole run, shared: (result, watcher)."""
    watcher = Watcher()
    out = tmp_path_factory.mktemp("runs") / "whole"
    return autocompress.search(budget="size=0.12", out=out, progress=watcher, **quick), watcher


def test_result_meets_the_budget_and_is_what_it_says(finished):
    result, watcher = finished
    assert result.limits == {"size": int(0.12 * result.original_outcome.resources["size"])}
    assert result.outcome.resources["size"] <= result.limits["size"]
    assert result.meets_budget
    assert (result.split, result.evaluations, len(watcher.steps)) == ("test", 8, 8)
    best = min((step for step in watcher.steps if step.is_best), key=lambda step: step.best_kl)
    assert result.search_outcome.kl == best.best_kl


def test_accuracies_are_those_of_the_networks_on_the_test_split(finished):
    result, _ = finished
    (inputs, labels), original = next(iter(load_data("digits").test_batches(360))), load_model("digits")
    with torch.inference_mode():
        answers, original_answers = result.model(inputs).argmax(1), original(inputs).argmax(1)
    assert result.outcome.accuracy == (answers == labels).sum().item() / 360
    assert result.original_outcome.accuracy == (original_answers == labels).sum().item() / 360
    assert result.outcome.agreement == (answers == original_answers).sum().item() / 360


def test_run_folder_holds_the_result(finished):
    result, watcher = finished
    folder = result.run_folder
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "config.yaml", "journal.jsonl", "journal.f16", "layers.json", "model.safetensors", "outcome.json",
        "plan.yaml", "report.html", "tb",
    }  # fmt: skip
    assert Plan.load(folder / "plan.yaml") == result.plan
    assert (folder / "model.safetensors").stat().st_size == result.outcome.resources["size"]
    assert result.verification.file_bytes == {"model.safetensors": result.outcome.resources["size"]}
    outcome = json.loads((folder / "outcome.json").read_text())
    assert outcome["compressed"]["resources"] == result.outcome.resources
    assert outcome["budget"] == {"limits": result.limits, "met": True}
    _, entries = read_journal(folder / "journal.jsonl")
    assert [entry.best for entry in entries] == [step.is_best for step in watcher.steps]
    assert min(entry.kl for entry in entries) == result.search_outcome.kl


@pytest.mark.parametrize("stop_at", [0, 4])
def test_resumed_run_ends_as_the_uninterrupted_one(finished, quick, tmp_path, stop_at):
    whole, _ = finished
    with pytest.raises(KeyboardInterrupt):
        autocompress.search(budget="size=0.12", out=tmp_path / "run", progress=Watcher(stop_at), **quick)
    journal = tmp_path / "run" / "journal.jsonl"
    before = journal.read_bytes()
    assert len(read_journal(journal)[1]) == stop_at + 1
    journal.write_bytes(before + b'{"index": 9, "lab')  # killed while it wrote
    resumed = autocompress.search(budget="size=0.12", out=tmp_path / "run", resume=True, **quick)
    assert journal.read_bytes().startswith(before)  # nothing evaluated twice
    assert resumed.plan == whole.plan
    assert resumed.outcome == whole.outcome
    timeless = [
        [vars(entry) | {"seconds": 0} for entry in read_journal(folder / "journal.jsonl")[1]]
        for folder in (whole.run_folder, resumed.run_folder)
    ]
    assert timeless[0] == timeless[1]


def test_resume_of_another_network_is_refused(finished, quick):
    network = load_model("digits")
    with torch.no_grad():
        network.linear.bias.add_(1.0)
    options = {**quick, "out": finished[0].run_folder, "resume": True}
    with pytest.raises(InputError, match="`model` must be as in the run to resume, 'digits', got 'DigitsNet'"):
        autocompress.search(network, "digits", "size=0.12", **options)


def test_the_users_network_and_random_state_come_back(quick, tmp_path):
    network = load_model("digits").train()
    network.bn1.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    options = {**quick, "episodes": 2, "method": "solver", "out": tmp_path / "run"}
    autocompress.search(network, "digits", "size=0.12", **options)
    assert torch.equal(torch.rand(1), expected)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in network.modules())


def test_tensors_without_a_test_split_are_measured_on_the_search_split(quick, tmp_path):
    inputs, labels = load_data("digits").calibration()
    watcher = Watcher()
    options = {**quick, "episodes": 1, "method": "solver", "out": tmp_path / "run", "progress": watcher}
    options["recalibration_samples"] = 0
    result = autocompress.search(load_model("digits"), (inputs, labels), "size=50%,macs=1", **options)
    assert result.split == "search"
    assert result.outcome.accuracy == result.search_outcome.accuracy
    sizes = result.original_outcome.resources
    assert watcher.notes == [
        f"the macs budget limits nothing: {sizes['macs']:,} multiply-accumulates, of which the original has "
        f"{sizes['macs']:,}",
        "the data has no test split; measured on the search split, which chose the plan",
    ]


def test_evaluate_repeats_the_search_and_counts_an_edited_plan(finished, quick):
    """With the menus' weights, by which the search chose: what re-calibration did since is not in them."""
    result, _ = finished
    options = {name: value for name, value in quick.items() if name != "episodes"}
    again = autocompress.evaluate(plan=result.run_folder / "plan.yaml", split="search", **options)
    assert again.outcome == result.search_outcome
    assert (again.original_outcome.resources, again.limits) == (result.original_outcome.resources, {})
    before = result.plan.labels["linear"]
    labels = {**result.plan.labels, "linear": Label(before.sparsity, 7, before.activation_bits)}  # 7 is on no menu yet
    edited = autocompress.evaluate(plan=Plan(labels), budget="size=1b", split="search", **options)
    kept = edited.model.linear.weight.numel()
    change = -(-kept * 7 // 8) - -(-kept * before.weight_bits // 8)
    assert edited.outcome.resources["size"] - again.outcome.resources["size"] == change
    assert (edited.split, edited.limits, edited.meets_budget) == ("search", {"size": 1}, False)


def test_inspection_names_layers_groups_and_reasons(quick):
    inspection = autocompress.inspect(**{**quick, "episodes": 200})
    rows = {row.name: row for row in inspection.layers}
    assert list(rows) == [
        "conv1", "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer2.0.conv2", "layer2.0.shortcut.0",
        "layer2.1.conv1", "layer2.1.conv2", "linear",
    ]  # fmt: skip
    assert (rows["conv1"].parameters, rows["conv1"].macs) == (16 * 9, 16 * 9 * 64)
    assert (rows["linear"].parameters, rows["linear"].macs) == (LINEAR_WEIGHTS, LINEAR_WEIGHTS)
    assert (rows["conv1"].labels, rows["conv1"].reason) == ("sparsity, bits", "")
    assert (rows["layer1.0.conv2"].labels, rows["layer1.0.conv2"].reason) == ("bits", "follows conv1")
    assert (rows["linear"].labels, rows["linear"].group) == ("bits", None)
    assert list(rows["conv1"].bit_errors) == [8, 6, 5, 4, 3, 2]
    assert list(rows["conv1"].sparsity_errors) == [0.25, 0.5, 0.75]
    assert rows["linear"].sparsity_errors == {}
    for row in inspection.layers:  # fewer bits and channels never promise a smaller loss here
        assert list(row.bit_errors.values()) == sorted(row.bit_errors.values())
        assert list(row.sparsity_errors.values()) == sorted(row.sparsity_errors.values())
        assert all(error > 0 and math.isfinite(error) for error in row.bit_errors.values())


def test_a_groups_sparsity_hurts_all_that_read_it(quick):
    """conv1's channels are read by three layers: the loss shown is the sum of what their own tables say."""
    inspection = autocompress.inspect(**quick)
    problem, index = inspection.problem, inspection.network.layer_index()
    readers = ["layer1.0.conv1", "layer2.0.conv1", "layer2.0.shortcut.0"]
    assert sorted(layer.name for layer in problem.layers if layer.source == index["conv1"]) == sorted(readers)
    expected = sum(
        problem.layers[index[name]].errors[2, -1, -1] - problem.layers[index[name]].errors[0, -1, -1]
        for name in readers
    )
    assert inspection.layers[0].sparsity_errors[0.5] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "`budget` must be given, such as --budget size=0.1 (a tenth of the original's bytes)."),
        ({"budget": "size=0.1", "method": "magic"}, None),
        ({"budget": "size=0.1", "reward": "speed"}, None),
        ({"budget": "size=0.1", "episode": 3}, None),
    ],
)
def test_wrong_options_are_found_before_anything_is_loaded(options, message, monkeypatch):
    monkeypatch.setattr("autocompress.job.load.load_data", lambda *_, **__: pytest.fail("data was loaded"))
    with pytest.raises(InputError) as error:
        autocompress.search(**options)
    if message is not None:
        assert str(error.value) == message


def test_accuracy_reward_needs_labels(quick, tmp_path):
    inputs, _ = load_data("digits").calibration()
    with pytest.raises(InputError) as error:
        autocompress.search(
            load_model("digits"),
            (inputs, None),
            "size=0.1",
            agent="posterior-ppo",
            reward="accuracy",
            out=tmp_path / "run",
            **quick,
        )
    assert str(error.value) == "`reward` accuracy needs labelled data, got tensors without labels; choose kl."
    assert not (tmp_path / "run").exists()


def test_evaluate_needs_a_plan():
    with pytest.raises(InputError) as error:
        autocompress.evaluate()
    assert str(error.value) == "`plan` must be given, such as --plan runs/demo/plan.yaml."


def test_public_names_stay_what_they_are_when_a_folder_of_that_name_is_imported():
    for name in autocompress.__all__:
        if find_spec(f"autocompress.{name}") is not None:  # as `search` imports `autocompress.report` to write its page
            importlib.import_module(f"autocompress.{name}")
        assert not inspect.ismodule(getattr(autocompress, name)), name
    assert find_spec("autocompress.report") is not None
    assert autocompress.report is api.report
