"""Fronts: many budgets of one prepared job, each point a run of its own; resumed, refused, and told."""

import json
from itertools import pairwise

import pytest
from typer.testing import CliRunner

import autocompress
from autocompress.cli.main import app
from autocompress.errors import InputError
from autocompress.job import front as fronts

BUDGETS = ("0.6", "0.45")


@pytest.fixture(scope="module")
def options(quick):
    return {**quick, "target": "packed", "episodes": 6, "selection_samples": 0}


@pytest.fixture(scope="module")
def front(folder, spec, options):
    """A front of two points, and how many evaluators it took."""
    built = []
    with pytest.MonkeyPatch.context() as patch:
        original = fronts.build_evaluator
        patch.setattr(fronts, "build_evaluator", lambda *given: built.append(1) or original(*given))
        made = autocompress.pareto(spec, budgets=BUDGETS, out=folder / "front", **options)
    return made, len(built)


def test_every_point_is_within_its_budget_and_verified(front):
    made, _ = front
    assert [point.budget for point in made.points] == ["size=45%", "size=60%"]  # the strictest first
    for point, most in zip(made.points, (0.45, 0.6), strict=True):
        assert point.outcome["fraction_of_original"]["size"] <= most
        assert point.outcome["verified"] is True
        assert autocompress.verify(point.run_folder).passed
    assert made.points[0].amount["size"] <= made.points[1].amount["size"]
    assert [point.run_folder.name for point in made.points] == ["size-45pc", "size-60pc"]


def test_the_points_share_one_evaluator_and_few_evaluations(front):
    made, built = front
    assert built == 1
    assert all(point.outcome["evaluations"] <= fronts.LEAST_EPISODES for point in made.points)


def test_the_front_is_written_as_data(front):
    made, _ = front
    saved = json.loads((made.folder / "pareto.json").read_text())
    assert set(saved.pop("versions")) == {"autocompress", "python", "torch"}
    assert saved == json.loads(json.dumps(made.data()))
    assert [set(point) for point in saved["points"]] == [
        {"budget", "run_folder", "compressed", "fraction_of_original", "runtime", "verified", "balanced_prices"}
    ] * 2


def test_the_front_of_the_balanced_reward_stands_beside_it(front):
    """At the price between two points both are worth the same; beyond it, the smaller one is worth more."""
    made, _ = front
    small, large = (point.outcome for point in made.points)

    def worth(outcome, price):
        return outcome["compressed"]["accuracy"] - price * outcome["fraction_of_original"]["size"]

    (low, high), of_large = made.prices
    assert high == float("inf")
    if low == 0.0:  # the smaller one is no worse
        assert of_large is None
    else:
        assert of_large == (0.0, low)
        assert worth(small, low) == pytest.approx(worth(large, low), abs=1e-6)
    assert made.data()["points"][0]["balanced_prices"] == [low, None]


def test_the_front_has_a_page_that_leads_to_those_of_its_points(front):
    made, _ = front
    page = (made.folder / "report.html").read_text()
    for point in made.points:
        assert f'href="{point.run_folder.name}/report.html"' in page
        assert (point.run_folder / "report.html").is_file()


def test_a_front_goes_on_where_it_was(front, spec, options):
    """The second point's outcome is gone: its search is replayed, and the first point is left alone."""
    made, _ = front
    first, second = (point.run_folder for point in made.points)
    before, plan = (first / "outcome.json").stat().st_mtime_ns, (second / "plan.yaml").read_text()
    journal = (second / "journal.jsonl").read_text()
    (second / "outcome.json").unlink()
    again = autocompress.pareto(spec, budgets=BUDGETS, out=made.folder, resume=True, **options)
    assert (first / "outcome.json").stat().st_mtime_ns == before
    assert (second / "plan.yaml").read_text() == plan
    assert (second / "journal.jsonl").read_text() == journal
    assert again.points[1].outcome["compressed"] == made.points[1].outcome["compressed"]


def test_points_are_spaced_by_equal_ratios(front, spec, options, folder, monkeypatch):
    asked = []

    def found(job, request, tuning, budgets, path, watcher):
        asked.extend(budgets)
        return fronts.Front("macs", (), path)

    monkeypatch.setattr("autocompress.api.search_front", found)
    monkeypatch.setattr("autocompress.api.write_front", lambda path: path)  # nothing was found that it could show
    autocompress.pareto(spec, resource="macs", points=4, out=folder / "spaced", **options)
    amounts = [int(each.removeprefix("macs=")) for each in asked]
    ratios = [second / first for first, second in pairwise(amounts)]
    assert len(amounts) == 4
    assert ratios == pytest.approx([ratios[0]] * 3, rel=0.01)
    assert ratios[0] > 1.05


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "`budgets` or `points` must be given, and one of them only, got none."),
        ({"budgets": "0.1,0.2", "points": 3}, "`budgets` or `points` must be given, and one of them only, got both."),
        (
            {"points": 3, "resource": "latency"},
            "`resource` must be one of bitops, energy, macs, memory, size, got 'latency'.",
        ),
        (
            {"points": 3, "budget": "size=0.5"},
            "`budget` must be of other resources than the front's, got size in both; leave it out of one.",
        ),
        (
            {"points": 3, "l1_epochs": 1},
            "`stages` and `l1_epochs` must be left out of a front: its points share one network.",
        ),
        ({"budgets": "0.5,50%"}, "`budgets` must be different ones, got "),
        ({"budgets": "0.5,0.1"}, "`size` budget must be at least "),
    ],
)
def test_wrong_fronts(given, message, spec, options, tmp_path):
    with pytest.raises(InputError) as caught:
        autocompress.pareto(spec, out=tmp_path / "wrong", **options, **given)
    assert str(caught.value).startswith(message)


def test_a_front_is_kept_without_force(front, spec, options):
    made, _ = front
    with pytest.raises(InputError, match="pass --resume to continue a front, or --force"):
        autocompress.pareto(spec, budgets=BUDGETS, out=made.folder, **options)
    with pytest.raises(InputError, match="`resume` needs the folder of a front"):
        autocompress.pareto(spec, budgets=BUDGETS, out=made.folder / "none", resume=True, **options)


def test_the_command_prints_the_points(front, spec, options):
    made, _ = front
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    done = CliRunner().invoke(
        app, ["pareto", spec, "--budgets", "0.6,0.45", "--out", str(made.folder), "--resume", *flags]
    )
    assert done.exit_code == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if "size=" in line]
    assert [row.split()[1] for row in rows] == ["size=45%", "size=60%"]
