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
from autocompress.report.front_figures import bound_figure, divergence_figure, quality_figure, quality_of
from autocompress.report.front_page import read_front

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
POINTS = {"size=20%": (10_000, 0.8, 0.1), "size=25%": (11_000, 0.85, 0.01), "size=30%": (12_000, 0.9, 0.001)}


def point_outcome(size, accuracy, kl):
    found = outcome(("first", "second", "head"))
    compressed = {**found["compressed"], "accuracy": accuracy, "kl": kl}
    shares = {"size": size / found["original"]["resources"]["size"]}
    resources = {**compressed["resources"], "size": size}
    return {**found, "compressed": {**compressed, "resources": resources}, "fraction_of_original": shares}


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


def test_points_that_crowd_have_no_text_of_their_own():
    """Five characters take 11.4 % of the width, and 500 of 10,000 are 4.2 % of it."""
    amounts = [0, 500, 2_000, 2_400, 10_000]
    level = divergence_figure(amounts, ["1000b"] * 5, [0.1] * 5)
    assert level.labelled == [True, False, True, False, True]
    steep = divergence_figure(amounts, ["1000b"] * 5, [0.1, 0.05, 0.01, 0.005, 0.001])
    assert steep.labelled == [True] * 5


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


def test_the_page_tells_the_prices_at_which_a_point_is_the_best_without_a_budget(front):
    """5 points of accuracy for each 1,000 bytes, all in one line: the middle is the best at no price."""
    original = read_front(front).runs[0].outcome["original"]["resources"]["size"]
    text, price = autocompress.report(front).read_text(), f"{0.05 / (1_000 / original):.3g}"
    found = re.findall(r'<td class="number" data-value="[^"]*">(\d[\d.]* (?:to [\d.]+|or more)|)</td>', text)
    assert found[:3] == [f"{price} or more", "", f"0 to {price}"]
    assert "in accuracy for all of the original’s size" in text


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
    with pytest.raises(
        InputError,
        match=r"^`run` must be the folder of a front, got .*, which has no pareto\.json and no tolerance\.json\.$",
    ):
        read_front(run)


def write_tolerance(folder):
    """Three budgets that were tried for a drop of at most 6 points, the second of which was chosen."""
    tries = []
    for at, (budget, numbers) in enumerate(reversed(POINTS.items())):  # the mildest first: size=30%, 25%, 20%
        run = write_run(folder / f"try-{at + 1}", **point_outcome(*numbers))
        bound = (0.01, 0.05, 0.125)[at]
        tries.append({"budget": budget, "run_folder": f"elsewhere/{run.name}", "bound": bound, "passed": bound <= 0.06})
    found = {"resource": "size", "tolerated": 0.06, "measure": "max_drop", "samples": 1500, "confidence": 0.95}
    (folder / "tolerance.json").write_text(json.dumps({**found, "chosen": tries[1], "tries": tries}))
    return folder


@pytest.fixture
def tolerance(tmp_path):
    return write_tolerance(tmp_path / "tolerance")


def test_the_tries_of_a_tolerance_stand_from_the_strictest_to_the_mildest(tolerance):
    record = read_front(tolerance)
    assert list(record.budgets) == list(POINTS)
    assert [run.folder.name for run in record.runs] == ["try-3", "try-2", "try-1"]
    assert record.tolerance.bounds == [0.125, 0.05, 0.01]
    assert record.tolerance.chosen == 1
    figure = bound_figure(record.amounts, ["20%", "25%", "30%"], record.tolerance)
    # a tenth of the span of 0.115 is left free at each end: 0.1365 at the top, -0.0015 at the bottom
    assert [mark[1] for mark in figure.marks] == pytest.approx(
        [100 * each / 0.138 for each in (0.0115, 0.0865, 0.1265)]
    )
    assert figure.original.at == pytest.approx(100 * 0.0765 / 0.138)
    assert figure.original.text == "largest tolerated, 6.00 points"
    assert [mark[3] for mark in figure.marks] == ["12.50 points", "5.00 points", "1.00 points"]


def test_the_page_of_a_tolerance_tells_which_network_was_chosen_and_why(tolerance):
    text = autocompress.report(tolerance).read_text()
    lead = (
        "3 budgets were tried; the smallest network that loses no more than 6.00 points is try-2: size=25%, 11,000 "
        "used, 27.50\xa0% of the original."
    )
    assert f'<p class="lead">{lead}</p>' in text
    assert "on 1,500 held-out samples, with 95 % confidence over all that were tried." in text
    assert re.findall(r'<td class="(?:passed|failed)">(yes.*?|no)</td>', text) == ["no", "yes, chosen", "yes"]
    assert re.findall(r'href="([^"#]+/report\.html)"', text) == [f"try-{at}/report.html" for at in (3, 2, 1)] * 4
    done = CliRunner().invoke(app, ["report", str(tolerance), "--format", "json"])
    assert done.exit_code == 0, done.output
    tests = [(each["bound"], each["passed"], each["chosen"]) for each in json.loads(done.stdout)["front"]["points"]]
    assert tests == [(0.125, False, False), (0.05, True, True), (0.01, True, False)]


@pytest.mark.parametrize(
    "change",
    [{"tries": []}, {"chosen": None}, {"measure": "x"}, {"tolerated": "1"}, {"samples": None},
     {"chosen": {"budget": "size=1%", "run_folder": "try-9"}}],
)  # fmt: skip
def test_a_damaged_tolerance_is_refused_in_one_line(tolerance, change):
    file = tolerance / "tolerance.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    damaged = f"{file} must be as it was written, got a damaged file; make the front again."
    with pytest.raises(InputError, match="^" + re.escape(damaged) + "$"):
        read_front(tolerance)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize("kind", [write_front, write_tolerance])
def test_a_browser_is_silent_and_a_narrow_window_needs_no_scrolling_aside(kind, tmp_path):
    front = kind(tmp_path / "front")
    probe = "document.documentElement.dataset.wide = document.documentElement.scrollWidth > innerWidth;"
    page = autocompress.report(front)
    page.write_text(page.read_text().replace("</body>", f"<script>{probe}</script></body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=400,800", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    assert 'data-wide="false"' in done.stdout
