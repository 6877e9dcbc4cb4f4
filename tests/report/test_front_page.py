"""The page of a front: where its points stand, what it links to, and what is refused."""

import json
import re
import shutil
import subprocess

import pytest
from toy_runs import outcome, write_run
from typer.testing import CliRunner

import autocompress
from autocompress import InputError
from autocompress.cli.main import app
from autocompress.report.front_figures import divergence_figure, quality_figure, quality_of
from autocompress.report.front_page import read_front

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
POINTS = {"size=20%": (10_000, 0.8, 0.1), "size=25%": (11_000, 0.85, 0.01), "size=30%": (12_000, 0.9, 0.001)}


def point_outcome(size, accuracy, kl):
    found = outcome(("first", "second", "head"))
    compressed = {**found["compressed"], "accuracy": accuracy, "kl": kl}
    return {**found, "compressed": {**compressed, "resources": {**compressed["resources"], "size": size}}}


def write_front(folder):
    """A front of three points, which was made in another folder."""
    points = []
    for at, (budget, numbers) in enumerate(POINTS.items()):
        run = write_run(folder / f"point-{at}", **point_outcome(*numbers))
        points.append({"budget": budget, "run_folder": f"elsewhere/{run.name}"})
    (folder / "pareto.json").write_text(json.dumps({"resource": "size", "points": points}))
    return folder


@pytest.fixture
def front(tmp_path):
    return write_front(tmp_path / "front")


def test_points_stand_where_their_numbers_say():
    outcomes = [point_outcome(*numbers) for numbers in POINTS.values()]
    quality = quality_of([{**each, "samples": None} for each in outcomes])
    assert (quality.title, quality.values, quality.original) == ("top-1 accuracy", [0.8, 0.85, 0.9], 0.9)
    figure = quality_figure([10_000, 11_000, 12_000], ["20%", "25%", "30%"], quality)
    # a tenth of the span is left free at each end: 9,800 to 12,200, and 0.79 to 0.91
    assert [mark[0] for mark in figure.marks] == pytest.approx([100 / 12, 50, 1100 / 12])
    assert [mark[1] for mark in figure.marks] == pytest.approx([1100 / 12, 50, 100 / 12])
    assert (figure.original.at, figure.original.text) == (pytest.approx(100 / 12), "original, 90.00 %")
    assert [tick.text for tick in figure.x_ticks] == ["10,000", "10,500", "11,000", "11,500", "12,000"]
    assert [tick.text for tick in figure.y_ticks] == ["80 %", "82 %", "84 %", "86 %", "88 %", "90 %"]
    assert figure.whiskers == []
    assert figure.description == ("top-1 accuracy. 20%: 80.00 %; 25%: 85.00 %; 30%: 90.00 %. The original, 90.00 %.")


def test_intervals_are_drawn_where_the_samples_are_known():
    quality = quality_of([point_outcome(*numbers) for numbers in POINTS.values()])
    assert [tuple(round(end, 4) for end in pair) for pair in quality.intervals] == [
        (0.758, 0.8363), (0.8117, 0.8817), (0.8667, 0.9257),
    ]  # fmt: skip
    figure = quality_figure([10_000, 11_000, 12_000], ["20%", "25%", "30%"], quality)
    for (across, low, high), mark in zip(figure.whiskers, figure.marks, strict=True):
        assert across == mark[0]
        assert high < mark[1] < low  # percent from the top


def test_divergences_stand_on_a_logarithmic_axis_and_none_is_not_lost():
    figure = divergence_figure([1, 2, 3], ["a", "b", "c"], [0.1, 0.01, 0.001])
    assert [mark[1] for mark in figure.marks] == pytest.approx([100 / 12, 50, 1100 / 12])
    assert [mark[3] for mark in figure.marks] == ["0.1 nats", "0.01 nats", "0.001 nats"]
    assert figure.original is None
    same = divergence_figure([5, 5], ["a", "b"], [0.0, 0.0])
    assert [mark[:2] for mark in same.marks] == [(pytest.approx(50), pytest.approx(50))] * 2


def test_a_task_of_numbers_shows_its_metric_and_one_without_labels_the_equal_answers():
    metrics = {"r2": {"original": 0.99, "compressed": 0.98}}
    found = outcome(("first",))
    unlabelled = {**found, "compressed": {**found["compressed"], "accuracy": None}}
    r2 = quality_of([{**unlabelled, "metrics": metrics}])
    assert (r2.title, r2.values, r2.original, r2.text(0.98)) == ("R²", [0.98], 0.99, "0.9800")
    same = quality_of([unlabelled])
    assert (same.title, same.values, same.original) == ("same top-1 answer as the original", [0.95], None)
    assert quality_of([{**unlabelled, "compressed": {"kl": 0.1}}]) is None


def test_the_page_links_to_the_points_and_has_all_of_them_side_by_side(front, tmp_path):
    page = autocompress.report(front)
    assert page == front / "report.html"
    text = page.read_text()
    links = re.findall(r'href="([^"#]+/report\.html)"', text)
    assert links == [f"point-{at}/report.html" for at in range(3)] * 3  # two charts and a table
    assert all(text.count(f">{budget}<") == 1 for budget in POINTS)
    assert text.count('class="mark"') == 6
    assert "<h2>What came out</h2>" in text
    assert not re.search(r"https?:|url\(|@import|<img", text)
    elsewhere = autocompress.report(front, out=tmp_path / "page.html")
    assert 'href="front/point-0/report.html"' in elsewhere.read_text()


def test_the_command_tells_the_front_as_data(front):
    done = CliRunner().invoke(app, ["report", str(front), "--format", "json"])
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert data["front"]["points"][1] == {
        "budget": "size=25%", "run": str(front / "point-1"), "amount": 11_000, "value": 0.85, "kl": 0.01,
        "verified": True,
    }  # fmt: skip
    assert (data["front"]["measure"], data["front"]["original"]) == ("top-1 accuracy", 0.9)
    assert [run["run"] for run in data["runs"]] == [str(front / f"point-{at}") for at in range(3)]


def test_what_is_no_front_is_refused_in_one_line(front, tmp_path):
    run = write_run(tmp_path / "run")
    message = f"`runs` must be one front alone, or finished runs, got 2 folders with the front {front}; "
    with pytest.raises(InputError, match="^" + re.escape(message + "name the folders of its points.") + "$"):
        autocompress.report(run, front)
    (front / "point-1" / "outcome.json").unlink()
    missing = f"`run` must be the folder of a finished run, got {front / 'point-1'}, which has no outcome.json."
    with pytest.raises(InputError, match="^" + re.escape(missing) + "$"):
        autocompress.report(front)
    outside = '{"resource": "size", "points": [{"budget": "size=1%", "run_folder": "a/.."}]}'
    for content in (
        outside,
        '{"resource": "size", "points": []}',
        '{"resource": "x", "points": [{}]}',
        '{"resource": "size"}',
    ):
        (front / "pareto.json").write_text(content)
        damaged = f"{front / 'pareto.json'} must be as it was written, got a damaged file; make the front again."
        with pytest.raises(InputError, match="^" + re.escape(damaged) + "$"):
            read_front(front)
    with pytest.raises(InputError, match=r"^`run` must be the folder of a front, got .*, which has no pareto\.json\.$"):
        read_front(run)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_browser_is_silent_and_a_narrow_window_needs_no_scrolling_aside(front, tmp_path):
    probe = "document.documentElement.dataset.wide = document.documentElement.scrollWidth > innerWidth;"
    page = autocompress.report(front)
    page.write_text(page.read_text().replace("</body>", f"<script>{probe}</script></body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=400,800", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    assert 'data-wide="false"' in done.stdout
