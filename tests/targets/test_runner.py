"""Timing on another machine, which is a process of this one: also a noisy one, one that hangs, and one that dies."""

import shlex
import sys

import pytest
from lowering_toys import Residual, toy

from autocompress.errors import InputError
from autocompress.job.options import request
from autocompress.job.trust import check_trusted, named_functions
from autocompress.targets.graph.lowering import lower
from autocompress.targets.runner import Runner, runner
from autocompress.targets.target import TARGETS
from autocompress.targets.timing import Effort, this_machine

SHORT = Effort(tightness=0.5, seconds=0.2, least_rounds=10, most_rounds=40, warm_up=1)
PYTHON = f"{shlex.quote(sys.executable)} -"


def fake(tmp_path, body):
    """A command that reads the program as `program` and does as `body` says."""
    file = tmp_path / "board.py"
    file.write_text(f"import pathlib, subprocess, sys, time\nprogram = sys.stdin.read()\n{body}\n")
    return Runner(shlex.join([sys.executable, str(file)]))


def run_program(before="", after=""):
    return (
        f"{before}\nran = subprocess.run([sys.executable, '-'], input=program, capture_output=True, text=True)\n"
        f"sys.stdout.write(ran.stdout){after}"
    )


def files():
    """The same network twice: 8 bits."""
    compressed, x = toy(Residual, (8, 8))
    content = TARGETS.find("onnxruntime").write(lower(compressed, x, integer=True))
    return (content, content), x


def test_files_are_timed_in_turns_over_there():
    both, x = files()
    found = Runner(PYTHON).time("onnxruntime", both, x[:4], SHORT, 1)
    assert 10 <= found.rounds <= 40
    assert found.runs % found.rounds == 0
    assert 0 < found.original.p50 <= found.original.p95
    assert found.ratio.low <= found.ratio.median <= found.ratio.high
    assert found.machine == this_machine()
    assert found.energy is None


def test_the_machine_and_the_version_are_those_over_there():
    machine, version = Runner(PYTHON).where("onnxruntime")
    assert (machine, f"ONNX Runtime {version}") == (this_machine(), TARGETS.find("onnxruntime").runtime.version)


def test_noise_before_and_after_does_no_harm(tmp_path):
    noisy = fake(tmp_path, run_program("print('Welcome {\"to\": 1}', end=' ')", "\nprint('bye', '{')"))
    assert noisy.where("onnxruntime")[0] == this_machine()


def test_a_runner_that_died_once_is_tried_again(tmp_path):
    mark = tmp_path / "died"
    first = f"mark = pathlib.Path({str(mark)!r})\nif not mark.exists():\n    mark.write_text('x')\n    sys.exit(1)"
    assert fake(tmp_path, run_program(first)).where("onnxruntime")[0] == this_machine()


def test_a_runner_that_dies_twice_is_one_line(tmp_path):
    tries = tmp_path / "tries"
    dying = fake(tmp_path, f"open({str(tries)!r}, 'a').write('x')\nsys.exit('connection lost')")
    with pytest.raises(InputError) as caught:
        dying.where("onnxruntime")
    assert str(caught.value) == (
        f"`runner` must answer, got none from {dying.command!r} in two tries: exit code 1, connection lost"
    )
    assert tries.read_text() == "xx"


def test_a_runner_that_hangs_is_ended_with_what_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "START_SECONDS", 1)
    hanging = fake(tmp_path, "subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])")
    with pytest.raises(InputError) as caught:
        hanging.where("onnxruntime")
    assert str(caught.value) == (
        f"`runner` must answer within 1 seconds, got none from {hanging.command!r}, which was ended."
    )


def test_a_missing_runtime_is_named(tmp_path):
    lost = fake(tmp_path, run_program("program = program.replace('\"onnxruntime\\\\\"', '\"no_such_runtime\\\\\"')"))
    with pytest.raises(InputError) as caught:
        lost.where("onnxruntime")
    assert str(caught.value) == (
        "`runner` must have Python 3.8, NumPy and onnxruntime, and run the files, got ModuleNotFoundError: No module "
        f"named 'no_such_runtime' from {lost.command!r}."
    )


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "`runner` must be a command such as 'ssh pi@board python3 -', got none."),
        ("ssh 'pi", '`runner` must be a command, got "ssh \'pi": No closing quotation.'),
    ],
)
def test_what_is_no_command(command, message):
    with pytest.raises(InputError) as caught:
        Runner(command)
    assert str(caught.value) == message


def test_a_command_that_does_not_exist():
    with pytest.raises(InputError) as caught:
        Runner("no-such-command-here -").where("onnxruntime")
    assert str(caught.value) == (
        "`runner` must be a command that can be run, got 'no-such-command-here -': No such file or directory."
    )


def test_targets_that_no_runner_runs():
    with pytest.raises(InputError) as caught:
        request(options={"target": "packed", "runner": PYTHON})
    assert str(caught.value) == (
        "`runner` must go with a target whose file it can run (onnxruntime, openvino), got packed."
    )


def test_a_runner_that_a_folder_names_runs_only_where_it_is_trusted(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    named = named_functions({"runner": "ssh pi@board python3 -", "model": "digits"})
    assert [each.option for each in named] == ["runner"]
    with pytest.raises(InputError, match="`runner` of a folder must name no function that you did not name yourself"):
        check_trusted(named, tmp_path, trust=False)
    check_trusted(named, tmp_path, trust=True)
