"""Running cells: in this process, or in worker processes that divide PyTorch's threads between them."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from autocompress.comparison.live import ComparisonProgress
from autocompress.comparison.pool import run_in_pool
from autocompress.comparison.results import CellResult, failed
from autocompress.comparison.session import Observe, Session, requests_of
from autocompress.comparison.suite import Cell, Suite
from autocompress.errors import AutocompressError
from autocompress.progress import Step
from autocompress_envs.solver.feasibility import InfeasibleBudgetError

_SECONDS_BETWEEN_STEPS = 0.25  # a worker tells of its evaluations no more often


def run_here(
    session: Session, suite: Suite, cells: Sequence[Cell], watcher: ComparisonProgress
) -> Generator[CellResult, None, None]:
    """Run cells one after the other; each result as it comes."""
    for cell in cells:
        watcher.cell_step(cell, None)

        def tell(step: Step, cell: Cell = cell) -> None:
            watcher.cell_step(cell, step)

        yield _result(session, suite, cell, tell)


def run_in_processes(
    suite: Suite, folder: Path, cells: Sequence[Cell], jobs: int, watcher: ComparisonProgress
) -> Generator[CellResult, None, None]:
    """Run cells in `jobs` processes; each result as it comes. The cell of a process that dies has failed.

    Args:
        suite: whose cells they are.
        folder: of the comparison; every job's menus are built and its evaluator is settled.
        cells: neighbours should share their job.
        jobs: processes at most.
        watcher: told which cells run and how they stand.
    """

    def failed_cell(cell: Cell, exit_message: str) -> CellResult:
        return failed(cell, suite.configs[cell.method].method, exit_message)

    threads = max(1, torch.get_num_threads() // min(jobs, len(cells)))
    return run_in_pool(cells, jobs, _work, (suite, folder, threads), failed_cell, watcher)


def _work(pipe: Connection, suite: Suite, folder: Path, threads: int) -> None:
    """What a worker process does: a cell after the other until the parent closes the pipe, or is gone."""
    torch.set_num_threads(threads)
    session = Session(suite, requests_of(suite), folder)
    try:
        while True:
            cell: Cell = pipe.recv()
            pipe.send(_result(session, suite, cell, _Throttled(pipe)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


class _Throttled:
    """Sends steps to the parent, but not every one."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._next = 0.0

    def __call__(self, step: Step) -> None:
        if time.monotonic() >= self._next:
            self._pipe.send(step)
            self._next = time.monotonic() + _SECONDS_BETWEEN_STEPS


def _result(session: Session, suite: Suite, cell: Cell, tell: Observe) -> CellResult:
    try:
        return session.run(cell, tell)
    except (AutocompressError, InfeasibleBudgetError) as error:
        return failed(cell, suite.configs[cell.method].method, str(error))
