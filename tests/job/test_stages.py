"""Compressing in stages, and L1 before pruning: budgets, what a base computes, and resuming."""

import copy
import json

import numpy as np
import pytest
import torch

import autocompress
from autocompress import InputError, Plan
from autocompress.data import load_data
from autocompress.execute.pipeline import Execution, execute
from autocompress.job.base import expanded, load_base, save_base
from autocompress.job.load import load, load_splits
from autocompress.job.options import fine_tuning, request, search_request
from autocompress.job.prepare import prepare
from autocompress.job.stages import sparsified, stage_limits
from autocompress.models import load_model
from autocompress.network import fold_batch_norms, trace
from autocompress.progress import Silent
from autocompress.run.journal import read_journal
from autocompress_envs.problem import Labeling

QUICK = {
    "episodes": 2, "method": "solver", "search_samples": 64, "calibration_samples": 64, "sparsity_levels": 4,
    "dtype": "float32", "recalibration_samples": 0, "target": "packed", "finetune": 0.3,
}  # fmt: skip


class Watcher(Silent):
    """Keeps what it is told; interrupts at the `stop_at`-th message that begins with `text`."""

    def __init__(self, text="", stop_at=0):
        self.stages, self._text, self._left = [], text, stop_at

    def stage(self, text):
        self.stages.append(text)
        self._left -= text.startswith(self._text)
        if self._left == 0 and self._text:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return {**QUICK, "cache": tmp_path_factory.mktemp("cache")}


@pytest.fixture(scope="module")
def staged(quick, tmp_path_factory):
    """One run in two stages, shared: (result, watcher)."""
    watcher = Watcher()
    out = tmp_path_factory.mktemp("runs") / "two"
    return autocompress.search(budget="macs=0.3", stages=2, out=out, progress=watcher, **quick), watcher


def job_of(quick, **options):
    asked = request("digits", None, {**quick, **options})
    loaded = load(asked, load_splits(asked), Silent())
    return prepare(loaded, asked.menus, asked.config, Silent()), asked.config


@pytest.mark.parametrize(
    ("stage", "stages", "expected"),
    [
        (1, 2, {"macs": 300, "size": 2_000}),
        (2, 2, {"macs": 90, "size": 4_000}),
        (1, 1, {"macs": 90, "size": 4_000}),
        (2, 3, {"macs": 201, "size": 2_520}),
    ],
)
def test_every_stage_takes_the_same_factor_off(stage, stages, expected):
    """1000 * 0.09^(2/3) = 200.8; a budget above the original (1,000 bytes) stays above it: 1000 * 4^(2/3) = 2519.8."""
    assert stage_limits({"macs": 90, "size": 4_000}, {"macs": 1_000, "size": 1_000}, stage, stages) == expected


def test_stages_need_fine_tuning():
    with pytest.raises(InputError) as error:
        autocompress.search(budget="macs=0.3", stages=2)
    assert str(error.value) == "`stages` above 1 need fine-tuning between them, got 2; pass --finetune 1."
    search_request(options={"stages": 1})
    search_request(options={"stages": 3, "finetune": 0.1})


def test_two_stages_meet_the_final_budget(staged):
    result, watcher = staged
    original = result.original_outcome.resources["macs"]
    assert original == 828_736
    assert result.limits == {"macs": 248_620}
    assert result.outcome.resources["macs"] <= 248_620
    assert result.verification.passed
    first, second = (text for text in watcher.stages if text.startswith("search: "))
    assert first.startswith(f"search: macs at most {round(original * (248_620 / original) ** 0.5):,} of 828,736; ")
    assert second.startswith("search: macs at most 248,620 of 828,736; ")
    assert "stage 1 of 2" in watcher.stages


def test_the_run_folder_has_the_stage_and_a_plan_for_the_original(staged):
    result, _ = staged
    folder = result.run_folder
    names = {path.name for path in (folder / "stage-1").iterdir()}
    assert names == {"base.safetensors", "config.yaml", "journal.jsonl", "journal.f16", "plan.yaml", "tb"}
    model = load_model("digits")
    inputs, _ = load_data("digits").calibration()
    plan = Plan.load(folder / "plan.yaml")
    assert plan.fingerprint == trace(model, inputs[:1]).fingerprint
    assert Plan.load(folder / "stage-1" / "plan.yaml").fingerprint == plan.fingerprint
    outputs = autocompress.load(folder)(inputs)
    assert torch.equal(outputs, result.model(inputs))
    assert json.loads((folder / "outcome.json").read_text())["verified"] is True


@pytest.mark.parametrize(("text", "stop_at"), [("search: ", 2), ("fine-tuning: ", 1)], ids=["between", "inside"])
def test_an_interrupted_run_ends_as_the_uninterrupted_one(staged, quick, tmp_path, text, stop_at):
    whole, _ = staged
    options = {**quick, "budget": "macs=0.3", "stages": 2, "out": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        autocompress.search(progress=Watcher(text, stop_at), **options)
    watcher = Watcher()
    resumed = autocompress.search(progress=watcher, resume=True, **options)
    assert ("stage 1 of 2" in watcher.stages) == (text == "fine-tuning: ")
    assert resumed.plan == whole.plan
    assert (resumed.run_folder / "model.safetensors").read_bytes() == (
        whole.run_folder / "model.safetensors"
    ).read_bytes()
    assert len(read_journal(tmp_path / "run" / "stage-1" / "journal.jsonl")[1]) == 1


def test_force_leaves_nothing_of_the_stages_before(staged, quick, tmp_path):
    folder = tmp_path / "run"
    (folder / "stage-1").mkdir(parents=True)
    (folder / "stage-1" / "base.safetensors").write_bytes(b"of another run")
    (folder / "journal.jsonl").touch()
    options = {**quick, "finetune": 0, "budget": "macs=0.5", "episodes": 1}
    autocompress.search(out=folder, force=True, **options)
    assert not (folder / "stage-1").exists()


def test_a_base_computes_what_the_stage_left(quick):
    """Nothing is rounded here, so the fine-tuned network with channels gone and its base must agree exactly."""
    job, config = job_of(quick, weight_bits=(32,), activation_bits=(32,), target="packed")
    labeling = half_of_every_group(job)
    execution = Execution(0, fine_tuning(config, 0, has_labels=True))
    tuned = execute(job.menus, labeling, job.folded, job.teacher, job.data, execution, Silent()).tuned
    after = expanded(job, job.menus, labeling, tuned)
    inputs, _ = job.data.search()
    with torch.no_grad():
        expected, got = tuned.compressed.model(inputs), after.base.eval()(inputs)
        original = job.model.eval()(inputs)
    assert float((expected - got).abs().max() / expected.abs().max()) < 1e-5
    assert float((expected - original).abs().max() / expected.abs().max()) > 0.01
    assert len(tuned.compressed.model.conv1.weight) == 8
    assert trace(after.base, inputs[:1]).fingerprint == job.network.fingerprint
    assert after.model is job.model
    unread = (after.folded.layer1[0].conv1.weight == 0).all(dim=3).all(dim=2).all(dim=0)
    assert int(unread.sum()) == 8  # half of 16 channels


def half_of_every_group(job):
    sparsity = np.array([len(layer.sparsities) // 2 for layer in job.problem.layers])
    return Labeling(sparsity, 0 * sparsity, 0 * sparsity)


def test_a_base_is_saved_whole(quick, tmp_path):
    job, _ = job_of(quick)
    base = copy.deepcopy(job.model)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.mul_(1.01)
    assert load_base(tmp_path, job) is None
    save_base(tmp_path, base)
    loaded = load_base(tmp_path, job)
    assert all(torch.equal(value, base.state_dict()[name]) for name, value in loaded.base.state_dict().items())
    path = tmp_path / "base.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError) as error:
        load_base(tmp_path, job)
    assert str(error.value) == f"`resume` must find what the stage left, got {path}, damaged or another's."


def test_l1_lowers_the_weights_magnitudes(quick):
    job, config = job_of(quick, l1_epochs=1)
    plain = fine_tuning(config, 0, has_labels=True, epochs=1)
    sums = {}
    for weight in (0.0, 1e-3):
        base = sparsified(job, weight, plain, Execution(0, None), Silent()).base
        folded = fold_batch_norms(base, job.network)
        sums[weight] = magnitudes(folded, job.network)
        assert trace(base, job.inputs[:1]).fingerprint == job.network.fingerprint
    assert sums[1e-3] < 0.98 * magnitudes(job.folded, job.network)
    assert sums[1e-3] < 0.98 * sums[0.0]


def test_l1_behind_strong_distillation_begins_at_the_networks_own_weights(quick):
    job, config = job_of(quick, l1_epochs=1)
    strong = fine_tuning(config.model_copy(update={"distillation": "strong"}), 0, has_labels=True, epochs=0.1)
    base = sparsified(job, 1e-3, strong, Execution(0, None), Silent()).base
    assert magnitudes(fold_batch_norms(base, job.network), job.network) <= 1.0001 * magnitudes(job.folded, job.network)


def magnitudes(folded, network):
    return sum(folded.get_parameter(f"{layer.name}.weight").detach().abs().sum().item() for layer in network.layers)


def test_a_search_behind_an_l1_penalty(quick, tmp_path):
    options = {**quick, "finetune": 0, "l1_epochs": 0.3, "l1_weight": 1e-4, "budget": "macs=0.5", "episodes": 1}
    watcher = Watcher()
    result = autocompress.search(out=tmp_path / "run", progress=watcher, **options)
    assert result.meets_budget
    assert "fine-tuning with an L1 penalty before pruning: 0.3 epochs" in watcher.stages
    assert [path.name for path in (tmp_path / "run" / "stage-0").iterdir()] == ["base.safetensors"]
