"""Tasks handed out to workers: a worker that dies fails its task, after a second try, and not the others.

This module knows nothing about networks: the function that runs a task is an argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

Tell = Callable[[Any], None]
"""Takes news of a task that is under way."""

Run = Callable[[Any, Tell], Any]
"""Runs one task, and returns its result; it may tell news."""

Make = Callable[..., Run]
"""Makes the function that a worker runs; what it loads stays loaded from task to task."""

TRIES = 2  # of a task whose worker dies


@dataclass(frozen=True)
class News:
    """Something that a task tells before its result; it need not arrive."""

    content: Any


@dataclass(frozen=True)
class Result:
    """What a task returned."""

    value: Any


@dataclass(frozen=True)
class Death:
    """The end of a worker in the middle of a task; `how` says how it ended."""

    how: str


class Running(Protocol):
    """A task that was handed out."""

    task: Any

    def receive(self) -> News | Result | Death:
        """The next message, which waits; after a result or a death there is no other."""


class Executor(AbstractContextManager["Executor"], Protocol):
    """A place where tasks run; its context ends all of them."""

    count: int

    def submit(self, task: Any) -> Running:
        """Begin a task."""

    def with_messages(self, running: Sequence[Any]) -> list[Any]:
        """Those of the tasks that have a message; waits until there is one."""


def run_tasks(
    executor: Executor, tasks: Sequence[Hashable], told: Callable[[Any, Any], None]
) -> Generator[tuple[Any, Result | Death], None, None]:
    """Run tasks, as many at once as the executor takes.

    Args:
        executor: where the tasks run; it is entered and left here.
        tasks: different tasks in the order in which they are handed out.
        told: function that is called with a task and None when it begins, and with its news.

    Yields:
        Each task with its result as soon as it is there, or with the second death of its worker.
    """
    pending, tries = deque(tasks), dict.fromkeys(tasks, 0)
    running: list[Running] = []
    with executor:
        while pending or running:
            while pending and len(running) < executor.count:
                task = pending.popleft()
                tries[task] += 1
                told(task, None)
                running.append(executor.submit(task))
            for each in executor.with_messages(running):
                message = each.receive()
                if isinstance(message, News):
                    told(each.task, message.content)
                    continue
                running.remove(each)
                if isinstance(message, Death) and tries[each.task] < TRIES:
                    pending.appendleft(each.task)
                else:
                    yield each.task, message
