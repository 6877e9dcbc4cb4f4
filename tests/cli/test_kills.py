"""Kills, signals and full disks: one line that says how to go on, and going on ends as if nothing had happened.

`benchmarks/crashes.py` does so at many random moments, with all commands.
"""

import os
import resource
import signal
import subprocess
import sys
import threading

import pytest
import yaml
from typer.testing import CliRunner

from autocompress.cli.main import app
from autocompress.cli.shell import reported
from autocompress.comparison import run as comparison

QUICK = ["--search-samples", "64", "--calibration-samples", "64", "--sparsity-levels", "4", "--dtype", "float32",
         "--target", "packed", "--recalibration-samples", "64", "--budget", "size=0.12", "--episodes", "4"]  # fmt: skip
RESULTS = ("plan.yaml", "model.safetensors", "journal.f16")


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def killed_at(line, *arguments):
    """Run a command, and kill it once it has told of something."""
    command = [sys.executable, "-m", "autocompress", *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        seen = next((each for each in process.stderr if each.startswith(line)), None)
        process.kill()
        process.stderr.read()
    assert seen is not None
    assert process.returncode == -signal.SIGKILL


def test_two_kills_end_in_the_same_plan_and_bytes(tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "runs" / "killed"
    assert invoke("search", *QUICK, "--out", whole, "--cache", tmp_path / "a", "--quiet").exit_code == 0
    killed_at("calibration", "search", *QUICK, "--out", out, "--cache", tmp_path / "b")
    assert sorted(path.name for path in out.iterdir()) == [".lock", "config.next.yaml"]
    killed_at("episode 2", "search", "--out", out, "--resume")
    done = invoke("search", "--out", out, "--resume", "--quiet")
    assert done.exit_code == 0, done.stderr
    assert {name: (out / name).read_bytes() for name in RESULTS} == {
        name: (whole / name).read_bytes() for name in RESULTS
    }
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())
    assert [path for path in (tmp_path / "b").rglob("*.tmp")] == []


INTERRUPTED = """
import importlib.abc, os, signal, sys

class Interrupting(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == MODULE:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from autocompress.__main__ import main
main()
"""


@pytest.mark.parametrize("module", ["autocompress.cli.main", "typer", "pydantic", "yaml", "autocompress.api", "torch"])
def test_an_interruption_while_the_program_is_imported_is_one_line(module, tmp_path):
    script = INTERRUPTED.replace("MODULE", repr(module))
    command = [sys.executable, "-c", script, "search", *QUICK, "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "autocompress: interrupted.\n")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def heard():
    """A function that gives a signal its usual handler, which `nohup` and a shell's `&` take away, and returns it."""
    before = {}

    def hear(number):
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        before[number] = signal.signal(number, usual)
        return usual

    yield hear
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_signals_end_a_command_in_one_line(name, heard, capsys):
    number = getattr(signal, name)
    before = heard(number)
    with pytest.raises(Exception, match="130") as stop, reported() as context:  # noqa: PT012
        context.how_to_resume = lambda: " Go on so."
        signal.pthread_kill(threading.get_ident(), number)  # another thread of the tests' would not wake this one
    assert stop.value.exit_code == 130
    assert capsys.readouterr().err == "autocompress: interrupted. Go on so.\n"
    assert signal.getsignal(number) == before


def test_nohup_is_kept_to():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with reported():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def small_files():
    """A function that limits the size of files, as `ulimit -f` does; None takes the limit away."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if size is None else size, before[1]))

    yield limit
    limit(None)


@pytest.mark.parametrize(
    ("size", "file"),
    [
        (500, "run/config.next.yaml"),
        (20_000, "cache/menus/*/statistics.safetensors"),
    ],
)
def test_a_full_disk_names_the_file_and_the_way_on(size, file, tmp_path, small_files):
    out = tmp_path / "run"
    small_files(size)
    done = invoke("search", *QUICK, "--out", out, "--cache", tmp_path / "cache", "--quiet")
    small_files(None)
    assert (done.exit_code, done.stdout) == (1, "")
    path = next(tmp_path.glob(file.rpartition("/")[0]), out) / file.rpartition("/")[2]
    way_on = f" What was evaluated is kept; continue with: autocompress search --out {out} --resume"
    assert done.stderr == (
        f"autocompress: {path} can't be written: File too large; raise the limit on the size of files (ulimit -f)."
        f"{'' if size == 500 else way_on}\n"
    )
    assert [each for each in tmp_path.rglob("*.tmp")] == []
    if size != 500:
        assert invoke("search", "--out", out, "--resume", "--quiet").exit_code == 0


def test_a_comparison_killed_before_it_began_is_resumed(tmp_path, monkeypatch):
    base = {"target": "packed", "search_samples": 64, "calibration_samples": 64, "dtype": "float32"}
    suite = {"base": base, "budgets": ["size=0.12"], "methods": ["solver"], "seeds": 1, "episodes": 1, "test": False}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    command = ["compare", tmp_path / "suite.yaml", "--out", tmp_path / "out", "--cache", tmp_path / "cache"]

    class Killed(BaseException):
        pass

    def kill(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "_checked", kill)
        with pytest.raises(Killed):
            invoke(*command)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["suite.next.yaml"]
    assert invoke(*command, "--resume", "--quiet").exit_code == 0
    assert not (tmp_path / "out" / "suite.next.yaml").exists()
    assert len(list((tmp_path / "out" / "cells").iterdir())) == 1
