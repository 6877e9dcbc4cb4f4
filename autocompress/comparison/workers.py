"""How cells are run: in this process, or by workers: processes of this machine, or tasks of a Ray cluster."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path

import torch

from autocompress.comparison.live import ComparisonProgress
from autocompress.comparison.results import CellResult, failed
from autocompress.comparison.session import Observe, Session, requests_of
from autocompress.comparison.suite import Cell, Suite
from autocompress.errors import AutocompressError
from autocompress.memory import reusing_freed
from autocompress.progress import Step
from autocompress.workers.executors import executor_of
from autocompress.workers.tasks import Result, Run, Tell, run_tasks
from autocompress_envs.solver import InfeasibleBudgetError

_SECONDS_BETWEEN_STEPS = 0.25  # a worker sends steps no more often


def run_here(
    session: Session, suite: Suite, cells: Sequence[Cell], watcher: ComparisonProgress
) -> Generator[CellResult, None, None]:
    """Run cells one after the other in this process.

    Args:
        session: session that runs the cells.
        suite: suite of the cells.
        cells: cells to run.
        watcher: observer that is told which cell runs, and of its steps.

    Yields:
        The result of each cell, as soon as it is there.
    """
    for cell in cells:
        watcher.cell_step(cell, None)

        def tell(step: Step, cell: Cell = cell) -> None:
            watcher.cell_step(cell, step)

        yield _result(session, suite, cell, tell)


def run_by_workers(
    suite: Suite,
    folder: Path,
    cells: Sequence[Cell],
    jobs: int | None,
    cluster: str | None,
    watcher: ComparisonProgress,
) -> Generator[CellResult, None, None]:
    """Run cells by workers. A cell whose worker dies is run again once; then it has failed.

    Args:
        suite: suite of the cells.
        folder: folder of the comparison; the menus of every job are in the cache, and its conditions are in
            the folder.
        cells: cells to run; neighbours should share their job.
        jobs: largest number of workers; None: as many as the cluster has CPUs.
        cluster: address of a Ray cluster; None for processes of this machine.
        watcher: observer that is told which cells run and, by processes, of their steps.

    Yields:
        The result of each cell, as soon as it is there.

    Raises:
        InputError: the cluster can't be reached.
    """
    on_gpu = str(suite.base.get("device", "")).startswith("cuda")
    executor = executor_of(_runner, (suite, folder.resolve()), len(cells), jobs, cluster, on_gpu=on_gpu)
    with closing(run_tasks(executor, cells, watcher.cell_step)) as done:
        for cell, end in done:
            yield end.value if isinstance(end, Result) else failed(cell, suite.configs[cell.method].method, end.how)


def _runner(suite: Suite, folder: Path, threads: int) -> Run:
    """What a worker runs, with the job of the last cell loaded."""
    torch.set_num_threads(threads)
    session = Session(suite, requests_of(suite), folder)

    @reusing_freed()
    def run(cell: Cell, tell: Observe) -> CellResult:
        return _result(session, suite, cell, _Throttled(tell))

    return run


class _Throttled:
    """Passes steps on, at most one every `_SECONDS_BETWEEN_STEPS`."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._next = 0.0

    def __call__(self, step: Step) -> None:
        if time.monotonic() >= self._next:
            self._tell(step)
            self._next = time.monotonic() + _SECONDS_BETWEEN_STEPS


def _result(session: Session, suite: Suite, cell: Cell, tell: Observe) -> CellResult:
    """The result of a cell; errors that the user can act on become a failed cell."""
    try:
        return session.run(cell, tell)
    except (AutocompressError, InfeasibleBudgetError) as error:
        return failed(cell, suite.configs[cell.method].method, str(error))
