"""Whole comparisons on the digits: resuming, processes that die, cells that fail, and the command line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import autocompress
from autocompress.cli.main import app
from autocompress.comparison import session
from autocompress.comparison.live import PlainComparison
from autocompress.comparison.results import CellResult
from autocompress.comparison.session import Session, requests_of
from autocompress.comparison.suite import Cell, make_suite, read_suite
from autocompress.errors import InputError
from autocompress.job import options as job_options
from autocompress.job.search import policy_digest
from autocompress.policies.files import load_policy, save_policy
from autocompress.policies.network import LabelPolicy

CHANCE = ("seconds", "forward_share", "measured")  # of time, and of who measured a plan first


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """A suite's content: two methods, three cells."""
    base = {
        "target": "packed", "search_samples": 64, "calibration_samples": 64, "sparsity_levels": 4, "dtype": "float32",
        "cache": str(tmp_path_factory.mktemp("cache")),
    }  # fmt: skip
    return {"base": base, "budgets": ["size=0.12"], "methods": ["solver", "random"], "seeds": 2, "episodes": 8}


@pytest.fixture(scope="module")
def whole(suite, tmp_path_factory):
    """The comparison, uninterrupted, in this process."""
    return autocompress.compare(suite, out=tmp_path_factory.mktemp("whole") / "out")


def worker(suite, out):
    """The session of a worker process."""
    return Session(suite, requests_of(suite), out)


def numbers(results):
    return [{name: repr(value) for name, value in vars(each).items() if name not in CHANCE} for each in results]


def write(path, content):
    path.write_text(yaml.safe_dump(content))
    return path


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def invoke(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def test_cells_keep_to_the_budget_and_count_their_own_evaluations(whole):
    solver, first, second = whole.results
    assert [str(each.cell) for each in whole.results] == [
        "solver, size=12%, seed 0", "random, size=12%, seed 0", "random, size=12%, seed 1"
    ]  # fmt: skip
    assert [each.evaluations for each in whole.results] == [1, 8, 8]
    assert solver.trace == ((1, solver.kl),)
    for each in (first, second):
        assert each.resources["size"] <= each.limits["size"] == int(0.12 * each.original["size"])
        assert [kl for _, kl in each.trace] == sorted((kl for _, kl in each.trace), reverse=True)
        assert each.trace[-1] == (each.found_at, each.kl)
        assert 0 <= each.test_accuracy <= 1
        assert yaml.safe_load(each.plan)["version"] == 1
    assert first.plan != second.plan
    assert not whole.failures


def test_the_best_plan_measures_the_same_outside_of_the_comparison(whole, suite, tmp_path):
    best = whole.results[1]
    plan = tmp_path / "plan.yaml"
    plan.write_text(best.plan)
    measured = autocompress.evaluate(plan=plan, **suite["base"])
    assert measured.outcome.kl == pytest.approx(best.test_kl, rel=1e-5)
    assert measured.outcome.accuracy == best.test_accuracy
    drop = 100 * (measured.original_outcome.accuracy - measured.outcome.accuracy)
    assert best.test_drop == pytest.approx(drop)
    assert measured.outcome.resources == best.resources


def test_evaluations_are_shared_but_counted_for_each(suite, tmp_path):
    twice = {**suite, "methods": ["random", {"name": "again", "method": "random"}], "seeds": 1, "test": False}
    first, again = autocompress.compare(twice, out=tmp_path / "out").results
    assert (first.evaluations, again.evaluations) == (8, 8)
    assert (first.measured, again.measured) == (8, 0)
    assert (first.kl, first.trace) == (again.kl, again.trace)
    assert str(first.test_kl) == "nan"


def test_processes_find_the_same_and_a_killed_comparison_resumes_to_the_same_results(suite, whole, tmp_path):
    path, out = write(tmp_path / "suite.yaml", suite), tmp_path / "out"
    script = "from autocompress.cli.main import main; main()"
    command = [sys.executable, "-c", script, "compare", path, "--out", out, "--jobs", "2", "--quiet"]
    process = subprocess.Popen(list(map(str, command)))
    deadline = time.monotonic() + 200
    while not list(out.glob("cells/*.json")) and time.monotonic() < deadline:
        time.sleep(0.002)
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    assert len(workers) >= 2
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert time.monotonic() < deadline, "workers outlive their parent"
    kept = {file: file.read_bytes() for file in out.glob("cells/*.json")}
    assert 1 <= len(kept) < 3
    assert not (out / "results.csv").exists()
    done = invoke(path, "--out", out, "--resume", "--format", "json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["failures"] == []
    assert all(file.read_bytes() == content for file, content in kept.items())
    cells = sorted(out.glob("cells/*.json"))
    results = [CellResult.from_json(file.read_text(), str(file)) for file in cells]
    expected = sorted(numbers(whole.results), key=lambda each: (each["method"], each["seed"]))
    assert numbers(results) == expected
    assert {file.name for file in out.iterdir()} == {
        "suite.yaml", "cells", "evaluations", "policies.json", "results.parquet", "results.csv", "summary.json",
        "summary.csv", "table.tex", "pareto.png", "pareto.html", "progress.png", "progress.html",
    }  # fmt: skip


def test_a_failing_cell_is_recorded_and_the_others_go_on(suite, tmp_path):
    failing = {
        **suite, "methods": [{"name": "pruning haq", "method": "haq", "weight_bits": 8}, "solver"], "seeds": 1
    }  # fmt: skip
    done = invoke(write(tmp_path / "suite.yaml", failing), "--out", tmp_path / "out", "--format", "json")
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    message = found["failures"][0]["message"]
    assert message == (
        "`method` haq needs several weight bit-widths on the menu of a layer, got one for each (8); "
        "offer more or choose another method."
    )
    assert done.stderr.splitlines()[-2:] == [
        "autocompress: 1 of 2 cells failed:",
        f"  pruning haq, size=12%, seed 0: {message}",
    ]
    assert [(row["method"], row["n"], row["failed"]) for row in found["summary"]] == [
        ("pruning haq", 0, 1), ("solver", 1, 0)
    ]  # fmt: skip
    assert (tmp_path / "out/pareto.png").exists()


def test_an_interrupted_comparison_says_how_to_go_on(suite, tmp_path, monkeypatch):
    def interrupt(self, result):
        raise KeyboardInterrupt

    path, out = write(tmp_path / "suite.yaml", suite), tmp_path / "out"
    monkeypatch.setattr(PlainComparison, "cell_done", interrupt)
    done = invoke(path, "--out", out, "--methods", "solver")
    assert done.exit_code == 130
    assert done.stderr.splitlines()[-1] == (
        "autocompress: interrupted. What was evaluated is kept; continue with: "
        f"autocompress compare {out}/suite.yaml --out {out} --resume"
    )
    monkeypatch.undo()
    done = invoke(out / "suite.yaml", "--out", out, "--resume")
    assert done.exit_code == 0
    assert "note: 1 of 1 cells had finished before" in done.stderr
    assert "* makes no random choice, so it runs with one seed" in done.stdout
    assert [method.name for method in read_suite(out / "suite.yaml").methods] == ["solver"]


def test_seeds_may_be_added_and_folders_are_not_taken_over(suite, whole):
    grown = autocompress.compare({**suite, "seeds": 3}, out=whole.folder, resume=True)
    assert len(grown.results) == 4
    assert numbers(grown.results[:3]) == numbers(whole.results)
    for options, message in [
        ({}, "`out` must be a new folder, got {}, which holds a comparison; pass --force to replace it or --resume to "
             "continue it."),
        ({"resume": True}, "`resume` needs seeds to hold 2 as in the comparison to resume, got [0, 1]; put it back, or "
                           "choose another --out."),
        ({"resume": True, "force": True}, "`force` and `resume` exclude each other, got both: --force starts anew, "
                                          "--resume continues."),
        ({"jobs": 0}, "`jobs` must be at least 1, got 0."),
    ]:  # fmt: skip
        with pytest.raises(InputError) as error:
            autocompress.compare(suite, out=whole.folder, **options)
        assert str(error.value) == message.format(whole.folder)


def test_another_policy_is_refused_where_cells_have_finished(suite, tmp_path):
    policy, out = tmp_path / "policy", tmp_path / "out"
    mine = {"name": "mine", "method": "rl", "agent": "posterior-ppo", "policy": str(policy), "episodes": 2}
    content = {**suite, "methods": ["solver", mine], "seeds": 1}
    digests = []
    for mean in (0.0, 0.1):
        untrained = LabelPolicy(1, 8)
        untrained.mean_layers.fill_(mean)
        save_policy(policy, untrained, {"kinds": ["conv", "linear"]})
        digests.append(policy_digest(load_policy(policy))["policy"])
        if not mean:
            autocompress.compare(content, out=out)
    assert json.loads((out / "policies.json").read_text()) == {"solver": None, "mine": digests[0]}
    message = (
        f"`policy` of mine must be that of the comparison in {out}, {digests[0]}, got {digests[1]}; "
        "put it back, or choose another --out."
    )
    cell = Cell("mine", "size=12%", 0)
    for act in (
        lambda: autocompress.compare(content, out=out, resume=True),
        lambda: worker(make_suite(content), out).run(cell, None),
    ):
        with pytest.raises(InputError) as error:
            act()
        assert str(error.value) == message
    (out / "cells/mine--size=12pct--0.json").unlink()
    assert autocompress.compare(content, out=out, resume=True).results[1].finished
    assert json.loads((out / "policies.json").read_text()) == {"solver": None, "mine": digests[1]}


def test_a_comparison_of_before_stamps_were_kept_is_resumed(whole, tmp_path):
    out = shutil.copytree(whole.folder, tmp_path / "out")
    (out / "policies.json").unlink()
    done = autocompress.compare(read_suite(out / "suite.yaml"), out=out, resume=True)
    assert not done.failures
    assert json.loads((out / "policies.json").read_text()) == {"solver": None, "random": None}


class Clock:
    """Only what is told to takes time."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def slow(self, function, seconds, calls):
        def call(*given, **named):
            self.now += seconds
            calls.append(seconds)
            return function(*given, **named)

        return call


def test_a_cell_s_seconds_are_of_the_search_alone(suite, tmp_path, monkeypatch):
    clock, calls = Clock(), []
    monkeypatch.setattr(session, "time", clock)
    slow = [(session, "run_search", 7), (session, "policy_says", 100), (session, "original_accuracy", 10_000)]
    for module, name, seconds in [*slow, (job_options, "chosen_policy", 1000)]:
        monkeypatch.setattr(module, name, clock.slow(getattr(module, name), seconds, calls))
    rl = {"name": "rl", "method": "rl", "agent": "posterior-ppo", "reward": "haq", "policy": "default", "episodes": 1}
    done = autocompress.compare({**suite, "methods": [rl], "seeds": 2}, out=tmp_path / "out")
    assert [each.seconds for each in done.results] == [7.0, 7.0]
    assert sorted(calls) == [7, 7, 100, 100, 1000, 10_000]  # the policy is read once, the original measured once


def test_what_is_wrong_shows_before_anything_is_written(suite, tmp_path):
    out = tmp_path / "out"
    path = write(tmp_path / "suite.yaml", {**suite, "budgets": ["size=0.12", "size=0.001"]})
    for arguments, message in [
        (["--resume"], f"`resume` needs the folder of a comparison, got {out}, which has no suite.yaml."),
        (["--episodes", "many"], "`episodes` must be a whole number of at least 1, got 'many'."),
        (["--jobs", "0"], "`jobs` must be greater than or equal to 1, got '0'."),
        (["--weights", "missing.pt"], "`weights` must be an existing file, got missing.pt."),
    ]:
        done = invoke(path, "--out", out, *arguments)
        assert done.exit_code == 2, done.stderr
        assert done.stderr.splitlines()[-1] == f"autocompress: {message}"
        assert not out.exists()
    done = invoke(path, "--out", out)
    assert done.stderr.splitlines()[-1].startswith("autocompress: Budget size=0.1% of solver: `size` budget must be")
    assert not out.exists()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/mine.txt").touch()
    with pytest.raises(InputError) as error:
        autocompress.compare(suite, out=tmp_path / "taken", force=True)
    assert str(error.value) == (
        f"`out` must be a new or empty folder, got {tmp_path / 'taken'}, which holds files that are no comparison's."
    )
    assert os.listdir(tmp_path / "taken") == ["mine.txt"]
