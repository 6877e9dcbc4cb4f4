"""Running cells: in this process, or handed out one at a time to worker processes that may die."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import cast

import torch

from autocompress.comparison.live import ComparisonProgress
from autocompress.comparison.results import CellResult, failed
from autocompress.comparison.session import Observe, Session
from autocompress.comparison.suite import Cell, Suite
from autocompress.errors import AutocompressError
from autocompress.report.progress import Step
from autocompress_envs.feasibility import InfeasibleBudgetError

_SECONDS_BETWEEN_STEPS = 0.25  # a worker tells of its evaluations no more often

Message = CellResult | Step


def run_here(
    session: Session, suite: Suite, cells: Sequence[Cell], watcher: ComparisonProgress
) -> Iterator[CellResult]:
    """Run cells one after the other; each result as it comes."""
    for cell in cells:
        watcher.cell_step(cell, None)

        def tell(step: Step, cell: Cell = cell) -> None:
            watcher.cell_step(cell, step)

        yield _result(session, suite, cell, tell)


def run_in_processes(
    suite: Suite, folder: Path, cells: Sequence[Cell], jobs: int, watcher: ComparisonProgress
) -> Iterator[CellResult]:
    """Run cells in `jobs` processes; each result as it comes. The cell of a process that dies has failed.

    Args:
        suite: whose cells they are.
        folder: of the comparison; every job's menus are built and its evaluator is settled.
        cells: neighbours should share their job.
        jobs: processes at most. PyTorch's threads are divided between them.
        watcher: told which cells run and how they stand.
    """
    pending = list(reversed(cells))
    threads = max(1, torch.get_num_threads() // jobs)
    workers = [_start(suite, folder, threads) for _ in range(min(jobs, len(pending)))]
    try:
        for worker in workers:
            _hand_out(worker, pending, watcher)
        while workers:
            for worker in _with_news(workers):
                message = worker.receive()
                if isinstance(message, Step):
                    watcher.cell_step(worker.running, message)
                    continue
                died = message is None
                yield message or failed(worker.running, _searcher(suite, worker.running), worker.epitaph())
                workers.remove(worker)
                if pending:
                    workers.append(_start(suite, folder, threads) if died else worker)
                    _hand_out(workers[-1], pending, watcher)
                else:
                    worker.stop()
    finally:
        for worker in workers:
            worker.kill()


@dataclass(eq=False)
class _Worker:
    """A process and this end of the pipe to it; `cell` is what it runs."""

    process: SpawnProcess
    pipe: Connection
    cell: Cell | None = None

    @property
    def running(self) -> Cell:
        assert self.cell is not None, "only a worker with a cell has news"
        return self.cell

    def receive(self) -> Message | None:
        """What the worker tells; None where it has died."""
        try:
            return cast(Message, self.pipe.recv())
        except (EOFError, OSError):  # OSError: it died in the middle of a message
            return None

    def epitaph(self) -> str:
        self.process.join()
        code = self.process.exitcode or 0
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"the worker process {how}"

    def stop(self) -> None:
        self.pipe.close()  # the end of its input is the end of its work
        self.process.join()

    def kill(self) -> None:
        self.process.terminate()
        self.stop()


def _hand_out(worker: _Worker, pending: list[Cell], watcher: ComparisonProgress) -> None:
    """Give an idle worker the next cell."""
    worker.cell = pending.pop()
    watcher.cell_step(worker.cell, None)
    with suppress(OSError):  # it has died, which `receive` will tell
        worker.pipe.send(worker.cell)


def _with_news(workers: Sequence[_Worker]) -> list[_Worker]:
    ready = wait([worker.pipe for worker in workers])
    return [worker for worker in workers if worker.pipe in ready]


def _start(suite: Suite, folder: Path, threads: int) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, suite, folder, threads), daemon=True)
    with _interrupts_ignored():
        process.start()
    theirs.close()  # else its death would not end the pipe
    return _Worker(process, ours)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ctrl-C goes to every process of a terminal; children that begin here leave it to their parent."""
    if threading.current_thread() is not threading.main_thread():  # only that may set handlers
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _work(pipe: Connection, suite: Suite, folder: Path, threads: int) -> None:
    """What a worker process does: a cell after the other until the parent closes the pipe, or is gone."""
    torch.set_num_threads(threads)
    session = Session(suite, folder)
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
        return failed(cell, _searcher(suite, cell), str(error))


def _searcher(suite: Suite, cell: Cell) -> str:
    return suite.configs[cell.method].method
