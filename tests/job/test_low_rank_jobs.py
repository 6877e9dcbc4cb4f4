"""Low ranks through a whole job: search, files, verification, fine-tuning, and the command line's refusals."""

import subprocess
import sys

import pytest
import torch
from rich.console import Console
from torch import nn

import autocompress
from autocompress.plan import Plan
from autocompress.report.tables import print_result
from autocompress.run.names import PLAN


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A network whose middle layer nearly has rank 6, at 60 % of its multiply-accumulates."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 4)).eval()
    middle = torch.randn(48, 6) @ torch.randn(6, 48) / 6
    model[2].weight.data = middle + 0.01 * torch.randn(48, 48)
    inputs = torch.randn(360, 24)
    folder = tmp_path_factory.mktemp("low-rank")
    result = autocompress.search(
        model,
        ((inputs[:280], None), (inputs[280:], None)),
        "macs=0.6",
        ranks="0.35,0.7",
        method="solver",
        sparsity_levels=4,
        search_samples=60,
        calibration_samples=100,
        selection_samples=0,
        recalibration_samples=100,
        out=folder / "run",
        cache=folder / "cache",
    )
    return model, inputs, folder, result


def test_the_layer_of_low_rank_is_cut(job):
    model, inputs, _, result = job
    assert result.verification.passed, result.verification.failures()
    assert {name: label.rank for name, label in result.plan.labels.items()} == {"0": 0, "2": 8, "4": 0}
    assert result.verification.resources["macs"] <= 0.6 * (24 * 48 + 48 * 48 + 48 * 4)
    loaded = autocompress.load(result.run_folder)
    with torch.no_grad():
        expected, found = model(inputs[280:]), loaded(inputs[280:])
    assert float((found - expected).square().mean() / expected.square().mean()) < 0.01


def test_the_run_says_so(job):
    _, _, _, result = job
    plan = Plan.load(result.run_folder / PLAN)
    assert plan == result.plan
    assert plan.to_dict()["version"] == 2
    console = Console(record=True, width=200, file=None)
    with console.capture() as shown:
        print_result(console, result)
    assert "low ranks: 1 of 3 layers are two thin ones each" in shown.get()
    report = autocompress.inspect(job[0], (job[1], None), ranks=(0.35,), cache=job[2] / "cache", sparsity_levels=4)
    assert "rank 8 (" in {row.name: row.labels for row in report.layers}["2"]


def test_it_is_fine_tuned_and_verified_again(job):
    model, inputs, _, result = job
    data = ((inputs[:280], None), (inputs[280:], None))
    finished = autocompress.finetune(result.run_folder, model, data, finetune=1, labels="teacher")
    assert finished.verification.passed, finished.verification.failures()
    assert finished.plan == result.plan
    verified = autocompress.verify(result.run_folder, model, data)
    assert verified.passed, verified.failures()


def test_wrong_ranks_are_one_line():
    command = [sys.executable, "-m", "autocompress", "inspect", "digits", "--ranks", "1.5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert " ".join(done.stderr.split()) == (
        "autocompress: `ranks` must be ascending shares above 0 and below 1 of a layer's multiply-accumulates, such as "
        "0.25,0.5,0.75, got [1.5]."
    )
