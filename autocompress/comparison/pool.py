"""Worker processes that take cells one at a time, and may die. Knows nothing of what a cell is run with."""

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
    """Run cells in processes; each result as it comes.

    Args:
        cells: in the order in which they are handed out.
        count: processes at most.
        work: what a process does: called with its end of a pipe and `arguments`. It receives a cell, sends steps and
            then the cell's result, and so on until the pipe ends. To be found by name in a module that it imports.
        arguments: of `work`; they are pickled.
        failed_cell: makes the result of a cell whose process died, from the cell and what became of the process.
        watcher: told which cells run and how they stand.
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
    """A process and this end of the pipe to it; `cell` is what it runs, or ran last."""

    process: SpawnProcess
    pipe: Connection
    cell: Cell

    def begin(self, cell: Cell, watcher: ComparisonProgress) -> None:
        """Hand out a cell."""
        self.cell = cell
        watcher.cell_step(cell, None)
        with suppress(OSError):  # it has died, which `receive` will tell
            self.pipe.send(cell)

    def receive(self) -> Message | None:
        """What the worker tells; None where it has died."""
        try:
            return cast(Message, self.pipe.recv())
        except (EOFError, OSError):  # OSError: it died in the middle of a message
            return None

    def exit_message(self) -> str:
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


def _with_news(workers: Sequence[_Worker]) -> list[_Worker]:
    ready = wait([worker.pipe for worker in workers])
    return [worker for worker in workers if worker.pipe in ready]


def _start(work: Work, arguments: tuple[Any, ...], cell: Cell, watcher: ComparisonProgress) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, *arguments), daemon=True)
    with _interrupts_ignored():
        process.start()
    theirs.close()  # else its death would not end the pipe
    worker = _Worker(process, ours, cell)
    worker.begin(cell, watcher)
    return worker


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
