"""A second writer of a run, a comparison or a training ends at once with one line; the first loses nothing."""

import re

import pytest
import yaml
from run_toys import contents, flags, invoke

from autocompress.files import LOCK
from autocompress.run.lock import locked


def refused(done, folder, argument="out", task="search"):
    assert (done.exit_code, done.stdout) == (2, "")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("autocompress: ")]
    assert done.stderr.endswith(line + "\n")
    assert re.fullmatch(
        rf"autocompress: `{argument}` must be a folder that no other process writes, got {re.escape(str(folder))}, "
        rf"where process \d+ on \S+ \(autocompress {task}, since [-\d]+ [:\d]+\) is at work; "
        "wait for it, end it, or choose another folder.",
        line,
    )


@pytest.mark.parametrize("option", ["--resume", "--force"])
def test_a_live_run_is_neither_resumed_nor_replaced(option, run, quick, spec):
    with locked(run, "out", "search"):
        before = contents(run)
        refused(invoke("apply", spec, "--plan", run / "plan.yaml", "--out", run, option, *flags(quick)), run)
        assert contents(run) == before


def test_a_folder_that_another_start_has_just_taken(spec, quick, tmp_path):
    with locked(tmp_path / "run", "out", "search"):
        refused(
            invoke("search", spec, "--budget", "size=0.5", "--out", tmp_path / "run", *flags(quick)), tmp_path / "run"
        )
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["finetune", "--epochs", "1"], ["export", "--format", "onnx"]])
def test_a_run_that_is_fine_tuned(command, packed_run):
    with locked(packed_run, "run", "finetune"):
        before = contents(packed_run)
        refused(invoke(command[0], packed_run, *command[1:]), packed_run, "run", "finetune")
        assert contents(packed_run) == before


def test_what_only_reads_needs_no_lock(packed_run):
    with locked(packed_run, "run", "finetune"):
        assert invoke("verify", packed_run, "--quiet").exit_code == 0


def test_a_folder_that_is_no_run_gets_no_lock(tmp_path):
    invoke("finetune", tmp_path / "none", "--epochs", "1")
    invoke("export", tmp_path / "none", "--format", "onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", [None, "--resume", "--force"])
def test_a_live_comparison(option, tmp_path):
    suite, out = tmp_path / "suite.yaml", tmp_path / "out"
    content = {"base": {"model": "digits"}, "budgets": ["size=0.5"], "methods": ["solver"], "seeds": 1, "episodes": 1}
    suite.write_text(yaml.safe_dump(content))
    with locked(out, "out", "compare"):
        (out / "suite.next.yaml").write_text(suite.read_text())
        done = invoke("compare", suite, "--out", out, *([] if option is None else [option]), "--device", "cpu")
        if option == "--resume":  # the suite in the folder has no device
            assert done.exit_code == 2
        else:
            refused(done, out, task="compare")
        assert sorted(path.name for path in out.iterdir()) == [LOCK, "suite.next.yaml"]


@pytest.mark.parametrize("option", [None, "--resume", "--force"])
def test_a_live_training(option, tmp_path):
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    network = {"name": "res", "model": "autocompress.models.small_nets:SmallResNet", "data": "digits", "epochs": 1}
    task = {"name": "small", "budgets": [{"resource": "size", "low": 0.5, "high": 0.9}]}
    content = {"data": {"digits": "digits"}, "networks": [network], "tasks": [task]}
    recipe.write_text(yaml.safe_dump(content))
    with locked(out, "out", "train-policy"):
        if option == "--resume":
            from autocompress.policy_training.recipe import read_recipe

            (out / "recipe.yaml").write_text(read_recipe(recipe, {}).to_yaml())
        before = contents(out)
        refused(invoke("train-policy", recipe, "--out", out, *filter(None, [option])), out, task="train-policy")
        assert contents(out) == before
