"""A plan that is made real: what follows where its finished file does not keep a limit of time."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from autocompress.execute.pipeline import Execution
from autocompress.files import write_atomically
from autocompress.job import searching
from autocompress.progress import Silent
from autocompress.run.names import CHECKPOINTS, RUN_FILES


@pytest.mark.parametrize("slow", [0, 1, 2, 5])
def test_every_plan_that_follows_is_fine_tuned_from_a_checkpoint_of_its_own(
    slow: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run needs those before as well: it begins with the search's plan again."""
    tuned: list[tuple[str, str | None]] = []

    def execute_and_finish(job, labeling, limits, execution, path, watcher, limit):
        assert not execution.checkpoint.exists()
        write_atomically(execution.checkpoint, labeling)
        tuned.append((labeling, execution.checkpoint.name))
        checks = [SimpleNamespace(name="latency", passed=len(tuned) > slow), SimpleNamespace(name="size", passed=True)]
        return SimpleNamespace(verification=SimpleNamespace(checks=checks))

    plan = SimpleNamespace(to_yaml=lambda: "labels: {}\n")
    job = SimpleNamespace(
        menus=SimpleNamespace(plan=lambda labeling: plan),
        problem=SimpleNamespace(resources=lambda labeling: {"latency": 10}),
    )
    monkeypatch.setattr(searching, "execute_and_finish", execute_and_finish)
    monkeypatch.setattr(searching, "tighter", lambda job, limits, leader: iter("bcdefg"))
    execution = replace(Execution(0, None), checkpoint=tmp_path / CHECKPOINTS[0])
    searching._made(job, "a", {"latency": 9}, execution, tmp_path, Silent(), SimpleNamespace(limit=None))
    expected = list(zip("abc", ["finetune.pt", "finetune-2.pt", "finetune-3.pt"], strict=True))
    assert tuned == expected[: slow + 1]
    assert {*CHECKPOINTS} <= {*RUN_FILES}
