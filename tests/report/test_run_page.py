"""The page of a run: what it holds, that it needs nothing else, and that nothing in a run becomes part of the page."""

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from toy_runs import write_run
from typer.testing import CliRunner

from autocompress import InputError
from autocompress.cli.main import app
from autocompress.report.costliest import costliest
from autocompress.report.figures import layer_bars, search_figure
from autocompress.report.run_data import run_data
from autocompress.report.run_numbers import SearchStory, layer_rows, outcome_rows, search_story
from autocompress.report.run_page import comparison_page, run_page
from autocompress.report.run_record import read_run

VOID = {"meta", "link", "input", "line", "path", "polyline", "wbr"}  # those of SVG close themselves
HOSTILE = "</script><script>alert(1)</script>\"' onload=x&amp;"


class Page(HTMLParser):
    """The elements of a page; asserts that every tag is closed where it was opened."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("report") / "toy")


@pytest.fixture(scope="module")
def record(run):
    return read_run(run)


@pytest.fixture(scope="module")
def text(record):
    return run_page(record)


def test_the_page_needs_no_network(text):
    page = Page(text)
    assert not re.search(r"https?:|url\(|@import|<img|<iframe|<object|\bfetch\(|XMLHttpRequest", text)
    assert {attributes.get("src") for _, attributes in page.elements} == {None}
    links = {attributes["href"] for _, attributes in page.elements if "href" in attributes}
    assert all(link.startswith(("#", "data:")) for link in links)
    policy = next(each["content"] for each in page.of("meta") if each.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_the_page_is_whole(text):
    page = Page(text)
    identities = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identities) == len(set(identities))
    for attributes in page.of("a"):
        assert attributes["href"][1:] in identities
    assert len(page.of("main")) == len(page.of("h1")) == len(page.of("title")) == 1
    assert page.of("html") == [{"lang": "en"}]
    tables = text.count('<table class="sortable')
    assert tables == len(page.of("table")) == 4
    assert all(scope in ("col", "row") for scope in (each["scope"] for each in page.of("th")))


def test_the_page_is_valid_html(text):
    html5lib = pytest.importorskip("html5lib", reason="html5lib, which reads HTML strictly, is not installed")
    html5lib.HTMLParser(strict=True).parse(text)


def test_numbers_are_those_of_the_outcome(run, text):
    told = json.loads((run / "outcome.json").read_text())
    values = [value for each in Page(text).of("td") if (value := each.get("data-value"))]
    for name in ("original", "compressed"):
        for value in (told[name]["accuracy"], told[name]["kl"], *told[name]["resources"].values()):
            assert str(value) in values
    assert "10,000" in text
    assert "87.50 %" in text
    assert "1 of 1 checks passed" in text
    assert "size 10,000 of 12,000" in text


def test_intervals_of_shares_are_wilsons(record):
    """By hand, with z = 1.96: 350 of 400 give (0.875 + 0.0048) / 1.0096 = 0.87143, ± 0.03245."""
    row = next(row for row in outcome_rows(record.outcome) if row.title == "top-1 accuracy")
    assert row.intervals[1] == "83.90 to 90.39 %"
    assert row.change == "−2.50 points"
    assert [each.change for each in outcome_rows(record.outcome) if each.group == "time"] == ["2.00 times faster"]


def test_intervals_of_times_are_shown_where_there_are_any(record):
    timing = {"original": {"median_seconds": {"median": 0.002, "low": 0.0019, "high": 0.0021}}, "compressed": {}}
    runtime = {**record.outcome["runtime"], "timings_by_batch": {"1": timing}}
    (row,) = (each for each in outcome_rows({**record.outcome, "runtime": runtime}) if each.group == "time")
    assert (row.texts, row.intervals) == (("2 ms", "1 ms"), ("1.9 to 2.1 ms", ""))


def test_without_labels_and_samples_nothing_is_invented(record):
    told = dict(record.outcome, samples=None, compressed={**record.outcome["compressed"], "accuracy": None})
    rows = outcome_rows(told)
    assert "top-1 accuracy" not in [row.title for row in rows]
    assert {row.intervals for row in rows} == {("", "")}


def test_bars_are_shares_of_the_longest(record):
    """All layers take 500 bytes; the pruned one has 500 weights of 4 bits less, 250 bytes: 750 is the longest."""
    bars = layer_bars(layer_rows(record))
    assert bars[0].size == pytest.approx((100 * 500 / 750, 0))
    assert bars[1].size == pytest.approx((100 * 500 / 750, 100 * 250 / 750))
    assert bars[1].macs == pytest.approx((50, 50))
    assert bars[1].loss == pytest.approx((100 * 0.001 / 0.0015, 100 * 0.0005 / 0.0015))
    assert layer_rows(record)[1].removed == 0.5


BITS = "With weights of 8 bits its rounding would cost 0.0001 instead of 0.001 nats, and take 500 more bytes"
PRUNING = (
    "Pruned by 25 % it would lose 0.0002 instead of 0.0005 nats to pruning, and the network would take 400 more bytes"
)


def test_the_costliest_layer_and_why(record):
    """The toy has 10,000 of 12,000 bytes."""
    assert costliest(layer_rows(record), record.outcome) == (
        "second is expected to cost most: 0.0015 of 0.0035 nats (43 %), mostly from rounding its weights to 4 and its "
        "inputs to 8 bits. "
        f"{BITS} (the budget has 2,000 left). {PRUNING} (the budget has 2,000 left)."
    )


def test_the_main_cause_is_told_first_in_the_resource_of_the_budget(record):
    layers = [dict(layer) for layer in record.layers]
    layers[1]["expected_loss"] = {"pruning": 0.003, "rounding": 0.001}
    layers[1]["by_sparsity"] = [
        {"sparsity": sparsity, "loss": loss, "resources": {"macs": macs, "bitops": 7}}
        for sparsity, loss, macs in ((0.0, 0.0, 9000), (0.5, 0.003, 4500))
    ]
    rows = layer_rows(replace(record, layers=layers))
    outcome = {**record.outcome, "budget": {"limits": {"macs": 28_000, "bitops": 8}, "met": True}}
    assert costliest(rows, outcome).split(". ")[:2] == [
        "second is expected to cost most: 0.004 of 0.006 nats (67 %), mostly from pruning 50 % of its channels",
        "Not pruned it would lose 0 instead of 0.003 nats to pruning, and the network would take 4,500 more "
        "multiply-accumulates (the budget has 1,000 left) and no more bit operations",
    ]


def test_the_most_bits_on_offer_are_told_as_such(record):
    layers = [dict(layer) for layer in record.layers]
    layers[0]["label"] = {"sparsity": 0.0, "weight_bits": 8, "activation_bits": 32}
    layers[0]["expected_loss"] = {"pruning": 0.0, "rounding": 0.01}
    assert costliest(layer_rows(replace(record, layers=layers)), record.outcome) == (
        "first is expected to cost most: 0.01 of 0.013 nats (80 %), mostly from rounding its weights to 8 bits. Its "
        "weights have the most bits on offer (--weight-bits)."
    )


def test_runs_of_earlier_versions_tell_of_bits_alone(record):
    layers = [{name: value for name, value in layer.items() if name != "by_sparsity"} for layer in record.layers]
    told = costliest(layer_rows(replace(record, layers=layers)), {**record.outcome, "budget": None})
    assert told.endswith(f"to 8 bits. {BITS}.")


def test_it_is_said_with_what_weights_went(record):
    """The second layer is pruned by a half; the last one, which reads it, is made to lose half of its inputs."""
    layers = [dict(layer) for layer in record.layers]
    layers[2]["weights_left"] = 500
    rows = layer_rows(replace(record, layers=layers))
    assert [row.removed_by for row in rows] == ["", "channels", "inputs"]
    assert rows[2].note.startswith(
        "reads 5 of 10 channels of group 1, pruned at second; group 2: 10 of 10 channels kept"
    )
    layers[1]["reads_groups"] = [1]  # as in a residual trunk
    assert layer_rows(replace(record, layers=layers))[1].removed_by == "channels and inputs"
    layers[1]["weight_shape"] = [10, 1, 3, 3]  # depthwise
    assert layer_rows(replace(record, layers=layers))[1].removed_by == "channels"
    text = run_page(replace(record, layers=layers))
    assert '<td class="number" data-value="0.5">50.00 %<small>inputs</small></td>' in text
    assert "50.00 % of its weights removed with inputs; expected loss" in text


def test_the_search_figure(record):
    story = search_story(record)
    assert story.points == [(1, 0.02, True), (2, 0.01, True), (3, 0.005, False)]
    assert story.simple == [("the solver's plan", 0.02)]
    figure = search_figure(story)
    assert [(round(x), fits) for x, _, fits in figure.points] == [(0, True), (50, True), (100, False)]
    heights = [y for _, y, _ in figure.points]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1])  # halved twice, on a logarithmic axis
    assert figure.best_label.text == "best plan so far, 0.01"
    assert [line.at for line in figure.simple] == [heights[0]]


def test_labels_of_lines_keep_apart():
    simple = [(f"plan {number}", 0.02 + 1e-6 * number) for number in range(8)]
    figure = search_figure(SearchStory([(1, 0.02, True), (2, 0.1, True)], [(1, 0.02)], simple))
    places = sorted(line.label_at for line in [figure.best_label, *figure.simple])
    assert min(after - before for before, after in pairwise(places)) >= 6.5 - 1e-9
    assert places[-1] <= 100 + 1e-9


def test_one_evaluation_is_no_figure():
    assert search_figure(SearchStory([(1, 0.02, True)], [(1, 0.02)])) is None


def test_what_a_run_says_never_becomes_part_of_the_page(tmp_path):
    names = (f"first{HOSTILE}", f"second{HOSTILE}", "head")
    run = write_run(
        tmp_path / "hostile", names, model=f"{HOSTILE}:net",
        checks=[{"name": HOSTILE, "passed": False, "detail": HOSTILE}], versions={HOSTILE: HOSTILE},
        stopped_because=HOSTILE,
    )  # fmt: skip
    plain = Page(
        run_page(read_run(write_run(tmp_path / "plain", checks=[{"name": "a", "passed": False, "detail": ""}])))
    )
    for text in (run_page(read_run(run)), comparison_page([read_run(run), read_run(run)])):
        page = Page(text)
        assert len(page.of("script")) == 1
        assert "alert(1)</script>" not in text.replace("&lt;/script&gt;", "")
        assert not [attributes for _, attributes in page.elements if "onload" in attributes]
    assert len(Page(run_page(read_run(run))).elements) == len(plain.elements)


def test_a_network_of_a_hundred_layers_stays_small(tmp_path):
    names = [f"encoder.layers.{number}.attention.output.dense.projection" for number in range(100)]
    text = run_page(read_run(write_run(tmp_path / "large", names)))
    assert 50_000 < len(text.encode()) < 2_000_000


def test_runs_of_earlier_versions_have_a_page_without_layers(run, tmp_path):
    old = shutil.copytree(run, tmp_path / "old")
    (old / "layers.json").unlink()
    told = json.loads((old / "outcome.json").read_text())
    (old / "outcome.json").write_text(json.dumps({k: v for k, v in told.items() if k not in ("samples", "machine")}))
    assert "no layers.json" in run_page(read_run(old))


def test_the_command_makes_the_run_again(record, tmp_path):
    assert record.command == "autocompress search --budget size=0.3"
    mine = read_run(write_run(tmp_path / "mine", model="my nets.py:net"))
    assert mine.command == "autocompress search 'my nets.py:net' --data 'npz:a b.npz' --budget size=0.3"
    made_by = {"command": "search", "model_in_memory": True, "data_in_memory": True}
    ours = read_run(write_run(tmp_path / "ours", model="digits", made_by=made_by))
    assert ours.command == "autocompress.search(model, data, budget='size=0.3')  # model: a digits"


def test_two_runs_side_by_side(run, record, tmp_path):
    other = write_run(tmp_path / "other", compressed={**record.outcome["compressed"], "accuracy": 0.8})
    text = comparison_page([record, read_run(other)])
    Page(text)
    assert "80.00 %" in text
    assert "87.50 %" in text
    done = CliRunner().invoke(app, ["report", str(run), str(other), "--out", str(tmp_path / "both.html")])
    assert (done.exit_code, done.stderr) == (0, "")
    assert (tmp_path / "both.html").read_text() == text


def test_the_command_writes_the_page_and_tells_its_data(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    done = CliRunner().invoke(app, ["report", str(copy), "--format", "json"])
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["page"] == str(copy / "report.html")
    assert told["runs"] == [run_data(read_run(copy))]
    assert told["runs"][0]["layers"][1]["expected_loss"] == {"pruning": 0.0005, "rounding": 0.001}
    assert (copy / "report.html").read_text() == run_page(read_run(copy))


OTHERS = '{"layers": [{"name": "other"}]}'
DAMAGED = "{run}/layers.json must be as it was written, got a damaged file; make the run again."


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("outcome.json", None, "`run` must be the folder of a finished run, got {run}, which has no outcome.json."),
        ("outcome.json", "[]", "{run}/outcome.json must be a mapping, got a list."),
        ("outcome.json", "{}", "`original` of {run}/outcome.json must hold resources, got NoneType."),
        ("layers.json", OTHERS, "{run}/layers.json must have the layers of plan.yaml, got others; make the run again."),
        ("layers.json", '{"layers": 3}', DAMAGED),
        ("layers.json", '{"layers": [3]}', DAMAGED),
    ],
)
def test_folders_that_are_no_finished_runs(run, tmp_path, file, content, message):
    damaged = shutil.copytree(run, tmp_path / "damaged")
    (damaged / file).unlink()
    if content is not None:
        (damaged / file).write_text(content)
    done = CliRunner().invoke(app, ["report", str(damaged)])
    assert (done.exit_code, done.stderr) == (2, f"autocompress: {message.format(run=damaged)}\n")


def test_a_damaged_layer_is_one_line(run, tmp_path):
    damaged = shutil.copytree(run, tmp_path / "damaged")
    told = json.loads((damaged / "layers.json").read_text())
    del told["layers"][0]["bytes"]
    (damaged / "layers.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match=r"layers\.json must be as it was written, got a damaged file; make the run"):
        read_run(damaged)
