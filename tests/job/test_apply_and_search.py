"""Plans applied and searched for, from Python and from the command line."""

import json

import pytest
import torch
import yaml
from run_toys import LAYERS, MODULE, PLAN, Watcher, flags, invoke, refused

import autocompress
from autocompress import InputError, Plan, api
from autocompress.data import load_data
from autocompress.errors import ExportError


def test_applied_plan_is_what_it_says(made):
    assert {path.name for path in made.run_folder.iterdir()} == {
        "README.md", "config.yaml", "journal.jsonl", "layers.json", "model.onnx", "model.safetensors", "outcome.json",
        "plan.yaml", "report.html",
    }  # fmt: skip
    assert Plan.load(made.run_folder / "plan.yaml").labels == PLAN
    assert {name: tuple(module.weight.shape) for name, module in made.model.named_modules() if name in LAYERS} == {
        "first": (6, 1, 3, 3), "second": (6, 6, 3, 3), "head": (10, 6),
    }  # fmt: skip
    size = (made.run_folder / "model.onnx").stat().st_size
    assert made.outcome.resources["size"] == size <= made.limits["size"]
    outcome = json.loads((made.run_folder / "outcome.json").read_text())
    assert outcome["compressed"]["resources"]["macs"] == 6 * 9 * 64 + 6 * 54 * 16 + 60 == made.outcome.resources["macs"]
    assert outcome["file_bytes"]["model.onnx"] == size
    assert outcome["measured_in"] == {"compressed": "PyTorch", "size": "file", "runtime": "ONNX Runtime"}
    assert set(outcome["runtime"]["median_seconds_by_batch"]) == {"1", "32"}
    assert [check.name for check in made.verification.checks] == ["channels", "levels", "budget", "agreement"]


def test_the_loaded_module_computes_what_was_verified(made, packed):
    inputs, labels = next(iter(load_data("digits").test_batches(360)))
    for finished in (made, packed):
        outputs = autocompress.load(finished.run_folder)(inputs)
        accuracy = (outputs.argmax(1) == labels).double().mean().item()
        assert finished.verification.pytorch.accuracy == pytest.approx(accuracy, abs=1e-9)
    assert torch.equal(outputs, packed.model(inputs))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda plan: plan["labels"].update(third=plan["labels"]["head"]), None),
        (lambda plan: plan["labels"].pop("head"), None),
        (
            lambda plan: plan["labels"]["second"].update(sparsity=0.3),
            "Layer second: `sparsity` must be one of 0, 0.25, 0.5, 0.75, got 0.3; "
            "set --sparsity-levels and --width-steps.",
        ),
        (
            lambda plan: plan["labels"]["second"].update(weight_bits=3),
            "`weight_bits` must be among 2, 4, 8, 16, 32 for the target onnxruntime, got 3; "
            "choose others or --target packed.",
        ),
        (lambda plan: plan.update(fingerprint="0123456789abcdef"), None),
    ],
    ids=["unknown layer", "missing layer", "off the menu", "off the target", "another network"],
)
def test_a_plan_that_does_not_fit_is_one_line(edit, message, made, spec, quick, tmp_path):
    plan = yaml.safe_load((made.run_folder / "plan.yaml").read_text())
    expected = {
        "unknown layer": "`plan` names layers that the network does not have: third.",
        "missing layer": "`plan` must label every layer, these are missing: head.",
        "another network": f"`plan` must be for this network ({plan['fingerprint']}), got one for 0123456789abcdef.",
    }
    edit(plan)
    kind = (
        "unknown layer" if "third" in plan["labels"] else "missing layer" if "head" not in plan["labels"]
        else "another network"
    )  # fmt: skip
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    out = tmp_path / "out"
    done = invoke("apply", spec, "--plan", tmp_path / "plan.yaml", "--out", out, "--quiet", *flags(quick))
    refused(done, message or expected[kind])
    assert not out.exists()


def test_apply_without_a_plan_or_a_folder(spec, quick, tmp_path, monkeypatch, made):
    monkeypatch.chdir(tmp_path)
    refused(invoke("apply", spec, *flags(quick)), "`plan` must be given, such as --plan runs/demo/plan.yaml.")
    plan = made.run_folder / "plan.yaml"
    done = invoke("apply", spec, "--plan", plan, "--target", "packed", "--quiet", *flags(quick))
    assert done.exit_code == 0, done.stderr
    (path,) = (tmp_path / "runs").iterdir()
    assert path.name.endswith("tiny.py-net-plan")
    refused(
        invoke("apply", spec, "--plan", plan, "--out", path, *flags(quick)),
        f"`out` must be a new folder, got {path}, which holds a run; pass --force to replace it or --resume to "
        "continue it.",
    )


def test_an_interrupted_apply_is_resumed(made, packed, spec, quick, tmp_path):
    out, options = tmp_path / "run", {**quick, "plan": packed.plan, "target": "packed", "finetune": 0.5}
    whole = autocompress.apply(spec, out=tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        autocompress.apply(spec, out=out, progress=Watcher(1), **options)
    resumed = autocompress.apply(spec, out=out, resume=True, **options)
    assert (out / "model.safetensors").read_bytes() == (whole.run_folder / "model.safetensors").read_bytes()
    assert resumed.outcome == whole.outcome


def test_search_for_packed_offers_three_bits(spec, quick, tmp_path):
    arguments = ["--target", "packed", "--weight-bits", "3,4", "--method", "solver", "--episodes", "1", "--quiet"]
    out = tmp_path / "run"
    done = invoke("search", spec, "--budget", "size=0.7", "--out", out, *arguments, "--format", "json", *flags(quick))
    assert (done.exit_code, done.stderr) == (0, "")
    assert set(json.loads(done.stdout)["labels"]["share_by_weight_bits"]) <= {"3", "4"}
    assert json.loads(done.stdout)["runtime"] is None
    assert not (out / "model.onnx").exists()
    refused(
        invoke("search", spec, "--budget", "size=0.7", "--weight-bits", "3", "--quiet", *flags(quick)),
        "`weight_bits` must be among 2, 4, 8, 16, 32 for the target onnxruntime, got 3; "
        "choose others or --target packed.",
    )


def test_a_network_that_cannot_be_exported(folder, quick, tmp_path):
    spec, out = f"{folder / 'tiny.py'}:opaque", tmp_path / "run"
    quick = {**quick, "cache": tmp_path / "cache"}  # weights and layers are those of `net`, whose files are counted
    arguments = ["--budget", "size=0.7", "--method", "solver", "--episodes", "1", "--out", out, "--quiet"]
    done = invoke("search", spec, *arguments, *flags(quick))
    assert (done.exit_code, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("autocompress: `model` must be a network that torch.export can follow: ")
    assert done.stderr.endswith(". The target onnxruntime needs that; pass --target packed.\n")
    assert not out.exists()
    done = invoke("search", spec, *arguments, "--target", "packed", *flags(quick))
    assert done.exit_code == 0, done.stderr
    with pytest.raises(InputError) as error:
        autocompress.load(out)
    assert str(error.value) == (
        f"{out / 'model.safetensors'}: the file must hold a graph to run without the original's class, got weights "
        "alone; pass the original's module as `model`."
    )
    namespace: dict = {}
    exec(MODULE, namespace)
    model = autocompress.load(out, namespace["opaque"]())
    inputs, labels = next(iter(load_data("digits").test_batches(360)))
    accuracy = (model(inputs).argmax(1) == labels).double().mean().item()
    outcome = json.loads((out / "outcome.json").read_text())
    assert outcome["compressed"]["accuracy"] == pytest.approx(accuracy, abs=1e-9)
    assert api.verify(out).passed
    with pytest.raises((InputError, ExportError)):
        api.export(out, "pt2")


def test_search_without_labels(spec, quick, tmp_path):
    inputs, _ = load_data("digits").calibration()
    options = {**quick, "method": "solver", "episodes": 1, "target": "packed", "finetune": 0.5, "data": (inputs, None)}
    result = autocompress.search(spec, budget="size=0.7", out=tmp_path / "run", **options)
    assert result.verification.passed
    outcome = json.loads((tmp_path / "run" / "outcome.json").read_text())
    assert (outcome["compressed"]["accuracy"], outcome["split"]) == (None, "search")
    with pytest.raises(InputError) as error:
        autocompress.search(spec, budget="size=0.7", hard_weight=1, out=tmp_path / "other", **options)
    assert str(error.value) == (
        "`hard_weight` needs labelled data, got tensors without labels; pass --labels teacher or leave it out."
    )
    assert not (tmp_path / "other").exists()


def test_interrupted_fine_tuning_of_a_search_ends_with_the_same_files(spec, quick, tmp_path, monkeypatch):
    monkeypatch.setattr("autocompress.execute.finetune._SAVE_SECONDS", 0.0)
    options = {**quick, "method": "solver", "episodes": 1, "budget": "size=0.7", "finetune": 0.5}
    whole = autocompress.search(spec, out=tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        autocompress.search(spec, out=tmp_path / "run", progress=Watcher(2), **options)
    assert (tmp_path / "run" / "finetune.pt").exists()
    resumed = autocompress.search(spec, out=tmp_path / "run", resume=True, **options)
    assert not (tmp_path / "run" / "finetune.pt").exists()
    assert resumed.plan == whole.plan
    for name in ("model.onnx", "model.safetensors", "plan.yaml"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_search_begins_with_the_plan_of_another_run(made, spec, quick, tmp_path):
    options = {**quick, "episodes": 3, "selection_samples": 0}
    result = autocompress.search(spec, budget="size=0.9", begin_with=made.run_folder, out=tmp_path / "run", **options)
    first, *others = map(json.loads, (tmp_path / "run" / "journal.jsonl").read_text().splitlines()[1:])
    labeling = made.labeling
    assert first["labels"] == [
        each.tolist() for each in (labeling.sparsity, labeling.weight_bits, labeling.activation_bits)
    ]
    assert result.search_outcome.kl == min(each["kl"] for each in (first, *others))
    assert "begin_with:\n- " in (tmp_path / "run" / "config.yaml").read_text()


def test_a_plan_to_begin_with_that_is_none_is_one_line(made, spec, quick, tmp_path):
    def asked(*arguments):
        return invoke(
            "search", spec, "--budget", "size=0.9", "--out", tmp_path / "run", "--quiet", *flags(quick), *arguments
        )

    plan = made.run_folder / "plan.yaml"
    refused(
        asked("--begin-with", plan, "--method", "uniform"),
        "`begin_with` must go with an agent that evaluates plans, got uniform; pass --method rl.",
    )
    refused(
        asked("--begin-with", plan, "--episodes", "0"),
        "`begin_with` must go with an agent that evaluates plans, got no evaluations; pass --episodes 20.",
    )
    refused(
        asked("--begin-with", tmp_path / "none"),
        "`begin_with` must be folders of runs or plan files, got another: `plan` must be a readable file, got "
        f"{tmp_path / 'none'}: No such file or directory.",
    )
    other, given = tmp_path / "other.yaml", yaml.safe_load(plan.read_text())
    other.write_text(yaml.safe_dump({**given, "fingerprint": "0123456789abcdef"}))
    refused(
        asked("--begin-with", other),
        f"`begin_with` must be plans on this network's menus, got {other}: "
        f"`plan` must be for this network ({given['fingerprint']}), got one for 0123456789abcdef.",
    )
