"""Folders of somebody else's: what their files name is not called unless the user named it or trusts the folder."""

import os
import shutil
import stat
import subprocess
import sys

import pytest
import yaml
from run_toys import invoke, refused

import autocompress
from autocompress import InputError, api
from autocompress.job.trust import named_functions, remember


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A user who has let nothing run."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def trace(tmp_path):
    return tmp_path / "X"


def tampered(folder, **options):
    """The folder with other options in its config.yaml."""
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **options}))
    return folder


def attack(option, trace):
    return {option: "subprocess:call", f"{option}_args": {"args": ["touch", str(trace)]}}


def not_named(option, spec, folder):
    return (
        f"`{option}` of a folder must name no function that you did not name yourself, got {spec!r} in {folder}, "
        "which would run; pass --trust (in Python trust=True) if you trust it."
    )


def standard(option, spec):
    return f"`{option}` must name a function of your own, got {spec!r}, which is in Python's standard library."


@pytest.mark.parametrize("option", ["data", "model"])
@pytest.mark.parametrize("command", [["verify"], ["finetune", "--epochs", "1"], ["export", "--format", "onnx"]])
def test_a_finished_run_of_a_stranger_runs_no_command(packed_run, spec, trace, option, command):
    run = tampered(packed_run, **attack(option, trace))
    arguments = [command[0], run, *command[1:], "--quiet"]
    refused(invoke(*arguments), not_named(option, "subprocess:call", run))
    other = [] if option == "model" else ["--model", spec]  # named, as the model is looked at first
    refused(invoke(*arguments, *other, "--trust"), standard(option, "subprocess:call"))
    assert not trace.exists()


@pytest.mark.parametrize("option", ["data", "model"])
@pytest.mark.parametrize("command", ["search", "apply"])
def test_resuming_a_strangers_run_runs_no_command(run, trace, option, command):
    tampered(run, **attack(option, trace))
    arguments = [command, "--out", run, "--resume", "--plan", run / "plan.yaml", "--quiet"]
    if command == "search":
        del arguments[4:6]
    refused(invoke(*arguments), not_named(option, "subprocess:call", run))
    done = invoke(*arguments, "--trust")
    assert (done.exit_code, trace.exists()) == (2, False)


def test_the_attack_as_written_in_a_process_of_its_own(run, trace):
    tampered(run, model="digits", **attack("data", trace))
    command = [sys.executable, "-m", "autocompress", "verify", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, trace.exists()) == (2, "", False)
    assert done.stderr == f"autocompress: {not_named('data', 'subprocess:call', run)}\n"


def test_the_options_of_a_run_given_as_config_are_still_the_folders(run, trace):
    tampered(run, **attack("data", trace))
    done = invoke("search", "--config", run / "config.yaml", "--out", run.parent / "new", "--budget", "size=0.5")
    refused(done, not_named("data", "subprocess:call", run))
    assert not trace.exists()


def test_a_strangers_own_function_needs_to_be_named_or_trusted(run, spec, stranger):
    assert "model" in str(yaml.safe_load((run / "config.yaml").read_text()))
    with pytest.raises(InputError) as error:
        api.verify(run)
    assert str(error.value) == not_named("model", spec, run)
    assert api.verify(run, model=spec).passed
    assert api.verify(run, trust=True).passed
    assert invoke("verify", run, "--model", spec, "--quiet").exit_code == 0
    assert invoke("verify", run, "--trust", "--quiet").exit_code == 0
    refused(invoke("verify", run, "--quiet"), not_named("model", spec, run))  # trusting once is not for ever


def test_a_run_of_ones_own_needs_nothing(run):
    assert api.verify(run).passed


def test_what_was_let_run_counts_with_its_arguments_and_its_place(tmp_path, stranger, run, spec):
    remember(named_functions({"model": spec, "model_args": {}}))
    file = tmp_path / "state" / "autocompress" / "functions"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert api.verify(run).passed
    tampered(run, model_args={"opaque": True})
    with pytest.raises(InputError) as error:
        api.verify(run)
    assert str(error.value) == not_named("model", spec, run)
    copy = tmp_path / "tiny.py"
    shutil.copy(spec.removesuffix(":net"), copy)
    tampered(run, model=f"{copy}:net", model_args={})
    with pytest.raises(InputError) as error:
        api.verify(run)
    assert str(error.value) == not_named("model", f"{copy}:net", run)


def test_a_state_folder_that_cannot_be_written_means_asking(tmp_path, monkeypatch, run, spec):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    remember(named_functions({"model": spec}))
    refused(invoke("verify", run, "--quiet"), not_named("model", spec, run))


def test_a_comparisons_folder(tmp_path, trace, stranger):
    folder = tmp_path / "theirs"
    (folder / "cells").mkdir(parents=True)
    suite = folder / "suite.yaml"
    content = {"base": attack("data", trace), "budgets": ["size=0.5"], "methods": ["solver"], "seeds": 1}
    suite.write_text(yaml.safe_dump(content))
    for out in (folder, tmp_path / "mine"):
        done = invoke("compare", suite, "--out", out, *(["--resume"] if out == folder else []), "--quiet")
        refused(done, not_named("data", "subprocess:call", folder))
    done = invoke("compare", suite, "--out", tmp_path / "mine", "--trust", "--quiet")
    refused(done, standard("data", "subprocess:call"))
    assert not trace.exists()


@pytest.mark.parametrize("option", ["data", "model"])
def test_a_trainings_folder(tmp_path, trace, stranger, option):
    folder = tmp_path / "theirs"
    (folder / "experience").mkdir(parents=True)
    network = {"name": "a", "model": "digits", "data": "d", "epochs": 1}
    recipe = {"data": {"d": "digits"}, "networks": [network], "tasks": [{"name": "t", "budgets": [{"resource": "size",
              "low": 0.1, "high": 0.5}]}]}  # fmt: skip
    if option == "data":
        recipe["data"]["d"] = "subprocess:call"
    else:
        network |= attack("model", trace)
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    refused(
        invoke("train-policy", file, "--out", folder, "--resume", "--quiet"),
        not_named(option, "subprocess:call", folder),
    )
    assert not trace.exists()


@pytest.mark.skipif(os.name != "posix", reason="os.system is in the module posix there")
@pytest.mark.parametrize(
    "spec", ["subprocess:call", "os:system", "builtins:eval", "os.path:exists", "_io:open", "site:main"]
)
@pytest.mark.parametrize("option", ["data", "model"])
def test_the_standard_library_is_refused_on_the_command_line_too(option, spec, tmp_path):
    given = {"model": "digits", "data": "digits", "budget": "size=0.5", "out": tmp_path / "run"} | {option: spec}
    done = invoke("search", given.pop("model"), *[f"--{name}={value}" for name, value in given.items()], "--quiet")
    refused(done, standard(option, spec))
    assert not (tmp_path / "run").exists()


def test_trust_is_a_flag_of_these_commands_and_no_option_of_files():
    for command in ("search", "apply", "finetune", "export", "verify", "compare", "train-policy"):
        assert "--trust" in invoke(command, "--help").stdout, command
    assert "trust" not in autocompress.config.OPTIONS
