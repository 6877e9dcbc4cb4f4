"""Between a search and its run folder: what is on disk at every moment, in a resumed search too."""

import math

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


def test_a_replay_writes_the_plan_that_a_kill_kept_from_the_disk(tmp_path):
    observed = [evaluated(index, is_best) for index, is_best in enumerate(BETTER)]
    plans_after(tmp_path / "run", observed)
    (tmp_path / "run" / PLAN).unlink()
    assert plans_after(tmp_path / "run", observed, resume=True) == [None, None, "plan 2\n", "plan 2\n"]
