"""Runs with a budget of latency, end to end in ONNX Runtime. No test depends on how fast this machine is."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import autocompress
from autocompress.budget import Budget
from autocompress.cli.main import app
from autocompress.comparison.suite import make_suite
from autocompress.errors import InputError
from autocompress.job import finish, kernel_times, search, time_budget
from autocompress.targets.timing import Effort, Interval, PairedTiming, TimeLimit, Times, Waiting, this_machine
from autocompress_envs.problem import Labeling

SHORT = Effort(seconds=0.1)
LIMIT = "latency=100ms,size=0.9"  # a thousand times what the network takes


@pytest.fixture(scope="module")
def searched(folder, spec, quick, tmp_path_factory):
    """One search with a budget of time that any plan meets, from four variants, each timed shortly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_times, "VARIANTS", (4,))
        patch.setattr(time_budget, "NEAR", 1)
        for module in (kernel_times, time_budget):
            patch.setattr(module, "VARIANT", SHORT)
        patch.setattr(time_budget, "LEADER", SHORT)
        path = tmp_path_factory.mktemp("latency") / "run"
        return autocompress.search(spec, budget=LIMIT, out=path, episodes=3, batch=2, **quick)


def outcome_of(result):
    return json.loads((result.run_folder / "outcome.json").read_text())


def test_the_outcome_says_what_was_timed_where_and_how_surely(searched):
    said = outcome_of(searched)["latency"]
    assert said["limit"] == {"share": None, "seconds": 0.1, "batch": 2, "threads": 1}
    assert said["machine"] == this_machine().data()
    assert said["met"] is True
    assert said["ratio"]["low"] <= said["ratio"]["median"] <= said["ratio"]["high"]
    assert said["compressed"]["median_seconds"]["high"] <= 0.1
    assert said["compressed"]["p50_seconds"] <= said["compressed"]["p95_seconds"]
    assert said["rounds"] >= 100


def test_latency_is_a_resource_like_the_others(searched):
    assert searched.verification.passed, searched.verification.failures()
    assert searched.limits["latency"] == 100_000_000
    assert 0 < searched.outcome.resources["latency"] <= 100_000_000
    assert searched.search_outcome.resources["latency"] > 0  # predicted, before a file was written
    names = [check.name for check in searched.verification.checks]
    assert (names.count("latency"), names.count("budget")) == (1, 1)
    assert set(searched.verification.runtime.timings) == {1, 2, 32}


def timing(median, width, settled=False):
    """A timing of half the original's time or so, for the rule of repeated timings alone."""
    around = Interval(median, median - width, median + width)
    times = Times(1e-3, 1e-3, Interval(1e-3, 1e-3, 1e-3))
    return PairedTiming(times, times, around, 10, 10, 0, settled, Waiting(0.5, 3.0, 2), this_machine())


@pytest.mark.parametrize(
    ("timings", "taken"),
    [
        ([timing(0.49, 0.005)], 0),  # kept at once
        ([timing(0.6, 0.01)], 0),  # broken for certain
        ([timing(0.495, 0.02, settled=True)], 0),
        ([timing(0.49, 0.05), timing(0.48, 0.01)], 1),
        ([timing(0.49, 0.05), timing(0.47, 0.06), timing(0.51, 0.02)], 2),  # the closest, though it is the slowest
    ],
)
def test_an_undecided_file_is_timed_again_and_the_closest_timing_counts(timings, taken):
    given = iter(timings)
    found = finish._decided(lambda: next(given), TimeLimit(0.5, None, 1, 1))
    assert found is timings[taken]
    assert next(given, None) is None  # all were taken, and no more asked for


def test_verification_times_again(searched):
    verified = autocompress.verify(searched.run_folder)
    assert verified.passed, verified.failures()
    check = next(check for check in verified.checks if check.name == "latency")
    assert check.detail.endswith("at most 100 ms; batch 2, one thread")


def changed(searched, path, **latency):
    """A copy of the run whose outcome says something else of its time."""
    shutil.copytree(searched.run_folder, path)
    said = outcome_of(searched)
    said["latency"] |= latency
    (path / "outcome.json").write_text(json.dumps(said))
    return path


def test_a_limit_that_is_not_kept_fails_on_this_machine_and_is_reported_on_others(searched, tmp_path):
    limit = {"share": None, "seconds": 1e-9, "batch": 1, "threads": 1}
    here = autocompress.verify(changed(searched, tmp_path / "here", limit=limit))
    assert [line.partition(":")[0] for line in here.failures()] == ["latency"]
    elsewhere = {"processor": "Other", "cores": 8, "system": "Linux x86_64"}
    there = autocompress.verify(changed(searched, tmp_path / "there", limit=limit, machine=elsewhere))
    assert there.passed
    check = next(check for check in there.checks if check.name == "latency")
    assert check.detail.endswith("but on Other, 8 cores, Linux x86_64")


def test_damaged_claims_of_time_are_refused(searched, tmp_path):
    run = changed(searched, tmp_path / "run", limit={"share": 0.5, "seconds": 1.0, "batch": 1, "threads": 1})
    with pytest.raises(InputError, match=r"`latency` of .* must be as it was written"):
        autocompress.verify(run)


def test_a_given_plan_is_timed_against_a_budget(searched, folder, spec, quick, tmp_path):
    made = autocompress.apply(
        spec, plan=searched.run_folder / "plan.yaml", budget="latency=1ns", out=tmp_path / "run", **quick
    )
    assert [line.partition(":")[0] for line in made.verification.failures()] == ["latency"]
    assert not made.meets_budget


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["search", "--budget", "latency=5"],
            "`budget` of latency must be a fraction of the original's time such as 0.5 or 50%, or a time such as 5ms "
            "(ns, us, ms or s), got '5'.",
        ),
        (
            ["search", "--budget", "latency=0.5", "--target", "packed"],
            "`budget` of latency must go with a target whose file runs here (onnxruntime, openvino, litert, "
            "executorch), got packed; pass --target onnxruntime.",
        ),
        (
            ["search", "--budget", "latency=0.5", "--stages", "2", "--finetune", "1"],
            "`stages` must be 1 with a budget of latency, got 2.",
        ),
        (
            ["evaluate", "--budget", "latency=0.5", "--plan", "PLAN"],
            "`budget` of latency is measured on files, which `evaluate` does not write; use `apply`.",
        ),
        (["search", "--budget", "latency=0.5", "--threads", "0"], "`threads` must be "),
    ],
)
def test_wrong_budgets_of_time_are_one_line(arguments, message, searched):
    given = [str(searched.run_folder / "plan.yaml") if each == "PLAN" else each for each in arguments]
    done = CliRunner().invoke(app, given)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr


def test_a_wrong_unit_ends_the_command_with_one_line():
    command = [sys.executable, "-m", "autocompress", "search", "--budget", "latency=5parsecs"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.endswith("or a time such as 5ms (ns, us, ms or s), got '5parsecs'.\n")


def test_a_suite_does_not_time():
    with pytest.raises(InputError) as caught:
        Budget.parse("size=0.5,latency=0.5").counted("budgets")
    assert str(caught.value) == (
        "`budgets` must be of resources that are counted (size, macs, bitops, memory, energy), got latency, which is "
        "measured on files; use `autocompress search`."
    )
    with pytest.raises(InputError, match="`budgets` must be of resources that are counted"):
        make_suite({"base": {"model": "digits"}, "budgets": ["latency=0.5"], "methods": ["solver"], "episodes": 5})


@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_plans_count_the_time_that_was_corrected_near_the_limit(factor, folder, spec, quick, tmp_path, monkeypatch):
    """The search and its journal must mean the same time: else no plan is within a limit that was corrected down."""
    corrections = {
        name: torch.tensor(value, dtype=torch.float64) for name, value in (("factor", factor), ("margin", 0.0))
    }
    monkeypatch.setattr(kernel_times, "VARIANTS", (4,))
    monkeypatch.setattr(time_budget, "_corrections", lambda *_: corrections)
    for module, name in ((kernel_times, "VARIANT"), (time_budget, "VARIANT"), (time_budget, "LEADER")):
        monkeypatch.setattr(module, name, SHORT)
    seen = []
    counted = search.counted

    def kept(evaluator, job):
        seen.append(job.problem)
        return counted(evaluator, job)

    monkeypatch.setattr(search, "counted", kept)
    result = autocompress.search(spec, budget="latency=100ms", out=tmp_path / "run", episodes=2, **quick)
    entries = [json.loads(line) for line in (result.run_folder / "journal.jsonl").read_text().splitlines()[1:]]
    assert entries
    for entry in entries:
        labeling = Labeling(*map(np.array, entry["labels"]))
        assert entry["resources"]["latency"] == seen[0].resources(labeling)["latency"]
