"""Jobs whose files are timed by a runner: here a process of this machine that notes that it was asked."""

import json
import shlex
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from run_toys import PLAN

import autocompress
from autocompress import Plan
from autocompress.job.timing import Timer
from autocompress.targets.runner import Runner
from autocompress.targets.target import TARGETS
from autocompress.targets.timing import Effort, TimeLimit, this_machine
from autocompress_envs.problem import Labeling

BOARD = """
import sys
open({log!r}, "a").write("asked ")
future, program = "from __future__ import annotations", sys.stdin.read()
own = "def machine(): return dict(processor='a board', cores=4, system='Linux aarch64')"
program = program.replace("def machine()", "def machine_here()").replace(future, own)
exec(compile(future + chr(10) + program, "sent", "exec"), dict(__name__="sent"))
"""


@pytest.fixture
def board(tmp_path):
    """(command, file that notes how often it was asked)."""
    log = tmp_path / "log"
    file = tmp_path / "board.py"
    file.write_text(BOARD.format(log=str(log)))
    return shlex.join([sys.executable, str(file)]), log


def test_a_plan_is_timed_on_the_board_and_judged_here(board, spec, quick, tmp_path):
    command, log = board
    made = autocompress.apply(spec, plan=Plan(PLAN), out=tmp_path / "run", runner=command, **quick)
    assert made.verification.passed, made.verification.failures()
    timings = made.verification.runtime.timings
    assert [str(each.machine) for each in timings.values()] == ["a board, 4 cores, Linux aarch64"] * 2
    assert log.read_text().split() == ["asked"] * 2
    said = json.loads((made.run_folder / "outcome.json").read_text())
    assert said["runtime"]["timings_by_batch"]["32"]["runs"] > 0
    assert said["energy"]["measured_by_batch"] is None


def test_kernel_costs_are_those_of_the_board(board, made, monkeypatch):
    """The timer of variants asks the board, and its times are kept under the board's name."""
    command, log = board
    target = TARGETS.find("onnxruntime")
    content = (made.run_folder / "model.onnx").read_bytes()
    inputs = torch.zeros(1, *made.network.inputs[0].shape)
    monkeypatch.setattr(Timer, "_file", lambda self, labeling: content)
    monkeypatch.setattr(Timer, "original_file", property(lambda self: content))
    there = replace(target, runtime=replace(target.runtime, runner=Runner(command)))
    timer = Timer(SimpleNamespace(target=there, inputs=inputs), TimeLimit(0.5, None, 2, 1))
    none = Labeling(*np.zeros((3, 3), dtype=np.int64))
    short = Effort(tightness=0.5, seconds=0.1, least_rounds=10)
    assert timer.time(none, short) is timer.time(none, short)
    assert log.read_text().split() == ["asked"]
    machine, version = timer.where
    assert (machine.processor, version) == ("a board", target.runtime.version)
    here = Timer(SimpleNamespace(target=target, inputs=inputs), TimeLimit(0.5, None, 2, 1))
    assert here.where == (this_machine(), version)
