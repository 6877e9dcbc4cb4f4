from dataclasses import replace

import numpy as np
import pytest

from autocompress.errors import InputError
from autocompress.searchers.base import Recorder, SearchSettings, StopSearch, Task
from autocompress.searchers.search import run_search
from autocompress_envs.problem import Labeling, Outcome
from autocompress_envs.solver import InfeasibleBudgetError
from autocompress_envs.testing import fair_coins, toy_problem


def plan(number):
    """The toy plan whose three bit indices are the base-3 digits of `number`."""
    zeros = np.zeros(3, dtype=np.int64)
    return Labeling(zeros, np.array([number // 9, number // 3 % 3, number % 3]), zeros)


def recorder_of(kls, **settings):
    """A recorder in which plan i measures `kls[i]`."""
    problem, _ = toy_problem()
    seen = []

    def evaluate(labeling):
        number = int(labeling.weight_bits @ [9, 3, 1])
        return Outcome(kls[number], 0.5, 0.5, problem.resources(labeling))

    recorder = Recorder(Task(problem, {"size": 10**6}, evaluate), SearchSettings(**settings), [seen.append])
    return recorder, seen


def test_best_is_kept_over_all_not_the_last():
    recorder, seen = recorder_of([0.5, 0.2, 0.3])
    for number in range(3):
        recorder(plan(number))
    assert [e.is_best for e in seen] == [True, True, False]
    assert (recorder.best.index, recorder.best.outcome.kl) == (1, 0.2)


def test_a_plan_seen_before_is_free():
    recorder, seen = recorder_of([0.5, 0.2], episodes=2)
    for number in (0, 0, 1, 0, 1):
        recorder(plan(number))
    assert (recorder.evaluations, len(seen)) == (2, 2)
    with pytest.raises(StopSearch, match=r"^all 2 evaluations are used$"):
        recorder(plan(2))
    assert len(seen) == 2


def test_other_work_counts_as_evaluations():
    """3 plans and 4 others of 7; what was used up to a plan stands beside it."""
    recorder, seen = recorder_of([0.5, 0.2, 0.3, 0.4], episodes=7)
    recorder(plan(0))
    assert recorder.left == 6
    recorder.spend(3)
    recorder(plan(1))
    recorder(plan(0))  # seen before: free
    assert (recorder.left, recorder.evaluations) == (2, 2)
    recorder.spend(0)
    recorder.spend(1)
    recorder(plan(2))
    assert [(e.index, e.spent, e.used) for e in seen] == [(0, 0, 1), (1, 3, 5), (2, 4, 7)]
    assert (recorder.left, recorder.evaluations) == (0, 3)
    with pytest.raises(StopSearch, match=r"^all 7 evaluations are used, 4 of them on first-order effects$"):
        recorder(plan(3))
    assert recorder(plan(1)).kl == 0.2
    assert len(seen) == 3


def test_no_more_is_spent_than_is_left():
    recorder, seen = recorder_of([0.5, 0.2], episodes=5)
    recorder(plan(0))
    recorder.spend(40)
    assert recorder.left == 0
    recorder.spend(1)
    assert (recorder.left, recorder.evaluations) == (0, 1)
    with pytest.raises(StopSearch, match=r"^all 5 evaluations are used, 4 of them on first-order effects$"):
        recorder(plan(1))
    assert [e.used for e in seen] == [1]


def test_patience_counts_evaluations_alone():
    recorder, seen = recorder_of([0.5, 0.6, 0.6, 0.7], patience=2)
    recorder(plan(0))
    recorder.spend(9)
    recorder(plan(1))
    recorder(plan(2))
    with pytest.raises(StopSearch, match=r"^2 evaluations brought no improvement$"):
        recorder(plan(3))
    assert len(seen) == 3


def test_a_tie_is_no_improvement():
    recorder, seen = recorder_of([0.5, 0.5])
    recorder(plan(0))
    recorder(plan(1))
    assert [e.is_best for e in seen] == [True, False]


def test_patience_counts_evaluations_since_the_best():
    recorder, seen = recorder_of([0.5, 0.4, 0.6, 0.6, 0.3], patience=2)
    for number in range(4):
        recorder(plan(number))
    with pytest.raises(StopSearch, match=r"^2 evaluations brought no improvement$"):
        recorder(plan(4))
    assert len(seen) == 4


def test_repeats_end_the_search():
    recorder, _ = recorder_of([0.5, 0.4], episodes=9)
    for number in [0] * 50 + [1] * 50:  # the first of each is new
        recorder(plan(number))
    with pytest.raises(StopSearch, match=r"^50 episodes in a row brought only plans seen before$"):
        recorder(plan(0))


def test_patience_ends_a_whole_search():
    problem, evaluate = toy_problem()
    task = Task(problem, {"size": 204}, lambda labeling: Outcome(0.5, 0.5, 0.5, evaluate(labeling).resources))
    result = run_search(task, SearchSettings("maskable-ppo", "discrete", patience=3))
    assert result.stopped_because == "3 evaluations brought no improvement"
    assert (result.evaluations, result.best.index) == (4, 0)


def test_repeats_end_a_whole_search():
    problem, evaluate = toy_problem()
    smallest = min(problem.resources(plan(number))["bitops"] for number in range(27)) // 2
    tight = Task(problem, {"bitops": smallest}, evaluate, probabilities=fair_coins(4))
    with pytest.raises(InfeasibleBudgetError):
        run_search(tight, SearchSettings())
    loose = replace(tight, limits={"size": 10**6})  # 8 bits everywhere cost no error at all, at any price
    result = run_search(loose, SearchSettings(episodes=3), method="local")
    assert (result.evaluations, result.best.outcome.kl) == (1, 0.0)
    assert result.stopped_because == "50 episodes in a row brought only plans seen before"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episodes": 0}, "`episodes` must be at least 1, got 0."),
        ({"seed": -1}, "`seed` must be at least 0, got -1."),
        ({"patience": -2}, "`patience` must be at least 0, got -2."),
        ({"price_scale": 0.0}, "`price_scale` must be above 0 and below 20, got 0.0."),
    ],
)
def test_settings_out_of_range(changes, message):
    with pytest.raises(InputError) as caught:
        SearchSettings(**changes)
    assert str(caught.value) == message


def test_unknown_reward():
    with pytest.raises(InputError, match=r"^`reward` must be one of .*, got 'fame'\.$"):
        SearchSettings(reward="fame")
