"""Expected beside measured losses of single labels: ratios worked out by hand, the draw, the lines and the plot."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from run_toys import QUICK, flags, invoke, refused

import autocompress
from autocompress import InputError
from autocompress.job.measured_labels import (
    MeasuredLabel,
    MeasuredLabels,
    Place,
    drawn,
    measure_labels,
    measured_labels,
    ratio_of,
)
from autocompress.progress import Silent
from autocompress.report import measured as report
from autocompress.report.measured import measured_lines, measured_page
from autocompress_envs.problem import CostModel, LayerNumbers, Outcome, Problem

ROUNDING = np.array([[0.5, 0.4], [0.025, 0.01]])  # nats at (2, 4) weight bits and (4, 8) activation bits
PRUNING = np.array([0.0, 0.2, 0.9])  # nats that b loses where a has lost 0, 50 and 75 % of its channels
BASE = 0.02  # both layers at 4 and 8 bits


def problem():
    """Two layers: 4 inputs to 8 channels, group 0, to 10 outputs."""
    column = np.array
    costs = CostModel(
        group_width=column([8]),
        fan_in_const=column([4, 0]), fan_in_coef=column([[0], [1]]),
        out_const=column([0, 10]), out_coef=column([[1], [0]]),
        positions=column([1, 1]), has_bias=column([False, False]),
        fixed_bytes=0, fixed_bytes_coef=column([0]),
        tensor_const=column([4]), tensor_coef=column([[0]]),
        tensor_readers=column([[True, False]]), alive=column([[True]]),
        granularity="channel",
    )  # fmt: skip
    bits, sparsities = (column([2, 4]), column([4, 8])), column([0.0, 0.5, 0.75])
    errors = ROUNDING[None] + PRUNING[:, None, None]
    return Problem(
        (
            LayerNumbers("a", "linear", sparsities, column([8, 4, 2]), 0, *bits, None, ROUNDING[None]),
            LayerNumbers("b", "linear", column([0.0]), column([]), None, *bits, 0, errors),
        ),
        costs,
    )


def outcome(kl):
    return Outcome(kl, 0.5, 0.5, {})


def test_ratios_by_hand():
    """Above the base, 0.02: rounding a's weights is expected to lose 0.39 and loses 0.78; and so on."""
    measured = {
        "a, 2 weight bits": 0.1 + 0.78,
        "a, 4 activation bits": 0.1 + 0.005,  # 0.015 expected: below twice the base's 0.02 and 0.1, so this is noise
        "a, sparsity 0.5": 0.1 + 0.12,  # 0.2 expected, which is more than twice the base's 0.02
        "b, 2 weight bits": 0.1 - 0.01,  # 0.39 expected
    }
    places = [
        Place(0, "weight_bits", 0), Place(0, "activation_bits", 0), Place(0, "sparsity", 1), Place(1, "weight_bits", 0)
    ]  # fmt: skip
    given = problem()
    kls = {place.labeling(given).key(): kl for place, kl in zip(places, measured.values(), strict=True)}
    found = measure_labels(given, lambda labeling: outcome(kls.get(labeling.key(), 0.1)), places, Silent())
    assert (found.base_expected, found.base_measured) == (pytest.approx(BASE), 0.1)
    assert [f"{label.layer}, {label.label}" for label in found.labels] == list(measured)
    assert [label.expected for label in found.labels] == pytest.approx([0.41, 0.035, 0.22, 0.41])
    assert [label.measured for label in found.labels] == pytest.approx(list(measured.values()))
    assert found.labels[1].ratio is None
    assert found.ratios == pytest.approx([2.0, 0.6, -0.01 / 0.39])
    assert found.share_good == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("losses", "base", "ratio"),
    [
        ((0.3, 0.5), (0.1, 0.1), 2.0),
        ((0.2, 0.2), (0.1, 0.1), None),  # at most twice the base's
        ((0.2, 0.21), (0.1, 0.1), 1.1),  # above it in one of the two
        ((0.21, 0.1), (0.1, 0.1), 0.0),
        ((9e-5, 9e-5), (0.0, 0.0), None),  # below 1e-4 nats in both
        ((9e-5, 18e-5), (0.0, 0.0), 2.0),
        ((0.0, 0.5), (0.0, 0.0), 0.5e12),  # not expected at all: a large number, and none that JSON can't hold
    ],
)
def test_what_is_noise_has_no_ratio(losses, base, ratio):
    found = ratio_of(losses, base)
    assert found is None if ratio is None else found == pytest.approx(ratio)


def test_all_labels_but_the_mildest_are_drawn_once():
    """a: 2 sparsities, 1 width of weights and 1 of inputs; b: 1 and 1."""
    everything = drawn(problem(), 100, 0)
    assert len(everything) == len(set(everything)) == 6
    assert {place.label(problem().layers[place.layer]) for place in everything if place.layer == 0} == {
        "sparsity 0.5", "sparsity 0.75", "2 weight bits", "4 activation bits"
    }  # fmt: skip
    assert drawn(problem(), 4, 0) == everything[:4]
    draws = [drawn(problem(), 1, seed)[0] for seed in range(400)]
    assert len(set(draws)) == 6
    assert 160 < sum(place.layer == 0 for place in draws) < 240  # layers are drawn evenly, whatever their menus


def toy(*ratios):
    labels = [MeasuredLabel("conv", f"{n} weight bits", 0.2, 0.1 + 0.1 * r, r) for n, r in enumerate(ratios)]
    return MeasuredLabels(0.1, 0.1, (*labels, MeasuredLabel("conv", "sparsity 0.5", 0.1, 0.1, None)))


def test_the_lines_that_people_read():
    assert measured_lines(toy(1.0, 0.25, 1.5, 3.0, 0.0)) == [
        "mildest labels everywhere: expected 0.1, measured 0.1 nats",
        "measured / expected loss of 5 single labels, above that: median 1.00, 40 % within a factor of 2, "
        "90 % from 0.05 to 2.70; left out as noise: 1",
        "  worst: conv, 4 weight bits: expected 0.2, measured 0.1 nats, ratio 0.00",
        "  worst: conv, 1 weight bits: expected 0.2, measured 0.12 nats, ratio 0.25",
        "  worst: conv, 3 weight bits: expected 0.2, measured 0.4 nats, ratio 3.00",
        "  worst: conv, 2 weight bits: expected 0.2, measured 0.25 nats, ratio 1.50",
        "  worst: conv, 0 weight bits: expected 0.2, measured 0.2 nats, ratio 1.00",
    ]
    assert measured_lines(toy()) == [
        "mildest labels everywhere: expected 0.1, measured 0.1 nats; "
        "none of 1 labels measured loses more than their noise"
    ]
    assert math.isnan(toy().share_good)


def test_the_plot_shows_losses_above_the_bases_and_a_band(monkeypatch):
    figure = {}
    monkeypatch.setattr(report, "page", lambda drawn, *_: figure.setdefault("drawn", drawn) and "")
    measured_page(toy(2.0, 0.5))
    traces = {trace.name: trace for trace in figure["drawn"].data if trace.name}
    assert list(traces) == ["as expected", "noise", "weight bits"]
    assert traces["weight bits"].x == pytest.approx([0.1, 0.1])
    assert traces["weight bits"].y == pytest.approx([0.2, 0.05])
    assert (traces["noise"].x, traces["noise"].y) == ((1e-5,), (1e-5,))
    low, high = (trace.y for trace in figure["drawn"].data[:2])
    assert (low, high) == (pytest.approx([0.5e-5, 0.1]), pytest.approx([2e-5, 0.4]))
    assert figure["drawn"].layout.xaxis.type == figure["drawn"].layout.yaxis.type == "log"


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return {**QUICK, "cache": tmp_path_factory.mktemp("cache"), "target": "packed", "weight_bits": "2,8"}


def test_the_command_writes_json_and_a_plot(options, tmp_path):
    plot = tmp_path / "measured.html"
    given = {name: value for name, value in options.items() if name != "recalibration_samples"}
    command = [sys.executable, "-m", "autocompress", "inspect", "--measure", "5", "--plot", str(plot), "--quiet"]
    done = subprocess.run([*command, "--format", "json", *flags(given)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    data = json.loads(done.stdout)
    assert len(data["measured_labels"]) == 5
    for label in data["measured_labels"]:
        assert set(label) == {"layer", "label", "expected", "measured", "ratio"}
        assert label["ratio"] == ratio_of(
            (label["expected"], label["measured"]),
            tuple(data["measured_base"][name] for name in ("expected", "measured")),
        )
    names = {layer["name"] for layer in data["layers"]}
    assert {label["layer"] for label in data["measured_labels"]} <= names
    page = plot.read_text()
    assert "Single labels: measured against expected loss" in page
    assert "https://cdn" not in page.partition("<body>")[2][:2000]
    assert data["measured_labels"][0]["layer"] in page


def test_more_labels_are_the_same_and_others(options):
    few, many = (autocompress.inspect(**options, measure=count).measured for count in (3, 6))
    assert few.labels == many.labels[:3]
    assert all(label.measured > 0 and label.expected > 0 for label in many.labels)
    assert autocompress.inspect(**options).measured is None


def test_noise_of_small_dtypes_is_kept_out(monkeypatch):
    seen = []

    def build(job, machine, watcher):
        seen.append(machine.dtype)
        raise KeyboardInterrupt

    monkeypatch.setattr("autocompress.job.measured_labels.build_evaluator", build)
    for dtype in ("auto", "bfloat16"):
        with pytest.raises(KeyboardInterrupt):
            measured_labels(None, autocompress.config.Config(dtype=dtype), 1, 0, Silent())
    assert seen == ["float32", "bfloat16"]


def test_the_table_ends_in_the_lines(options):
    given = {name: value for name, value in options.items() if name != "recalibration_samples"}
    done = invoke("inspect", "--measure", "12", "--quiet", *flags(given))
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("mildest labels everywhere: expected "))
    assert lines[start + 1].startswith("measured / expected loss of ")
    assert all(line.startswith("  worst: ") for line in lines[start + 2 :])


def test_wrong_input_is_one_line_before_anything_is_loaded(tmp_path):
    refused(
        invoke("inspect", "--plot", tmp_path / "x.html", "--quiet"),
        "`plot` shows labels that were measured, got none of them; pass --measure 100.",
    )
    nowhere = tmp_path / "none" / "x.html"
    for path in (nowhere, tmp_path):
        refused(
            invoke("inspect", "--measure", "3", "--plot", path, "--quiet"),
            f"`plot` must be a file in an existing folder, got {path}.",
        )
    refused(
        invoke("inspect", "--measure", "-1", "--quiet"),
        "`measure` must be greater than or equal to 0, got '-1'.",
    )
    with pytest.raises(InputError, match=r"^`measure` must be a valid integer, got 'many'\.$"):
        autocompress.inspect(measure="many")
