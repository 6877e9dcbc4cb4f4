"""The live view of a job on standard error: a progress display on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from autocompress.budget import shown_name
from autocompress.progress import Step


class TerminalView:
    """A view for terminals: one Rich progress display with a bar for each kind of work.

    Args:
        console: console of standard error.
    """

    def __init__(self, console: Console) -> None:
        self._display = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.stop()

    def stage(self, text: str) -> None:
        self._display.console.print(escape(text), style="dim", highlight=False)

    def note(self, text: str) -> None:
        self._display.console.print(f"note: {escape(text)}", style="yellow", highlight=False)

    def advance(self, done: int, total: int, what: str) -> None:
        self._advance(what, done, total, "")

    def step(self, step: Step) -> None:
        if step.index == 0:
            self._started = time.monotonic()
        speed = step.index / max(time.monotonic() - self._started, 1e-9)
        self._advance("episodes", step.index + 1, step.total, f"{best_so_far(step)}  {speed:.1f}/s")

    def tuning(self, step: int, total: int, loss: float, accuracy: float, seconds_left: float) -> None:
        self._advance("fine-tuning", step, total, tuning_state(loss, accuracy))

    def _advance(self, name: str, done: int, total: int | None, state: str) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._display.add_task(escape(name), total=total, state="")
        self._display.update(self._tasks[name], completed=done, total=total, state=escape(state))

    def _drop(self, name: str) -> None:
        self._display.remove_task(self._tasks.pop(name))


@dataclass
class _Work:
    """What a job is at.

    Attributes:
        name: the stage's text, or the name of the pieces that are counted.
        began: when it was first heard of, in seconds of the view's clock.
        done: number of pieces that are ready.
        total: number of pieces in all; 0 where nothing is counted.
        first: number of pieces that were ready when it was first heard of.
    """

    name: str
    began: float
    done: int = 0
    total: int = 0
    first: int = 0

    def left(self, now: float) -> str:
        """The expected time until all pieces are ready, in words; empty before any was seen to be made.

        >>> _Work("menus", began=10.0, done=5, total=9, first=1).left(now=90.0)
        ', about 1:20 left'
        """
        made = self.done - self.first
        return f", about {clock_time((now - self.began) / made * (self.total - self.done))} left" if made > 0 else ""

    def so_far(self) -> str:
        """The name, and how many pieces are ready where they are counted."""
        return f"{self.name}, {self.done} of {self.total}" if self.total else self.name


class PlainView:
    """A view for files and pipes: a line for every stage, every better plan, and every tenth of the episodes.

    Where a part of a job takes long, a line follows at least every `EVERY` seconds: how much is done and how long the
    rest will take, or, inside the `with` block, that it is still at it where nothing else is heard.

    Args:
        console: console of standard error.
        clock: function that gives the time in seconds. Default: `time.monotonic`.
    """

    EVERY = 30.0  # most seconds without a line

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._tenths = 0
        self._tuning_tenths = 0
        self._work: _Work | None = None
        self._last_line = clock()
        self._lock = threading.RLock()  # lines come from the job's thread and from the one that says it goes on
        self._is_over = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, name="progress", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()

    def stage(self, text: str) -> None:
        with self._lock:
            self._work = _Work(text, self._clock())
            self._line(text)

    def note(self, text: str) -> None:
        self._line(f"note: {text}")

    def advance(self, done: int, total: int, what: str) -> None:
        with self._lock:
            work = self._at(what, done, total)
            if done == total:
                self._line(f"{what}: {total} of {total}")
            elif self._is_time():
                self._line(f"{what}: {done} of {total}{work.left(self._clock())}")

    def step(self, step: Step) -> None:
        with self._lock:
            work = self._at("episodes", step.index + 1, step.total)
            tenths = (step.index + 1) * 10 // step.total
            if step.is_best or tenths > self._tenths or self._is_time():
                now = self._clock()
                left = work.left(now) if now - work.began >= self.EVERY else ""  # quick searches need no forecast
                self._line(f"episode {step.index + 1}/{step.total}  {best_so_far(step)}{left}")
            self._tenths = max(self._tenths, tenths)

    def tuning(self, step: int, total: int, loss: float, accuracy: float, seconds_left: float) -> None:
        with self._lock:
            self._at("fine-tuning steps", step, total)
            tenths = step * 10 // total
            if tenths > self._tuning_tenths or self._is_time():
                state = f"{tuning_state(loss, accuracy)}  {seconds_left:.0f} s left"
                self._line(f"fine-tuning step {step}/{total}  {state}")
            self._tuning_tenths = max(self._tuning_tenths, tenths)

    def say_that_it_goes_on(self) -> None:
        """Write what the job is still at, where no line was written for `EVERY` seconds."""
        with self._lock:
            if self._work is not None and self._is_time():
                so_far = clock_time(self._clock() - self._work.began)
                self._line(f"… still at: {self._work.so_far()}, {so_far} so far")

    def _watch(self) -> None:
        """Say every now and then that the job goes on, until it is over."""
        while not self._is_over.wait(1.0):
            self.say_that_it_goes_on()

    def _at(self, name: str, done: int, total: int) -> _Work:
        """The work of that name with its pieces counted; a new one where it has just begun."""
        work = self._work
        if work is None or work.name != name or done < work.done:
            work = _Work(name, self._clock(), first=done)
        self._work = replace(work, done=done, total=total)
        return self._work

    def _is_time(self) -> bool:
        """Whether nothing was written for `EVERY` seconds."""
        return self._clock() - self._last_line >= self.EVERY

    def _line(self, text: str) -> None:
        with self._lock:
            self._last_line = self._clock()
            self._console.print(text, soft_wrap=True, markup=False, highlight=False)


def clock_time(seconds: float) -> str:
    """Seconds as minutes or hours.

    >>> clock_time(35.4), clock_time(80), clock_time(3_725)
    ('0:35', '1:20', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def best_so_far(step: Step) -> str:
    """The best plan so far in a few words.

    >>> best_so_far(Step(3, 10, False, 0.0412, 0.9731, {"size": 18_200}, {"size": 20_000}))
    'best plan: KL 0.0412 nats, accuracy 97.3 %, size 91.0 % of the budget'
    """
    accuracy = "" if math.isnan(step.best_accuracy) else f", accuracy {100 * step.best_accuracy:.1f} %"
    spent = "".join(
        f", {shown_name(name)} {100 * step.resources[name] / limit:.1f} % of the budget"
        for name, limit in step.limits.items()
    )
    return f"best plan: KL {step.best_kl:.4f} nats{accuracy}{spent}"


def tuning_state(loss: float, accuracy: float) -> str:
    """How fine-tuning stands in a few words.

    >>> tuning_state(0.0532, 0.9731)
    'loss 0.0532  best accuracy 97.3 %'
    """
    known = "" if math.isnan(accuracy) else f"  best accuracy {100 * accuracy:.1f} %"
    return f"loss {loss:.4f}{known}"
