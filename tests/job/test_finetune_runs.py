"""Fine-tuning finished runs."""

import json
import shutil

import pytest
from run_toys import Watcher, contents, invoke, refused

from autocompress import api


def test_fine_tuning_a_run_improves_it_and_renews_its_files(run):
    """A network is taken only where its loss on the search split is lower; there, that lowers the KL elsewhere too."""
    before, outcome = contents(run), json.loads((run / "outcome.json").read_text())
    done = invoke("finetune", run, "--epochs", "10", "--learning-rate", "0.003", "--format", "json", "--quiet")
    assert (done.exit_code, done.stderr) == (0, "")
    after = json.loads((run / "outcome.json").read_text())
    assert set(after.pop("versions")) == {"autocompress", "python", "torch"}
    assert after.pop("machine")["device"] == "cpu"
    assert after.pop("made_by") == outcome["made_by"]
    assert json.loads(done.stdout) | {"run_folder": ""} == after | {"run_folder": ""}
    assert after["finetuning"]["best_step"] > 0
    assert after["compressed"]["kl"] < outcome["compressed"]["kl"]
    assert after["budget"]["limits"] == outcome["budget"]["limits"]
    changed = {name for name, content in contents(run).items() if content != before.get(name)}
    assert changed == {"README.md", "model.onnx", "model.safetensors", "outcome.json", "report.html"}
    assert api.verify(run).passed


def test_the_batch_size_may_be_another_than_the_runs(packed_run):
    """1,437 training digits less 64 of the search split are three batches."""
    done = invoke("finetune", packed_run, "--epochs", "1", "--batch-size", "500", "--format", "json", "--quiet")
    assert (done.exit_code, done.stderr) == (0, "")
    assert json.loads(done.stdout)["finetuning"]["steps"] == 3


def test_interrupted_fine_tuning_leaves_the_run_valid_and_goes_on(packed_run, tmp_path, monkeypatch):
    again = shutil.copytree(packed_run, tmp_path / "again")
    api.finetune(again, finetune=1)
    monkeypatch.setattr("autocompress.execute.finetune._SAVE_SECONDS", 0.0)
    before = contents(packed_run)
    with pytest.raises(KeyboardInterrupt):
        api.finetune(packed_run, finetune=1, progress=Watcher(3))
    kept = contents(packed_run)
    assert kept.pop("finetune.pt")
    assert kept == before
    assert api.verify(packed_run).passed
    api.finetune(packed_run, finetune=1)
    assert not (packed_run / "finetune.pt").exists()
    assert contents(packed_run)["model.safetensors"] == contents(again)["model.safetensors"]


def test_interruption_says_that_the_same_command_goes_on(packed_run, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("autocompress.api.finetune", interrupt)
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
    assert api.verify(packed_run).passed


def test_fine_tuning_removes_files_of_the_network_before(packed_run):
    (packed_run / "model.pt2").write_bytes(b"of the network before")
    watcher = Watcher()
    api.finetune(packed_run, finetune=0.1, progress=watcher)
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
