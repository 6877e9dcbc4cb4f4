"""Worker processes that take one cell at a time. A process that dies fails its cell, not the comparison.

This module knows nothing about networks: the function that runs a cell is an argument.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, cast

from autocompress.comparison.live import ComparisonProgress
from autocompress.comparison.results import CellResult
from autocompress.comparison.suite import Cell
from autocompress.progress import Step

Message = CellResult | Step
Work = Callable[..., None]


def run_in_pool(
    cells: Sequence[Cell],
    count: int,
    work: Work,
    arguments: tuple[Any, ...],
    failed_cell: Callable[[Cell, str], CellResult],
    watcher: ComparisonProgress,
) -> Generator[CellResult, None, None]:
    """Run cells in worker processes.

    Args:
        cells: cells in the order in which they are handed out.
        count: largest number of processes.
        work: function that a process runs, defined at the top level of a module. It is called with its end of
            a pipe and `arguments`. Again and again it receives a cell, sends steps and then the cell's
            result, until the pipe is closed.
        arguments: further arguments of `work`; they are pickled.
        failed_cell: function that makes the result of a cell whose process died, from the cell and a message
            about how the process ended.
        watcher: observer that is told which cells run, and of their steps.

    Yields:
        The result of each cell, as soon as it is there.
    """
    pending = list(reversed(cells))
    workers: list[_Worker] = []

    try:
        while pending and len(workers) < count:
            workers.append(_start(work, arguments, pending.pop(), watcher))
        while workers:
            for worker in _with_news(workers):
                message = worker.receive()
                if isinstance(message, Step):
                    watcher.cell_step(worker.cell, message)
                    continue
                yield message or failed_cell(worker.cell, worker.exit_message())
                if message and pending:
                    worker.begin(pending.pop(), watcher)
                    continue
                workers.remove(worker)
                worker.stop()
                if pending:
                    workers.append(_start(work, arguments, pending.pop(), watcher))
    finally:
        for worker in workers:
            worker.kill()


@dataclass(eq=False)
class _Worker:
    """A process and this end of the pipe to it; `cell` is the cell that it runs, or ran last."""

    process: SpawnProcess
    pipe: Connection
    cell: Cell

    def begin(self, cell: Cell, watcher: ComparisonProgress) -> None:
        """Send a cell to the process."""
        self.cell = cell
        watcher.cell_step(cell, None)
        with suppress(OSError):  # the process has died; `receive` will return None
            self.pipe.send(cell)

    def receive(self) -> Message | None:
        """The next message of the process; None if it has died."""
        try:
            return cast(Message, self.pipe.recv())
        except (EOFError, OSError):  # OSError: the process died in the middle of a message
            return None

    def exit_message(self) -> str:
        """How the process, which has died, ended."""
        self.process.join()
        code = self.process.exitcode or 0
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"the worker process {how}"

    def stop(self) -> None:
        """Close the pipe and wait for the process, which ends when its input does."""
        self.pipe.close()
        self.process.join()

    def kill(self) -> None:
        """End the process at once."""
        self.process.terminate()
        self.stop()


def _with_news(workers: Sequence[_Worker]) -> list[_Worker]:
    """The workers that have sent a message or died; waits until there is one."""
    ready = wait([worker.pipe for worker in workers])
    return [worker for worker in workers if worker.pipe in ready]


def _start(work: Work, arguments: tuple[Any, ...], cell: Cell, watcher: ComparisonProgress) -> _Worker:
    """A new worker process that has been sent its first cell."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, *arguments), daemon=True)
    with _interrupts_ignored():
        process.start()
    theirs.close()  # this process must not hold the other end, or the process's death would not close the pipe
    worker = _Worker(process, ours, cell)
    worker.begin(cell, watcher)
    return worker


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Let processes that start inside ignore Ctrl-C, which a terminal sends to all; their parent ends them."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set signal handlers
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
