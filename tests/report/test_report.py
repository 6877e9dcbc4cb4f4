"""Views and numbers of reports, on data whose answers are worked out by hand."""

import io
import math
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from autocompress.job.inspection import bit_errors, sparsity_errors
from autocompress.job.result_data import label_summary, outcome_data
from autocompress.progress import Step
from autocompress.report.live import PlainView, TerminalView, best_so_far
from autocompress.report.tables import speed
from autocompress_envs.problem import CostModel, Labeling, LayerNumbers, Problem


def make_problem(granularity="channel"):
    """Two layers: 4 inputs to 8 channels, which are group 0, to 10 outputs: 32 and 80 weights."""
    column = np.array
    costs = CostModel(
        group_width=column([8]),
        fan_in_const=column([4, 0]), fan_in_coef=column([[0], [1]]),
        out_const=column([0, 10]), out_coef=column([[1], [0]]),
        positions=column([1, 1]), has_bias=column([False, False]),
        fixed_bytes=0, fixed_bytes_coef=column([0]),
        tensor_const=column([4]), tensor_coef=column([[0]]),
        tensor_readers=column([[True, False]]), alive=column([[True]]),
        granularity=granularity,
    )  # fmt: skip
    errors = np.arange(12.0).reshape(3, 2, 2)  # sparsity of the source, weight bits, activation bits
    bits, activations = column([2, 4]), column([4, 8])
    sparsities, kept = column([0.0, 0.5, 0.75]), column([8, 4, 2])
    group, own = (0, None) if granularity == "channel" else (None, 0)
    layers = (
        LayerNumbers("a", "linear", sparsities, kept, group, bits, activations, own, np.ones((1, 2, 2))),
        LayerNumbers("b", "linear", column([0.0]), column([]), None, bits, activations, 0, errors),
    )
    return Problem(layers, costs)


def labeling(sparsity, weight_bits):
    return Labeling(np.array(sparsity), np.array(weight_bits), np.array([0, 0]))


def test_label_summary_counts_the_weights_that_stay():
    """At 50 %: 4 * 4 = 16 weights of 2 bits and 4 * 10 = 40 of 4 bits are left of 112."""
    summary = label_summary(make_problem(), labeling([1, 0], [0, 1]))
    assert summary["removed"] == pytest.approx(0.5)
    assert summary["mean_weight_bits"] == pytest.approx((16 * 2 + 40 * 4) / 56)
    assert summary["share_by_weight_bits"] == pytest.approx({2: 16 / 56, 4: 40 / 56})


def test_label_summary_of_single_weights():
    """Widths stay; 75 % of the first layer's 32 weights go, 24."""
    summary = label_summary(make_problem("element"), labeling([2, 0], [0, 1]))
    assert summary["removed"] == pytest.approx(24 / 112)
    assert summary["share_by_weight_bits"] == pytest.approx({2: 8 / 88, 4: 80 / 88})


def test_error_curves():
    problem = make_problem()
    assert bit_errors(problem.layers[1]) == {4: 3.0, 2: 1.0}  # no sparsity, 8-bit activations
    assert sparsity_errors(problem, 0) == {0.5: 4.0, 0.75: 8.0}  # 25 % is not on offer, 50 % is next to it
    assert sparsity_errors(problem, 1) == {}


def test_what_the_removal_of_a_branch_costs_is_shown_too():
    first, second = make_problem().layers
    owner = LayerNumbers(**{**vars(first), "sparsities": np.array([0.0, 0.5, 1.0]), "kept": np.array([8, 4, 0])})
    assert sparsity_errors(Problem((owner, second), make_problem().costs), 0) == {0.5: 4.0, 1.0: 8.0}


def test_error_curves_add_what_further_readers_lose():
    first, second = make_problem().layers
    concatenation = LayerNumbers(**{**vars(second), "source": 1, "extra_sources": ((0, np.array([0.0, 0.1, 0.3])),)})
    problem = Problem((first, second, concatenation), make_problem().costs)
    assert sparsity_errors(problem, 0) == pytest.approx({0.5: 4.1, 0.75: 8.3})


def test_missing_accuracy_is_null():
    outcome = SimpleNamespace(accuracy=math.nan, kl=0.5, agreement=0.25, resources={"size": 1})
    assert outcome_data(outcome) == {"accuracy": None, "kl": 0.5, "agreement": 0.25, "resources": {"size": 1}}


@pytest.mark.parametrize(
    ("compressed", "words"),
    [(0.5, "2.00 times faster"), (0.98, "1.02 times faster"), (0.991, "as fast"), (1.0, "as fast"), (1.009, "as fast"),
     (1.02, "1.02 times slower"), (2.0, "2.00 times slower")],
)  # fmt: skip
def test_latencies_are_compared_in_the_right_direction(compressed, words):
    assert speed(1.0, compressed) == words


def step(index, is_best, accuracy=0.5):
    return Step(index, 20, is_best, 0.25, accuracy, {"size": 90, "macs": 10}, {"size": 100, "macs": 40})


def test_best_so_far_without_labels():
    assert (
        best_so_far(step(0, True, math.nan))
        == "best plan: KL 0.2500 nats, size 90.0 % of the budget, macs 25.0 % of the budget"
    )


def test_plain_lines_are_few():
    """20 episodes: the first is best, the fourth is better, and every tenth of the way has its line."""
    out = io.StringIO()
    with PlainView(Console(file=out, width=40)) as view:
        view.stage("network [x]")
        view.note("careful")
        view.advance(1, 2, "menus")
        view.advance(2, 2, "menus")
        for index in range(20):
            view.step(step(index, index in (0, 4)))
    lines = out.getvalue().splitlines()
    assert lines[:3] == ["network [x]", "note: careful", "menus: 2 of 2"]
    assert [int(line.split("/")[0].split()[1]) for line in lines[3:]] == [1, 2, 4, 5, 6, 8, 10, 12, 14, 16, 18, 20]
    state = "best plan: KL 0.2500 nats, accuracy 50.0 %, size 90.0 % of the budget, macs 25.0 % of the budget"
    assert lines[3] == f"episode 1/20  {state}"


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Plain:
    """A plain view by a clock of its own, without the thread that says that a job goes on."""

    def __init__(self):
        self.clock, self._out = Clock(), io.StringIO()
        self.view = PlainView(Console(file=self._out, width=200), self.clock)

    def lines(self):
        """The lines since the last call."""
        text = self._out.getvalue()
        self._out.seek(0)
        self._out.truncate()
        return text.splitlines()


def test_long_work_has_a_line_every_30_seconds_with_the_time_left():
    """One layer in 4 seconds: after 32 seconds nine of 40 are ready, and 31 * 4 seconds are left."""
    plain = Plain()
    plain.view.stage("menus of 40 layers")
    for done in range(1, 41):
        plain.view.advance(done, 40, "layers")
        plain.clock.now += 4.0
    lines = plain.lines()
    assert lines[:3] == [
        "menus of 40 layers", "layers: 9 of 40, about 2:04 left", "layers: 17 of 40, about 1:32 left"
    ]  # fmt: skip
    assert lines[3:] == ["layers: 25 of 40, about 1:00 left", "layers: 33 of 40, about 0:28 left", "layers: 40 of 40"]


def test_work_that_begins_again_is_forecast_anew():
    plain = Plain()
    for done in (1, 2, 5):
        plain.view.advance(done, 5, "layers")
        plain.clock.now += 100.0
    plain.lines()
    plain.view.advance(1, 5, "layers")
    plain.clock.now += 10.0
    plain.view.advance(2, 5, "layers")
    plain.clock.now += 21.0
    plain.view.advance(3, 5, "layers")
    assert plain.lines() == ["layers: 1 of 5", "layers: 3 of 5, about 0:31 left"]


def test_slow_episodes_have_a_line_each_and_the_time_left():
    plain = Plain()
    for index in range(3):
        plain.view.step(step(index, index == 0))
        plain.clock.now += 40.0
    lines = plain.lines()
    assert [line.split("  ")[0] for line in lines] == ["episode 1/20", "episode 2/20", "episode 3/20"]
    assert [line.rpartition(", ")[2] for line in lines[1:]] == ["about 12:00 left", "about 11:20 left"]
    assert "left" not in lines[0]


def test_slow_tuning_has_a_line_every_30_seconds():
    plain = Plain()
    for done in range(1, 8):
        plain.view.tuning(done, 1000, 0.5, 0.75, 90.0)
        plain.clock.now += 12.0
    steps = [int(line.split("/")[0].split()[-1]) for line in plain.lines()]
    assert steps == [4, 7]


def test_a_silent_stage_says_every_30_seconds_that_it_goes_on():
    plain = Plain()
    plain.view.say_that_it_goes_on()  # of nothing there is nothing to say
    plain.clock.now += 50.0
    plain.view.say_that_it_goes_on()
    assert plain.lines() == []
    plain.view.stage("verification")
    for _ in range(70):
        plain.clock.now += 1.0
        plain.view.say_that_it_goes_on()
    assert plain.lines() == [
        "verification", "… still at: verification, 0:30 so far", "… still at: verification, 1:00 so far"
    ]  # fmt: skip
    plain.view.advance(3, 7, "samples")
    plain.clock.now += 30.0
    plain.view.say_that_it_goes_on()
    assert plain.lines() == ["… still at: samples, 3 of 7, 0:30 so far"]


def test_nothing_is_said_to_go_on_where_lines_come_by_themselves():
    plain = Plain()
    plain.view.stage("menus")
    for done in range(1, 10):
        plain.clock.now += 29.0
        plain.view.note(str(done))
        plain.view.say_that_it_goes_on()
    assert len(plain.lines()) == 10


def test_the_thread_that_says_so_ends_with_the_view():
    def watching():
        return [thread for thread in threading.enumerate() if thread.name == "progress"]

    with PlainView(Console(file=io.StringIO())):
        (thread,) = watching()
        assert thread.daemon
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_terminal_view_shows_state_speed_and_time_left():
    out = io.StringIO()
    with TerminalView(Console(file=out, width=200, force_terminal=True, color_system=None)) as view:
        view.note("careful [x]")
        view.advance(3, 4, "menus")
        view.step(step(0, True))
        view.step(step(1, False))
    text = out.getvalue()
    assert "note: careful [x]" in text
    assert "3/4" in text
    assert "2/20" in text
    assert "best plan: KL 0.2500 nats, accuracy 50.0 %, size 90.0 % of the budget" in text
    assert "/s" in text
