"""The least of a resource at a tolerated loss: bounds with known answers, samples that stay unseen, whole searches."""

import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import autocompress
from autocompress.cli.main import app
from autocompress.data import load_data
from autocompress.data.training import trained_on
from autocompress.errors import InputError
from autocompress.evaluation.measure import CLASSES
from autocompress.job import held_out as held_out_samples
from autocompress.job import tolerance
from autocompress.job.held_out import LossTest, divergences, drop_bound, held_out, mean_bound


def answers(right, labels):
    """(N, 2) logits that are right where `right` says so."""
    wanted = torch.where(right, labels, 1 - labels)
    return torch.nn.functional.one_hot(wanted, 2).double()


def test_the_bound_of_a_drop_by_hand():
    """1,000 samples, 30 lost and 10 won: 20 / 1,002 and 1.645 standard errors of sqrt(41 - 20^2 / 1,002) / 1,002."""
    labels = torch.zeros(1_000, dtype=torch.int64)
    was, now = torch.ones(1_000, dtype=torch.bool), torch.ones(1_000, dtype=torch.bool)
    now[:30], was[30:40] = False, False
    error = 1.6448536 * math.sqrt(41 - 400 / 1_002) / 1_002
    assert drop_bound(answers(was, labels), answers(now, labels), labels, 0.05) == pytest.approx(20 / 1_002 + error)


def test_equal_networks_are_not_proven_equal_by_few_samples():
    for count, most in ((100, 0.02), (10_000, 0.0002)):
        labels = torch.zeros(count, dtype=torch.int64)
        right = answers(torch.ones(count, dtype=torch.bool), labels)
        assert 0.5 * most < drop_bound(right, right, labels, 0.05) < most


def test_the_bound_of_a_drop_is_rarely_too_low():
    """True drop: 3 points (5 % lost, 2 % won)."""
    rng, low = np.random.default_rng(0), []
    for _ in range(400):
        drawn = torch.from_numpy(rng.random(500))
        was, now = ~((drawn > 0.05) & (drawn < 0.07)), drawn >= 0.05
        labels = torch.zeros(500, dtype=torch.int64)
        low.append(drop_bound(answers(was, labels), answers(now, labels), labels, 0.05) < 0.03)
    assert np.mean(low) <= 0.08


def test_divergences_by_hand():
    even, sure = torch.log(torch.tensor([[0.5, 0.5]])), torch.log(torch.tensor([[0.9, 0.1]]))
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert divergences(even, sure) == pytest.approx([expected], rel=1e-6)
    assert divergences(even[:, None].repeat(1, 2, 1), torch.stack([even, sure], 1)) == pytest.approx([expected / 2])


def test_the_bound_of_a_mean_is_rarely_too_low():
    rng = np.random.default_rng(0)
    low = [mean_bound(rng.exponential(1.0, 400), 0.05) < 1.0 for _ in range(100)]
    assert np.mean(low) <= 0.15
    assert mean_bound(np.full(100, 0.25), 0.05) == 0.25


@pytest.fixture(scope="module")
def options(quick):
    return {**quick, "target": "packed", "episodes": 6, "selection_samples": 100}


@pytest.fixture(scope="module")
def found(folder, spec, options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tolerance, "TRIES", 3)
        return autocompress.smallest(spec, max_kl=0.6, minimize="size", out=folder / "tolerance", **options)


def test_the_smallest_network_that_passes_is_chosen(found):
    passed = [each for each in found.tries if each.passed]
    assert passed
    assert found.chosen in passed
    sizes = [each.point.amount["size"] for each in passed]
    assert found.chosen.point.amount["size"] == min(sizes)
    for each in found.tries:
        assert each.passed == (each.bound <= 0.6)
        assert each.bound > each.point.outcome["compressed"]["kl"] * 0.5  # a bound, on other samples
    assert autocompress.verify(found.chosen.point.run_folder).passed


def test_failing_budgets_are_followed_by_milder_ones(found):
    budgets = [int(each.point.budget.removeprefix("size=").removesuffix("b")) for each in found.tries]
    for before, now, following in zip(found.tries, budgets, budgets[1:], strict=False):
        assert (following < now) == before.passed


def test_the_result_is_written_as_data(found, folder):
    saved = json.loads((folder / "tolerance" / "tolerance.json").read_text())
    saved.pop("versions")
    assert saved == json.loads(json.dumps(found.data()))
    assert saved["confidence"] == 0.95
    page = (folder / "tolerance" / "report.html").read_text()
    assert f"nats is {found.chosen.point.run_folder.name}: {found.chosen.point.budget}, " in page


class Job:
    """As much of a job as the test of a loss needs: a network that answers with the sample itself."""

    memory, device, network = None, "cpu", None

    def __init__(self, original, labels):
        self.model = torch.nn.Identity()
        self.reading = CLASSES
        self.data = SimpleNamespace(train=self)
        self.original, self.labels, self.read = original, labels, 0

    def load(self, indices):
        self.read += len(indices)
        return self.original[indices], self.labels[indices]


class Flipped(torch.nn.Module):
    """Answers wrongly where the sample says so."""

    def forward(self, x):
        return torch.where(x[:, 2:] > 0, x[:, [1, 0]], x[:, :2])


def lost(drop, count, monkeypatch):
    """The loss of a network that answers `drop` of the samples wrongly which the original answers rightly."""
    labels = torch.zeros(count, dtype=torch.int64)
    wrong = (torch.arange(count) % round(1 / drop) == 0) if drop else torch.zeros(count, dtype=torch.bool)
    rows = torch.cat([answers(torch.ones(count, dtype=torch.bool), labels), wrong[:, None].double()], 1).float()
    monkeypatch.setattr(held_out_samples, "load", lambda run: Flipped())
    monkeypatch.setattr(held_out_samples, "measured_at_once", lambda *_: 512)
    job = Job(rows, labels)
    config = SimpleNamespace(max_drop=0.01, max_kl=None)
    test = LossTest(job, config, range(count), 0.05)
    return test("run"), test, job


def test_a_clear_loss_takes_the_first_look_alone(monkeypatch):
    for drop, passes in ((0.001, True), (0.05, False)):
        loss, test, _ = lost(drop, 16_000, monkeypatch)
        assert loss.samples == held_out_samples.FIRST_LOOK
        assert (loss.bound <= test.tolerated) == passes


def test_a_loss_near_the_tolerated_one_takes_more_samples(monkeypatch):
    """0.75 % lost; 2.13 standard errors, what a third of 5 % leaves: 0.29 % of 4,000 samples, 0.21 % of 8,000."""
    loss, test, job = lost(1 / 133, 16_000, monkeypatch)
    assert loss.samples == 8_000
    assert loss.bound <= test.tolerated
    assert job.read == 2 * 8_000  # the original's and the network's
    labels, rows = torch.zeros(8_000, dtype=torch.int64), torch.eye(3)[[0] * 8_000].double()
    now = rows.clone()
    now[::133] = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    assert loss.bound == drop_bound(rows, now, labels, 0.05 / 3)
    assert test("again") == loss
    assert job.read == 3 * 8_000  # the original's are kept


def test_few_samples_are_one_look(monkeypatch):
    loss, _, _ = lost(1 / 125, 3_000, monkeypatch)
    assert loss.samples == 3_000
    labels, right = torch.zeros(3_000, dtype=torch.int64), torch.ones(3_000, dtype=torch.bool)
    expected = drop_bound(answers(right, labels), answers(torch.arange(3_000) % 125 != 0, labels), labels, 0.05)
    assert loss.bound == pytest.approx(expected)


def test_looks_double_and_end_with_all_samples():
    assert held_out_samples.looks(16_000) == (4_000, 8_000, 16_000)
    assert held_out_samples.looks(4_000) == (4_000,)
    assert held_out_samples.looks(8_001) == (4_000, 8_000, 8_001)


def test_a_quarter_of_many_training_samples_is_held_out():
    class Many:
        def __len__(self):
            return 40_000

    data = replace(load_data("digits"), train=Many(), search_indices=(), calibration_indices=())
    assert len(held_out(SimpleNamespace(max_drop=0.01, selection_samples=1_000), data)) == 10_000


def test_samples_of_the_test_are_used_for_nothing_else():
    data = load_data("digits", search_samples=100, calibration_samples=100)
    config = SimpleNamespace(max_drop=0.01, selection_samples=200)
    kept = held_out(config, data)
    assert len(kept) >= 500
    without = replace(data, kept_out=kept)
    others = {*data.search_indices, *data.calibration_indices, *without.unused(10_000), *trained_on(without)}
    assert not others & set(kept)
    assert data.unused(200) == without.unused(200)  # the selection's samples are the same


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"minimize": "size"}, "`max_drop` or `max_kl` must go with `minimize`, and one of them only, got none."),
        (
            {"minimize": "size", "max_kl": 0.1, "max_drop": "1%"},
            "`max_drop` or `max_kl` must go with `minimize`, and one of them only, got both.",
        ),
        ({"max_kl": 0.1}, "`minimize` must be given with `max_drop` and `max_kl`, such as --minimize size."),
        (
            {"max_kl": 0.1, "minimize": "speed"},
            "`resource` must be one of bitops, energy, latency, macs, memory, size, got 'speed'.",
        ),
        (
            {"max_kl": 0.1, "minimize": "size", "budget": "size=0.5"},
            "`minimize` must be another resource than the budget's, got size in both.",
        ),
        ({"max_drop": "much%", "minimize": "size"}, "`max_drop` must be a share such as 1% or 0.01, got 'much%'."),
        (
            {"max_kl": 1e-9, "minimize": "size"},
            "`max_kl` must be within reach, got 1e-09; the mildest plan may lose up to ",
        ),
    ],
)
def test_wrong_tolerances(given, message, spec, options, tmp_path, monkeypatch):
    monkeypatch.setattr(tolerance, "TRIES", 1)
    with pytest.raises(InputError) as caught:
        autocompress.smallest(spec, out=tmp_path / "wrong", force=True, **options, **given)
    assert str(caught.value).startswith(message)


def test_a_drop_needs_labels(spec, folder, options):
    images = torch.randn(400, 1, 8, 8)
    settings = {**options, "search_samples": 64, "data": (images, None)}
    with pytest.raises(InputError) as caught:
        autocompress.smallest(spec, max_drop=0.01, minimize="size", out=folder / "unlabelled", **settings)
    assert str(caught.value) == (
        "`max_drop` needs labelled classes, got tensors without; pass --max-kl, which needs none, instead."
    )


def test_a_drop_that_so_few_samples_cannot_show_is_told_before_any_try(spec, options, tmp_path):
    """2.394 standard errors of 1 / (n + 2): what 95 % over six tries leave of the least that n equal answers show."""
    with pytest.raises(InputError) as caught:
        autocompress.smallest(spec, max_drop=0.001, minimize="size", out=tmp_path / "few", **options)
    found = re.fullmatch(
        r"`max_drop` must be at least ([\d.]+) with ([\d,]+) held-out samples, got 0.001; raise it, or hold out 2,392 "
        r"samples: give more training data, pass --selection-samples 0, or lower --search-samples\.",
        str(caught.value),
    )
    assert found is not None
    count = int(found[2].replace(",", ""))
    equal = torch.eye(2)[[0] * count]
    least = drop_bound(equal, equal, torch.zeros(count, dtype=torch.int64), tolerance.ERROR / tolerance.TRIES)
    assert least == pytest.approx(float(found[1]), abs=1e-4)
    assert not list((tmp_path / "few").glob("try-*"))


def test_the_last_try_is_the_mildest_plans_unless_one_has_passed():
    failed, passed = (tolerance.Try(None, bound, bound <= 0.1, 100) for bound in (0.2, 0.05))
    assert [tolerance._may_go_on([failed] * count) for count in (0, 4, 5, 6)] == [True, True, False, False]
    assert tolerance._may_go_on([failed] * 4 + [passed])
    assert not tolerance._may_go_on([passed] * 6)


def test_the_command_goes_on_and_prints_every_try(found, spec, folder, options, monkeypatch):
    monkeypatch.setattr(tolerance, "TRIES", 3)
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    out = str(folder / "tolerance")
    done = CliRunner().invoke(
        app, ["search", spec, "--max-kl", "0.6", "--minimize", "size", "--out", out, "--resume", *flags]
    )
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("size=") == len(found.tries)
    assert f"the smallest that passes: {found.chosen.point.run_folder} (95 % confidence over all tries, " in done.stdout
