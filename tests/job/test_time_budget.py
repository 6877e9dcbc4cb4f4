"""The guarantee of time, on a made-up runtime whose times we know: wrong predictions must not get through."""

from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from autocompress.errors import InputError
from autocompress.job import time_budget
from autocompress.job.time_budget import TimeBudget, accepted, fastest, within_time
from autocompress.progress import Silent
from autocompress.targets.timing import Interval, PairedTiming, TimeLimit, Times, Waiting, this_machine
from autocompress_envs.problem import KernelCosts, Labeling
from autocompress_envs.testing import LayerShape, Menu, build_problem

LAYERS = 4


class Told(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


class Store:
    def tensors(self, name, build):
        return build()


class Menus:
    """What the guarantee needs of menus: a network with costs, and the problem that has them."""

    def __init__(self, problem):
        self.network, self.store, self._problem = SimpleNamespace(costs=problem.costs), Store(), problem

    def problem(self):
        return replace(self._problem, costs=self.network.costs)


def made_up_problem():
    """Four layers of 100 weights at 2, 4 or 8 bits. Predicted: 1,000 ns at 2 bits, 2,000 at 4, 4,000 at 8."""
    shape = LayerShape("linear", (), None, 1, (10, 10), 1)
    errors = [scale * np.array([1.0, 0.1, 0.0])[None, :, None] for scale in (0.8, 0.4, 0.2, 0.1)]
    problem = build_problem([shape] * LAYERS, np.zeros(0, np.int64), Menu((0.0,), (2, 4, 8), (8,)), errors)
    kernel = np.zeros((33, 33), np.int64)
    kernel[4], kernel[8] = 1, 2
    ones, none = np.ones((3, LAYERS), np.int64), np.zeros((3, LAYERS))
    per_layer = np.array([[1_000.0], [2_000.0], [4_000.0]]).repeat(LAYERS, 1)
    costs = KernelCosts(kernel, np.arange(3), ones, ones, ones, per_layer, none, none, none, 0)
    return replace(problem, costs=replace(problem.costs, kernels=costs))


class FakeTimer:
    """Gives plans the time that `truth` says, in shares of an original of 20,000 ns, with an interval of 0.4 %."""

    truth = staticmethod(lambda bits: 1.0)
    timed: ClassVar[list[Labeling]] = []  # every plan that was timed

    def __init__(self, job, limit):
        self.where = (this_machine(), "made up 1")

    def time(self, labeling, effort):
        FakeTimer.timed.append(labeling)
        bits = np.array([2, 4, 8])[labeling.weight_bits]
        share = self.truth(bits) * float(np.array([1_000, 2_000, 4_000])[labeling.weight_bits].sum()) / 20_000
        around = Interval(share, 0.998 * share, 1.002 * share)
        seconds = Times(2e-5, 2e-5, Interval(2e-5, 2e-5, 2e-5))
        taken = Times(share * 2e-5, share * 2e-5, Interval(share * 2e-5, share * 2e-5, share * 2e-5))
        return PairedTiming(seconds, taken, around, 10, 10, 0, True, Waiting(0.0, 0.0, 2), this_machine())


@pytest.fixture
def job(monkeypatch):
    problem = made_up_problem()
    menus = Menus(problem)
    monkeypatch.setattr(time_budget, "Timer", FakeTimer)
    monkeypatch.setattr(time_budget, "timing_key", lambda *parts: "")
    monkeypatch.setattr(time_budget, "scaled", lambda job, factor: job_of(problem_times(problem, factor)), raising=True)
    monkeypatch.setattr(FakeTimer, "timed", [])
    return SimpleNamespace(problem=problem, menus=menus, original={"latency": 20_000})


def job_of(problem):
    return SimpleNamespace(problem=problem, menus=Menus(problem), original={"latency": 20_000})


def problem_times(problem, factor):
    kernels = problem.costs.kernels
    return replace(
        problem, costs=replace(problem.costs, kernels=replace(kernels, per_layer=kernels.per_layer * factor))
    )


def plan(*bits):
    none = np.zeros(LAYERS, np.int64)
    return Labeling(none, np.array([(2, 4, 8).index(each) for each in bits]), none)


def searched(job, truth, share=0.5):
    """The best plan by expected loss under the corrected predictions, and whether it is really within the limit."""
    FakeTimer.truth = staticmethod(truth)
    limit, limits = TimeLimit(share, None, 1, 1), {"latency": int(share * 20_000)}
    corrected, inner, budget = within_time(job, limit, limits, Told())
    candidates = [plan(8, 8, 8, 8), time_budget.Solver(corrected.problem, inner).solve()]
    found = accepted(corrected, budget, candidates, inner, Told())
    return found, limit.used(FakeTimer(None, None).time(found, None))


def test_true_predictions_are_left_alone(job):
    told = Told()
    _, inner, _ = within_time(job, TimeLimit(0.5, None, 1, 1), {"latency": 10_000}, told)
    assert inner == {"latency": 9_850}
    assert told.notes == [
        "latency: near the limit, predictions are corrected by a factor of 1.000, and the search stays 1.5 % below it"
    ]


@pytest.mark.parametrize(
    "truth",
    [lambda bits: 1.0, lambda bits: 1.3, lambda bits: 0.8, lambda bits: 1.0 + 0.2 * (bits == 4).mean(),
     lambda bits: 1.0 + 0.4 * (bits[0] == 8)],
    ids=["true", "30 % longer", "20 % shorter", "longer at 4 bits", "longer where the first has 8 bits"],
)  # fmt: skip
def test_a_plan_is_within_the_limit_however_wrong_the_predictions_are(job, truth):
    found, used = searched(job, truth)
    assert used.high <= 1.0
    assert found.key() != plan(8, 8, 8, 8).key()


def test_corrections_use_the_limit_up(job):
    """Times are 30 % longer than predicted: 7,600 predicted are 9,900. Seven steps of 1,000 fit, eight do not."""
    found, used = searched(job, lambda bits: 1.3)
    assert job.problem.resources(found)["latency"] == 7_000
    assert used.median == pytest.approx(0.91)


def test_the_first_candidate_that_is_fast_enough_is_taken(job):
    FakeTimer.truth = staticmethod(lambda bits: 1.0)
    limit, told = TimeLimit(0.5, None, 1, 1), Told()
    budget = TimeBudget(limit, 10_000, FakeTimer(None, None))
    candidates = [plan(8, 8, 8, 8), plan(8, 4, 4, 4), plan(4, 4, 4, 2), plan(2, 2, 2, 2)]
    found = accepted(job, budget, candidates, {"latency": 10_000}, told)
    assert found.key() == plan(4, 4, 4, 2).key()  # 10,000 of 10,000 have an upper bound above it
    assert told.notes == ["2 better plans took longer than the limit of time, so they were left out"]


def test_without_a_fast_candidate_tighter_plans_follow(job):
    FakeTimer.truth = staticmethod(lambda bits: 1.0)
    told = Told()
    budget = TimeBudget(TimeLimit(0.5, None, 1, 1), 10_000, FakeTimer(None, None))
    found = accepted(job, budget, [plan(8, 8, 8, 8)], {"latency": 10_000}, told)
    assert job.problem.resources(found)["latency"] == 8_000
    assert told.notes == [
        "none of the 1 best plans is within the limit of time, the best takes 1.603 of it; tighter ones follow"
    ]


@pytest.mark.parametrize(
    ("losses", "taken"), [(None, (2, 4, 4, 4)), ((0.1, 0.2), (2, 4, 4, 4)), ((0.2, 0.1), (4, 4, 4, 2))]
)
def test_the_best_plan_made_to_fit_stands_beside_the_solvers(job, losses, taken):
    """The best plan is measured to take 30 % longer than predicted; beside it, what expected losses alone say."""
    FakeTimer.truth = staticmethod(lambda bits: 1.3)
    budget = TimeBudget(TimeLimit(0.5, None, 1, 1), 10_000, FakeTimer(None, None))
    loss = None if losses is None else lambda labeling: losses[labeling.key() == plan(4, 4, 4, 2).key()]
    found = accepted(job, budget, [plan(2, 4, 4, 8)], {"latency": 10_000}, Told(), loss)
    assert found.key() == plan(*taken).key()


@pytest.mark.parametrize(
    ("limit", "nanoseconds", "message"),
    [
        (
            TimeLimit(0.1, None, 1, 1),
            2_000,
            "got 0.1; the fastest plan found takes 0.2004 of the original's time",
        ),
        (TimeLimit(None, 2e-6, 1, 1), 2_000, "got 0.002 ms; the fastest plan found takes 0.004 ms"),
    ],
)
def test_a_limit_below_every_plan_names_the_fastest(job, limit, nanoseconds, message):
    FakeTimer.truth = staticmethod(lambda bits: 1.0)
    with pytest.raises(InputError) as caught:
        within_time(job, limit, {"latency": nanoseconds}, Told())
    assert str(caught.value) == (
        f"`budget` of latency must be within reach, {message}. Raise it, or allow more sparsity or other bits."
    )


def test_a_limit_that_is_wrongly_predicted_out_of_reach_is_reached(job):
    """Predicted at least 4,000 ns; really 2,000."""
    found, used = searched(job, lambda bits: 0.5, share=0.15)
    assert used.high <= 1.0
    assert found.key() != plan(8, 8, 8, 8).key()


def test_plans_that_are_never_fast_enough_end_in_one_line(job):
    """The timer is honest about single plans near the limit, and then every plan takes longer."""
    FakeTimer.truth = staticmethod(lambda bits: 5.0)
    budget = TimeBudget(TimeLimit(0.5, None, 1, 1), 10_000, FakeTimer(None, None))
    with pytest.raises(InputError) as caught:
        accepted(job, budget, [plan(8, 8, 8, 8)], {"latency": 10_000}, Told())
    assert str(caught.value).startswith(
        "`budget` of latency must be within reach, got 0.5; no plan's file was within it"
    )
    assert str(caught.value).endswith("and the fastest takes 1.0020 of the original's time. Raise it.")
    assert len(FakeTimer.timed) <= 2 * time_budget.TRIES + 1


def test_the_fastest_plan_meets_the_other_limits(job):
    assert fastest(job, {"latency": 5, "bitops": 10**9}).key() == plan(2, 2, 2, 2).key()
    with pytest.raises(InputError, match="limits that no plan meets together"):
        fastest(job, {"latency": 5, "bitops": 10})
