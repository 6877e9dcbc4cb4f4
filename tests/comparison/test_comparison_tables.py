"""Statistics by hand, tables to the letter, and plots that hold what they should."""

import csv
import io
import json
import math
import re

import numpy as np
import pytest
from pyarrow import parquet
from rich.console import Console

from autocompress.comparison.report import write_report
from autocompress.comparison.results import CellResult, failed
from autocompress.comparison.series import curves, pareto, styles
from autocompress.comparison.suite import Cell, make_suite
from autocompress.comparison.summary import Spread, bootstrap, spread, summarise
from autocompress.comparison.tables import latex, terminal_tables
from autocompress.errors import InputError

SUITE = make_suite(
    {
        "budgets": ["size=0.1", "size=0.2"],
        "methods": ["solver", {"name": "r_l & co", "method": "rl"}, "random"],
        "seeds": 2,
    }
)
ORIGINAL = {"size": 1000, "macs": 50, "bitops": 60, "memory": 70}


def cell(method, budget, seed, kl, accuracy, trace=((1, 0.5),), evaluations=4):
    percent = int(budget[5:-1])
    return CellResult(
        method, {"r_l & co": "rl"}.get(method, method), budget, seed, limits={"size": 10 * percent}, original=ORIGINAL,
        evaluations=evaluations, measured=2, kl=kl, accuracy=0.9, agreement=0.95, resources=ORIGINAL | {"size": 90},
        found_at=2, stopped_because="all 4 evaluations are used", trace=trace, test_kl=2 * kl, test_accuracy=accuracy,
        test_drop=100 * (0.92 - accuracy), seconds=1.5, forward_share=0.5, plan='{"version": 1}',
    )  # fmt: skip


RESULTS = (
    cell("solver", "size=10%", 0, 0.4, 0.80, ((1, 0.4),), 1),
    cell("solver", "size=20%", 0, 0.3, 0.85, ((1, 0.3),), 1),
    cell("r_l & co", "size=10%", 0, 0.1, 0.90, ((1, 0.4), (3, 0.1))),
    cell("r_l & co", "size=10%", 1, 0.3, 0.88, ((2, 0.3),)),
    cell("r_l & co", "size=20%", 0, 0.001, 0.91),
    failed(Cell("r_l & co", "size=20%", 1), "rl", "the worker process was ended by SIGKILL"),
    failed(Cell("random", "size=10%", 0), "random", "no"),
    failed(Cell("random", "size=10%", 1), "random", "no"),
    cell("random", "size=20%", 0, 0.5, 0.70),
    cell("random", "size=20%", 1, 0.5, 0.60),
)


def test_spread_by_hand():
    # Five values 0, 0, 0, 0, 5: a resample's mean is Binomial(5, 1/5). P(>= 4) = 0.7 %, P(>= 3) = 5.8 %, P(0) = 33 %.
    assert spread([0, 0, 5, 0, 0]) == Spread(5, 1.0, math.sqrt(5), 0.0, 3.0)
    # Three values 0, 0, 3: P(mean = 3) = 1/27 = 3.7 % is above 2.5 %.
    assert spread([0, 3, 0]) == Spread(3, 1.0, math.sqrt(3), 0.0, 3.0)
    assert spread([2.0, math.nan, 2.0]) == Spread(2, 2.0, 0.0, 2.0, 2.0)
    assert repr(spread([])) == "Spread(n=0, mean=nan, sd=nan, low=nan, high=nan)"


def test_bootstrap_takes_the_same_resamples_for_every_column_and_leaves_the_global_generator_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - what is looked at
    low, high = bootstrap(np.array([[0.0, 10.0], [1.0, 30.0]]))
    assert (low.tolist(), high.tolist()) == ([0.0, 10.0], [1.0, 30.0])
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_intervals_of_equal_values_are_that_value_and_nan_stays_nan():
    low, high = bootstrap(np.array([[0.1, 1.0], [0.1, math.nan], [0.1, 2.0]]))
    assert (low[0], high[0]) == (0.1, 0.1)
    assert np.isnan([low[1], high[1]]).all()
    assert [ends.tolist() for ends in bootstrap(np.array([[1.0, 2.0]]))] == [[1.0, 2.0]] * 2
    assert [ends.shape for ends in bootstrap(np.empty((3, 0)))] == [(0,)] * 2


def test_summary_counts_failures_apart_and_says_which_methods_know_no_chance():
    summaries = {(each.method, each.budget): each for each in summarise(RESULTS)}
    ours = summaries["r_l & co", "size=10%"]
    assert (ours.n, ours.failed, ours.deterministic) == (2, 0, False)
    assert ours.spreads["kl"] == Spread(2, 0.2, pytest.approx(0.02**0.5), 0.1, 0.3)
    assert ours.spreads["test_drop"].mean == pytest.approx(3.0)
    one = summaries["r_l & co", "size=20%"].to_dict()
    assert (one["n"], one["failed"], one["kl_mean"], one["kl_sd"], one["kl_low"]) == (1, 1, 0.001, None, None)
    assert summaries["solver", "size=10%"].deterministic
    none = summaries["random", "size=10%"].to_dict()
    assert (none["n"], none["failed"], none["kl_mean"]) == (0, 2, None)


def test_latex_to_the_letter():
    assert latex(SUITE, summarise(RESULTS)) == (
        "% Means over seeds [95 % bootstrap interval]. A number without an interval is from a single seed.\n"
        "% Methods without random choices, which run with one seed: solver.\n"
        "% KL: divergence of the best plan from the original network, on the search split.\n"
        "\\begin{tabular}{lrrrr}\n"
        "\\toprule\n"
        " & \\multicolumn{2}{c}{size=10\\%} & \\multicolumn{2}{c}{size=20\\%} \\\\\n"
        "\\cmidrule(lr){2-3} \\cmidrule(lr){4-5}\n"
        "Method & KL, nats & test accuracy, \\% & KL, nats & test accuracy, \\% \\\\\n"
        "\\midrule\n"
        "solver & 0.4000 & 80.00 & 0.3000 & 85.00 \\\\\n"
        "r\\_l \\& co & \\textbf{0.2000} [0.1000, 0.3000] & \\textbf{89.00} [88.00, 90.00] "
        "& \\textbf{0.00100} & \\textbf{91.00} \\\\\n"
        "random & -- & -- & 0.5000 [0.5000, 0.5000] & 65.00 [60.00, 70.00] \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}\n"
    )


def test_terminal_tables_rank_methods_and_fit_into_80_columns():
    console = Console(width=80, file=io.StringIO())
    first, second = terminal_tables(summarise(RESULTS))
    console.print(first)
    lines = [line.strip() for line in console.file.getvalue().splitlines()]
    assert lines[0] == "budget size=10%: means over seeds [95 % bootstrap interval]"
    assert [[text.strip() for text in line.split("│")[1:-1]] for line in lines if "│" in line] == [
        ["r_l & co", "2", "0.2000 [0.1000, 0.3000]", "89.00", "4"],
        ["solver", "1*", "0.4000", "80.00", "1"],
        ["random", "0 (2 failed)", "-", "-", "-"],
    ]
    assert lines[-1] == "* makes no random choice, so it runs with one seed"
    assert list(second.columns[0].cells) == ["r_l & co", "solver", "random"]


def test_a_result_reads_back_whole_and_damage_is_named():
    for result in (RESULTS[0], RESULTS[2], RESULTS[5]):
        again = CellResult.from_json(result.to_json(), "cell.json")
        assert repr(again) == repr(result)  # NaN is not NaN
    with pytest.raises(InputError) as error:
        CellResult.from_json("{}", "cell.json")
    assert str(error.value) == "cell.json must hold the result of a cell, got damaged content: 'version'; remove it."
    text = RESULTS[0].to_json().replace('"agreement": 0.95', '"agreement": 10000000000000000000')
    with pytest.raises(
        InputError, match=r"^cell\.json must hold .*: `agreement` can't be 10000000000000000000; remove it\.$"
    ):
        CellResult.from_json(text, "cell.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("report")
    write_report(path, SUITE, RESULTS, summarise(RESULTS))
    return path


def test_parquet_and_csv_hold_every_cell(folder):
    rows = parquet.read_table(folder / "results.parquet").to_pylist()
    texts = list(csv.DictReader(io.StringIO((folder / "results.csv").read_text())))
    assert [len(rows), len(texts)] == [10, 10]
    best = rows[2]
    assert (best["method"], best["budget"], best["seed"], best["kl"]) == ("r_l & co", "size=10%", 0, 0.1)
    assert (best["size"], best["size_limit"], best["macs_limit"], best["macs"]) == (90, 100, None, 50)
    assert (best["deterministic"], rows[0]["deterministic"]) == (False, True)
    assert json.loads(best["trace"]) == [[1, 0.4], [3, 0.1]]
    assert (rows[5]["status"], rows[5]["kl"]) == ("failed", None)
    for row, text in zip(rows, texts, strict=True):
        assert {name: "" if value is None else str(value) for name, value in row.items()} == text


def test_summary_files_agree(folder):
    rows = json.loads((folder / "summary.json").read_text())
    texts = list(csv.DictReader(io.StringIO((folder / "summary.csv").read_text())))
    assert [row["kl_mean"] for row in rows] == [0.4, 0.3, 0.2, 0.001, None, 0.5]
    assert [text["kl_mean"] for text in texts] == ["0.4", "0.3", "0.2", "0.001", "", "0.5"]


def test_plots_are_there_and_pages_need_no_network(folder):
    for name in ("pareto", "progress"):
        png = (folder / f"{name}.png").read_bytes()
        width, height = (int.from_bytes(png[start : start + 4], "big") for start in (16, 20))
        assert png[:8] == b"\x89PNG\r\n\x1a\n"
        assert width > 1000
        assert height > 600
        assert len(png) > 20_000
        page = (folder / f"{name}.html").read_text()
        assert not re.search(r"<(script|link)[^>]*(src|href)=[\"']?(https?:)?//", page)
        assert page.count("Plotly.newPlot") >= 1
        for method in SUITE.methods:
            assert f'"name":"{method.name.replace("&", "&amp;")}"' in page


def test_curves_hold_the_best_so_far_and_begin_where_every_seed_has_a_plan():
    ours, solver = curves(RESULTS, "size=10%")
    assert (ours.method, solver.method) == ("r_l & co", "solver")
    assert ours.evaluations.tolist() == [2, 3, 4]
    assert ours.mean.tolist() == pytest.approx([0.35, 0.2, 0.2])
    assert (ours.low.tolist(), ours.high.tolist()) == ([0.3, 0.1, 0.1], [0.4, 0.3, 0.3])
    assert (solver.evaluations.tolist(), solver.mean.tolist(), len(solver.low)) == ([1, 2, 3, 4], [0.4] * 4, 0)


def test_accuracy_stands_at_each_budgets_share_of_the_original():
    plot = pareto(RESULTS, summarise(RESULTS))
    assert [points.method for points in plot.points] == ["r_l & co", "solver", "random"]  # 90, 82.5, 65 %
    assert plot.ticks == {10.0: "10", 20.0: "20"}
    assert plot.x_label == "budget: size (bytes), % of the original's"
    assert plot.y_label == "top-1 accuracy on the test split, %"
    assert plot.original == pytest.approx(92.0)
    ours, solver, random = plot.points
    assert ours.x == pytest.approx((9.0, 19.0))
    assert solver.x == pytest.approx((10.0, 20.0))
    assert random.x == pytest.approx((21.0,))
    assert ours.mean == pytest.approx((89.0, 91.0))
    assert ours.below == pytest.approx((1.0, 0.0))
    assert (ours.seeds, random.seeds) == ((2, 1), (2,))


def test_equal_accuracies_whose_mean_is_a_last_digit_off_have_no_negative_bars():
    assert np.mean([0.8705] * 3) > 0.8705
    equal = [cell("random", "size=10%", seed, 0.4, 0.8705) for seed in range(3)]
    (points,) = pareto(equal, summarise(equal)).points
    assert points.below == pytest.approx((0.0,), abs=1e-9)
    assert points.above == (0.0,)  # and not below 0, which no error bar can be


def test_no_two_methods_share_a_style():
    shown = styles([f"method {index}" for index in range(25)])
    assert len({(style.color, style.marker, style.line) for style in shown.values()}) == 25
