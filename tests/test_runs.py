"""What follows a plan: apply, finetune, export, verify and load, from Python and from the command line."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import save_file
from typer.testing import CliRunner

import autocompress
from autocompress import InputError, Label, Plan, runs
from autocompress.cli import app
from autocompress.data import load_data
from autocompress.errors import ExportError
from autocompress.report.progress import Silent
from autocompress.targets import openvino_ir
from autocompress.targets.onnx_runtime import open_session

MODULE = '''
import torch
from torch import nn


class Net(nn.Module):
    """Input 1x8x8."""

    def __init__(self, opaque=False):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.Linear(12, 10)
        self.opaque = opaque

    def forward(self, x):
        x = torch.relu(self.second(torch.relu(self.norm(self.first(x))))).mean((2, 3))
        return self.head(x * 2 if self.opaque and float(x.sum()) > 1e9 else x)


def net():
    return Net()


def opaque():
    return Net(opaque=True)
'''
LAYERS = ["first", "second", "head"]
PLAN = {
    "first": Label(0.25, 8, 8),
    "second": Label(0.5, 4, 8),
    "head": Label(0.0, 8, 8),
}
QUICK = {
    "data": "digits", "search_samples": 64, "calibration_samples": 64, "sparsity_levels": 4, "dtype": "float32",
    "recalibration_samples": 64,
}  # fmt: skip


class Watcher(Silent):
    """Keeps notes; interrupts fine-tuning once it has told of `stop_at` steps."""

    def __init__(self, stop_at=None):
        self.notes, self._stop_at = [], stop_at

    def note(self, text):
        self.notes.append(text)

    def tuning(self, step, *_):
        if self._stop_at is not None and step >= self._stop_at:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs")
    (path / "tiny.py").write_text(MODULE)
    save_file(trained(), path / "tiny.safetensors")
    return path


def trained():
    """The network's state after a second of training: enough for answers that differ."""
    namespace: dict = {}
    exec(MODULE, namespace)
    model, (inputs, labels) = namespace["net"](), load_data("digits").calibration()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(80):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model.state_dict()


@pytest.fixture(scope="module")
def spec(folder):
    return f"{folder / 'tiny.py'}:net"


@pytest.fixture(scope="module")
def quick(folder):
    return {**QUICK, "cache": folder / "cache", "weights": folder / "tiny.safetensors"}


@pytest.fixture(scope="module")
def made(folder, spec, quick):
    """A plan applied for ONNX Runtime, shared; nobody changes it."""
    finished = autocompress.apply(spec, plan=Plan(PLAN), out=folder / "made", budget="size=0.9", **quick)
    assert finished.verification.passed, finished.verification.failures()
    return finished


@pytest.fixture(scope="module")
def packed(folder, spec, quick):
    """The same for the target packed, with 3 bits."""
    plan = Plan({**PLAN, "second": Label(0.5, 3, 8)})
    finished = autocompress.apply(spec, plan=plan, out=folder / "packed", target="packed", **quick)
    assert finished.verification.passed, finished.verification.failures()
    return finished


@pytest.fixture
def run(made, tmp_path):
    """A copy of the applied plan, to be changed."""
    return shutil.copytree(made.run_folder, tmp_path / "run")


@pytest.fixture
def packed_run(packed, tmp_path):
    return shutil.copytree(packed.run_folder, tmp_path / "packed")


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def flags(options):
    return [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def refused(done, message):
    """Exit code 2, and this line the last and only one that is no progress."""
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == f"autocompress: {message}"
    assert "Traceback" not in done.stderr


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}


# --- apply -----------------------------------------------------------------------------------------------------------


def test_applied_plan_is_what_it_says(made):
    assert {path.name for path in made.run_folder.iterdir()} == {
        "config.yaml", "journal.jsonl", "plan.yaml", "outcome.json", "model.onnx", "model.safetensors",
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
            "Layer second: `sparsity` must be one of 0, 0.25, 0.5, 0.75, got 0.3.",
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


# --- finetune --------------------------------------------------------------------------------------------------------


def test_fine_tuning_a_run_improves_it_and_renews_its_files(run):
    before, outcome = contents(run), json.loads((run / "outcome.json").read_text())
    done = invoke("finetune", run, "--epochs", "3", "--learning-rate", "0.01", "--format", "json", "--quiet")
    assert (done.exit_code, done.stderr) == (0, "")
    after = json.loads((run / "outcome.json").read_text())
    assert set(after.pop("versions")) == {"autocompress", "python", "torch"}
    assert json.loads(done.stdout) | {"run_folder": ""} == after | {"run_folder": ""}
    assert after["compressed"]["accuracy"] > outcome["compressed"]["accuracy"]
    assert after["finetuning"]["best_step"] > 0
    assert after["budget"]["limits"] == outcome["budget"]["limits"]
    changed = {name for name, content in contents(run).items() if content != before.get(name)}
    assert changed == {"model.onnx", "model.safetensors", "outcome.json"}
    assert runs.verify(run).passed


def test_interrupted_fine_tuning_leaves_the_run_valid_and_goes_on(packed_run, tmp_path, monkeypatch):
    again = shutil.copytree(packed_run, tmp_path / "again")
    runs.finetune(again, finetune=1)
    monkeypatch.setattr("autocompress.execute.finetune._SAVE_SECONDS", 0.0)
    before = contents(packed_run)
    with pytest.raises(KeyboardInterrupt):
        runs.finetune(packed_run, finetune=1, progress=Watcher(3))
    kept = contents(packed_run)
    assert kept.pop("finetune.pt")
    assert kept == before
    assert runs.verify(packed_run).passed
    runs.finetune(packed_run, finetune=1)
    assert not (packed_run / "finetune.pt").exists()
    assert contents(packed_run)["model.safetensors"] == contents(again)["model.safetensors"]


def test_interruption_says_that_the_same_command_goes_on(packed_run, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("autocompress.runs.finetune", interrupt)
    done = invoke("finetune", packed_run, "--epochs", "1")
    assert (done.exit_code, done.stdout) == (130, "")
    assert done.stderr == "autocompress: interrupted. The run is as it was; the same command goes on.\n"


def test_diverged_fine_tuning_keeps_the_best_and_says_so(packed_run):
    done = invoke("finetune", packed_run, "--epochs", "1", "--learning-rate", "1e36", "--format", "json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["finetuning"]["diverged"] is True
    assert result["verified"] is True
    (note,) = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert note == (
        f"note: fine-tuning diverged at step {result['finetuning']['steps']}; the best network before that is kept. "
        "Lower --learning-rate to go further"
    )
    assert runs.verify(packed_run).passed


def test_fine_tuning_removes_files_of_the_network_before(packed_run):
    (packed_run / "model.pt2").write_bytes(b"of the network before")
    watcher = Watcher()
    runs.finetune(packed_run, finetune=0.1, progress=watcher)
    assert not (packed_run / "model.pt2").exists()
    note = "model.pt2 held the network before fine-tuning, so they were removed; export them again"
    assert note in watcher.notes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "`epochs` must be above 0, got 0; pass --epochs 2."),
        (["--epochs", "-1"], "`finetune` must be greater than or equal to 0, got '-1'."),
        (["--epochs", "1", "--distillation", "mild"], None),
    ],
)
def test_wrong_fine_tuning_is_one_line(arguments, message, packed_run):
    before = contents(packed_run)
    done = invoke("finetune", packed_run, *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    if message:
        refused(done, message)
    assert contents(packed_run) == before


# --- export ----------------------------------------------------------------------------------------------------------


def test_exported_files_load_and_agree(packed_run):
    done = invoke("export", packed_run, "--format", "onnx,packed,pt2", "--quiet")
    assert (done.exit_code, done.stderr) == (0, "")
    names = ["model.onnx", "model.safetensors", "model.pt2"]
    assert done.stdout.splitlines() == [
        f"{packed_run / name}: {(packed_run / name).stat().st_size:,} bytes" for name in names
    ]
    inputs, _ = next(iter(load_data("digits").test_batches(360)))
    expected = autocompress.load(packed_run)(inputs)
    exported = torch.export.load(packed_run / "model.pt2").module()(inputs)
    assert float((exported - expected).abs().max()) < 1e-4 * float(expected.abs().max())
    found = open_session(packed_run / "model.onnx").run(inputs)
    assert float((found.argmax(1) == expected.argmax(1)).double().mean()) > 0.97
    assert runs.verify(packed_run).passed


def test_export_of_an_onnx_run_gives_its_file_again(run):
    """Its parts may stand in another order: the packed file knows them in its own."""
    before = contents(run)
    assert runs.export(run, "onnx") == [run / "model.onnx"]
    after = contents(run)
    assert len(after["model.onnx"]) == len(before["model.onnx"])
    assert {name for name in after if after[name] != before[name]} <= {"model.onnx"}
    inputs, _ = next(iter(load_data("digits").test_batches(360)))
    assert torch.equal(open_session(after["model.onnx"]).run(inputs), open_session(before["model.onnx"]).run(inputs))


def test_export_to_openvino(run):
    try:
        openvino_ir._openvino()
    except InputError as error:
        done = invoke("export", run, "--format", "openvino", "--quiet")
        refused(done, str(error))
        pytest.skip(str(error))
    files = runs.export(run, "openvino")
    assert files == [run / "model.xml", run / "model.bin"]
    inputs, _ = next(iter(load_data("digits").test_batches(360)))
    found, expected = openvino_ir.run_openvino(files[0], inputs), autocompress.load(run)(inputs)
    assert float((found.argmax(1) == expected.argmax(1)).double().mean()) > 0.97


def test_unknown_format_lists_the_choices_and_writes_nothing(packed_run):
    before = contents(packed_run)
    done = invoke("export", packed_run, "--format", "pt2,tflite", "--quiet")
    refused(done, "`format` must be one of onnx, openvino, packed, pt2, got 'tflite'.")
    assert contents(packed_run) == before


# --- verify ----------------------------------------------------------------------------------------------------------


def test_verify_prints_a_table_and_json(run):
    done = invoke("verify", run, "--quiet")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "FAILED" not in done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("latency at batch 32, one thread: ")]
    data = json.loads(invoke("verify", run, "--quiet", "--format", "json").stdout)
    assert data["verified"] is True
    assert [check["name"] for check in data["checks"]] == [
        "channels", "levels", "budget", "agreement", "plan", "bytes", "bytes", "accuracy", "accuracy",
    ]  # fmt: skip


def tamper_plan(run):
    path = run / "plan.yaml"
    plan = yaml.safe_load(path.read_text())
    plan["labels"]["second"]["weight_bits"] = 2
    path.write_text(yaml.safe_dump(plan))
    return "plan: plan.yaml and model.safetensors hold other labels for second"


def lose_a_layer(run):
    path = run / "plan.yaml"
    plan = yaml.safe_load(path.read_text())
    del plan["labels"]["second"]
    path.write_text(yaml.safe_dump(plan))
    return "plan: plan.yaml and model.safetensors hold other labels for second"


def swap_outcome(run):
    path = run / "outcome.json"
    outcome = json.loads(path.read_text())
    claimed, size = outcome["file_bytes"]["model.onnx"] - 1, outcome["file_bytes"]["model.onnx"]
    outcome["file_bytes"]["model.onnx"] = claimed
    path.write_text(json.dumps(outcome))
    return f"bytes: model.onnx has {size:,} bytes, outcome.json says {claimed:,}"


def tamper_budget(run):
    path = run / "outcome.json"
    outcome = json.loads(path.read_text())
    size = outcome["compressed"]["resources"]["size"]
    outcome["budget"]["limits"] = {"size": size - 1}
    path.write_text(json.dumps(outcome))
    return f"budget: size {size:,} of {size - 1:,}"


@pytest.mark.parametrize("tamper", [tamper_plan, lose_a_layer, swap_outcome, tamper_budget])
def test_verify_names_the_claim_that_does_not_hold(tamper, run):
    line = tamper(run)
    done = invoke("verify", run, "--quiet")
    assert done.exit_code == 1
    assert done.stderr == f"autocompress: verification failed: {line}\n"
    assert "FAILED" in done.stdout


def test_verify_finds_another_weight_in_the_onnx_file(run):
    """The head's codes turned over, in a file of the same length."""
    import onnx

    proto = onnx.load(run / "model.onnx")
    (codes,) = [
        tensor for tensor in proto.graph.initializer
        if sorted(tensor.dims) == [6, 10] and tensor.data_type == onnx.TensorProto.INT8
    ]  # fmt: skip
    codes.raw_data = bytes(codes.raw_data[::-1])
    (run / "model.onnx").write_bytes(proto.SerializeToString(deterministic=True))
    done = invoke("verify", run, "--quiet")
    assert done.exit_code == 1
    assert done.stderr.startswith("autocompress: verification failed: agreement: ONNX Runtime agrees with PyTorch on ")


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors", "outcome.json", "plan.yaml"])
def test_truncated_files_are_one_line(name, run):
    path = run / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    for command in (["verify", run, "--quiet"], ["finetune", run, "--epochs", "1", "--quiet"]):
        if name == "model.onnx" and command[0] == "finetune":
            continue  # it is written anew
        done = invoke(*command)
        assert (done.exit_code, done.stdout) == (2, ""), (command, done.stderr, done.exception)
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("autocompress: ")


def test_a_folder_that_is_no_finished_run(run, tmp_path):
    for arguments in (["verify"], ["export", "--format", "onnx"], ["finetune", "--epochs", "1"]):
        missing = tmp_path / "none"
        message = f"`run` must be the folder of a finished run, got {missing}, which has no config.yaml."
        refused(invoke(arguments[0], missing, *arguments[1:]), message)
    (run / "outcome.json").unlink()
    message = f"`run` must be the folder of a finished run, got {run}, which has no outcome.json."
    refused(invoke("verify", run), message)


def test_a_run_without_its_targets_file(run):
    (run / "model.onnx").unlink()
    refused(invoke("verify", run, "--quiet"), f"`run` must hold model.onnx, got {run} without it; export it again.")
    assert invoke("export", run, "--format", "onnx", "--quiet").exit_code == 0
    assert invoke("verify", run, "--quiet").exit_code == 0


# --- search and its targets ------------------------------------------------------------------------------------------


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
    assert runs.verify(out).passed
    with pytest.raises((InputError, ExportError)):
        runs.export(out, "pt2")


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
