"""Whole jobs on data without labels: they report closeness to the original and no accuracy, and ask for no labels."""

import json

import numpy as np
import pytest
from PIL import Image
from run_toys import invoke

import autocompress
from autocompress.data.arrays import digits_tensors

QUICK = ["--search-samples", "200", "--calibration-samples", "100", "--sparsity-levels", "4", "--dtype", "float32",
         "--recalibration-samples", "200"]  # fmt: skip
NET = """
from torch import nn

def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4),
    )

def listener():
    return nn.Sequential(
        nn.Conv1d(1, 8, 9, 4), nn.ReLU(), nn.Conv1d(8, 8, 9, 4), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        nn.Linear(8, 2),
    )
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("unlabelled")
    train, _, test, _ = digits_tensors()
    np.savez(path / "digits.npz", x_train=train.numpy(), x_test=test.numpy())
    (path / "nets.py").write_text(NET)
    return path


@pytest.fixture(scope="module")
def options(folder):
    return ["digits", "--data", f"npz:{folder}/digits.npz", "--cache", folder / "cache", *QUICK]


@pytest.fixture(scope="module")
def searched(folder, options):
    """A run, fine-tuned, and what the search printed as JSON."""
    run = folder / "run"
    done = invoke("search", *options, "--budget", "size=0.12", "--episodes", "6", "--finetune", "1", "--out", run,
                  "--format", "json", "--quiet")  # fmt: skip
    assert (done.exit_code, done.stderr) == (0, "")
    return run, json.loads(done.stdout)


def test_search_reports_closeness_alone(searched):
    run, printed = searched
    found = json.loads((run / "outcome.json").read_text())
    assert printed["split"] == found["split"] == "test"
    for part in ("original", "compressed", "runtime"):
        assert found[part]["accuracy"] is None
    assert 0 < found["compressed"]["kl"] < 0.1
    assert found["compressed"]["agreement"] > 0.95
    assert all(check["passed"] for check in found["checks"])
    assert all(json.loads(line).get("accuracy") is None for line in (run / "journal.jsonl").read_text().splitlines())


def test_the_table_has_no_number_for_accuracy(searched, options):
    run, _ = searched
    done = invoke("evaluate", *options[:-2], "--plan", run / "plan.yaml", "--quiet")
    assert done.exit_code == 0
    (line,) = [line for line in done.stdout.splitlines() if "accuracy" in line]
    assert [cell.strip() for cell in line.split("│")[1:4]] == ["top-1 accuracy", "-", "-"]


def test_verify_and_finetune(searched):
    run, _ = searched
    assert invoke("verify", run, "--quiet").exit_code == 0
    done = invoke("finetune", run, "--epochs", "1", "--format", "json", "--quiet")
    assert (done.exit_code, done.stderr) == (0, "")
    assert json.loads(done.stdout)["compressed"]["accuracy"] is None


def test_compare(folder, options):
    suite = folder / "suite.yaml"
    suite.write_text(
        f"base: {{model: digits, data: 'npz:{folder}/digits.npz', sparsity_levels: 4, search_samples: 200, "
        f"calibration_samples: 100, dtype: float32}}\n"
        "budgets: [size=0.12]\nmethods: [solver, local]\nseeds: 1\nepisodes: 6\ntest: true\n"
    )
    done = invoke("compare", suite, "--out", folder / "compared", "--cache", folder / "cache", "--quiet")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "accuracy" not in done.stdout
    assert {"results.csv", "summary.csv", "table.tex"} <= {path.name for path in (folder / "compared").iterdir()}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--finetune", "1", "--hard-weight", "1"], "`hard_weight` needs labelled data, got npz:{folder}/digits.npz "
         "without labels; pass --labels teacher or leave it out."),
        (["--reward", "accuracy", "--agent", "ppo"], "`reward` accuracy needs labelled data, got "
         "npz:{folder}/digits.npz without labels; choose kl."),
    ],
)  # fmt: skip
def test_what_needs_labels_is_refused_at_once(folder, options, extra, message):
    done = invoke("search", *options, "--budget", "size=0.12", "--out", folder / "refused", *extra)
    assert done.exit_code == 2
    assert done.stderr == f"autocompress: {message.format(folder=folder)}\n"


def test_a_folder_of_images_alone(folder, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 12, 12, 3), np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(photos / f"{number:02}.png")
    result = autocompress.search(
        f"{folder / 'nets.py'}:net", f"imagefolder:{photos}", "size=0.6", out=tmp_path / "run", episodes=4,
        sparsity_levels=4, dtype="float32", cache=tmp_path / "cache",
    )  # fmt: skip
    assert result.verification.passed, result.verification.failures()
    assert np.isnan(result.outcome.accuracy)
    assert result.outcome.resources["size"] <= result.limits["size"]


@pytest.mark.parametrize("labelled", [False, True])
def test_a_folder_of_sounds(folder, tmp_path, labelled):
    soundfile = pytest.importorskip("soundfile", reason="needs the extra audio")
    for number in range(40):
        kind, tone = ("low", 200) if number % 2 else ("high", 900)
        place = tmp_path / "sounds" / (kind if labelled else ".")
        place.mkdir(parents=True, exist_ok=True)
        wave = 0.3 * np.sin(2 * np.pi * tone * (1 + number / 400) * np.arange(800) / 4000)
        soundfile.write(place / f"{number}.wav", wave, 4000)
    result = autocompress.search(
        f"{folder / 'nets.py'}:listener", f"audio:{tmp_path / 'sounds'}", "size=0.7", out=tmp_path / "run", episodes=4,
        sparsity_levels=4, dtype="float32", cache=tmp_path / "cache", finetune=1,
    )  # fmt: skip
    assert result.verification.passed, result.verification.failures()
    assert np.isnan(result.outcome.accuracy) != labelled
    assert result.outcome.resources["size"] <= result.limits["size"]
