"""The live view of a job on standard error: a progress display on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import math
import time
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


class PlainView:
    """A view for files and pipes: a line for every stage, every better plan, and every tenth of the episodes.

    Args:
        console: console of standard error.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tenths = 0
        self._tuning_tenths = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def stage(self, text: str) -> None:
        self._line(text)

    def note(self, text: str) -> None:
        self._line(f"note: {text}")

    def advance(self, done: int, total: int, what: str) -> None:
        if done == total:
            self._line(f"{what}: {total} of {total}")

    def step(self, step: Step) -> None:
        tenths = (step.index + 1) * 10 // step.total
        if step.is_best or tenths > self._tenths:
            self._line(f"episode {step.index + 1}/{step.total}  {best_so_far(step)}")
        self._tenths = max(self._tenths, tenths)

    def tuning(self, step: int, total: int, loss: float, accuracy: float, seconds_left: float) -> None:
        tenths = step * 10 // total
        if tenths > self._tuning_tenths:
            state = f"{tuning_state(loss, accuracy)}  {seconds_left:.0f} s left"
            self._line(f"fine-tuning step {step}/{total}  {state}")
        self._tuning_tenths = max(self._tuning_tenths, tenths)

    def _line(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)


def best_so_far(step: Step) -> str:
    """The best plan so far in a few words.

    >>> best_so_far(Step(3, 10, False, 0.0412, 0.9731, {"size": 18_200}, {"size": 20_000}))
    'best plan: KL 0.0412 nats, accuracy 97.3 %, size 91.0 % of the budget'
    """
    accuracy = "" if math.isnan(step.best_accuracy) else f", accuracy {100 * step.best_accuracy:.1f} %"
    spent = "".join(
        f", {name} {100 * step.resources[name] / limit:.1f} % of the budget" for name, limit in step.limits.items()
    )
    return f"best plan: KL {step.best_kl:.4f} nats{accuracy}{spent}"


def tuning_state(loss: float, accuracy: float) -> str:
    """How fine-tuning stands in a few words.

    >>> tuning_state(0.0532, 0.9731)
    'loss 0.0532  best accuracy 97.3 %'
    """
    known = "" if math.isnan(accuracy) else f"  best accuracy {100 * accuracy:.1f} %"
    return f"loss {loss:.4f}{known}"
