"""How cells are run: in this process, or in worker processes that divide PyTorch's threads between them."""

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
from autocompress_envs.solver import InfeasibleBudgetError

_SECONDS_BETWEEN_STEPS = 0.25  # a worker process sends steps no more often


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


def run_in_processes(
    suite: Suite, folder: Path, cells: Sequence[Cell], jobs: int, watcher: ComparisonProgress
) -> Generator[CellResult, None, None]:
    """Run cells in worker processes. If a process dies, its cell has failed.

    Args:
        suite: suite of the cells.
        folder: folder of the comparison; the menus of every job are in the cache, and its conditions are in
            the folder.
        cells: cells to run; neighbours should share their job.
        jobs: largest number of processes.
        watcher: observer that is told which cells run, and of their steps.

    Yields:
        The result of each cell, as soon as it is there.
    """

    def failed_cell(cell: Cell, exit_message: str) -> CellResult:
        return failed(cell, suite.configs[cell.method].method, exit_message)

    threads = max(1, torch.get_num_threads() // min(jobs, len(cells)))
    return run_in_pool(cells, jobs, _work, (suite, folder, threads), failed_cell, watcher)


def _work(pipe: Connection, suite: Suite, folder: Path, threads: int) -> None:
    """Run one cell after the other in a worker process, until the parent closes the pipe or dies."""
    torch.set_num_threads(threads)
    session = Session(suite, requests_of(suite), folder)
    try:
        while True:
            cell: Cell = pipe.recv()
            pipe.send(_result(session, suite, cell, _Throttled(pipe)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


class _Throttled:
    """Sends steps to the parent process, at most one every `_SECONDS_BETWEEN_STEPS`."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._next = 0.0

    def __call__(self, step: Step) -> None:
        if time.monotonic() >= self._next:
            self._pipe.send(step)
            self._next = time.monotonic() + _SECONDS_BETWEEN_STEPS


def _result(session: Session, suite: Suite, cell: Cell, tell: Observe) -> CellResult:
    """The result of a cell; errors that the user can act on become a failed cell."""
    try:
        return session.run(cell, tell)
    except (AutocompressError, InfeasibleBudgetError) as error:
        return failed(cell, suite.configs[cell.method].method, str(error))
