"""Between a search and its run folder: what is on disk at every moment, in a resumed search too."""

import math
from dataclasses import replace

import numpy as np

from autocompress.config import Config
from autocompress.job.journaled import JournaledEvaluation
from autocompress.progress import Silent
from autocompress.run.folder import RunFolder, claim
from autocompress.run.names import PLAN, SHIFTS
from autocompress.run.shifts import ShiftFile
from autocompress.searchers.base import Evaluated
from autocompress_envs.problem import Labeling, Outcome

SHIFT = np.zeros((2, 3), dtype=np.float16)
BETTER = (True, False, True, False)  # of the evaluations: the third is the best


class NamedPlan:
    """Stands for the plan of a labelling."""

    def __init__(self, labeling):
        self._text = f"plan {labeling.weight_bits[0]}\n"

    def to_yaml(self):
        return self._text


def evaluated(index, is_best):
    zeros = np.zeros(1, dtype=np.int64)
    outcome = Outcome(0.1, math.nan, 0.5, {"size": 10}, SHIFT)
    return Evaluated(index, Labeling(zeros, zeros + index, zeros), outcome, 0.0, is_best)


def plans_after(path, observed, resume=False):
    """What plan.yaml holds after every one of the observed evaluations; None where there is none."""
    config = Config(budget="size=0.5", out=path, resume=resume)
    found = []
    with (
        RunFolder(claim(config), config, {}, {"network": "n"}) as folder,
        ShiftFile(path / SHIFTS, SHIFT.shape) as shifts,
    ):
        recording = JournaledEvaluation(folder, lambda _: None, NamedPlan, shifts, {"size": 20}, 9, Silent())
        for each in observed:
            recording.observe(each)
            found.append((path / PLAN).read_text() if (path / PLAN).exists() else None)
    return found


def test_the_plan_on_disk_is_the_best_so_far(tmp_path):
    observed = [evaluated(index, is_best) for index, is_best in enumerate(BETTER)]
    assert plans_after(tmp_path / "run", observed) == ["plan 0\n", "plan 0\n", "plan 2\n", "plan 2\n"]


def test_a_replay_never_puts_an_earlier_plan_in_the_best_ones_place(tmp_path):
    observed = [evaluated(index, is_best) for index, is_best in enumerate(BETTER)]
    plans_after(tmp_path / "run", observed)
    more = [*observed, evaluated(4, True)]
    assert plans_after(tmp_path / "run", more, resume=True) == ["plan 2\n"] * 4 + ["plan 4\n"]


def test_a_search_that_takes_another_way_knows_what_the_journal_held(tmp_path):
    path, notes, measured = tmp_path / "run", [], []
    observed = [evaluated(index, is_best) for index, is_best in enumerate(BETTER)]
    observed = [replace(each, outcome=replace(each.outcome, shift=SHIFT + each.index)) for each in observed]
    plans_after(path, observed)
    watcher = Silent()
    watcher.note = notes.append

    def measure(labeling):
        measured.append(int(labeling.weight_bits[0]))
        return observed[0].outcome

    for _ in range(2):  # the second time, all that it did before is in the files
        config = Config(budget="size=0.5", out=path, resume=True)
        with (
            RunFolder(claim(config), config, {}, {"network": "n"}) as folder,
            ShiftFile(path / SHIFTS, SHIFT.shape) as shifts,
        ):
            recording = JournaledEvaluation(folder, measure, NamedPlan, shifts, {"size": 20}, 9, watcher)
            for index, each in enumerate([0, 7, 2, 3]):
                labeling = evaluated(each, False).labeling
                outcome = recording.evaluate(labeling)
                assert np.all(outcome.shift == (0 if each == 7 else each))
                recording.observe(Evaluated(index, labeling, outcome, -1.0, each == 7))
        assert (path / PLAN).read_text() == "plan 2\n"  # which is better than the one with reward -1
    assert measured == [7]
    assert notes == [
        "the search takes another way than before from evaluation 1 on, as on another machine or by other versions; "
        "it goes on and knows the 4 plans of the journal"
    ]


def test_a_replay_writes_the_plan_that_a_kill_kept_from_the_disk(tmp_path):
    observed = [evaluated(index, is_best) for index, is_best in enumerate(BETTER)]
    plans_after(tmp_path / "run", observed)
    (tmp_path / "run" / PLAN).unlink()
    assert plans_after(tmp_path / "run", observed, resume=True) == [None, None, "plan 2\n", "plan 2\n"]
