"""Worker processes of this machine, each of which takes one task after the other."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from autocompress.workers.tasks import Death, Make, News, Result


class Processes:
    """Processes that are started as they are needed, and ended with the context.

    A script that uses them must guard its main part with `if __name__ == "__main__":`, because they import it.

    Args:
        count: largest number of processes.
        make: function that every process calls once, defined at the top level of a module.
        arguments: its arguments; they are pickled.
    """

    def __init__(self, count: int, make: Make, arguments: tuple[Any, ...]) -> None:
        self.count, self._make, self._arguments = count, make, arguments
        self._all: list[_Worker] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *stopped_by: object) -> None:
        for worker in self._all:
            worker.stop()

    def submit(self, task: Any) -> _Worker:
        """Give a task to a process that has none, else to a new one."""
        self._all = [worker for worker in self._all if not worker.is_dead]
        worker = next((worker for worker in self._all if worker.is_idle), None)
        if worker is None:
            self._all.append(worker := _Worker(*_started(self._make, self._arguments)))
        worker.begin(task)
        return worker

    def with_messages(self, running: Sequence[_Worker]) -> list[_Worker]:
        """The processes that have sent a message or died; waits until there is one."""
        ready = wait([worker.pipe for worker in running])
        return [worker for worker in running if worker.pipe in ready]


class _Worker:
    """A process and this end of the pipe to it.

    Attributes:
        task: task that it runs, or ran last.
        is_idle: whether it waits for a task.
        is_dead: whether it has ended.
    """

    def __init__(self, process: SpawnProcess, pipe: Connection) -> None:
        self._process, self.pipe = process, pipe
        self.task: Any = None
        self.is_idle, self.is_dead = True, False

    def begin(self, task: Any) -> None:
        """Send a task to the process."""
        self.task, self.is_idle = task, False
        with suppress(OSError):  # the process has died; `receive` will say so
            self.pipe.send(task)

    def receive(self) -> News | Result | Death:
        """The next message of the process."""
        try:
            message: News | Result = self.pipe.recv()
        except (EOFError, OSError):  # OSError: the process died in the middle of a message
            self.is_dead = True
            self.pipe.close()
            return Death(self._how_it_ended())
        self.is_idle = isinstance(message, Result)
        return message

    def stop(self) -> None:
        """Close the pipe, which ends an idle process, and wait; a process with a task is ended at once."""
        if not self.is_idle:
            self._process.terminate()
        self.pipe.close()
        self._process.join()

    def _how_it_ended(self) -> str:
        self._process.join()
        code = self._process.exitcode or 0
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"the worker process {how}"


def _started(make: Make, arguments: tuple[Any, ...]) -> tuple[SpawnProcess, Connection]:
    """A new process and this end of the pipe to it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, make, arguments), daemon=True)
    with _interrupts_ignored():
        process.start()
    theirs.close()  # this process must not hold the other end, or the process's death would not close the pipe
    return process, ours


def _work(pipe: Connection, make: Make, arguments: tuple[Any, ...]) -> None:
    """Run one task after the other in a worker process, until the parent closes the pipe or dies."""
    run = make(*arguments)
    try:
        while True:
            task = pipe.recv()
            pipe.send(Result(run(task, lambda content: pipe.send(News(content)))))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


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
